"""Hypothesis strategies for what the domain is made of: odd names, odd times, odd owners."""

import hashlib
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from domain.datablock import BlockPlan
from domain.files import LandedObject, Member, RegisteredFile, format_time

PIDS = st.sampled_from(["20.500.11935/0d4c5e2e-8a1b-4a53-9d3e-1c0a4b7f2e11", "a", "pre fix/ü+%", "p" * 200])

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
"""For properties that pack a few kilobytes; no deadline, as the machines that run them are shared."""
few = settings(quick, max_examples=15)
"""For properties that start programs."""

_ODD = " +%\"'`$&;|<>*?[]{}()!#~\\:,=@^-_.äéß漢字😀\u0301\u0308\u200b\u00a0\ufeff"
_CHARACTERS = st.sampled_from(_ODD + "abcXYZ012") | st.characters(
    exclude_categories=["Cc", "Cs"], exclude_characters="/"
)
_LENGTHS = st.sampled_from([1, 2, 30, 31, 32, 60, 99, 100, 101, 154, 155, 156, 200, 254, 255])


def _tame(segment: str) -> bool:
    return segment not in ("", ".", "..") and len(segment.encode()) <= 255


@st.composite
def _long_segments(draw: st.DrawFn) -> str:
    head = draw(st.text(_CHARACTERS, max_size=5))
    return (head + "x" * draw(_LENGTHS))[: draw(_LENGTHS)]


segments = (st.text(_CHARACTERS, min_size=1, max_size=12) | _long_segments()).filter(_tame)
"""One part of a path: everything that is allowed and that software trips over."""

paths = st.lists(segments, min_size=1, max_size=4).map("/".join)
"""Relative paths of up to 1,023 bytes."""

HOSTILE_PATHS = (
    "", "/", "/etc/passwd", "../x", "a/../b", "a/..", "./a", "a//b", "a/", ".", "..", "a/./b", "nul\0", "new\nline",
    "cr\rx", "tab\tx", "esc\x1b[0m", "del\x7f", "c1\x85", "half\ud800", "y" * 256, "a/" + "ü" * 128,
)  # fmt: skip

times_ns = st.one_of(
    st.sampled_from([0, -1_000, -500_000_000, 1_700_000_000_000_000_000, (8**11 - 1) * 10**9, 8**11 * 10**9]),
    st.integers(0, 2_000_000_000).map(lambda seconds: seconds * 10**9),
    st.integers(-62_135_596_800 * 10**6, 253_402_300_799 * 10**6).map(lambda microseconds: microseconds * 1_000),
)
"""Fractional, negative, and as far away as RFC 3339 reaches."""

owners = st.sampled_from(
    ["", "0", "1000", "007", "2097151", "2097152", "4294967294", "4294967295", "9" * 40, "-1", "p12345", "Müller",
     "n" * 32, "n" * 31, "a b", "em-group"]
)  # fmt: skip

sizes = st.sampled_from([0, 0, 1, 511, 512, 513, 1024, 1025, 5000]) | st.integers(0, 3000)


def side_by_side(candidates: Iterable[str]) -> list[str]:
    """Those paths that can stand beside each other: distinct under NFC, none the folder of another."""
    kept: dict[str, str] = {}
    for path in candidates:
        normal = unicodedata.normalize("NFC", path)
        if not any(f"{normal}/".startswith(f"{other}/") or f"{other}/".startswith(f"{normal}/") for other in kept):
            kept[normal] = path
    return list(kept.values())


def path_sets(max_size: int = 8) -> st.SearchStrategy[list[str]]:
    """Paths of one dataset, in any order."""
    return st.lists(paths, min_size=1, max_size=max_size).map(side_by_side)


@st.composite
def members(draw: st.DrawFn, max_size: int = 8) -> tuple[Member, ...]:
    """The members of a datablock, sorted by path."""
    return tuple(
        Member(
            path=path,
            size=draw(sizes),
            etag=draw(st.sampled_from(["d41d8cd98f00b204e9800998ecf8427e", "9b2cf535f27731c974343645a3985328-3"])),
            mtime_ns=draw(times_ns),
            mode=draw(st.integers(0, 0o777)),
            uid=draw(owners),
            gid=draw(owners),
            version_id=draw(st.sampled_from([None, "v1"])),
        )
        for path in sorted(draw(path_sets(max_size)))
    )


@st.composite
def block_plans(draw: st.DrawFn, max_size: int = 8) -> BlockPlan:
    """Datablocks of a few kilobytes, in chunks of a few hundred bytes and more."""
    count = draw(st.integers(1, 30))
    return BlockPlan(
        pid=draw(PIDS),
        index=draw(st.integers(1, count)),
        count=count,
        chunk_bytes=draw(st.sampled_from([512, 1000, 4096, 20_000, 1 << 24])),
        members=draw(members(max_size)),
        generation=draw(st.integers(0, 2)),
    )


def content(member: Member) -> bytes:
    """The bytes of a member: always the same for the same path, no two alike."""
    return hashlib.shake_128(member.path.encode()).digest(member.size)


@st.composite
def datasets(draw: st.DrawFn, max_size: int = 8) -> tuple[list[RegisteredFile], list[LandedObject]]:
    """What the catalogue registers and what has landed; they fit, and some objects nobody registered."""
    registered: list[RegisteredFile] = []
    landed: list[LandedObject] = []
    for path in draw(path_sets(max_size)):
        size = draw(sizes)
        moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=draw(st.integers(0, 10**13)))
        landed.append(LandedObject(path, size, draw(st.sampled_from(["e1", "e2"])), moment, "v1"))
        if not registered or draw(st.booleans()):
            registered.append(
                RegisteredFile(
                    path=path,
                    size=size,
                    time=draw(st.sampled_from(["", format_time(draw(times_ns))])),
                    perm=draw(st.sampled_from(["", "-rw-r--r--", "0640", "nonsense"])),
                    uid=draw(owners),
                    gid=draw(owners),
                )
            )
    return registered, landed
