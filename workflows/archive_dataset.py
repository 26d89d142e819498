"""The archive of one dataset: look, plan, write, verify, wait for tape, register, commit, free."""

import asyncio
from datetime import timedelta

from temporalio import workflow

from workflows import queues
from workflows import search_attributes as attributes
from workflows.awaiting import all_of, undisturbed
from workflows.dataset import MAX_RECALLS, Carried, DatasetWorkflow, EndDataset, WaitEnded
from workflows.undo import UndoStack

with workflow.unsafe.imports_passed_through():
    from activities.catalogue import (
        CatalogueActivities,
        Commit,
        Look,
        Looked,
        MoveArchive,
        RegisterBlocks,
        Standing,
    )
    from activities.landing_zone import Freed, FreeDataset, LandingZoneActivities, PlanDataset, PlannedDataset
    from activities.tape import (
        AwaitRecalled,
        AwaitTape,
        BlockRef,
        RecallBlock,
        RecalledBlock,
        RemoveFiles,
        TapeActivities,
        UndoBlocks,
        WriteBlock,
    )
    from domain.bitmap import Bitmap
    from domain.lifecycle import ArchiveMoment, Outcome, Phase
    from domain.orders import DatasetOrder
    from domain.outcome import DatasetOutcome
    from domain.progress import BlockProgress

MAX_REWRITES = 1
"""Times that a damaged datablock is written anew before its dataset is parked."""

_MOMENTS = {
    Outcome.DATASET_ERROR: ArchiveMoment.DATASET_ERROR,
    Outcome.CANCELLED: ArchiveMoment.CANCELLED,
}


class ArchiveState(Carried):
    """What a continued run starts from."""

    looked: Looked | None = None
    planned: PlannedDataset | None = None
    safe: Bitmap = Bitmap()
    """Datablocks that are written, verified and on tape."""
    generations: dict[int, int] = {}


class ArchiveOrder(DatasetOrder):
    """What a run is started with; one argument, since the SDK takes type hints only if all arguments are given."""

    state: ArchiveState = ArchiveState()


@workflow.defn
class ArchiveDataset(DatasetWorkflow):
    """Moves one dataset from the landing zone to tape; the landing zone is freed last."""

    kind = "archive"

    @workflow.init
    def __init__(self, order: ArchiveOrder) -> None:
        state = order.state
        super().__init__(order, state)
        self._looked = state.looked
        self._planned = state.planned
        self._safe = state.safe
        self._generations = dict(state.generations)
        self._uploads: dict[int, str] = {}
        """Datablock → upload that it is being written into."""
        self._started = self._planned is not None
        self._undo = UndoStack()
        self._slots = asyncio.Semaphore(order.limits.blocks)

    @workflow.run
    async def run(self, order: ArchiveOrder) -> DatasetOutcome:
        """The story."""
        return await self.conclude(self._archive())

    async def _archive(self) -> DatasetOutcome:
        try:
            looked = await self._look()
            if looked.standing is Standing.COMMITTED:
                return await self._once_more(looked)
            planned = await self._plan(looked)
            await self._make_safe(planned)
            superseded_key = await self._register(planned)
        except (EndDataset, asyncio.CancelledError) as error:
            return await self._take_back(self.ending(error))
        return await self._commit_and_free(looked, planned, superseded_key)

    async def _look(self) -> Looked:
        if self._looked is None:
            self._looked = await self.step(
                CatalogueActivities.look, Look(pid=self.order.pid), self.policies.light(), summary="what stands already"
            )
        attributes.upsert(attributes.OWNER_GROUP.value_set(self._looked.owner_group))
        return self._looked

    async def _plan(self, looked: Looked) -> PlannedDataset:
        if self._planned is None:
            self._started = True
            await self._move(ArchiveMoment.START)
            self._planned = await self.step(
                LandingZoneActivities.plan_dataset,
                PlanDataset(pid=self.order.pid, **self.order.packing.model_dump()),
                self.policies.long(),
                summary="which files, which datablocks",
            )
        self._show_plan(self._planned.blocks, self._planned.payload_bytes)
        return self._planned

    def _show_plan(self, blocks: int, payload_bytes: int) -> None:
        self.payload_bytes = payload_bytes
        for index in range(1, blocks + 1):
            state = "on_tape" if index in self._safe else "planned"
            self.blocks[index] = BlockProgress(index=index, state=state)
        attributes.upsert(attributes.TOTAL_BYTES.value_set(payload_bytes))

    # Write, verify, wait for tape: per datablock, several at a time.

    async def _make_safe(self, planned: PlannedDataset) -> None:
        self._undo.push(self._undo_blocks)
        # Datablocks of an earlier, uncommitted plan may be registered already: they go too if this one fails.
        self._undo.push(self._undo_registration)
        self.enter(Phase.WRITING)
        await all_of([self._secure(planned, n) for n in range(1, planned.blocks + 1) if n not in self._safe])
        if len(self._safe) < planned.blocks:
            workflow.continue_as_new(self.order.model_copy(update={"state": self._carry()}))

    def _carry(self) -> ArchiveState:
        return ArchiveState(
            subscribers=self.subscribers,
            paused_by=self.paused_by,
            looked=self._looked,
            planned=self._planned,
            safe=self._safe,
            generations=self._generations,
        )

    async def _secure(self, planned: PlannedDataset, index: int) -> None:
        """One datablock: written, verified, on tape. Its slot is free again while it waits for tape."""
        async with self._slots:
            if workflow.info().is_continue_as_new_suggested():
                return
            while True:
                await self._write(planned, index)
                damage = await self._verify(planned.plan_digest, index)
                if not damage:
                    break
                if self._generations.get(index, 0) >= MAX_REWRITES:
                    await self.park("Damaged", damage)
                workflow.logger.warning("dataset %s: %s; it is written anew", self.order.pid, damage)
                self._generations[index] = self._generations.get(index, 0) + 1
        await self._wait_for_tape(planned.plan_digest, index)
        self._safe = self._safe.with_bit(index)

    def _ref(self, plan_digest: str, index: int) -> BlockRef:
        return BlockRef(
            pid=self.order.pid, plan_digest=plan_digest, index=index, generation=self._generations.get(index, 0)
        )

    async def _write(self, planned: PlannedDataset, index: int) -> None:
        ref = self._ref(planned.plan_digest, index)
        label = f"datablock {index} of {planned.blocks}"
        while True:
            opened = await self.step(
                TapeActivities.open_block,
                ref,
                self.policies.light(),
                summary=f"open {label}",
                keep=lambda opened: self._uploads.update({index: opened.upload_id}),
            )
            self._block(index, "writing", name=opened.archive_id, bytes_total=opened.tar_bytes)
            written = await self.step(
                TapeActivities.write_block,
                WriteBlock(**ref.model_dump(), upload_id=opened.upload_id),
                self.policies.transfer(queues.ARCHIVAL, opened.tar_bytes),
                summary=f"write {label}",
            )
            if written.finished:
                del self._uploads[index]
                break
        self._block(index, "verified" if opened.verified else "written", bytes_done=opened.tar_bytes)

    async def _verify(self, plan_digest: str, index: int) -> str:
        """Read it back; return what is damaged, empty if nothing is."""
        if self.blocks[index].state == "verified":
            return ""
        ref = self._ref(plan_digest, index)
        self._block(index, "verifying")
        pins: list[RecalledBlock] = []
        try:
            while True:
                found = await self.step(
                    TapeActivities.verify_block,
                    ref,
                    self.policies.transfer(queues.RETRIEVAL, self.blocks[index].bytes_total),
                    summary=f"verify datablock {index}",
                )
                if not found.nearline:
                    break
                await self._recall(ref, pins)
        finally:
            if pins:
                await undisturbed(self._release(pins))
        if not found.damage:
            self._block(index, "verified")
        return found.damage

    async def _recall(self, ref: BlockRef, pins: list[RecalledBlock]) -> None:
        """Bring a datablock back that went to tape before it was verified; every request is kept in `pins`."""
        timing = self.order.timing
        asked = 0
        while True:
            asked += 1
            recalled = await self.step(
                TapeActivities.recall_block,
                RecallBlock(**ref.model_dump(), pin_lifetime_s=timing.pin_lifetime_s),
                self.policies.light(),
                keep=pins.append,
            )
            order = AwaitRecalled(
                **recalled.model_dump(), poll_initial_s=timing.poll_initial_s, poll_longest_s=timing.poll_longest_s
            )
            deadline = workflow.now() + timedelta(seconds=timing.recall_deadline_s)
            try:
                await self.wait_step(
                    TapeActivities.await_recalled,
                    lambda order=order: order,
                    deadline,
                    summary="recall for verification",
                )
                return
            except WaitEnded as end:
                if end.deadline:
                    await self.park("RecallDeadline", end.text)
                elif asked >= MAX_RECALLS:
                    await self.park(end.kind, end.text)

    async def _release(self, pins: list[RecalledBlock]) -> None:
        for pin in pins:
            await self.step(TapeActivities.release_block, pin, self.policies.endless(), calm=True)

    async def _wait_for_tape(self, plan_digest: str, index: int) -> None:
        timing = self.order.timing
        self._block(index, "waiting_tape")
        order = AwaitTape(
            **self._ref(plan_digest, index).model_dump(),
            poll_initial_s=timing.poll_initial_s,
            poll_longest_s=timing.poll_longest_s,
        )
        while True:
            deadline = workflow.now() + timedelta(seconds=timing.migration_deadline_s)
            try:
                await self.wait_step(
                    TapeActivities.await_tape, lambda: order, deadline, summary=f"datablock {index} to tape"
                )
                break
            except WaitEnded as end:
                await self.park("MigrationDeadline" if end.deadline else end.kind, end.text)
        self._block(index, "on_tape")

    def _block(self, index: int, state: str, *, name: str = "", bytes_total: int = 0, bytes_done: int = 0) -> None:
        """Move a datablock on, and the dataset's phase with the slowest of them."""
        before = self.blocks[index]
        self.blocks[index] = BlockProgress(
            index=index,
            state=state,
            name=name or before.name,
            bytes_total=bytes_total or before.bytes_total,
            bytes_done=bytes_done or before.bytes_done,
        )
        states = {block.state for block in self.blocks.values()}
        if states & {"planned", "writing"}:
            self.enter(Phase.WRITING)
        elif states & {"written", "verifying", "verified"}:
            self.enter(Phase.VERIFYING)
        elif "waiting_tape" in states:
            self.enter(Phase.WAITING_TAPE, "the LTS to write its cache to tape")

    # Register, commit, free.

    async def _register(self, planned: PlannedDataset) -> str:
        self.enter(Phase.REGISTERING)
        registered = await self.step(
            CatalogueActivities.register_blocks,
            RegisterBlocks(pid=self.order.pid, plan_digest=planned.plan_digest, generations=self._generations),
            self.policies.long(),
            summary="datablocks into SciCat",
        )
        return registered.superseded_key

    async def _commit_and_free(self, looked: Looked, planned: PlannedDataset, superseded_key: str) -> DatasetOutcome:
        """The commit point and all that follows: it only goes forward."""
        self.committed = True
        self._undo.clear()
        await self.step(
            CatalogueActivities.commit,
            Commit(
                pid=self.order.pid,
                plan_digest=planned.plan_digest,
                generations=self._generations,
                found=looked.found,
                reason=f"archived in {planned.blocks} datablocks",
            ),
            self.policies.endless(),
            summary="commit point",
        )
        await self._remove_superseded(superseded_key)
        await self._remove_damaged(planned.plan_digest)
        freed = await self._free(planned.plan_digest, by_content=False)
        return DatasetOutcome(
            pid=self.order.pid,
            status=Outcome.ARCHIVED,
            bytes=planned.payload_bytes,
            leftovers=freed.leftovers,
            leftover_count=freed.leftover_count,
            unlisted=planned.unlisted,
            message=_remarks(planned, freed),
        )

    async def _remove_damaged(self, plan_digest: str) -> None:
        """Datablocks that were written anew leave their damaged first copies on the LTS: take them off."""
        damaged = {index: generation - 1 for index, generation in self._generations.items()}
        if damaged:
            await self.step(
                TapeActivities.undo_blocks,
                UndoBlocks(pid=self.order.pid, plan_digest=plan_digest, indices=tuple(damaged), generations=damaged),
                self.policies.endless(),
                summary="damaged copies off the LTS",
            )

    async def _free(self, plan_digest: str, *, by_content: bool) -> Freed:
        self.enter(Phase.FREEING)
        freed = await self.step(
            LandingZoneActivities.free_dataset,
            FreeDataset(pid=self.order.pid, plan_digest=plan_digest, by_content=by_content),
            self.policies.endless(),
            summary="free the landing zone",
        )
        await self._move(ArchiveMoment.FREED)
        return freed

    async def _once_more(self, looked: Looked) -> DatasetOutcome:
        """The dataset is archived already: make sure of it, and free what an earlier run left."""
        outcome = DatasetOutcome(
            pid=self.order.pid,
            status=Outcome.ALREADY_ARCHIVED,
            bytes=looked.payload_bytes,
            message="archived already, by an earlier job",
        )
        if not looked.plan_digest:
            return outcome.model_copy(
                update={
                    "message": "archived already; its manifests are lost, so nothing was freed from the landing zone"
                }
            )
        self._generations = dict(looked.generations)
        doubtful = sorted({*looked.unverified, *looked.off_tape})
        for index in range(1, looked.blocks + 1):
            self._safe = self._safe if index in doubtful else self._safe.with_bit(index)
        self._show_plan(looked.blocks, looked.payload_bytes)
        for index in doubtful:
            while damage := await self._verify(looked.plan_digest, index):
                await self.park("Damaged", damage)
            await self._wait_for_tape(looked.plan_digest, index)
        self.committed = True
        if looked.found.archive_status != ArchiveMoment.COMMITTED.status:
            await self._move(ArchiveMoment.COMMITTED)
        freed = await self._free(looked.plan_digest, by_content=True)
        return outcome.model_copy(update={"leftovers": freed.leftovers, "leftover_count": freed.leftover_count})

    async def _move(self, moment: ArchiveMoment, reason: str = "", *, calm: bool = False) -> None:
        assert self._looked is not None  # noqa: S101 - nothing moves before the look
        await self.step(
            CatalogueActivities.move_archive,
            MoveArchive(pid=self.order.pid, moment=moment, found=self._looked.found, reason=reason),
            self.policies.endless() if calm or self.committed else self.policies.light(),
            summary=f"life cycle: {moment.value}",
            calm=calm,
        )

    # Undo.

    async def _take_back(self, end: EndDataset) -> DatasetOutcome:
        """Leave the world as it was found, twice: a zombie's last write or a late POST may come after the first."""
        if self._undo:
            self.enter(Phase.UNDOING)
            await self._undo.unwind()
            await workflow.sleep(self.order.timing.second_look_s)
            await self._undo.unwind()
        if self._started:
            moment = _MOMENTS.get(end.outcome, ArchiveMoment.FAILURE)
            try:
                await self._move(moment, f"{end.error_class}: {end.message}", calm=True)
            except EndDataset as gone:
                workflow.logger.warning("dataset %s: its life cycle stays as it is: %s", self.order.pid, gone)
        if self.abandoned and self.subscribers:
            # Jobs that joined while this was being undone have not asked for a cancel.
            afresh = ArchiveState(subscribers=self.subscribers, paused_by=self.paused_by)
            workflow.continue_as_new(self.order.model_copy(update={"state": afresh}))
        return DatasetOutcome(pid=self.order.pid, status=end.outcome, error_class=end.error_class, message=end.message)

    async def _undo_blocks(self) -> None:
        assert self._planned is not None  # noqa: S101 - pushed after the plan
        await self.step(
            TapeActivities.undo_blocks,
            UndoBlocks(
                pid=self.order.pid,
                plan_digest=self._planned.plan_digest,
                indices=tuple(range(1, self._planned.blocks + 1)),
                generations=self._generations,
                uploads=tuple(upload for upload in self._uploads.values() if upload),
            ),
            self.policies.endless(),
            summary="undo: datablocks off the LTS",
            calm=True,
        )

    async def _undo_registration(self) -> None:
        assert self._planned is not None  # noqa: S101 - pushed after the plan
        order = RegisterBlocks(pid=self.order.pid, plan_digest=self._planned.plan_digest, generations=self._generations)
        try:
            taken_out = await self.step(
                CatalogueActivities.unregister_blocks,
                order,
                self.policies.endless(),
                summary="undo: datablocks out of SciCat",
                calm=True,
            )
            await self._remove_superseded(taken_out.superseded_key, calm=True)
        except EndDataset as gone:
            workflow.logger.warning("dataset %s: nothing to unregister: %s", self.order.pid, gone)

    async def _remove_superseded(self, key: str, *, calm: bool = False) -> None:
        """Take the datablocks of an earlier, uncommitted plan off the LTS, once they are out of SciCat."""
        if key:
            await self.step(
                TapeActivities.remove_files,
                RemoveFiles(pid=self.order.pid, key=key),
                self.policies.endless(),
                summary="superseded datablocks off the LTS",
                calm=calm,
            )


def _remarks(planned: PlannedDataset, freed: Freed) -> str:
    """What the scientist should know of an archive that went well."""
    remarks: list[str] = []
    if planned.unlisted:
        remarks.append("files that nobody registered were archived too")
    if planned.differing_in_case:
        remarks.append(f"names differ in case only: {', '.join(planned.differing_in_case[:5])}")
    if freed.leftover_count:
        remarks.append(f"{freed.leftover_count} newer or unknown objects stay in the landing zone")
    return "; ".join(remarks)
