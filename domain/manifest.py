"""Our own records of a datablock, as JSON lines: the journal while it is written, the manifest for ever after.

A manifest is a header line, one line with all chunk digests, the lines of the tar's `members.jsonl`, and a last line
with the sha256 of all lines before it.
A journal is a series of segments, each one line: the digests of the chunks and members finished since the last one.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from domain import bagit
from domain.checksum import composite
from domain.datablock import FORMAT
from domain.jsonlines import dump_line, split_lines
from domain.tarstream import Layout


@dataclass(frozen=True, slots=True)
class ManifestMember:
    """One file inside a datablock."""

    path: str
    size: int
    offset: int
    """Of its content, in the tar."""
    digest: str
    etag: str


@dataclass(frozen=True)
class Manifest:
    """What a datablock consists of: enough to verify it, to copy it part by part, and to restore one file of it."""

    pid: str
    archive_id: str
    index: int
    count: int
    generation: int
    algorithm: str
    tar_bytes: int
    chunk_bytes: int
    chunks: tuple[bytes, ...]
    members: tuple[ManifestMember, ...]

    @cached_property
    def digest(self) -> bytes:
        """The datablock's digest, raw."""
        return composite(self.chunks)

    @property
    def payload_bytes(self) -> int:
        """Sum of the members' sizes."""
        return sum(member.size for member in self.members)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """(offset, length) of a chunk in the tar."""
        offset = chunk * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.tar_bytes - offset)


def dump_manifest(layout: Layout, chunks: Sequence[bytes], member_digests: Sequence[str]) -> bytes:
    """The manifest of a finished tar."""
    plan = layout.plan
    header = {
        "format": FORMAT,
        "pid": plan.pid,
        "archive_id": plan.archive_id,
        "index": plan.index,
        "count": plan.count,
        "generation": plan.generation,
        "algorithm": plan.algorithm,
        "tar_bytes": layout.tar_bytes,
        "chunk_bytes": layout.chunk_bytes,
        "digest": composite(chunks).hex(),
    }
    lines = [dump_line(header), dump_line({"chunks": [chunk.hex() for chunk in chunks]})]
    lines += [
        bagit.member_line(member, offset, digest)
        for member, offset, digest in zip(plan.members, layout.data_offsets, member_digests, strict=True)
    ]
    text = b"".join(lines)
    return text + dump_line({"sha256": hashlib.sha256(text).hexdigest()})


def load_manifest(data: bytes) -> Manifest:
    """Read a manifest back.

    Raises:
        ValueError: not a manifest of this format, or damaged: cut short, altered, or at odds with itself.
    """
    end = data.rfind(b"\n", 0, -1) + 1
    if data[end:] != dump_line({"sha256": hashlib.sha256(data[:end]).hexdigest()}):
        raise ValueError("the manifest is damaged: its last line is not the sha256 of those before it")
    lines = split_lines(data[:end])
    try:
        manifest = _manifest(json.loads(next(lines)), json.loads(next(lines)), map(json.loads, lines))
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"not a manifest: {error!r}") from error
    return manifest


def _manifest(header: dict[str, Any], chunks: dict[str, Any], members: Iterable[dict[str, Any]]) -> Manifest:
    if header["format"] != FORMAT:
        raise ValueError(f"a manifest of format {header['format']!r}, this program reads {FORMAT!r}")
    manifest = Manifest(
        pid=header["pid"],
        archive_id=header["archive_id"],
        index=header["index"],
        count=header["count"],
        generation=header["generation"],
        algorithm=header["algorithm"],
        tar_bytes=header["tar_bytes"],
        chunk_bytes=header["chunk_bytes"],
        chunks=tuple(bytes.fromhex(text) for text in chunks["chunks"]),
        members=tuple(ManifestMember(m["path"], m["size"], m["offset"], m["digest"], m["etag"]) for m in members),
    )
    chunk_count = -(-manifest.tar_bytes // manifest.chunk_bytes)
    if manifest.digest.hex() != header["digest"] or len(manifest.chunks) != chunk_count:
        raise ValueError(f"the manifest of {manifest.archive_id} is at odds with itself: chunks, size and digest")
    return manifest


@dataclass(frozen=True, slots=True)
class Journal:
    """What a running write has finished: leading chunks and leading members."""

    chunks: tuple[bytes, ...] = ()
    members: tuple[str, ...] = ()


def dump_segment(first_chunk: int, chunks: Sequence[bytes], first_member: int, members: Sequence[str]) -> bytes:
    """One journal segment."""
    return dump_line(
        {
            "first_chunk": first_chunk,
            "chunks": [chunk.hex() for chunk in chunks],
            "first_member": first_member,
            "members": list(members),
        }
    )


def load_journal(segments: Iterable[bytes]) -> Journal:
    """Join the segments that follow on one another from chunk 0.

    Segments may overlap, as two attempts that knew nothing of each other leave them: the same plan gives the same
    digests. What lies behind a gap, or behind a segment that cannot be read, is left aside: it costs reading the source
    again, no more.
    """
    chunks: list[bytes] = []
    members: list[str] = []
    for segment in sorted(filter(None, map(_segment, segments)), key=lambda s: (s.first_chunk, s.first_member)):
        if segment.first_chunk > len(chunks) or segment.first_member > len(members):
            break
        chunks += segment.chunks[len(chunks) - segment.first_chunk :]
        members += segment.members[len(members) - segment.first_member :]
    return Journal(tuple(chunks), tuple(members))


@dataclass(frozen=True, slots=True)
class _Segment:
    first_chunk: int
    chunks: list[bytes]
    first_member: int
    members: list[str]


def _segment(data: bytes) -> _Segment | None:
    try:
        line = json.loads(data)
        chunks = [bytes.fromhex(text) for text in line["chunks"]]
        return _Segment(int(line["first_chunk"]), chunks, int(line["first_member"]), [str(m) for m in line["members"]])
    except (ValueError, KeyError, TypeError):
        return None
