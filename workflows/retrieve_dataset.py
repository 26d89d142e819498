"""The retrieval of one dataset: look, recall what is missing, copy each datablock as it comes, give the pins back."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from temporalio import workflow

from workflows import patches
from workflows.awaiting import all_of
from workflows.dataset import MAX_RECALLS, DatasetWorkflow, EndDataset, HistoryFull, WaitEnded

with workflow.unsafe.imports_passed_through():
    from activities.catalogue import CatalogueActivities, MoveRetrieve
    from activities.restoring import RestoringActivities
    from activities.retrieval import (
        RECALL_BATCH,
        AwaitRecall,
        CopiedBlock,
        CopyBlock,
        LookedRetrieval,
        LookRetrieval,
        NameBlocks,
        ReleaseRecall,
        RequestedRecall,
        RequestRecall,
        RetrievalActivities,
    )
    from domain import metrics
    from domain.bitmap import Bitmap
    from domain.lifecycle import Outcome, Phase, RetrieveMoment
    from domain.outcome import DatasetOutcome, bounded
    from domain.priority import Urgency
    from domain.progress import BlockProgress
    from workflows import queues, telling
    from workflows import search_attributes as attributes
    from workflows.carried import RetrieveOrder, RetrieveState


REASONS_KEPT = 20
"""Datablocks that do not come of which it is kept why; of the others only that."""

REASON_LENGTH = 200


@workflow.defn
class RetrieveDataset(DatasetWorkflow):
    """Brings one dataset back from tape; retrieved is only what was compared with its digests.

    A position, one datablock, is wanted until it is asked for, then waited for, then ready, then copied; or it is lost.
    """

    kind = "retrieve"
    urgency = Urgency.RETRIEVE
    comfort = "a failure of ours; the dataset is archived as before, retrieve it again later"

    @workflow.init
    def __init__(self, order: RetrieveOrder) -> None:
        state = order.state
        super().__init__(order, state)
        self._looked = state.looked
        self._started = state.looked is not None
        self._open = set(state.open.numbers)
        """Positions that are neither delivered nor lost."""
        self._ready = deque(state.ready.numbers)
        """Positions that may be read, the next one to be copied first."""
        self._copying: set[int] = set()
        self._copied: dict[int, int] = {}
        """Position → bytes, of those that this run has delivered, also if it was cancelled in that moment."""
        self._recalls = {recall_id: set(positions.numbers) for recall_id, positions in state.recalls.items()}
        """Recall → positions that it brings or keeps on disk, and that were not given back yet."""
        self._waiting = (self._open & set[int]().union(*self._recalls.values())).difference(self._ready)
        """Positions that a recall is to bring."""
        self._wanted = sorted(self._open - self._waiting - set(self._ready))
        """Positions to be asked for."""
        self._pinned_since = dict(state.pinned_since)
        """Recall → when it was heard that the first of those which it now keeps on disk had come."""
        self._asked = {position: times for times, asked in state.asked.items() for position in asked.numbers}
        """Position → how often it was asked for; none for those that were asked for once or never."""
        self._asked_at: dict[int, datetime] = {}
        """Position → when this run asked for it."""
        self._lost = set(state.lost.numbers)
        self._reasons = dict(state.reasons)
        """Why the first of the lost do not come."""
        self._deadline = state.deadline
        self.bytes_before = state.bytes_done

    @workflow.run
    async def run(self, order: RetrieveOrder) -> DatasetOutcome:
        """The story."""
        return await self.conclude(self._retrieve())

    async def _retrieve(self) -> DatasetOutcome:
        try:
            looked = await self._look()
            try:
                await self._fetch(looked)
            except BaseException:
                await self._give_everything_back(looked)
                raise
            if self._open:
                workflow.continue_as_new(self.order.model_copy(update={"state": self._carry(looked)}))
            await self._give_everything_back(looked)
        except (EndDataset, asyncio.CancelledError) as error:
            return await self._failed(self.ending(error))
        return await self._finished(looked)

    async def _look(self) -> LookedRetrieval:
        if self._looked is None:
            self.enter(Phase.PLANNING)
            looked = await self.step(
                RetrievalActivities.look_retrieval,
                LookRetrieval(pid=self.order.pid, files_of=self.order.files_of),
                self.policies.long(),
                summary="which datablocks are missing",
            )
            self._open = set(looked.missing.numbers)
            self._wanted = sorted(self._open)
            self._deadline = workflow.now() + timedelta(seconds=self.order.timing.recall_deadline_s)
            self._started = True
            self._show_all(looked)
            await self._move(RetrieveMoment.START)
            self._looked = looked.model_copy(update={"missing": Bitmap()})
        else:
            self._show_all(self._looked)
        return self._looked

    def _show_all(self, looked: LookedRetrieval) -> None:
        self.say(
            attributes.OWNER_GROUP.value_set(looked.owner_group), attributes.TOTAL_BYTES.value_set(looked.total_bytes)
        )
        self.owner_group, self.payload_bytes = looked.owner_group, looked.total_bytes
        there = "intact" if self._looked is None else "delivered"
        for position in range(looked.blocks):
            state = "recalling" if position in self._open else "missing" if position in self._lost else there
            self.blocks[position] = BlockProgress(index=position + 1, state=state)
        self._show_waiting()

    async def _fetch(self, looked: LookedRetrieval) -> None:
        """One coroutine asks the LTS, others copy what is online, and one keeps it there for them."""
        self.divisible = True
        copiers = [self._copy_ready(looked) for _ in range(min(self.order.limits.blocks, len(self._open)))]
        try:
            await all_of([self._recall(looked), self._renew_pins(looked), self._yield_pins(looked), *copiers])
        except asyncio.CancelledError:
            # With the last copy came a cancel. Its jobs may have been told already, by a workflow task that runs again.
            if self._open - self._copied.keys() or not workflow.patched(patches.COPIED_BEFORE_CANCEL):
                raise
            self._cancelled_by = ""
            for position in self._open:
                self._block(position, "delivered", self._copied[position])
            self._open.clear()
        # From here on a cancel comes too late, unless the work goes on in a fresh run.
        self.divisible = False
        self._ending = not self._open

    def _carry(self, looked: LookedRetrieval) -> RetrieveState:
        asked: dict[int, list[int]] = {}
        for position, times in self._asked.items():
            asked.setdefault(times, []).append(position)
        return RetrieveState(
            subscribers=self.subscribers,
            paused_by=self.paused_by,
            shown=self.shown,
            looked=looked,
            open=Bitmap.of(self._open),
            ready=Bitmap.of(self._ready),
            recalls={recall_id: Bitmap.of(held) for recall_id, held in self._recalls.items()},
            pinned_since=self._pinned_since,
            asked={times: Bitmap.of(positions) for times, positions in asked.items()},
            lost=Bitmap.of(self._lost),
            reasons=self._reasons,
            bytes_done=self._bytes_done,
            deadline=self._deadline,
        )

    @property
    def _bytes_done(self) -> int:
        return self.bytes_before + sum(block.bytes_done for block in self.blocks.values())

    # Copying.

    async def _copy_ready(self, looked: LookedRetrieval) -> None:
        """Copy one datablock after the other as they come online, until there are none to come."""
        while self._open and not self.full:
            await workflow.wait_condition(lambda: bool(self._ready) or not self._open or self.full)
            if not self._ready or self.full:
                # Several wake at a time, for one datablock perhaps.
                continue
            position = self._ready.popleft()
            self._copying.add(position)
            try:
                await self._copy(looked, position)
            except HistoryFull:
                self._ready.append(position)
            finally:
                self._copying.discard(position)
                self._show_waiting()

    async def _copy(self, looked: LookedRetrieval, position: int) -> None:
        """Copy one datablock; it is asked for again if its pin ran out before it was read."""

        def keep(copied: CopiedBlock) -> None:
            if not copied.nearline:
                self._copied[position] = copied.bytes

        self._block(position, "copying")
        copied = await self.step(
            RestoringActivities.restore_files if self.order.files_of else RetrievalActivities.copy_block,
            CopyBlock(blocks_key=looked.blocks_key, position=position),
            self.policies.transfer(queues.RETRIEVAL, looked.total_bytes),
            summary=f"copy datablock {position + 1} of {looked.blocks}",
            keep=keep,
        )
        self._block(position, "recalling" if copied.nearline else "delivered", copied.bytes)
        await self._give_back(looked, [position])
        if copied.nearline:
            self._wanted.append(position)
        else:
            self._open.discard(position)

    # Recalling.

    async def _recall(self, looked: LookedRetrieval) -> None:
        """Ask for everything that is wanted, and take in what the LTS says, until nothing is open any more."""
        while self._open and not self.full:
            try:
                if self._wanted:
                    await self._request(looked)
                elif self._waiting:
                    await self._hear(looked)
                else:
                    await workflow.wait_condition(lambda: bool(self._wanted) or not self._open or self.full)
            except HistoryFull:
                break

    async def _request(self, looked: LookedRetrieval) -> None:
        positions = sorted(self._wanted)[:RECALL_BATCH]
        recall_id = await self._ask_for(looked, positions, f"recall {len(positions)} datablocks")
        taken = set(positions)
        self._wanted = [position for position in self._wanted if position not in taken]
        if recall_id:
            self._waiting.update(positions)
            self._asked_at |= dict.fromkeys(positions, workflow.now())
        else:
            self._ready.extend(positions)
        self._show_waiting()

    async def _ask_for(self, looked: LookedRetrieval, positions: Sequence[int], summary: str) -> str:
        """Make one request, which then holds the positions; what held them before is not given back here."""

        def keep(requested: RequestedRecall) -> None:
            if requested.recall_id:
                self._recalls[requested.recall_id] = set(positions)

        requested = await self.step(
            RetrievalActivities.request_recall,
            RequestRecall(
                blocks_key=looked.blocks_key,
                positions=Bitmap.of(positions),
                pin_lifetime_s=self.order.timing.pin_lifetime_s,
            ),
            self.policies.light(),
            summary=summary,
            keep=keep,
        )
        return requested.recall_id

    async def _hear(self, looked: LookedRetrieval) -> None:
        """Wait for news: what came online, what failed, which recalls the LTS has forgotten."""
        assert self._deadline is not None  # noqa: S101 - set by the look
        try:
            arrived = await self.wait_step(
                RetrievalActivities.await_recall,
                lambda: self._question(looked),
                self._deadline,
                summary="wait for recall",
                changed=lambda: (bool(self._wanted), self.full),
            )
        except WaitEnded as end:
            if not end.deadline:
                await self.park(end.kind, end.text)
                return
            for position in sorted(self._waiting):
                self._lose(position, f"not recalled before the deadline ({end.text})")
            return
        if arrived is None:
            return
        for recall_id in arrived.forgotten:
            gone = self._recalls.pop(recall_id, set[int]())
            self._pinned_since.pop(recall_id, None)
            self._failed_to_come(dict.fromkeys(gone & self._waiting, "the LTS forgot the recall"))
        for position in arrived.online.numbers:
            if position in self._waiting:
                self._waiting.discard(position)
                self._ready.append(position)
                if asked_at := self._asked_at.pop(position, None):
                    telling.observe(metrics.RECALL_WAIT_SECONDS, workflow.now() - asked_at)
                for recall_id in self._holders(position):
                    self._pinned_since.setdefault(recall_id, workflow.now())
        self._failed_to_come({position: why for position, why in arrived.failed.items() if position in self._waiting})
        self._show_waiting()

    def _failed_to_come(self, failed: Mapping[int, str]) -> None:
        """Ask for them again, but not for ever."""
        for position, why in failed.items():
            for recall_id in self._holders(position):
                self._let_go(recall_id, {position})
            times = self._asked.get(position, 1)
            if times < MAX_RECALLS:
                self._asked[position] = times + 1
                self._waiting.discard(position)
                self._wanted.append(position)
            else:
                self._lose(position, why)

    def _lose(self, position: int, why: str) -> None:
        """It does not come; what is known of it on the LTS is withdrawn in the end."""
        self._waiting.discard(position)
        self._open.discard(position)
        self._lost.add(position)
        if len(self._reasons) < REASONS_KEPT:
            self._reasons[position] = why[:REASON_LENGTH]
        self._block(position, "missing")

    def _question(self, looked: LookedRetrieval) -> AwaitRecall:
        awaited = {recall_id: held & self._waiting for recall_id, held in self._recalls.items()}
        return AwaitRecall(
            blocks_key=looked.blocks_key,
            recalls={recall_id: Bitmap.of(positions) for recall_id, positions in awaited.items() if positions},
            poll_initial_s=self.order.timing.poll_initial_s,
            poll_longest_s=self.order.timing.poll_longest_s,
        )

    # Pins.

    @property
    def _readable(self) -> set[int]:
        return self._copying.union(self._ready)

    @property
    def _settled(self) -> bool:
        """No pin is needed any more by this run."""
        return not self._open or (self.full and not self._copying)

    async def _renew_pins(self, looked: LookedRetrieval) -> None:
        """Pins outlast the copies: after a part of their lifetime the same is asked for again.

        What is on disk is never refused and pinned at once (Tape REST API v1), so a new pin needs no wait.
        """
        age = timedelta(seconds=self.order.timing.pin_lifetime_s / 4)
        while not self._settled:
            await workflow.wait_condition(lambda: bool(self._pinned_since) or self._settled)
            with suppress(TimeoutError):
                await workflow.wait_condition(lambda: self._settled, timeout=age)
            due = [recall_id for recall_id, since in self._pinned_since.items() if since + age <= workflow.now()]
            for recall_id in due:
                await self._renew(looked, recall_id)

    async def _renew(self, looked: LookedRetrieval, recall_id: str) -> None:
        """First the new pin, then the old one goes."""
        held = self._recalls.get(recall_id, set[int]()) & self._readable
        self._pinned_since.pop(recall_id, None)
        if not held or self._settled or (self.idle and not self.moving):
            return
        with suppress(HistoryFull):
            renewed = await self._ask_for(looked, sorted(held), f"renew {len(held)} pins")
            self._pinned_since[renewed] = workflow.now()
            await self._release(looked, recall_id, held)
            # Some were copied meanwhile, or given back in a pause.
            await self._release(looked, renewed, held - self._readable)

    async def _yield_pins(self, looked: LookedRetrieval) -> None:
        """While all is paused or parked the LTS has its disk back; what went to tape meanwhile is recalled again."""

        def superfluous() -> bool:
            return self.idle and not self.moving and any(held & self._readable for held in self._recalls.values())

        while not self._settled:
            await workflow.wait_condition(lambda: self._settled or superfluous())
            if not self._settled:
                await self._give_back(looked, self._readable)

    async def _give_back(self, looked: LookedRetrieval, positions: Iterable[int]) -> None:
        """Give the pins of these positions back, whichever recalls hold them."""
        positions = set(positions)
        for recall_id, held in list(self._recalls.items()):
            await self._release(looked, recall_id, held & positions)

    async def _release(self, looked: LookedRetrieval, recall_id: str, positions: set[int]) -> None:
        """A recall shall not hold these positions any more; one that holds none is withdrawn."""
        if not positions:
            return
        left = self._recalls.get(recall_id, set[int]()) - positions
        await self.step(
            RetrievalActivities.release_recall,
            ReleaseRecall(
                blocks_key=looked.blocks_key, recall_id=recall_id, positions=Bitmap.of(positions), withdraw=not left
            ),
            self.policies.endless(),
            summary="give pins back",
            calm=True,
        )
        self._let_go(recall_id, positions)

    def _holders(self, position: int) -> list[str]:
        return [recall_id for recall_id, held in self._recalls.items() if position in held]

    def _let_go(self, recall_id: str, positions: set[int]) -> None:
        """Note that a recall has nothing to do with these positions any more."""
        held = self._recalls.get(recall_id)
        if held is not None:
            held -= positions
            if not held:
                del self._recalls[recall_id]
                self._pinned_since.pop(recall_id, None)

    async def _give_everything_back(self, looked: LookedRetrieval) -> None:
        """No pin and no recall of ours outlives this workflow, however it ends."""
        self._ending = True
        for recall_id, held in list(self._recalls.items()):
            await self._release(looked, recall_id, set(held))

    # How it ended.

    async def _finished(self, looked: LookedRetrieval) -> DatasetOutcome:
        outcome = DatasetOutcome(
            pid=self.order.pid,
            status=Outcome.RETRIEVED,
            bytes=looked.total_bytes,
            blocks_key=looked.blocks_key,
            undelivered=tuple(sorted(self._lost)),
        )
        if not self._lost:
            await self._move(RetrieveMoment.RETRIEVED, calm=True)
            return outcome
        message = await self._missing(looked)
        await self._move(RetrieveMoment.FAILED, message, calm=True)
        some = len(self._lost) < looked.blocks
        return outcome.model_copy(
            update={
                "status": Outcome.PARTIAL if some else Outcome.FAILED,
                "error_class": "RecallFailed",
                "message": message,
                "bytes": self._bytes_done,
            }
        )

    async def _missing(self, looked: LookedRetrieval) -> str:
        """What did not come, by name, and why."""
        named = await self.step(
            RetrievalActivities.name_blocks,
            NameBlocks(blocks_key=looked.blocks_key, positions=tuple(self._reasons)),
            self.policies.endless(),
            summary="name what is missing",
            calm=True,
        )
        told = "; ".join(
            f"{archive_id}: {why}" for archive_id, why in zip(named.archive_ids, self._reasons.values(), strict=True)
        )
        more = len(self._lost) - len(self._reasons)
        return bounded(
            f"{len(self._lost)} of {looked.blocks} datablocks did not come back from tape: {told}"
            + (f"; and {more} more" if more else "")
        )

    async def _failed(self, end: EndDataset) -> DatasetOutcome:
        if self._started or end.outcome is not Outcome.CANCELLED:
            await self._move(RetrieveMoment.FAILED, f"{end.error_class}: {end.message}", calm=True)
        if self.abandoned and self.subscribers:
            # Jobs that joined while this was ending have not asked for a cancel.
            afresh = RetrieveState(subscribers=self.subscribers, paused_by=self.paused_by, shown=self.shown)
            workflow.continue_as_new(self.order.model_copy(update={"state": afresh}))
        return DatasetOutcome(pid=self.order.pid, status=end.outcome, error_class=end.error_class, message=end.message)

    async def _move(self, moment: RetrieveMoment, reason: str = "", *, calm: bool = False) -> None:
        try:
            await self.step(
                CatalogueActivities.move_retrieve,
                MoveRetrieve(pid=self.order.pid, moment=moment, reason=reason),
                self.policies.endless() if calm else self.policies.light(),
                summary=f"life cycle: {moment.value}",
                brief=True,
                calm=calm,
            )
        except EndDataset as gone:
            if not calm:
                raise
            workflow.logger.warning("dataset %s: its life cycle stays as it is: %s", self.order.pid, gone)

    def _block(self, position: int, state: str, bytes_done: int = 0) -> None:
        before = self.blocks[position]
        self.blocks[position] = before.model_copy(update={"state": state, "bytes_done": bytes_done})
        self._show_waiting()

    def _show_waiting(self) -> None:
        if self._copying:
            self.enter(Phase.COPYING)
        elif self._waiting:
            self.enter(Phase.RECALLING, f"the LTS to bring {len(self._waiting)} datablocks back from tape")
