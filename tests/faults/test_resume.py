"""Processes that die at a byte, chosen at random, of a copy: the job ends well, and hardly anything moves twice.

What may move again is counted: on the LTS's line a chunk for each copy that was under way, on the landing zone's line
one file, what was journalled last, and what was being read ahead.
"""

import random

import pytest

from tests.faults.site import BUFFERS, CHUNK, Blow, Site, attempts_after, is_part, is_read, is_source, is_write, reached
from tests.lab import some_bytes

# Restarts take a second or two each; a dead worker is noticed by its silence.
pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(180)]

JOURNAL_CHUNKS = 32
FILE = 9_000_000
READ_AHEAD = BUFFERS * CHUNK


def seeds(quick: int, long: int) -> list[object]:
    """The first few for `make test`, the rest for `make test-long`."""
    return [*range(quick), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(quick, long))]


def files_of(count: int) -> dict[str, bytes]:
    return {f"movie{n:02}.tif": some_bytes(FILE, n) for n in range(count)}


async def tar_bytes(site: Site, pid: str) -> int:
    return sum((await site.lab.on_lts(pid)).values())


@pytest.mark.parametrize("seed", seeds(1, 8))
@pytest.mark.fault(
    "a worker is told to stop in the midst of a write",
    "gone within 10 s; another one goes on; nothing is written twice",
)
async def test_a_worker_that_is_told_to_stop_writes_nothing_twice(site: Site, seed: int) -> None:
    """Its journal is put on the way out, so all that is read again is the file that it stands in."""
    files = files_of(6)
    pid = await site.lab.dataset(files)
    places = sorted(random.Random(seed).randrange(len(files) * FILE - 2 * CHUNK) for _ in range(2))  # noqa: S311
    job = None
    for place in places:
        with site.lts.hold(is_write, "in", place - site.lts_written()) as hold:
            job = job or await site.archive(pid)
            await reached(hold)
            gone = await site.told_to_stop("worker-archival")
        await gone()
        await site.lab.stack.restart("worker-archival")
    assert job
    await site.good(job)

    # Only an attempt's last failure is told; none was given up for dead.
    assert await attempts_after(site.lab.archiving(pid), "write_block") == ["WorkerShutdown"]
    assert site.lts_written() == await tar_bytes(site, pid)
    assert site.source_read(pid) <= len(files) * FILE + len(places) * (FILE + READ_AHEAD)
    assert await site.lab.unpacked(pid) == files


@pytest.mark.parametrize("seed", seeds(1, 8))
@pytest.mark.fault(
    "a worker is killed in the midst of a write", "a chunk is written again, what was not journalled is read again"
)
async def test_a_killed_worker_loses_a_chunk_and_what_it_had_not_journalled(site: Site, seed: int) -> None:
    files = files_of(22)
    payload = len(files) * FILE
    pid = await site.lab.dataset(files)
    place = random.Random(seed).randrange((JOURNAL_CHUNKS + 1) * CHUNK, payload)  # noqa: S311
    job = await site.strike([Blow("worker-archival", is_write, "in", place)], lambda: site.archive(pid))
    await site.good(job)

    assert site.lts_written() <= await tar_bytes(site, pid) + CHUNK
    assert site.source_read(pid) - payload <= (place - JOURNAL_CHUNKS * CHUNK) + FILE + READ_AHEAD
    assert await site.lab.unpacked(pid) == files


@pytest.mark.parametrize("seed", seeds(1, 8))
@pytest.mark.fault("the LTS is killed in the midst of a write", "the worker goes on from its journal")
async def test_a_worker_that_lives_on_journals_what_it_had_done(site: Site, seed: int) -> None:
    """The LTS dies, not the worker: like one that is told to stop, it reads little again."""
    files = files_of(8)
    payload = len(files) * FILE
    pid = await site.lab.dataset(files)
    place = random.Random(seed).randrange(payload * 3 // 4, payload)  # noqa: S311
    job = await site.strike([Blow("lts", is_write, "in", place)], lambda: site.archive(pid))
    await site.good(job)

    assert site.lts_written() <= await tar_bytes(site, pid) + CHUNK
    assert site.source_read(pid) - payload <= FILE + READ_AHEAD
    assert await site.lab.unpacked(pid) == files


@pytest.mark.parametrize("seed", seeds(1, 12))
@pytest.mark.fault(
    "LTS, MinIO and Temporal are killed during an archive", "it ends well, and a chunk a kill moves twice"
)
async def test_an_archive_outlives_its_servers(site: Site, seed: int) -> None:
    """LTS, MinIO and Temporal die in some order under the same two datablocks."""
    files = files_of(8)
    payload = len(files) * FILE
    pid = await site.lab.dataset(files)
    chance = random.Random(seed)  # noqa: S311
    lts, minio, temporal = (
        Blow("lts", is_write, "in", chance.randrange(payload)),
        Blow("minio", is_source, "out", chance.randrange(payload)),
        Blow("temporal", is_write, "in", chance.randrange(payload)),
    )
    job = await site.strike([lts, minio, temporal], lambda: site.archive(pid, target_bytes=4 * FILE))
    await site.good(job, within_s=90)

    tars = await site.lab.on_lts(pid)
    assert len(tars) == 2
    assert site.lts_written() <= sum(tars.values()) + 3 * len(tars) * CHUNK
    # A journal cannot be put while MinIO is dead: all that had been read by then may be read again.
    assert site.source_read(pid) - payload <= 3 * len(tars) * (FILE + READ_AHEAD) + minio.place
    assert await site.lab.unpacked(pid) == files


@pytest.mark.parametrize("seed", seeds(1, 12))
@pytest.mark.fault("LTS, MinIO and Temporal are killed during a retrieval", "it ends well, and little is read twice")
async def test_a_retrieval_outlives_its_servers(site: Site, seed: int) -> None:
    files = files_of(8)
    pid = await site.lab.dataset(files)
    await site.good(await site.archive(pid, target_bytes=4 * FILE))
    tars = await site.lab.on_lts(pid)
    total = sum(tars.values())
    site.forget()
    chance = random.Random(seed)  # noqa: S311
    blows = [
        Blow("lts", is_read, "out", chance.randrange(total)),
        Blow("minio", is_part, "in", chance.randrange(total)),
        Blow("temporal", is_read, "out", chance.randrange(total)),
    ]
    job = await site.strike(blows, lambda: site.retrieve(pid))
    await site.good(job, within_s=90)

    in_hand = len(tars) * BUFFERS * CHUNK
    assert total <= site.lts_read() <= total + len(blows) * in_hand
    assert total <= site.delivered() <= total + len(blows) * in_hand
    assert await site.lab.unpacked(pid) == files
