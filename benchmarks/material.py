"""What is archived: files of noise, on disk or as a stream for what is too large to lie there twice."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """A file to be: its path in the dataset and its size in bytes."""

    path: str
    size: int


def files(count: int, size: int, *, folders: int = 1) -> tuple[File, ...]:
    """As many files of one size, spread over so many folders."""
    return tuple(File(f"folder-{n % folders:03d}/file-{n:06d}.bin", size) for n in range(count))


def noise(size: int, seed: int) -> Iterator[bytes]:
    """Bytes that do not compress, in pieces of a MiB no two of which are equal."""
    base = _block()
    for number in range(-(-size // _BLOCK_BYTES)):
        header = f"{seed}/{number}/".encode()
        yield (header + base)[: min(_BLOCK_BYTES, size - number * _BLOCK_BYTES)]


def write(folder: Path, listed: Sequence[File]) -> None:
    """Make the files below a folder."""
    for seed, file in enumerate(listed):
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as opened:
            opened.writelines(noise(file.size, seed))


@cache
def _block() -> bytes:
    return random.Random(0).randbytes(_BLOCK_BYTES)  # noqa: S311 - noise, no secret
