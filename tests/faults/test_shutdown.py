"""Workers that are told to stop: gone within ten seconds whatever they are at; another one goes on where they stood."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from temporalio.client import WorkflowHandle

from tests.fakes.proxy import Direction
from tests.faults.site import BUFFERS, CHUNK, Site, attempts_after, is_part, is_read, is_write, reached
from tests.lab import some_bytes

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(180)]

FILES = {f"movie{n}.tif": some_bytes(9_000_000, n) for n in range(6)}
PLACE = 5 * CHUNK + 12_345

Work = tuple[str, Callable[[str], bool], Direction, str]
WRITE: Work = ("worker-archival", is_write, "in", "write_block")
VERIFICATION: Work = ("worker-retrieval", is_read, "out", "verify_block")
COPY: Work = ("worker-retrieval", is_part, "in", "copy_block")


async def begin(site: Site, work: Work) -> tuple[str, WorkflowHandle[object, object], Callable[[], Awaitable[str]]]:
    """A dataset, its workflow, and what submits the job."""
    pid = await site.lab.dataset(FILES)
    if work is not COPY:
        return pid, site.lab.archiving(pid), lambda: site.archive(pid)
    await site.good(await site.archive(pid))
    site.forget()
    return pid, site.lab.retrieving(pid), lambda: site.retrieve(pid)


@pytest.mark.parametrize(
    "work",
    [pytest.param(VERIFICATION, id="verification"), pytest.param(COPY, id="copy", marks=pytest.mark.long)],
)
@pytest.mark.fault(
    "a worker is told to stop in the midst of a verification or of a retrieval's copy",
    "gone within 10 s; another one goes on at once, and nothing is read twice",
)
async def test_a_worker_that_is_told_to_stop_hands_over_what_it_had_done(site: Site, work: Work) -> None:
    worker, about, direction, step = work
    pid, handle, submit = await begin(site, work)
    line = site.s3 if about is is_part else site.lts
    with line.hold(about, direction, PLACE) as hold:
        job = await submit()
        await reached(hold)
        gone = await site.told_to_stop(worker)
    await gone()
    await site.lab.stack.restart(worker)
    await site.good(job)

    assert await attempts_after(handle, step) == ["WorkerShutdown"]
    tar_bytes = sum((await site.lab.on_lts(pid)).values())
    assert tar_bytes <= site.lts_read() <= tar_bytes + CHUNK
    if work is COPY:
        assert tar_bytes <= site.delivered() <= tar_bytes + CHUNK
    assert await site.lab.unpacked(pid) == FILES


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(WRITE, id="write", marks=pytest.mark.long),
        pytest.param(VERIFICATION, id="verification", marks=pytest.mark.long),
        pytest.param(COPY, id="copy"),
    ],
)
@pytest.mark.fault(
    "a worker is told to stop while the LTS or S3 does not answer", "gone within 10 s; another one goes on at once"
)
async def test_a_worker_that_waits_for_an_answer_stops_all_the_same(site: Site, work: Work) -> None:
    worker, about, direction, step = work
    pid, handle, submit = await begin(site, work)
    line = site.s3 if about is is_part else site.lts
    with line.hold(about, direction, PLACE) as hold:
        job = await submit()
        await reached(hold)
        await (await site.told_to_stop(worker))()
    await site.lab.stack.restart(worker)
    await site.good(job)

    assert await attempts_after(handle, step) == ["WorkerShutdown"]
    tar_bytes = sum((await site.lab.on_lts(pid)).values())
    if work is WRITE:
        assert site.lts_written() <= tar_bytes + CHUNK
    # What was in its hands is read again.
    assert site.lts_read() <= tar_bytes + BUFFERS * CHUNK
    assert await site.lab.unpacked(pid) == FILES


@pytest.mark.long
@pytest.mark.fault("workers are told to stop while Temporal is away", "gone within 10 s; the next ones go on")
async def test_workers_stop_although_temporal_is_away(site: Site) -> None:
    lab = site.lab
    workers = ("worker-control", "worker-archival", "worker-retrieval")
    pid = await lab.dataset(FILES)
    with site.lts.hold(is_write, "in", PLACE) as hold:
        job = await site.archive(pid)
        await reached(hold)
        await lab.stack.kill("temporal")
        ends = [await site.told_to_stop(worker) for worker in workers]
        await asyncio.gather(*(gone() for gone in ends))
    # A process that ended because it was told to is no alarm, once it is started again.
    for name in workers:
        await lab.stack.kill(name)
    await lab.stack.restart("temporal")
    await asyncio.gather(*map(lab.stack.restart, workers))

    await site.good(job)
    assert await lab.unpacked(pid) == FILES
