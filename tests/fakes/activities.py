"""All activities by name, in a world of a few dictionaries: for tests of what the workflows decide.

A test scripts them: `fail` makes calls of a step raise, `hold` lets calls wait until `let_go`; `calls` counts, `orders`
keeps what was asked. Jobs are opened, joined, watched and reported by the real activities over fakes of SciCat and of
the state bucket, since joining is what these tests are about.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from activities.catalogue import (
    CatalogueActivities,
    Commit,
    JobReport,
    Look,
    Looked,
    MoveArchive,
    MoveRetrieve,
    OpenedJob,
    OpenJob,
    RegisterBlocks,
    Registered,
    Standing,
)
from activities.joining import JoinDatasets, JoinedDatasets, JoiningActivities, Vanished, WatchDatasets
from activities.landing_zone import Freed, FreeDataset, PlanDataset, PlannedDataset
from activities.progress import not_yet
from activities.reporting import DeliverOutcome, FinishedJob, FinishJob, ReportingActivities
from activities.retrieval import (
    RECALL_BATCH,
    Arrived,
    AwaitRecall,
    BlockNames,
    CopiedBlock,
    CopyBlock,
    LookedRetrieval,
    LookRetrieval,
    NameBlocks,
    ReleaseRecall,
    RequestedRecall,
    RequestRecall,
)
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
    Refusal,
    RemoveFiles,
    Taped,
    UndoBlocks,
    VerifiedBlock,
    VerifyBlock,
    WriteBlock,
    WrittenBlock,
)
from clients.s3 import ObjectStore
from clients.scicat import JobDataset
from clients.state import State
from domain.bitmap import Bitmap
from domain.lifecycle import FoundLifecycle
from domain.outcome import DatasetOutcome
from tests.fakes.catalogue import FakeCatalogue, FakeDataset, FakeJob

TAR_BYTES = 1_000

ALWAYS = 1 << 30


class FakeState:
    """The part of the state bucket that jobs need."""

    def __init__(self) -> None:
        self.records: dict[str, object] = {}
        self.outcomes_of: dict[tuple[str, int], DatasetOutcome] = {}

    async def put_json(self, key: str, value: object) -> None:
        """Keep a record."""
        self.records[key] = value

    async def get_list(self, key: str) -> list[Any]:
        """Read a list back."""
        return cast("list[Any]", self.records.get(key, []))

    async def put_outcome(self, job_id: str, n: int, outcome: DatasetOutcome) -> None:
        """Keep an outcome."""
        self.outcomes_of[job_id, n] = outcome

    async def outcomes(self, job_id: str, positions: Iterable[int]) -> list[DatasetOutcome | None]:
        """Outcomes of a job."""
        return [self.outcomes_of.get((job_id, n)) for n in positions]


@dataclass
class Held:
    """What is true of one dataset outside of SciCat."""

    blocks: int = 1
    standing: Standing = Standing.NONE
    unverified: tuple[int, ...] = ()
    off_tape: tuple[int, ...] = ()
    landed: bool = True
    """The landing zone is whole."""
    uploads: set[str] = field(default_factory=set[str])
    lts: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    """(datablock, generation) that lie on the LTS."""
    verified: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    damaged: dict[int, int] = field(default_factory=dict[int, int])
    """Datablock → how many generations of it come back damaged."""
    nearline: set[int] = field(default_factory=set[int])
    """Datablocks (archive) or positions (retrieval) that are on tape only."""
    off_line: bool = False
    """Nothing gets on tape."""
    off: set[int] = field(default_factory=set[int])
    """Datablocks that do not get on tape."""
    vanishing: dict[int, int] = field(default_factory=dict[int, int])
    """Datablock → how many generations of it are lost before they are on tape."""
    cached: bool = False
    """What is on tape stays in the cache."""
    refusals: dict[str, Refusal] = field(default_factory=dict[str, Refusal])
    """Step → why the LTS takes nothing."""
    registered: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    committed: bool = False
    pins: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    """Recall id → datablocks or positions that it keeps on disk, or will."""
    requested: list[tuple[datetime, Any]] = field(default_factory=list[tuple[datetime, Any]])
    """Recalls, and when the server had them begin."""
    without_tape: bool = False
    """It lies on a store on which nothing has to be recalled."""
    stuck: set[int] = field(default_factory=set[int])
    """Positions whose recall does not come."""
    broken: dict[int, int] = field(default_factory=dict[int, int])
    """Positions → how many of their recalls fail."""
    forgotten: int = 0
    """How many recalls the LTS will forget."""
    delivered: set[int] = field(default_factory=set[int])


class World:
    """Everything that the activities touch, and the script by which they fail or wait."""

    def __init__(self, client: Client) -> None:
        self.held: dict[str, Held] = defaultdict(Held)
        self.catalogue = FakeCatalogue()
        self.state = FakeState()
        self.calls: Counter[str] = Counter()
        self.orders: list[tuple[str, Any]] = []
        self.running: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.highest: Counter[str] = Counter()
        """The most calls of a step that ran at a time."""
        self._failures: dict[str, deque[tuple[str, bool]]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._deaf: set[str] = set()
        self._last = 0
        state = cast("State", self.state)
        self.scicat = CatalogueActivities(catalogue=self.catalogue, store=cast("Any", None), state=state)
        self.joining = JoiningActivities(client=client, state=state)
        self.reporting = ReportingActivities(
            catalogue=self.catalogue,
            objects=cast("ObjectStore", None),
            links=cast("ObjectStore", None),
            retrieval_bucket="",
            retention=timedelta(days=14),
            state=state,
            client=client,
            link_lifetime_s=60,
        )

    # --- for tests ----------------------------------------------------------------------------------------------------

    def dataset(self, pid: str, **held: Any) -> Held:
        """A dataset in SciCat and in the landing zone."""
        self.catalogue.known[pid] = FakeDataset()
        self.held[pid] = Held(**held)
        return self.held[pid]

    def job(self, job_id: str, *pids: str, kind: str = "archive", group: str = "group1") -> FakeJob:
        """A job in SciCat; datasets that are new to it are made, for the group."""
        for pid in pids:
            if pid not in self.catalogue.known:
                self.dataset(pid)
                self.catalogue.known[pid].owner_group = group
        self.catalogue.jobs[job_id] = FakeJob(kind, tuple(JobDataset(pid) for pid in pids), owner_group=group)
        return self.catalogue.jobs[job_id]

    def fail(self, step: str, kind: str = "TapeUnavailable", *, times: int = ALWAYS, final: bool = False) -> None:
        """Make the next calls of a step raise an error of this name; `step` may end in `:<pid>`."""
        self._failures[step] = deque([(kind, final)] * min(times, 10_000))

    def heal(self, step: str) -> None:
        """Let the step work again."""
        self._failures.pop(step, None)

    def hold(self, step: str, *, deaf: bool = False) -> None:
        """Let calls of a step wait, those that are deaf without hearing a cancel; `step` may end in `:<pid>`."""
        self._gates[step] = asyncio.Event()
        if deaf:
            self._deaf.add(step)

    def let_go(self, step: str) -> None:
        """Let all waiting calls go on, and later ones pass."""
        self._gates[step].set()

    async def until(self, condition: Callable[[], object], within_s: float = 10) -> None:
        """Wait until something is true of this world."""
        async with asyncio.timeout(within_s):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.005)

    async def reached(self, step: str, running: int = 1) -> None:
        """Wait until so many calls of a step run."""
        await self.until(lambda: self.running[step] >= running)

    def lifecycle(self, pid: str) -> tuple[str, bool, bool]:
        """(archiveStatusMessage, archivable, retrievable)."""
        life = self.catalogue.known[pid].lifecycle
        return life["archiveStatusMessage"], life["archivable"], life["retrievable"]

    def assert_nothing_left(self, pid: str) -> None:
        """Nothing of ours on the LTS or in SciCat, no pin, and the landing zone is whole."""
        held = self.held[pid]
        assert (held.lts, held.uploads, held.registered, held.pins) == (set(), set(), set(), {})
        assert held.landed
        assert not held.committed

    def outcome(self, job_id: str, n: int = 0) -> DatasetOutcome:
        """How a job's dataset ended, as kept for its report."""
        return self.state.outcomes_of[job_id, n]

    def asked(self, step: str) -> list[Any]:
        """The inputs of all calls of a step."""
        return [order for name, order in self.orders if name == step]

    # --- the script ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def call(self, step: str, order: Any) -> AsyncGenerator[None]:
        """Around every activity: count, fail, wait."""
        pid = getattr(order, "pid", "")
        scripted = [step, f"{step}:{pid}"]
        self.calls.update(scripted)
        self.orders.append((step, order))
        for name in scripted:
            if failures := self._failures.get(name):
                kind, final = failures.popleft()
                raise ApplicationError(f"{step} fails as told", type=kind, non_retryable=final)
        self.running.update(scripted)
        self.highest[step] = max(self.highest[step], self.running[step])
        try:
            for name in scripted:
                await self._pass(name)
            yield
            self.done.update(scripted)
        except asyncio.CancelledError:
            self.cancelled.update(scripted)
            raise
        finally:
            self.running.subtract(scripted)

    async def _pass(self, name: str) -> None:
        gate = self._gates.get(name)
        while gate and not gate.is_set():
            if name not in self._deaf and not activity.info().is_local:
                activity.heartbeat()
            try:
                await asyncio.wait_for(gate.wait(), 0.02)
            except TimeoutError:
                gate = self._gates.get(name)

    def new_id(self) -> str:
        """The next number."""
        self._last += 1
        return str(self._last)


def activities(world: World) -> list[Callable[..., Any]]:
    """All activities over the world, for a worker."""

    def pid_of(archive_id: str) -> str:
        return next(pid for pid in world.held if archive_id.startswith(f"{pid}#"))

    def through(name: str, real: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def step(order: Any) -> Any:
            async with world.call(name, order):
                return await real(order)

        return step

    def refusal(step: str, order: Patience) -> Refusal | None:
        refused = world.held[order.pid].refusals.get(step)
        if refused and order.refused_since:
            raise not_yet(
                refused.since(order.refused_since), initial_s=order.poll_initial_s, longest_s=order.poll_longest_s
            )
        return refused

    # Jobs: the real ones.

    @activity.defn(name="open_job")
    async def open_job(order: OpenJob) -> OpenedJob:
        return await through("open_job", world.scicat.open_job)(order)

    @activity.defn(name="report_job")
    async def report_job(order: JobReport) -> None:
        await through("report_job", world.scicat.report_job)(order)

    @activity.defn(name="join_datasets")
    async def join_datasets(order: JoinDatasets) -> JoinedDatasets:
        return await through("join_datasets", world.joining.join_datasets)(order)

    @activity.defn(name="watch_datasets")
    async def watch_datasets(order: WatchDatasets) -> Vanished:
        return await through("watch_datasets", world.joining.watch_datasets)(order)

    @activity.defn(name="deliver_outcome")
    async def deliver_outcome(order: DeliverOutcome) -> None:
        await through("deliver_outcome", world.reporting.deliver_outcome)(order)

    @activity.defn(name="finish_job")
    async def finish_job(order: FinishJob) -> FinishedJob:
        return await through("finish_job", world.reporting.finish_job)(order)

    @activity.defn(name="move_archive")
    async def move_archive(order: MoveArchive) -> None:
        await through("move_archive", world.scicat.move_archive)(order)

    @activity.defn(name="move_retrieve")
    async def move_retrieve(order: MoveRetrieve) -> None:
        await through("move_retrieve", world.scicat.move_retrieve)(order)

    # The archive.

    @activity.defn(name="look")
    async def look(order: Look) -> Looked:
        async with world.call("look", order):
            held = world.held[order.pid]
            life = await world.catalogue.lifecycle(order.pid)
            return Looked(
                owner_group=world.catalogue.known[order.pid].owner_group,
                found=FoundLifecycle(
                    archivable=life.archivable, retrievable=life.retrievable, archive_status=life.archive_status
                ),
                standing=Standing.COMMITTED if held.committed else held.standing,
                plan_digest="plan" if held.committed else "",
                unverified=held.unverified,
                off_tape=held.off_tape,
                blocks=held.blocks,
                payload_bytes=held.blocks * 900,
            )

    @activity.defn(name="plan_dataset")
    async def plan_dataset(order: PlanDataset) -> PlannedDataset:
        async with world.call("plan_dataset", order):
            blocks = world.held[order.pid].blocks
            return PlannedDataset(plan_digest="plan", blocks=blocks, files=blocks, payload_bytes=blocks * 900)

    @activity.defn(name="open_block")
    async def open_block(order: OpenBlock) -> OpenedBlock:
        async with world.call("open_block", order):
            if refused := refusal("open_block", order):
                return OpenedBlock(archive_id="", tar_bytes=0, refused=refused)
            held, key = world.held[order.pid], (order.index, order.generation)
            name = f"{order.pid}#{order.index}#{order.generation}"
            if key in held.lts:
                return OpenedBlock(archive_id=name, tar_bytes=TAR_BYTES, verified=key in held.verified)
            upload = f"upload-{world.new_id()}"
            held.uploads.add(upload)
            return OpenedBlock(archive_id=name, tar_bytes=TAR_BYTES, upload_id=upload)

    @activity.defn(name="write_block")
    async def write_block(order: WriteBlock) -> WrittenBlock:
        async with world.call("write_block", order):
            if refused := refusal("write_block", order):
                return WrittenBlock(finished=False, refused=refused)
            held, key = world.held[order.pid], (order.index, order.generation)
            if key not in held.lts:
                if order.upload_id not in held.uploads:
                    return WrittenBlock(finished=False)
                held.uploads.remove(order.upload_id)
                held.lts.add(key)
            return WrittenBlock(finished=True)

    @activity.defn(name="verify_block")
    async def verify_block(order: VerifyBlock) -> VerifiedBlock:
        async with world.call("verify_block", order):
            held = world.held[order.pid]
            if order.index in held.nearline:
                return VerifiedBlock(nearline=True)
            if held.damaged.get(order.index, 0) > order.generation:
                return VerifiedBlock(damage=f"datablock {order.index} of generation {order.generation} is damaged")
            held.verified.add((order.index, order.generation))
            return VerifiedBlock()

    @activity.defn(name="await_tape")
    async def await_tape(order: AwaitTape) -> Taped:
        async with world.call("await_tape", order):
            held = world.held[order.pid]
            asked = order.indices.numbers
            lost = [n for n in asked if held.vanishing.get(n, 0) > order.generations.get(n, 0)]
            on_tape = [] if held.off_line else [n for n in asked if n not in held.off and n not in lost]
            held.lts -= {(n, order.generations.get(n, 0)) for n in lost}
            if not lost and not on_tape:
                raise not_yet("not on tape yet", initial_s=order.poll_initial_s, longest_s=order.poll_longest_s)
            return Taped(on_tape=Bitmap.of(on_tape), lost=Bitmap.of(lost))

    @activity.defn(name="loosen_block")
    async def loosen_block(order: BlockRef) -> None:
        async with world.call("loosen_block", order):
            pass

    @activity.defn(name="await_evicted")
    async def await_evicted(order: AwaitEvicted) -> None:
        async with world.call("await_evicted", order):
            if world.held[order.pid].cached:
                raise not_yet("still in the cache", initial_s=order.poll_initial_s, longest_s=order.poll_longest_s)
            world.held[order.pid].nearline.add(order.index)

    @activity.defn(name="recall_block")
    async def recall_block(order: RecallBlock) -> RecalledBlock:
        async with world.call("recall_block", order):
            recall_id = f"recall-{world.new_id()}"
            world.held[order.pid].pins[recall_id] = {order.index}
            return RecalledBlock(archive_id=f"{order.pid}#{order.index}#{order.generation}", recall_id=recall_id)

    @activity.defn(name="await_recalled")
    async def await_recalled(order: AwaitRecalled) -> None:
        async with world.call("await_recalled", order):
            held = world.held[pid_of(order.archive_id)]
            index = int(order.archive_id.split("#")[-2])
            if held.broken.get(index, 0) > 0:
                held.broken[index] -= 1
                raise ApplicationError("the recall failed", type="TapeUnavailable", non_retryable=True)
            if index in held.stuck:
                raise not_yet("still on tape", initial_s=order.poll_initial_s, longest_s=order.poll_longest_s)
            held.nearline.discard(index)

    @activity.defn(name="release_block")
    async def release_block(order: RecalledBlock) -> None:
        async with world.call("release_block", order):
            world.held[pid_of(order.archive_id)].pins.pop(order.recall_id, None)

    @activity.defn(name="register_blocks")
    async def register_blocks(order: RegisterBlocks) -> Registered:
        async with world.call("register_blocks", order):
            held = world.held[order.pid]
            held.registered = {(n, order.generations.get(n, 0)) for n in range(1, held.blocks + 1)}
            assert held.registered <= held.lts & held.verified
            return Registered()

    @activity.defn(name="unregister_blocks")
    async def unregister_blocks(order: RegisterBlocks) -> Registered:
        async with world.call("unregister_blocks", order):
            await world.catalogue.datablocks(order.pid)
            if world.held[order.pid].committed:
                return Registered(archived=bool(world.held[order.pid].registered))
            world.held[order.pid].registered.clear()
            return Registered()

    @activity.defn(name="commit")
    async def commit(order: Commit) -> None:
        async with world.call("commit", order):
            held = world.held[order.pid]
            # Steps on the spot run again when a signal comes in the midst of them, those that followed included.
            assert held.landed or held.committed
            assert held.registered
            held.committed = True

    @activity.defn(name="remove_files")
    async def remove_files(order: RemoveFiles) -> None:
        async with world.call("remove_files", order):
            pass

    @activity.defn(name="free_dataset")
    async def free_dataset(order: FreeDataset) -> Freed:
        async with world.call("free_dataset", order):
            held = world.held[order.pid]
            assert held.committed
            assert held.registered <= held.lts, "freed what is not on the LTS"
            held.landed = False
            return Freed()

    @activity.defn(name="undo_blocks")
    async def undo_blocks(order: UndoBlocks) -> None:
        async with world.call("undo_blocks", order):
            held = world.held[order.pid]
            for step in ("open_block", "write_block", "verify_block", "register_blocks"):
                assert not world.running[f"{step}:{order.pid}"], f"undone while {step} still runs"
            held.uploads -= set(order.uploads)
            gone = {(n, g) for n in order.indices for g in range(order.generations.get(n, 0) + 1)}
            assert not gone & held.registered, "taken off the LTS while SciCat still lists it"
            held.lts -= gone
            held.verified -= gone

    # The retrieval.

    @activity.defn(name="look_retrieval")
    async def look_retrieval(order: LookRetrieval) -> LookedRetrieval:
        async with world.call("look_retrieval", order):
            held = world.held[order.pid]
            return LookedRetrieval(
                owner_group=world.catalogue.known[order.pid].owner_group,
                blocks_key=order.pid,
                blocks=held.blocks,
                total_bytes=held.blocks * TAR_BYTES,
                missing=Bitmap.of(n for n in range(held.blocks) if n not in held.delivered),
            )

    @activity.defn(name="request_recall")
    async def request_recall(order: RequestRecall) -> RequestedRecall:
        async with world.call("request_recall", order):
            assert len(order.positions) <= RECALL_BATCH
            if world.held[order.blocks_key].without_tape:
                return RequestedRecall()
            recall_id = f"recall-{world.new_id()}"
            world.held[order.blocks_key].requested.append((activity.info().current_attempt_scheduled_time, order))
            world.held[order.blocks_key].pins[recall_id] = set(order.positions.numbers)
            return RequestedRecall(recall_id=recall_id)

    @activity.defn(name="await_recall")
    async def await_recall(order: AwaitRecall) -> Arrived:
        async with world.call("await_recall", order):
            held = world.held[order.blocks_key]
            if held.forgotten:
                held.forgotten -= 1
                for recall_id in order.recalls:
                    held.pins.pop(recall_id, None)
                return Arrived(forgotten=tuple(order.recalls))
            asked = [n for positions in order.recalls.values() for n in positions.numbers]
            failed = {n: "the tape is torn" for n in asked if held.broken.get(n, 0) > 0}
            for n in failed:
                held.broken[n] -= 1
            for recall_id in order.recalls:
                # What failed is not kept on disk.
                held.pins[recall_id] -= set(failed)
                if not held.pins[recall_id]:
                    del held.pins[recall_id]
            online = tuple(n for n in asked if n not in held.stuck and n not in failed)
            held.nearline -= set(online)
            if not online and not failed:
                raise not_yet("still on tape", initial_s=order.poll_initial_s, longest_s=order.poll_longest_s)
            return Arrived(online=Bitmap.of(online), failed=failed)

    @activity.defn(name="name_blocks")
    async def name_blocks(order: NameBlocks) -> BlockNames:
        async with world.call("name_blocks", order):
            return BlockNames(archive_ids=tuple(f"{order.blocks_key}#{n}" for n in order.positions))

    @activity.defn(name="copy_block")
    async def copy_block(order: CopyBlock) -> CopiedBlock:
        async with world.call("copy_block", order), world.call(f"copy_block:{order.position}", order):
            held = world.held[order.blocks_key]
            if order.position in held.nearline:
                return CopiedBlock(nearline=True)
            held.delivered.add(order.position)
            return CopiedBlock(bytes=TAR_BYTES)

    @activity.defn(name="restore_files")
    async def restore_files(order: CopyBlock) -> CopiedBlock:
        async with world.call("restore_files", order):
            held = world.held[order.blocks_key]
            if order.position in held.nearline:
                return CopiedBlock(nearline=True)
            held.delivered.add(order.position)
            return CopiedBlock(bytes=1)

    @activity.defn(name="release_recall")
    async def release_recall(order: ReleaseRecall) -> None:
        async with world.call("release_recall", order):
            pins = world.held[order.blocks_key].pins
            kept = pins.get(order.recall_id, set[int]()) - set(order.positions.numbers)
            assert not (order.withdraw and kept), "withdrawn while it holds others"
            pins.pop(order.recall_id, None)
            if kept:
                pins[order.recall_id] = kept

    return [
        open_job,
        report_job,
        join_datasets,
        watch_datasets,
        deliver_outcome,
        finish_job,
        move_archive,
        move_retrieve,
        look,
        plan_dataset,
        open_block,
        write_block,
        verify_block,
        await_tape,
        loosen_block,
        await_evicted,
        recall_block,
        await_recalled,
        release_block,
        register_blocks,
        unregister_blocks,
        commit,
        remove_files,
        free_dataset,
        undo_blocks,
        look_retrieval,
        request_recall,
        await_recall,
        copy_block,
        restore_files,
        release_recall,
        name_blocks,
    ]
