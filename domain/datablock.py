"""A datablock as planned: its members, its name, its chunks. The plan alone decides every byte but the digests."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from domain import names
from domain.checksum import ALGORITHM
from domain.files import Member

FORMAT = "bagit-tar-1"
"""Version of the format; SciCat's datablock `version`."""

UNIT_BYTES = 16 * 2**20
"""Bytes move in units of this size, whatever the chunk."""

MIN_CHUNK_BYTES = 5 * 2**20
"""S3's smallest part but for the last."""

MAX_CHUNKS = 9_000
"""S3 allows 10,000 parts; the rest is reserve."""


def chunk_bytes_for(tar_bytes: int, smallest: int = UNIT_BYTES) -> int:
    """Chunk size in bytes: `smallest`, doubled until the tar has at most `MAX_CHUNKS` chunks."""
    chunk = smallest
    while tar_bytes > chunk * MAX_CHUNKS:
        chunk *= 2
    return chunk


@dataclass(frozen=True)
class BlockPlan:
    """One datablock to be written."""

    pid: str
    index: int
    """1-based."""
    count: int
    chunk_bytes: int
    members: tuple[Member, ...]
    generation: int = 0
    """How often the datablock was rewritten because its bytes on the LTS were damaged."""
    algorithm: str = ALGORITHM

    @cached_property
    def digest(self) -> str:
        """Block digest, hex: sha256 of the canonical plan (compact JSON, sorted keys, UTF-8)."""
        canonical = {
            "format": FORMAT,
            "algorithm": self.algorithm,
            "chunk_bytes": self.chunk_bytes,
            "pid": self.pid,
            "index": self.index,
            "count": self.count,
            "generation": self.generation,
            "members": [[m.path, m.size, m.etag, m.mtime_ns, m.mode, m.uid, m.gid] for m in self.members],
        }
        text = json.dumps(canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def stem(self) -> str:
        """File name without `.tar`, and top folder inside."""
        return names.datablock_stem(self.pid, self.index, self.digest)

    @property
    def archive_id(self) -> str:
        """Path on the LTS, key in the retrieval bucket, archiveId in SciCat."""
        return names.archive_id(self.pid, self.stem)

    @property
    def payload_bytes(self) -> int:
        """Sum of the members' sizes."""
        return sum(member.size for member in self.members)

    def regenerated(self, generation: int) -> "BlockPlan":
        """The same datablock under the name of another generation."""
        return self if generation == self.generation else replace(self, generation=generation)


def plan_digest(blocks: Sequence[BlockPlan]) -> str:
    """Hex sha256 over the generation-0 block digests in order: names the whole plan."""
    return joined_digest(block.regenerated(0).digest for block in blocks)


def joined_digest(block_digests: Iterable[str]) -> str:
    """The plan digest, of block digests that are known already."""
    return hashlib.sha256("".join(block_digests).encode()).hexdigest()
