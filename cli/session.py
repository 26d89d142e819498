"""A generated electron-microscopy session: what a microscope leaves behind in a morning, but small.

Movies (MRC, bytes), a gain reference (MRC, floats), an XML beside each movie, a session file, and a few names as people
give them. Deterministic: the same arguments make the same bytes and times. Noise hardly compresses, as real movies do.
"""

import os
import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

MIB = 1 << 20
DEFAULT_BYTES = 256 * MIB

_FRAME = 1024
"""Pixels along each side of a movie's frame; a byte a pixel, so a frame is one MiB."""
_FRAMES = 8
_GAIN = 2048
_SQUARES = 4
_STARTED = datetime(2024, 3, 12, 9, 30, tzinfo=UTC)


def generate_session(folder: Path, *, total_bytes: int = DEFAULT_BYTES, seed: int = 2024) -> None:
    """Fill `folder` with a session of about `total_bytes`, at least one movie and one small gain reference."""
    noise = random.Random(seed)  # noqa: S311 (noise, no secret)
    side = _GAIN if total_bytes >= 64 * MIB else 256
    movie_bytes = _FRAMES * _FRAME * _FRAME
    movies = max(1, round((total_bytes - 4 * side * side) / movie_bytes))
    frames = _FRAMES if total_bytes >= movie_bytes else 1
    _write(folder / "gain reference (counted, ü) 100%.mrc", _mrc(noise, side, 1, mode=2), minutes=0)
    _write(folder / "EpuSession.dm", [_session_xml(movies).encode()], minutes=1)
    _write(folder / "Metadata" / "operator's notes + to-do.txt", [b"Ice too thick on square 3.\n"], minutes=2)
    _write(folder / "Metadata" / "finished", [], minutes=3)
    for number in range(movies):
        stem = _movie_stem(number)
        data = folder / "Images-Disc1" / f"GridSquare_{10093765 + number % _SQUARES}" / "Data"
        _write(data / f"{stem}_fractions.mrc", _mrc(noise, _FRAME, frames, mode=0), minutes=5 + number)
        _write(data / f"{stem}.xml", [_movie_xml(stem, number, frames).encode()], minutes=5 + number)


def _write(path: Path, parts: Iterator[bytes] | list[bytes], *, minutes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(parts)
    moment = (_STARTED + timedelta(minutes=minutes)).timestamp()
    os.utime(path, (moment, moment))


def _mrc(noise: random.Random, side: int, frames: int, *, mode: int) -> Iterator[bytes]:
    """An MRC2014 stack: header, then frame by frame; mode 0 holds signed bytes, 2 floats."""
    yield _mrc_header(side, frames, mode)
    for _ in range(frames):
        if mode == 0:
            yield noise.randbytes(side * side)
        else:  # mantissas of noise below the exponent of one: floats between 1 and 2
            mantissas = memoryview(noise.randbytes(4 * side * side)).cast("I")
            yield struct.pack(f"<{side * side}I", *((m & 0x7FFFFF) | 0x3F800000 for m in mantissas))


def _mrc_header(side: int, frames: int, mode: int) -> bytes:
    header = bytearray(1024)
    struct.pack_into("<10i", header, 0, side, side, frames, mode, 0, 0, 0, side, side, frames)
    struct.pack_into("<6f", header, 40, side * 0.83, side * 0.83, frames * 1.0, 90.0, 90.0, 90.0)
    struct.pack_into("<3i", header, 64, 1, 2, 3)
    header[104:108] = b"MRCO"
    struct.pack_into("<i", header, 108, 20140)
    header[208:216] = b"MAP \x44\x44\x00\x00"
    return bytes(header)


def _movie_stem(number: int) -> str:
    taken = _STARTED + timedelta(minutes=5 + number)
    return f"FoilHole_{10105764 + number}_Data_10105290_{number % 9}_{taken:%Y%m%d_%H%M%S}"


def _session_xml(movies: int) -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<EpuSession><Name>Demo</Name><StartDateTime>{_STARTED.isoformat()}</StartDateTime>"
        f"<Movies>{movies}</Movies></EpuSession>\n"
    )


def _movie_xml(stem: str, number: int, frames: int) -> str:
    taken = (_STARTED + timedelta(minutes=5 + number)).isoformat()
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<MicroscopeImage><name>{stem}</name><acquisitionDateTime>{taken}</acquisitionDateTime>"
        f"<frames>{frames}</frames><pixelSize unit='m'>8.3e-11</pixelSize></MicroscopeImage>\n"
    )
