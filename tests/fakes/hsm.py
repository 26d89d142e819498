"""A tape system behind a plain folder, as a share in front of tape shows one to its clients.

A file that is on tape carries a mark; when its bytes leave the disk a stub of the same size stays, all of it a hole.
Who reads a stub gets zeros at once, where a real one would let the reader wait, and the bytes come back a moment later.
The access time tells that a stub was read, so reader and tape system may be different processes:

    python -m tests.fakes.hsm FOLDER VAULT [sticky|blocks|xattr:<attribute>]

then runs by itself: what has not been written to for a moment goes to tape, and leaves the disk a while after its last
read. The folder and the vault must lie on one file system that keeps access times.
"""

import errno
import hashlib
import os
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from clients.lts.filesystem import UPLOADS

LOOK_EVERY_S = 0.01
TO_TAPE_AFTER_S = 0.3
OFF_DISK_AFTER_S = 1.0


def keeps_access_times(folder: Path) -> bool:
    """Whether the file system notes that a file was read."""
    probe = folder / "probe"
    probe.write_bytes(b"x")
    os.utime(probe, ns=(0, time.time_ns()))
    probe.read_bytes()
    read_at = probe.stat().st_atime_ns
    probe.unlink()
    return bool(read_at)


class Hsm:
    """Migrates and evicts when told to, or of its own accord; recalls what is read."""

    def __init__(self, folder: Path, vault: Path, mark: str = "sticky", *, by_itself: bool = False) -> None:
        self._folder, self._vault, self._mark, self._by_itself = folder, vault, mark, by_itself
        self._tape: dict[str, int] = {}
        """Path → inode of the file that was migrated."""
        self._stubs: set[str] = set()
        self._asked: set[str] = set()
        """Stubs that somebody wanted to open."""
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look for stubs that were read."""
        (self._folder / UPLOADS).mkdir(parents=True, exist_ok=True)
        self._vault.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def migrate(self) -> None:
        """Copy everything to tape that is not there."""
        with self._lock:
            for path, found in self._files():
                if self._tape.get(path) != found.st_ino:
                    self._to_tape(path, found)

    def evict(self) -> None:
        """Leave stubs of everything that is on tape."""
        with self._lock:
            for path, found in self._files():
                if self._tape.get(path) == found.st_ino and path not in self._stubs:
                    self._leave_stub(path, found)

    def open(self, name: str, flags: int, *, dir_fd: int) -> int:
        """As `os.open`, for clients whose tape system refuses to read stubs and recalls them meanwhile."""
        with self._lock:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            asked = {path for path in self._stubs if self._tape[path] == found.st_ino}
            self._asked |= asked
        if asked:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return os.open(name, flags, dir_fd=dir_fd)

    def _run(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            with self._lock:
                for path in list(self._stubs):
                    found = self._stub(path)
                    if found is None:
                        self._forget(path)
                    elif path in self._asked or found.st_atime_ns:
                        self._recall(path)
                if self._by_itself:
                    self._move_on()

    def _move_on(self) -> None:
        now = time.time()
        for path, found in self._files():
            if self._tape.get(path) != found.st_ino:
                if now - found.st_mtime > TO_TAPE_AFTER_S:
                    self._to_tape(path, found)
            elif path not in self._stubs and now - max(found.st_atime, found.st_ctime) > OFF_DISK_AFTER_S:
                self._leave_stub(path, found)

    def _stub(self, path: str) -> os.stat_result | None:
        """None if the client has deleted it, and maybe put another file there."""
        with suppress(FileNotFoundError):
            found = (self._folder / path).lstat()
            if found.st_ino == self._tape[path]:
                return found
        return None

    def _to_tape(self, path: str, found: os.stat_result) -> None:
        with suppress(FileNotFoundError):
            self._copy(self._folder / path, self._kept(path))
            self._set_mark(self._folder / path)
            self._tape[path] = found.st_ino

    def _files(self) -> list[tuple[str, os.stat_result]]:
        found: list[tuple[str, os.stat_result]] = []
        for path in self._folder.rglob("*"):
            with suppress(FileNotFoundError):
                one = path.lstat()
                name = str(path.relative_to(self._folder))
                if stat.S_ISREG(one.st_mode) and not name.startswith(UPLOADS):
                    found.append((name, one))
        return found

    def _leave_stub(self, path: str, found: os.stat_result) -> None:
        stub = self._vault / "stub"
        with stub.open("wb") as file:
            file.truncate(found.st_size)
        self._set_mark(stub)
        # Older than its last change: by relatime, too, the next read shows.
        os.utime(stub, ns=(0, found.st_mtime_ns))
        self._stubs.add(path)
        self._replace(stub, path)

    def _recall(self, path: str) -> None:
        whole = self._vault / "recalled"
        self._copy(self._kept(path), whole)
        self._set_mark(whole)
        self._stubs.discard(path)
        self._asked.discard(path)
        self._replace(whole, path)

    def _replace(self, new: Path, path: str) -> None:
        """Unless the client has deleted it meanwhile."""
        if (self._folder / path).exists():
            new.replace(self._folder / path)
            self._tape[path] = (self._folder / path).stat().st_ino
        else:
            self._forget(path)

    def _forget(self, path: str) -> None:
        self._stubs.discard(path)
        self._asked.discard(path)
        self._tape.pop(path, None)

    def _kept(self, path: str) -> Path:
        return self._vault / hashlib.sha256(os.fsencode(path)).hexdigest()

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())

    def _set_mark(self, file: Path) -> None:
        kind, _, attribute = self._mark.partition(":")
        if kind == "sticky":
            file.chmod(0o1644)
        elif kind == "xattr":
            os.setxattr(file, attribute, b"1")


if __name__ == "__main__":
    hsm = Hsm(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4], by_itself=True)
    hsm.start()
    print("ready", flush=True)  # noqa: T201
    threading.Event().wait()
