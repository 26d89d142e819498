"""Stories in which every step has its part, mishaps that befall one of them, and a look at the world afterwards."""

import asyncio
import io
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from api.orders import job_order
from clients.s3 import ObjectVersion
from domain import names
from domain.lifecycle import JobType, Phase
from domain.orders import DatasetOrder, VerifyPolicy, Writing
from tests.lab import Lab, eventually, some_bytes
from tests.undo.mishaps import Mishap, Mishaps, Seen, Strike
from tests.undo.rows import ALL_COPIED, End

FILES = {f"movie{n}.tif": some_bytes(3_000 + n, n) for n in range(3)}
"""Two datablocks."""

CEILING_S = 100


@dataclass
class Case:
    """One dataset, and how it was before."""

    pid: str
    files: dict[str, bytes]
    seen: Seen
    landed: dict[str, list[ObjectVersion]]
    life: dict[str, Any]
    job: str = ""
    entry: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the job's result says of the dataset."""


@dataclass(frozen=True)
class Scene:
    """A lab whose worker's steps can be struck."""

    lab: Lab
    mishaps: Mishaps

    async def case(self, pid: str, files: dict[str, bytes]) -> Case:
        """A dataset as it is now."""
        return Case(pid, files, self.mishaps.watch(pid), await self.lab.landed(pid), await self.lab.lifecycle(pid))

    async def submit(self, case: Case, kind: str = "archive", files: dict[str, list[str]] | None = None) -> None:
        """Submit a job."""
        case.job = await self.lab.user.create_job(kind, [case.pid], files=files)
        await self.mishaps.introduce(case.job, case.seen)

    async def play(self, story: "Story", strike: Strike | None = None) -> Case:
        """Tell a story to its end."""
        assert self.mishaps.worker_broke is None, repr(self.mishaps.worker_broke)
        async with asyncio.timeout(CEILING_S):
            case = await story.prepare(self)
            if strike:
                case.seen.strikes.append(strike)
            companion = asyncio.ensure_future(story.accompany(self, case))
            try:
                await story.begin(self, case)
                if strike:
                    await self._befall(case, strike)
                await self.over(case)
            finally:
                companion.cancel()
                with suppress(asyncio.CancelledError):
                    await companion
        return case

    async def _befall(self, case: Case, strike: Strike) -> None:
        """Do what people would, once it has struck."""
        await strike.reached.wait()
        handle = self.lab.temporal.get_workflow_handle(strike.workflow_id)
        of_job = strike.workflow_id == names.job_workflow(case.job)
        match strike.mishap:
            case Mishap.FAILS if of_job:
                await eventually(lambda: _insists(strike, handle))
                strike.released.set()
            case Mishap.FAILS:
                parked = await parks(handle)
                strike.released.set()
                if not parked:
                    return
                await handle.signal("give_up")
                progress = await handle.query("progress")
                if progress["phase"] == Phase.PARKED:
                    assert not strike.behind or "too late, already archived" in progress["note"], progress
                    await handle.signal("retry")
            case Mishap.MISTAKE if strike.behind:
                await in_phase(handle, Phase.PARKED)
                strike.released.set()
                await handle.signal("retry")
            case Mishap.CANCELLED:
                if strike.step in ALL_COPIED:
                    await eventually(lambda: _all_delivered(handle))
                await handle.cancel()
                progress = await handle.query("progress")
                if await _is_to_be_cancelled(handle, strike.step):
                    await eventually(lambda: _true(strike.interrupted))
                elif strike.behind and not of_job:
                    assert "too late, already archived" in progress["note"], progress
                strike.released.set()
            case Mishap.CROSSED:
                # It waits for the end of the workflow task, where the step has its part.
                await handle.cancel()
                strike.released.set()
            case _:
                pass

    async def over(self, case: Case) -> None:
        """Wait until the job and the dataset have ended."""
        job = await self.lab.ended(case.job, within_s=CEILING_S)
        case.entry = job["jobResultObject"]["datasets"][0]
        for handle in (self.lab.archiving(case.pid), self.lab.retrieving(case.pid)):
            with suppress(RPCError):
                await ended(handle)

    # What there is.

    async def check(self, case: Case, end: End, *, step: str = "", worm: bool = False) -> None:
        """Compare the world with what there has to be; `step` is the one that was struck."""
        match end:
            case End.CLEAN:
                await self.clean(case, worm=worm)
            case End.ARCHIVED:
                await self.archived(case, worm=worm)
            case End.STOPPED | End.RETRIEVED:
                await self.retrieved(case, end)
        # What nobody heard of ends by itself.
        await self.nothing_open(case, within_s=30 if step in ("open_block", "recall_block", "request_recall") else 0)

    async def nothing_open(self, case: Case, *, within_s: float) -> None:
        """No upload on the LTS, no pin, no recall."""

        async def left() -> list[Any]:
            state = (await self.lab.lts("GET", "/admin/state")).json()
            return [held for held in (*state["uploads"], *state["pins"]) if case.pid in held["path"]]

        if within_s:
            await eventually(lambda: _not(left()), within_s=within_s)
        assert await left() == []

    async def clean(self, case: Case, *, worm: bool) -> None:
        """A clean slate."""
        pid = case.pid
        assert await self.lab.user.datablocks(pid) == []
        assert await self.lab.landed(pid) == case.landed
        assert await self.orphans(pid) == (set(await self.lab.on_lts(pid)) if worm else set())
        assert worm or await self.lab.on_lts(pid) == {}
        assert await self.committed(pid) == []
        life = await self.lab.lifecycle(pid)
        found = (case.life["archiveStatusMessage"], case.life["archivable"])
        if found[0] == "started":
            # Nobody stood behind it.
            found = ("datasetCreated", True)
        told = {
            "cancelled": found,
            "dataset_error": ("missingFilesError", True),
            "given_up": ("scheduleArchiveJobFailed", True),
        }
        now = (life["archiveStatusMessage"], life["archivable"])
        touched = ("move_archive", False) in case.seen.steps
        assert now == (told[case.entry["status"]] if touched else found), case.entry
        assert life["retrievable"] == case.life["retrievable"]

    async def archived(self, case: Case, *, worm: bool = False) -> None:
        """Every datablock and registration whole, and nothing else of ours."""
        pid = case.pid
        assert case.entry["status"] == "archived", case.entry
        blocks = {block["archiveId"]: block for block in await self.lab.user.datablocks(pid)}
        on_lts = await self.lab.on_lts(pid)
        assert {name: block["packedSize"] for name, block in blocks.items()}.items() <= on_lts.items()
        assert worm or set(on_lts) == set(blocks)
        listed = [file["path"] for block in blocks.values() for file in block["dataFileList"]]
        assert sorted(listed) == sorted(case.files)
        unpacked = [await self._unpacked(name) for name in blocks]
        assert {path: content for block in unpacked for path, content in block.items()} == case.files
        assert await self.lab.landed(pid) == {}
        assert await self.orphans(pid) == set(on_lts) - set(blocks)
        assert len(await self.committed(pid)) == 1
        life = await self.lab.lifecycle(pid)
        assert (life["archiveStatusMessage"], life["archivable"], life["retrievable"], life["isOnCentralDisk"]) == (
            "datasetOnArchiveDisk",
            False,
            True,
            False,
        )

    async def retrieved(self, case: Case, end: End) -> None:
        """What is archived stays as it was; delivered is all or it is said that it is not."""
        life = await self.lab.lifecycle(case.pid)
        keep = ("archiveStatusMessage", "archivable", "retrievable")
        assert [life[name] for name in keep] == [case.life[name] for name in keep]
        blocks = await self.lab.user.datablocks(case.pid)
        assert {block["archiveId"] for block in blocks} >= set(await self.lab.on_lts(case.pid))
        if end is End.RETRIEVED:
            assert case.entry["status"] == "retrieved", case.entry
            assert life["retrieveStatusMessage"] == "datasetRetrieved"
        else:
            assert case.entry["status"] in ("cancelled", "dataset_error", "given_up", "partial", "failed"), case.entry
            started = ("move_retrieve", False) in case.seen.steps
            assert not started or life["retrieveStatusMessage"] == "datasetRetrievalFailed"

    async def received(self, pid: str) -> int:
        """Bytes of the dataset that ever went to the LTS."""
        paths = (await self.lab.lts("GET", "/admin/requests")).json()["paths"]
        return sum(counted["received"] for path, counted in paths.items() if pid in path)

    async def orphans(self, pid: str) -> set[str]:
        """What is listed as left on a write-once LTS."""
        prefix = "orphans/"
        listed = self.lab.objects.list_objects(self._state, prefix + names.datablocks_prefix(pid))
        return {item.key.removeprefix(prefix).removesuffix(".json") async for item in listed}

    async def committed(self, pid: str) -> list[str]:
        """Marks of commit points."""
        listed = self.lab.objects.list_objects(self._state, names.state_prefix(pid))
        return [item.key async for item in listed if item.key.endswith("/committed")]

    @property
    def _state(self) -> str:
        return self.lab.stack.settings.s3_state_bucket

    async def _unpacked(self, archive_id: str) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(await self._read(archive_id))) as tar:
            members = {member.name.split("/", 1)[1]: tar.extractfile(member) for member in tar}
        return {name.removeprefix("data/"): m.read() for name, m in members.items() if m and name.startswith("data/")}

    async def _read(self, archive_id: str) -> bytes:
        """A file of the LTS, recalled if need be."""
        wanted = {"files": [{"path": archive_id, "diskLifetime": "PT1M"}]}
        request = "/" + (await self.lab.lts("POST", "/api/v1/tape/stage", json=wanted)).json()["requestId"]

        async def online() -> bool:
            [file] = (await self.lab.lts("GET", "/api/v1/tape/stage" + request)).json()["files"]
            return file.get("state") == "COMPLETED"

        await eventually(online)
        content = (await self.lab.lts("GET", f"/files/{quote(archive_id)}")).content
        await self.lab.lts("POST", "/api/v1/tape/release" + request, json={"paths": [archive_id]})
        await self.lab.lts("DELETE", "/api/v1/tape/stage" + request)
        return content

    async def evict(self, pid: str) -> None:
        """Have the LTS drop what it has on tape from its cache."""
        for path in await self.lab.on_lts(pid):
            # An undo may have taken it off meanwhile.
            with suppress(AssertionError):
                await self.lab.lts("POST", "/admin/evict", json={"path": path})


async def in_phase(handle: WorkflowHandle[Any, Any], phase: Phase) -> None:
    """Wait until a dataset is in this phase."""

    async def there() -> bool:
        return (await handle.query("progress"))["phase"] == phase

    await eventually(there)


async def parks(handle: WorkflowHandle[Any, Any]) -> bool:
    """Wait until a dataset is parked, or has ended without; it says that it is done before its last step has failed."""

    async def decided() -> str:
        closed = (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING
        phase = (await handle.query("progress"))["phase"]
        return phase if closed or phase == Phase.PARKED else ""

    return await eventually(decided) == Phase.PARKED


async def ended(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait until a workflow is closed, by whatever run."""

    async def closed() -> bool:
        return (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING

    await eventually(closed)


async def _is_to_be_cancelled(handle: WorkflowHandle[Any, Any], step: str) -> bool:
    requested = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
    pending = (await handle.describe()).raw_description.pending_activities
    return any(p.activity_type.name == step and p.state == requested for p in pending)


async def _all_delivered(handle: WorkflowHandle[Any, Any]) -> bool:
    progress = await handle.query("progress")
    return progress["states"].get("delivered") == progress["blocks_total"]


async def _insists(strike: Strike, job: WorkflowHandle[Any, Any]) -> bool:
    """It was tried again and again, or the job does not need it any more."""
    return strike.attempts >= 3 or (await job.describe()).status is not WorkflowExecutionStatus.RUNNING


async def _true(fact: bool) -> bool:
    return fact


async def _not(fact: Awaitable[object]) -> bool:
    return not await fact


# Stories.


@dataclass(frozen=True)
class Story:
    """How a dataset comes to run certain steps."""

    ends: End
    prepare: Callable[[Scene], Awaitable[Case]]
    begin: Callable[[Scene, Case], Awaitable[None]]
    accompany: Callable[[Scene, Case], Awaitable[None]]


async def _nothing(_: Scene, _case: Case) -> None:
    pass


async def _fresh(scene: Scene) -> Case:
    return await scene.case(await scene.lab.dataset(FILES), FILES)


async def _one_block(scene: Scene) -> Case:
    files = {"movie.tif": FILES["movie1.tif"]}
    return await scene.case(await scene.lab.dataset(files), files)


async def _archive(scene: Scene, case: Case) -> None:
    await scene.submit(case)


async def _with_proof(scene: Scene, case: Case) -> None:
    """The dataset is to be read back from tape."""
    order = job_order(scene.lab.stack.settings, "", JobType.ARCHIVE)
    proven = DatasetOrder(
        pid=case.pid,
        timing=order.timing,
        packing=order.packing,
        writing=Writing(verify=VerifyPolicy.TAPE_READ_BACK),
        limits=order.limits,
    )
    async with scene.lab.begun("ArchiveDataset", names.archive_workflow(case.pid), proven):
        await scene.submit(case)


async def _evict_for_ever(scene: Scene, case: Case) -> None:
    while True:
        await scene.evict(case.pid)
        await asyncio.sleep(0.1)


async def _registered_before(scene: Scene) -> Case:
    """An earlier archive died with its datablocks registered; meanwhile there is another file."""
    case = await _fresh(scene)
    died = Strike("register_blocks", Mishap.CANCELLED)
    case.seen.strikes.append(died)
    await scene.submit(case)
    await died.reached.wait()
    for workflow_id in (names.job_workflow(case.job), names.archive_workflow(case.pid)):
        await scene.lab.temporal.get_workflow_handle(workflow_id).terminate()
    died.released.set()
    await scene.lab.user.set_lifecycle(case.pid, {"archivable": True})
    more = {"late.tif": some_bytes(2_000, 9)}
    entry = {"path": "late.tif", "size": 2_000, "time": "2026-01-02T03:04:05.000Z", "perm": "-rw-r--r--"}
    await scene.lab.user.add_files(case.pid, [entry], algorithm="sha256")
    await scene.lab.upload(case.pid, more)
    return await scene.case(case.pid, FILES | more)


async def _cancel_at_the_end(scene: Scene, case: Case) -> None:
    """Cancelled when all is done but for the commit point."""
    late = Strike("register_blocks", Mishap.CANCELLED)
    case.seen.strikes.append(late)
    await late.reached.wait()
    await scene.lab.archiving(case.pid).cancel()


async def _park(scene: Scene, case: Case) -> None:
    """A write fails until the job was told."""
    parked = Strike("write_block", Mishap.FAILS)
    case.seen.strikes.append(parked)
    await parked.reached.wait()
    handle = scene.lab.archiving(case.pid)
    await in_phase(handle, Phase.PARKED)
    told = next((strike for strike in case.seen.strikes if strike.step == "report_job"), None)
    if told and told.mishap is Mishap.CANCELLED:
        # Then nobody waits for it any more.
        return

    async def heard() -> bool:
        return ("report_job", False) in case.seen.steps and (not told or told.over)

    await eventually(heard)
    parked.released.set()
    with suppress(RPCError):
        await handle.signal("retry")


async def _damage(scene: Scene, case: Case) -> None:
    """A bit flips on the LTS before anything is read back."""
    held = Strike("write_block", Mishap.CANCELLED)
    case.seen.strikes.append(held)
    await held.reached.wait()
    [path] = await scene.lab.on_lts(case.pid)
    await scene.lab.lts("POST", "/admin/faults", json={"kind": "corrupt_at_rest", "where": "disk", "path": path})
    held.released.set()


async def _on_tape(scene: Scene) -> Case:
    """Archived, and gone from the LTS's cache."""
    case = await _fresh(scene)
    await scene.submit(case)
    await scene.lab.ended(case.job)
    await scene.evict(case.pid)
    return await scene.case(case.pid, FILES)


async def _one_lost(scene: Scene) -> Case:
    case = await _on_tape(scene)
    path = min(await scene.lab.on_lts(case.pid))
    await scene.lab.lts("POST", "/admin/faults", json={"kind": "lose_file", "path": path})
    return case


async def _retrieve(scene: Scene, case: Case) -> None:
    await scene.submit(case, "retrieve")


async def _restore(scene: Scene, case: Case) -> None:
    await scene.submit(case, "retrieve", {case.pid: ["movie1.tif"]})


STORIES = {
    "an archive": Story(End.ARCHIVED, _fresh, _archive, _nothing),
    "an archive with proof from tape": Story(End.ARCHIVED, _fresh, _with_proof, _evict_for_ever),
    "an archive after another that died": Story(End.ARCHIVED, _registered_before, _archive, _nothing),
    "an archive that was cancelled": Story(End.CLEAN, _fresh, _archive, _cancel_at_the_end),
    "the same after another that died": Story(End.CLEAN, _registered_before, _archive, _cancel_at_the_end),
    "an archive that is parked": Story(End.ARCHIVED, _fresh, _archive, _park),
    "an archive of which a datablock is damaged": Story(End.ARCHIVED, _one_block, _archive, _damage),
    "a retrieval": Story(End.RETRIEVED, _on_tape, _retrieve, _nothing),
    "a retrieval of which one datablock is lost": Story(End.STOPPED, _one_lost, _retrieve, _nothing),
    "a retrieval of single files": Story(End.RETRIEVED, _on_tape, _restore, _nothing),
}
"""The first in which a step occurs is the one in which it is struck."""
