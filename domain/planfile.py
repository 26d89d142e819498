"""`plan.jsonl`: the plan of a dataset as it lies in the state bucket, one JSON object a line.

{"format", "pid", "plan_digest", "blocks", "smallest_chunk", "unlisted", "differing_in_case"}
{"folder": path, "etag", "version_id"}                  for each folder marker that is freed along
{"block": 1, "chunk_bytes", "algorithm", "members"}     then a line for each of its members
{"path", "size", "etag", "mtime_ns", "mode", "uid", "gid", "version_id", "chk", "alg"}
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from sys import intern
from typing import Any

from domain.datablock import FORMAT, BlockPlan, plan_digest
from domain.files import Member
from domain.jsonlines import dump_line, split_lines


@dataclass(frozen=True, slots=True)
class Marker:
    """A folder marker object, freed with the files."""

    path: str
    etag: str
    version_id: str | None


@dataclass(frozen=True)
class DatasetPlan:
    """All datablocks of a dataset, generation 0."""

    pid: str
    blocks: tuple[BlockPlan, ...]
    smallest_chunk: int
    unlisted: tuple[str, ...] = ()
    differing_in_case: tuple[str, ...] = ()
    markers: tuple[Marker, ...] = ()

    @property
    def digest(self) -> str:
        """The plan digest, hex."""
        return plan_digest(self.blocks)


def dump_plan(plan: DatasetPlan) -> bytes:
    """The plan as JSON lines."""
    return b"".join(map(dump_line, _lines(plan)))


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


def load_plan(data: bytes) -> DatasetPlan:
    """Read a plan back.

    Raises:
        ValueError: not a plan of this format, or damaged: cut short, or its blocks do not give its digest.
    """
    lines = map(json.loads, split_lines(data))
    try:
        plan, digest = _plan(next(lines), lines)
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"not a plan, or cut short: {error!r}") from error
    if plan.digest != digest:
        raise ValueError(f"the plan of {plan.pid} is damaged: its blocks do not give its digest")
    return plan


def _plan(header: dict[str, Any], lines: Iterator[dict[str, Any]]) -> tuple[DatasetPlan, str]:
    if header["format"] != FORMAT:
        raise ValueError(f"a plan of format {header['format']!r}, this program reads {FORMAT!r}")
    markers: list[Marker] = []
    blocks: list[BlockPlan] = []
    for line in lines:
        if "folder" in line:
            markers.append(Marker(line["folder"], line["etag"], line["version_id"]))
            continue
        blocks.append(
            BlockPlan(
                pid=header["pid"],
                index=line["block"],
                count=header["blocks"],
                chunk_bytes=line["chunk_bytes"],
                members=tuple(map(_member, islice(lines, line["members"]))),
                algorithm=line["algorithm"],
            )
        )
    plan = DatasetPlan(
        pid=header["pid"],
        blocks=tuple(blocks),
        smallest_chunk=header["smallest_chunk"],
        unlisted=tuple(header["unlisted"]),
        differing_in_case=tuple(header["differing_in_case"]),
        markers=tuple(markers),
    )
    return plan, header["plan_digest"]


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
