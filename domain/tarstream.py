"""The tar of a datablock: POSIX.1-2001 (pax), every byte of it decided by the plan and the members' digests.

    header │ member 0 │ padding │ header │ member 1 │ … │ tag files │ 1,024 zero bytes

A `Layout` knows where everything lies before anything is read, so any range of the tar can be produced, resumed and
checked by itself. Rules a re-implementation has to follow stand in `docs/reference/datablock-format.md`.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from domain import bagit, names
from domain.datablock import BlockPlan, chunk_bytes_for
from domain.files import Member

BLOCK = 512
END = bytes(2 * BLOCK)
_MAX_OCTAL_12 = 8**11 - 1
_MAX_OCTAL_8 = 8**7 - 1
_MAX_ID = 2**32 - 2
"""The largest uid or gid; 2^32 - 1 stands for none."""
_NANOSECONDS = 1_000_000_000

_USTAR = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100s 8s 32s 32s 8s 8s 155s 12x")
"""name, mode, uid, gid, size, mtime, checksum, kind, link, magic and version, uname, gname, major, minor, prefix."""


def padding(size: int) -> int:
    """Zero bytes behind content of `size` bytes."""
    return -size % BLOCK


def _ustar(
    name: bytes,
    kind: bytes,
    size: int,
    *,
    mode: int = 0o644,
    mtime: int = 0,
    uid: int = 0,
    gid: int = 0,
    uname: bytes = b"",
    gname: bytes = b"",
) -> bytes:
    """One ustar header block; every value fits its field."""
    before = (name, b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, b"%011o\0" % size, b"%011o\0" % mtime)
    behind = (kind, b"", b"ustar\x0000", uname, gname, b"0000000\0", b"0000000\0", b"")
    checksum = sum(_USTAR.pack(*before, b" " * 8, *behind))
    return _USTAR.pack(*before, b"%06o\0 " % checksum, *behind)


def _record(key: str, value: str) -> bytes:
    """A pax record: its decimal length, counting itself, a space, key=value, newline."""
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _decimal_time(mtime_ns: int) -> str:
    sign = "-" if mtime_ns < 0 else ""
    seconds, fraction = divmod(abs(mtime_ns), _NANOSECONDS)
    return f"{sign}{seconds}" + (f".{fraction:09d}".rstrip("0") if fraction else "")


def _header_time(mtime_ns: int) -> tuple[int, bool]:
    """The ustar header's mtime: whole seconds, 0 if they do not fit; and whether that is all of it."""
    seconds, fraction = divmod(mtime_ns, _NANOSECONDS)
    fits = 0 <= seconds <= _MAX_OCTAL_12
    return (seconds if fits else 0), (fits and not fraction)


@lru_cache(maxsize=4096)
def _owner(text: str, key: str) -> tuple[int, bytes, bytes]:
    """(number, name, pax record) of an owner that the catalogue gives as a number, as a name, or not at all.

    A number that no system can have as an id is kept as a name: GNU tar ends with an error at `uid=4294967296`.
    """
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID:
        number = int(text)
        return (number, b"", b"") if number <= _MAX_OCTAL_8 else (0, b"", _record(f"{key}id", str(number)))
    encoded = text.encode()
    if len(encoded) > 31 or not text.isascii():
        return 0, b"", _record(f"{key}name", text)
    return 0, encoded, b""


def _pax_records(name: str, size: int, mtime_ns: int, uid: str, gid: str) -> bytes:
    """The records of all that a ustar header does not hold, sorted by key; empty if it holds everything."""
    records = _owner(gid, "g")[2]
    if not _header_time(mtime_ns)[1]:
        records += _record("mtime", _decimal_time(mtime_ns))
    if len(name) > 100 or not name.isascii():
        records += _record("path", name)
    if size > _MAX_OCTAL_12:
        records += _record("size", str(size))
    return records + _owner(uid, "u")[2]


@lru_cache(maxsize=1024)
def _pax_header(records_bytes: int) -> bytes:
    return _ustar(b"././@PaxHeader", b"x", records_bytes)


def header(name: str, size: int, *, mtime_ns: int, mode: int, uid: str = "", gid: str = "") -> bytes:
    """Header blocks of a regular file: one ustar block, with a pax header before it where a value does not fit."""
    uid_number, uname, _ = _owner(uid, "u")
    gid_number, gname, _ = _owner(gid, "g")
    block = _ustar(
        name.encode()[:100],
        b"0",
        size if size <= _MAX_OCTAL_12 else 0,
        mode=mode,
        mtime=_header_time(mtime_ns)[0],
        uid=uid_number,
        gid=gid_number,
        uname=uname,
        gname=gname,
    )
    records = _pax_records(name, size, mtime_ns, uid, gid)
    if not records:
        return block
    return b"".join([_pax_header(len(records)), records, bytes(padding(len(records))), block])


def header_bytes(name: str, size: int, *, mtime_ns: int, uid: str = "", gid: str = "") -> int:
    """Length of `header`, at a third of its cost."""
    records = len(_pax_records(name, size, mtime_ns, uid, gid))
    return 2 * BLOCK + records + padding(records) if records else BLOCK


@dataclass(frozen=True, slots=True)
class FromMember:
    """A run of the tar that is a run of a member's content."""

    offset: int
    """In the tar."""
    length: int
    member: int
    """Position in the plan's members."""
    start: int
    """In the member."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A run of the tar that follows from the plan: headers, padding."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FromTags:
    """A run of the tar's tail, which is known when all members' digests are."""

    offset: int
    length: int
    start: int
    """In the tail."""


Piece = FromMember | Literal | FromTags


class Layout:
    """Where each byte of a datablock's tar comes from."""

    def __init__(self, plan: BlockPlan) -> None:
        self.plan = plan
        self.header_offsets: list[int] = []
        self.data_offsets: list[int] = []
        # A header's length does not depend on the digest in the datablock's name, which is dear to compute.
        folder = names.datablock_stem(plan.pid, plan.index, "0" * 8)
        offset = 0
        for member in plan.members:
            self.header_offsets.append(offset)
            name = f"{folder}/data/{member.path}"
            offset += header_bytes(name, member.size, mtime_ns=member.mtime_ns, uid=member.uid, gid=member.gid)
            self.data_offsets.append(offset)
            offset += member.size + padding(member.size)
        self.tail_offset = offset
        tags = bagit.tag_file_sizes(plan, self.data_offsets)
        for name, size in tags:
            offset += header_bytes(f"{folder}/{name}", size, mtime_ns=self._tag_mtime_ns) + size + padding(size)
        self.tar_bytes = offset + len(END)

    @cached_property
    def _stem(self) -> str:
        return self.plan.stem

    @cached_property
    def _tag_mtime_ns(self) -> int:
        return bagit.newest_second(self.plan) * _NANOSECONDS

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk but the last."""
        return self.plan.chunk_bytes

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return -(-self.tar_bytes // self.chunk_bytes)

    def _header(self, member: Member) -> bytes:
        return header(
            f"{self._stem}/data/{member.path}",
            member.size,
            mtime_ns=member.mtime_ns,
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
        )

    def _tag_header(self, name: str, size: int) -> bytes:
        return header(f"{self._stem}/{name}", size, mtime_ns=self._tag_mtime_ns, mode=0o644)

    def tail(self, digests: Sequence[str]) -> bytes:
        """Everything behind the payload, given the hex digests of all members."""
        parts: list[bytes] = []
        for name, content in bagit.tag_files(self.plan, self.data_offsets, digests):
            parts += [self._tag_header(name, len(content)), content, bytes(padding(len(content)))]
        return b"".join([*parts, END])

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """The pieces that make up `length` bytes of the tar from `offset` on, in order, without gap or overlap."""
        stop = min(offset + length, self.tar_bytes)
        index = max(bisect_right(self.header_offsets, offset) - 1, 0)
        while offset < min(stop, self.tail_offset):
            member = self.plan.members[index]
            data_offset = self.data_offsets[index]
            data_end = data_offset + member.size
            entry_end = data_end + padding(member.size)
            if offset < data_offset:
                begin = offset - self.header_offsets[index]
                data = self._header(member)[begin : begin + stop - offset]
                yield Literal(offset, data)
                offset += len(data)
            if offset < min(stop, data_end):
                run = min(stop, data_end) - offset
                yield FromMember(offset, run, index, offset - data_offset)
                offset += run
            if data_end <= offset < min(stop, entry_end):
                run = min(stop, entry_end) - offset
                yield Literal(offset, bytes(run))
                offset += run
            index += 1
        if offset < stop:
            yield FromTags(offset, stop - offset, offset - self.tail_offset)

    def reads(self, offset: int, length: int) -> Iterator[FromMember]:
        """Those of `pieces` that come from members: what has to be read, without the cost of making headers."""
        stop = min(offset + length, self.tail_offset)
        for index in range(self.members_before(offset), len(self.plan.members)):
            data_offset = self.data_offsets[index]
            if data_offset >= stop:
                return
            begin = max(offset, data_offset)
            run = min(stop, data_offset + self.plan.members[index].size) - begin
            if run > 0:
                yield FromMember(begin, run, index, begin - data_offset)

    def members_before(self, offset: int) -> int:
        """How many members have all their content before `offset`: the position of the first one that has not."""
        index = max(bisect_right(self.data_offsets, offset) - 1, 0)
        while index < len(self.plan.members) and self.data_offsets[index] + self.plan.members[index].size <= offset:
            index += 1
        return index


def sized(plan: BlockPlan, smallest_chunk: int) -> BlockPlan:
    """The plan with the chunk size that its tar asks for; the tar's size does not depend on it."""
    chunk = chunk_bytes_for(Layout(plan).tar_bytes, smallest_chunk)
    return plan if chunk == plan.chunk_bytes else replace(plan, chunk_bytes=chunk)
