"""A SciCat job: joins one workflow per dataset in a bounded window, hears their outcomes, reports once at the end."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import chain, islice
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import Priority, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.workflow import ActivityConfig

from workflows import patches
from workflows.awaiting import signal_each, unless

with workflow.unsafe.imports_passed_through():
    from activities.catalogue import CatalogueActivities, JobReport, OpenedJob, OpenJob
    from activities.joining import BATCH, JoinDatasets, JoiningActivities, WatchDatasets, dataset_workflow
    from activities.reporting import DeliverOutcome, FinishedJob, FinishJob, ReportingActivities
    from domain.bitmap import Bitmap
    from domain.lifecycle import IDLE, JobStatus, JobType, Outcome, Phase
    from domain.message import Message
    from domain.orders import JobOrder, Subscriber
    from domain.outcome import DatasetOutcome
    from domain.priority import fairness_key, urgency_of
    from domain.progress import DETAILED, SHOWN, JobDatasetProgress, JobProgress, job_details
    from workflows import search_attributes as attributes
    from workflows.carried import CarriedJob, JobState
    from workflows.policies import Policies

M = TypeVar("M", bound=Message)
T = TypeVar("T")


_CARRIED_TEXT = 200
"""Characters of a reason that outlive continue-as-new."""


class JobWorkflow:
    """Base of `ArchiveJob` and `RetrieveJob`; a job ends Completed whatever its datasets did."""

    def __init__(self, order: CarriedJob) -> None:
        state = order.state
        self._order = order
        self._policies = Policies(order.timing)
        self._opened = state.opened
        self._joined = state.joined
        self._open = dict(state.open)
        self._counts = dict(state.counts)
        self._paused = state.paused
        self._told_pause = state.told_pause
        self._ended_paused: dict[int, str] = {}
        """Those of which the end was heard after they were told to pause: they may have heard it before they ended."""
        self._done: dict[int, str] = {n: "" for n in range(state.joined) if n in state.done}
        """Position → outcome, empty where an earlier run heard it."""
        self._pids: dict[int, str] = dict(state.open)
        self._restoring: set[int] = set(state.restoring)
        self._idle: set[int] = set(state.idle)
        self._parked: dict[int, str] = dict(state.parked)
        self._told_parked: set[int] = {n for n, why in state.parked.items() if not why}
        self._phase = self._shown = Phase.PLANNING
        self._finished: FinishedJob | None = None
        self._changes = 0
        """Counts signals, so that the story looks again after each."""
        self._cancelled = False
        self._hearing = False
        self._reporting = False

    # Signals and the query.

    @workflow.signal
    def dataset_done(self, n: int, outcome: str) -> None:
        """A dataset has ended; told twice counts once."""
        self._changes += 1
        if n not in self._done:
            self._done[n] = outcome
            self._counts[outcome] = self._counts.get(outcome, 0) + 1
        pid = self._open.pop(n, None)
        if pid and self._told_pause:
            self._ended_paused[n] = pid
        self._idle.discard(n)
        self._parked.pop(n, None)
        self._show()

    @workflow.signal
    def dataset_phase(self, n: int, phase: str, why: str) -> None:
        """A dataset waits, is parked, or moves again."""
        self._changes += 1
        if n in self._done:
            return
        if phase in IDLE:
            self._idle.add(n)
        else:
            self._idle.discard(n)
        if phase == Phase.PARKED:
            self._parked[n] = why
        else:
            self._parked.pop(n, None)
            self._told_parked.discard(n)
        self._show()

    @workflow.signal
    def pause(self) -> None:
        """Pause all datasets of the job, for everybody who waits for them."""
        self._paused = True
        self._changes += 1
        self._show()

    @workflow.signal
    def resume(self) -> None:
        """Go on after a pause."""
        self._paused = False
        self._changes += 1
        self._show()

    @workflow.query
    def progress(self) -> JobProgress:
        """Where the job stands."""
        listed = [*sorted(self._open), *sorted(self._done, reverse=True)][:SHOWN]
        return self._standing(sorted(listed))

    def _standing(self, listed: Iterable[int]) -> JobProgress:
        return JobProgress(
            id=self._order.job_id,
            type=self._order.type.value,
            phase=self._shown,
            status=self._status(),
            datasets_total=self._opened.datasets if self._opened else 0,
            datasets_open=len(self._open),
            datasets_parked=len(self._parked),
            outcomes=self._counts,
            datasets=tuple(
                JobDatasetProgress(
                    pid=self._pids.get(n, ""),
                    n=n,
                    phase=self._dataset_phase(n),
                    status=self._done.get(n, ""),
                    message=self._parked.get(n, ""),
                )
                for n in listed
            ),
            message=self._finished.message if self._finished else "",
            cancelled=self._cancelled,
            reporting=self._reporting,
            note=self._finished.refused if self._finished else "",
        )

    def _status(self) -> str:
        if self._finished:
            return self._finished.status
        return self._opened.status if self._opened else JobStatus.IN_PROGRESS

    def _dataset_phase(self, n: int) -> str:
        if n in self._done:
            return "done"
        if n in self._parked:
            return "parked"
        return "waiting" if n in self._idle else "moving"

    # The story.

    async def conclude(self) -> FinishedJob | None:
        """Carry the job out. A cancel is but a flag: no step is lost by it, and the last report is always sent."""
        work = asyncio.create_task(self._carry_out())
        while True:
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                if work.cancelled():
                    raise
                self._cancelled = self._cancelled or not self._reporting
                self._changes += 1

    async def _carry_out(self) -> FinishedJob | None:
        """Open, join, hear, report. None for a job that was finished before."""
        error_class = error = ""
        try:
            self._opened = self._opened or await self._take_up()
            owner = attributes.OWNER_GROUP.value_set(self._opened.owner_group)
            if self._opened.finished:
                self._enter(Phase.DONE, owner, attributes.OUTCOME.value_set(self._opened.status))
                return None
            self._enter(Phase.WRITING if self._order.type is JobType.ARCHIVE else Phase.RECALLING, owner)
            await self._join_and_hear(self._opened)
        except ActivityError as failed:
            cause = failed.cause
            error_class = (cause.type if isinstance(cause, ApplicationError) else None) or type(cause).__name__
            error = str(cause)
        self._reporting = True
        await self._leave()
        for n in list(self._open):
            self.dataset_done(n, Outcome.CANCELLED.value)
        return await self._finish(error_class, error)

    async def _step(self, method: Callable[[Any, M], Awaitable[T]], argument: M, *, summary: str = "") -> T:
        """A step of the job: retried until it is done, unless the job itself is at fault."""
        return await self._start(method, argument, summary=summary)

    def _start(
        self, method: Callable[[Any, M], Awaitable[T]], argument: M, *, summary: str = ""
    ) -> workflow.ActivityHandle[T]:
        priority = Priority(
            priority_key=urgency_of(self._order.type),
            fairness_key=fairness_key(self._opened.owner_group if self._opened else ""),
        )
        config = self._policies.endless() | ActivityConfig(summary=summary or None, priority=priority)
        return workflow.start_activity_method(method, argument, **config)

    async def _take_up(self) -> OpenedJob:
        return await self._step(
            CatalogueActivities.open_job,
            OpenJob(job_id=self._order.job_id, type=self._order.type),
            summary="read the job",
        )

    async def _join_and_hear(self, opened: OpenedJob) -> None:
        """Keep the window full until every dataset has ended; a cancelled job leaves those that are open.

        They answer at once that they were left, or, if it is too late for that, in the end how they ended.
        """
        self._hearing = True
        left = False
        companions = [asyncio.create_task(self._watch()), asyncio.create_task(self._report_parked())]
        try:
            while self._open or (self._joined < opened.datasets and not self._cancelled):
                if self._cancelled and not left:
                    left = True
                    await self._leave()
                    continue
                await self._forward_pause()
                room = self._order.limits.window - len(self._open.keys() - self._idle)
                if self._joined < opened.datasets and room > 0 and not (self._paused or self._cancelled):
                    await self._join(opened, min(room, BATCH, opened.datasets - self._joined))
                else:
                    seen = self._changes
                    await workflow.wait_condition(lambda seen=seen: self._changes != seen)
                if workflow.info().is_continue_as_new_suggested() and not self._cancelled:
                    break
        finally:
            self._hearing = False
            await workflow.wait(companions)
            await self._let_go()
        if not self._cancelled and (self._joined < opened.datasets or self._open):
            workflow.continue_as_new(self._order.model_copy(update={"state": self._carry()}))

    def _carry(self) -> JobState:
        done = Bitmap()
        for n in self._done:
            done = done.with_bit(n)
        return JobState(
            opened=self._opened,
            joined=self._joined,
            open=self._open,
            restoring=tuple(sorted(self._restoring & self._open.keys())),
            idle=tuple(sorted(self._idle)),
            done=done,
            counts=self._counts,
            parked={n: "" if n in self._told_parked else why[:_CARRIED_TEXT] for n, why in self._parked.items()},
            paused=self._paused,
            told_pause=self._told_pause,
        )

    async def _join(self, opened: OpenedJob, count: int) -> None:
        first, last = self._joined, self._joined + count
        joined = await self._step(
            JoiningActivities.join_datasets,
            JoinDatasets(
                order=JobOrder(**self._order.model_dump(exclude={"state"})),
                first=first,
                last=last,
                windowed=opened.datasets > self._order.limits.window,
                owner_group=opened.owner_group,
            ),
            summary=f"join datasets {first + 1} to {last}",
        )
        self._joined = last
        self._restoring.update(joined.restoring)
        for n, pid in enumerate(joined.pids, start=first):
            self._pids[n] = pid
            if n not in self._done:
                self._open[n] = pid
        for refused in joined.refused:
            self.dataset_done(refused.n, refused.outcome.status.value)

    async def _watch(self) -> None:
        """Datasets that were terminated tell nobody: look for them from time to time."""
        while True:
            await workflow.wait_condition(lambda: bool(self._open) or not self._hearing)
            if not self._hearing:
                break
            watched = dict(self._open)
            watching = self._start(
                JoiningActivities.watch_datasets,
                WatchDatasets(
                    job_id=self._order.job_id,
                    type=self._order.type,
                    datasets=watched,
                    restoring=tuple(sorted(self._restoring & watched.keys())),
                    interval_s=self._order.timing.watch_s,
                ),
                summary="watch over the datasets",
            )
            # Those that are joined later have to be watched too.
            found = await unless(
                watching, lambda watched=watched: not self._hearing or bool(self._open.keys() - watched.keys())
            )
            for n, outcome in found[0].outcomes.items() if found else ():
                if n in self._open:
                    await self._keep(n, outcome)
                    self.dataset_done(n, outcome.status.value)

    async def _keep(self, n: int, outcome: DatasetOutcome) -> None:
        subscriber = Subscriber(job_id=self._order.job_id, n=n)
        await self._step(
            ReportingActivities.deliver_outcome,
            DeliverOutcome(outcome=outcome, subscribers=(subscriber,)),
            summary="keep the outcome",
        )

    async def _forward_pause(self) -> None:
        """Tell the open datasets what the job was told."""
        if self._told_pause != self._paused:
            self._told_pause = self._paused
            args = [self._me] if self._paused else []
            await self._tell_datasets(self._open, "pause" if self._paused else "resume", args)
        await self._let_go()

    async def _let_go(self) -> None:
        """Resume what has ended while the job is paused, as it may not have ended after all.

        A signal that meets the workflow task in which a dataset tells its end and closes has that task run again, with
        the signal first: a pause would hold it, and nobody would know, since for this job it is over.
        """
        while self._ended_paused:
            ended, self._ended_paused = self._ended_paused, {}
            if workflow.patched(patches.RESUME_WHAT_ENDED):
                await self._tell_datasets(ended, "resume", [self._me])

    @property
    def _me(self) -> str:
        """Who pauses a dataset that this job pauses."""
        return f"job {self._order.job_id}"

    async def _report_parked(self) -> None:
        """Say in SciCat which dataset waits for a person; when SciCat is away, nothing else waits for it."""
        while True:
            await workflow.wait_condition(lambda: bool(self._untold()) or not self._hearing)
            if not self._hearing:
                break
            n = self._untold()[0]
            reporting = self._start(
                CatalogueActivities.report_job,
                JobReport(
                    job_id=self._order.job_id,
                    status=JobStatus.IN_PROGRESS,
                    message=f"dataset {self._pids.get(n, '')} is parked: {self._parked[n]}",
                ),
                summary="say in SciCat what is parked",
            )
            try:
                if await unless(reporting, lambda: not self._hearing) is None:
                    continue
            except ActivityError as error:
                workflow.logger.warning("job %s: SciCat is not told what waits: %s", self._order.job_id, error.cause)
            if n in self._parked:
                self._told_parked.add(n)

    def _untold(self) -> list[int]:
        return [n for n in self._parked if n in self._open and n not in self._told_parked]

    async def _leave(self) -> None:
        """The last job to leave a dataset cancels it; one that has ended without a word never answers."""
        places = list(self._open)
        answering = await self._tell_datasets(self._open, "leave", [self._order.job_id])
        for n, answers in zip(places, answering, strict=True):
            if n in self._open and not answers:
                self.dataset_done(n, Outcome.CANCELLED.value)

    async def _tell_datasets(self, datasets: Mapping[int, str], signal: str, args: list[str]) -> list[bool]:
        """Signal datasets, given as position → pid, in their order; return which of them are there."""
        order = self._order
        told = [
            dataset_workflow(order.type, pid, order.job_id, restoring=n in self._restoring)
            for n, pid in datasets.items()
        ]
        return await signal_each(told, signal, [args] * len(told))

    async def _finish(self, error_class: str, error: str) -> FinishedJob:
        finished = self._finished = await self._step(
            ReportingActivities.finish_job,
            FinishJob(
                job_id=self._order.job_id,
                type=self._order.type,
                datasets=self._opened.datasets if self._opened else 0,
                cancelled=self._cancelled,
                error_class=error_class,
                error=error,
            ),
            summary="report to SciCat",
        )
        self._enter(Phase.DONE, attributes.OUTCOME.value_set(finished.status.value))
        return finished

    def _enter(self, phase: Phase, *updates: SearchAttributeUpdate[Any]) -> None:
        self._phase = phase
        self._show(*updates)

    def _show(self, *updates: SearchAttributeUpdate[Any]) -> None:
        """Paused hides parked, which hides the rest: one of its datasets waits for a person."""
        shown = self._phase
        if shown is not Phase.DONE:
            shown = Phase.PAUSED if self._paused else Phase.PARKED if self._parked else shown
        if shown is not self._shown:
            self._shown = shown
            attributes.upsert(
                attributes.PHASE.value_set(shown.value),
                attributes.SCICAT_JOB_ID.value_set([self._order.job_id]),
                *updates,
            )
        else:
            attributes.upsert(*updates)
        # Parked ones first: those are what a person looks for.
        named = islice(chain(self._parked, (n for n in self._open if n not in self._parked)), DETAILED)
        workflow.set_current_details(job_details(self._standing(named)))
