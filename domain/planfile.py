"""`plan.jsonl`: the plan of a dataset as it lies in the state bucket, one JSON object a line.

{"format", "pid", "plan_digest", "blocks", "smallest_chunk", "unlisted", "differing_in_case"}
{"folder": path, "etag", "version_id"}                  for each folder marker that is freed along
{"block": 1, "chunk_bytes", "algorithm", "members"}     then a line for each of its members
{"path", "size", "etag", "mtime_ns", "mode", "uid", "gid", "version_id", "chk", "alg"}

In memory a file takes 500 bytes. So of a dataset of very many files one datablock at a time is unpacked from its lines,
which take a fifth of that when they are compressed.
"""

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from sys import intern
from typing import Any, overload

from domain import names
from domain.datablock import FORMAT, BlockPlan, joined_digest, plan_digest
from domain.files import Member
from domain.jsonlines import dump_line, split_lines

_PACKED_FROM_BYTES = 4 * 2**20
"""Plans of fewer bytes, some 15,000 files, are read whole."""

_MEMBER_BYTES = 500
"""What a member takes in memory, about."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A folder marker object, freed with the files."""

    path: str
    etag: str
    version_id: str | None


class PackedBlocks(Sequence[BlockPlan]):
    """Datablocks of which each is unpacked anew whenever it is asked for: some 0.1 s for 20,000 files."""

    def __init__(self, pid: str, packed: Sequence[bytes], digests: Sequence[str]) -> None:
        """Take the compressed lines of each datablock, and its digest."""
        self._pid, self._packed = pid, packed
        self.digests = digests

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> BlockPlan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[BlockPlan, ...]: ...
    def __getitem__(self, index: int | slice) -> BlockPlan | tuple[BlockPlan, ...]:
        if isinstance(index, slice):
            return tuple(self[position] for position in range(*index.indices(len(self))))
        return _block(self._pid, len(self), split_lines(zlib.decompress(self._packed[index])))

    @property
    def weight_bytes(self) -> int:
        """What they take in memory."""
        return sum(map(len, self._packed))


@dataclass(frozen=True)
class DatasetPlan:
    """All datablocks of a dataset, generation 0."""

    pid: str
    blocks: tuple[BlockPlan, ...] | PackedBlocks
    smallest_chunk: int
    unlisted: tuple[str, ...] = ()
    differing_in_case: tuple[str, ...] = ()
    markers: tuple[Marker, ...] = ()

    @property
    def digest(self) -> str:
        """The plan digest, hex."""
        if isinstance(self.blocks, PackedBlocks):
            return joined_digest(self.blocks.digests)
        return plan_digest(self.blocks)

    def block(self, index: int, generation: int = 0) -> BlockPlan:
        """One datablock, by its number."""
        return self.blocks[index - 1].regenerated(generation)

    def archive_id(self, index: int, generation: int = 0) -> str:
        """What a datablock is called, by its number."""
        if isinstance(self.blocks, PackedBlocks) and not generation:
            return names.archive_id(self.pid, names.datablock_stem(self.pid, index, self.blocks.digests[index - 1]))
        return self.block(index, generation).archive_id

    def archive_ids(self, generations: Mapping[int, int]) -> list[str]:
        """What the datablocks are called, each in its generation, 0 left out."""
        return [self.archive_id(index, generations.get(index, 0)) for index in range(1, len(self.blocks) + 1)]

    @property
    def weight_bytes(self) -> int:
        """What it takes in memory, about."""
        if isinstance(self.blocks, PackedBlocks):
            return self.blocks.weight_bytes
        return _MEMBER_BYTES * sum(len(block.members) for block in self.blocks)


def dump_plan(plan: DatasetPlan) -> bytes:
    """The plan as JSON lines."""
    data = io.BytesIO()
    data.writelines(map(dump_line, _lines(plan)))
    return data.getvalue()


def _lines(plan: DatasetPlan) -> Iterator[dict[str, object]]:
    yield {
        "format": FORMAT,
        "pid": plan.pid,
        "plan_digest": plan.digest,
        "blocks": len(plan.blocks),
        "smallest_chunk": plan.smallest_chunk,
        "unlisted": list(plan.unlisted),
        "differing_in_case": list(plan.differing_in_case),
    }
    for marker in plan.markers:
        yield {"folder": marker.path, "etag": marker.etag, "version_id": marker.version_id}
    for block in plan.blocks:
        yield {
            "block": block.index,
            "chunk_bytes": block.chunk_bytes,
            "algorithm": block.algorithm,
            "members": len(block.members),
        }
        for m in block.members:
            yield {
                "path": m.path,
                "size": m.size,
                "etag": m.etag,
                "mtime_ns": m.mtime_ns,
                "mode": m.mode,
                "uid": m.uid,
                "gid": m.gid,
                "version_id": m.version_id,
                "chk": m.expected_digest,
                "alg": m.expected_algorithm,
            }


def smallest_chunk_of(first_line: bytes) -> int:
    """The chunk setting that an existing plan was made with, from its first line."""
    return int(json.loads(first_line)["smallest_chunk"])


def load_plan(data: bytes, *, packed_from_bytes: int = _PACKED_FROM_BYTES) -> DatasetPlan:
    """Read a plan back.

    Raises:
        ValueError: not a plan of this format, or damaged: cut short, or its blocks do not give its digest.
    """
    lines = split_lines(data)
    try:
        plan, digest = _plan(json.loads(next(lines)), lines, packed=len(data) >= packed_from_bytes)
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"not a plan, or cut short: {error!r}") from error
    if plan.digest != digest:
        raise ValueError(f"the plan of {plan.pid} is damaged: its blocks do not give its digest")
    return plan


def packed(plan: DatasetPlan, data: bytes) -> DatasetPlan:
    """The plan as `load_plan` would read it from `data`, which it was dumped to."""
    return plan if len(data) < _PACKED_FROM_BYTES else load_plan(data)


def _plan(header: dict[str, Any], lines: Iterator[bytes], *, packed: bool) -> tuple[DatasetPlan, str]:
    if header["format"] != FORMAT:
        raise ValueError(f"a plan of format {header['format']!r}, this program reads {FORMAT!r}")
    pid, count = header["pid"], header["blocks"]
    markers: list[Marker] = []
    whole: list[BlockPlan] = []
    compressed: list[bytes] = []
    digests: list[str] = []
    for text in lines:
        line = json.loads(text)
        if "folder" in line:
            markers.append(Marker(line["folder"], line["etag"], line["version_id"]))
            continue
        texts = [text, *islice(lines, line["members"])]
        block = _block(pid, count, iter(texts))
        if packed:
            digests.append(block.digest)
            compressed.append(zlib.compress(b"\n".join(texts), zlib.Z_BEST_SPEED))
        else:
            whole.append(block)
    plan = DatasetPlan(
        pid=pid,
        blocks=PackedBlocks(pid, compressed, digests) if packed else tuple(whole),
        smallest_chunk=header["smallest_chunk"],
        unlisted=tuple(header["unlisted"]),
        differing_in_case=tuple(header["differing_in_case"]),
        markers=tuple(markers),
    )
    return plan, header["plan_digest"]


def _block(pid: str, count: int, lines: Iterator[bytes]) -> BlockPlan:
    line = json.loads(next(lines))
    return BlockPlan(
        pid=pid,
        index=line["block"],
        count=count,
        chunk_bytes=line["chunk_bytes"],
        members=tuple(map(_member, map(json.loads, lines))),
        algorithm=line["algorithm"],
    )


def _member(line: dict[str, Any]) -> Member:
    # What repeats from line to line is kept once: of a hundred thousand files a sixth of the memory.
    return Member(
        path=line["path"],
        size=line["size"],
        etag=line["etag"],
        mtime_ns=line["mtime_ns"],
        mode=line["mode"],
        uid=intern(line["uid"]),
        gid=intern(line["gid"]),
        version_id=line["version_id"],
        expected_digest=line["chk"],
        expected_algorithm=intern(line["alg"]),
    )
