"""The tag files of a datablock's bag (BagIt 1.0, RFC 8493).

Their sizes follow from the plan, before any digest is known: so the tar's size does, and every offset in it.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from domain.datablock import BlockPlan
from domain.files import Member, format_time
from domain.jsonlines import dump_line

BAGIT_TXT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


def newest_second(plan: BlockPlan) -> int:
    """Seconds since 1970 of the newest member: the tag files' mtime, so that no clock enters the tar."""
    return max(max(member.mtime_ns for member in plan.members) // 1_000_000_000, 0)


def encode_path(path: str) -> str:
    """A payload path as it stands in a BagIt manifest: `%`, CR and LF percent-encoded (RFC 8493 §2.1.3)."""
    return path.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def bag_info(plan: BlockPlan) -> bytes:
    """`bag-info.txt`."""
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=newest_second(plan))
    return (
        f"Bag-Group-Identifier: {plan.pid}\n"
        f"Bag-Count: {plan.index} of {plan.count}\n"
        f"Bagging-Date: {date.date().isoformat()}\n"
        f"External-Identifier: {plan.pid}\n"
        f"Payload-Oxum: {plan.payload_bytes}.{len(plan.members)}\n"
    ).encode()


def manifest_line(path: str, digest: str) -> bytes:
    """A line of `manifest-<algorithm>.txt`."""
    return f"{digest}  data/{encode_path(path)}\n".encode()


def member_record(member: Member, data_offset: int, digest: str) -> dict[str, object]:
    """What `members.jsonl` and our own manifest say of one member; nothing that the block digest does not cover."""
    return {
        "path": member.path,
        "size": member.size,
        "offset": data_offset,
        "digest": digest,
        "mtime": format_time(member.mtime_ns),
        "mode": f"{member.mode:04o}",
        "uid": member.uid,
        "gid": member.gid,
        "etag": member.etag,
    }


def member_line(member: Member, data_offset: int, digest: str) -> bytes:
    """A line of `members.jsonl`."""
    return dump_line(member_record(member, data_offset, digest))


def tag_files(plan: BlockPlan, data_offsets: Sequence[int], digests: Sequence[str]) -> list[tuple[str, bytes]]:
    """(name, content) of every tag file in the order of the tar; `digests` are the members', hex."""
    files = [
        ("bagit.txt", BAGIT_TXT),
        ("bag-info.txt", bag_info(plan)),
        (
            f"manifest-{plan.algorithm}.txt",
            b"".join(manifest_line(m.path, d) for m, d in zip(plan.members, digests, strict=True)),
        ),
        (
            "members.jsonl",
            b"".join(member_line(m, o, d) for m, o, d in zip(plan.members, data_offsets, digests, strict=True)),
        ),
    ]
    sums = b"".join(f"{hashlib.new(plan.algorithm, content).hexdigest()}  {name}\n".encode() for name, content in files)
    return [*files, (f"tagmanifest-{plan.algorithm}.txt", sums)]


def tag_file_sizes(plan: BlockPlan, data_offsets: Sequence[int]) -> list[tuple[str, int]]:
    """(name, size in bytes) of every tag file, known before the digests: a digest's length is fixed."""
    blank = "0" * (hashlib.new(plan.algorithm).digest_size * 2)
    files = [
        ("bagit.txt", len(BAGIT_TXT)),
        ("bag-info.txt", len(bag_info(plan))),
        (f"manifest-{plan.algorithm}.txt", sum(len(manifest_line(m.path, blank)) for m in plan.members)),
        (
            "members.jsonl",
            sum(len(member_line(m, o, blank)) for m, o in zip(plan.members, data_offsets, strict=True)),
        ),
    ]
    return [*files, (f"tagmanifest-{plan.algorithm}.txt", sum(len(blank) + 3 + len(name) for name, _ in files))]
