"""Whether a tar is what it should be: a datablock by its own bag and by our manifest, another's tar by a list.

A `TarReader` says what is there; here stand the reasons why that is not right. Each finding names the bytes and the
files that it is about, so that a person knows what is lost and what is not.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from domain import bagit
from domain.checksum import ALGORITHM, composite
from domain.datablock import BlockPlan
from domain.manifest import Manifest
from domain.names import stem_of
from domain.tagfiles import BagFacts, Listed, bag_algorithm, read_bag_info, read_facts, read_members, read_sums
from domain.tarreader import Entry, Flaw, FlawKind, Kind, TarContents
from domain.tarstream import BLOCK, END, Layout, header, padding

_OUR_TOP = re.compile(r".+_[1-9][0-9]*_[0-9a-f]{8}", re.ASCII | re.DOTALL)
_HIT_NAMED = 3


class Fault(StrEnum):
    """What kind of thing is wrong."""

    TAR = "tar"
    """The tar as such: cut short, unreadable in places, something behind its end."""
    SIZE = "size"
    CHUNK = "chunk"
    HEADER = "header"
    """A header or padding is damaged; the content behind it may be whole."""
    CONTENT = "content"
    MISSING = "missing"
    EXTRA = "extra"
    """A file that nothing lists. In a bag it must not be; beside a catalogue's list it may."""
    TAG_FILE = "tag file"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where."""

    fault: Fault
    sentence: str
    member: str = ""
    """Path in the dataset, or name of a tag file; empty where it is about a run of the tar."""
    offset: int | None = None
    """In the tar; None where it is about no place in it."""
    length: int = 0
    chunks: tuple[int, ...] = ()
    """Chunks that the bytes lie in, where the chunk size is known."""
    members: tuple[str, ...] = ()
    """Files whose content is lost, or could not be shown to be whole."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a catalogue says of a file in a tar that is not ours."""

    size: int
    digest: str = ""
    """Hex in either case, empty if it says none."""
    algorithm: str = ""
    """Its hashlib name."""


class ChunkDigests:
    """The sha256 of every chunk of a file that passes front to back."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._left = chunk_bytes
        self._running = hashlib.sha256()
        self._done: list[bytes] = []

    def feed(self, run: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(run)
        while view:
            part = view[: self._left]
            self._running.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left:
                self._next()

    def _next(self) -> None:
        self._done.append(self._running.digest())
        self._running = hashlib.sha256()
        self._left = self._chunk_bytes

    def finish(self) -> list[bytes]:
        """The raw digests of all chunks."""
        if self._left < self._chunk_bytes:
            self._next()
        return list(self._done)


def looks_ours(contents: TarContents) -> bool:
    """Whether the tar is one of our datablocks, whole or not, by the name of its top folder and what lies in it."""
    top = contents.top
    names = [entry.name for entry in contents.entries] + [flaw.name for flaw in contents.flaws]
    below = (name.startswith((f"{top}/data/", f"{top}/bagit.txt")) for name in names)
    return _OUR_TOP.fullmatch(top) is not None and any(below)


def tags_of(contents: TarContents) -> dict[str, bytes]:
    """The tag files by their name below the top folder."""
    prefix = f"{contents.top}/"
    return {name.removeprefix(prefix): data for name, data in contents.tags.items() if name.startswith(prefix)}


def listing(contents: TarContents, manifest: Manifest | None = None) -> tuple[Listed, ...]:
    """What the datablock's files should be, by the best list at hand; empty if there is none.

    Our manifest first, then `members.jsonl`, then the bag's own manifest, which knows neither sizes nor offsets.
    """
    if manifest is not None:
        return tuple(Listed(m.path, m.digest, m.size, m.offset) for m in manifest.members)
    tags = tags_of(contents)
    try:
        rows = read_members(tags.get("members.jsonl", b""))
        listed = tuple(Listed(member.path, digest, member.size, offset) for member, offset, digest in rows)
    except ValueError:
        listed = ()
    sums = tuple(Listed(path, digest) for path, digest in _payload_sums(tags).items())
    # A list that the tagmanifest disowns gives way to one that it vouches for.
    better = _sealed(tags, f"manifest-{_algorithm(tags)}.txt") and not _sealed(tags, "members.jsonl")
    return sums if better or not listed else listed


def _sealed(tags: Mapping[str, bytes], name: str) -> bool:
    """Whether the tagmanifest has the digest that the tag file has."""
    algorithm = _algorithm(tags)
    try:
        sums = read_sums(tags[f"tagmanifest-{algorithm}.txt"])
        return sums[name] == hashlib.new(algorithm, tags[name]).hexdigest()
    except (KeyError, ValueError):
        return False


def _payload_sums(tags: Mapping[str, bytes]) -> dict[str, str]:
    """Digest by path of the bag's manifest; empty if it cannot be read."""
    try:
        sums = read_sums(tags[f"manifest-{bag_algorithm(dict(tags))}.txt"])
    except (KeyError, ValueError):
        return {}
    return {path.removeprefix("data/"): digest for path, digest in sums.items()}


def unread(contents: TarContents, listed: Iterable[Listed]) -> list[Listed]:
    """Listed files that lie within the tar but were not come upon, or not as a whole, as their header is damaged.

    Who can seek may digest them where the list says that they lie, and hand the digests to the checks as `reread`.
    """
    there = {(entry.offset, entry.size) for entry in contents.entries if entry.kind is Kind.FILE}
    return [
        item
        for item in listed
        if item.offset is not None and item.size is not None
        if (item.offset, item.size) not in there and item.offset + item.size <= contents.size
    ]


def check_bag(
    contents: TarContents, *, plan: BlockPlan | None = None, reread: Mapping[str, str] | None = None
) -> list[Finding]:
    """Whether a datablock is intact by what it says of itself; no finding means that it is, to the last byte.

    Args:
        contents: of the whole tar, digested with the bag's algorithm.
        plan: the datablock's plan if it is known for sure, by `domain.rebuilding.identify`.
        reread: hex digest by path of the `unread` files.
    """
    tags = tags_of(contents)
    digests = reread or {}
    facts = _trusted(tags, known=plan is not None)
    if facts is None:
        listed = listing(contents)
        found = _check_members(contents, listed, digests, _algorithm(tags))
        found += _check_tags(contents, tags)
    else:
        facts = replace(facts, listed=_voted(contents, facts, tags))
        listed = facts.listed
        found = _check_members(contents, listed, digests, facts.plan.algorithm)
        found += _check_frame(contents, facts, tags)
    return _flaws(contents, listed, digests, _algorithm(tags)) + found


def check_manifest(
    manifest: Manifest, contents: TarContents, chunks: Sequence[bytes], *, reread: Mapping[str, str] | None = None
) -> list[Finding]:
    """Whether a datablock is the one that our manifest describes.

    Args:
        manifest: of this datablock.
        contents: of the whole tar, digested with the manifest's algorithm.
        chunks: raw digests of the tar's chunks of the manifest's size.
        reread: hex digest by path of the `unread` files.
    """
    listed, digests = listing(contents, manifest), reread or {}
    whole = _whole(contents, listed, digests, manifest.algorithm)
    found: list[Finding] = []
    if contents.size != manifest.tar_bytes:
        begin, end = sorted((contents.size, manifest.tar_bytes))
        found.append(
            Finding(
                Fault.SIZE,
                f"the tar has {contents.size} bytes, its manifest says {manifest.tar_bytes}",
                offset=begin,
                length=end - begin,
            )
        )
    if stem_of(manifest.archive_id) != contents.top and contents.top:
        found.append(
            Finding(Fault.TAR, f"the manifest is that of {stem_of(manifest.archive_id)!r}, the tar is {contents.top!r}")
        )
    for chunk, digest in enumerate(manifest.chunks):
        if chunk >= len(chunks) or chunks[chunk] != digest:
            offset, length = manifest.chunk_range(chunk)
            hit = tuple(item.path for item in _overlapping(listed, offset, length) if item.path not in whole)
            what = "is missing or cut short" if offset + length > contents.size else "is damaged"
            sentence = f"chunk {chunk} (bytes {offset} to {offset + length - 1}) {what}; {_hit_text(hit)}"
            found.append(Finding(Fault.CHUNK, sentence, offset=offset, length=length, chunks=(chunk,), members=hit))
    if not found and composite(chunks) != manifest.digest:
        found.append(Finding(Fault.CHUNK, "the chunks do not give the datablock's digest"))
    return found + _check_members(contents, listed, digests, manifest.algorithm)


def check_listed(contents: TarContents, expected: Mapping[str, Expected]) -> list[Finding]:
    """Whether another's plain tar holds the files that a catalogue lists, by `dataFileList` paths.

    The paths may lie below a folder of the tar that the catalogue leaves out. Findings of the kind `EXTRA` are files
    that the catalogue does not know: no damage.
    """
    found = [_of_flaw(flaw, (), frozenset()) for flaw in contents.flaws]
    named = {_plain(entry.name): entry for entry in contents.entries if entry.kind is not Kind.FOLDER}
    prefix = _common_prefix(named, expected)
    used: set[str] = set()
    for path, facts in expected.items():
        name = prefix + _plain(path)
        used.add(name)
        found += _check_one_listed(contents, path, facts, named.get(name), named)
    found += [
        Finding(Fault.EXTRA, f"{name!r} is in the tar, the catalogue does not list it", name, entry.offset, entry.size)
        for name, entry in named.items()
        if name not in used and entry.kind is Kind.FILE
    ]
    return found


def with_chunks(findings: Iterable[Finding], chunk_bytes: int) -> list[Finding]:
    """The findings with the chunks that their bytes lie in."""
    return [_with_chunks(finding, chunk_bytes) for finding in findings]


def _with_chunks(finding: Finding, chunk_bytes: int) -> Finding:
    if finding.offset is None or finding.chunks:
        return finding
    last = finding.offset + max(finding.length, 1) - 1
    return replace(finding, chunks=tuple(range(finding.offset // chunk_bytes, last // chunk_bytes + 1)))


# --- what all checks share


def _plain(path: str) -> str:
    return path.removeprefix("./").lstrip("/")


def _hit_text(hit: Sequence[str]) -> str:
    if not hit:
        return "no file's content is hit"
    rest = f" and {len(hit) - _HIT_NAMED} more" if len(hit) > _HIT_NAMED else ""
    return "hit: " + ", ".join(repr(path) for path in hit[:_HIT_NAMED]) + rest


def _overlapping(listed: Iterable[Listed], offset: int, length: int) -> list[Listed]:
    return [
        item
        for item in listed
        if item.offset is not None and item.size and item.offset < offset + length and offset < item.offset + item.size
    ]


def _whole(
    contents: TarContents, listed: Iterable[Listed], reread: Mapping[str, str], algorithm: str
) -> frozenset[str]:
    """Paths of the listed files whose content was shown to be right."""
    at = {entry.offset: entry for entry in contents.entries if entry.kind is Kind.FILE}
    return frozenset(
        item.path
        for item in listed
        if reread.get(item.path) == item.digest
        or (
            item.offset in at
            and at[item.offset].size == item.size
            and contents.digest_of(at[item.offset], algorithm) == item.digest
        )
    )


def _flaws(contents: TarContents, listed: Sequence[Listed], reread: Mapping[str, str], algorithm: str) -> list[Finding]:
    whole = _whole(contents, listed, reread, algorithm)
    return [_of_flaw(flaw, listed, whole) for flaw in contents.flaws]


def _of_flaw(flaw: Flaw, listed: Sequence[Listed], whole: frozenset[str]) -> Finding:
    length = flaw.length
    if flaw.kind in (FlawKind.CUT_SHORT, FlawKind.NO_END):
        hit = [item.path for item in listed if item.offset is not None and item.offset + (item.size or 0) > flaw.offset]
    else:
        hit = [item.path for item in _overlapping(listed, flaw.offset, length)]
    lost = tuple(path for path in hit if path not in whole)
    sentence = f"{flaw.sentence}; {_hit_text(lost)}" if hit else flaw.sentence
    return Finding(Fault.TAR, sentence, offset=flaw.offset, length=length, members=lost)


def _check_members(
    contents: TarContents, listed: Sequence[Listed], reread: Mapping[str, str], algorithm: str
) -> list[Finding]:
    """Every listed file against the entry that lies where it should, and every entry against the list."""
    prefix = f"{contents.top}/data/"
    files = [entry for entry in contents.entries if entry.kind is Kind.FILE]
    at = {entry.offset: entry for entry in files}
    named = {entry.name: entry for entry in files}
    found: list[Finding] = []
    used: set[int] = set()
    tags = tags_of(contents)
    for item in listed:
        entry = named.get(prefix + item.path) if item.offset is None else at.get(item.offset)
        if entry is None:
            entry = named.get(prefix + item.path)
            if entry is None:
                found.append(_absent(contents, item, reread))
                continue
            what = f"lies at byte {entry.offset}, is listed at byte {item.offset}"
            found.append(_about(item, entry, Fault.HEADER, what))
        used.add(entry.offset)
        if entry.size == item.size or item.path not in reread:
            found += _check_member(contents, item, entry, algorithm)
        else:
            found.append(_absent(contents, item, reread))
    found += [
        Finding(
            Fault.EXTRA,
            f"{entry.name!r} is in the tar, but is not listed",
            entry.name.removeprefix(prefix),
            entry.header_offset,
            entry.end - entry.header_offset,
        )
        for entry in files
        if entry.offset not in used and listed and entry.name.removeprefix(f"{contents.top}/") not in tags
    ]
    found += [
        Finding(Fault.EXTRA, f"{entry.name!r} is a {entry.kind}, which no datablock holds", entry.name, entry.offset)
        for entry in contents.entries
        if entry.kind is not Kind.FILE
    ]
    return found


def _about(item: Listed, entry: Entry, fault: Fault, what: str, *, lost: bool = False) -> Finding:
    if fault is Fault.HEADER:
        offset, length = entry.header_offset, entry.offset - entry.header_offset
    else:
        offset, length = entry.offset, entry.size
    hit = (item.path,) if lost else ()
    return Finding(fault, f"{item.path!r} {what}", item.path, offset, length, members=hit)


def _check_member(contents: TarContents, item: Listed, entry: Entry, algorithm: str) -> list[Finding]:
    found: list[Finding] = []
    if entry.name != f"{contents.top}/data/{item.path}":
        found.append(_about(item, entry, Fault.HEADER, f"has the name {entry.name!r} in its header"))
    if item.size is not None and entry.size != item.size:
        found.append(
            _about(item, entry, Fault.CONTENT, f"has {entry.size} bytes, is listed with {item.size}", lost=True)
        )
        return found
    digest = contents.digest_of(entry, algorithm)
    if digest != item.digest:
        where = f"bytes {entry.offset} to {entry.end - 1}" if entry.size else f"at byte {entry.offset}"
        what = f"({where}) is damaged: its {algorithm} is {digest or 'not known'}, is listed as {item.digest}"
        found.append(_about(item, entry, Fault.CONTENT, what, lost=True))
    return found


def _absent(contents: TarContents, item: Listed, reread: Mapping[str, str]) -> Finding:
    """A listed file that was not come upon."""
    offset, length = item.offset, item.size or 0
    if offset is not None and offset + length > contents.size:
        if offset < contents.size:
            what = f"is cut off after {contents.size - offset} of its {length} bytes"
        else:
            what = "is cut off"
        return Finding(Fault.MISSING, f"{item.path!r} {what}", item.path, offset, length, members=(item.path,))
    if item.path in reread and offset is not None:
        if reread[item.path] == item.digest:
            what = f"has a damaged header; its content ({length} bytes from byte {offset} on) is whole"
            return Finding(Fault.HEADER, f"{item.path!r} {what}", item.path, offset - BLOCK, BLOCK)
        what = f"has a damaged header, and its content ({length} bytes from byte {offset} on) is not as listed"
        return Finding(Fault.CONTENT, f"{item.path!r} {what}", item.path, offset, length, members=(item.path,))
    return Finding(
        Fault.MISSING, f"{item.path!r} is listed, but not found", item.path, offset, length, members=(item.path,)
    )


# --- a bag by itself


def _algorithm(tags: Mapping[str, bytes]) -> str:
    try:
        return bag_algorithm(dict(tags))
    except ValueError:
        return ALGORITHM


def _trusted(tags: dict[str, bytes], *, known: bool) -> BagFacts | None:
    """The plan's facts, if they are beyond doubt: by the digest in the datablock's name, or by the tagmanifest."""
    try:
        facts = read_facts(tags)
    except ValueError:
        return None
    sealed = _sealed(tags, "bag-info.txt") and _sealed(tags, "members.jsonl")
    return facts if known or sealed else None


def _voted(contents: TarContents, facts: BagFacts, tags: Mapping[str, bytes]) -> tuple[Listed, ...]:
    """The members with the digests that two of three agree on: `members.jsonl`, the bag's manifest, the content.

    So damage in a list is not taken for damage of the file, and one that was never damaged is not called so.
    """
    layout = Layout(facts.plan)
    sums = _payload_sums(tags)
    at = {entry.offset: entry for entry in contents.entries if entry.kind is Kind.FILE}
    voted: list[Listed] = []
    for item, offset in zip(facts.listed, layout.data_offsets, strict=True):
        content = contents.digest_of(at[offset], facts.plan.algorithm) if offset in at else ""
        digest = content if content and content in (sums.get(item.path), item.digest) else item.digest
        voted.append(Listed(item.path, digest, item.size, offset))
    return tuple(voted)


def _check_frame(contents: TarContents, facts: BagFacts, tags: Mapping[str, bytes]) -> list[Finding]:
    """Everything that is not payload, against what the plan says that it must be, byte by byte."""
    plan, top = facts.plan, contents.top
    layout = Layout(plan)
    at = {entry.offset: entry for entry in contents.entries}
    named = {entry.name: entry for entry in contents.entries}
    found: list[Finding] = []
    before = 0
    for member, offset in zip(plan.members, layout.data_offsets, strict=True):
        name = f"{top}/data/{member.path}"
        wanted = header(name, member.size, mtime_ns=member.mtime_ns, mode=member.mode, uid=member.uid, gid=member.gid)
        found += _check_header(at.get(offset), offset, bytes(padding(before)) + wanted, member.path)
        before = member.size
    offset = layout.tail_offset
    mtime_ns = bagit.newest_second(plan) * 1_000_000_000
    for name, content in bagit.tag_files(plan, layout.data_offsets, [item.digest for item in facts.listed]):
        wanted = header(f"{top}/{name}", len(content), mtime_ns=mtime_ns, mode=0o644)
        offset += len(wanted)
        entry = at.get(offset) or named.get(f"{top}/{name}")
        found += _check_header(at.get(offset), offset, bytes(padding(before)) + wanted, name)
        found += _check_tag(tags.get(name), content, name, entry.offset if entry else offset)
        before = len(content)
        offset += before + padding(before)
    rest = hashlib.sha256(bytes(padding(before)) + END).digest()
    if contents.size == layout.tar_bytes and contents.ended and contents.rest not in (b"", rest):
        begin = offset - padding(before)
        sentence = f"the padding at the end of the tar (bytes {begin} to {offset - 1}) is damaged"
        found.append(Finding(Fault.HEADER, sentence, offset=begin, length=offset - begin))
    if contents.size != layout.tar_bytes:
        begin, end = sorted((contents.size, layout.tar_bytes))
        sentence = f"the tar has {contents.size} bytes, its members make {layout.tar_bytes}"
        found.append(Finding(Fault.SIZE, sentence, offset=begin, length=end - begin))
    return found


def _check_header(entry: Entry | None, offset: int, wanted: bytes, name: str) -> list[Finding]:
    """An entry's own frame; where none was found, or unreadable bytes lie before it, a flaw has said so."""
    if entry is None or not entry.frame or entry.frame == hashlib.sha256(wanted).digest():
        return []
    begin = offset - len(wanted)
    sentence = f"the header of {name!r} or the padding before it (bytes {begin} to {offset - 1}) is damaged"
    return [Finding(Fault.HEADER, sentence, name, begin, len(wanted))]


def _check_tag(there: bytes | None, wanted: bytes, name: str, offset: int) -> list[Finding]:
    if there is None:
        return [Finding(Fault.MISSING, f"the tag file {name!r} is not found", name, offset, len(wanted))]
    if there == wanted:
        return []
    both = range(min(len(there), len(wanted)))
    differing = [position for position in both if there[position] != wanted[position]]
    first = differing[0] if differing else len(both)
    last = differing[-1] if differing and len(there) == len(wanted) else max(len(there), len(wanted)) - 1
    sentence = f"the tag file {name!r} is damaged (bytes {offset + first} to {offset + last})"
    return [Finding(Fault.TAG_FILE, sentence, name, offset + first, last - first + 1)]


def _check_tags(contents: TarContents, tags: Mapping[str, bytes]) -> list[Finding]:
    """The tag files against one another: all that can be said where the plan cannot be had from them."""
    if not tags:
        sentence = "no tag file is found: the tar itself does not tell what its files should be, a manifest would"
        prefix = f"{contents.top}/data/"
        names = [entry.name for entry in contents.entries] + [flaw.name for flaw in contents.flaws]
        unproven = dict.fromkeys(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return [Finding(Fault.MISSING, sentence, members=tuple(unproven))]
    algorithm = _algorithm(tags)
    tagmanifest = f"tagmanifest-{algorithm}.txt"
    needed = ["bagit.txt", "bag-info.txt", f"manifest-{algorithm}.txt", "members.jsonl", tagmanifest]
    places = {entry.name.removeprefix(f"{contents.top}/"): entry for entry in contents.entries}
    found = [Finding(Fault.MISSING, f"the tag file {name!r} is not found", name) for name in needed if name not in tags]

    def wrong(name: str, what: str) -> None:
        entry = places[name]
        sentence = f"the tag file {name!r} (bytes {entry.offset} to {entry.end - 1}) {what}"
        found.append(Finding(Fault.TAG_FILE, sentence, name, entry.offset, entry.size))

    try:
        sums = read_sums(tags[tagmanifest]) if tagmanifest in tags else None
    except ValueError as error:
        wrong(tagmanifest, f"is damaged: {error}")
        sums = None
    for name in needed[:4] if sums is not None else ():
        if name in tags and name not in (sums or {}):
            wrong(tagmanifest, f"does not list {name!r}")
        elif name in tags and hashlib.new(algorithm, tags[name]).hexdigest() != (sums or {})[name]:
            wrong(name, f"does not have the digest that {tagmanifest} gives it")
    blamed = {finding.member for finding in found}
    for name, problem in _disagreements(contents, tags, algorithm):
        if name in places and name not in blamed:
            wrong(name, problem)
    return found


def _disagreements(contents: TarContents, tags: Mapping[str, bytes], algorithm: str) -> list[tuple[str, str]]:
    """(tag file, what is wrong) where it does not go with the payload."""
    found: list[tuple[str, str]] = []
    payload = {
        entry.name.removeprefix(f"{contents.top}/data/"): entry
        for entry in contents.entries
        if entry.kind is Kind.FILE and entry.name.startswith(f"{contents.top}/data/")
    }
    if tags.get("bagit.txt", bagit.BAGIT_TXT) != bagit.BAGIT_TXT:
        found.append(("bagit.txt", "is not that of BagIt 1.0"))
    try:
        oxum = read_bag_info(tags["bag-info.txt"])["Payload-Oxum"]
        there = f"{sum(entry.size for entry in payload.values())}.{len(payload)}"
        if oxum != there:
            found.append(("bag-info.txt", f"has the Payload-Oxum {oxum}, the tar has {there}"))
    except (KeyError, ValueError) as error:
        found.append(("bag-info.txt", f"cannot be read: {error}"))
    name = f"manifest-{algorithm}.txt"
    try:
        sums = {path.removeprefix("data/"): digest for path, digest in read_sums(tags.get(name, b"")).items()}
        off = [
            path
            for path, digest in sums.items()
            if path not in payload or contents.digest_of(payload[path], algorithm) != digest
        ]
        unnamed = sorted(payload.keys() - sums.keys())
        if off or unnamed:
            found.append(
                (name, f"and the payload differ in {len(off) + len(unnamed)} files, e.g. {(off or unnamed)[0]!r}")
            )
    except ValueError as error:
        found.append((name, f"cannot be read: {error}"))
    try:
        deque(read_members(tags.get("members.jsonl", b"")), maxlen=0)
    except ValueError as error:
        found.append(("members.jsonl", f"cannot be read: {error}"))
    return found


# --- another's tar


def _common_prefix(named: Mapping[str, Entry], expected: Mapping[str, Expected]) -> str:
    """What stands in the tar before all listed paths: nothing, or a folder that the catalogue leaves out."""
    paths = [_plain(path) for path in expected]
    if not paths or any(path in named for path in paths):
        return ""
    counts: dict[str, int] = {}
    for path in paths[:100]:
        for name in named:
            if name.endswith(f"/{path}"):
                prefix = name[: -len(path)]
                counts[prefix] = counts.get(prefix, 0) + 1
        if counts:
            break
    scores = {prefix: sum(prefix + path in named for path in paths) for prefix in counts}
    return max(scores, key=lambda prefix: (scores[prefix], -len(prefix)), default="")


def _check_one_listed(
    contents: TarContents, path: str, facts: Expected, entry: Entry | None, named: Mapping[str, Entry]
) -> list[Finding]:
    if entry is not None and entry.kind is Kind.HARD_LINK:
        # The content of a hard link stands at the first name that the file has in the tar.
        entry = named.get(_plain(entry.link))
    if entry is None:
        return [Finding(Fault.MISSING, f"{path!r} is listed, but not in the tar", path, members=(path,))]
    if entry.kind is not Kind.FILE:
        sentence = f"{path!r} is a {entry.kind} in the tar: its content cannot be checked"
        return [Finding(Fault.CONTENT, sentence, path, entry.offset, entry.size, members=(path,))]
    if entry.size != facts.size:
        sentence = f"{path!r} has {entry.size} bytes in the tar, is listed with {facts.size}"
    elif facts.digest and contents.digest_of(entry, facts.algorithm) != facts.digest.lower():
        there = contents.digest_of(entry, facts.algorithm) or "not known"
        sentence = f"{path!r} is damaged: its {facts.algorithm} is {there}, is listed as {facts.digest.lower()}"
    else:
        return []
    return [Finding(Fault.CONTENT, sentence, path, entry.offset, entry.size, members=(path,))]
