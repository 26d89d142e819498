"""What the archive and the retrieval of a dataset share: jobs that wait for it, people who steer it, steps that park.

A dataset workflow is nobody's child. Jobs join it by signal-with-start and are told its outcome; the last one to leave
cancels it. Every step runs through `step`, the one place that knows pausing, retrying by hand, parking and giving up.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from temporalio import workflow
from temporalio.common import Priority, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception
from temporalio.workflow import ActivityConfig, LocalActivityConfig

from workflows import queues, telling
from workflows.awaiting import ended, signal_each, undisturbed, unless
from workflows.failures import reason

with workflow.unsafe.imports_passed_through():
    from activities.reporting import DeliverOutcome, ReportingActivities
    from domain import metrics, names
    from domain.errors import DATASET_ERRORS
    from domain.lifecycle import IDLE, Outcome, Phase
    from domain.message import Message
    from domain.orders import DatasetOrder, Subscriber
    from domain.outcome import DatasetOutcome
    from domain.priority import Urgency, fairness_key
    from domain.progress import SHOWN, BlockProgress, DatasetProgress, dataset_details
    from workflows import search_attributes as attributes
    from workflows.carried import Carried
    from workflows.policies import Policies

T = TypeVar("T")

MAX_RECALLS = 3
"""Times that a datablock whose recall fails is asked for before a person is."""


class EndDataset(Exception):
    """The dataset cannot go on; what it is told to its jobs."""

    def __init__(self, outcome: Outcome, error_class: str, message: str) -> None:
        super().__init__(message)
        self.outcome, self.error_class, self.message = outcome, error_class, message


class WaitEnded(Exception):
    """A wait ended without what it waited for: by its deadline, or because that will never come."""

    def __init__(self, kind: str, text: str, *, deadline: bool) -> None:
        super().__init__(text)
        self.kind, self.text, self.deadline = kind, text, deadline


class HistoryFull(Exception):
    """The run gives way to a fresh one; what it was about to wait for is looked at again there."""


class DatasetWorkflow:
    """Base of `ArchiveDataset` and `RetrieveDataset`."""

    kind = ""
    urgency = Urgency.ARCHIVE
    comfort = ""
    """What a scientist is told first when it ends by a failure of ours."""

    def __init__(self, order: DatasetOrder, carried: Carried) -> None:
        self.order = order
        self.policies = Policies(order.timing)
        self.committed = False
        """Behind the commit point nothing is cancelled, given up or undone."""
        self.abandoned = False
        """Cancelled because every job left, not by a person."""
        self.blocks: dict[int, BlockProgress] = {}
        self.payload_bytes = 0
        self.owner_group = ""
        """As found by the look; until then the steps have the fairness key of the job that came first."""
        self.bytes_before = 0
        """Done by earlier runs of the same work."""
        self.subscribers: tuple[Subscriber, ...] = carried.subscribers
        self._gone: list[Subscriber] = []
        """Those that left."""
        self._told: set[tuple[str, int]] = set()
        self.paused_by = carried.paused_by
        self.divisible = False
        """Now the work may go on in a fresh run, since all that matters of it can be carried over."""
        self.moving = 0
        """Steps that run now; waits, undoing and last words do not count."""
        self._looks = 0
        self._stops = 0
        self._retries = 0
        self._give_up = False
        self._parked: dict[int, str] = {}
        self._calm: set[int] = set()
        """Those of the parked that nobody can give up."""
        self._parkings = 0
        self._waiting_for = ""
        self._unsaid: dict[str, SearchAttributeUpdate[Any]] = {}
        self._spots = 0
        """Steps that are tried on the spot."""
        self._phase = carried.shown
        self._shown = carried.shown
        self._since = self._waiting_since = workflow.now()
        self._outcome: DatasetOutcome | None = None
        self._work: asyncio.Task[DatasetOutcome] | None = None
        self._ending = False
        self._cancelled_by = ""
        self._too_late = ""
        """What somebody asked for when it could not be had any more; a signal cannot answer, `progress` does."""

    # Signals and the query. Handlers only set flags, so that none can be interrupted half-way.

    @workflow.signal
    def join(self, subscriber: Subscriber) -> None:
        """A job waits for this dataset; joining again changes nothing."""
        if subscriber in self.subscribers:
            return
        self.subscribers = (*self.subscribers, subscriber)
        self._name_jobs()
        if self._shown is Phase.PARKED or (subscriber.windowed and self._shown in IDLE):
            self._tell_phase([subscriber])

    @workflow.signal
    def leave(self, job_id: str) -> None:
        """A job was cancelled; when nobody waits any more, neither does this.

        The job is told at once that its places count as cancelled. Too late for that, it hears how the dataset ended.
        """
        # Nobody else would know that it has to be resumed.
        self.resume(f"job {job_id}")
        if self.committed or self._outcome:
            self._say_too_late(f"job {job_id} was cancelled")
            return
        left = [s for s in self.subscribers if s.job_id == job_id]
        self.subscribers = tuple(s for s in self.subscribers if s.job_id != job_id)
        self._gone += left
        self._name_jobs()
        self._leaving = asyncio.create_task(
            signal_each(
                [names.job_workflow(job_id)] * len(left),
                "dataset_done",
                [(s.n, Outcome.CANCELLED.value) for s in left],
            )
        )
        if not (self.subscribers or self._ending or self._cancelled_by):
            self.abandoned = True
            self._cancel("every job that waited for it was cancelled")

    @workflow.signal
    def pause(self, by: str = "an operator") -> None:
        """Stop running copies at the next chunk and start nothing more."""
        self.paused_by = by
        self._stops += 1
        self._show()

    @workflow.signal
    def resume(self, paused_by: str = "") -> None:
        """Go on after a pause, whoever's it was, or only after that of somebody."""
        if paused_by in ("", self.paused_by):
            self.paused_by = ""
            self._show()

    @workflow.signal
    def retry(self) -> None:
        """Try a parked step again, or cut a running backoff short."""
        self._retries += 1
        self._stops += 1

    @workflow.signal
    def give_up(self) -> None:
        """End a parked dataset; too late once it is archived."""
        if self._parked.keys() - self._calm:
            self._give_up = True
        elif self.committed:
            self._say_too_late("it was given up")

    @workflow.signal
    def recall_ready(self) -> None:
        """Somebody knows that the tape is in: look now instead of at the next poll."""
        self.look_again()

    def look_again(self) -> None:
        """Interrupt what waits, so that it looks again; what moves goes on."""
        self._looks += 1

    @workflow.query
    def progress(self) -> DatasetProgress:
        """Where the dataset stands."""
        shown = sorted(self.blocks.values(), key=lambda b: (b.state in ("safe", "delivered", "intact"), b.index))
        return self._standing().model_copy(update={"blocks": tuple(shown[:SHOWN])})

    def _standing(self) -> DatasetProgress:
        """Without its datablocks."""
        outcome = self._outcome
        waiting_for = next(iter(self._parked.values()), self._waiting_for)
        return DatasetProgress(
            pid=self.order.pid,
            kind=self.kind,
            phase=self._shown,
            since=self._since.isoformat(),
            waiting_for=waiting_for,
            waiting_since=(self._since if self._parked else self._waiting_since).isoformat() if waiting_for else "",
            paused_by=self.paused_by,
            cancelled_by=self._cancelled_by,
            committed=self.committed,
            ending=self._ending,
            bytes_total=sum(block.bytes_total for block in self.blocks.values()) or self.payload_bytes,
            bytes_done=self.bytes_before + sum(block.bytes_done for block in self.blocks.values()),
            blocks_total=len(self.blocks),
            states=Counter(block.state for block in self.blocks.values()),
            safety=self.safety(),
            jobs=tuple(sorted({names.job_workflow(s.job_id) for s in self.subscribers})),
            outcome=outcome.status if outcome else None,
            error_class=outcome.error_class if outcome else "",
            message=outcome.message if outcome else "",
            note=self._too_late,
        )

    def safety(self) -> dict[str, int]:
        """How many datablocks are how safe; only an archive has an answer."""
        return {}

    # The frame around the story that `ArchiveDataset` and `RetrieveDataset` tell.

    async def conclude(self, work: Coroutine[Any, Any, DatasetOutcome]) -> DatasetOutcome:
        """Run the work to its end and tell everybody who waits, whatever is cancelled meanwhile."""
        workflow.set_current_details(dataset_details(self._standing()))
        self._work = asyncio.create_task(self._work_and_tell(work))
        while True:
            try:
                return await asyncio.shield(self._work)
            except asyncio.CancelledError:
                if self._work.cancelled():
                    raise
                # A person ends it for all, for those too that join while it is being undone.
                self.abandoned = False
                self._cancel("an operator cancelled it")

    async def _work_and_tell(self, work: Coroutine[Any, Any, DatasetOutcome]) -> DatasetOutcome:
        try:
            outcome = await work
            self._ending = True
            self._outcome = outcome
            telling.count(metrics.DATASETS, kind=self.kind, outcome=outcome.status.value, error=outcome.error_class)
            self.say(attributes.OUTCOME.value_set(outcome.status.value))
            self.enter(Phase.DONE)
            await self._tell_all(outcome)
            return outcome
        finally:
            self._say_now()

    def _cancel(self, why: str) -> None:
        """Cancel the work once; it undoes what it did and ends with an outcome all the same."""
        if self.committed:
            self._say_too_late(why)
        if self.committed or self._ending or self._cancelled_by:
            return
        self._cancelled_by = why
        if self._work:
            self._work.cancel()

    def _say_too_late(self, what: str) -> None:
        """Behind the commit point it only goes forward."""
        if self.committed:
            self._too_late = f"{what}: too late, already archived; what is left to do is done"
            workflow.logger.warning("dataset %s: %s", self.order.pid, self._too_late)

    def ending(self, error: BaseException) -> EndDataset:
        """How the work ends after this error. Anything that is no decision of ours is a bug and is raised again."""
        self._ending = True
        if isinstance(error, EndDataset):
            return error
        if is_cancelled_exception(error):
            return EndDataset(Outcome.CANCELLED, "Cancelled", self._cancelled_by or "an operator cancelled it")
        raise error

    def too_late(self, end: EndDataset) -> None:
        """It is archived, though it was to end like this: what is left to do is done now, paused or not.

        Jobs that left before this was known hear the truth too.
        """
        self.committed = True
        self._ending = self.abandoned = False
        self._say_too_late(self._cancelled_by or f"it was to end as {end.outcome.value}")
        self._cancelled_by = self.paused_by = ""
        self.subscribers = tuple(dict.fromkeys((*self.subscribers, *self._gone)))

    async def _tell_all(self, outcome: DatasetOutcome) -> None:
        """Tell every subscriber, late ones too; between the last look and the return nothing is awaited."""
        while waiting := [s for s in self.subscribers if (s.job_id, s.n) not in self._told]:
            await self.step(
                ReportingActivities.deliver_outcome,
                DeliverOutcome(outcome=outcome, subscribers=tuple(waiting)),
                self.policies.endless(),
                summary="tell the jobs",
                brief=True,
                calm=True,
            )
            self._told.update((s.job_id, s.n) for s in waiting)

    # Phases: what the Temporal UI, the CLI and a job's window see.

    def enter(self, phase: Phase, waiting_for: str = "") -> None:
        """Say what the dataset does now."""
        if phase is not self._phase or bool(waiting_for) is not bool(self._waiting_for):
            self._waiting_since = workflow.now()
        self._phase, self._waiting_for = phase, waiting_for
        self._show()

    def _show(self) -> None:
        """Parked and paused hide the phase behind them."""
        shown = self._phase
        if self._parked:
            shown = Phase.PARKED
        elif self.paused_by and not self._ending:
            shown = Phase.PAUSED
        if shown is self._shown:
            return
        before, self._shown, self._since = self._shown, shown, workflow.now()
        self.say(attributes.PHASE.value_set(shown.value))
        workflow.set_current_details(dataset_details(self._standing()))
        self._tell_phase(
            [
                s
                for s in self.subscribers
                if Phase.PARKED in (before, shown) or (s.windowed and (before in IDLE) is not (shown in IDLE))
            ]
        )

    def _tell_phase(self, told: Sequence[Subscriber]) -> None:
        """Tell jobs in the background; of the end they hear as `dataset_done`."""
        if told and self._shown is not Phase.DONE:
            why = next(iter(self._parked.values()), "")
            jobs = [names.job_workflow(s.job_id) for s in told]
            words = [(s.n, self._shown.value, why) for s in told]
            self._background = asyncio.create_task(signal_each(jobs, "dataset_phase", words))

    def _name_jobs(self) -> None:
        self.say(attributes.SCICAT_JOB_ID.value_set(sorted({s.job_id for s in self.subscribers})))

    def say(self, *updates: SearchAttributeUpdate[Any]) -> None:
        """Set search attributes, all that become known at a time in one event.

        Steps on the spot follow one another within one workflow task, and nobody sees what stood between them.
        """
        if not self._unsaid:
            self._saying = asyncio.create_task(self._say_when_seen())
        self._unsaid |= {update.key.name: update for update in updates}

    async def _say_when_seen(self) -> None:
        await workflow.wait_condition(lambda: not self._spots)
        self._say_now()

    def _say_now(self) -> None:
        unsaid, self._unsaid = self._unsaid, {}
        attributes.upsert(*unsaid.values())

    @property
    def full(self) -> bool:
        """The history has grown so long that a fresh run should go on from here."""
        info = workflow.info()
        long = info.get_current_history_length() >= self.order.limits.history
        return self.divisible and (long or info.is_continue_as_new_suggested())

    @property
    def shown(self) -> Phase:
        """The phase that everybody sees."""
        return self._shown

    @property
    def idle(self) -> bool:
        """Paused or parked."""
        return bool(self.paused_by or self._parked)

    # Steps.

    async def step(
        self,
        method: Callable[..., Awaitable[T]],
        argument: Message,
        config: ActivityConfig,
        *,
        summary: str = "",
        brief: bool = False,
        calm: bool = False,
        keep: Callable[[T], None] | None = None,
    ) -> T:
        """Run an activity until it is done: through pauses, retries by hand, and parking.

        Args:
            method: the activity.
            argument: its input.
            config: its policy.
            summary: shown in the Temporal UI.
            brief: well under a second as a rule, and nothing runs beside it: tried on the spot first.
            calm: an undo or a last word: neither paused nor interrupted nor cancelled nor given up.
            keep: called with the result, also if that came when the work was cancelled already.

        Raises:
            EndDataset: the dataset's own error, or given up.
            HistoryFull: it would have to be parked, and the history is full.
            asyncio.CancelledError: the work was cancelled.
        """
        config = config | ActivityConfig(summary=summary or None)
        if calm:
            return await undisturbed(self._insist(method, argument, config, brief=brief))
        if brief:
            await self._may_start()
            if done := await self._on_the_spot(method, argument, config, keep):
                return done[0]
        while True:
            await self._may_start()
            seen = self._stops
            running = self._start(method, argument, config)
            try:
                result = await self._counted(unless(running, lambda seen=seen: self._stops != seen, keep))
            except ActivityError as error:
                kind, text, _ = reason(error)
                if kind in DATASET_ERRORS and not self.committed:
                    raise EndDataset(Outcome.DATASET_ERROR, kind, text) from error
                await self.park(kind, text)
                continue
            if result is not None:
                return result[0]

    async def _on_the_spot(
        self,
        method: Callable[..., Awaitable[T]],
        argument: Message,
        config: ActivityConfig,
        keep: Callable[[T], None] | None = None,
    ) -> tuple[T] | None:
        """Try a brief step once within the workflow task, which spares Temporal five events of six.

        It is not cancelled but waited for, as it takes two seconds at most. What fails for another reason than the
        dataset's own has failed for nothing: it gets time, retries, and a place to park as an activity like any other.

        Returns:
            Its result; None if it failed.

        Raises:
            EndDataset: the dataset's own error, unless it is archived.
            asyncio.CancelledError: the work was cancelled meanwhile.
        """
        spot = self.policies.spot() | LocalActivityConfig(summary=config.get("summary"))
        trying = workflow.start_local_activity_method(
            cast("Callable[[Any, Message], Awaitable[T]]", method), argument, **spot
        )
        self._spots += 1
        try:
            cancelled = await self._counted(ended([trying]))
        finally:
            self._spots -= 1
        try:
            result = trying.result()
        except FailureError as error:
            kind, text, _ = reason(error)
            if cancelled:
                raise asyncio.CancelledError from None
            if kind in DATASET_ERRORS and not self.committed:
                raise EndDataset(Outcome.DATASET_ERROR, kind, text) from error
            return None
        if keep:
            keep(result)
        if cancelled:
            raise asyncio.CancelledError
        return (result,)

    async def _counted(self, work: Awaitable[T]) -> T:
        self.moving += 1
        try:
            return await work
        finally:
            self.moving -= 1

    async def _insist(
        self, method: Callable[..., Awaitable[T]], argument: Message, config: ActivityConfig, *, brief: bool
    ) -> T:
        if brief and (done := await self._on_the_spot(method, argument, config)):
            return done[0]
        while True:
            try:
                return await self._start(method, argument, config)
            except ActivityError as error:
                kind, text, _ = reason(error)
                if kind in DATASET_ERRORS:
                    raise EndDataset(Outcome.DATASET_ERROR, kind, text) from error
                await self.park(kind, text, calm=True)

    async def _may_start(self) -> None:
        """Wait while paused; a cancel that came before the first `await` of all is noticed here."""
        if self._cancelled_by:
            raise asyncio.CancelledError
        if self.paused_by:
            await workflow.wait_condition(lambda: not self.paused_by)

    def _start(
        self, method: Callable[..., Awaitable[T]], argument: Message, config: ActivityConfig
    ) -> workflow.ActivityHandle[T]:
        reads = config.get("task_queue") == queues.RETRIEVAL
        priority = Priority(
            priority_key=Urgency.RETRIEVE if reads else self.urgency,
            fairness_key=fairness_key(self.owner_group),
        )
        config = config | ActivityConfig(priority=priority)
        # The SDK's overloads want the class of the method's `self`, which is not known here.
        return workflow.start_activity_method(
            cast("Callable[[Any, Message], Awaitable[T]]", method), argument, **config
        )

    async def wait_step(
        self,
        method: Callable[..., Awaitable[T]],
        question: Callable[[], Message],
        deadline: datetime,
        *,
        summary: str = "",
        config: ActivityConfig | None = None,
        changed: Callable[[], object] = lambda: None,
        keep: Callable[[T], None] | None = None,
    ) -> T | None:
        """Poll until the activity finds what it waits for; signals cut the wait between two polls short.

        Args:
            method: the activity; it fails with `NotYet` while there is nothing.
            question: its input, asked for anew after each interruption.
            deadline: when to stop waiting.
            summary: shown in the Temporal UI.
            config: its policy but for the deadline; by default that of a short question.
            changed: the wait is of no use any more as soon as this returns something else.
            keep: as of `step`.

        Returns:
            What was found; None only if `changed` has changed.

        Raises:
            WaitEnded: nothing came until the deadline, or nothing ever will.
            EndDataset, asyncio.CancelledError: as `step`.
        """
        before = changed()
        while True:
            await self._may_start()
            if changed() != before:
                return None
            policy = self.policies.wait(deadline - workflow.now(), config) | ActivityConfig(summary=summary or None)
            seen = (self._looks, self._stops, before)
            running = self._start(method, question(), policy)
            try:
                result = await unless(running, lambda seen=seen: (self._looks, self._stops, changed()) != seen, keep)
            except ActivityError as error:
                kind, text, final = reason(error)
                if kind in DATASET_ERRORS and not self.committed:
                    raise EndDataset(Outcome.DATASET_ERROR, kind, text) from error
                # The schedule ends early, and its cause is the last poll's own error (temporalio 1.35, measured).
                raise WaitEnded(kind, text, deadline=not final) from error
            if result is not None:
                return result[0]

    async def park(self, kind: str, text: str, *, calm: bool = False) -> None:
        """Keep all work and wait for `retry`.

        Args:
            kind: class of the error.
            text: why, for people.
            calm: wait without end; so does everything behind the commit point.

        Raises:
            EndDataset: given up, by a person or by time.
            HistoryFull: others need a fresh run; whoever parks tries once more there.
        """
        calm = calm or self.committed
        self._parkings += 1
        place = self._parkings
        if calm:
            self._calm.add(place)
        self._parked[place] = f"{kind}: {text}"
        self._show()
        seen = self._retries
        workflow.logger.warning("dataset %s is parked: %s: %s", self.order.pid, kind, text)
        try:
            await workflow.wait_condition(
                lambda: self._retries != seen or (not calm and (self._give_up or self.full)),
                timeout=None if calm else timedelta(seconds=self.order.timing.park_s),
            )
        except TimeoutError:
            raise EndDataset(Outcome.FAILED, kind, f"{self.comfort}: {text} (parked until its time was up)") from None
        finally:
            del self._parked[place]
            self._calm.discard(place)
            self._show()
        if calm:
            return
        if self._give_up:
            raise EndDataset(Outcome.GIVEN_UP, kind, f"{self.comfort}: {text} (given up by an operator)")
        if self._retries == seen:
            raise HistoryFull
