"""The manifest of a datablock, made anew from the tar alone.

Everything in it follows from the tar but the chunk size and the generation. Both are in the block digest whose first 8
hex digits stand in the top folder's name, so they are found by trying: 32 bits tell the right pair from the few hundred
that are tried.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from domain.checking import Finding, check_bag, tags_of
from domain.datablock import FORMAT, MIN_CHUNK_BYTES, UNIT_BYTES, BlockPlan, chunk_bytes_for
from domain.manifest import dump_manifest
from domain.tagfiles import read_facts
from domain.tarreader import TarContents
from domain.tarstream import Layout

MAX_GENERATION = 7
"""Each is a datablock that was damaged on tape and written anew; more than a few would have other remedies."""

_MIB = 2**20


class PlanUnknown(ValueError):
    """The tar does not tell the plan that it was made from."""


class TarDamaged(ValueError):
    """A tar whose manifest would attest damage."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__(f"the tar is damaged ({len(findings)} findings): {findings[0].sentence}")
        self.findings = tuple(findings)


def chunk_settings() -> Iterator[int]:
    """Settings of the chunk size in bytes, the likely ones first: the default, powers of two, then all whole MiB."""
    yield UNIT_BYTES
    yield from (size * _MIB for size in (8, 32, 64, 128, 256, 512, 1024))
    yield from (size * _MIB for size in range(MIN_CHUNK_BYTES // _MIB, 65))
    yield from (size * 10**6 for size in (8, 10, 16, 20, 32, 50, 64, 100))


def identify(contents: TarContents, chunk_bytes: int | None = None) -> BlockPlan:
    """The plan that a datablock was made from, proven by the digest in its name.

    Args:
        contents: of the tar; digests are not needed.
        chunk_bytes: the chunk size if it is known, else the settings that are likely are tried.

    Raises:
        PlanUnknown: the tag files are not all there or damaged, or the name asks for another chunk size.
    """
    try:
        plan = read_facts(tags_of(contents)).plan
        tar_bytes = Layout(plan).tar_bytes
    except ValueError as error:
        raise PlanUnknown(f"the tag files do not tell how the datablock was made: {error}") from error
    if re.fullmatch(".+_[0-9]+_[0-9a-f]{8}", contents.top, re.DOTALL) is None:
        raise PlanUnknown(f"the top folder {contents.top!r} has not the name of a datablock")
    before, between, behind = _canonical_text(plan)
    for size, generation in _candidates(tar_bytes, chunk_bytes):
        text = b"".join([before, str(size).encode(), between, str(generation).encode(), behind])
        if contents.top.endswith(hashlib.sha256(text).hexdigest()[:8]):
            candidate = replace(plan, chunk_bytes=size, generation=generation)
            if candidate.stem == contents.top:
                return candidate
    tried = f"{chunk_bytes} bytes" if chunk_bytes else "any usual size"
    raise PlanUnknown(f"with chunks of {tried}, the tag files do not give the digest in the name {contents.top!r}")


def _canonical_text(plan: BlockPlan) -> tuple[bytes, bytes, bytes]:
    """The canonical plan, cut where chunk size and generation stand: hundreds of digests need one text, not hundreds.

    `BlockPlan.digest` has the last word on the one that fits.
    """
    facts = {
        "algorithm": plan.algorithm,
        "chunk_bytes": 0,
        "count": plan.count,
        "format": FORMAT,
        "generation": 0,
        "index": plan.index,
        "members": [[m.path, m.size, m.etag, m.mtime_ns, m.mode, m.uid, m.gid] for m in plan.members],
        "pid": plan.pid,
    }
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    before, _, rest = text.partition('"chunk_bytes":0')
    between, _, behind = rest.partition('"generation":0')
    return f'{before}"chunk_bytes":'.encode(), f'{between}"generation":'.encode(), behind.encode()


def _candidates(tar_bytes: int, chunk_bytes: int | None) -> Iterator[tuple[int, int]]:
    """(chunk size, generation), the likely ones first."""
    if chunk_bytes is not None:
        yield from ((chunk_bytes, generation) for generation in range(8 * (MAX_GENERATION + 1)))
        return
    sizes = list(dict.fromkeys(chunk_bytes_for(tar_bytes, setting) for setting in chunk_settings()))
    yield from ((size, generation) for size in sizes for generation in range(MAX_GENERATION + 1))


def rebuild_manifest(contents: TarContents, plan: BlockPlan, chunks: Sequence[bytes]) -> bytes:
    """The manifest as it was written when the datablock was, byte by byte.

    Args:
        contents: of the whole tar, digested with the plan's algorithm.
        plan: as `identify` found it.
        chunks: raw digests of the tar's chunks of the plan's size.

    Raises:
        TarDamaged: the tar is not, to the last byte, what the plan makes of its content.
    """
    findings = check_bag(contents, plan=plan)
    if findings:
        raise TarDamaged(findings)
    layout = Layout(plan)
    at = {entry.offset: entry for entry in contents.entries}
    digests = [contents.digest_of(at[offset], plan.algorithm) for offset in layout.data_offsets]
    return dump_manifest(layout, chunks, digests)
