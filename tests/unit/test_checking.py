"""Whatever is wrong with a datablock is found, and named for what it is; what is right is left alone."""

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain import tagfiles
from domain.bagit import encode_path
from domain.checking import (
    ChunkDigests,
    Expected,
    Fault,
    Finding,
    check_bag,
    check_listed,
    check_manifest,
    listing,
    looks_ours,
    tags_of,
    unread,
    with_chunks,
)
from domain.datablock import UNIT_BYTES, BlockPlan, chunk_bytes_for
from domain.files import Member, format_time
from domain.manifest import Manifest, dump_manifest, load_manifest
from domain.packing import Packer
from domain.rebuilding import PlanUnknown, TarDamaged, identify, rebuild_manifest
from domain.tarreader import TarContents
from domain.tarstream import END, Layout, sized
from tests.strategies import block_plans, few, quick, times_ns
from tests.unit.test_packing import finish
from tests.unit.test_tarreader import PLAN, TAR, read

PACKER = Packer(Layout(PLAN))
finish(PACKER)
LAYOUT = PACKER.layout
MANIFEST_BYTES = dump_manifest(LAYOUT, PACKER.chunks, PACKER.members)
MANIFEST = load_manifest(MANIFEST_BYTES)
ENTRIES = {entry.name.removeprefix(f"{PLAN.stem}/"): entry for entry in read(TAR).entries}


def chunk_digests(tar: bytes, chunk_bytes: int, step: int = 777) -> list[bytes]:
    chunks = ChunkDigests(chunk_bytes)
    for start in range(0, len(tar), step):
        chunks.feed(tar[start : start + step])
    return chunks.finish()


def reread(tar: bytes, contents: TarContents, manifest: Manifest | None) -> dict[str, str]:
    return {
        item.path: hashlib.sha256(tar[item.offset : (item.offset or 0) + (item.size or 0)]).hexdigest()
        for item in unread(contents, listing(contents, manifest))
    }


def by_bag(tar: bytes, chunk_bytes: int = PLAN.chunk_bytes) -> list[Finding]:
    contents = read(tar)
    try:
        plan = identify(contents, chunk_bytes)
    except PlanUnknown:
        plan = None
    return check_bag(contents, plan=plan, reread=reread(tar, contents, None))


def by_manifest(tar: bytes, manifest: Manifest = MANIFEST) -> list[Finding]:
    contents = read(tar)
    chunks = chunk_digests(tar, manifest.chunk_bytes)
    return check_manifest(manifest, contents, chunks, reread=reread(tar, contents, manifest))


def flipped(*offsets: int, tar: bytes = TAR) -> bytes:
    damaged = bytearray(tar)
    for offset in offsets:
        damaged[offset] ^= 1
    return bytes(damaged)


def lost(findings: Iterable[Finding]) -> set[str]:
    return {path for finding in findings for path in finding.members}


@given(block_plans())
@example(PLAN)
@quick
def test_an_intact_datablock_is_intact_and_its_manifest_is_made_anew(plan: BlockPlan) -> None:
    packer = Packer(Layout(plan))
    tar = finish(packer)
    original = dump_manifest(packer.layout, packer.chunks, packer.members)
    contents = read(tar)
    assert looks_ours(contents)
    assert check_bag(contents) == []
    assert identify(contents, plan.chunk_bytes) == replace(
        plan, members=tuple(replace(member, version_id=None) for member in plan.members)
    )
    assert check_bag(contents, plan=identify(contents, plan.chunk_bytes)) == []
    chunks = chunk_digests(tar, plan.chunk_bytes)
    assert check_manifest(load_manifest(original), contents, chunks) == []
    assert rebuild_manifest(contents, identify(contents, plan.chunk_bytes), chunks) == original


@pytest.mark.parametrize("tenth", range(10))
def test_every_flipped_bit_is_found_and_placed(tenth: int) -> None:
    for offset in range(tenth, len(TAR), 41):
        tar = bytearray(TAR)
        tar[offset] ^= 1 << (offset % 8)
        findings = by_bag(bytes(tar))
        assert any(f.offset is not None and f.offset <= offset < f.offset + max(f.length, 1) for f in findings), offset
        hit = {m.path for m, o in zip(PLAN.members, LAYOUT.data_offsets, strict=True) if o <= offset < o + m.size}
        assert lost(findings) == hit, offset
        checked = by_manifest(bytes(tar))
        chunks = [finding for finding in checked if finding.fault is Fault.CHUNK]
        assert [finding.chunks for finding in chunks] == [(offset // PLAN.chunk_bytes,)]
        assert lost(checked) == hit, offset


@pytest.mark.parametrize("name", ["bagit.txt", "bag-info.txt", "manifest-sha256.txt", "tagmanifest-sha256.txt"])
def test_a_damaged_tag_file_is_named_to_the_byte(name: str) -> None:
    offset = ENTRIES[name].end - 4
    [finding] = by_bag(flipped(offset))
    assert (finding.fault, finding.member, finding.offset, finding.length) == (Fault.TAG_FILE, name, offset, 1)
    assert str(offset) in finding.sentence


def test_a_list_that_is_damaged_is_not_taken_for_a_damaged_file() -> None:
    digest = ENTRIES["members.jsonl"].offset + TAR[ENTRIES["members.jsonl"].offset :].index(b'"digest":"') + 12
    [finding] = by_bag(flipped(digest))
    assert (finding.fault, finding.member, finding.offset) == (Fault.TAG_FILE, "members.jsonl", digest)
    # And a file that is damaged as well is named with it.
    both = by_bag(flipped(digest, ENTRIES["data/b %ü"].offset))
    assert [(f.fault, f.member) for f in both] == [
        (Fault.CONTENT, "b %ü"),
        (Fault.TAG_FILE, "members.jsonl"),
    ]


def test_facts_that_the_name_contradicts_are_a_damaged_list() -> None:
    etag = TAR.index(b'"etag":"e"') + 8
    [finding] = by_bag(flipped(etag))
    assert (finding.fault, finding.member) == (Fault.TAG_FILE, "members.jsonl")
    assert "tagmanifest" in finding.sentence


def test_the_file_behind_a_damaged_header_is_whole() -> None:
    findings = by_bag(flipped(ENTRIES["data/b %ü"].offset - 500))
    assert (Fault.HEADER, "b %ü") in [(finding.fault, finding.member) for finding in findings]
    assert lost(findings) == set()
    assert "is whole" in findings[-1].sentence
    findings = by_bag(flipped(ENTRIES["data/b %ü"].offset - 500, ENTRIES["data/b %ü"].offset))
    assert lost(findings) == {"b %ü"}


def test_damage_of_a_name_in_a_pax_header() -> None:
    position = TAR.index(f"path={PLAN.stem}/data/b %".encode()) + len(f"path={PLAN.stem}/data/")
    findings = by_bag(flipped(position))
    assert {finding.fault for finding in findings} == {Fault.HEADER}
    assert {finding.member for finding in findings} == {"b %ü"}
    assert lost(findings) == set()


@pytest.mark.parametrize(
    "size", [100, 600, 3000, 5000, ENTRIES["members.jsonl"].offset + 9, len(TAR) - 1, len(TAR) - 600]
)
def test_a_tar_that_is_cut_short(size: int) -> None:
    assert Fault.TAR in {finding.fault for finding in by_bag(TAR[:size])}
    findings = by_manifest(TAR[:size])
    assert findings[0].fault is Fault.SIZE
    assert (findings[0].offset, findings[0].length) == (size, len(TAR) - size)
    gone = [m.path for m, o in zip(PLAN.members, LAYOUT.data_offsets, strict=True) if o + m.size > size]
    assert lost(findings) == set(gone)
    for path in gone:
        assert any(f.member == path and "cut off" in f.sentence for f in findings)


def test_without_tag_files_no_file_is_proven() -> None:
    findings = by_bag(TAR[: ENTRIES["bagit.txt"].header_offset])
    assert lost(findings) == {member.path for member in PLAN.members}


def test_something_behind_the_end() -> None:
    assert {finding.fault for finding in by_bag(TAR + bytes(512))} == {Fault.SIZE}
    assert {finding.fault for finding in by_bag(TAR + b"x")} == {Fault.SIZE, Fault.TAR}


def test_files_that_nothing_lists_and_links() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("more", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(f"{PLAN.stem}/data/{name}")
            info.type = kind
            tar.addfile(info)
    extra = file.getvalue()[: 2 * 512]
    findings = by_bag(TAR[: -len(END)] + extra + END)
    assert [finding.fault for finding in findings].count(Fault.EXTRA) == 2
    assert any("'more'" in f.sentence or "more" in f.member for f in findings)


def test_a_file_that_is_missing() -> None:
    entry = ENTRIES["data/b %ü"]
    findings = by_bag(TAR[: entry.header_offset] + TAR[entry.offset + 512 :])
    assert "b %ü" in lost(findings)


def test_another_datablock_is_not_that_of_the_manifest() -> None:
    other = replace(PLAN, generation=1)
    findings = by_manifest(finish(Packer(Layout(other))))
    assert PLAN.stem in " ".join(finding.sentence for finding in findings)


def test_chunks_of_a_finding() -> None:
    findings = with_chunks([Finding(Fault.CONTENT, "", offset=4000, length=5000), Finding(Fault.TAR, "")], 4096)
    assert [finding.chunks for finding in findings] == [(0, 1, 2), ()]


@pytest.mark.parametrize("smallest", [16 << 20, 5 << 20, 7 << 20, 64 << 20, 10_000_000])
@pytest.mark.parametrize("generation", [0, 1, 7])
def test_chunk_size_and_generation_are_found_out(smallest: int, generation: int) -> None:
    plan = replace(PLAN, chunk_bytes=smallest, generation=generation)
    contents = read(finish(Packer(Layout(plan))))
    assert identify(contents) == plan
    assert rebuild_manifest(contents, plan, PACKER.chunks).startswith(b'{"format"')


def test_the_chunk_size_of_a_large_datablock_is_found_out() -> None:
    plan = replace(PLAN, members=(Member("x", 2_000_000_000_000, "e", 0),))
    plan = sized(plan, UNIT_BYTES)
    assert plan.chunk_bytes == chunk_bytes_for(2_000_000_000_000) > UNIT_BYTES
    tags = {f"{plan.stem}/{name}": data for name, data in bagit_tags(plan).items()}
    contents = replace(read(TAR), tags=tags, entries=())
    contents = replace(contents, entries=tuple(replace(e, name=f"{plan.stem}/x") for e in read(TAR).entries))
    assert identify(contents) == plan


def bagit_tags(plan: BlockPlan) -> dict[str, bytes]:
    from domain.bagit import tag_files

    return dict(tag_files(plan, Layout(plan).data_offsets, ["0" * 64] * len(plan.members)))


def test_a_chunk_size_that_nobody_guesses_is_asked_for() -> None:
    plan = replace(PLAN, chunk_bytes=5_555_555)
    tar = finish(Packer(Layout(plan)))
    with pytest.raises(PlanUnknown, match="any usual size"):
        identify(read(tar))
    with pytest.raises(PlanUnknown, match="16777216"):
        identify(read(tar), UNIT_BYTES)
    assert identify(read(tar), 5_555_555) == plan
    # Intact it is all the same, headers included; only the digest in its name is not explained.
    assert check_bag(read(tar)) == []
    assert [f.fault for f in check_bag(read(flipped(110, tar=tar)))]


def test_no_manifest_attests_damage() -> None:
    contents = read(flipped(600))
    with pytest.raises(TarDamaged) as caught:
        rebuild_manifest(contents, identify(contents, 4096), PACKER.chunks)
    assert [finding.member for finding in caught.value.findings] == ["a"]


# --- tag files


@given(times_ns | st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9))
@quick
def test_times_are_read_back_to_the_nanosecond(moment: int) -> None:
    assert tagfiles.exact_time(format_time(moment)) == moment


@given(st.text())
@quick
def test_paths_are_decoded(path: str) -> None:
    assert tagfiles.decode_path(encode_path(path)) == path


@pytest.mark.parametrize("data", [b"abc\n", b"00  a\n00  a\n", b"\xff  a\n", b"00 a\n"])
def test_sums_that_are_none(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        tagfiles.read_sums(data)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"1", b"{", b'{"path":1}', b"\xff"])
def test_members_that_are_none(line: bytes) -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(tagfiles.read_members(line))


@given(st.dictionaries(st.sampled_from(list(tags_of(read(TAR)))), st.binary(max_size=200)))
@few
def test_no_tag_file_makes_it_fall_over(tags: dict[str, bytes]) -> None:
    contents = replace(read(TAR), tags={f"{PLAN.stem}/{name}": data for name, data in tags.items()})
    assert check_bag(contents)


# --- plain tars of others


def plain_tar(files: dict[str, bytes], top: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        if top:
            folder = tarfile.TarInfo(top.rstrip("/"))
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo(f"{top}hard")
        link.type, link.linkname = tarfile.LNKTYPE, top + next(iter(files))
        tar.addfile(link)
    return file.getvalue()


FILES = {"a.txt": b"one", "b/100%.txt": b"two", "b/ü.txt": b"three!"}


@pytest.mark.parametrize("top", ["", "./", "run 7/", "x/y/"])
def test_a_plain_tar_against_the_catalogue(top: str) -> None:
    contents = read(plain_tar(FILES, top))
    expected = {
        path: Expected(len(data), hashlib.sha256(data).hexdigest().upper(), "sha256") for path, data in FILES.items()
    }
    assert not looks_ours(contents)
    assert check_listed(contents, expected) == []
    assert check_listed(contents, {**expected, "hard": expected["a.txt"]}) == []
    assert check_listed(contents, {path: Expected(len(data)) for path, data in FILES.items()}) == []
    del expected["a.txt"]
    assert [(f.fault, f.member) for f in check_listed(contents, expected)] == [
        (Fault.EXTRA, f"{top.removeprefix('./')}a.txt")
    ]


def test_what_is_wrong_with_a_plain_tar() -> None:
    tar = plain_tar(FILES)
    contents = read(tar.replace(b"three!", b"threx!"), algorithms=("md5",))
    digests = {path: Expected(len(data), hashlib.md5(data).hexdigest(), "md5") for path, data in FILES.items()}  # noqa: S324
    found = check_listed(contents, {**digests, "a.txt": Expected(4), "gone": Expected(0)})
    assert [(f.fault, f.member) for f in found] == [
        (Fault.CONTENT, "a.txt"),
        (Fault.CONTENT, "b/ü.txt"),
        (Fault.MISSING, "gone"),
    ]
    assert lost(found) == {"a.txt", "b/ü.txt", "gone"}
    assert check_listed(read(tar[:700]), digests)[0].fault is Fault.TAR
