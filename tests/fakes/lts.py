"""A long-term store in memory that keeps `clients/lts/protocol.py` to the letter and does nothing of its own accord."""

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from threading import RLock

from clients.lts.protocol import (
    ChunkRefused,
    FileAbsent,
    FileStat,
    Locality,
    Nearline,
    OffsetMismatch,
    Recalled,
    RecallGone,
    RecallState,
    SpaceReport,
    UploadGone,
    WriteOnce,
)
from domain.errors import Damaged, NoSpace, TapeUnavailable


@dataclass
class FakeFile:
    """A complete file; `bytes_` may be changed to play damage."""

    bytes_: bytearray
    on_disk: bool = True
    on_tape: bool = False
    lost: bool = False

    @property
    def locality(self) -> Locality:
        """In the words of the Tape REST API."""
        if self.lost:
            return Locality.LOST
        if self.on_tape:
            return Locality.DISK_AND_TAPE if self.on_disk else Locality.TAPE
        return Locality.DISK


@dataclass
class _Upload:
    path: str
    size: int
    received: bytearray = field(default_factory=bytearray)


class FakeLongTermStore:
    """Implements `LongTermStore`, `NearlineStore`, `Listable` and `Space`.

    A test plays the library: `migrate`, `evict`, `recall_now`, `fail_recall`; or it sets `migrates` and `recalls`, and
    files are on tape as soon as they are finished, and on disk as soon as a recall is asked about.
    `fail_next("write", error)` makes calls of a method raise.
    """

    def __init__(
        self, *, capacity_bytes: int = 1 << 40, worm: bool = False, migrates: bool = False, recalls: bool = False
    ) -> None:
        self.capacity_bytes, self.worm, self.migrates, self.recalls = capacity_bytes, worm, migrates, recalls
        self.files: dict[str, FakeFile] = {}
        self.uploads: dict[str, _Upload] = {}
        self.pins: set[tuple[str, str]] = set()
        """(recall id, path) that hold a file on disk."""
        self.calls: Counter[str] = Counter()
        self.bytes_written = 0
        self.bytes_read = 0
        self._recalls: dict[str, dict[str, Recalled]] = {}
        self._failures: dict[str, deque[Exception]] = {}
        self._last_id = 0
        # `write` and `read_range` come from threads.
        self._lock = RLock()

    # --- for tests ----------------------------------------------------------------------------------------------------

    def fail_next(self, method: str, *errors: Exception) -> None:
        """Make the next calls of a method raise these, one each."""
        self._failures.setdefault(method, deque()).extend(errors)

    def migrate(self, *paths: str) -> None:
        """Copy these files to tape, or all."""
        for path in paths or self.files:
            self.files[path].on_tape = True

    def evict(self, *paths: str) -> None:
        """Take these files, or all, off the disk if they are on tape and not pinned."""
        pinned = {path for _, path in self.pins}
        for path in paths or self.files:
            file = self.files[path]
            file.on_disk = file.on_disk and (path in pinned or not file.on_tape)

    def recall_now(self, *paths: str) -> None:
        """Bring what is waited for to disk, these paths or all."""
        for recall_id, entries in self._recalls.items():
            for path, entry in entries.items():
                if entry.state is RecallState.WAITING and (not paths or path in paths):
                    self.files[path].on_disk = True
                    self.pins.add((recall_id, path))
                    entries[path] = Recalled(path, RecallState.ONLINE)

    def fail_recall(self, path: str, error: str = "I/O error") -> None:
        """Let what is waited for at this path fail."""
        for entries in self._recalls.values():
            if path in entries and entries[path].state is RecallState.WAITING:
                entries[path] = Recalled(path, RecallState.FAILED, error)

    def forget_upload(self, upload_id: str) -> None:
        """Let an upload expire."""
        del self.uploads[upload_id]

    # --- LongTermStore ------------------------------------------------------------------------------------------------

    async def open_write(self, path: str, size_bytes: int) -> str:
        """Begin an upload."""
        with self._called("open_write"):
            if self.worm and path in self.files:
                raise WriteOnce(f"{path} exists")
            if self._used() + sum(upload.size for upload in self.uploads.values()) + size_bytes > self.capacity_bytes:
                raise NoSpace(f"no room for {path}")
            upload_id = self._new_id("upload")
            self.uploads[upload_id] = _Upload(path, size_bytes)
            return upload_id

    async def write_offset(self, upload_id: str, synced: int = 0) -> int:
        """Bytes received."""
        with self._called("write_offset"):
            return len(self._upload(upload_id).received)

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        """Take a chunk; the last one makes the file appear."""
        with self._called("write"):
            upload = self._upload(upload_id)
            if offset != len(upload.received):
                raise OffsetMismatch(f"at {len(upload.received)}, not {offset}")
            if offset + data.nbytes > upload.size:
                raise NoSpace("the chunk reaches beyond the file's end")
            if hashlib.sha256(data).digest() != sha256:
                raise ChunkRefused("another digest")
            upload.received += data
            self.bytes_written += data.nbytes
            if len(upload.received) == upload.size:
                self.files[upload.path] = FakeFile(bytearray(upload.received), on_tape=self.migrates)

    def sync(self, upload_id: str) -> None:
        """Nothing to do: memory loses nothing but all of it."""
        with self._called("sync"):
            self._upload(upload_id)

    async def finish(self, upload_id: str, path: str, size_bytes: int) -> None:
        """Look whether the file is there."""
        with self._called("finish"):
            if path not in self.files:
                raise TapeUnavailable(f"{path} is not there")
            if len(self.files[path].bytes_) != size_bytes:
                raise Damaged(f"{path} has another size")

    async def abort(self, upload_id: str) -> None:
        """Forget the upload."""
        with self._called("abort"):
            self.uploads.pop(upload_id, None)

    async def stat(self, path: str) -> FileStat | None:
        """Size and locality."""
        with self._called("stat"):
            file = self.files.get(path)
            return None if file is None else FileStat(len(file.bytes_), file.locality)

    def read_range(self, path: str, offset: int, into: memoryview) -> None:
        """Copy a range."""
        with self._called("read_range"):
            if not into.nbytes:
                return
            file = self.files.get(path)
            if file is None:
                raise FileAbsent(path)
            if not file.on_disk:
                raise Nearline(path)
            part = file.bytes_[offset : offset + into.nbytes]
            if len(part) != into.nbytes:
                raise Damaged(f"{path} is shorter")
            into[:] = part
            self.bytes_read += len(part)

    async def delete(self, path: str) -> None:
        """Remove the file."""
        with self._called("delete"):
            if path in self.files and self.worm:
                raise WriteOnce(path)
            self.files.pop(path, None)

    async def aclose(self) -> None:
        """Nothing to close."""

    # --- NearlineStore ------------------------------------------------------------------------------------------------

    async def localities(self, paths: Sequence[str]) -> dict[str, Locality]:
        """Of those that exist."""
        with self._called("localities"):
            return {path: self.files[path].locality for path in paths if path in self.files}

    async def request_recall(self, paths: Sequence[str], pin_lifetime: timedelta) -> str:
        """Note what is waited for; what is on disk is pinned at once."""
        with self._called("request_recall"):
            recall_id = self._new_id("recall")
            entries = self._recalls[recall_id] = {path: Recalled(path, RecallState.WAITING) for path in paths}
            for path in entries:
                file = self.files.get(path)
                if file is None or file.lost:
                    entries[path] = Recalled(path, RecallState.FAILED, "no such file" if file is None else "lost")
                elif file.on_disk:
                    entries[path] = Recalled(path, RecallState.ONLINE)
                    self.pins.add((recall_id, path))
            return recall_id

    async def recall_state(self, recall_id: str, paths: Sequence[str] = ()) -> list[Recalled]:
        """One entry for every path."""
        with self._called("recall_state"):
            if recall_id not in self._recalls:
                raise RecallGone(recall_id)
            if self.recalls:
                self.recall_now()
            return list(self._recalls[recall_id].values())

    async def release(self, recall_id: str, paths: Sequence[str]) -> None:
        """Take the pins off."""
        with self._called("release"):
            self.pins -= {(recall_id, path) for path in paths}

    async def cancel(self, recall_id: str) -> None:
        """Forget the recall and its pins."""
        with self._called("cancel"):
            self._recalls.pop(recall_id, None)
            self.pins = {(pinned_by, path) for pinned_by, path in self.pins if pinned_by != recall_id}

    # --- Space, Listable ----------------------------------------------------------------------------------------------

    async def space(self) -> SpaceReport:
        """By the capacity that it was made with."""
        with self._called("space"):
            return SpaceReport(max(0, self.capacity_bytes - self._used()), self._used())

    async def list(self, prefix: str, *, after: str = "", limit: int | None = None) -> dict[str, int]:
        """Files below a folder, by path."""
        with self._called("list"):
            folder = prefix.rstrip("/") + "/" if prefix else ""
            paths = sorted(path for path in self.files if path.startswith(folder) and path > after)
            return {path: len(self.files[path].bytes_) for path in paths[:limit]}

    def _called(self, method: str) -> RLock:
        """Count the call, raise what was ordered, and hand out the lock."""
        self.calls[method] += 1
        ordered = self._failures.get(method)
        if ordered:
            raise ordered.popleft()
        return self._lock

    def _new_id(self, kind: str) -> str:
        self._last_id += 1
        return f"{kind}-{self._last_id}"

    def _upload(self, upload_id: str) -> _Upload:
        if upload_id not in self.uploads:
            raise UploadGone(upload_id)
        return self.uploads[upload_id]

    def _used(self) -> int:
        return sum(len(file.bytes_) for file in self.files.values())
