"""The reader of tars: our own and others', cut anywhere, damaged anywhere; `tarfile` is the measure."""

import hashlib
import io
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.datablock import BlockPlan
from domain.files import Member
from domain.packing import Packer
from domain.tarreader import FlawKind, Kind, TarContents, TarReader
from domain.tarstream import BLOCK, END, Layout, header
from tests.strategies import block_plans, content, few, quick
from tests.unit.test_packing import finish

INNER = header("other/file", 3, mtime_ns=0, mode=0o644) + b"abc" + bytes(509) + END
PLAN = BlockPlan(
    "p/1",
    1,
    1,
    4096,
    (Member("a", 3000, "e", 0), Member("b %ü", 5, "e", 10**18 + 5), Member("z" * 120, 700, "e", 10**18, 0o640, "ü")),
)
TAR = finish(Packer(Layout(PLAN)))


def read(tar: bytes, cuts: Iterable[int] = (), algorithms: Sequence[str] = ("sha256",)) -> TarContents:
    reader = TarReader(algorithms)
    for start, stop in pairwise([0, *sorted(cut % (len(tar) + 1) for cut in cuts), len(tar)]):
        reader.feed(memoryview(tar)[start:stop])
    return reader.finish()


def looked(tar: bytes, step: int) -> TarContents:
    reader = TarReader(())
    while reader.offset < len(tar):
        if reader.skippable:
            reader.skip(min(reader.skippable, len(tar) - reader.offset))
        else:
            reader.feed(tar[reader.offset : reader.offset + step])
    return reader.finish()


def kinds(tar: bytes) -> list[FlawKind]:
    return [flaw.kind for flaw in read(tar).flaws]


@given(block_plans(), st.lists(st.integers(0, 1 << 30), max_size=40), st.integers(1, 3000))
@quick
def test_our_tars_are_read_however_they_are_cut(plan: BlockPlan, cuts: list[int], step: int) -> None:
    layout = Layout(plan)
    packer = Packer(layout)
    tar = finish(packer)
    contents = read(tar)
    assert contents == read(tar, cuts)
    assert (contents.flaws, contents.ended, contents.size, contents.top) == ((), True, len(tar), plan.stem)
    payload = contents.entries[: len(plan.members)]
    for entry, member, offset, begin in zip(
        payload, plan.members, layout.data_offsets, layout.header_offsets, strict=True
    ):
        assert (entry.name, entry.kind) == (f"{plan.stem}/data/{member.path}", Kind.FILE)
        assert (entry.size, entry.offset, entry.header_offset) == (member.size, offset, begin)
        assert (entry.mtime_ns, entry.mode) == (member.mtime_ns, member.mode)
        assert contents.digest_of(entry, "sha256") == hashlib.sha256(content(member)).hexdigest()
        assert contents.digest_of(entry, "md5") == ""
    assert [entry.name for entry in contents.entries[len(payload) :]] == list(contents.tags)
    for entry in contents.entries[len(payload) :]:
        assert contents.tags[entry.name] == tar[entry.offset : entry.end]
    assert hashlib.sha256(tar[contents.entries[-1].end :]).digest() == contents.rest
    seen = looked(tar, step)
    assert (seen.tags, seen.flaws) == (contents.tags, ())
    assert [(e.name, e.offset, e.frame) for e in seen.entries] == [
        (e.name, e.offset, e.frame) for e in contents.entries
    ]


@given(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.data())
@quick
def test_what_tarfile_writes_is_read(form: int, data: st.DataObject) -> None:
    characters = "ab/ü%漢 " if form != tarfile.USTAR_FORMAT else "ab %"
    names = data.draw(st.lists(st.text(characters, min_size=1, max_size=300), min_size=1, max_size=5, unique=True))
    file = io.BytesIO()
    written: list[bytes] = []
    with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"comment": "of all"}) as tar:
        for name in names:
            if form == tarfile.USTAR_FORMAT:
                name = "d" * 60 + "/" + name[:90]
            info = tarfile.TarInfo(f"x{name}e")
            info.type = data.draw(st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]))
            info.size = data.draw(st.integers(0, 1500)) if info.isreg() else 0
            info.linkname = "y" * data.draw(st.integers(1, 100 if form == tarfile.USTAR_FORMAT else 200))
            info.mtime = data.draw(st.integers(0, 8**11 - 1))
            info.uid = data.draw(st.integers(0, 8**7 - 1 if form == tarfile.USTAR_FORMAT else 2**31))
            info.mode = data.draw(st.integers(0, 0o7777))
            info.uname = data.draw(st.sampled_from(["", "root"]))
            written.append(os.urandom(info.size))
            tar.addfile(info, io.BytesIO(written[-1]))
    whole = file.getvalue()
    contents = read(whole, data.draw(st.lists(st.integers(0, 1 << 30), max_size=10)), ("md5", "sha256"))
    assert (contents.flaws, contents.ended) == ((), True)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        infos = tar.getmembers()
    for entry, info, there in zip(contents.entries, infos, written, strict=True):
        assert entry.name == info.name
        assert (entry.size, entry.offset, entry.mode) == (info.size, info.offset_data, info.mode)
        assert (entry.mtime_ns, entry.uid, entry.uname) == (int(info.mtime) * 10**9, info.uid, info.uname)
        kind = {b"0": Kind.FILE, b"5": Kind.FOLDER, b"2": Kind.SYMBOLIC_LINK, b"1": Kind.HARD_LINK}[info.type]
        assert (entry.kind, entry.link) == (kind, info.linkname)
        digest = hashlib.md5(there).hexdigest() if kind is Kind.FILE else ""  # noqa: S324
        assert contents.digest_of(entry, "md5") == digest


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7", "oldgnu"])
def test_what_gnu_tar_writes_is_read(form: str, tmp_path: Path) -> None:
    long = "l" * 90 if form == "v7" else "d" * 90 + "/" + "n" * 99
    folder = tmp_path / "set"
    (folder / long).parent.mkdir(parents=True)
    (folder / long).write_bytes(b"long")
    (folder / "a").write_bytes(b"hello")
    (folder / "hard").hardlink_to(folder / "a")
    (folder / "soft").symlink_to("a")
    with (folder / "zsparse").open("wb") as sparse:
        for run in range(12):
            sparse.seek(run * 1_000_000)
            sparse.write(b"x" * 4096)
    flags = ["--sparse"] if form in ("gnu", "oldgnu", "posix") else []
    command = ["tar", f"--format={form}", "--sort=name", *flags, "-cf", "-", "set"]
    tar = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    contents = read(tar, range(0, len(tar), 777))
    assert (contents.flaws, contents.ended) == ((), True)
    found = {entry.name: entry for entry in contents.entries}
    assert contents.digest_of(found[f"set/{long}"], "sha256") == hashlib.sha256(b"long").hexdigest()
    assert (found["set/soft"].kind, found["set/soft"].link) == (Kind.SYMBOLIC_LINK, "a")
    assert (found["set/hard"].kind, found["set/hard"].link) == (Kind.HARD_LINK, "set/a")
    assert found["set"].kind is Kind.FOLDER
    assert found["set/zsparse"].kind is (Kind.SPARSE if flags else Kind.FILE)


def test_numbers_that_octal_digits_cannot_hold() -> None:
    info = tarfile.TarInfo("huge")
    info.size, info.mtime, info.uid = 9 << 30, -5, 1 << 31
    reader = TarReader()
    reader.feed(info.tobuf(tarfile.GNU_FORMAT))
    assert reader.skippable == 9 << 30
    reader.skip(9 << 30)
    reader.feed(END)
    [entry] = reader.finish().entries
    assert (entry.size, entry.mtime_ns, entry.uid, entry.digests) == (9 << 30, -5 * 10**9, 1 << 31, ())


def test_memory_does_not_grow_with_a_file() -> None:
    reader = TarReader()
    reader.feed(header("t/data/x", 1 << 40, mtime_ns=0, mode=0o644))
    run = memoryview(bytearray(1 << 20))
    tracemalloc.start()
    for _ in range(64):
        reader.feed(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_tag_file_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.tarreader.MAX_TAG_BYTES", 100)
    contents = read(TAR)
    assert {flaw.kind for flaw in contents.flaws} == {FlawKind.TOO_LARGE}
    assert [name.rsplit("/", 1)[-1] for name in contents.tags] == ["bagit.txt"]
    assert contents.digest_of(contents.entries[-1], "sha256")


@given(st.integers(0, len(TAR) - 1))
@quick
def test_a_tar_that_is_cut_short_says_where(size: int) -> None:
    contents = read(TAR[:size], [size // 2])
    whole = [entry for entry in read(TAR).entries if entry.end <= size]
    assert list(contents.entries) == whole
    [flaw] = contents.flaws
    assert flaw.kind in (FlawKind.CUT_SHORT, FlawKind.NO_END)
    assert flaw.offset == size
    assert str(size) in flaw.sentence
    for entry in read(TAR).entries:
        if entry.offset < size < entry.end:
            assert (flaw.name, flaw.length) == (entry.name, entry.end - size)


@given(st.sampled_from(read(TAR).entries), st.integers(0, 511), st.integers(0, 7))
@quick
def test_behind_a_damaged_header_it_goes_on(hit: object, at: int, bit: int) -> None:
    entries = read(TAR).entries
    index = entries.index(hit)  # type: ignore[arg-type]
    begin = entries[index].offset - BLOCK
    tar = bytearray(TAR)
    tar[begin + at] ^= 1 << bit
    contents = read(bytes(tar), range(0, len(tar), 1000))
    # A flip in the spaces or the zero byte of a number may change nothing in what it says.
    if contents.entries == entries or contents.flaws == ():
        assert [e.offset for e in contents.entries] == [e.offset for e in entries]
        assert contents.entries[index].frame != entries[index].frame
        return
    assert [e.name for e in contents.entries] == [e.name for i, e in enumerate(entries) if i != index]
    [flaw] = contents.flaws
    assert flaw.kind is FlawKind.UNREADABLE
    assert flaw.offset <= begin < flaw.offset + flaw.length
    assert flaw.name == (entries[index - 1].name if index else "")


def test_headers_inside_a_lost_file_are_not_taken_for_the_tars_own() -> None:
    head = header("t/data/a", 3, mtime_ns=0, mode=0o644) + b"abc" + bytes(509)
    inner = bytearray(header("t/data/inner.tar", len(INNER), mtime_ns=0, mode=0o644))
    inner[0] ^= 1
    tail = header("t/data/z", 1, mtime_ns=0, mode=0o644) + b"z" + bytes(511) + END
    contents = read(head + bytes(inner) + INNER + tail)
    assert [entry.name for entry in contents.entries] == ["t/data/a", "t/data/z"]
    assert [(flaw.offset, flaw.length) for flaw in contents.flaws] == [(len(head), BLOCK + len(INNER))]


def test_zeros_in_the_midst_are_not_the_end() -> None:
    entry = read(TAR).entries[1]
    hole = TAR[: entry.header_offset] + bytes(1024) + TAR[entry.header_offset + 1024 :]
    contents = read(hole)
    assert FlawKind.UNREADABLE in [flaw.kind for flaw in contents.flaws]
    assert list(contents.tags.values()) == list(read(TAR).tags.values())
    assert contents.ended


def test_the_end() -> None:
    assert kinds(TAR) == []
    assert kinds(TAR + bytes(9000)) == []
    assert kinds(TAR[:-512]) == [FlawKind.NO_END]
    assert kinds(TAR + b"x") == [FlawKind.TRAILING]
    assert FlawKind.TRAILING in kinds(TAR + b"rubbish" * 1000)


@pytest.mark.parametrize("data", [b"", b"no tar", b"#!/bin/sh\n" * 1000, bytes(range(256)) * 40])
def test_what_is_no_tar_has_no_entries(data: bytes) -> None:
    contents = read(data)
    assert (contents.entries, contents.top, contents.tags) == ((), "", {})
    assert contents.flaws


@given(st.binary(max_size=3000), st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.binary(max_size=600)), max_size=4))
@few
def test_nothing_makes_it_fall_over(rubbish: bytes, strokes: list[tuple[int, bytes]]) -> None:
    tar = bytearray(TAR)
    for offset, stroke in strokes:
        tar[offset : offset + len(stroke)] = stroke
    assert read(bytes(tar) + rubbish).size == len(tar) + len(rubbish)
    assert read(rubbish + bytes(tar), range(0, 9000, 100)).size == len(tar) + len(rubbish)
