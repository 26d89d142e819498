"""A second writer of datablocks, made from `docs/reference/datablock-format.md` and not from `domain/`.

Slow and simple: everything in memory, each field put where the page says. It shares only the plan with `domain`.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta

from domain.datablock import BlockPlan
from domain.files import Member

_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "checksum": (148, 8), "type": (156, 1), "magic": (257, 6), "version": (263, 2), "uname": (265, 32),
    "gname": (297, 32), "major": (329, 8), "minor": (337, 8),
}  # fmt: skip


def _block(**values: bytes) -> bytes:
    block = bytearray(512)
    values = {"magic": b"ustar\0", "version": b"00", "major": b"0000000\0", "minor": b"0000000\0", **values}
    for field, value in {**values, "checksum": b"        "}.items():
        start, width = _FIELDS[field]
        assert len(value) <= width, (field, value)
        block[start : start + len(value)] = value
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def _fill(data: bytes) -> bytes:
    return data + b"\0" * ((512 - len(data) % 512) % 512)


def _pax(records: dict[str, str]) -> bytes:
    lines: list[bytes] = []
    for key in sorted(records):
        rest = f" {key}={records[key]}\n".encode()
        length = next(n for n in range(len(rest), len(rest) + 9) if n == len(str(n)) + len(rest))
        lines.append(str(length).encode() + rest)
    return b"".join(lines)


def _owner(text: str, letter: str, fields: dict[str, bytes], records: dict[str, str]) -> None:
    number = int(text) if text and set(text) <= set("0123456789") else None
    fields[f"{letter}id"] = b"0000000\0"
    if number is not None and number < 4294967295 and len(text) <= 10:
        if number <= 0o7777777:
            fields[f"{letter}id"] = f"{number:07o}\0".encode()
        else:
            records[f"{letter}id"] = str(number)
    elif all(ord(c) < 128 for c in text) and len(text) <= 31:
        fields[f"{letter}name"] = text.encode()
    else:
        records[f"{letter}name"] = text


def _time(mtime_ns: int) -> str:
    sign, rest = ("-", -mtime_ns) if mtime_ns < 0 else ("", mtime_ns)
    text = f"{sign}{rest // 10**9}.{rest % 10**9:09d}".rstrip("0")
    return text.rstrip(".")


def _entry(name: str, data: bytes, mtime_ns: int, mode: int, uid: str = "", gid: str = "") -> bytes:
    records: dict[str, str] = {}
    fields: dict[str, bytes] = {"name": name.encode()[:100], "mode": f"{mode:07o}\0".encode(), "type": b"0"}
    if len(name.encode()) > 100 or any(ord(c) > 127 for c in name):
        records["path"] = name
    seconds = mtime_ns // 10**9
    if not 0 <= seconds < 8**11:
        records["mtime"], seconds = _time(mtime_ns), 0
    elif mtime_ns % 10**9:
        records["mtime"] = _time(mtime_ns)
    fields["mtime"] = f"{seconds:011o}\0".encode()
    fields["size"] = f"{len(data):011o}\0".encode()
    _owner(uid, "u", fields, records)
    _owner(gid, "g", fields, records)
    before = b""
    if records:
        body = _pax(records)
        before = _block(
            name=b"././@PaxHeader", mode=b"0000644\0", uid=b"0000000\0", gid=b"0000000\0",
            size=f"{len(body):011o}\0".encode(), mtime=b"00000000000\0", type=b"x",
        ) + _fill(body)  # fmt: skip
    return before + _block(**fields) + _fill(data)


def _iso(mtime_ns: int) -> str:
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=mtime_ns // 10**9)).strftime("%m-%dT%H:%M:%S")
    year = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=mtime_ns // 10**9)).year
    fraction = f".{mtime_ns % 10**9:09d}".rstrip("0") if mtime_ns % 10**9 else ""
    return f"{year:04d}-{text}{fraction}Z"


def stem(plan: BlockPlan) -> str:
    """The datablock's name without `.tar`."""
    canonical = {
        "algorithm": plan.algorithm, "chunk_bytes": plan.chunk_bytes, "count": plan.count, "format": "bagit-tar-1",
        "generation": plan.generation, "index": plan.index,
        "members": [[m.path, m.size, m.etag, m.mtime_ns, m.mode, m.uid, m.gid] for m in plan.members], "pid": plan.pid,
    }  # fmt: skip
    text = json.dumps(canonical, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{plan.pid.replace('/', '-')}_{plan.index}_{digest[:8]}"


def write(plan: BlockPlan, contents: dict[str, bytes]) -> bytes:
    """The whole tar."""
    top, tar = stem(plan), b""
    manifest, members = "", ""
    for m in plan.members:
        data = contents[m.path]
        entry = _entry(f"{top}/data/{m.path}", data, m.mtime_ns, m.mode, m.uid, m.gid)
        offset = len(tar) + len(entry) - len(_fill(data))
        tar += entry
        digest = hashlib.new(plan.algorithm, data).hexdigest()
        manifest += f"{digest}  data/{m.path.replace('%', '%25')}\n"
        members += _member_line(m, offset, digest)
    newest = max(0, max(m.mtime_ns for m in plan.members) // 10**9)
    info = (
        f"Bag-Group-Identifier: {plan.pid}\nBag-Count: {plan.index} of {plan.count}\n"
        f"Bagging-Date: {_iso(newest * 10**9)[:10]}\nExternal-Identifier: {plan.pid}\n"
        f"Payload-Oxum: {sum(m.size for m in plan.members)}.{len(plan.members)}\n"
    )
    tags = {
        "bagit.txt": "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        "bag-info.txt": info,
        f"manifest-{plan.algorithm}.txt": manifest,
        "members.jsonl": members,
    }
    sums = [f"{hashlib.new(plan.algorithm, text.encode()).hexdigest()}  {name}\n" for name, text in tags.items()]
    tags[f"tagmanifest-{plan.algorithm}.txt"] = "".join(sums)
    for name, text in tags.items():
        tar += _entry(f"{top}/{name}", text.encode(), newest * 10**9, 0o644)
    return tar + b"\0" * 1024


def _member_line(m: Member, offset: int, digest: str) -> str:
    record = {
        "path": m.path, "size": m.size, "offset": offset, "digest": digest, "mtime": _iso(m.mtime_ns),
        "mode": f"{m.mode:04o}", "uid": m.uid, "gid": m.gid, "etag": m.etag,
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
