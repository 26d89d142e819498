"""The tag files of a datablock's bag, read back: the counterpart of `domain.bagit`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from domain.checksum import known_algorithm
from domain.datablock import UNIT_BYTES, BlockPlan
from domain.files import Member
from domain.jsonlines import split_lines

_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1)
_SUM_LINE = re.compile(r"([0-9a-f]+)  (.+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list says of one file of the dataset: `members.jsonl`, a manifest, or the bag's own manifest."""

    path: str
    digest: str
    size: int | None = None
    """None where the list does not say."""
    offset: int | None = None
    """Of its content in the tar."""


@dataclass(frozen=True)
class BagFacts:
    """What the tag files of one of our datablocks say, as far as it decides the tar."""

    plan: BlockPlan
    """Generation and chunk size stand in no tag file; here they are the usual ones."""
    listed: tuple[Listed, ...]


def decode_path(text: str) -> str:
    """A path of a BagIt manifest as it is: only `%`, CR and LF were encoded (RFC 8493 §2.1.3)."""
    return re.sub("%(25|0[AaDd])", lambda found: chr(int(found[1], 16)), text)


def read_sums(data: bytes) -> dict[str, str]:
    """Digest by decoded path of a `manifest-<algorithm>.txt` or `tagmanifest-<algorithm>.txt`.

    Raises:
        ValueError: a line that is no such line, or a path that stands there twice.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(split_lines(data), start=1):
        found = _SUM_LINE.fullmatch(line.decode())
        path = decode_path(found[2]) if found else ""
        if found is None or path in sums:
            raise ValueError(f"line {number} is not a digest and the path of another file")
        sums[path] = found[1]
    return sums


def read_bag_info(data: bytes) -> dict[str, str]:
    """The elements of `bag-info.txt`.

    Raises:
        ValueError: not such a file.
    """
    pairs = [line.decode().partition(": ") for line in split_lines(data)]
    if not all(colon for _, colon, _ in pairs):
        raise ValueError("a line without a name")
    return {name: value for name, _, value in pairs}


def read_members(data: bytes) -> Iterator[tuple[Member, int, str]]:
    """(member, offset of its content, digest) of each line of `members.jsonl`.

    Raises:
        ValueError: not such a file.
    """
    for number, line in enumerate(split_lines(data), start=1):
        try:
            yield _member(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} does not describe a member: {error!r}") from error


def _member(record: dict[str, Any]) -> tuple[Member, int, str]:
    texts = [record[key] for key in ("path", "etag", "uid", "gid", "digest")]
    numbers = [record[key] for key in ("size", "offset")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise TypeError("a value of the wrong type")
    member = Member(
        path=record["path"],
        size=record["size"],
        etag=record["etag"],
        mtime_ns=exact_time(record["mtime"]),
        mode=int(record["mode"], 8),
        uid=record["uid"],
        gid=record["gid"],
    )
    return member, record["offset"], record["digest"]


def exact_time(text: str) -> int:
    """Nanoseconds since 1970 of what `format_time` wrote, to the nanosecond.

    Raises:
        ValueError: written otherwise.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no time of this format")
    seconds = (datetime.fromisoformat(found[1]) - _EPOCH) // timedelta(seconds=1)
    return seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))


def read_facts(tags: dict[str, bytes]) -> BagFacts:
    """What the tag files, by their name below the top folder, say of their datablock.

    Raises:
        ValueError: one is missing, or says what no tag file of ours says.
    """
    try:
        info = read_bag_info(tags["bag-info.txt"])
        rows = list(read_members(tags["members.jsonl"]))
        pid, of = info["External-Identifier"], info["Bag-Count"]
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing") from None
    position = re.fullmatch("([1-9][0-9]*) of ([1-9][0-9]*)", of, re.ASCII)
    if position is None or not rows:
        raise ValueError("neither a datablock's position among the others nor its members are to be found")
    plan = BlockPlan(
        pid=pid,
        index=int(position[1]),
        count=int(position[2]),
        chunk_bytes=UNIT_BYTES,
        members=tuple(member for member, _, _ in rows),
        algorithm=bag_algorithm(tags),
    )
    listed = tuple(Listed(member.path, digest, member.size, offset) for member, offset, digest in rows)
    return BagFacts(plan, listed)


def bag_algorithm(tags: dict[str, bytes]) -> str:
    """The hashlib name of the bag's digests, by the name of its manifest or, where that is lost, its tagmanifest.

    Raises:
        ValueError: there is no manifest, or one that this Python has no algorithm for.
    """
    named = (re.fullmatch(r"(?:tag)?manifest-([a-z0-9_]+)\.txt", name) for name in sorted(tags))
    found = [match[1] for match in named if match]
    usable = [name for name in found if known_algorithm(name) == name]
    if not usable:
        raise ValueError(f"the bag has no manifest that can be used (found: {', '.join(found) or 'none'})")
    return usable[0]
