"""The tar's layout: every range of it can be made by itself, and headers say what the member is."""

import io
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.datablock import BlockPlan
from domain.files import Member
from domain.packing import Packer, units
from domain.tarstream import BLOCK, END, FromMember, FromTags, Layout, Literal, Piece, header, header_bytes, sized
from tests.strategies import block_plans, content, owners, paths, quick, sizes, times_ns

DIGEST = "0" * 64


def length_of(piece: Piece) -> int:
    return len(piece.data) if isinstance(piece, Literal) else piece.length


def produce(layout: Layout, offset: int, length: int) -> bytes:
    """Bytes of a range, put together from its pieces."""
    tail = layout.tail([DIGEST] * len(layout.plan.members))
    made = b""
    for piece in layout.pieces(offset, length):
        assert piece.offset == offset + len(made)
        if isinstance(piece, Literal):
            made += piece.data
        elif isinstance(piece, FromMember):
            made += content(layout.plan.members[piece.member])[piece.start : piece.start + piece.length]
        else:
            made += tail[piece.start : piece.start + piece.length]
    return made


@given(block_plans(), st.data())
@quick
def test_pieces_cover_any_range_without_gap_or_overlap(plan: BlockPlan, data: st.DataObject) -> None:
    layout = Layout(plan)
    offset = data.draw(st.integers(0, layout.tar_bytes), label="offset")
    length = data.draw(st.integers(0, layout.tar_bytes + 10 - offset), label="length")
    reached = offset
    for piece in layout.pieces(offset, length):
        assert piece.offset == reached
        assert length_of(piece) > 0
        reached += length_of(piece)
    assert reached == min(offset + length, layout.tar_bytes)


@given(block_plans(), st.data())
@quick
def test_sub_ranges_concatenate_to_the_whole(plan: BlockPlan, data: st.DataObject) -> None:
    layout = Layout(plan)
    cuts = data.draw(st.lists(st.integers(0, layout.tar_bytes), max_size=12), label="cuts")
    # Cuts at and beside every edge between a header, a content and a padding.
    edges = [o + d for o in (*layout.header_offsets, *layout.data_offsets, layout.tail_offset) for d in (-1, 0, 1)]
    bounds = sorted({0, layout.tar_bytes, *cuts, *(edge for edge in edges if 0 <= edge <= layout.tar_bytes)})
    whole = produce(layout, 0, layout.tar_bytes)
    assert b"".join(produce(layout, start, stop - start) for start, stop in pairwise(bounds)) == whole
    assert len(whole) == layout.tar_bytes


@given(block_plans())
@quick
def test_offsets_lead_to_headers_and_contents(plan: BlockPlan) -> None:
    layout = Layout(plan)
    tar = produce(layout, 0, layout.tar_bytes)
    assert len(tar) % BLOCK == 0
    for member, start, data in zip(plan.members, layout.header_offsets, layout.data_offsets, strict=True):
        assert start % BLOCK == data % BLOCK == 0
        assert tar[data - BLOCK + 257 : data - BLOCK + 265] == b"ustar\x0000"
        assert tar[data : data + member.size] == content(member)
    assert tar[layout.tail_offset :] == layout.tail([DIGEST] * len(plan.members))
    assert layout.chunk_count == -(-len(tar) // plan.chunk_bytes)


@given(block_plans(), st.data())
@quick
def test_members_before_an_offset_are_those_whose_content_ends_there(plan: BlockPlan, data: st.DataObject) -> None:
    layout = Layout(plan)
    ends = [start + member.size for start, member in zip(layout.data_offsets, plan.members, strict=True)]
    offset = data.draw(st.integers(0, layout.tar_bytes) | st.sampled_from(ends + layout.data_offsets), label="offset")
    assert layout.members_before(offset) == sum(end <= offset for end in ends)


@given(block_plans(), st.sampled_from([512, 5000, 1 << 24]))
@quick
def test_the_size_of_the_tar_does_not_depend_on_the_chunks(plan: BlockPlan, smallest: int) -> None:
    other = sized(plan, smallest)
    assert other.chunk_bytes == smallest  # a few kilobytes are never 9,000 chunks
    assert Layout(other).tar_bytes == Layout(plan).tar_bytes


def test_a_tar_of_more_than_9000_smallest_chunks_gets_larger_ones() -> None:
    plan = BlockPlan("p", 1, 1, 512, (Member("a", 9000 * 512, "e", 0),))
    assert sized(plan, 512).chunk_bytes == 1024


def read_header(data: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.fromtarfile(tarfile.open(fileobj=io.BytesIO(data + bytes(1024)), mode="r:"))  # type: ignore[arg-type]


@given(paths, sizes, times_ns, st.integers(0, 0o777), owners, owners)
@quick
def test_header_bytes_is_the_length_of_the_header(
    name: str, size: int, mtime_ns: int, mode: int, uid: str, gid: str
) -> None:
    made = header(name, size, mtime_ns=mtime_ns, mode=mode, uid=uid, gid=gid)
    assert header_bytes(name, size, mtime_ns=mtime_ns, uid=uid, gid=gid) == len(made)
    assert len(made) % BLOCK == 0


def pax(data: bytes) -> dict[str, str]:
    """The pax records of a header, cut apart by their lengths."""
    if data[156:157] != b"x":
        return {}
    rest = data[BLOCK : BLOCK + int(data[124:135], 8)]
    records: dict[str, str] = {}
    while rest:
        length = int(rest.split(b" ")[0])
        key, _, value = rest[:length].decode().partition(" ")[2].removesuffix("\n").partition("=")
        assert rest[length - 1 : length] == b"\n"
        records[key], rest = value, rest[length:]
    assert list(records) == sorted(records)
    return records


@pytest.mark.parametrize(
    ("values", "records"),
    [
        ({}, {}),
        ({"name": "n" * 100}, {}),
        ({"name": "n" * 101}, {"path": "n" * 101}),
        ({"name": "ü"}, {"path": "ü"}),
        ({"name": "n" * 980}, {"path": "n" * 980}),
        ({"mtime_ns": 1_500_000_000}, {"mtime": "1.5"}),
        ({"mtime_ns": 1_000}, {"mtime": "0.000001"}),
        ({"mtime_ns": -1_000_000_000}, {"mtime": "-1"}),
        ({"mtime_ns": -1_500_000_000}, {"mtime": "-1.5"}),
        ({"mtime_ns": -500_000_000}, {"mtime": "-0.5"}),
        ({"mtime_ns": (8**11 - 1) * 10**9}, {}),
        ({"mtime_ns": 8**11 * 10**9}, {"mtime": str(8**11)}),
        ({"size": 8**11 - 1}, {}),
        ({"size": 8**11}, {"size": str(8**11)}),
        ({"uid": "2097151", "gid": "2097151"}, {}),
        ({"uid": "2097152", "gid": "4294967294"}, {"uid": "2097152", "gid": "4294967294"}),
        ({"uid": "4294967295"}, {}),
        ({"uid": "u" * 31, "gid": "g" * 31}, {}),
        ({"uid": "u" * 32, "gid": "Müller"}, {"uname": "u" * 32, "gname": "Müller"}),
        (
            {"name": "ü", "size": 8**11, "mtime_ns": -1, "uid": "2097152", "gid": "ß"},
            {"gname": "ß", "mtime": "-0.000000001", "path": "ü", "size": str(8**11), "uid": "2097152"},
        ),
    ],
)
def test_a_pax_record_stands_for_what_does_not_fit(values: dict[str, object], records: dict[str, str]) -> None:
    given_values = {"name": "a", "size": 0, "mtime_ns": 0, "mode": 0o644, **values}
    assert pax(header(**given_values)) == records  # type: ignore[arg-type]


def test_a_size_that_does_not_fit_leaves_zeros_in_the_header() -> None:
    made = header("a", 8**11 + 5, mtime_ns=0, mode=0o644)
    assert made[-BLOCK:][124:136] == b"00000000000\0"


@pytest.mark.parametrize("index", [1, 10, 999, 123_456])
def test_offsets_are_right_where_a_name_is_on_the_verge_of_another_block(index: int) -> None:
    # The layout does not use the real name, whose digest is dear, but one of the same length.
    for length in (*range(1, 100), *range(380, 500)):
        path = "/".join(["x" * min(length, 250), *(["y" * (length - 250)] if length > 250 else [])])
        plan = BlockPlan("20.500.11935/abc", index, index, 512, (Member(path, 0, "e", 0),))
        made = header(f"{plan.stem}/data/{path}", 0, mtime_ns=0, mode=0o644)
        assert Layout(plan).data_offsets == [len(made)]


def test_a_pax_record_counts_the_digits_of_its_own_length() -> None:
    for length in (*range(1, 120), *range(980, 1000)):
        made = header("ü" * length, 0, mtime_ns=0, mode=0o644)
        assert pax(made) == {"path": "ü" * length}


class Sparse(io.RawIOBase):
    """A datablock with zeros for content, as a file; nothing of it lies in memory."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.position = 0
        self.tail = layout.tail([DIGEST] * len(layout.plan.members))

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.layout.tar_bytes)[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size < 2**20
        made = b""
        for piece in self.layout.pieces(self.position, size):
            if isinstance(piece, Literal):
                made += piece.data
            else:
                begin = piece.start
                made += self.tail[begin : begin + piece.length] if isinstance(piece, FromTags) else bytes(piece.length)
        self.position += len(made)
        return made


HUGE = BlockPlan(
    "p/huge",
    1,
    1,
    1 << 24,
    (
        Member("a.raw", 8**11 - 1, "e", 0),
        Member("b.raw", 8**11, "e", 0),
        Member("c.raw", 3 * 2**40 + 7, "e", 0),
        Member("z", 5, "e", 0),
    ),
)


def test_files_above_8_gib_are_found_by_tarfile() -> None:
    layout = Layout(HUGE)
    with tarfile.open(fileobj=Sparse(layout), mode="r:") as tar:
        found = tar.getmembers()
        assert [(m.name, m.size, m.offset_data) for m in found[:4]] == [
            (f"{HUGE.stem}/data/{member.path}", member.size, offset)
            for member, offset in zip(HUGE.members, layout.data_offsets, strict=True)
        ]
        manifest = tar.extractfile(f"{HUGE.stem}/manifest-sha256.txt")
        assert manifest is not None
        assert manifest.read().count(b"\n") == 4
    assert tar.offset == layout.tar_bytes - len(END)


def test_a_file_above_8_gib_fits_in_units() -> None:
    layout = Layout(sized(HUGE, 1 << 24))
    assert layout.chunk_bytes == 1 << 29  # 3 TiB
    last = list(units(layout.tar_bytes, layout.chunk_bytes, layout.chunk_count - 1))
    assert sum(unit.length for unit in last) == layout.tar_bytes - (layout.chunk_count - 1) * layout.chunk_bytes
    middle = next(units(layout.tar_bytes, layout.chunk_bytes, 5000))
    assert list(layout.pieces(middle.offset, middle.length)) == [
        FromMember(middle.offset, middle.length, 2, middle.offset - layout.data_offsets[2])
    ]
    assert Packer(layout, [bytes(32)] * 5000, [DIGEST] * 2).unread_head == (2, middle.offset - layout.data_offsets[2])
