"""A long-term store that is a folder: a share in front of tape, mounted where the workers run.

    <root>/.uploads/<id>     unfinished files; the folder also shows that the share is mounted
    <root>/<path>            finished files, linked there in one step and never overwritten

Nothing is remembered outside the share, so any process goes on where another one died. Files are opened anew for every
call: their names tell whether an upload is still open, and NFS reports what it could not write when a file is closed.
"""

import asyncio
import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from clients.lts.protocol import (
    FileAbsent,
    FileStat,
    Locality,
    Nearline,
    OffsetMismatch,
    Recalled,
    RecallState,
    SpaceReport,
    UploadGone,
    WriteOnce,
)
from clients.lts.recalling import Recaller
from clients.lts.residency import Residency
from domain.errors import Damaged, InfrastructureError, Misconfigured, NoSpace, TapeUnavailable, UnsafePath

UPLOADS = ".uploads"
"""Folder of unfinished files below the root."""

P = ParamSpec("P")
T = TypeVar("T")
Open = Callable[..., int]
"""As `os.open` with `dir_fd`."""

_CONTROL_THREADS = 8
"""Of our own: a share that hangs must not take the threads that everything else waits for."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC

_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_NAME_BYTES = 255
_PAGE = os.sysconf("SC_PAGE_SIZE")

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_STUB = (errno.EIO, errno.EAGAIN, errno.ENODATA)
"""How tape systems that do not let a reader wait refuse to read a stub."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class FilesystemStore:
    """Implements `LongTermStore`, `NearlineStore`, `Listable` and `Space`.

    Paths are taken component by component without following links, so that none leads out of the root.
    """

    def __init__(
        self, *, root: Path, residency: Residency, upload_lifetime: timedelta, open_file: Open = os.open
    ) -> None:
        """Touch nothing yet.

        Args:
            root: the mounted share; it must hold a folder `.uploads`, made by whoever set the share up.
            residency: where a file's bytes are, by its attributes.
            upload_lifetime: an unfinished file that was not written to for so long is removed.
            open_file: opens a finished file for reading; otherwise `os.open`.
        """
        self._path, self._residency, self._lifetime, self._open = root, residency, upload_lifetime, open_file
        self._threads = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="lts-share")
        self._recaller = Recaller(self._touch)

    # --- LongTermStore ------------------------------------------------------------------------------------------------

    async def open_write(self, path: str, size_bytes: int) -> str:
        """Make an empty file below `.uploads`; what was abandoned there is cleared away."""
        return await self._call(self._open_write, path, size_bytes)

    def _open_write(self, path: str, size_bytes: int) -> str:
        if self._look(path) is not None:
            raise WriteOnce(f"{path!r} exists on the LTS")
        upload_id = uuid.uuid4().hex
        with self._failing(f"opening an upload of {path!r}"), self._uploads() as folder:
            space = os.fstatvfs(folder)
            if size_bytes > space.f_bavail * space.f_frsize:
                raise NoSpace(f"opening an upload of {path!r}: {size_bytes} bytes do not fit on the LTS")
            file = os.open(upload_id, _WRITE | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
            # The share's own clock.
            now = os.fstat(file).st_mtime
            os.close(file)
            _settle(folder)
            self._expire(folder, now)
        return upload_id

    def _expire(self, folder: int, now: float) -> None:
        """Remove unfinished files that nobody wrote to for too long; other names are not ours."""
        for name in filter(_UPLOAD_ID.fullmatch, os.listdir(folder)):
            # Another process may clear away as well.
            with suppress(FileNotFoundError):
                if now - os.lstat(name, dir_fd=folder).st_mtime > self._lifetime.total_seconds():
                    os.unlink(name, dir_fd=folder)

    async def write_offset(self, upload_id: str, synced: int = 0) -> int:
        """What was synced: a size says nothing of pages that a power cut took."""
        return await self._call(self._write_offset, upload_id, synced)

    def _write_offset(self, upload_id: str, synced: int) -> int:
        with self._failing("asking for an upload's offset"), self._upload(upload_id, _LOOK) as file:
            found = os.fstat(file)
            published = found.st_nlink > 1
            return found.st_size if published else min(found.st_size, synced)

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        """Write in place, never beyond the end: there would be a hole."""
        what = f"writing {data.nbytes} bytes at {offset}"
        with self._failing(what), self._upload(upload_id, _WRITE) as file:
            if offset > os.fstat(file).st_size:
                raise OffsetMismatch(f"{what}: the file ends before that")
            written = 0
            while written < data.nbytes:
                written += os.pwrite(file, data[written:], offset + written)

    def sync(self, upload_id: str) -> None:
        """Fsync, and give the page cache back."""
        with self._failing("making an upload durable"), self._upload(upload_id, _WRITE) as file:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    async def finish(self, upload_id: str, path: str, size_bytes: int) -> None:
        """Fsync the file, link it to its path unless there is one, fsync the folder."""
        await self._call(self._finish, upload_id, path, size_bytes)

    def _finish(self, upload_id: str, path: str, size_bytes: int) -> None:
        what = f"finishing {path!r}"
        *folders, name = _parts(path)
        with self._failing(what):
            with suppress(UploadGone):
                with self._upload(upload_id, _WRITE) as file:
                    size = os.fstat(file).st_size
                    if size != size_bytes:
                        raise TapeUnavailable(f"{what}: {size} of {size_bytes} bytes are there")
                    os.fsync(file)
                with self._uploads() as uploads, self._folder(folders, make=True) as folder:
                    _publish(upload_id, uploads, name, folder)
            with suppress(FileAbsent), self._folder(folders) as folder:
                # Also when the link is an earlier call's: that one may have died before it came here.
                _settle(folder)
        found = self._look(path)
        if found is None:
            raise TapeUnavailable(f"{what}: its upload has ended but there is no such file")
        if found.size_bytes != size_bytes:
            raise Damaged(f"{what}: the file has {found.size_bytes} bytes instead of {size_bytes}")

    async def abort(self, upload_id: str) -> None:
        """Remove the unfinished file."""
        await self._call(self._abort, upload_id)

    def _abort(self, upload_id: str) -> None:
        if _UPLOAD_ID.fullmatch(upload_id):
            with self._failing("aborting an upload"), self._uploads() as folder, suppress(FileNotFoundError):
                os.unlink(upload_id, dir_fd=folder)

    async def stat(self, path: str) -> FileStat | None:
        """Attributes alone; the file is not opened, which may start a recall."""
        return await self._call(self._look, path)

    def _look(self, path: str) -> FileStat | None:
        with self._failing(f"looking at {path!r}"), suppress(FileAbsent), self._place(path) as (folder, name):
            return self._regular(folder, name)
        return None

    def read_range(self, path: str, offset: int, into: memoryview) -> None:
        """Read from the share, not from this machine's memory; a stub is not read, since that may take hours."""
        if not into.nbytes:
            return
        what = f"reading {into.nbytes} bytes at {offset} of {path!r}"
        with self._failing(what), self._place(path) as (folder, name):
            self._must_be_on_disk(what, self._regular(folder, name))
            try:
                with _closing(self._open(name, _READ, dir_fd=folder)) as file:
                    _forget(file, offset, into.nbytes)
                    filled = _fill(file, offset, into)
                    _forget(file, offset, into.nbytes)
                    # It may have left the disk meanwhile: then what was read is a hole.
                    self._must_be_on_disk(what, _stat_of(file, self._residency))
            except OSError as error:
                if error.errno not in _STUB:
                    raise
                self._recaller.ask(path)
                self._must_be_on_disk(what, self._regular(folder, name))
                raise TapeUnavailable(
                    f"{what}: {error.strerror}, though the file shows as being on disk; it is asked for again"
                ) from error
        if filled < into.nbytes:
            raise Damaged(f"{what}: the file is shorter")

    @staticmethod
    def _must_be_on_disk(what: str, found: FileStat) -> None:
        assert found.locality is not None  # noqa: S101 - a residency test always knows one
        if found.locality is Locality.TAPE:
            raise Nearline(f"{what}: the bytes are on tape only")
        if not found.locality.on_disk:
            raise TapeUnavailable(f"{what}: bytes are missing, and the file does not show as being on tape")

    async def delete(self, path: str) -> None:
        """Unlink the file; a share that refuses what it allows for new files keeps what it has."""
        await self._call(self._delete, path)

    def _delete(self, path: str) -> None:
        with self._failing(f"deleting {path!r}"), suppress(FileAbsent), self._place(path) as (folder, name):
            self._regular(folder, name)
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as error:
                if error.errno in _REFUSED:
                    raise WriteOnce(f"deleting {path!r}: {error.strerror}") from error
                raise
            _settle(folder)

    async def aclose(self) -> None:
        """Begin no further recall, and wait for nothing."""
        self._recaller.withdraw()
        self._threads.shutdown(wait=False)

    # --- NearlineStore ------------------------------------------------------------------------------------------------
    #
    # A share has neither requests nor pins. A recall's id is a name without meaning: its state is that of its files,
    # and whoever asks for it keeps the reads going, also when the process that began them is gone.

    async def localities(self, paths: Sequence[str]) -> dict[str, Locality]:
        """By the files' attributes."""
        return await self._call(self._localities, paths)

    def _localities(self, paths: Sequence[str]) -> dict[str, Locality]:
        found = {path: self._look(path) for path in dict.fromkeys(paths)}
        return {path: file.locality for path, file in found.items() if file and file.locality}

    async def request_recall(self, paths: Sequence[str], pin_lifetime: timedelta) -> str:
        """Begin to read those that are on tape only; the share decides how long they stay."""
        await self.recall_state("", paths)
        return uuid.uuid4().hex

    async def recall_state(self, recall_id: str, paths: Sequence[str] = ()) -> list[Recalled]:
        """Where the files are; those on tape only are read, if that is not under way."""
        found = await self.localities(paths)
        return [self._recalled(path, found.get(path)) for path in dict.fromkeys(paths)]

    def _recalled(self, path: str, locality: Locality | None) -> Recalled:
        if locality is None:
            return Recalled(path, RecallState.FAILED, "no such file")
        if locality.on_disk:
            return Recalled(path, RecallState.ONLINE)
        failed = self._recaller.ask(path)
        if isinstance(failed, Misconfigured | UnsafePath):
            return Recalled(path, RecallState.FAILED, str(failed))
        return Recalled(path, RecallState.WAITING, None if failed is None else str(failed))

    async def release(self, recall_id: str, paths: Sequence[str]) -> None:
        """Nothing is pinned; reads that have not begun do not begin."""
        self._recaller.withdraw(paths)

    async def cancel(self, recall_id: str) -> None:
        """Nothing is on record; reads that have begun cannot be stopped, and end by themselves."""

    def _touch(self, path: str) -> None:
        """Read the last byte: stubs may hold the first ones."""
        with self._failing(f"recalling {path!r}"), self._place(path) as (folder, name):
            last = max(0, self._regular(folder, name).size_bytes - 1)
            with _closing(self._open(name, _READ, dir_fd=folder)) as file:
                _forget(file, last, 1)
                os.pread(file, 1, last)

    # --- Listable, Space ----------------------------------------------------------------------------------------------

    async def list(self, prefix: str, *, after: str = "", limit: int | None = None) -> dict[str, int]:
        """Walk the folder; links are neither listed nor followed."""
        return await self._call(self._list, prefix, after, limit)

    def _list(self, prefix: str, after: str, limit: int | None) -> dict[str, int]:
        top = prefix.strip("/")
        parts = _parts(top) if top else []
        place = f"{top}/" if top else ""
        with (
            self._failing(f"listing {prefix!r}"),
            suppress(FileAbsent),
            self._folder(parts) as folder,
            closing(self._walk(folder, place, after)) as found,
        ):
            return dict(islice(found, limit))
        return {}

    def _walk(self, folder: int, place: str, after: str) -> Generator[tuple[str, int]]:
        """Path and size of every file in the open folder `place` and below, by path."""
        children: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if place or entry.name != UPLOADS:
                        children.append(f"{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    children.append(entry.name)
        for name in sorted(children):
            path = place + name
            # Others may delete meanwhile.
            with suppress(FileNotFoundError):
                if not name.endswith("/"):
                    if path > after:
                        yield path, os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
                elif path > after or after.startswith(path):
                    with _closing(os.open(name.rstrip("/"), _FOLDER, dir_fd=folder)) as below:
                        yield from self._walk(below, path, after)

    async def space(self) -> SpaceReport:
        """Of the whole file system, as statvfs has it."""
        return await self._call(self._space)

    def _space(self) -> SpaceReport:
        with self._failing("asking for space"), self._folder([]) as folder:
            found = os.fstatvfs(folder)
        return SpaceReport(found.f_bavail * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize)

    # --- the share ----------------------------------------------------------------------------------------------------

    async def _call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    @contextmanager
    def _uploads(self) -> Generator[int]:
        """The folder of unfinished files.

        Raises:
            Misconfigured: it is not there: the share is not mounted.
        """
        try:
            root = os.open(self._path, _FOLDER & ~os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise Misconfigured(f"{self._path} is not a folder; mount the LTS there, or correct LTS_PATH") from None
        with _closing(root):
            try:
                uploads = os.open(UPLOADS, _FOLDER, dir_fd=root)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
                raise Misconfigured(
                    f"{self._path} has no folder {UPLOADS}: the LTS is not mounted there (on a new share, make that "
                    "folder); nothing was written"
                ) from None
        with _closing(uploads):
            yield uploads

    @contextmanager
    def _upload(self, upload_id: str, flags: int) -> Generator[int]:
        """An unfinished file, opened.

        Raises:
            UploadGone: it is finished, aborted or expired.
        """
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise UploadGone("the upload id is not one of this store's")
        with self._uploads() as folder:
            try:
                file = os.open(upload_id, flags, dir_fd=folder)
            except FileNotFoundError:
                raise UploadGone("the upload is unknown") from None
        with _closing(file):
            yield file

    @contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Generator[int]:
        """A folder below the root, opened without following links.

        Raises:
            FileAbsent: it is not there, or is not a folder.
            Misconfigured: the share is not mounted.
        """
        with self._uploads() as uploads:
            folder = os.open("..", _FOLDER, dir_fd=uploads)
        try:
            for name in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=folder)
                    # Also one that another process has just made.
                    _settle(folder)
                try:
                    below = os.open(name, _FOLDER, dir_fd=folder)
                except OSError as error:
                    if error.errno not in _NOT_THERE or make:
                        raise
                    raise FileAbsent(name) from None
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _place(self, path: str) -> Generator[tuple[int, str]]:
        """A finished file's folder, opened, and its name there.

        Raises:
            FileAbsent, Misconfigured: as for the folder.
        """
        *folders, name = _parts(path)
        with self._folder(folders) as folder:
            yield folder, name

    def _regular(self, folder: int, name: str) -> FileStat:
        """Size and locality of a regular file.

        Raises:
            FileAbsent: there is none of that name.
        """
        try:
            file = os.open(name, _LOOK, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            raise FileAbsent(name) from None
        with _closing(file):
            return _stat_of(file, self._residency)

    @contextmanager
    def _failing(self, what: str) -> Generator[None]:
        """Say what an `OSError` means."""
        try:
            yield
        except OSError as error:
            _refuse(what, error)


def _parts(path: str) -> list[str]:
    """The components of a path.

    Raises:
        UnsafePath: it is absolute, climbs, or cannot be a name on the share. Paths come from the catalogue too.
    """
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > _NAME_BYTES:
            raise UnsafePath(f"{path!r} is not a path below the LTS's folder")
    if parts[0] == UPLOADS:
        raise UnsafePath(f"{path!r}: {UPLOADS} is for unfinished files")
    return parts


def _publish(upload_id: str, uploads: int, name: str, folder: int) -> None:
    """Give an upload its name unless there is a file of that name; also when an earlier call got half-way."""
    try:
        try:
            os.link(upload_id, name, src_dir_fd=uploads, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS or _size(name, folder) is not None:
                raise
            # There are no hard links (SMB). Between look and rename only the same file could come in.
            os.rename(upload_id, name, src_dir_fd=uploads, dst_dir_fd=folder)
    except FileExistsError:
        if _size(name, folder) != _size(upload_id, uploads):
            return
    except FileNotFoundError:
        # Another one has finished it.
        return
    with suppress(FileNotFoundError):
        os.unlink(upload_id, dir_fd=uploads)


def _size(name: str, folder: int) -> int | None:
    with suppress(FileNotFoundError):
        return os.lstat(name, dir_fd=folder).st_size
    return None


def _settle(folder: int) -> None:
    """Make a folder's entries durable; file systems that cannot sync a folder write them at once (SMB)."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _stat_of(file: int, residency: Residency) -> FileStat:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise FileAbsent("not a regular file")
    return FileStat(found.st_size, residency(file, found))


def _fill(file: int, offset: int, into: memoryview) -> int:
    """Read until the buffer is full or the file ends; return how much there was."""
    filled = 0
    while filled < into.nbytes:
        got = os.preadv(file, [into[filled:]], offset + filled)
        if not got:
            break
        filled += got
    return filled


def _forget(file: int, offset: int, size: int) -> None:
    """Drop the pages of a range from memory; whole pages only, so the range grows to their bounds."""
    first = offset - offset % _PAGE
    os.posix_fadvise(file, first, offset + size + _PAGE - first, os.POSIX_FADV_DONTNEED)


@contextmanager
def _closing(file: int) -> Generator[int]:
    """Close in the end. The error of a close counts, since NFS says only then what it could not write."""
    try:
        yield file
    except BaseException:
        with suppress(OSError):
            os.close(file)
        raise
    os.close(file)


def _refuse(what: str, error: OSError) -> NoReturn:
    said = f"{what}: {error.strerror}"
    kind: type[InfrastructureError] = TapeUnavailable
    if error.errno in _FULL:
        kind = NoSpace
    elif error.errno in _REFUSED:
        kind = Misconfigured
        said += " (the workers' account must have access there)"
    elif error.errno == errno.EXDEV:
        kind = Misconfigured
        said += f" (the whole LTS must be one file system, {UPLOADS} included)"
    raise kind(said) from error
