"""A worker that hangs, is given up for dead, and comes back: what another one finished meanwhile stays as it is."""

import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from cli import stack_environment
from cli.processes import Child
from clients.state import State
from domain import names
from domain.planfile import DatasetPlan
from tests.faults.site import CHUNK, Site, is_write, reached
from tests.lab import Lab, eventually, some_bytes

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(240)]

FILES = {f"movie{n}.tif": some_bytes(9_000_000, n) for n in range(5)}


@asynccontextmanager
async def second_worker(lab: Lab) -> AsyncGenerator[None]:
    """Another archival worker, as an operator may start one."""
    stack = lab.stack
    settings = {"S3_ENDPOINT": stack.settings.s3_endpoint, "LTS_ENDPOINT": stack.settings.lts_endpoint}
    environment = stack_environment.for_ours(stack.ports, stack.folder / "secrets", settings)
    command = [sys.executable, "-P", "-m", "worker", "--queue", "archival"]
    worker = Child("second-worker", command, environment, stack.folder, stack.folder / "logs" / "second-worker.log")
    worker.start()
    try:
        yield
    finally:
        await worker.stop(grace_s=15)


async def plan_of(lab: Lab, pid: str) -> tuple[State, DatasetPlan]:
    state = State(lab.objects, lab.stack.settings.s3_state_bucket)
    [digest] = (await state.index(pid)).plans
    return state, await state.plan(pid, digest)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(True, id="its-connection-is-cut"),
        # The LTS waits a minute for the rest of the chunk before anybody else may write.
        pytest.param(False, id="in-the-midst-of-a-chunk", marks=pytest.mark.long),
    ],
)
@pytest.mark.fault("a worker hangs, is given up for dead, and comes back", "what another one finished stays as it is")
async def test_a_worker_that_comes_back_too_late_does_no_harm(site: Site, *, cut: bool) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    with site.lts.hold(is_write, "in", 3 * CHUNK + 12_345, cut=cut) as hold:
        job = await site.archive(pid)
        await reached(hold)
        lab.stack.signal("worker-archival", signal.SIGSTOP)
    try:
        async with second_worker(lab):
            await site.good(job, within_s=180)
        before = await _world(lab, pid)
        said = lab.stack.log("worker-archival").stat().st_size
    finally:
        lab.stack.signal("worker-archival", signal.SIGCONT)

    async def came_to() -> bool:
        return lab.stack.log("worker-archival").stat().st_size > said

    await eventually(came_to)
    # A polite end: what it still had in its hands is brought to an end.
    await lab.stack.restart("worker-archival")

    assert await _world(lab, pid) == before
    assert await lab.uploads_on_lts(pid) == []
    assert await lab.landed(pid) == {}
    await _journal_is_right(lab, pid)
    assert await lab.unpacked(pid) == FILES


@pytest.mark.long
async def test_two_workers_on_one_datablock_do_no_harm(site: Site) -> None:
    """The one that hung comes back while the other is still writing."""
    lab = site.lab
    pid = await lab.dataset(FILES)
    with site.lts.hold(is_write, "in", 2 * CHUNK + 12_345, cut=True) as first:
        job = await site.archive(pid)
        await reached(first)
        lab.stack.signal("worker-archival", signal.SIGSTOP)
    try:
        async with second_worker(lab):
            with site.lts.hold(is_write, "in", 3 * CHUNK) as second:
                # Its silence is noticed after a few seconds, once for each task that it was handed meanwhile.
                await reached(second, within_s=90)
                lab.stack.signal("worker-archival", signal.SIGCONT)
            await site.good(job)
    finally:
        lab.stack.signal("worker-archival", signal.SIGCONT)

    await _journal_is_right(lab, pid)
    assert await lab.uploads_on_lts(pid) == []
    assert await lab.unpacked(pid) == FILES


async def _world(lab: Lab, pid: str) -> object:
    """What stands on the LTS, in SciCat, and in our manifests."""
    state, plan = await plan_of(lab, pid)
    manifests = [await state.manifest(pid, plan.digest, block.stem) for block in plan.blocks]
    return await lab.on_lts(pid), await lab.user.datablocks(pid), manifests


async def _journal_is_right(lab: Lab, pid: str) -> None:
    """A late segment may lie there, but no other digest than the manifest's."""
    state, plan = await plan_of(lab, pid)
    for block in plan.blocks:
        manifest = await state.manifest(pid, plan.digest, block.stem)
        journal = await state.journal(pid, plan.digest, block.stem)
        assert manifest
        assert journal.chunks == manifest.chunks[: len(journal.chunks)]
    assert names.archive_id(pid, plan.blocks[0].stem) in await lab.on_lts(pid)
