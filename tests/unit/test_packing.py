"""Packing: unit by unit, resumed anywhere, it makes the bytes that the format page describes."""

import hashlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import packing
from domain.checksum import composite
from domain.datablock import UNIT_BYTES, BlockPlan
from domain.errors import DigestMismatch
from domain.files import Member
from domain.manifest import dump_segment, load_journal
from domain.packing import Packer, Unit, units
from domain.tarstream import FromMember, Layout
from tests import naive_datablock
from tests.strategies import block_plans, content, quick

unit_sizes = st.sampled_from([300, 512, 700, 4096, UNIT_BYTES])


def fill(packer: Packer, unit: Unit) -> bytearray:
    """A unit's buffer as the caller hands it over: the members' bytes in place, rubbish everywhere else."""
    buffer = bytearray(b"?" * unit.length)
    for piece in packer.layout.reads(unit.offset, unit.length):
        begin = piece.offset - unit.offset
        data = content(packer.layout.plan.members[piece.member])
        buffer[begin : begin + piece.length] = data[piece.start : piece.start + piece.length]
    return buffer


def finish(packer: Packer) -> bytes:
    """Pack from where the packer stands to the end."""
    member, head = packer.unread_head
    if head:
        packer.absorb(memoryview(content(packer.layout.plan.members[member])[:head]))
    tar = b""
    for unit in units(packer.layout.tar_bytes, packer.layout.chunk_bytes, len(packer.chunks)):
        buffer = fill(packer, unit)
        assert packer.seal(unit, memoryview(buffer)) == hashlib.sha256(buffer).digest()
        tar += buffer
    return tar


def naive(plan: BlockPlan) -> bytes:
    return naive_datablock.write(plan, {member.path: content(member) for member in plan.members})


@given(block_plans(), unit_sizes)
@quick
def test_a_plan_packs_to_what_a_second_writer_makes_of_the_format_page(plan: BlockPlan, unit_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "UNIT_BYTES", unit_bytes)
        packer = Packer(Layout(plan))
        tar = finish(packer)
    assert tar == naive(plan)
    assert packer.members == [hashlib.sha256(content(member)).hexdigest() for member in plan.members]
    cut = [tar[start : start + plan.chunk_bytes] for start in range(0, len(tar), plan.chunk_bytes)]
    assert packer.chunks == [hashlib.sha256(chunk).digest() for chunk in cut]
    assert packer.digest == composite(packer.chunks)


@given(block_plans(), unit_sizes, st.data())
@quick
def test_a_resumed_packer_ends_with_the_same_bytes_and_digests(
    plan: BlockPlan, unit_bytes: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "UNIT_BYTES", unit_bytes)
        whole = Packer(Layout(plan))
        tar = finish(whole)
        stop = data.draw(st.integers(0, len(list(units(len(tar), plan.chunk_bytes)))), label="units done")
        first = Packer(Layout(plan))
        for _, unit in zip(range(stop), units(len(tar), plan.chunk_bytes), strict=False):
            first.seal(unit, memoryview(fill(first, unit)))
        journal = load_journal([dump_segment(0, first.chunks, 0, first.members)])
        resumed = Packer(Layout(plan), journal.chunks, journal.members)
        assert resumed.resume_offset == len(first.chunks) * plan.chunk_bytes
        assert tar[resumed.resume_offset :] == finish(resumed)
    assert resumed.chunks == whole.chunks
    assert resumed.members == whole.members


@given(block_plans(), st.data())
@quick
def test_a_journal_that_lacks_or_has_too_many_members_does_no_harm(plan: BlockPlan, data: st.DataObject) -> None:
    whole = Packer(Layout(plan))
    tar = finish(whole)
    chunks = data.draw(st.integers(0, len(whole.chunks)), label="chunks")
    members = data.draw(st.integers(0, len(whole.members)), label="members")
    resumed = Packer(Layout(plan), whole.chunks[:chunks], whole.members[:members])
    assert len(resumed.chunks) <= chunks
    assert tar[resumed.resume_offset :] == finish(resumed)
    assert (resumed.chunks, resumed.members) == (whole.chunks, whole.members)


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**5))
@quick
def test_units_cover_the_tar_and_never_cross_a_chunk(tar_bytes: int, chunk_bytes: int, unit_bytes: int) -> None:
    chunk_bytes, unit_bytes = max(chunk_bytes, tar_bytes // 50), max(unit_bytes, tar_bytes // 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "UNIT_BYTES", unit_bytes)
        done = list(units(tar_bytes, chunk_bytes))
    assert [unit.offset for unit in done] == [0, *(unit.offset + unit.length for unit in done[:-1])]
    assert done[-1].offset + done[-1].length == tar_bytes
    assert all(0 < unit.length <= unit_bytes for unit in done)
    assert all(
        unit.offset // chunk_bytes == (unit.offset + unit.length - 1) // chunk_bytes == unit.chunk for unit in done
    )
    assert all(now.last_of_chunk == (now.chunk != then.chunk) for now, then in pairwise(done))
    assert done[-1].last_of_chunk


def test_a_chunk_of_20_mib_is_a_unit_of_16_and_one_of_4() -> None:
    mib = 2**20
    assert [(unit.chunk, unit.offset // mib, unit.length // mib) for unit in units(41 * mib, 20 * mib)] == [
        (0, 0, 16),
        (0, 16, 4),
        (1, 20, 16),
        (1, 36, 4),
        (2, 40, 1),
    ]
    assert next(units(41 * mib, 20 * mib, first_chunk=2)) == Unit(2, 40 * mib, mib, last_of_chunk=True)


def plan_of(*members: Member, chunk_bytes: int = 1000) -> BlockPlan:
    return BlockPlan("p/1", 1, 1, chunk_bytes, members)


MEMBER = Member("a.bin", 3000, "e", 0)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256"])
@pytest.mark.parametrize("follower", [(), (Member("b", 0, "e", 0),), (Member("b", 7, "e", 0),)])
def test_a_file_that_is_not_what_was_registered_is_refused(algorithm: str, follower: tuple[Member, ...]) -> None:
    digest = hashlib.new(algorithm, content(MEMBER)).hexdigest()
    announced = replace(MEMBER, expected_algorithm=algorithm, expected_digest=digest)
    finish(Packer(Layout(plan_of(announced, *follower))))
    other = replace(announced, expected_digest="0" * len(digest))
    with pytest.raises(DigestMismatch, match=rf"'a\.bin' has the {algorithm} digest {digest}"):
        finish(Packer(Layout(plan_of(other, *follower))))


def test_an_empty_file_is_checked_too() -> None:
    empty = Member("empty", 0, "e", 0, expected_algorithm="md5", expected_digest="d41d8cd98f00b204e9800998ecf8427e")
    finish(Packer(Layout(plan_of(empty))))
    with pytest.raises(DigestMismatch):
        finish(Packer(Layout(plan_of(replace(empty, expected_digest="0" * 32)))))


def test_a_registered_digest_is_checked_by_a_resumed_packer_too() -> None:
    plan = plan_of(replace(MEMBER, expected_algorithm="md5", expected_digest="0" * 32))
    packer = Packer(Layout(plan), [bytes(32)] * 2)
    assert packer.unread_head == (0, 2000 - Layout(plan).data_offsets[0])
    with pytest.raises(DigestMismatch):
        finish(packer)


def seal_from(packer: Packer, chunk: int) -> None:
    for unit in units(packer.layout.tar_bytes, packer.layout.chunk_bytes, chunk):
        packer.seal(unit, memoryview(fill(packer, unit)))


def test_a_unit_left_out_is_noticed() -> None:
    packer = Packer(Layout(plan_of(MEMBER)))
    with pytest.raises(ValueError, match=r"bytes of 'a\.bin' were digested"):
        seal_from(packer, 1)


def test_an_unread_head_left_out_is_noticed() -> None:
    packer = Packer(Layout(plan_of(MEMBER)), [bytes(32)] * 2)
    with pytest.raises(ValueError, match=r"of the 3000 bytes of 'a\.bin'"):
        seal_from(packer, 2)


@given(block_plans(), st.integers(0, 30_000), st.integers(0, 30_000))
@quick
def test_reads_are_the_pieces_that_come_from_members(plan: BlockPlan, offset: int, length: int) -> None:
    layout = Layout(plan)
    expected = [piece for piece in layout.pieces(offset, length) if isinstance(piece, FromMember)]
    assert list(layout.reads(offset, length)) == expected
