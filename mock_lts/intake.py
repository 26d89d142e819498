"""Bodies on their way to disk: gathered to a mebibyte, hashed and written in a thread while the next one arrives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

BLOCK_BYTES = 1 << 20
MAX_PIECES = 512
"""`pwritev` takes at most IOV_MAX (1,024) pieces."""


class Hash(Protocol):
    """What hashlib returns."""

    def update(self, data: bytes, /) -> None:
        """Take in the next bytes."""
        ...

    def digest(self) -> bytes:
        """The value so far."""
        ...


class Intake:
    """Writes the bytes fed to it at an offset of a blob; use as an async context manager, then read `written`."""

    def __init__(self, path: Path, offset: int, hashes: Sequence[Hash], threads: Executor) -> None:
        self.written = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        self._offset = offset
        self._hashes = hashes
        self._threads = threads
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._writing: asyncio.Future[int] | None = None

    async def feed(self, piece: bytes) -> None:
        """Take a piece; waits only while the block before the last is still being written.

        Raises:
            OSError: The disk refuses.
        """
        self._pieces.append(piece)
        self._gathered += len(piece)
        if self._gathered >= BLOCK_BYTES or len(self._pieces) >= MAX_PIECES:
            await self._hand_over()

    async def finish(self) -> None:
        """Write what is left; then `written` is everything that was fed.

        Raises:
            OSError: The disk refuses.
        """
        if self._pieces:
            await self._hand_over()
        await self._settle()

    async def __aenter__(self) -> Intake:
        return self

    async def __aexit__(self, *_: object) -> None:
        # A thread may still write: closing the descriptor under it could hit another file that gets the same number.
        if self._writing is not None and not self._writing.done():
            self._writing.add_done_callback(lambda _: os.close(self._fd))
        else:
            os.close(self._fd)

    async def _hand_over(self) -> None:
        await self._settle()
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(
            self._threads, _write, self._fd, pieces, self._offset + self.written, self._hashes
        )

    async def _settle(self) -> None:
        if self._writing is not None:
            # Shielded: a cancelled request must not lose track of the thread.
            self.written += await asyncio.shield(self._writing)
            self._writing = None


def _write(fd: int, pieces: list[bytes], offset: int, hashes: Sequence[Hash]) -> int:
    for digest in hashes:
        for piece in pieces:
            digest.update(piece)
    size = sum(map(len, pieces))
    done = os.pwritev(fd, pieces, offset)
    if done < size:  # legal for write(2), if rare
        rest = memoryview(b"".join(pieces))
        while done < size:
            done += os.pwrite(fd, rest[done:], offset + done)
    return size
