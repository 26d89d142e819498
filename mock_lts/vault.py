"""The bytes: a cache folder and one folder per cartridge.

A file has at most two names for its bytes, `cache/<id>` and `tapes/<volume>/<id>`, hard links of one inode: migrating
and recalling cost no copy, and once evicted nothing in the cache can serve a read. Blobs are named by id, not by path,
so any path works and publishing is one database commit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Vault:
    """Blobs in folders. A method blocks as long as a system call on a directory takes, unless it says otherwise."""

    def __init__(self, root: Path, volumes: Iterable[str]) -> None:
        self._cache = root / "cache"
        self._tapes = root / "tapes"
        self._cache.mkdir(parents=True, exist_ok=True)
        for volume in volumes:
            (self._tapes / volume).mkdir(parents=True, exist_ok=True)
        # Freeing the blocks of a large file takes a while; nobody has to wait for it.
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="sweep")

    def close(self) -> None:
        """Finish deleting."""
        self._sweeper.shutdown()

    def cached(self, file_id: str) -> Path:
        """Where the disk copy is, or would be."""
        return self._cache / file_id

    def on_tape(self, file_id: str, volume: str) -> Path:
        """Where the tape copy is, or would be."""
        return self._tapes / volume / file_id

    def create(self, file_id: str) -> None:
        """Make an empty blob in the cache."""
        self.cached(file_id).touch(mode=0o640, exist_ok=False)

    def harden(self, file_id: str) -> None:
        """Make a cached blob and its name survive a power cut. Blocks: call it in a thread."""
        for path, flags in ((self.cached(file_id), os.O_RDWR), (self._cache, os.O_RDONLY | os.O_DIRECTORY)):
            fd = os.open(path, flags)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def to_tape(self, file_id: str, volume: str) -> None:
        """Write the tape copy; twice does no harm."""
        _link(self.cached(file_id), self.on_tape(file_id, volume))

    def to_disk(self, file_id: str, volume: str) -> None:
        """Bring the tape copy into the cache; twice does no harm."""
        _link(self.on_tape(file_id, volume), self.cached(file_id))

    def off_disk(self, file_id: str) -> None:
        """Drop the disk copy; readers that have it open go on."""
        self.cached(file_id).unlink(missing_ok=True)

    def delete(self, file_id: str, volume: str | None) -> None:
        """Drop every copy, in the background."""
        paths = [self.cached(file_id)] + ([self.on_tape(file_id, volume)] if volume else [])
        self._sweeper.submit(lambda: [path.unlink(missing_ok=True) for path in paths])

    def sweep(self, in_cache: set[str], on_tape: Mapping[str, set[str]]) -> None:
        """Drop blobs that a crash left without an owner. Blocks; for start-up."""
        for folder, wanted in [(self._cache, in_cache)] + [
            (folder, on_tape.get(folder.name, set())) for folder in self._tapes.iterdir()
        ]:
            for blob in folder.iterdir():
                if blob.name not in wanted and (blob.is_symlink() or not blob.is_dir()):
                    blob.unlink()

    @staticmethod
    def flip(path: Path, offset: int) -> None:
        """Damage one byte of one copy and not of the other. Blocks: it copies the file."""
        damaged = path.with_name(path.name + ".damaged")
        shutil.copyfile(path, damaged)
        with damaged.open("r+b") as blob:
            blob.seek(offset)
            byte = blob.read(1)
            blob.seek(offset)
            blob.write(bytes(b ^ 0xFF for b in byte))
        damaged.replace(path)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        # A crash came between the link and the commit. The other name of these bytes may have been damaged on purpose
        # since, so take the source again.
        target.unlink()
        target.hardlink_to(source)
