"""Writing a datablock: what the journal says is on the disk first, and a power cut costs only what it does not say."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.testing import ActivityEnvironment

from activities.tape import JOURNAL_CHUNKS, OpenBlock, OpenedBlock, TapeActivities, WriteBlock, WrittenBlock
from clients.lts.filesystem import UPLOADS, FilesystemStore
from clients.lts.protocol import LongTermStore
from clients.lts.residency import residency
from clients.s3_bulk import BulkObjects
from clients.s3_small import SmallObjects
from clients.s3_wire import Range
from clients.state import State
from domain.datablock import BlockPlan
from domain.errors import NoSpace
from domain.files import Member
from domain.manifest import Journal, Manifest, load_journal, load_manifest
from domain.names import raw_key
from tests import naive_datablock
from tests.fakes.lts import FakeLongTermStore
from tests.strategies import content

PID = "20.500.11935/block"
CHUNK = 4096
MEMBERS = tuple(Member(path=f"movie{n}.tif", size=50_000, etag="e", mtime_ns=0) for n in range(5))
PLAN = BlockPlan(pid=PID, index=1, count=1, chunk_bytes=CHUNK, members=MEMBERS)
TAR = naive_datablock.write(PLAN, {member.path: content(member) for member in MEMBERS})
ORDER = WriteBlock(pid=PID, plan_digest="p", index=1)


class Killed(Exception):
    """The process is gone: nothing is said, nothing is kept."""


class Share(FilesystemStore):
    """Knows what a power cut would leave, and dies, or is full, at a chunk."""

    def __init__(self, root: Path) -> None:
        (root / UPLOADS).mkdir(parents=True)
        super().__init__(root=root, residency=residency("sticky"), upload_lifetime=timedelta(days=1))
        self.root = root
        self.written: list[int] = []
        self.on_disk = 0
        self.ends_at: int | None = None
        self.end: Exception = Killed()

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        if self.ends_at is not None and offset >= self.ends_at:
            raise self.end
        super().write(upload_id, offset, data, sha256)
        self.written.append(offset)

    def sync(self, upload_id: str) -> None:
        super().sync(upload_id)
        self.on_disk = (self.root / UPLOADS / upload_id).stat().st_size

    def lose_power(self, upload_id: str) -> None:
        """Keep the size and lose the pages: what a journaling file system may leave."""
        file = self.root / UPLOADS / upload_id
        size = file.stat().st_size
        os.truncate(file, self.on_disk)
        os.truncate(file, size)


class Records:
    """The state bucket for one datablock."""

    def __init__(self, store: LongTermStore) -> None:
        self._store = store
        self.segments: dict[int, bytes] = {}
        self.data: bytes | None = None

    async def block(self, *_: object, pinned: bool = False) -> BlockPlan:
        return PLAN

    async def journal(self, *_: object) -> Journal:
        return load_journal([self.segments[first] for first in sorted(self.segments)])

    async def put_segment(self, _pid: str, _digest: str, _stem: str, first: int, data: bytes) -> None:
        self.segments.setdefault(first, data)
        if isinstance(self._store, Share):
            assert min(len((await self.journal()).chunks) * CHUNK, len(TAR)) <= self._store.on_disk

    async def drop_journal(self, *_: object) -> None:
        self.segments.clear()

    async def manifest(self, *_: object) -> Manifest | None:
        return None if self.data is None else load_manifest(self.data)

    async def put_manifest(self, _pid: str, _digest: str, _stem: str, data: bytes) -> None:
        self.data = data

    async def is_verified(self, *_: object) -> bool:
        return False


class Objects:
    """The landing zone."""

    async def read(self, _bucket: str, wanted: Iterable[Range]) -> None:
        for one in wanted:
            [member] = [member for member in MEMBERS if raw_key(PID, member.path) == one.key]
            one.into[:] = content(member)[one.offset : one.offset + len(one.into)]


class Writing:
    """The steps over a store."""

    def __init__(self, store: LongTermStore) -> None:
        self.records = Records(store)
        self._readers = ThreadPoolExecutor(2)
        self.steps = TapeActivities(
            store=store,
            objects=cast(BulkObjects, None),  # none of the members is large
            small=cast(SmallObjects, Objects()),
            landing_bucket="landing",
            state=cast(State, self.records),
            readers=self._readers,
            buffers=2,
        )

    async def open(self) -> str:
        opened: OpenedBlock = await self._run(
            self.steps.open_block, OpenBlock(pid=ORDER.pid, plan_digest=ORDER.plan_digest, index=ORDER.index)
        )
        return opened.upload_id

    async def write(self, upload_id: str) -> WrittenBlock:
        return await self._run(self.steps.write_block, ORDER.model_copy(update={"upload_id": upload_id}))

    async def _run(self, step: Any, order: object) -> Any:
        return await ActivityEnvironment().run(step, order)


@pytest.fixture
def share(tmp_path: Path) -> Share:
    return Share(tmp_path / "share")


async def test_a_power_cut_costs_what_was_not_in_the_journal(share: Share) -> None:
    writing = Writing(share)
    upload_id = await writing.open()
    share.ends_at = (JOURNAL_CHUNKS + 9) * CHUNK
    with pytest.raises(Killed):
        await writing.write(upload_id)
    share.lose_power(upload_id)
    share.ends_at, share.written = None, []

    assert (await writing.write(upload_id)).finished
    assert share.written[0] == JOURNAL_CHUNKS * CHUNK
    assert (share.root / PLAN.archive_id).read_bytes() == TAR
    manifest = await writing.records.manifest()
    assert manifest is not None
    assert len(manifest.chunks) == -(-len(TAR) // CHUNK)


async def test_a_full_share_is_told_and_what_is_there_is_journalled(share: Share) -> None:
    """All of it is durable before the journal says so, also on the way out."""
    writing = Writing(share)
    upload_id = await writing.open()
    share.ends_at, share.end = 12 * CHUNK, NoSpace("full")
    refused = (await writing.write(upload_id)).refused
    assert refused is not None
    assert refused.no_space
    journalled = len((await writing.records.journal()).chunks)
    assert journalled == 12
    share.lose_power(upload_id)
    share.ends_at, share.written = None, []
    assert (await writing.write(upload_id)).finished
    assert share.written[0] == journalled * CHUNK
    assert (share.root / PLAN.archive_id).read_bytes() == TAR


async def test_a_file_whose_manifest_is_older_than_itself_gets_its_name(share: Share) -> None:
    """The file was lost on the LTS and written anew; the writer died between its last byte and its name."""
    writing = Writing(share)
    assert (await writing.write(await writing.open())).finished
    await share.delete(PLAN.archive_id)
    upload_id = await writing.open()
    with pytest.MonkeyPatch.context() as patch:

        async def die(*_: object) -> None:
            raise Killed

        patch.setattr(share, "finish", die)
        with pytest.raises(Killed):
            await writing.write(upload_id)
    assert not (share.root / PLAN.archive_id).exists()
    assert (await writing.write(upload_id)).finished
    assert (share.root / PLAN.archive_id).read_bytes() == TAR


async def test_a_store_that_loses_nothing_is_not_written_to_twice() -> None:
    """What it acknowledged beyond the journal is read again for its digests and not sent."""
    store = FakeLongTermStore()
    writing = Writing(store)
    upload_id = await writing.open()
    sent: list[int] = []
    write = store.write

    def counting(upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        if len(sent) == JOURNAL_CHUNKS + 9:
            sent.append(-1)
            raise Killed
        write(upload_id, offset, data, sha256)
        sent.append(offset)

    store.write = counting
    with pytest.raises(Killed):
        await writing.write(upload_id)
    assert (await writing.write(upload_id)).finished
    sent.remove(-1)
    assert sent == list(range(0, len(TAR), CHUNK))
    assert bytes(store.files[PLAN.archive_id].bytes_) == TAR
