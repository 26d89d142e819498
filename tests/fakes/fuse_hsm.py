"""A tape system with a file system of its own, over FUSE: here a stub is read as the kernel reads it.

    python -m tests.fakes.fuse_hsm BACKING MOUNTPOINT refuses|waits

Setting a file's sticky bit sends it to tape and its bytes off the disk. A read of a stub starts a recall that takes a
moment; meanwhile the read fails with EIO, or waits.
"""

import errno
import os
import stat
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations  # pyright: ignore[reportMissingTypeStubs]

RECALL_S = 0.3


class TapeFileSystem(Operations):
    """Hands everything on to a folder, but for what is on tape."""

    use_ns = True

    def __init__(self, backing: Path, *, waits: bool) -> None:
        self._backing, self._waits = backing, waits
        self._stubs: dict[str, threading.Event] = {}
        """Path → set when its bytes are back."""
        self._coming: set[str] = set()
        self._lock = threading.Lock()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = _told(lambda: os.lstat(self._at(path)))
        names = ("st_mode", "st_nlink", "st_size", "st_blocks", "st_uid", "st_gid")
        attributes: dict[str, Any] = {name: getattr(found, name) for name in names}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            attributes[name] = getattr(found, f"{name}_ns")
        if path in self._stubs:
            attributes["st_blocks"] = 0
        return attributes

    def chmod(self, path: str, mode: int) -> int:
        _told(lambda: self._at(path).chmod(mode))
        if mode & stat.S_ISVTX:
            with self._lock:
                self._stubs[path] = threading.Event()
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        back = self._stubs.get(path)
        if back is not None:
            with self._lock:
                if path not in self._coming:
                    self._coming.add(path)
                    threading.Timer(RECALL_S, self._recalled, [path]).start()
            if not self._waits:
                raise FuseOSError(errno.EIO)
            back.wait()
        return _told(lambda: os.pread(fh, size, offset))

    def _recalled(self, path: str) -> None:
        with self._lock:
            self._coming.discard(path)
            self._stubs.pop(path).set()

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return _told(lambda: os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))

    def open(self, path: str, flags: int) -> int:
        return _told(lambda: os.open(self._at(path), flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return _told(lambda: os.pwrite(fh, data, offset))

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return _told(lambda: os.fsync(fh)) or 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        return _told(lambda: os.close(fh)) or 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return _told(lambda: os.truncate(self._at(path), length)) or 0

    def link(self, target: str, source: str) -> int:
        return _told(lambda: os.link(self._at(source), self._at(target))) or 0

    def unlink(self, path: str) -> int:
        return _told(lambda: self._at(path).unlink()) or 0

    def rename(self, old: str, new: str) -> int:
        _told(lambda: self._at(old).rename(self._at(new)))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        return _told(lambda: self._at(path).mkdir(mode)) or 0

    def rmdir(self, path: str) -> int:
        return _told(lambda: self._at(path).rmdir()) or 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *_told(lambda: [entry.name for entry in self._at(path).iterdir()])]

    def statfs(self, path: str) -> dict[str, int]:
        found = _told(lambda: os.statvfs(self._at(path)))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax")
        return {name: getattr(found, name) for name in names}

    def _at(self, path: str) -> Path:
        return self._backing / path.lstrip("/")


def _told(call: Callable[[], Any]) -> Any:
    """Hand the number of an error on to the kernel."""
    try:
        return call()
    except OSError as error:
        raise FuseOSError(error.errno or errno.EIO) from error


if __name__ == "__main__":
    backing, mountpoint, manner = sys.argv[1:]
    mount = partial(FUSE, foreground=True, attr_timeout=0, entry_timeout=0, fsname="tape")
    mount(TapeFileSystem(Path(backing), waits=manner == "waits"), mountpoint)
