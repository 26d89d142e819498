"""What `clients/lts/protocol.py` promises, asked of every driver before something that behaves like tape.

How stores may differ stands in `Library`; a new driver is one more library.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from clients.lts.filesystem import FilesystemStore
from clients.lts.http import HttpLongTermStore
from clients.lts.http_put import HttpPutStore
from clients.lts.protocol import (
    ChunkRefused,
    FileAbsent,
    FileStat,
    Listable,
    Locality,
    LongTermStore,
    Nearline,
    NearlineStore,
    OffsetMismatch,
    Recalled,
    RecallGone,
    RecallState,
    Space,
    UploadGone,
    WriteOnce,
)
from clients.lts.residency import residency
from domain.errors import Busy, Damaged, Misconfigured, NoSpace, TapeUnavailable, TooLarge
from tests.fakes.canned import Canned, CannedServer
from tests.fakes.hsm import Hsm, keeps_access_times
from tests.fakes.lts import FakeLongTermStore
from tests.fakes.processes import ServerProcess, free_port

TOKEN = "token-of-tests"
HOUR = timedelta(hours=1)
KIB = 1024

# linux/fs.h
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10

AWKWARD = [
    "with space.tar",
    "plus+plus.tar",
    "100%.tar",
    "percent%41.tar",
    "quote'double\".tar",
    "amp&less<more>.tar",
    "ünïcödé/試料.tar",
    "hash#question?semi;colon:at@comma,.tar",
]

Store = FakeLongTermStore | HttpLongTermStore | FilesystemStore


class Library:
    """The store under test, what its operator can do, and what it cannot."""

    store: Store
    folder: str

    resumes = True
    """A write goes on after what was synced."""
    knows_uploads = True
    """An upload has a record of its own: the store can say that it is gone."""
    checks_chunks = True
    """A chunk that was damaged on its way is refused."""
    overwrites = True
    """A new file may take another one's path."""
    knows_recalls = True
    """A recall has a record of its own, which pins its files and ends when it is cancelled."""
    shows_both = True
    """A file that is on tape and on disk is told from one that is on disk only."""
    counts_space = True
    """Nobody else fills it."""

    def hold_migration(self) -> None:
        """Let files stay off the tape."""
        raise NotImplementedError

    def migrate(self) -> None:
        """Copy all files to tape."""
        raise NotImplementedError

    def evict(self) -> None:
        """Take all files off the disk that are on tape and not pinned."""
        raise NotImplementedError

    def worm(self, on: bool) -> None:
        """Switch write-once on or off."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing behind."""

    def path(self, name: str = "a.tar") -> str:
        """A path that no other test uses."""
        return f"{self.folder}/{name}"

    async def put(self, path: str, data: bytes, chunk: int = KIB) -> None:
        """Write a whole file."""
        upload_id = await self.store.open_write(path, len(data))
        for offset in range(0, len(data), chunk):
            write(self.store, upload_id, offset, data[offset : offset + chunk])
        await self.store.finish(upload_id, path, len(data))


class FakeLibrary(Library):
    def __init__(self) -> None:
        self.store = self._fake = FakeLongTermStore(capacity_bytes=40_000_000, migrates=True, recalls=True)
        self.folder = str(uuid4())

    def hold_migration(self) -> None:
        self._fake.migrates = False

    def migrate(self) -> None:
        self._fake.migrate()

    def evict(self) -> None:
        self._fake.evict()

    def worm(self, on: bool) -> None:
        self._fake.worm = on


class HttpLibrary(Library):
    """Behind a stand-in process whose library works instantly."""

    def __init__(self, server: ServerProcess, driver: type[HttpLongTermStore] = HttpLongTermStore) -> None:
        self.store = driver(endpoint=server.url, token=TOKEN)
        self.folder = str(uuid4())
        self._operator = httpx.Client(
            base_url=f"{server.url}/admin", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
        )

    def order(self, method: str, resource: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._operator.request(method, resource, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def fault(self, kind: str, **details: Any) -> None:
        self.order("POST", "/faults", {"kind": kind, **details})

    def hold_migration(self) -> None:
        self.fault("hold_migration")

    def migrate(self) -> None:
        self.order("DELETE", "/faults")
        self.order("POST", "/migrate")

    def evict(self) -> None:
        self.order("POST", "/evict", {})

    def worm(self, on: bool) -> None:
        self.order("POST", "/worm", {"on": on})

    def close(self) -> None:
        self.order("DELETE", "/faults")
        self.worm(False)
        self._operator.close()


class HttpPutLibrary(HttpLibrary):
    resumes = knows_uploads = checks_chunks = overwrites = False

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(server, HttpPutStore)


class ShareLibrary(Library):
    """A folder with a tape system behind it."""

    checks_chunks = overwrites = knows_recalls = counts_space = False

    def __init__(self, root: Path, mark: str, *, refuses_stubs: bool) -> None:
        self.shows_both = mark != "blocks"
        self._root, self._kept = root / "share", False
        self.hsm = Hsm(self._root, root / "vault", mark)
        self.hsm.start()
        self.store = FilesystemStore(
            root=self._root,
            residency=residency(mark),
            upload_lifetime=timedelta(days=1),
            open_file=self.hsm.open if refuses_stubs else os.open,
        )
        self.folder = str(uuid4())

    def hold_migration(self) -> None:
        """It waits to be told."""

    def migrate(self) -> None:
        self.hsm.migrate()

    def evict(self) -> None:
        self.hsm.evict()

    def worm(self, on: bool) -> None:
        self._kept = on
        keep_for_ever(self._root / self.folder, on)

    def close(self) -> None:
        self.hsm.stop()
        if self._kept:
            self.worm(False)


def keep_for_ever(folder: Path, on: bool) -> None:
    """As a share with retention does it: what is there stays, new files may come. Only root may, and not everywhere."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            try:
                [flags] = struct.unpack("i", fcntl.ioctl(file, _GET_FLAGS, struct.pack("i", 0)))
                changed = flags | _IMMUTABLE if on else flags & ~_IMMUTABLE
                fcntl.ioctl(file, _SET_FLAGS, struct.pack("i", changed))
            except OSError as error:
                pytest.skip(f"files cannot be made immutable here: {error.strerror}")


STORES: dict[str, Callable[[pytest.FixtureRequest], Library]] = {
    "fake": lambda request: FakeLibrary(),
    "http-tus": lambda request: HttpLibrary(_server(request)),
    "http-put": lambda request: HttpPutLibrary(_server(request)),
    "filesystem-sticky": lambda request: ShareLibrary(_folder(request), "sticky", refuses_stubs=False),
    "filesystem-blocks": lambda request: ShareLibrary(_folder(request), "blocks", refuses_stubs=True),
    "filesystem-xattr": lambda request: ShareLibrary(_folder(request), "xattr:user.migrated", refuses_stubs=False),
}


def _server(request: pytest.FixtureRequest) -> ServerProcess:
    return cast(ServerProcess, request.getfixturevalue("lts_server"))


def _folder(request: pytest.FixtureRequest) -> Path:
    folder = cast(Path, request.getfixturevalue("tmp_path"))
    if not keeps_access_times(folder):
        pytest.skip("the stand-in for a tape system needs access times, which this file system does not keep")
    return folder


@pytest.fixture(params=STORES)
async def library(request: pytest.FixtureRequest) -> AsyncIterator[Library]:
    library: Library = STORES[request.param](request)
    yield library
    library.close()
    await library.store.aclose()


@pytest.fixture
async def http(lts_server: ServerProcess) -> AsyncIterator[HttpLibrary]:
    library = HttpLibrary(lts_server)
    yield library
    library.close()
    await library.store.aclose()


def write(store: LongTermStore, upload_id: str, offset: int, data: bytes) -> None:
    store.write(upload_id, offset, memoryview(data), hashlib.sha256(data).digest())


def read(store: LongTermStore, path: str, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    store.read_range(path, offset, memoryview(buffer))
    return bytes(buffer)


async def recalled(library: Library, recall_id: str, paths: Sequence[str]) -> dict[str, RecallState]:
    """States once nothing is waited for any more; the library needs a moment even when it is instantaneous."""
    found: dict[str, RecallState] = {}
    for _ in range(1000):
        found = {entry.path: entry.state for entry in await library.store.recall_state(recall_id, paths)}
        if RecallState.WAITING not in found.values():
            return found
        await asyncio.sleep(0.005)
    raise AssertionError(found)


async def leave_the_disk(library: Library, *paths: str) -> None:
    """Nothing pins these files any more. Where a recall is a read, one that had begun may bring them back once."""
    for _ in range(1 if library.knows_recalls else 200):
        library.evict()
        if set((await library.store.localities(paths)).values()) == {Locality.TAPE}:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(await library.store.localities(paths))


def both(library: Library) -> Locality:
    return Locality.DISK_AND_TAPE if library.shows_both else Locality.DISK


# --- what a store can do ----------------------------------------------------------------------------------------------


def test_all_powers(library: Library) -> None:
    for power in (LongTermStore, NearlineStore, Listable, Space):
        assert isinstance(library.store, power)


# --- writing ----------------------------------------------------------------------------------------------------------


async def test_a_file_appears_whole_when_it_is_finished(library: Library) -> None:
    store, path = library.store, library.path()
    upload_id = await store.open_write(path, 2500)
    assert await store.write_offset(upload_id) == 0
    write(store, upload_id, 0, b"a" * 1000)
    write(store, upload_id, 1000, b"b" * 1000)
    assert await store.stat(path) is None
    with pytest.raises(FileAbsent):
        read(store, path, 0, 1)
    write(store, upload_id, 2000, b"c" * 500)
    for _ in range(2):
        await store.finish(upload_id, path, 2500)
    found = await store.stat(path)
    assert found is not None
    assert found.size_bytes == 2500
    assert read(store, path, 990, 20) == b"a" * 10 + b"b" * 10
    assert read(store, path, 0, 2500) == b"a" * 1000 + b"b" * 1000 + b"c" * 500
    # A store may forget what is finished; if it remembers, it says so.
    with contextlib.suppress(UploadGone):
        assert await store.write_offset(upload_id) == 2500


async def test_a_write_goes_on_after_what_was_synced(library: Library) -> None:
    store, path = library.store, library.path()
    upload_id = await store.open_write(path, 30)
    write(store, upload_id, 0, b"0123456789")
    store.sync(upload_id)
    write(store, upload_id, 10, b"abcdefghij")
    offset = await store.write_offset(upload_id, 10)
    assert offset in ((10, 20) if library.resumes else (0,))
    content = b"0123456789abcdefghij0123456789"
    write(store, upload_id, offset, content[offset:])
    await store.finish(upload_id, path, 30)
    assert read(store, path, 0, 30) == content


async def test_two_writers_of_the_same_bytes_do_no_harm(library: Library) -> None:
    """One of them was given up for dead; whatever the store tells either of them, one file comes of it."""
    store, path, content = library.store, library.path(), b"0123456789abcdefghij"
    upload_id = await store.open_write(path, 20)
    write(store, upload_id, 0, content[:10])
    store.sync(upload_id)
    offset = await store.write_offset(upload_id, 10)
    write(store, upload_id, offset, content[offset:])
    await store.finish(upload_id, path, 20)
    with contextlib.suppress(UploadGone, OffsetMismatch, TapeUnavailable, NoSpace):
        write(store, upload_id, 10, content[10:])
    with contextlib.suppress(UploadGone):
        await store.write_offset(upload_id, 10)
    await store.finish(upload_id, path, 20)
    assert read(store, path, 0, 20) == content
    assert await store.list(library.folder) == {path: 20}


async def test_a_large_store_is_listed_a_few_files_at_a_time(library: Library) -> None:
    """In the order of whole paths: a folder's files come where its name and a slash sort."""
    paths = sorted(
        library.path(name) for name in ("a-1.tar", "a/1.tar", "a/b/2.tar", "a/z.tar", "a.tar", "b/3.tar", "é")
    )
    for path in reversed(paths):
        await library.put(path, b"x")
    found: list[str] = []
    while page := await library.store.list(library.folder, after=found[-1] if found else "", limit=2):
        assert len(page) <= 2
        found += page
    assert found == paths
    assert [*await library.store.list(library.folder)] == paths
    behind = library.path("a/") + chr(0x10FFFF)
    assert [*await library.store.list(library.folder, after=behind)] == [path for path in paths if path > behind]


async def test_a_chunk_of_full_size_passes(library: Library) -> None:
    data = bytes(range(256)) * (16 * 4 * KIB)
    await library.put(library.path(), data, chunk=len(data))
    assert read(library.store, library.path(), 0, len(data)) == data


@pytest.mark.parametrize("name", AWKWARD)
async def test_awkward_names(library: Library, name: str) -> None:
    path = library.path(name)
    await library.put(path, b"content")
    assert read(library.store, path, 3, 4) == b"tent"
    assert await library.store.list(library.folder) == {path: 7}
    assert set(await library.store.localities([path])) == {path}
    await library.store.delete(path)
    assert await library.store.stat(path) is None


async def test_a_chunk_elsewhere_than_at_the_offset_is_told(library: Library) -> None:
    store = library.store
    upload_id = await store.open_write(library.path(), 30)
    write(store, upload_id, 0, b"0123456789")
    with pytest.raises(OffsetMismatch):
        write(store, upload_id, 15, b"0123456789")
    # What is there already may be taken again.
    for offset in (0, 5):
        with contextlib.suppress(OffsetMismatch):
            write(store, upload_id, offset, b"0123456789"[offset:])
    write(store, upload_id, 10, b"0123456789abcdefghij")
    await store.finish(upload_id, library.path(), 30)
    assert read(store, library.path(), 0, 30) == b"01234567890123456789abcdefghij"


async def test_a_damaged_chunk_is_refused_where_the_store_looks_at_its_digest(library: Library) -> None:
    store = library.store
    upload_id = await store.open_write(library.path(), 30)
    write(store, upload_id, 0, b"0123456789")
    if not library.checks_chunks:
        # Nobody at the other end looks: it is found when the file is read back.
        store.write(upload_id, 10, memoryview(b"damaged..."), hashlib.sha256(b"as it was.").digest())
        return
    with pytest.raises(ChunkRefused):
        store.write(upload_id, 10, memoryview(b"damaged..."), hashlib.sha256(b"as it was.").digest())
    assert await store.write_offset(upload_id) == 10
    write(store, upload_id, 10, b"0123456789")


async def test_an_aborted_upload_is_gone(library: Library) -> None:
    store, path = library.store, library.path()
    upload_id = await store.open_write(path, 30)
    write(store, upload_id, 0, b"0123456789")
    for _ in range(2):
        await store.abort(upload_id)
    with pytest.raises(UploadGone if library.knows_uploads else OffsetMismatch):
        write(store, upload_id, 10, b"0123456789")
    if library.knows_uploads:
        with pytest.raises(UploadGone):
            await store.write_offset(upload_id)
    assert await store.stat(path) is None


async def test_an_unknown_upload_is_gone(library: Library) -> None:
    other = await library.store.open_write(library.path(), 10)
    unknown = other[:-4] + "0000"
    await library.store.abort(unknown)
    for upload_id in (unknown, "of another store") if library.knows_uploads else ("of another store",):
        with pytest.raises(UploadGone):
            await library.store.write_offset(upload_id)
        with pytest.raises(UploadGone):
            write(library.store, upload_id, 0, b"x")


async def test_a_file_is_replaced_at_once_or_not_at_all(library: Library) -> None:
    store, path = library.store, library.path()
    await library.put(path, b"before")
    if not library.overwrites:
        with pytest.raises(WriteOnce):
            await store.open_write(path, 5)
        return
    upload_id = await store.open_write(path, 5)
    write(store, upload_id, 0, b"aft")
    assert read(store, path, 0, 6) == b"before"
    write(store, upload_id, 3, b"er")
    assert read(store, path, 0, 5) == b"after"


async def test_finishing_looks_whether_the_file_is_there(library: Library) -> None:
    store, path = library.store, library.path()
    upload_id = await store.open_write(path, 10)
    with pytest.raises(TapeUnavailable):
        await store.finish(upload_id, path, 10)
    write(store, upload_id, 0, b"0123456789")
    await store.finish(upload_id, path, 10)
    with pytest.raises(Damaged):
        await store.finish(upload_id, path, 11)


async def test_what_does_not_fit_is_told(library: Library) -> None:
    async def fill() -> None:
        upload_id = await library.store.open_write(library.path(), 1 << 50)
        for n in range(1000):
            # At once, or while the first bytes are on their way.
            write(library.store, upload_id, n * KIB, b"x" * KIB)
            await asyncio.sleep(0.005)

    with pytest.raises(NoSpace):
        await fill()


# --- reading, deleting ------------------------------------------------------------------------------------------------


async def test_an_absent_file(library: Library) -> None:
    path = library.path()
    assert await library.store.stat(path) is None
    with pytest.raises(FileAbsent):
        read(library.store, path, 0, 1)
    for _ in range(2):
        await library.store.delete(path)


async def test_a_range_beyond_the_end_is_damage(library: Library) -> None:
    await library.put(library.path(), b"0123456789")
    for offset in (5, 10):
        with pytest.raises((Damaged, TapeUnavailable)):
            read(library.store, library.path(), offset, 10)
    assert read(library.store, library.path(), 10, 0) == b""


async def test_a_write_once_store_keeps_what_it_has(library: Library) -> None:
    path = library.path()
    await library.put(path, b"kept")
    library.worm(True)
    with pytest.raises(WriteOnce):
        await library.store.open_write(path, 4)
    with pytest.raises(WriteOnce):
        await library.store.delete(path)
    await library.store.delete(library.path("absent.tar"))
    await library.put(library.path("new.tar"), b"new")
    assert read(library.store, path, 0, 4) == b"kept"


# --- tape -------------------------------------------------------------------------------------------------------------


async def test_a_file_goes_to_tape_and_leaves_the_disk(library: Library) -> None:
    store, path = library.store, library.path()
    library.hold_migration()
    await library.put(path, b"0123456789")
    assert await store.stat(path) == FileStat(10, Locality.DISK)
    library.migrate()
    assert await store.stat(path) == FileStat(10, both(library))
    library.evict()
    assert await store.stat(path) == FileStat(10, Locality.TAPE)
    with pytest.raises(Nearline):
        read(store, path, 0, 1)


async def test_localities_leave_absent_files_out(library: Library) -> None:
    first, second = library.path("1.tar"), library.path("2.tar")
    await library.put(first, b"1")
    library.migrate()
    library.evict()
    await library.put(second, b"2")
    library.migrate()
    found = await library.store.localities([first, library.path("absent.tar"), second])
    assert found == {first: Locality.TAPE, second: both(library)}
    assert await library.store.localities([]) == {}


async def test_a_recall_brings_back_and_pins(library: Library) -> None:
    store = library.store
    cold, warm, absent = library.path("cold.tar"), library.path("warm.tar"), library.path("absent.tar")
    await library.put(cold, b"cold")
    library.migrate()
    library.evict()
    await library.put(warm, b"warm")
    library.migrate()
    recall_id = await store.request_recall([cold, warm, absent], HOUR)
    asked = [cold, warm, absent]
    found = await recalled(library, recall_id, asked)
    assert found == {cold: RecallState.ONLINE, warm: RecallState.ONLINE, absent: RecallState.FAILED}
    [failed] = [entry for entry in await store.recall_state(recall_id, asked) if entry.path == absent]
    assert failed.error
    if library.knows_recalls:
        library.evict()
    assert read(store, cold, 0, 4) == b"cold"
    for _ in range(2):
        await store.release(recall_id, [cold, warm])
    await leave_the_disk(library, cold, warm)


async def test_a_cancelled_recall_is_gone_with_its_pins(library: Library) -> None:
    store, path = library.store, library.path()
    await library.put(path, b"x")
    library.migrate()
    recall_id = await store.request_recall([path], HOUR)
    for _ in range(2):
        await store.cancel(recall_id)
    if library.knows_recalls:
        with pytest.raises(RecallGone):
            await store.recall_state(recall_id)
    await leave_the_disk(library, path)


async def test_releasing_the_unknown_is_fine(library: Library) -> None:
    await library.store.release(str(uuid4()), [library.path()])
    recall_id = await library.store.request_recall([library.path()], HOUR)
    await library.store.release(recall_id, [library.path("other.tar"), library.path("another.tar")])


# --- listing, space ---------------------------------------------------------------------------------------------------


async def test_listing_goes_below_a_folder(library: Library) -> None:
    names = ["a/1.tar", "a/deeper/still/2.tar", "ab/3.tar", "4.tar"]
    for size, name in enumerate(names, start=1):
        await library.put(library.path(name), b"x" * size)
    await library.store.open_write(library.path("a/open.tar"), 10)
    list_ = library.store.list
    assert await list_(library.folder) == {library.path(name): size for size, name in enumerate(names, start=1)}
    for prefix in (library.path("a"), library.path("a/")):
        assert await list_(prefix) == {library.path("a/1.tar"): 1, library.path("a/deeper/still/2.tar"): 2}
    assert await list_(library.path("nothing")) == {}


async def test_space_is_used_by_files(library: Library) -> None:
    before = await library.store.space()
    await library.put(library.path(), b"x" * 5000)
    after = await library.store.space()
    if not library.counts_space:
        assert min(before.used_bytes, before.available_bytes, after.used_bytes, after.available_bytes) > 0
        return
    assert after.used_bytes - before.used_bytes == 5000
    assert before.available_bytes - after.available_bytes == 5000


# --- the HTTP driver: what goes wrong on the way ----------------------------------------------------------------------


async def test_a_refused_token_is_ours_to_mend_and_not_shown(lts_server: ServerProcess) -> None:
    store = HttpLongTermStore(endpoint=lts_server.url, token="wrong-token")
    refused: list[str] = []
    for call in (store.open_write("a.tar", 1), store.stat("a.tar"), store.space(), store.localities(["a.tar"])):
        with pytest.raises(Misconfigured) as caught:
            await call
        refused.append(str(caught.value))
    for blocking in (lambda: read(store, "a.tar", 0, 1), lambda: write(store, "/uploads/a", 0, b"x")):
        with pytest.raises(Misconfigured) as caught:
            blocking()
        refused.append(str(caught.value))
    await store.aclose()
    assert not [text for text in refused if "wrong-token" in text]


@pytest.mark.parametrize(("status", "error"), [(429, Busy), (503, Busy), (507, NoSpace)])
async def test_how_long_the_store_asks_to_wait_is_told(http: HttpLibrary, status: int, error: type[Busy]) -> None:
    path = http.path()
    upload_id = await http.store.open_write(path, 1)
    # The tape API is looked for before the first of its calls.
    await http.store.localities([path])
    for call in (lambda: http.store.open_write(path, 1), lambda: http.store.request_recall([path], HOUR)):
        http.fault("status", status=status, retry_after_s=17)
        with pytest.raises(error) as caught:
            await call()
        assert caught.value.retry_after_s == 17
    http.fault("status", status=status, retry_after_s=18)
    with pytest.raises(error) as caught:
        write(http.store, upload_id, 0, b"x")
    assert caught.value.retry_after_s == 18


async def test_what_never_fits_is_told_apart_from_what_does_not_fit_now(http: HttpLibrary) -> None:
    with pytest.raises(TooLarge):
        await http.store.open_write(http.path(), 1 << 50)


@pytest.mark.parametrize(("status", "error"), [(503, TapeUnavailable), (429, Busy), (507, NoSpace)])
async def test_statuses_that_may_pass(http: HttpLibrary, status: int, error: type[Exception]) -> None:
    path = http.path()
    await http.put(path, b"x")
    upload_id = await http.store.open_write(http.path("b.tar"), 1)
    for call in (
        lambda: http.store.open_write(path, 1),
        lambda: http.store.write_offset(upload_id),
        lambda: http.store.stat(path),
        lambda: http.store.list(http.folder),
        lambda: http.store.localities([path]),
        lambda: http.store.request_recall([path], HOUR),
        lambda: http.store.delete(path),
    ):
        http.fault("status", status=status)
        with pytest.raises(error):
            await call()
    for blocking in (lambda: read(http.store, path, 0, 1), lambda: write(http.store, upload_id, 0, b"x")):
        http.fault("status", status=status)
        with pytest.raises(error):
            blocking()
    write(http.store, upload_id, 0, b"x")


async def test_a_chunk_damaged_on_its_way_is_refused(http: HttpLibrary) -> None:
    path = http.path()
    upload_id = await http.store.open_write(path, 100)
    http.fault("corrupt_in_flight", direction="in", path=path, offset=50)
    with pytest.raises(ChunkRefused):
        write(http.store, upload_id, 0, b"x" * 100)
    write(http.store, upload_id, await http.store.write_offset(upload_id), b"x" * 100)


async def test_a_cut_write_goes_on_where_the_store_stands(http: HttpLibrary) -> None:
    path, data = http.path(), bytes(range(256)) * 8 * KIB
    upload_id = await http.store.open_write(path, len(data))
    http.fault("cut", direction="in", path=path, after_bytes=1 << 20)
    with pytest.raises(TapeUnavailable):
        write(http.store, upload_id, 0, data)
    offset = await http.store.write_offset(upload_id)
    write(http.store, upload_id, offset, data[offset:])
    assert read(http.store, path, 0, len(data)) == data


async def test_one_cut_read_is_repeated_and_two_are_told(http: HttpLibrary) -> None:
    path, data = http.path(), bytes(range(256)) * 8 * KIB
    await http.put(path, data, chunk=len(data))
    http.fault("cut", direction="out", path=path, after_bytes=1 << 20)
    assert read(http.store, path, 0, len(data)) == data
    http.fault("cut", direction="out", path=path, after_bytes=1 << 20, count=2)
    with pytest.raises(TapeUnavailable):
        read(http.store, path, 0, len(data))


async def test_echoed_paths_without_their_prefix_are_recognised(http: HttpLibrary) -> None:
    paths = [http.path("1.tar"), http.path("2.tar")]
    for path in paths:
        await http.put(path, b"x")
    http.fault("strip_prefix", prefix=f"/{http.folder}")
    store = cast(HttpLongTermStore, http.store)
    assert set(await store.localities(paths)) == set(paths)
    recall_id = await store.request_recall(paths, HOUR)
    assert {entry.path for entry in await store.recall_state(recall_id, paths)} == set(paths)


async def test_a_restarted_store_goes_on(own_lts: Callable[..., ServerProcess]) -> None:
    server = own_lts()
    store = HttpLongTermStore(endpoint=server.url, token=TOKEN)
    upload_id = await store.open_write("a.tar", 20)
    write(store, upload_id, 0, b"0123456789")
    server.stop(kill=True)
    with pytest.raises(TapeUnavailable):
        await store.write_offset(upload_id)
    with pytest.raises(TapeUnavailable):
        write(store, upload_id, 10, b"0123456789")
    with pytest.raises(TapeUnavailable):
        read(store, "a.tar", 0, 1)
    server.start()
    offset = await store.write_offset(upload_id)
    write(store, upload_id, offset, b"01234567890123456789"[offset:])
    server.stop()
    server.start()
    # The kept connections are dead now, which nobody has to know.
    assert read(store, "a.tar", 5, 10) == b"5678901234"
    await store.aclose()


# --- the HTTP driver: servers that are not ours -----------------------------------------------------------------------


@dataclass
class Foreign:
    """The driver before a server that says what a test wants."""

    server: CannedServer
    store: HttpLongTermStore

    def says(self, method: str, path: str, body: str = "", status: int = 200, **headers: str) -> None:
        """Set an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.server.says(method, path, Canned(status, body.encode(), named))

    def has_files(self, *states: str) -> None:
        """Set the answer to a poll of the recall `r`."""
        self.says("GET", "/tape/stage/r", f'{{"id": "r", "files": [{",".join(states)}]}}')


@pytest.fixture
async def foreign() -> AsyncIterator[Foreign]:
    with CannedServer() as server:
        store = HttpLongTermStore(endpoint=server.url, token=TOKEN)
        foreign = Foreign(server, store)
        foreign.says("GET", "/.well-known/wlcg-tape-rest-api", _discovery(("v1.1", "/new"), ("v1", "/tape")))
        yield foreign
        await store.aclose()


def _discovery(*endpoints: tuple[str, str]) -> str:
    named = ",".join(f'{{"version": "{version}", "uri": "{uri}"}}' for version, uri in endpoints)
    return f'{{"sitename": "s", "endpoints": [{named}]}}'


async def test_the_version_that_we_know_is_chosen_and_asked_for_once(foreign: Foreign) -> None:
    foreign.says("DELETE", "/tape/stage/r")
    for _ in range(2):
        await foreign.store.cancel("r")
    assert [seen.target for seen in foreign.server.seen] == [
        "/.well-known/wlcg-tape-rest-api",
        "/tape/stage/r",
        "/tape/stage/r",
    ]


@pytest.mark.parametrize(
    "discovered",
    [_discovery(("v1", "http://elsewhere.invalid/tape")), _discovery(("v2", "/tape")), '{"endpoints": "none"}'],
)
async def test_an_unusable_discovery_is_ours_to_mend(foreign: Foreign, discovered: str) -> None:
    foreign.says("GET", "/.well-known/wlcg-tape-rest-api", discovered)
    with pytest.raises(Misconfigured):
        await foreign.store.cancel("r")


async def test_a_location_elsewhere_gets_no_token(foreign: Foreign) -> None:
    foreign.says("POST", "/uploads", status=201, Location="http://elsewhere.invalid/up/1?x=y")
    foreign.says("HEAD", "/up/1", Upload_Offset="7")
    upload_id = await foreign.store.open_write("a.tar", 10)
    assert upload_id == "/up/1"
    assert await foreign.store.write_offset(upload_id) == 7
    with pytest.raises(UploadGone):
        await foreign.store.write_offset("//elsewhere.invalid/up/1")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ('{"path": "/a.tar", "state": "SUBMITTED"}', RecallState.WAITING),
        ('{"path": "/a.tar", "state": "STARTED", "startedAt": 1764000000000}', RecallState.WAITING),
        ('{"path": "/a.tar", "state": "COMPLETED", "finishedAt": 1764000000}', RecallState.ONLINE),
        ('{"path": "/a.tar", "state": "FAILED", "error": "no"}', RecallState.FAILED),
        ('{"path": "/a.tar", "state": "CANCELLED"}', RecallState.CANCELLED),
        ('{"path": "/a.tar", "state": "CANCELED"}', RecallState.CANCELLED),
        ('{"path": "/a.tar", "state": "SOMETHING_NEW"}', RecallState.WAITING),
        ('{"path": "/a.tar", "onDisk": true}', RecallState.ONLINE),
        ('{"path": "/a.tar", "onDisk": false}', RecallState.WAITING),
        ('{"path": "/a.tar", "onDisk": false, "error": "no"}', RecallState.FAILED),
        ('{"path": "//pool/a.tar", "state": "COMPLETED"}', RecallState.ONLINE),
        ("", RecallState.WAITING),
    ],
)
async def test_dialects_of_a_poll(foreign: Foreign, answer: str, state: RecallState) -> None:
    foreign.has_files(*filter(None, [answer]))
    [found] = await foreign.store.recall_state("r", ["a.tar"])
    assert found == Recalled("a.tar", state, "no" if state is RecallState.FAILED else None)


async def test_an_ambiguous_echo_is_no_answer(foreign: Foreign) -> None:
    foreign.has_files('{"path": "/a.tar", "state": "COMPLETED"}')
    found = await foreign.store.recall_state("r", ["x/a.tar", "y/a.tar"])
    assert {entry.state for entry in found} == {RecallState.WAITING}


async def test_a_lifetime_is_a_duration(foreign: Foreign) -> None:
    foreign.says("POST", "/tape/stage", status=201, Location="/tape/stage/r%2F1")
    assert await foreign.store.request_recall(["a b.tar"], timedelta(minutes=90)) == "r/1"
    assert foreign.server.seen[-1].body == b'{"files":[{"path":"/a b.tar","diskLifetime":"PT5400S"}]}'


async def test_files_of_which_archiveinfo_says_nothing_good_are_looked_for(foreign: Foreign) -> None:
    foreign.says("POST", "/tape/archiveinfo", '[{"path": "/a.tar", "error": "try later"}]')
    foreign.says("HEAD", "/files/a.tar")
    foreign.says("HEAD", "/files/odd.tar")
    found = await foreign.store.localities(["a.tar", "absent.tar", "odd.tar"])
    assert found == {"a.tar": Locality.UNAVAILABLE, "odd.tar": Locality.UNAVAILABLE}
    foreign.says("POST", "/tape/archiveinfo", '[{"path": "/a.tar", "locality": "SOMEWHERE"}]')
    assert await foreign.store.stat("a.tar") == FileStat(0, Locality.UNAVAILABLE)


async def test_nearline_by_whatever_status(foreign: Foreign) -> None:
    foreign.says("POST", "/tape/archiveinfo", '[{"path": "/a.tar", "locality": "TAPE"}]')
    for status in (202, 403, 409, 503):
        foreign.says("GET", "/files/a.tar", status=status)
        with pytest.raises(Nearline):
            read(foreign.store, "a.tar", 0, 1)
    foreign.says("POST", "/tape/archiveinfo", '[{"path": "/a.tar", "locality": "DISK"}]')
    with pytest.raises(TapeUnavailable):
        read(foreign.store, "a.tar", 0, 1)


async def test_another_range_than_asked_for_is_no_answer(foreign: Foreign) -> None:
    foreign.says("GET", "/files/a.tar", "0123")
    assert read(foreign.store, "a.tar", 0, 4) == b"0123"
    with pytest.raises(TapeUnavailable):
        read(foreign.store, "a.tar", 4, 4)
    foreign.says("GET", "/files/a.tar", "0123", status=206, Content_Range="bytes 0-3/8")
    with pytest.raises(TapeUnavailable):
        read(foreign.store, "a.tar", 4, 4)


async def test_a_chunk_that_was_kept_in_part_is_told(foreign: Foreign) -> None:
    foreign.says("PATCH", "/uploads/1", status=204, Upload_Offset="7", Content_Length="0")
    with pytest.raises(OffsetMismatch):
        write(foreign.store, "/uploads/1", 0, b"0123456789")
    write(foreign.store, "/uploads/1", 0, b"0123456")


async def test_a_document_type_is_refused(foreign: Foreign) -> None:
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><multistatus xmlns="DAV:">&a;</multistatus>'
    foreign.says("PROPFIND", "/files/", bomb, status=207)
    with pytest.raises(TapeUnavailable):
        await foreign.store.space()


async def test_answers_that_make_no_sense_are_no_answers(foreign: Foreign) -> None:
    foreign.says("HEAD", "/up/1")
    foreign.says("GET", "/tape/stage/r", "<html>")
    foreign.says("PROPFIND", "/files/", "<html>", status=207)
    calls: Sequence[Callable[[], Any]] = (
        lambda: foreign.store.write_offset("/up/1"),
        lambda: foreign.store.recall_state("r"),
        lambda: foreign.store.list(""),
    )
    for call in calls:
        with pytest.raises(TapeUnavailable):
            await call()


# --- the HTTP driver without tus --------------------------------------------------------------------------------------


@pytest.fixture
async def put_only() -> AsyncIterator[Foreign]:
    with CannedServer() as server:
        store = HttpPutStore(endpoint=server.url, token=TOKEN, tape=False)
        yield Foreign(server, store)
        await store.aclose()


async def test_a_file_is_one_put_that_overwrites_nothing(put_only: Foreign) -> None:
    store = put_only.store
    upload_id = await store.open_write("a/b c.tar", 10)
    put_only.says("PUT", "/files/a/b%20c.tar", status=201)
    write(store, upload_id, 0, b"01234")
    write(store, upload_id, 5, b"56789")
    *_, mkcol, put = put_only.server.seen
    assert (mkcol.method, mkcol.target) == ("MKCOL", "/files/a/")
    assert (put.method, put.target, put.body) == ("PUT", "/files/a/b%20c.tar", b"0123456789")
    assert (put.headers["If-None-Match"], put.headers["Content-Length"]) == ("*", "10")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (412, WriteOnce),
        (507, NoSpace),
        (413, TooLarge),
        (401, Misconfigured),
        (405, Misconfigured),
        (409, TapeUnavailable),
        (503, TapeUnavailable),
    ],
)
async def test_what_the_answer_to_a_put_means(put_only: Foreign, status: int, error: type[Exception]) -> None:
    store = put_only.store
    put_only.says("PUT", "/files/a.tar", status=status)
    upload_id = await store.open_write("a.tar", 10)
    with pytest.raises(error) as caught:
        write(store, upload_id, 0, b"0123456789")
    assert type(caught.value) is error
    # It begins anew, in this process or in another one.
    assert await store.write_offset(upload_id) == 0
    put_only.says("PUT", "/files/a.tar", status=204)
    write(store, upload_id, 0, b"0123456789")
    put_only.says("HEAD", "/files/a.tar", "0123456789")
    assert await store.write_offset(upload_id) == 10


async def test_a_put_that_was_stopped_begins_anew(put_only: Foreign) -> None:
    store = put_only.store
    put_only.says("PUT", "/files/a.tar", status=201)
    upload_id = await store.open_write("a.tar", 10)
    write(store, upload_id, 0, b"01234")
    assert await store.write_offset(upload_id, 5) == 0
    with pytest.raises(OffsetMismatch):
        write(store, upload_id, 5, b"56789")
    write(store, upload_id, 0, b"0123456789")
    assert put_only.server.seen[-1].body == b"0123456789"


async def test_a_put_that_cannot_connect_may_pass() -> None:
    store = HttpPutStore(endpoint=f"http://127.0.0.1:{free_port()}", token=TOKEN, tape=False)
    with pytest.raises(TapeUnavailable):
        write(store, "put/10/a.tar", 0, b"0123456789")
    await store.aclose()


async def test_without_tape_nobody_asks_for_it(foreign: Foreign) -> None:
    store = HttpLongTermStore(endpoint=foreign.server.url, token=None, tape=False)
    foreign.says("HEAD", "/files/a.tar")
    assert await store.stat("a.tar") == FileStat(0, None)
    foreign.says("GET", "/files/a.tar", status=503)
    with pytest.raises(TapeUnavailable):
        read(store, "a.tar", 0, 1)
    assert {seen.target for seen in foreign.server.seen} == {"/files/a.tar"}
    await store.aclose()
