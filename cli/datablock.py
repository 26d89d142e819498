"""Datablocks as plain files: check one, take one file out, make its manifest anew. No service needs to run.

A tar is looked through twice at most: header by header for its tag files, seeking over all else, and whole for digests.
"""

import contextlib
import difflib
import hashlib
import io
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from cli.client import Json, err, fail
from cli.following import MIB
from cli.ingest import shown
from domain.checking import (
    ChunkDigests,
    Finding,
    check_bag,
    check_manifest,
    listing,
    looks_ours,
    tags_of,
    unread,
    with_chunks,
)
from domain.checksum import ALGORITHM, composite
from domain.datablock import BlockPlan
from domain.manifest import Manifest, load_manifest
from domain.names import stem_of
from domain.rebuilding import PlanUnknown, TarDamaged, identify, rebuild_manifest
from domain.tagfiles import bag_algorithm, read_members, read_sums
from domain.tarreader import TarContents, TarReader

DAMAGED, USAGE = 1, 2
EXIT_CODES = "Exit codes: 0 intact; 1 damaged; 2 wrong usage, or no datablock."
_PANEL = "Datablocks"
_RUN_BYTES = 4 * 2**20
_LOOK_BYTES = 4096
_SHOWN = 20
_LINE_EVERY_S = 10.0

Tar = Annotated[
    Path, typer.Argument(metavar="FILE.tar", help="A datablock.", exists=True, dir_okay=False, readable=True)
]
ManifestFile = Annotated[
    Path | None,
    typer.Option("--manifest", help="Its manifest, from the state bucket.", exists=True, dir_okay=False, readable=True),
]
ChunkBytes = Annotated[
    int | None,
    typer.Option("--chunk-bytes", help="Its chunk size in bytes, if LTS_CHUNK_BYTES was an unusual one.", min=1),
]


def register(app: typer.Typer) -> None:
    """Add `verify`, `extract` and `manifest rebuild`."""
    app.command("verify", epilog=EXIT_CODES, rich_help_panel=_PANEL)(verify_command)
    app.command("extract", epilog=EXIT_CODES, rich_help_panel=_PANEL)(extract_command)
    manifest = typer.Typer(no_args_is_help=True, help="The record of a datablock that is kept outside the tape.")
    manifest.command("rebuild", epilog=EXIT_CODES)(rebuild_command)
    app.add_typer(manifest, name="manifest", rich_help_panel=_PANEL)


def verify_command(
    file: Tar, manifest_file: ManifestFile = None, chunk_bytes: ChunkBytes = None, as_json: Json = False
) -> None:
    """Read a whole datablock and say whether it is intact; if not, which bytes, chunks and files are damaged.

    Without a manifest the datablock is checked against its own bag, to the last byte. With one, its chunks are, too:
    it must then be the very tar that was archived.

    \b
    Examples:
      scopemarchiver verify 20.500.11935-0d4c_1_79de475c.tar
      scopemarchiver verify block.tar --manifest block.manifest.jsonl --json
    """
    manifest = _loaded(manifest_file)
    with _opened(file) as source:
        look = _looked(source, manifest)
        block = _Block.of(look, manifest, chunk_bytes)
        contents, chunks = _read_whole(source, block)
        missed = unread(contents, listing(contents, manifest))
        reread = {item.path: source.digest(item.offset or 0, item.size or 0, block.algorithm) for item in missed}
    findings = check_bag(contents, plan=block.plan, reread=reread)
    if manifest is not None:
        findings = check_manifest(manifest, contents, chunks, reread=reread) + findings
    findings = _located(findings, block)
    _report(file, _facts(contents, block, chunks), findings, as_json=as_json)
    if block.note and not findings:
        _say(f"note: {block.note}")
    if findings:
        raise typer.Exit(DAMAGED)


def extract_command(
    file: Tar,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file's path in the dataset.")],
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write it, or - for stdout; else its own name."),
    ] = None,
    manifest_file: ManifestFile = None,
) -> None:
    """Take one file out of a datablock, without reading the rest, and check its digest.

    A file that is there already is kept: it is either the same, or the command refuses. What does not have the right
    digest is never written.

    \b
    Examples:
      scopemarchiver extract block.tar "grid 1/frame 7.tif"
      scopemarchiver extract block.tar session.log -o - | less
    """
    manifest = _loaded(manifest_file)
    with _opened(file) as source:
        wanted = _wanted(source, manifest, path)
        if out == Path("-"):
            _to_stdout(source, wanted)
            return
        target = _target(out, path.rsplit("/", 1)[-1])
        _to_file(source, wanted, target)
    _say(f"{target}: {wanted.size} bytes, {wanted.algorithm} as archived")


def rebuild_command(
    file: Tar,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write it, or - for stdout; else the tar's name."),
    ] = None,
    chunk_bytes: ChunkBytes = None,
    as_json: Json = False,
) -> None:
    """Make a datablock's manifest anew from the tar alone, as it was when the datablock was written.

    The whole tar is read. Of a damaged one no manifest is made, as it would attest the damage.

    \b
    Examples:
      scopemarchiver manifest rebuild 20.500.11935-0d4c_1_79de475c.tar
      scopemarchiver manifest rebuild block.tar -o - | head -1
    """
    with _opened(file) as source:
        block = _Block.of(_looked(source, None), None, chunk_bytes)
        contents, chunks = _read_whole(source, block)
    facts = _facts(contents, block, chunks)
    data = _rebuilt(file, contents, block, chunks, as_json=as_json)
    if out == Path("-"):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = _target(out, f"{contents.top}.manifest.jsonl")
    with _written(target, lambda there: there.read_bytes() == data) as sink:
        if sink is not None:
            sink.write(data)
    print(_json({"file": str(file), "manifest": str(target), **facts}) if as_json else shown(str(target)))


def _rebuilt(file: Path, contents: TarContents, block: "_Block", chunks: Sequence[bytes], *, as_json: bool) -> bytes:
    """The manifest; exits where the tar is damaged, or nobody can guess its chunk size."""
    findings: Sequence[Finding] = ()
    try:
        if block.plan is not None:
            return rebuild_manifest(contents, block.plan, chunks)
        findings = check_bag(contents)
        if not findings:
            fail(f"{block.note}; give the chunk size by --chunk-bytes", USAGE)
    except TarDamaged as error:
        findings = error.findings
    _report(file, _facts(contents, block, chunks), _located(findings, block), as_json=as_json)
    raise typer.Exit(DAMAGED)


# --- reading


class _Source:
    """A tar that can be read from anywhere."""

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file = file
        self.name = name
        self.size = file.seek(0, io.SEEK_END)
        self._view = memoryview(bytearray(_RUN_BYTES))

    def runs(self, offset: int, length: int) -> Generator[memoryview]:
        """The bytes of a range, in runs that are valid until the next one."""
        self._file.seek(offset)
        while length:
            try:
                got = self._file.readinto(self._view[: min(length, _RUN_BYTES)])
            except OSError as error:
                fail(f"{self.name} cannot be read behind byte {self._file.tell()}: {error.strerror or error}", DAMAGED)
            if not got:
                return
            length -= got
            yield self._view[:got]

    def digest(self, offset: int, size: int, algorithm: str) -> str:
        """Hex digest of a range."""
        running = hashlib.new(algorithm)
        for run in self.runs(offset, size):
            running.update(run)
        return running.hexdigest()

    def look(self) -> TarContents:
        """What is in the tar by its headers; contents are passed over, but for the tag files."""
        reader = TarReader(())
        length = _LOOK_BYTES
        while reader.offset < self.size:
            skippable = min(reader.skippable, self.size - reader.offset)
            if skippable:
                reader.skip(skippable)
                length = _LOOK_BYTES
                continue
            for run in self.runs(reader.offset, min(length, _RUN_BYTES)):
                reader.feed(run)
            # Few bytes where headers are far apart, many where they are not or cannot be found.
            length *= 2
        return reader.finish()


@contextmanager
def _opened(file: Path) -> Generator[_Source]:
    """The tar; what goes wrong with it ends the command with the documented code."""
    try:
        with file.open("rb", buffering=0) as raw:
            if not raw.seekable():
                fail(f"{shown(str(file))} cannot be read from anywhere but its start; copy it to a disk first", USAGE)
            yield _Source(raw, shown(str(file)))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _loaded(file: Path | None) -> Manifest | None:
    try:
        return None if file is None else load_manifest(file.read_bytes())
    except (OSError, ValueError) as error:
        fail(f"{shown(str(file))}: {shown(str(error))}", USAGE)


def _looked(source: _Source, manifest: Manifest | None) -> TarContents:
    """A look at the headers; exits if it is no datablock, or not that of the manifest."""
    contents = source.look()
    if manifest is None:
        if not contents.top:
            fail(f"{source.name} is no tar, or nothing in it can be made out", USAGE)
        if not looks_ours(contents):
            fail(f"{source.name} is a tar, but no datablock: its top folder {contents.top!r} is not named so", USAGE)
    elif looks_ours(contents) and contents.top != stem_of(manifest.archive_id):
        fail(f"{source.name} is {contents.top!r}; the manifest is that of {stem_of(manifest.archive_id)!r}", USAGE)
    return contents


@dataclass(frozen=True, slots=True)
class _Block:
    """What is known of a datablock before it is read whole."""

    plan: BlockPlan | None
    manifest: Manifest | None
    algorithm: str
    chunk_bytes: int | None
    note: str = ""

    @classmethod
    def of(cls, look: TarContents, manifest: Manifest | None, chunk_bytes: int | None) -> "_Block":
        chunk_bytes = manifest.chunk_bytes if manifest else chunk_bytes
        try:
            plan = identify(look, chunk_bytes)
        except PlanUnknown as error:
            try:
                algorithm = manifest.algorithm if manifest else bag_algorithm(tags_of(look))
            except ValueError:
                algorithm = ALGORITHM
            return cls(None, manifest, algorithm, chunk_bytes, shown(str(error)))
        return cls(plan, manifest, plan.algorithm, plan.chunk_bytes)


def _read_whole(source: _Source, block: _Block) -> tuple[TarContents, list[bytes]]:
    """Every byte, digested by files and by chunks; the two digests of a run are made side by side."""
    reader, chunks = TarReader((block.algorithm,)), ChunkDigests(block.chunk_bytes or max(source.size, 1))
    with ThreadPoolExecutor(1) as aside, _progress(source.size) as moved:
        for run in source.runs(0, source.size):
            by_chunk = aside.submit(chunks.feed, run)
            reader.feed(run)
            by_chunk.result()
            moved(len(run))
    return reader.finish(), chunks.finish()


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then in a pipe; on stderr."""
    done, spoken = 0, time.monotonic()
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def moved(length: int) -> None:
            nonlocal done, spoken
            done += length
            bar.update(task, advance=length)
            if not err.is_terminal and time.monotonic() - spoken >= _LINE_EVERY_S:
                spoken = time.monotonic()
                err.print(f"{done / MIB:,.0f} of {total / MIB:,.0f} MiB")

        yield moved


# --- one file


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One file: where it may lie, and the digests that tell that it is the right one."""

    path: str
    size: int
    places: tuple[tuple[int, int], ...]
    """(offset, size), the likely one first."""
    digests: frozenset[str]
    algorithm: str
    mtime_ns: int | None = None

    def place_in(self, source: _Source) -> tuple[int, int] | None:
        """The place where the content is right."""
        for offset, size in self.places:
            if source.digest(offset, size, self.algorithm) in self.digests:
                return offset, size
        return None


def _wanted(source: _Source, manifest: Manifest | None, path: str) -> _Wanted:
    if manifest is not None:
        for member in manifest.members:
            if member.path == path:
                place = (member.offset, member.size)
                return _Wanted(path, member.size, (place,), frozenset([member.digest]), manifest.algorithm)
        _no_such(path, [member.path for member in manifest.members])
    look = _looked(source, None)
    tags = tags_of(look)
    entries = {entry.name: entry for entry in look.entries}
    entry = entries.get(f"{look.top}/data/{path}")
    places: dict[tuple[int, int], None] = {}
    digests: set[str] = set()
    mtime_ns = None
    paths: list[str] = []
    # Damage in one of the lists is made up for by the other, and by the header; the digest tells which is right.
    with contextlib.suppress(ValueError):
        for member, offset, digest in read_members(tags.get("members.jsonl", b"")):
            paths.append(member.path)
            if member.path == path:
                places[offset, member.size] = None
                digests.add(digest)
                mtime_ns = member.mtime_ns
    algorithm = ALGORITHM
    with contextlib.suppress(ValueError, KeyError):
        algorithm = bag_algorithm(tags)
        sums = read_sums(tags[f"manifest-{algorithm}.txt"])
        paths += [name.removeprefix("data/") for name in sums]
        digests |= {sums[f"data/{path}"]} if f"data/{path}" in sums else set()
    if entry is not None:
        places[entry.offset, entry.size] = None
    if not digests and (entry is not None or not paths):
        fail(f"{source.name} is damaged: no tag file tells the digest of {path!r}; give its --manifest", DAMAGED)
    if not digests:
        _no_such(path, paths)
    if not places:
        fail(f"{source.name} is damaged: it does not tell where {path!r} lies; give its --manifest", DAMAGED)
    return _Wanted(path, next(iter(places))[1], tuple(places), frozenset(digests), algorithm, mtime_ns)


def _no_such(path: str, paths: Sequence[str]) -> NoReturn:
    close = difflib.get_close_matches(path, paths, 1) if len(paths) <= 20_000 else []
    hint = f"; there is {close[0]!r}" if close else ""
    fail(f"no file {path!r} in this datablock{hint}", USAGE)


def _damaged(source: _Source, wanted: _Wanted) -> NoReturn:
    offset, size = wanted.places[0]
    where = f"bytes {offset} to {offset + size - 1}" if size else f"byte {offset}"
    fail(
        f"{wanted.path!r} ({where} of {source.name}) is damaged: not the {wanted.algorithm} it was archived with",
        DAMAGED,
    )


def _to_stdout(source: _Source, wanted: _Wanted) -> None:
    # Read twice: whoever reads the pipe must not work with bytes that turn out wrong at their end.
    place = wanted.place_in(source)
    if place is None:
        _damaged(source, wanted)
    running = hashlib.new(wanted.algorithm)
    for run in source.runs(*place):
        running.update(run)
        sys.stdout.buffer.write(run)
    sys.stdout.buffer.flush()
    if running.hexdigest() not in wanted.digests:
        _damaged(source, wanted)


def _to_file(source: _Source, wanted: _Wanted, target: Path) -> None:
    def same(there: Path) -> bool:
        with there.open("rb") as file:
            return hashlib.file_digest(file, wanted.algorithm).hexdigest() in wanted.digests

    with _written(target, same, wanted.mtime_ns) as sink:
        for offset, size in wanted.places if sink is not None else ():
            assert sink is not None  # noqa: S101 - the line above
            sink.seek(0)
            sink.truncate()
            running = hashlib.new(wanted.algorithm)
            with _progress(size) as moved:
                for run in source.runs(offset, size):
                    running.update(run)
                    sink.write(run)
                    moved(len(run))
            if running.hexdigest() in wanted.digests:
                return
        if sink is not None:
            _damaged(source, wanted)


# --- writing


def _target(out: Path | None, name: str) -> Path:
    if out is None:
        return Path(name)
    return out / name if out.is_dir() else out


@contextmanager
def _written(target: Path, same: Callable[[Path], bool], mtime_ns: int | None = None) -> Generator[BinaryIO | None]:
    """A file that gets its name when all is written, and never replaces another; None if the same is there already."""
    with _writing(target):
        if os.path.lexists(target):
            if not target.is_file() or not same(target):
                fail(f"{shown(str(target))} is there already, with other content", USAGE)
            yield None
            return
        hidden = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.part")
        file = hidden.open("xb")
    try:
        with _writing(target), file:
            yield file
        if mtime_ns is not None:
            # Not every file system holds every time.
            with contextlib.suppress(OSError, OverflowError):
                os.utime(hidden, ns=(mtime_ns, mtime_ns))
        with _writing(target):
            _name(hidden, target)
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def _writing(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        fail(f"{shown(str(target))} cannot be written: {error.strerror or error}", USAGE)


def _name(hidden: Path, target: Path) -> None:
    try:
        target.hardlink_to(hidden)
    except FileExistsError:
        fail(f"{shown(str(target))} came to be while it was written here; it is left as it is", USAGE)
    except OSError:
        # A file system without hard links: here a name that comes up in this very moment would be replaced.
        hidden.rename(target)


# --- telling


def _facts(contents: TarContents, block: _Block, chunks: Sequence[bytes]) -> dict[str, Any]:
    known = block.plan or block.manifest
    return {
        "datablock": contents.top,
        "pid": known.pid if known else None,
        "index": known.index if known else None,
        "count": known.count if known else None,
        "generation": known.generation if known else None,
        "tar_bytes": contents.size,
        "chunk_bytes": block.chunk_bytes,
        "digest": composite(chunks).hex() if block.chunk_bytes else None,
        "members": len(known.members) if known else None,
        "payload_bytes": known.payload_bytes if known else None,
    }


def _located(findings: Iterable[Finding], block: _Block) -> list[Finding]:
    """The findings with their chunks, each place named once, although two checks came upon it."""
    placed = with_chunks(findings, block.chunk_bytes) if block.chunk_bytes else findings
    once: dict[object, Finding] = {}
    for finding in placed:
        once.setdefault((finding.fault, finding.member, finding.offset), finding)
    return list(once.values())


def _report(file: Path, facts: dict[str, Any], findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        listed = [asdict(finding) for finding in findings]
        print(_json({"file": str(file), "intact": not findings, **facts, "findings": listed}))
    else:
        _tell(file, facts, findings)


def _tell(file: Path, facts: dict[str, Any], findings: Sequence[Finding]) -> None:
    if not findings:
        what = facts["datablock"]
        if facts["pid"] is not None:
            what = f"datablock {facts['index']} of {facts['count']} of {facts['pid']}, {facts['members']} files"
        digest = f", digest {facts['digest']}" if facts["digest"] else ""
        print(shown(f"{file}: intact: {what}, {facts['tar_bytes']} bytes{digest}"))
        return
    print(shown(f"{file}: damaged: {len(findings)} finding{'s' * (len(findings) > 1)}"))
    for finding in findings[:_SHOWN]:
        print(f"  {shown(_chunks_text(finding) + finding.sentence)}")
    if len(findings) > _SHOWN:
        print(f"  and {len(findings) - _SHOWN} more (--json lists all)")
    hit = list(dict.fromkeys(path for finding in findings for path in finding.members))
    print(f"  files lost or in doubt: {len(hit)}" + "".join(f"\n    {shown(path)}" for path in hit[:_SHOWN]))
    sys.stdout.flush()


def _chunks_text(finding: Finding) -> str:
    if not finding.chunks or finding.sentence.startswith("chunk "):
        return ""
    first, last = finding.chunks[0], finding.chunks[-1]
    return f"chunk {first}: " if first == last else f"chunks {first} to {last}: "


def _json(report: dict[str, Any]) -> str:
    # Names that are no UTF-8 hold lone surrogates; written as \udcXX they are still JSON.
    return json.dumps(report, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _say(sentence: str) -> None:
    err.print(Text(shown(sentence)), soft_wrap=True)
