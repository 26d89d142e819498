"""What only a share has: mounts, links, errors of a file system, crashes between two steps, reads that hang or fail."""

# ruff: noqa: ASYNC240 - the folder is a local one, and the test has nothing else to do

import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clients.lts import filesystem
from clients.lts.filesystem import UPLOADS, FilesystemStore
from clients.lts.protocol import (
    FileAbsent,
    FileStat,
    Locality,
    Nearline,
    Recalled,
    RecallState,
    UploadGone,
    WriteOnce,
)
from clients.lts.recalling import Recaller
from clients.lts.residency import residency
from domain.errors import Damaged, Misconfigured, NoSpace, TapeUnavailable, UnsafePath

CONTENT = bytes(range(256)) * 64
HOUR = timedelta(hours=1)
HOSTILE = ["", "/etc/passwd", "../out.tar", "a/../../out.tar", "a//b.tar", "a/./b.tar", "a/", "a\0b.tar", "x" * 256]

Make = Callable[..., FilesystemStore]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A mounted share."""
    (tmp_path / "share" / UPLOADS).mkdir(parents=True)
    return tmp_path / "share"


@pytest.fixture
async def make(root: Path) -> AsyncIterator[Make]:
    """Stores on the share, as several workers have them."""
    made: list[FilesystemStore] = []

    def one(**options: Any) -> FilesystemStore:
        defaults: dict[str, Any] = {"root": root, "residency": residency("sticky"), "upload_lifetime": HOUR}
        made.append(FilesystemStore(**(defaults | options)))
        return made[-1]

    yield one
    for store in made:
        await store.aclose()


@pytest.fixture
def store(make: Make) -> FilesystemStore:
    return make()


def write(store: FilesystemStore, upload_id: str, offset: int, data: bytes) -> None:
    store.write(upload_id, offset, memoryview(data), b"")


def read(store: FilesystemStore, path: str, offset: int = 0, size: int = len(CONTENT)) -> bytes:
    into = bytearray(size)
    store.read_range(path, offset, memoryview(into))
    return bytes(into)


async def put(store: FilesystemStore, path: str, data: bytes = CONTENT) -> None:
    upload_id = await store.open_write(path, len(data))
    write(store, upload_id, 0, data)
    await store.finish(upload_id, path, len(data))


def leave_stub(file: Path) -> None:
    """In place, as a tape system does it."""
    size = file.stat().st_size
    os.truncate(file, 0)
    os.truncate(file, size)
    file.chmod(0o1644)


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# --- the share itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["the mount", "the marker"])
async def test_what_is_not_mounted_is_ours_to_mend_and_nothing_is_written(
    store: FilesystemStore, root: Path, missing: str
) -> None:
    await put(store, "a.tar")
    upload_id = await store.open_write("b.tar", 10)
    aside = root.with_name("unmounted")
    root.rename(aside)
    if missing == "the marker":
        root.mkdir()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.open_write("c.tar", 10),
        lambda: store.write_offset(upload_id),
        lambda: store.finish(upload_id, "b.tar", 10),
        lambda: store.abort(upload_id),
        lambda: store.stat("a.tar"),
        lambda: store.localities(["a.tar"]),
        lambda: store.delete("a.tar"),
        lambda: store.list(""),
        lambda: store.space(),
    ]
    for call in calls:
        with pytest.raises(Misconfigured, match="mount"):
            await call()
    for blocking in (lambda: write(store, upload_id, 0, b"x"), lambda: store.sync(upload_id), lambda: read(store, "a")):
        with pytest.raises(Misconfigured, match="mount"):
            blocking()
    if missing == "the marker":
        assert list(root.iterdir()) == []
        root.rmdir()
    aside.rename(root)
    write(store, upload_id, 0, b"0123456789")
    assert read(store, "a.tar") == CONTENT


@pytest.mark.parametrize("path", [*HOSTILE, f"{UPLOADS}/a"])
async def test_no_path_leads_out_of_the_folder(store: FilesystemStore, root: Path, path: str) -> None:
    for call in (store.open_write(path, 1), store.stat(path), store.delete(path), store.localities([path])):
        with pytest.raises(UnsafePath):
            await call
    with pytest.raises(UnsafePath):
        read(store, path)
    assert [entry.name for entry in root.iterdir()] == [UPLOADS]


async def test_no_link_is_followed(store: FilesystemStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret.tar"
    secret.parent.mkdir()
    secret.write_bytes(CONTENT)
    (root / "link.tar").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    for path in ("link.tar", "folder/secret.tar"):
        assert await store.stat(path) is None
        with pytest.raises(FileAbsent):
            read(store, path)
        await store.delete(path)
    assert await store.list("") == {}
    assert await store.list("folder") == {}
    upload_id = await store.open_write("folder/new.tar", 1)
    write(store, upload_id, 0, b"x")
    with pytest.raises(TapeUnavailable):
        await store.finish(upload_id, "folder/new.tar", 1)
    assert list(secret.parent.iterdir()) == [secret]
    assert secret.read_bytes() == CONTENT


async def test_a_folder_is_no_file(store: FilesystemStore, root: Path) -> None:
    (root / "a.tar").mkdir()
    assert await store.stat("a.tar") is None
    with pytest.raises(FileAbsent):
        read(store, "a.tar")
    await store.delete("a.tar")
    assert (root / "a.tar").is_dir()


async def test_abandoned_uploads_are_cleared_away_and_nothing_else(store: FilesystemStore, root: Path) -> None:
    abandoned, fresh = await store.open_write("a.tar", 10), await store.open_write("b.tar", 10)
    foreign = root / UPLOADS / "README"
    foreign.touch()
    for file in (root / UPLOADS / abandoned, foreign):
        os.utime(file, (0, time.time() - 3700))
    await store.open_write("c.tar", 10)
    with pytest.raises(UploadGone):
        await store.write_offset(abandoned)
    assert await store.write_offset(fresh) == 0
    assert foreign.exists()


# --- power cuts, crashes, two workers -------------------------------------------------------------------------------


async def test_what_was_not_synced_is_written_again_whatever_the_size_says(store: FilesystemStore, root: Path) -> None:
    """After a power cut the size may be there and the bytes not: a hole, or what was on the disk before."""
    upload_id = await store.open_write("a.tar", len(CONTENT))
    write(store, upload_id, 0, CONTENT[:4096])
    store.sync(upload_id)
    with (root / UPLOADS / upload_id).open("r+b") as file:
        file.seek(4096)
        file.write(b"\0" * 8192)
    offset = await store.write_offset(upload_id, 4096)
    assert offset == 4096
    write(store, upload_id, offset, CONTENT[offset:])
    await store.finish(upload_id, "a.tar", len(CONTENT))
    assert read(store, "a.tar") == CONTENT


async def test_a_share_that_lost_what_was_synced_is_believed(store: FilesystemStore) -> None:
    upload_id = await store.open_write("a.tar", len(CONTENT))
    write(store, upload_id, 0, CONTENT[:100])
    assert await store.write_offset(upload_id, 4096) == 100


async def test_a_crash_between_link_and_unlink_is_tidied_up(make: Make, root: Path) -> None:
    store, other = make(), make()
    upload_id = await store.open_write("d/a.tar", len(CONTENT))
    write(store, upload_id, 0, CONTENT)
    (root / "d").mkdir()
    os.link(root / UPLOADS / upload_id, root / "d" / "a.tar")
    assert await other.write_offset(upload_id, 4096) == len(CONTENT)
    await other.finish(upload_id, "d/a.tar", len(CONTENT))
    await store.finish(upload_id, "d/a.tar", len(CONTENT))
    assert list((root / UPLOADS).iterdir()) == []
    assert read(store, "d/a.tar") == CONTENT


async def test_a_file_is_durable_before_it_has_its_name_and_its_name_before_it_is_finished(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await store.open_write("d/a.tar", len(CONTENT))
    write(store, upload_id, 0, CONTENT)
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def watched_fsync(file: int) -> None:
        fsync(file)
        done.append(str(Path(f"/proc/self/fd/{file}").readlink()).removeprefix(str(root)) or "/")

    def watched_link(*args: Any, **options: Any) -> None:
        link(*args, **options)
        done.append("link")

    monkeypatch.setattr(filesystem.os, "fsync", watched_fsync)
    monkeypatch.setattr(filesystem.os, "link", watched_link)
    await store.finish(upload_id, "d/a.tar", len(CONTENT))
    assert done == [f"/{UPLOADS}/{upload_id}", "/", "link", "/d"]


async def test_a_finished_file_is_never_written_to(make: Make) -> None:
    zombie, store = make(), make()
    upload_id = await store.open_write("a.tar", len(CONTENT))
    write(zombie, upload_id, 0, CONTENT)
    await store.finish(upload_id, "a.tar", len(CONTENT))
    with pytest.raises(UploadGone):
        write(zombie, upload_id, 0, b"\0" * 100)
    with pytest.raises(UploadGone):
        zombie.sync(upload_id)
    await zombie.finish(upload_id, "a.tar", len(CONTENT))
    assert read(store, "a.tar") == CONTENT


async def test_another_file_in_its_place_is_never_overwritten(store: FilesystemStore, root: Path) -> None:
    upload_id = await store.open_write("a.tar", len(CONTENT))
    write(store, upload_id, 0, CONTENT)
    (root / "a.tar").write_bytes(b"another")
    with pytest.raises(Damaged):
        await store.finish(upload_id, "a.tar", len(CONTENT))
    assert (root / "a.tar").read_bytes() == b"another"
    assert (root / UPLOADS / upload_id).read_bytes() == CONTENT
    with pytest.raises(WriteOnce):
        await store.open_write("a.tar", 10)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
async def test_a_share_without_hard_links(
    store: FilesystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(filesystem.os, "link", failing(number))
    await put(store, "d/a.tar")
    assert read(store, "d/a.tar") == CONTENT
    assert list((root / UPLOADS).iterdir()) == []
    upload_id = await store.open_write("b.tar", 3)
    write(store, upload_id, 0, b"new")
    (root / "b.tar").write_bytes(b"another")
    with pytest.raises((Damaged, Misconfigured, TapeUnavailable)):
        await store.finish(upload_id, "b.tar", 3)
    assert (root / "b.tar").read_bytes() == b"another"


# --- what a file system says ------------------------------------------------------------------------------------------

MEANS = [
    (errno.ENOSPC, NoSpace),
    (errno.EDQUOT, NoSpace),
    (errno.EROFS, Misconfigured),
    (errno.EACCES, Misconfigured),
    (errno.ESTALE, TapeUnavailable),
    (errno.EIO, TapeUnavailable),
    (errno.ETIMEDOUT, TapeUnavailable),
]


@pytest.mark.parametrize(("number", "error"), MEANS)
@pytest.mark.parametrize("call", ["pwrite", "close", "fsync"])
async def test_errors_of_a_write_are_told(
    store: FilesystemStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[Exception],
) -> None:
    """NFS says when a file is closed what it could not write."""
    upload_id = await store.open_write("a.tar", 10)
    with monkeypatch.context() as patched:
        if call == "close":
            closing = os.close

            def close(file: int) -> None:
                regular = os.fstat(file).st_mode & 0o100000 and not os.fstat(file).st_mode & 0o040000
                closing(file)
                if regular:
                    failing(number)()

            patched.setattr(filesystem.os, "close", close)
        else:
            patched.setattr(filesystem.os, call, failing(number))
        with pytest.raises(error) as caught:
            store.sync(upload_id) if call == "fsync" else write(store, upload_id, 0, b"0123456789")
    assert type(caught.value) is error
    assert os.strerror(number) in str(caught.value)
    write(store, upload_id, 0, b"0123456789")
    await store.finish(upload_id, "a.tar", 10)


async def test_a_share_that_refuses_to_delete_keeps_what_it_has(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "a.tar")
    for number in (errno.EPERM, errno.EACCES, errno.EROFS):
        monkeypatch.setattr(filesystem.os, "unlink", failing(number))
        with pytest.raises(WriteOnce):
            await store.delete("a.tar")


async def test_a_write_into_nowhere_makes_no_hole(store: FilesystemStore, root: Path) -> None:
    upload_id = await store.open_write("a.tar", 10)
    with pytest.raises(Exception, match="ends before"):
        write(store, upload_id, 5, b"01234")
    assert (root / UPLOADS / upload_id).stat().st_size == 0


# --- residency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "marked", "stub", "locality"),
    [
        ("sticky", False, False, Locality.DISK),
        ("sticky", True, False, Locality.DISK_AND_TAPE),
        ("sticky", True, True, Locality.TAPE),
        ("sticky", False, True, Locality.UNAVAILABLE),
        ("blocks", False, False, Locality.DISK),
        ("blocks", False, True, Locality.TAPE),
        ("xattr:user.migrated", False, False, Locality.DISK),
        ("xattr:user.migrated", True, False, Locality.DISK_AND_TAPE),
        ("xattr:user.migrated", True, True, Locality.TAPE),
    ],
)
async def test_where_the_bytes_are_shows_in_the_attributes(
    make: Make, root: Path, rule: str, *, marked: bool, stub: bool, locality: Locality
) -> None:
    store = make(residency=residency(rule))
    await put(store, "a.tar")
    if stub:
        os.truncate(root / "a.tar", 0)
        os.truncate(root / "a.tar", len(CONTENT))
    if marked and rule == "sticky":
        (root / "a.tar").chmod(0o1644)
    elif marked:
        os.setxattr(root / "a.tar", "user.migrated", b"")
    assert await store.stat("a.tar") == FileStat(len(CONTENT), locality)
    if locality.on_disk:
        assert read(store, "a.tar") == CONTENT
    else:
        with pytest.raises(Nearline if locality is Locality.TAPE else TapeUnavailable):
            read(store, "a.tar")


async def test_a_file_that_leaves_the_disk_while_it_is_read_is_nearline(make: Make, root: Path) -> None:
    def open_file(name: str, flags: int, *, dir_fd: int) -> int:
        file = os.open(name, flags, dir_fd=dir_fd)
        leave_stub(root / "a.tar")
        return file

    store = make(open_file=open_file)
    await put(store, "a.tar")
    with pytest.raises(Nearline):
        read(store, "a.tar")


async def test_a_read_that_fails_asks_for_the_bytes(make: Make, root: Path) -> None:
    """The share says that they are on disk, and they are not: nobody is told nearline, who would ask at once again."""
    asked = threading.Event()

    def open_file(name: str, flags: int, *, dir_fd: int) -> int:
        if threading.current_thread().name == "lts-recall":
            asked.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = make(open_file=open_file)
    await put(store, "a.tar")
    with pytest.raises(TapeUnavailable, match="asked for again"):
        read(store, "a.tar")
    assert asked.wait(5)


async def test_what_is_read_comes_from_the_share_and_not_from_memory(store: FilesystemStore, root: Path) -> None:
    await put(store, "a.tar")
    file = os.open(root / "a.tar", os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if _in_memory(file):
            pytest.skip("this file system does not give its pages back")
        os.pread(file, len(CONTENT), 0)
        assert _in_memory(file)
        read(store, "a.tar")
        assert not _in_memory(file)
    finally:
        os.close(file)


def _in_memory(file: int) -> bool:
    try:
        return os.preadv(file, [bytearray(100)], 0, os.RWF_NOWAIT) == 100
    except BlockingIOError:
        return False


# --- recall -----------------------------------------------------------------------------------------------------------


async def test_a_recall_that_takes_for_ever_holds_nobody_up(make: Make, root: Path) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def open_file(name: str, flags: int, *, dir_fd: int) -> int:
        begun.set()
        let_go.wait(30)
        return os.open(name, flags, dir_fd=dir_fd)

    store = make(open_file=open_file)
    await put(store, "a.tar")
    leave_stub(root / "a.tar")
    recall_id = await store.request_recall(["a.tar"], HOUR)
    assert begun.wait(5)
    for _ in range(3):
        assert await store.recall_state(recall_id, ["a.tar"]) == [Recalled("a.tar", RecallState.WAITING)]
    await store.cancel(recall_id)
    await store.aclose()
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "lts-recall"] == [True]
    let_go.set()


async def test_a_recall_reads_the_last_byte(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs may hold the first ones, and would be content with them."""
    places: list[int] = []
    done = threading.Event()

    def pread(file: int, size: int, offset: int) -> bytes:
        places.append(offset)
        done.set()
        return b"\0"

    store = make()
    await put(store, "a.tar")
    leave_stub(root / "a.tar")
    monkeypatch.setattr(filesystem.os, "pread", pread)
    await store.request_recall(["a.tar"], HOUR)
    assert done.wait(5)
    assert places == [len(CONTENT) - 1]


async def test_another_worker_goes_on_with_a_recall(make: Make, root: Path) -> None:
    """The one that began it is dead, and its read with it."""
    read_by: list[str] = []
    known = threading.Event()

    def reader(name: str) -> FilesystemStore:
        def open_file(file: str, flags: int, *, dir_fd: int) -> int:
            read_by.append(name)
            known.set()
            return os.open(file, flags, dir_fd=dir_fd)

        return make(open_file=open_file)

    first, second = reader("first"), reader("second")
    await put(first, "a.tar")
    leave_stub(root / "a.tar")
    recall_id = await first.request_recall(["a.tar"], HOUR)
    assert known.wait(5)
    known.clear()
    [found] = await second.recall_state(recall_id, ["a.tar"])
    assert found.state is RecallState.WAITING
    assert known.wait(5)
    assert read_by == ["first", "second"]


@pytest.mark.parametrize(("number", "state"), [(errno.EIO, RecallState.WAITING), (errno.EACCES, RecallState.FAILED)])
async def test_a_recall_that_cannot_be_read_is_told_from_one_that_has_to_wait(
    make: Make, root: Path, number: int, state: RecallState
) -> None:
    store = make(open_file=failing(number))
    await put(store, "a.tar")
    leave_stub(root / "a.tar")
    recall_id = await store.request_recall(["a.tar"], HOUR)
    found = Recalled("a.tar", RecallState.WAITING)
    for _ in range(1000):
        [found] = await store.recall_state(recall_id, ["a.tar"])
        if found.error:
            break
        time.sleep(0.001)  # noqa: ASYNC251 - the reader is a thread
    assert found.state is state
    assert os.strerror(number) in str(found.error)


def test_each_file_is_read_once_at_a_time_and_a_bound_is_kept() -> None:
    let_go = threading.Event()
    lock = threading.Lock()
    reading: list[str] = []

    def reader(path: str) -> None:
        with lock:
            reading.append(path)
        let_go.wait(10)

    recaller = Recaller(reader, reads=2)
    for path in ("a", "b", "a", "c", "d", "b"):
        recaller.ask(path)
    deadline = time.monotonic() + 5
    while len(reading) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(reading) == ["a", "b"]
    recaller.withdraw(["c"])
    let_go.set()
    while len(reading) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(reading) == ["a", "b", "d"]
