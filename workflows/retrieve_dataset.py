"""The retrieval of one dataset: look, recall what is missing, copy each datablock as it comes, give the pins back."""

import asyncio
from datetime import datetime, timedelta

from temporalio import workflow

from workflows import queues
from workflows import search_attributes as attributes
from workflows.awaiting import all_of
from workflows.dataset import MAX_RECALLS, Carried, DatasetWorkflow, EndDataset, WaitEnded

with workflow.unsafe.imports_passed_through():
    from activities.catalogue import CatalogueActivities, MoveRetrieve
    from activities.restoring import RestoringActivities
    from activities.retrieval import (
        AwaitRecall,
        CopyBlock,
        LookedRetrieval,
        LookRetrieval,
        ReleaseRecall,
        RequestedRecall,
        RequestRecall,
        RetrievalActivities,
    )
    from domain.lifecycle import Outcome, Phase, RetrieveMoment
    from domain.orders import DatasetOrder
    from domain.outcome import DatasetOutcome, bounded
    from domain.progress import BlockProgress


class RetrieveState(Carried):
    """What a continued run starts from."""


class RetrieveOrder(DatasetOrder):
    """What a run is started with; one argument, since the SDK takes type hints only if all arguments are given."""

    state: RetrieveState = RetrieveState()


@workflow.defn
class RetrieveDataset(DatasetWorkflow):
    """Brings one dataset back from tape; retrieved is only what was compared with its digests."""

    kind = "retrieve"

    @workflow.init
    def __init__(self, order: RetrieveOrder) -> None:
        super().__init__(order, order.state)
        self._started = False
        self._wanted: list[int] = []
        """Positions to be recalled."""
        self._awaited: dict[int, str] = {}
        """Position → recall that is to bring it."""
        self._overdue: list[str] = []
        """Recalls that nobody waits for any more."""
        self._pins: dict[int, str] = {}
        """Position → recall that keeps it on disk; empty: nothing does, but it may be there."""
        self._asked: dict[int, int] = {}
        """Position → how often it was recalled."""
        self._lost: dict[int, str] = {}
        """Position → why it does not come."""
        self._open: set[int] = set()
        """Positions that are neither delivered nor lost."""
        self._slots = asyncio.Semaphore(order.limits.blocks)

    @workflow.run
    async def run(self, order: RetrieveOrder) -> DatasetOutcome:
        """The story."""
        return await self.conclude(self._retrieve())

    async def _retrieve(self) -> DatasetOutcome:
        try:
            looked = await self._look()
            try:
                await self._fetch(looked)
            finally:
                # From here on a cancel comes too late.
                self._ending = True
                await self._give_everything_back(looked)
        except (EndDataset, asyncio.CancelledError) as error:
            return await self._failed(self.ending(error))
        return await self._finished(looked)

    async def _look(self) -> LookedRetrieval:
        looked = await self.step(
            RetrievalActivities.look_retrieval,
            LookRetrieval(pid=self.order.pid, files_of=self.order.files_of),
            self.policies.long(),
            summary="which datablocks are missing",
        )
        attributes.upsert(
            attributes.OWNER_GROUP.value_set(looked.owner_group), attributes.TOTAL_BYTES.value_set(looked.total_bytes)
        )
        self.payload_bytes = looked.total_bytes
        for position in range(looked.blocks):
            state = "recalling" if position in looked.missing else "intact"
            self.blocks[position] = BlockProgress(index=position + 1, state=state)
        self._started = True
        await self._move(RetrieveMoment.START)
        return looked

    async def _fetch(self, looked: LookedRetrieval) -> None:
        """One coroutine asks the LTS, one for each datablock copies it as soon as it is online."""
        self._wanted = list(looked.missing)
        self._open = set(looked.missing)
        if looked.missing:
            brought = [self._bring(looked, position) for position in looked.missing]
            await all_of([self._recall(looked), self._yield_pins(looked), *brought])

    async def _bring(self, looked: LookedRetrieval, position: int) -> None:
        """Copy one datablock when it is online; recall it again if its pin ran out before it was read."""
        while True:
            await workflow.wait_condition(lambda: position in self._pins or position in self._lost)
            if position in self._lost:
                self._block(position, "missing")
                break
            async with self._slots:
                self._block(position, "copying")
                copied = await self.step(
                    RestoringActivities.restore_files if self.order.files_of else RetrievalActivities.copy_block,
                    CopyBlock(blocks_key=looked.blocks_key, position=position),
                    self.policies.transfer(queues.RETRIEVAL, looked.total_bytes),
                    summary=f"copy datablock {position + 1} of {looked.blocks}",
                )
            if not copied.nearline:
                self._block(position, "delivered", copied.bytes)
                await self._release(looked, self._pins.pop(position), (position,))
                break
            self._block(position, "recalling")
            await self._release(looked, self._pins.pop(position), (position,))
            self._wanted.append(position)
            self.look_again()
        self._open.discard(position)

    async def _yield_pins(self, looked: LookedRetrieval) -> None:
        """While all is paused or parked the LTS has its disk back; what went to tape meanwhile is recalled again."""
        while self._open:
            await workflow.wait_condition(
                lambda: not self._open or (self.idle and not self.moving and any(self._pins.values()))
            )
            pins, self._pins = self._pins, dict.fromkeys(self._pins, "")
            await self._release_pins(looked, pins)

    async def _recall(self, looked: LookedRetrieval) -> None:
        """Ask for everything that is wanted, and take in what the LTS says, until nothing is open any more."""
        deadline = workflow.now() + timedelta(seconds=self.order.timing.recall_deadline_s)
        while self._open:
            if self._wanted:
                await self._request(looked)
            elif self._awaited:
                await self._hear(looked, deadline)
            else:
                await workflow.wait_condition(lambda: bool(self._wanted) or not self._open)

    async def _request(self, looked: LookedRetrieval) -> None:
        positions, self._wanted = tuple(self._wanted), []
        for position in positions:
            self._asked[position] = self._asked.get(position, 0) + 1
        requested = await self.step(
            RetrievalActivities.request_recall,
            RequestRecall(
                blocks_key=looked.blocks_key, positions=positions, pin_lifetime_s=self.order.timing.pin_lifetime_s
            ),
            self.policies.light(),
            summary=f"recall {len(positions)} datablocks",
            keep=self._requested,
        )
        if not requested.recalls:
            self._pins |= dict.fromkeys(positions, "")
        self._show_waiting()

    def _requested(self, requested: RequestedRecall) -> None:
        for recall_id, asked in requested.recalls.items():
            self._awaited |= dict.fromkeys(asked, recall_id)

    async def _hear(self, looked: LookedRetrieval, deadline: datetime) -> None:
        """Wait for news: what came online, what failed, which recalls the LTS has forgotten."""
        try:
            arrived = await self.wait_step(
                RetrievalActivities.await_recall, lambda: self._question(looked), deadline, summary="wait for recall"
            )
        except WaitEnded as end:
            if not end.deadline:
                await self.park(end.kind, end.text)
                return
            self._lost |= dict.fromkeys(self._awaited, f"not recalled before the deadline ({end.text})")
            self._overdue += dict.fromkeys(self._awaited.values())
            self._awaited = {}
            return
        for position in arrived.online:
            self._pins[position] = self._awaited.pop(position)
        failed = arrived.failed | {
            position: "the LTS forgot the recall"
            for position, recall_id in self._awaited.items()
            if recall_id in arrived.forgotten
        }
        for position, why in failed.items():
            del self._awaited[position]
            if self._asked[position] < MAX_RECALLS:
                self._wanted.append(position)
            else:
                self._lost[position] = why
        self._show_waiting()

    def _question(self, looked: LookedRetrieval) -> AwaitRecall:
        recalls: dict[str, tuple[int, ...]] = {}
        for position, recall_id in self._awaited.items():
            recalls[recall_id] = (*recalls.get(recall_id, ()), position)
        return AwaitRecall(
            blocks_key=looked.blocks_key,
            recalls=recalls,
            poll_initial_s=self.order.timing.poll_initial_s,
            poll_longest_s=self.order.timing.poll_longest_s,
        )

    async def _release(self, looked: LookedRetrieval, recall_id: str, positions: tuple[int, ...] = ()) -> None:
        if recall_id:
            await self.step(
                RetrievalActivities.release_recall,
                ReleaseRecall(blocks_key=looked.blocks_key, recall_id=recall_id, positions=positions),
                self.policies.endless(),
                summary="give pins back",
                calm=True,
            )

    async def _give_everything_back(self, looked: LookedRetrieval) -> None:
        """No pin and no recall of ours outlives this workflow, however it ends."""
        await self._release_pins(looked, self._pins)
        for recall_id in dict.fromkeys([*self._awaited.values(), *self._overdue]):
            await self._release(looked, recall_id)

    async def _release_pins(self, looked: LookedRetrieval, pins: dict[int, str]) -> None:
        for recall_id in dict.fromkeys(pins.values()):
            await self._release(looked, recall_id, tuple(n for n, held_by in pins.items() if held_by == recall_id))

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
        names = ", ".join(f"datablock {position + 1}: {why}" for position, why in sorted(self._lost.items()))
        message = bounded(f"{len(self._lost)} of {looked.blocks} datablocks did not come back from tape: {names}")
        await self._move(RetrieveMoment.FAILED, message, calm=True)
        some = len(self._lost) < looked.blocks
        return outcome.model_copy(
            update={
                "status": Outcome.PARTIAL if some else Outcome.FAILED,
                "error_class": "RecallFailed",
                "message": message,
                "bytes": sum(block.bytes_done for block in self.blocks.values()),
            }
        )

    async def _failed(self, end: EndDataset) -> DatasetOutcome:
        if self._started or end.outcome is not Outcome.CANCELLED:
            await self._move(RetrieveMoment.FAILED, f"{end.error_class}: {end.message}", calm=True)
        if self.abandoned and self.subscribers:
            # Jobs that joined while this was ending have not asked for a cancel.
            afresh = RetrieveState(subscribers=self.subscribers, paused_by=self.paused_by)
            workflow.continue_as_new(self.order.model_copy(update={"state": afresh}))
        return DatasetOutcome(pid=self.order.pid, status=end.outcome, error_class=end.error_class, message=end.message)

    async def _move(self, moment: RetrieveMoment, reason: str = "", *, calm: bool = False) -> None:
        try:
            await self.step(
                CatalogueActivities.move_retrieve,
                MoveRetrieve(pid=self.order.pid, moment=moment, reason=reason),
                self.policies.endless() if calm else self.policies.light(),
                summary=f"life cycle: {moment.value}",
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
        if any(block.state == "copying" for block in self.blocks.values()):
            self.enter(Phase.COPYING)
        elif self._awaited:
            self.enter(Phase.RECALLING, f"the LTS to bring {len(self._awaited)} datablocks back from tape")
