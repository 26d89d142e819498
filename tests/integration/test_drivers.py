"""Every way to reach a long-term store through the whole story: archive, a worker that is killed, retrieve.

The servers are shared; each driver has a worker of its own, and a share has the stand-in for a tape system beside it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from temporalio.service import RPCError

from cli import stack_environment
from cli.ports import Ports
from cli.processes import Child
from cli.stack import SERVERS, Stack
from clients.lts.filesystem import UPLOADS
from clients.state import State
from tests.fakes.hsm import keeps_access_times
from tests.fakes.proxy import CountingProxy
from tests.faults.site import BUFFERS, CHUNK, Site, is_source, reached
from tests.lab import QUICK, eventually, some_bytes, visit

# Restarts take a second or two each; a dead worker is noticed by its silence.
pytestmark = [pytest.mark.xdist_group("drivers"), pytest.mark.timeout(180)]

FILE = 6_000_000
FILES = {f"movie{n}.tif": some_bytes(FILE, n) for n in range(12)}
PAYLOAD = FILE * len(FILES)
READ_AHEAD = BUFFERS * CHUNK
HELD_AT = READ_AHEAD + 3 * CHUNK
"""Bytes that have left the landing zone when a writer is ended: a few chunks have reached the LTS by then."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Stack, CountingProxy]]:
    """All but the workers, with a line to S3 that can be held."""
    ports, own = Ports.free(), Ports.free()
    with CountingProxy(own.minio, ports.minio).running() as s3:
        settings = QUICK | {"S3_ENDPOINT": s3.url, "LTS_CHUNK_BYTES": str(CHUNK)}
        stack = Stack(tmp_path_factory.mktemp("drivers"), ports, settings, services=(*SERVERS, "api"))
        asyncio.run(stack.start())
        try:
            yield stack, s3
        finally:
            asyncio.run(stack.stop())


@pytest.fixture
async def site(servers: tuple[Stack, CountingProxy]) -> AsyncGenerator[Site]:
    stack, s3 = servers
    async with visit(stack) as lab:
        s3.forget()
        yield Site(lab, s3, s3)


class Workers:
    """Two processes that reach the LTS by one driver; the one that writes may be ended and started again."""

    def __init__(self, site: Site, settings: Mapping[str, str]) -> None:
        stack = site.lab.stack
        told = QUICK | {"S3_ENDPOINT": site.s3.url, "LTS_CHUNK_BYTES": str(CHUNK)} | dict(settings)
        environment = stack_environment.for_ours(stack.ports, stack.folder / "secrets", told)

        def child(name: str, *queues: str) -> Child:
            options = [word for queue in queues for word in ("--queue", queue)]
            command = [sys.executable, "-P", "-m", "worker", *options]
            return Child(name, command, environment, stack.folder, stack.folder / "logs" / f"{name}.log")

        self.writer = child("writer", "archival")
        self.others = child("others", "control", "retrieval")

    async def __aenter__(self) -> Self:
        """Start both."""
        self.writer.start()
        self.others.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop both."""
        await asyncio.gather(self.writer.stop(grace_s=15), self.others.stop(grace_s=15))


@asynccontextmanager
async def tape_system(folder: Path) -> AsyncGenerator[Path]:
    """A share behind which files go to tape and leave the disk by themselves."""
    if not keeps_access_times(folder):
        pytest.skip("the stand-in for a tape system needs access times, which this file system does not keep")
    share, log = folder / "share", folder / "hsm.log"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fakes.hsm", str(share), str(folder / "vault"), "sticky"]
    child = Child("hsm", command, {**os.environ, "PYTHONPATH": str(root)}, folder, log)
    child.start()
    try:
        await eventually(lambda: _exists(share / UPLOADS))
        yield share
        child.check()
    finally:
        await child.stop(grace_s=5)


async def _exists(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240 - a local folder


async def test_a_share_is_waited_for_archives_goes_on_after_a_kill_and_retrieves(site: Site, tmp_path: Path) -> None:
    async with tape_system(tmp_path) as share:
        settings = {"LTS_DRIVER": "filesystem", "LTS_PATH": str(share), "LTS_RESIDENCY": "sticky"}
        settings["LTS_FREE_SPACE_PERCENTAGE"] = "0"  # the disk that the tests run on may be as full as it likes
        pid = await site.lab.dataset(FILES)
        async with Workers(site, settings) as workers:
            with site.s3.hold(is_source, "out", HELD_AT) as hold:
                unmounted = share.rename(share.with_name("unmounted"))
                share.mkdir()
                job = await site.archive(pid)
                await _complaint(site, pid, "is not mounted there")
                share.rmdir()
                unmounted.rename(share)

                await reached(hold)
                # Told to stop it makes durable what it has, and says so in the journal.
                stopping = asyncio.create_task(workers.writer.stop(grace_s=15))
                await asyncio.sleep(0.2)
                hold.let_go()
                await stopping
            journalled = await _journalled(site, pid)
            assert journalled >= 2 * CHUNK
            workers.writer.start()
            with site.s3.hold(is_source, "out", HELD_AT, cut=True) as hold:
                # The longer nothing was mounted, the longer is the pause before this try.
                await reached(hold, within_s=60)
                assert _upload(share).stat().st_size > journalled
                await workers.writer.kill()
            site.s3.forget()
            workers.writer.start()
            await site.good(job, within_s=90)

            # What was journalled is not read again, but for the file in which the journal ends.
            assert site.source_read(pid) <= PAYLOAD - journalled + FILE
            assert list((share / UPLOADS).iterdir()) == []
            stored = _stored(share)
            blocks = await site.lab.user.datablocks(pid)
            assert {block["archiveId"]: block["packedSize"] for block in blocks} == stored
            assert await site.lab.landed(pid) == {}

            # By then the bytes are on tape only.
            async def all_gone() -> bool:
                return all((share / path).stat().st_blocks == 0 for path in stored)

            await eventually(all_gone)
            assert await site.lab.unpacked(pid) == FILES


@pytest.mark.long
async def test_a_store_without_tus_archives_begins_anew_after_a_kill_and_retrieves(site: Site) -> None:
    pid = await site.lab.dataset(FILES)
    async with Workers(site, {"LTS_WRITE": "put"}) as workers:
        with site.s3.hold(is_source, "out", HELD_AT, cut=True) as hold:
            job = await site.archive(pid)
            await reached(hold)
            await workers.writer.kill()
        assert await site.lab.on_lts(pid) == {}
        workers.writer.start()
        await site.good(job, within_s=90)

        stored = await site.lab.on_lts(pid)
        requests = (await site.lab.lts("GET", "/admin/requests")).json()["paths"]
        [received] = [requests[path]["received"] for path in stored]
        [size] = stored.values()
        assert size + CHUNK <= received <= size + HELD_AT
        assert await site.lab.uploads_on_lts(pid) == []
        assert await site.lab.landed(pid) == {}
        assert await site.lab.unpacked(pid) == FILES


async def _complaint(site: Site, pid: str, words: str) -> None:
    """Wait until a step of the dataset's archive has failed with these words."""

    async def said() -> bool:
        with suppress(RPCError):  # before it has begun
            seen = await site.lab.archiving(pid).describe()
            return any(words in one.last_failure.message for one in seen.raw_description.pending_activities)
        return False

    await eventually(said)


def _upload(share: Path) -> Path:
    [upload] = (share / UPLOADS).iterdir()
    return upload


def _stored(share: Path) -> dict[str, int]:
    found = [path for path in share.rglob("*.tar") if path.is_file()]
    return {str(path.relative_to(share)): path.stat().st_size for path in found}


async def _journalled(site: Site, pid: str) -> int:
    """Bytes whose digests are in the journal."""
    state = State(site.lab.objects, site.lab.stack.settings.s3_state_bucket)
    [digest] = (await state.index(pid)).plans
    [block] = (await state.plan(pid, digest)).blocks
    return len((await state.journal(pid, digest, block.stem)).chunks) * CHUNK
