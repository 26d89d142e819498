"""The archive of one dataset: look, plan, write, verify, wait for tape, register, commit, free."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.workflow import ActivityConfig

from workflows.awaiting import all_of, ended, undisturbed
from workflows.dataset import MAX_RECALLS, DatasetWorkflow, EndDataset, HistoryFull, WaitEnded
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
        AwaitEvicted,
        AwaitRecalled,
        AwaitTape,
        BlockRef,
        OpenBlock,
        OpenedBlock,
        Patience,
        RecallBlock,
        RecalledBlock,
        RemoveFiles,
        TapeActivities,
        Taped,
        UndoBlocks,
        VerifyBlock,
        WriteBlock,
        WrittenBlock,
    )
    from domain.bitmap import Bitmap
    from domain.lifecycle import ArchiveMoment, Outcome, Phase
    from domain.orders import VerifyPolicy
    from domain.outcome import DatasetOutcome
    from domain.progress import BlockProgress
    from workflows import queues
    from workflows import search_attributes as attributes
    from workflows.carried import ArchiveOrder, ArchiveState

W = TypeVar("W", bound=Patience)
R = TypeVar("R", OpenedBlock, WrittenBlock)

MAX_REWRITES = 1
"""Times that a damaged or lost datablock is written anew before its dataset is parked."""

TAPE_WAITS = 20
"""Waits for tape of a dataset: up to so many datablocks have one each, of more several share one.

Temporal bears 2,000 open activities of a workflow, and the LTS fewer questions than there are datablocks.
"""

AUDITS = 20
"""Datablocks of a dataset that are recalled at a time to be read back from tape."""

_WITHOUT_END = timedelta(days=3650)

_MOMENTS = {
    Outcome.DATASET_ERROR: ArchiveMoment.DATASET_ERROR,
    Outcome.CANCELLED: ArchiveMoment.CANCELLED,
}


class _Archived(Exception):
    """What was to be undone is archived."""

    def __init__(self, superseded_key: str) -> None:
        super().__init__(superseded_key)
        self.superseded_key = superseded_key


@workflow.defn
class ArchiveDataset(DatasetWorkflow):
    """Moves one dataset from the landing zone to tape; the landing zone is freed last."""

    kind = "archive"
    comfort = "a failure of ours, not of the files, which are all still in the landing zone; archive them again later"

    @workflow.init
    def __init__(self, order: ArchiveOrder) -> None:
        state = order.state
        super().__init__(order, state)
        self._looked = state.looked
        self._planned = state.planned
        self._written = set(state.written.numbers)
        self._verified = set(state.verified.numbers)
        self._on_tape = set(state.on_tape.numbers)
        self._generations = dict(state.generations)
        self._tape_deadline = state.tape_deadline
        """When the wait that is carried over from an earlier run ends."""
        self._to_tape: dict[int, asyncio.Future[str]] = {}
        """Datablocks that wait for tape, and what tells them: empty, or why they never will be there."""
        self._unwatched: set[int] = set()
        """Those of them that nobody asks about now."""
        self._unsafe = 0
        """Datablocks that are still worked on."""
        self._states: Counter[str] = Counter()
        self._refused: dict[int, str] = {}
        """Datablock → what it waits for because the LTS takes nothing for now."""
        self._audited = order.writing.verify is VerifyPolicy.TAPE_READ_BACK
        self._uploads: dict[int, str] = {}
        """Datablock → upload that it is being written into."""
        self._begun: set[int] = set()
        """Datablocks that were opened, so there may be a journal of them."""
        self._started = self._planned is not None
        self._undo = UndoStack()
        self._slots = asyncio.Semaphore(order.limits.blocks)
        self._audits = asyncio.Semaphore(AUDITS)

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
            self.enter(Phase.PLANNING)
            self._looked = await self.step(
                CatalogueActivities.look,
                Look(pid=self.order.pid),
                self.policies.light(),
                summary="what stands already",
                brief=True,
            )
        self.owner_group = self._looked.owner_group
        self.say(attributes.OWNER_GROUP.value_set(self.owner_group))
        return self._looked

    async def _plan(self, looked: Looked) -> PlannedDataset:
        if self._planned is None:
            self._started = True
            await self._move(ArchiveMoment.START)
            self._planned = await self.step(
                LandingZoneActivities.plan_dataset,
                PlanDataset(
                    pid=self.order.pid,
                    **self.order.packing.model_dump(),
                    afresh=looked.afresh,
                    stale_marks=looked.stale_marks,
                    source_folder=looked.source_folder,
                ),
                self.policies.long(),
                summary="which files, which datablocks",
                brief=looked.brief,
            )
        self._show_plan(self._planned.blocks, self._planned.payload_bytes)
        return self._planned

    def _show_plan(self, blocks: int, payload_bytes: int) -> None:
        self.payload_bytes = payload_bytes
        for index in range(1, blocks + 1):
            if self._is_safe(index):
                state = "safe"
            elif index in self._written:
                state = "written"
            else:
                state = "planned"
            self._block(index, state, shown=False)
        self.say(attributes.TOTAL_BYTES.value_set(payload_bytes))

    def safety(self) -> dict[str, int]:
        """Written, verified and on tape are three facts; only what is all three is safe."""
        return {
            "written": len(self._written),
            "verified": len(self._verified),
            "on_tape": len(self._on_tape),
            "safe": len(self._written & self._verified & self._on_tape),
        }

    def _is_safe(self, index: int) -> bool:
        return index in self._written and index in self._verified and index in self._on_tape

    # Write, verify, wait for tape: per datablock, several at a time.

    async def _make_safe(self, planned: PlannedDataset) -> None:
        self._undo.push(self._undo_blocks)
        # Datablocks of an earlier, uncommitted plan may be registered already: they go too if this one fails.
        self._undo.push(self._undo_registration)
        self._show_slowest()
        self.divisible = True
        unsafe = [index for index in range(1, planned.blocks + 1) if not self._is_safe(index)]
        await self._all_safe(planned.plan_digest, [self._secure(planned, index) for index in unsafe])
        self.divisible = False
        if not all(map(self._is_safe, unsafe)):
            workflow.continue_as_new(self.order.model_copy(update={"state": self._carry()}))

    async def _all_safe(self, plan_digest: str, works: list[Awaitable[None]]) -> None:
        """Work on datablocks side by side, until all are safe or the history is full."""
        self._unsafe = len(works)

        async def counted(work: Awaitable[None]) -> None:
            try:
                await work
            except HistoryFull:
                # It goes on from here in a fresh run.
                pass
            finally:
                self._unsafe -= 1

        watches = [self._watch_tape(plan_digest) for _ in range(min(TAPE_WAITS, len(works)))]
        await all_of([*watches, *map(counted, works)])

    def _carry(self) -> ArchiveState:
        return ArchiveState(
            subscribers=self.subscribers,
            paused_by=self.paused_by,
            shown=self.shown,
            # What this run has written is there from now on.
            looked=self._looked and self._looked.model_copy(update={"afresh": False}),
            planned=self._planned,
            written=Bitmap.of(self._written),
            verified=Bitmap.of(self._verified),
            on_tape=Bitmap.of(self._on_tape),
            generations=self._generations,
            tape_deadline=self._tape_deadline,
        )

    async def _secure(self, planned: PlannedDataset, index: int) -> None:
        """One datablock: written, verified, on tape. Its slot is free again while it waits for tape."""
        while not self._is_safe(index):
            damage = ""
            if index not in self._written or not (self._audited or index in self._verified):
                async with self._slots:
                    if self.full:
                        raise HistoryFull
                    if index not in self._written:
                        await self._write(planned, index)
                    if not self._audited:
                        damage = await self._verify(planned.plan_digest, index)
            damage = damage or await self._reach_tape(index)
            if self._audited and not damage:
                damage = await self._read_back_from_tape(planned.plan_digest, index)
            if damage:
                await self._begin_anew(index, damage)
        self._block(index, "safe")

    async def _begin_anew(self, index: int, damage: str) -> None:
        """The landing zone still has the files: what is damaged or lost is written again, under another name."""
        if self._generations.get(index, 0) >= MAX_REWRITES:
            await self.park("Damaged", damage)
        workflow.logger.warning("dataset %s: %s; it is written anew", self.order.pid, damage)
        self._generations[index] = self._generations.get(index, 0) + 1
        for facts in (self._written, self._verified, self._on_tape):
            facts.discard(index)

    def _ref(self, plan_digest: str, index: int) -> BlockRef:
        return BlockRef(
            pid=self.order.pid, plan_digest=plan_digest, index=index, generation=self._generations.get(index, 0)
        )

    async def _write(self, planned: PlannedDataset, index: int) -> None:
        ref = self._ref(planned.plan_digest, index)
        label = f"datablock {index} of {planned.blocks}"
        order = Patience(
            **ref.model_dump(),
            poll_initial_s=self.order.timing.poll_initial_s,
            poll_longest_s=self.order.timing.poll_longest_s,
        )
        assert self._looked is not None  # noqa: S101 - nothing is written before the look
        while True:
            opened = await self._taken(
                TapeActivities.open_block,
                OpenBlock(
                    **order.model_dump(),
                    free_space_percentage=self.order.writing.free_space_percentage,
                    afresh=self._looked.afresh and index not in self._begun,
                ),
                index,
                self.policies.light(),
                summary=f"open {label}",
                brief=planned.brief and planned.blocks == 1,
                keep=lambda opened: self._uploads.update({index: opened.upload_id}),
            )
            self._begun.add(index)
            self._block(index, "writing", name=opened.archive_id, bytes_total=opened.tar_bytes)
            written = await self._taken(
                TapeActivities.write_block,
                WriteBlock(**order.model_dump(), upload_id=opened.upload_id),
                index,
                self.policies.transfer(queues.ARCHIVAL, opened.tar_bytes),
                summary=f"write {label}",
            )
            if written.finished:
                del self._uploads[index]
                break
        self._written.add(index)
        if opened.verified and not self._audited:
            self._verified.add(index)
        self._block(index, "written", bytes_done=opened.tar_bytes)

    async def _taken(
        self,
        method: Callable[[TapeActivities, W], Awaitable[R]],
        order: W,
        index: int,
        config: ActivityConfig,
        *,
        summary: str,
        brief: bool = False,
        keep: Callable[[R], None] = lambda _: None,
    ) -> R:
        """A step that writes to the LTS; one that has no room or is busy is no failure, but waited for without end."""

        def kept(result: R) -> None:
            if not result.refused:
                keep(result)

        while True:
            result = await self.step(method, order, config, summary=summary, brief=brief, keep=kept)
            if result.refused is None:
                return result
            since = workflow.now().isoformat(timespec="seconds")
            self._refused[index] = result.refused.since(since)
            self._block(index, "waiting_space")
            told = [result.refused.told_s]

            def question(since: str = since, told: list[float] = told) -> W:
                # Whoever says retry or recall_ready knows better than what was told.
                return order.model_copy(update={"refused_since": since, "told_s": told.pop() if told else 0})

            try:
                taken = await self.wait_step(
                    method,
                    question,
                    workflow.now() + _WITHOUT_END,
                    summary=f"{summary}, when the LTS takes it",
                    config=config,
                    keep=kept,
                )
            except WaitEnded:
                # Something else is wrong by now; that is retried and parked like any failure.
                taken = None
            finally:
                del self._refused[index]
            self._block(index, "writing")
            if taken is not None:
                return taken

    async def _verify(self, plan_digest: str, index: int) -> str:
        """Read it back; return what is damaged, empty if nothing is."""
        if index in self._verified:
            return ""
        ref = self._ref(plan_digest, index)
        self._block(index, "verifying")
        pins: list[RecalledBlock] = []
        renewing: list[asyncio.Task[None]] = []
        try:
            while True:
                found = await self.step(
                    TapeActivities.verify_block,
                    VerifyBlock(**ref.model_dump(), archive_id=self.blocks[index].name),
                    self.policies.transfer(queues.RETRIEVAL, self.blocks[index].bytes_total),
                    summary=f"verify datablock {index}",
                )
                if not found.nearline:
                    break
                await self._recall(ref, pins)
                if not renewing:
                    renewing.append(asyncio.create_task(self._renew(ref, pins)))
        finally:
            for task in renewing:
                task.cancel()
            if pins:
                await undisturbed(self._let_go(renewing, pins))
        if not found.damage:
            self._verified.add(index)
            if found.on_tape:
                self._on_tape.add(index)
            self._block(index, "verified")
        return found.damage

    async def _renew(self, ref: BlockRef, pins: list[RecalledBlock]) -> None:
        """A long look outlasts its pin: what is on disk is pinned at once by another request, then the old pin goes."""
        while True:
            await workflow.sleep(self.order.timing.pin_lifetime_s / 2)
            before = list(pins)
            await self._ask_for(ref, pins)
            await self._release(before)
            for pin in before:
                pins.remove(pin)

    async def _let_go(self, renewing: list[asyncio.Task[None]], pins: list[RecalledBlock]) -> None:
        await ended(renewing)
        for task in renewing:
            if not task.cancelled() and (error := task.exception()):
                workflow.logger.warning("dataset %s: a pin was not renewed: %s", self.order.pid, error)
        await self._release(pins)

    async def _ask_for(self, ref: BlockRef, pins: list[RecalledBlock]) -> RecalledBlock:
        """Request a datablock; every request is kept in `pins`."""
        return await self.step(
            TapeActivities.recall_block,
            RecallBlock(**ref.model_dump(), pin_lifetime_s=self.order.timing.pin_lifetime_s),
            self.policies.light(),
            summary=f"recall datablock {ref.index}",
            keep=pins.append,
        )

    async def _recall(self, ref: BlockRef, pins: list[RecalledBlock]) -> None:
        """Bring a datablock back that is on tape only, to be read back."""
        timing = self.order.timing
        asked = 0
        while True:
            asked += 1
            recalled = await self._ask_for(ref, pins)
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

    async def _release(self, pins: Iterable[RecalledBlock]) -> None:
        for pin in list(pins):
            await self.step(
                TapeActivities.release_block, pin, self.policies.endless(), summary="give a pin back", calm=True
            )

    # On tape.

    async def _reach_tape(self, index: int) -> str:
        """Wait until a datablock is on tape; return why it never will be, empty if it is."""
        if index in self._on_tape:
            return ""
        if self.full:
            raise HistoryFull
        told = self._to_tape[index] = asyncio.get_running_loop().create_future()
        self._unwatched.add(index)
        self._block(index, "waiting_tape")
        lost = await told
        if not lost:
            self._on_tape.add(index)
            self._block(index, "on_tape")
        return lost

    async def _watch_tape(self, plan_digest: str) -> None:
        """Ask about what nobody else asks about, until nothing is left to come."""
        while self._unsafe:
            await workflow.wait_condition(lambda: bool(self._unwatched) or not self._unsafe)
            watched, self._unwatched = self._unwatched, set()
            if watched:
                try:
                    await self._hear_of_tape(plan_digest, watched)
                except HistoryFull:
                    for index in watched:
                        self._to_tape.pop(index).set_exception(HistoryFull())

    async def _hear_of_tape(self, plan_digest: str, watched: set[int]) -> None:
        """Wait for news of these datablocks; those of which there are none are left to whoever asks next."""
        if self.full:
            raise HistoryFull
        timing = self.order.timing
        deadline = self._tape_deadline or workflow.now() + timedelta(seconds=timing.migration_deadline_s)
        order = AwaitTape(
            pid=self.order.pid,
            plan_digest=plan_digest,
            indices=Bitmap.of(watched),
            generations={index: g for index, g in self._generations.items() if index in watched},
            poll_initial_s=timing.poll_initial_s,
            poll_longest_s=timing.poll_longest_s,
        )
        label = f"datablock {min(watched)}" if len(watched) == 1 else f"{len(watched)} datablocks"
        try:
            taped = await self.wait_step(
                TapeActivities.await_tape,
                lambda: order,
                deadline,
                summary=f"{label} to tape",
                changed=lambda: self.full,
            )
        except WaitEnded as end:
            await self.park("MigrationDeadline" if end.deadline else end.kind, end.text)
            taped = Taped()
        if taped is None:
            self._tape_deadline = deadline
            raise HistoryFull
        # The others have all the time again: a library that gets on is not late.
        self._tape_deadline = None
        for index in taped.on_tape.numbers:
            self._to_tape.pop(index).set_result("")
        for index in taped.lost.numbers:
            self._to_tape.pop(index).set_result(f"the LTS has lost datablock {index} before it was on tape")
        self._unwatched |= watched & self._to_tape.keys()

    async def _read_back_from_tape(self, plan_digest: str, index: int) -> str:
        """Have the LTS forget its cached copy, then verify what comes from tape; return what is damaged."""
        ref = self._ref(plan_digest, index)
        timing = self.order.timing
        self._block(index, "waiting_eviction")
        await self.step(TapeActivities.loosen_block, ref, self.policies.light(), summary="out of the LTS's cache")
        order = AwaitEvicted(
            **ref.model_dump(), poll_initial_s=timing.poll_initial_s, poll_longest_s=timing.poll_longest_s
        )
        while True:
            deadline = workflow.now() + timedelta(seconds=timing.migration_deadline_s)
            try:
                await self.wait_step(
                    TapeActivities.await_evicted, lambda: order, deadline, summary=f"datablock {index} out of the cache"
                )
                break
            except WaitEnded as end:
                if not end.deadline:
                    return end.text
                await self.park("CacheDeadline", end.text)
        async with self._audits:
            return await self._verify(plan_digest, index)

    def _block(
        self, index: int, state: str, *, name: str = "", bytes_total: int = 0, bytes_done: int = 0, shown: bool = True
    ) -> None:
        """Move a datablock on, and the dataset's phase with the slowest of them."""
        before = self.blocks.get(index)
        self.blocks[index] = BlockProgress(
            index=index,
            state=state,
            written=index in self._written,
            verified=index in self._verified,
            on_tape=index in self._on_tape,
            name=name or (before.name if before else ""),
            bytes_total=bytes_total or (before.bytes_total if before else 0),
            bytes_done=bytes_done or (before.bytes_done if before else 0),
        )
        self._states[state] += 1
        if before:
            self._states[before.state] -= 1
        if shown:
            self._show_slowest()

    def _show_slowest(self) -> None:
        def any_is(*states: str) -> bool:
            return any(self._states[state] > 0 for state in states)

        if any_is("planned", "writing", "waiting_space"):
            self.enter(Phase.WRITING, next(iter(self._refused.values()), ""))
        elif any_is("written", "verifying", "verified"):
            self.enter(Phase.VERIFYING)
        elif any_is("waiting_tape"):
            self.enter(Phase.WAITING_TAPE, "the LTS to write its cache to tape")
        elif any_is("waiting_eviction"):
            self.enter(Phase.WAITING_TAPE, "the LTS to free its cache, to read back from tape")

    # Register, commit, free.

    async def _register(self, planned: PlannedDataset) -> str:
        self.enter(Phase.REGISTERING)
        registered = await self.step(
            CatalogueActivities.register_blocks,
            self._registration(planned),
            self.policies.long(),
            summary="datablocks into SciCat",
            brief=planned.brief,
        )
        return registered.superseded_key

    def _registration(self, planned: PlannedDataset) -> RegisterBlocks:
        assert self._looked is not None  # noqa: S101 - nothing is registered before the look
        return RegisterBlocks(
            pid=self.order.pid,
            plan_digest=planned.plan_digest,
            generations=self._generations,
            afresh=self._looked.afresh,
        )

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
                afresh=looked.afresh,
            ),
            self.policies.endless(),
            summary="commit point",
            brief=True,
        )
        await self._remove_superseded(superseded_key)
        await self._remove_damaged(planned.plan_digest)
        freed = await self._free(planned.plan_digest, by_content=False, brief=planned.brief)
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

    async def _free(self, plan_digest: str, *, by_content: bool, brief: bool = False) -> Freed:
        self.enter(Phase.FREEING)
        freed = await self.step(
            LandingZoneActivities.free_dataset,
            FreeDataset(pid=self.order.pid, plan_digest=plan_digest, by_content=by_content),
            self.policies.endless(),
            summary="free the landing zone",
            brief=brief,
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
        every = set(range(1, looked.blocks + 1))
        self._written = every
        self._verified = every - {*looked.unverified, *looked.off_tape}
        self._on_tape = every - {*looked.unverified, *looked.off_tape}
        self._show_plan(looked.blocks, looked.payload_bytes)
        doubtful = sorted(every - self._on_tape)
        if doubtful:
            await self._all_safe(looked.plan_digest, [self._make_sure(looked.plan_digest, doubtful)])
        self.committed = True
        if looked.found.archive_status != ArchiveMoment.COMMITTED.status:
            await self._move(ArchiveMoment.COMMITTED)
        freed = await self._free(looked.plan_digest, by_content=True)
        return outcome.model_copy(update={"leftovers": freed.leftovers, "leftover_count": freed.leftover_count})

    async def _make_sure(self, plan_digest: str, doubtful: list[int]) -> None:
        """Of datablocks that are archived already nothing is written anew: there may be no files to do it from."""
        for index in doubtful:
            while damage := await self._verify(plan_digest, index) or await self._reach_tape(index):
                await self.park("Damaged", damage)

    async def _move(self, moment: ArchiveMoment, reason: str = "", *, calm: bool = False) -> None:
        assert self._looked is not None  # noqa: S101 - nothing moves before the look
        await self.step(
            CatalogueActivities.move_archive,
            MoveArchive(pid=self.order.pid, moment=moment, found=self._looked.found, reason=reason),
            self.policies.endless() if calm or self.committed else self.policies.light(),
            summary=f"life cycle: {moment.value}",
            brief=True,
            calm=calm,
        )

    # Undo.

    async def _take_back(self, end: EndDataset) -> DatasetOutcome:
        """Leave the world as it was found, twice: a zombie's last write or a late POST may come after the first."""
        if self._undo:
            self.enter(Phase.UNDOING)
            try:
                await self._undo.unwind()
            except _Archived as archived:
                return await self._go_forward(end, archived.superseded_key)
            await workflow.sleep(self.order.timing.second_look_s)
            # What a zombie has committed meanwhile is off the LTS: the next look at the dataset says so.
            with suppress(_Archived):
                await self._undo.unwind()
        if self._started:
            moment = _MOMENTS.get(end.outcome, ArchiveMoment.FAILURE)
            try:
                await self._move(moment, f"{end.error_class}: {end.message}", calm=True)
            except EndDataset as gone:
                workflow.logger.warning("dataset %s: its life cycle stays as it is: %s", self.order.pid, gone)
        if self.abandoned and self.subscribers:
            # Jobs that joined while this was being undone have not asked for a cancel.
            afresh = ArchiveState(subscribers=self.subscribers, paused_by=self.paused_by, shown=self.shown)
            workflow.continue_as_new(self.order.model_copy(update={"state": afresh}))
        return DatasetOutcome(pid=self.order.pid, status=end.outcome, error_class=end.error_class, message=end.message)

    async def _go_forward(self, end: EndDataset, superseded_key: str) -> DatasetOutcome:
        """Archived by steps on the spot that this workflow forgot, since a cancel met their task (decision 10)."""
        assert self._looked is not None and self._planned is not None  # noqa: S101, PT018 - pushed after the plan
        self.too_late(end)
        return await self._commit_and_free(self._looked, self._planned, superseded_key)

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
        try:
            taken_out = await self.step(
                CatalogueActivities.unregister_blocks,
                self._registration(self._planned),
                self.policies.endless(),
                summary="undo: datablocks out of SciCat",
                calm=True,
            )
            if taken_out.archived:
                raise _Archived(taken_out.superseded_key)
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
