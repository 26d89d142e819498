"""From what the catalogue registers and what the landing zone holds to the datablocks that are written.

Two pure steps: `match` decides which files a dataset consists of, `group` cuts them into datablocks.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

from domain.checksum import known_algorithm
from domain.datablock import UNIT_BYTES, BlockPlan
from domain.errors import ConflictingEntries, MissingFiles, NothingRegistered, UploadUnfinished
from domain.files import (
    DEFAULT_MODE,
    LandedObject,
    Member,
    RegisteredFile,
    check_path,
    format_time,
    parse_mode,
    parse_time,
    whole_seconds,
)
from domain.tarstream import sized

NAMED = 20
"""How many paths an error or an outcome names."""

BRIEF_FILES = 100
"""Up to so many files a dataset is planned, registered and freed in a moment."""


@dataclass(frozen=True, slots=True)
class PackingRules:
    """When a datablock is full."""

    target_bytes: int
    target_files: int = 20_000
    registration_bytes: int = 8_000_000
    """Size of the JSON body that registers it in SciCat, which refuses 16 MB."""
    smallest_chunk: int = UNIT_BYTES


@dataclass(frozen=True, slots=True)
class Matched:
    """The files of a dataset, sorted by path."""

    members: tuple[Member, ...]
    unlisted: tuple[str, ...]
    """Packed although nobody registered them."""
    folders: tuple[LandedObject, ...]
    """Zero-byte objects ending in `/` that some clients leave: freed, not packed."""
    differing_in_case: tuple[str, ...]
    """Paths that are one and the same where case does not count; accepted and named."""


def relative_path(path: str, source_folder: str) -> str:
    """A registered path relative to the dataset; a leading `./` or the dataset's source folder falls away."""
    folder = source_folder.rstrip("/") + "/"
    if len(folder) > 1 and path.startswith(folder):
        path = path[len(folder) :]
    return path.removeprefix("./")


def regular_files(entries: Iterable[RegisteredFile], source_folder: str) -> dict[str, RegisteredFile]:
    """The registered regular files by relative path; of equal entries one, and no entry below which others lie.

    Raises:
        ConflictingEntries: one path with different sizes or digests.
        UnsafePath: a path that climbs, is absolute, or has control characters.
    """
    root = source_folder.rstrip("/")
    same_path: dict[str, list[RegisteredFile]] = {}
    for entry in entries:
        path = relative_path(entry.path, source_folder)
        # Without a permission text a folder still shows by its slash, or by being the dataset's own.
        folder = entry.path.endswith("/") or path == "." or (root and path == root)
        if folder or not entry.regular:
            continue
        same_path.setdefault(check_path(path), []).append(entry)
    for folder, _ in _files_with_entries_below(same_path):
        del same_path[folder]
    return {path: _agreed(path, same) for path, same in same_path.items()}


def _agreed(path: str, entries: Sequence[RegisteredFile]) -> RegisteredFile:
    """One entry for a path; which one does not depend on the order, as the plan's digest must not."""
    if len(entries) == 1:
        return entries[0] if entries[0].path == path else replace(entries[0], path=path)
    digests = {(e.algorithm.lower(), e.digest.strip().lower()) for e in entries if e.digest}
    if len({entry.size for entry in entries}) > 1 or len(digests) > len({algorithm for algorithm, _ in digests}):
        sizes = " and ".join(sorted({f"{entry.size} bytes" for entry in entries}))
        raise ConflictingEntries(f"{path!r} is registered {len(entries)} times, with {sizes} or different digests")
    best = max(entries, key=lambda e: (bool(e.digest and known_algorithm(e.algorithm)), astuple(e)))
    return replace(best, path=path)


def match(
    registered: Iterable[RegisteredFile],
    landed: Iterable[LandedObject],
    *,
    source_folder: str = "",
    open_uploads: Sequence[str] = (),
) -> Matched:
    """Decide which files the dataset consists of.

    Raises:
        UploadUnfinished, NothingRegistered, MissingFiles, ConflictingEntries, UnsafePath.
    """
    if open_uploads:
        raise UploadUnfinished(
            f"the upload of {_named([repr(path) for path in open_uploads])} is not finished; archive again when it is"
        )
    expected = regular_files(registered, source_folder)
    if not expected:
        raise NothingRegistered("SciCat lists no regular file of this dataset; register its files first")
    objects = {item.path: item for item in landed}
    # The empty path is the marker of `raw_files/` itself.
    folders = tuple(o for path, o in sorted(objects.items()) if (not path or path.endswith("/")) and o.size == 0)
    for folder in folders:
        del objects[folder.path]
    wrong = sorted(path for path, entry in expected.items() if path not in objects or objects[path].size != entry.size)
    if wrong:
        raise MissingFiles(
            f"{len(wrong)} of {len(expected)} registered files are not in the landing zone as registered: "
            f"{_named([_wrong(p, expected, objects) for p in wrong])}"
        )
    _check_together(map(check_path, objects))
    members = [_member(objects[path], expected.get(path)) for path in sorted(objects)]
    return Matched(
        members=tuple(members),
        unlisted=tuple(path for path in sorted(objects) if path not in expected),
        folders=folders,
        differing_in_case=_differing_in_case(objects),
    )


def group(pid: str, members: Sequence[Member], rules: PackingRules) -> list[BlockPlan]:
    """Cut the files, in their order, into datablocks; a file that alone passes the target gets one of its own."""
    groups: list[list[Member]] = []
    size = body = 0
    for member in members:
        entry = len(json.dumps(registration(member, "0" * 64))) + 2
        full = groups and (
            size + member.size > rules.target_bytes
            or len(groups[-1]) >= rules.target_files
            or body + entry > rules.registration_bytes
        )
        if not groups or full:
            groups.append([])
            size = body = 0
        groups[-1].append(member)
        size += member.size
        body += entry
    return [
        sized(BlockPlan(pid, index, len(groups), rules.smallest_chunk, tuple(block)), rules.smallest_chunk)
        for index, block in enumerate(groups, start=1)
    ]


def registration(member: Member, digest: str) -> dict[str, object]:
    """A member as an entry of a SciCat datablock's `dataFileList`."""
    return {
        "path": member.path,
        "size": member.size,
        "time": format_time(member.mtime_ns),
        "chk": digest,
        "uid": member.uid,
        "gid": member.gid,
        "perm": f"{member.mode:04o}",
    }


def uncovered(expected: Iterable[RegisteredFile], packed: Iterable[RegisteredFile]) -> list[str]:
    """Registered regular files, by relative path, that no datablock holds with that size."""
    held = {entry.path: entry.size for entry in packed}
    return sorted(entry.path for entry in expected if held.get(entry.path) != entry.size)


def _member(landed: LandedObject, entry: RegisteredFile | None) -> Member:
    registered_time = parse_time(entry.time) if entry else None
    algorithm = known_algorithm(entry.algorithm) if entry and entry.digest else ""
    return Member(
        path=landed.path,
        size=landed.size,
        etag=landed.etag,
        mtime_ns=whole_seconds(landed.last_modified) if registered_time is None else registered_time,
        mode=parse_mode(entry.perm) if entry else DEFAULT_MODE,
        uid=_printable(entry.uid) if entry else "",
        gid=_printable(entry.gid) if entry else "",
        version_id=landed.version_id,
        expected_digest=entry.digest.strip().lower() if entry and algorithm else "",
        expected_algorithm=algorithm,
    )


def _printable(owner: str) -> str:
    return owner if owner.isprintable() and len(owner) <= 255 else ""


def _files_with_entries_below(paths: Iterable[str]) -> list[tuple[str, str]]:
    """(path, a path below it) for every path that is at once the folder of another.

    Sorted with `/` before everything else, whatever lies below a path comes right behind it.
    """
    ordered = sorted(paths, key=lambda path: path.replace("/", "\0"))
    return [(path, below) for path, below in pairwise(ordered) if below.startswith(f"{path}/")]


def _check_together(paths: Iterable[str]) -> None:
    normal: dict[str, str] = {}
    for path in paths:
        other = normal.setdefault(unicodedata.normalize("NFC", path), path)
        if other != path:
            raise ConflictingEntries(f"{other!r} and {path!r} are one name on file systems that compose Unicode")
    for path, below in _files_with_entries_below(normal):
        raise ConflictingEntries(f"{normal[path]!r} is a file and at once the folder of {normal[below]!r}")


def _differing_in_case(paths: Iterable[str]) -> tuple[str, ...]:
    seen: dict[str, list[str]] = {}
    for path in paths:
        seen.setdefault(path.casefold(), []).append(path)
    return tuple(sorted(path for same in seen.values() if len(same) > 1 for path in same))


def _wrong(path: str, expected: dict[str, RegisteredFile], objects: dict[str, LandedObject]) -> str:
    if path not in objects:
        return f"{path} (absent)"
    return f"{path} ({objects[path].size} bytes instead of {expected[path].size})"


def _named(paths: Sequence[str]) -> str:
    rest = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + rest
