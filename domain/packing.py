"""Packing in order: raw bytes of members go in, finished units of the tar and all digests come out.

The caller reads the members' runs of a unit straight into the unit's buffer, in any order; `Packer.seal` then fills in
what follows from the plan and digests the whole unit, front to back.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from domain.checksum import composite
from domain.datablock import UNIT_BYTES
from domain.errors import DigestMismatch
from domain.tarstream import FromMember, FromTags, Layout, Literal


@dataclass(frozen=True, slots=True)
class Unit:
    """What moves at once: a chunk, or a 16 MiB run of a larger one."""

    chunk: int
    offset: int
    """In the tar."""
    length: int
    last_of_chunk: bool


def units(tar_bytes: int, chunk_bytes: int, first_chunk: int = 0) -> Iterator[Unit]:
    """The units of a tar in order, from a chunk's start on."""
    for chunk in range(first_chunk, -(-tar_bytes // chunk_bytes)):
        end = min((chunk + 1) * chunk_bytes, tar_bytes)
        for offset in range(chunk * chunk_bytes, end, UNIT_BYTES):
            length = min(UNIT_BYTES, end - offset)
            yield Unit(chunk, offset, length, offset + length == end)


class Packer:
    """The digests of one tar while it is made, from the start or from a journal's end."""

    def __init__(self, layout: Layout, chunks: Sequence[bytes] = (), members: Sequence[str] = ()) -> None:
        """Continue behind `chunks` finished chunks and `members` finished members.

        A journal may know more members than its chunks hold (it was written in the midst of a chunk of several units);
        it cannot be used from a chunk on whose members it does not know. What is too much is left aside.
        """
        self.layout = layout
        usable = min(len(chunks), layout.chunk_count)
        while layout.members_before(usable * layout.chunk_bytes) > len(members):
            usable -= 1
        self.chunks = list(chunks[:usable])
        """Raw digests of the finished chunks."""
        self.members = list(members[: layout.members_before(usable * layout.chunk_bytes)])
        """Hex digests of the finished members, in order."""
        self._chunk = hashlib.sha256()
        self._tail: bytes | None = None
        self._start_member()

    def _start_member(self) -> None:
        self._absorbed = 0
        self._hash = hashlib.new(self.layout.plan.algorithm)
        self._second = None
        if len(self.members) < len(self.layout.plan.members):
            member = self.layout.plan.members[len(self.members)]
            if member.expected_algorithm and member.expected_algorithm != self.layout.plan.algorithm:
                self._second = hashlib.new(member.expected_algorithm, usedforsecurity=False)

    @property
    def resume_offset(self) -> int:
        """Where the next unit begins in the tar."""
        return len(self.chunks) * self.layout.chunk_bytes

    @property
    def unread_head(self) -> tuple[int, int]:
        """(member, bytes) of the member that a resumed tar stands in: what has to be `absorb`ed before `seal`."""
        index = len(self.members)
        if index >= len(self.layout.plan.members):
            return index, 0
        reached = self.resume_offset - self.layout.data_offsets[index]
        return index, min(max(reached, 0), self.layout.plan.members[index].size)

    def absorb(self, content: memoryview) -> None:
        """Digest the next bytes of the current member."""
        self._absorbed += len(content)
        self._hash.update(content)
        if self._second:
            self._second.update(content)

    def _finish_members(self, offset: int) -> None:
        """Close every member whose content ends at or before `offset`."""
        plan = self.layout.plan
        while len(self.members) < len(plan.members):
            index = len(self.members)
            member = plan.members[index]
            if self.layout.data_offsets[index] + member.size > offset:
                return
            if self._absorbed != member.size:
                raise ValueError(f"{self._absorbed} of the {member.size} bytes of {member.path!r} were digested")
            digest = self._hash.hexdigest()
            announced = (self._second or self._hash).hexdigest()
            if member.expected_algorithm and announced != member.expected_digest:
                raise DigestMismatch(
                    f"{member.path!r} has the {member.expected_algorithm} digest {announced}, but was registered with "
                    f"{member.expected_digest}; upload the file again or correct its original datablock"
                )
            self.members.append(digest)
            self._start_member()

    def seal(self, unit: Unit, buffer: memoryview) -> bytes:
        """Fill in what the plan decides, digest the unit, and return its raw sha256.

        `buffer` has the unit's length and holds the members' bytes already. Units come in order, from `resume_offset`
        on and behind the `unread_head`.

        Raises:
            DigestMismatch: a member that ends in the unit is not what its original datablock announces.
            ValueError: a unit or an unread head was left out.
        """
        for piece in self.layout.pieces(unit.offset, unit.length):
            begin = piece.offset - unit.offset
            if isinstance(piece, FromMember):
                self._finish_members(piece.offset)
                self.absorb(buffer[begin : begin + piece.length])
            elif isinstance(piece, Literal):
                buffer[begin : begin + len(piece.data)] = piece.data
            else:
                self._fill_tail(piece, buffer[begin : begin + piece.length])
        self._finish_members(unit.offset + unit.length)
        whole = unit.offset % self.layout.chunk_bytes == 0 and unit.last_of_chunk
        self._chunk.update(buffer)
        digest = self._chunk.digest() if whole else hashlib.sha256(buffer).digest()
        if unit.last_of_chunk:
            self.chunks.append(self._chunk.digest())
            self._chunk = hashlib.sha256()
        return digest

    def _fill_tail(self, piece: FromTags, target: memoryview) -> None:
        if self._tail is None:
            self._finish_members(self.layout.tail_offset)
            self._tail = self.layout.tail(self.members)
        target[:] = self._tail[piece.start : piece.start + piece.length]

    @property
    def digest(self) -> bytes:
        """The datablock's digest, once every chunk is finished."""
        return composite(self.chunks)
