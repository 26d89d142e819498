"""Reading a tar front to back, in runs of any size: what lies where, each file's digest, and what is wrong.

    feed(run) … feed(run) ──► finish() ──► TarContents: entries, tag files, flaws

It reads our datablocks and the plain tars that others left on tape: POSIX ustar and pax, GNU tar's long names and
numbers, what Python's `tarfile` writes. Damage does not end it: behind a header that cannot be read it goes on at the
next one that can, and the flaw says which bytes were passed over. Content is digested and never kept, but for the tag
files of a bag.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from domain.checksum import ALGORITHM
from domain.tarstream import BLOCK, END, padding

MAX_TAG_BYTES = 64 * 2**20
"""A tag file above this is digested only; `members.jsonl` of 20,000 longest paths has half of it."""

MAX_TAGS_BYTES = 2 * MAX_TAG_BYTES
"""All tag files of a tar together."""

MAX_RECORDS_BYTES = 2**20
"""Pax records and long names above this are taken for damage; a path has at most some kilobytes."""

_ZEROS = bytes(BLOCK)
_NANOSECONDS = 1_000_000_000
_TAG_FILE = re.compile(r"[^/]+/(bagit\.txt|bag-info\.txt|members\.jsonl|(?:tag)?manifest-[a-z0-9_]+\.txt)", re.ASCII)
_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"x", b"g", b"L", b"K"
_RECORDS = (_PAX_LOCAL, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK)


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    SPARSE = "sparse file"
    """What is stored is not the file's content but its map and runs, so it has no digest here."""
    OTHER = "special file"


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARD_LINK, b"2": Kind.SYMBOLIC_LINK,
    b"5": Kind.FOLDER, b"S": Kind.SPARSE,
}  # fmt: skip
_WITHOUT_CONTENT = b"123456"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tar."""

    name: str
    """As in the tar; bytes that are no UTF-8 are lone surrogates."""
    kind: Kind
    size: int
    header_offset: int
    """Of the first block that belongs to it, a pax header for instance."""
    offset: int
    """Of its content."""
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    uname: str
    gname: str
    link: str
    """Target of a link."""
    digests: tuple[str, ...]
    """Hex, in the order of the reader's algorithms; empty for what is no file or was skipped."""
    frame: bytes
    """sha256 of all bytes from the end of the content before it to the start of its own: padding and headers. Empty if
    unreadable bytes lie between."""

    @property
    def end(self) -> int:
        """Where its content ends."""
        return self.offset + self.size


class FlawKind(StrEnum):
    """What is wrong with a tar as a tar."""

    UNREADABLE = "unreadable"
    """A run in which no header could be made out."""
    CUT_SHORT = "cut short"
    NO_END = "no end"
    """The two zero blocks at the end are missing."""
    TRAILING = "trailing"
    """Something lies behind the end."""
    TOO_LARGE = "too large"
    """A tag file that was not kept."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is wrong with the tar itself."""

    kind: FlawKind
    offset: int
    length: int
    """Of the run that is unreadable, or of what is missing."""
    name: str
    """The entry that the reader stood in, or that came last before it; empty at the start."""
    sentence: str


@dataclass(frozen=True)
class TarContents:
    """What a tar was found to be."""

    size: int
    """Bytes that were read or skipped."""
    algorithms: tuple[str, ...]
    entries: tuple[Entry, ...]
    """Those whose content came whole, in the order of the tar."""
    tags: dict[str, bytes]
    """The kept tag files' content by their name in the tar."""
    flaws: tuple[Flaw, ...]
    ended: bool
    """Whether the two zero blocks of the end were there."""
    rest: bytes
    """sha256 of all that follows the last content; empty if there is something unreadable in it."""

    @cached_property
    def top(self) -> str:
        """The folder at the root that most entries lie in, empty if there is none."""
        # A tar may be cut short in its first file, which is no entry then.
        names = [entry.name for entry in self.entries] + [flaw.name for flaw in self.flaws]
        folders = Counter(name.split("/", 1)[0] for name in names if "/" in name)
        return folders.most_common(1)[0][0] if folders else ""

    def digest_of(self, entry: Entry, algorithm: str) -> str:
        """An entry's digest in hex, empty if it was not computed."""
        return entry.digests[self.algorithms.index(algorithm)] if entry.digests and algorithm in self.algorithms else ""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    type: bytes
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    uname: str
    gname: str
    link: str
    extended: bool
    """A GNU sparse header, with more blocks of its map behind it."""


class _Digest(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


class _Doing(StrEnum):
    HEADERS = "headers"
    SPARSE_MAP = "sparse map"
    RECORDS = "records"
    CONTENT = "content"
    PADDING = "padding"


class TarReader:
    """Takes a tar's bytes in order; memory does not grow with the sizes of the files in it."""

    def __init__(self, algorithms: Sequence[str] = (ALGORITHM,)) -> None:
        """Start at the tar's first byte.

        Args:
            algorithms: hashlib names of the digests of every file; none makes a quick look at what is there.
        """
        self.algorithms = tuple(algorithms)
        self.offset = 0
        """Bytes taken so far."""
        self._entries: list[Entry] = []
        self._tags: dict[str, bytes] = {}
        self._tags_bytes = 0
        self._flaws: list[Flaw] = []
        self._tops: set[str] = set()
        self._doing = _Doing.HEADERS
        self._block = bytearray()
        self._left = 0
        self._zeros = 0
        self._ended = False
        self._lost: tuple[int, str] | None = None
        """Where unreadable bytes began, and why."""
        self._kept = bytearray()
        self._keeping = False
        self._hashes: list[_Digest] = []
        self._frame: _Digest | None = hashlib.sha256()
        self._finished_frame = b""
        self._global: dict[str, str] = {}
        self._header: _Header | None = None
        self._records_type = b""
        self._start_entry()

    def _start_entry(self) -> None:
        self._pax: dict[str, str] = {}
        self._long: dict[bytes, str] = {}
        self._entry_offset: int | None = None

    @property
    def skippable(self) -> int:
        """How many of the next bytes are content that nothing but digests needs; `skip` passes over them."""
        return self._left if self._doing is _Doing.CONTENT and not self._keeping else 0

    def skip(self, length: int) -> None:
        """Pass over content; its file gets no digests.

        Raises:
            ValueError: more than is `skippable`.
        """
        if length > self.skippable:
            raise ValueError(f"{length} bytes cannot be skipped, {self.skippable} can")
        self._hashes = []
        self._advance(length)

    def feed(self, run: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(run)
        while view:
            if self._left:
                part = view[: self._left]
                self._take(part)
                self._advance(len(part))
            else:
                part = view[: BLOCK - len(self._block)]
                self._block += part
                self.offset += len(part)
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._on_block(block, self.offset - BLOCK)
            view = view[len(part) :]

    def finish(self) -> TarContents:
        """Say what was there; nothing may be fed behind it."""
        self._find_cut()
        if self._ended and any(self._block):
            start = self.offset - len(self._block)
            self._flaw(FlawKind.TRAILING, start, 0, _trailing(start))
        if self._lost is not None:
            self._ended = self._zeros * BLOCK >= len(END)
            self._found_again(self.offset - self._zeros * BLOCK)
        cut = any(flaw.kind is FlawKind.CUT_SHORT for flaw in self._flaws)
        if not self._ended and not cut:
            self._flaw(FlawKind.NO_END, self.offset, 0, f"the tar ends at byte {self.offset} without its end mark")
        return TarContents(
            size=self.offset,
            algorithms=self.algorithms,
            entries=tuple(self._entries),
            tags=self._tags,
            flaws=tuple(self._flaws),
            ended=self._ended,
            rest=self._frame.digest() if self._frame is not None else b"",
        )

    def _find_cut(self) -> None:
        name = self._header.name if self._header else self._behind
        where = f"the tar is cut short at byte {self.offset}, "
        if self._block and self._lost is None and not self._ended:
            where += f"in the midst of a header behind {self._behind!r}" if self._behind else "in its first header"
            self._flaw(FlawKind.CUT_SHORT, self.offset, BLOCK - len(self._block), where)
        elif self._doing is _Doing.CONTENT and self._header:
            done = self._header.size - self._left
            where += f"behind {done} of the {self._header.size} bytes of {name!r}"
            self._flaw(FlawKind.CUT_SHORT, self.offset, self._left, where, name)
        elif self._left or (self._entry_offset is not None and self._lost is None and not self._ended):
            where += f"in the padding or headers behind {self._behind!r}"
            self._flaw(FlawKind.CUT_SHORT, self.offset, self._left, where)

    @property
    def _behind(self) -> str:
        return self._entries[-1].name if self._entries else ""

    def _flaw(self, kind: FlawKind, offset: int, length: int, sentence: str, name: str | None = None) -> None:
        self._flaws.append(Flaw(kind, offset, length, self._behind if name is None else name, sentence))

    # --- runs: content, records, padding

    def _take(self, part: memoryview) -> None:
        if self._doing is _Doing.CONTENT:
            for running in self._hashes:
                running.update(part)
        elif self._frame is not None:
            self._frame.update(part)
        if self._keeping:
            self._kept += part

    def _advance(self, length: int) -> None:
        self.offset += length
        self._left -= length
        if self._left:
            return
        if self._doing is _Doing.CONTENT:
            self._end_content()
        elif self._doing is _Doing.RECORDS:
            self._end_records()
        else:
            self._doing = _Doing.HEADERS

    def _run(self, doing: _Doing, length: int) -> None:
        self._doing, self._left = doing, length
        if not length:
            self._advance(0)

    def _pad(self, size: int) -> None:
        self._run(_Doing.PADDING, padding(size))

    def _begin_content(self, header: _Header) -> None:
        """All headers of an entry are there, and `header` says what they come to."""
        self._header = header
        self._finished_frame = self._frame.digest() if self._frame is not None else b""
        kind = _KINDS.get(header.type, Kind.OTHER)
        digested = self.algorithms if kind is Kind.FILE else ()
        self._hashes = [hashlib.new(name, usedforsecurity=False) for name in digested]
        self._keeping = False
        if kind is Kind.FILE and _TAG_FILE.fullmatch(header.name):
            self._keeping = header.size <= MAX_TAG_BYTES and self._tags_bytes + header.size <= MAX_TAGS_BYTES
            if not self._keeping:
                sentence = f"the tag file {header.name!r} of {header.size} bytes is too large to be looked into"
                self._flaw(FlawKind.TOO_LARGE, self.offset, header.size, sentence, header.name)
        self._run(_Doing.CONTENT, header.size)

    def _end_content(self) -> None:
        header = self._header
        assert header is not None and self._entry_offset is not None  # noqa: S101, PT018 - set by `_begin_content`
        self._entries.append(
            Entry(
                name=header.name,
                kind=_KINDS.get(header.type, Kind.OTHER),
                size=header.size,
                header_offset=self._entry_offset,
                offset=self.offset - header.size,
                mtime_ns=header.mtime_ns,
                mode=header.mode,
                uid=header.uid,
                gid=header.gid,
                uname=header.uname,
                gname=header.gname,
                link=header.link,
                digests=tuple(running.hexdigest() for running in self._hashes),
                frame=self._finished_frame,
            )
        )
        self._tops.add(header.name.split("/", 1)[0])
        if self._keeping:
            self._tags[header.name] = bytes(self._kept)
            self._tags_bytes += len(self._kept)
            self._kept.clear()
            self._keeping = False
        self._header = None
        self._frame = hashlib.sha256()
        self._start_entry()
        self._pad(header.size)

    def _end_records(self) -> None:
        records = bytes(self._kept)
        self._kept.clear()
        self._keeping = False
        try:
            if self._records_type == _PAX_LOCAL:
                self._pax |= pax_records(records)
            elif self._records_type == _PAX_GLOBAL:
                self._global |= pax_records(records) if self._lost is None else {}
            else:
                self._long[self._records_type] = _text(records)
        except ValueError as error:
            self._lose(self.offset - len(records), f"its extended header cannot be read: {error}")
        self._pad(len(records))

    # --- blocks: headers, the end

    def _on_block(self, block: bytes, start: int) -> None:
        if self._doing is _Doing.SPARSE_MAP:
            if self._frame is not None:
                self._frame.update(block)
            if not block[504] and self._header:
                self._begin_content(self._header)
            return
        if block == _ZEROS:
            self._zeros += 1
            if self._frame is not None:
                self._frame.update(block)
            self._ended = self._ended or (self._lost is None and self._zeros * BLOCK == len(END))
            return
        zeros, self._zeros = self._zeros, 0
        if self._ended:
            self._ended = False
            if not any(flaw.kind is FlawKind.TRAILING for flaw in self._flaws):
                self._flaw(FlawKind.TRAILING, start, 0, _trailing(start))
            # Zeros over a run of a bag look like its end; what follows is looked through, tag files come last.
            self._lose(start - zeros * BLOCK, "zeros stand where a header should be")
        elif zeros and self._lost is None:
            self._lose(start - zeros * BLOCK, "zeros stand where a header should be")
        if self._lost is not None and block[257:262] != b"ustar":
            return
        try:
            header = parse_header(block)
        except ValueError as error:
            self._lose(start, str(error))
            return
        if self._frame is not None:
            self._frame.update(block)
        if self._entry_offset is None:
            self._entry_offset = start
        if header.type in _RECORDS:
            self._begin_records(header, start)
        else:
            self._accept(header)

    def _begin_records(self, header: _Header, start: int) -> None:
        if header.size > MAX_RECORDS_BYTES:
            self._lose(start, f"an extended header of {header.size} bytes is no header")
            return
        self._records_type = header.type
        self._keeping = True
        self._run(_Doing.RECORDS, header.size)

    def _accept(self, plain: _Header) -> None:
        offset = self._entry_offset or 0
        try:
            header = _extended(plain, {**self._global, **self._pax}, self._long)
        except ValueError as error:
            self._lose(offset, f"its extended header cannot be read: {error}")
            return
        if self._lost is not None:
            # A tar inside a file has headers too; only those below a folder seen before are this tar's own.
            if self._tops and header.name.split("/", 1)[0] not in self._tops:
                self._start_entry()
                return
            self._found_again(offset)
        if plain.extended:
            self._header = header
            self._doing = _Doing.SPARSE_MAP
        else:
            self._begin_content(header)

    def _lose(self, start: int, reason: str) -> None:
        if self._lost is None:
            self._lost = (start if self._entry_offset is None else self._entry_offset, reason)
        self._frame = None
        self._start_entry()

    def _found_again(self, offset: int) -> None:
        assert self._lost is not None  # noqa: S101 - asked by the callers
        start, reason = self._lost
        self._lost = None
        where = f"behind {self._behind!r}" if self._behind else "at the start"
        sentence = f"no header can be made out in the bytes {start} to {offset - 1}, {where}: {reason}"
        self._flaw(FlawKind.UNREADABLE, start, offset - start, sentence)


def _trailing(start: int) -> str:
    return f"something lies behind the end of the tar, at byte {start}"


def parse_header(block: bytes) -> _Header:
    """Read a ustar, GNU or v7 header block as it stands, without what extended headers say.

    Raises:
        ValueError: not a header, or damaged.
    """
    stated = _number(block[148:156])
    rest = sum(block) - sum(block[148:156]) + 8 * 32
    # Some old writers summed signed characters.
    if stated != rest and stated != rest - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise ValueError("the checksum of the header is not that of its bytes")
    name = _text(block[:100])
    # GNU's own magic is `ustar` and two spaces; where POSIX has the prefix, it keeps other things.
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    kind = block[156:157]
    size = _number(block[124:136])
    if size < 0:
        raise ValueError(f"the header says {size} bytes")
    return _Header(
        name=f"{prefix}/{name}" if prefix else name,
        type=b"5" if kind == b"\0" and name.endswith("/") else kind,
        size=0 if kind in _WITHOUT_CONTENT else size,
        mtime_ns=_number(block[136:148]) * _NANOSECONDS,
        mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        uname=_text(block[265:297]),
        gname=_text(block[297:329]),
        link=_text(block[157:257]),
        extended=kind == b"S" and bool(block[482]),
    )


def _extended(plain: _Header, pax: dict[str, str], long_names: dict[bytes, str]) -> _Header:
    """The header with what the extended headers before it say."""
    kind = b"S" if any(key.startswith("GNU.sparse.") for key in pax) else plain.type
    size = int(pax["size"]) if "size" in pax and plain.type not in _WITHOUT_CONTENT else plain.size
    if size < 0:
        raise ValueError(f"{size} bytes")
    name = pax.get("GNU.sparse.name") or pax.get("path") or long_names.get(_GNU_NAME) or plain.name
    return _Header(
        name=name.rstrip("/") if plain.type == b"5" else name,
        type=kind,
        size=size,
        mtime_ns=_time_ns(pax["mtime"]) if "mtime" in pax else plain.mtime_ns,
        mode=plain.mode,
        uid=int(pax.get("uid", plain.uid)),
        gid=int(pax.get("gid", plain.gid)),
        uname=pax.get("uname", plain.uname),
        gname=pax.get("gname", plain.gname),
        link=pax.get("linkpath") or long_names.get(_GNU_LINK) or plain.link,
        extended=plain.extended,
    )


def pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header; one without value is left out, as it stands for the header's own.

    Raises:
        ValueError: not such records.
    """
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise ValueError(f"a record at byte {position} without length")
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise ValueError(f"a record at byte {position} whose length is wrong")
        if value:
            records[key.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        position = end
    return records


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _number(field: bytes) -> int:
    """A number in octal digits, or in GNU's base 256 where the first bit is set."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - 256 ** (len(field) - 1)
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        raise ValueError(f"the header has {digits!r} where a number belongs")
    return int(digits or b"0", 8)


def _time_ns(text: str) -> int:
    found = re.fullmatch(r"(-?)([0-9]+)(?:\.([0-9]*))?", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    value = int(found[2]) * _NANOSECONDS + int((found[3] or "")[:9].ljust(9, "0"))
    return -value if found[1] else value
