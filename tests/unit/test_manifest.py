"""Manifest, journal and plan file: what is written is read back, what is damaged is refused."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.datablock import BlockPlan
from domain.files import Member
from domain.manifest import Journal, dump_manifest, dump_segment, load_journal, load_manifest
from domain.packing import Packer
from domain.planfile import DatasetPlan, Marker, PackedBlocks, dump_plan, load_plan, smallest_chunk_of
from domain.tarstream import Layout
from tests.strategies import block_plans, content, members, paths, quick
from tests.unit.test_packing import finish

PLAN = BlockPlan("p/1", 1, 1, 512, (Member("a", 3000, "e", 0), Member("b", 5, "e", 10**18)))


def manifest_of(plan: BlockPlan) -> bytes:
    packer = Packer(Layout(plan))
    finish(packer)
    return dump_manifest(packer.layout, packer.chunks, packer.members)


@given(block_plans())
@quick
def test_a_manifest_is_read_back(plan: BlockPlan) -> None:
    packer = Packer(Layout(plan))
    tar = finish(packer)
    manifest = load_manifest(dump_manifest(packer.layout, packer.chunks, packer.members))
    assert (manifest.pid, manifest.archive_id, manifest.index, manifest.count, manifest.generation) == (
        plan.pid, plan.archive_id, plan.index, plan.count, plan.generation,
    )  # fmt: skip
    assert (manifest.algorithm, manifest.chunk_bytes, manifest.tar_bytes) == ("sha256", plan.chunk_bytes, len(tar))
    assert manifest.digest == packer.digest
    assert manifest.payload_bytes == plan.payload_bytes
    for number, digest in enumerate(manifest.chunks):
        offset, length = manifest.chunk_range(number)
        assert hashlib.sha256(tar[offset : offset + length]).digest() == digest
    assert [(m.path, m.size, m.etag) for m in manifest.members] == [(m.path, m.size, m.etag) for m in plan.members]
    for found, member in zip(manifest.members, plan.members, strict=True):
        assert tar[found.offset : found.offset + found.size] == content(member)
        assert found.digest == hashlib.sha256(content(member)).hexdigest()


@given(st.data())
@quick
def test_a_damaged_manifest_is_refused(data: st.DataObject) -> None:
    whole = manifest_of(PLAN)
    position = data.draw(st.integers(0, len(whole) - 1), label="position")
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255), label="flip")
    for damaged in (bytes(flipped), whole[:position], whole[:position] + whole[position + 1 :], whole + b"{}\n"):
        with pytest.raises(ValueError, match="manifest"):
            load_manifest(damaged)


def test_a_manifest_without_a_member_is_refused() -> None:
    lines = manifest_of(PLAN).splitlines(keepends=True)
    with pytest.raises(ValueError, match="damaged"):
        load_manifest(b"".join([*lines[:2], *lines[3:]]))


def sealed(lines: list[object]) -> bytes:
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return text + b'{"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "bagit-tar-2"}, "format 'bagit-tar-2'"),
        ({"digest": "00"}, "at odds with itself"),
        ({"tar_bytes": 5}, "at odds with itself"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: dict[str, object], reason: str) -> None:
    header, *rest = [json.loads(line) for line in manifest_of(PLAN).splitlines()[:-1]]
    load_manifest(sealed([header, *rest]))
    with pytest.raises(ValueError, match=reason):
        load_manifest(sealed([{**header, **change}, *rest]))


@pytest.mark.parametrize("lines", [[], [{}], [{}, {}], [[], {}], ["x", "y"], [1, 2]])
def test_something_else_is_no_manifest(lines: list[object]) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        load_manifest(sealed(lines))


CHUNKS = [bytes([n]) * 32 for n in range(10)]
MEMBERS = [f"{n:064x}" for n in range(20)]


def segment(start: int, stop: int) -> bytes:
    return dump_segment(start, CHUNKS[start:stop], start * 2, MEMBERS[start * 2 : stop * 2])


def journal(chunks: int) -> Journal:
    return Journal(tuple(CHUNKS[:chunks]), tuple(MEMBERS[: chunks * 2]))


@pytest.mark.parametrize(
    ("segments", "reached"),
    [
        ([], 0),
        ([(0, 3)], 3),
        ([(3, 4), (0, 3), (4, 10)], 10),
        ([(0, 3), (4, 10)], 3),
        ([(1, 10)], 0),
        ([(0, 3), (2, 5)], 5),
        ([(0, 6), (2, 5), (6, 8)], 8),
        ([(0, 3), (0, 6), (6, 7)], 7),
        ([(0, 0), (0, 2)], 2),
        ([(0, 3), (3, 3)], 3),
    ],
)
def test_a_journal_goes_as_far_as_its_segments_follow_on_one_another(
    segments: list[tuple[int, int]], reached: int
) -> None:
    assert load_journal([segment(*each) for each in segments]) == journal(reached)


def test_a_gap_shows_by_the_chunks_where_one_file_spans_all_of_them() -> None:
    segments = [dump_segment(start, CHUNKS[start:stop], 0, []) for start, stop in ((0, 3), (4, 10))]
    assert load_journal(segments) == Journal(tuple(CHUNKS[:3]))


def test_a_gap_shows_by_the_members_too() -> None:
    segments = [dump_segment(0, CHUNKS[:3], 0, MEMBERS[:2]), dump_segment(3, CHUNKS[3:5], 3, MEMBERS[3:5])]
    assert load_journal(segments) == Journal(tuple(CHUNKS[:3]), tuple(MEMBERS[:2]))


def test_members_may_run_ahead_of_the_chunks() -> None:
    # Written in the midst of a chunk; the next attempt knew only the members of whole chunks.
    first = dump_segment(0, CHUNKS[:1], 0, MEMBERS[:5])
    second = dump_segment(1, CHUNKS[1:4], 2, MEMBERS[2:8])
    assert load_journal([first, second]) == journal(4)


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[]", b"{}", b"7", b"null", segment(2, 5)[:-10], b'{"first_chunk":"x"}']
)
def test_a_segment_that_cannot_be_read_is_a_gap(damaged: bytes) -> None:
    assert load_journal([segment(0, 2), damaged, segment(5, 7)]) == journal(2)


@st.composite
def dataset_plans(draw: st.DrawFn) -> DatasetPlan:
    blocks = draw(st.lists(members(4), min_size=1, max_size=3))
    algorithm = draw(st.sampled_from(["sha256", "sha512"]))
    announced = {"expected_digest": "ab", "expected_algorithm": "md5"} if draw(st.booleans()) else {}
    return DatasetPlan(
        pid="p/1",
        blocks=tuple(
            BlockPlan(
                "p/1", n, len(blocks), 1 << 24, tuple(replace(m, **announced) for m in block), algorithm=algorithm
            )
            for n, block in enumerate(blocks, 1)
        ),
        smallest_chunk=5 << 20,
        unlisted=tuple(draw(st.lists(paths, max_size=2))),
        differing_in_case=tuple(draw(st.lists(paths, max_size=2))),
        markers=(Marker("", "e", None), Marker("sub/", "e", "v")) if draw(st.booleans()) else (),
    )


@given(dataset_plans())
@quick
def test_a_plan_is_read_back(plan: DatasetPlan) -> None:
    data = dump_plan(plan)
    assert load_plan(data) == plan
    assert load_plan(data).digest == plan.digest
    assert smallest_chunk_of(data.split(b"\n")[0]) == 5 << 20


@given(dataset_plans())
@quick
def test_a_packed_plan_is_the_same(plan: DatasetPlan) -> None:
    packed = load_plan(dump_plan(plan), packed_from_bytes=0)
    assert isinstance(packed.blocks, PackedBlocks)
    assert replace(packed, blocks=tuple(packed.blocks)) == plan == replace(packed, blocks=packed.blocks[:])
    assert packed.digest == plan.digest
    assert dump_plan(packed) == dump_plan(plan)
    generations = {len(plan.blocks): 2}
    assert packed.archive_ids(generations) == plan.archive_ids(generations)
    assert plan.archive_ids({}) == [block.archive_id for block in plan.blocks]


ONE = DatasetPlan("p/1", (PLAN,), 512)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{}\n",
        b"[]\n",
        dump_plan(ONE).replace(b'"size":5', b'"size":6'),
        dump_plan(ONE).replace(b'"generation":0', b'"generation":1').replace(b"bagit-tar-1", b"bagit-tar-2"),
        *(b"".join(dump_plan(ONE).splitlines(keepends=True)[:lines]) for lines in range(1, 4)),
        dump_plan(ONE)[:-20],
    ],
)
@pytest.mark.parametrize("packed_from_bytes", [0, 1 << 20])
def test_a_damaged_plan_is_refused(damaged: bytes, packed_from_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"plan|line 1"):
        load_plan(damaged, packed_from_bytes=packed_from_bytes)
