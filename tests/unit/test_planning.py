"""Planning: which files a dataset consists of, and how they are cut into datablocks."""

import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.datablock import plan_digest
from domain.errors import ConflictingEntries, MissingFiles, NothingRegistered, UnsafePath, UploadUnfinished
from domain.files import LandedObject, Member, RegisteredFile
from domain.manifest import dump_manifest
from domain.packing import Packer
from domain.planfile import DatasetPlan, dump_plan, load_plan
from domain.planning import PackingRules, group, match, registration, regular_files, relative_path, uncovered
from domain.tarstream import Layout
from tests.strategies import HOSTILE_PATHS, datasets, members, quick

MORNING = datetime(2024, 7, 1, 6, 30, 0, 250_000, tzinfo=UTC)


def registered(path: str, size: int = 1, **facts: str) -> RegisteredFile:
    return RegisteredFile(path, size, **facts)


def landed(path: str, size: int = 1, version_id: str | None = "v") -> LandedObject:
    return LandedObject(path, size, "etag", MORNING, version_id)


# Which entries are files.


@pytest.mark.parametrize(
    ("path", "folder", "relative"),
    [
        ("a/b", "/data/x", "a/b"),
        ("./a/b", "/data/x", "a/b"),
        ("/data/x/a", "/data/x", "a"),
        ("/data/x/a", "/data/x/", "a"),
        ("/data/x/./a", "/data/x", "a"),
        ("/data/xy/a", "/data/x", "/data/xy/a"),
        ("/a", "/", "/a"),
        ("/a", "", "/a"),
        ("a", "", "a"),
    ],
)
def test_paths_below_the_source_folder_are_made_relative(path: str, folder: str, relative: str) -> None:
    assert relative_path(path, folder) == relative


def test_folders_links_and_devices_are_not_expected_as_objects() -> None:
    entries = [
        registered("a"),
        *(registered(f"x{t}", perm=f"{t}rwxr-xr-x") for t in "dLDpSc"),
        registered("Dc", perm="Dcrw-rw-rw-"),
    ]
    assert list(regular_files(entries, "")) == ["a"]


def test_entries_with_others_below_are_folders() -> None:
    entries = [
        registered("a", 4096),
        registered("a/b", 4096),
        registered("a/b/c"),
        registered("a-b"),
        registered("ab/x"),
        registered("a!"),
    ]
    assert sorted(regular_files(entries, "")) == ["a!", "a-b", "a/b/c", "ab/x"]


@pytest.mark.parametrize("path", ["sub/", "./", "/data/x", "/data/x/", ".", "/data/x/sub/"])
def test_entries_that_can_only_be_folders_are_none(path: str) -> None:
    assert list(regular_files([registered(path, 4096), registered("a")], "/data/x")) == ["a"]


def test_a_folder_may_be_registered_with_two_sizes() -> None:
    assert list(regular_files([registered("a", 4096), registered("a", 12288), registered("a/b")], "")) == ["a/b"]


@pytest.mark.parametrize("path", sorted(set(HOSTILE_PATHS) - {"a/", ".", "./a", "/"}))
def test_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        match([registered("a"), registered(path)], [landed("a")])
    with pytest.raises(UnsafePath):
        match([registered("a")], [landed("a"), landed(path)])


def test_a_hostile_folder_or_link_is_of_no_concern() -> None:
    assert list(regular_files([registered("../..", perm="drwxr-xr-x"), registered("a")], "")) == ["a"]


@pytest.mark.parametrize(
    "twin",
    [
        registered("/s/a"),
        registered("./a", digest="ab", algorithm="md5"),
        registered("a", digest="AB", algorithm="MD5"),
        registered("a", digest="cd", algorithm="sha256"),
        registered("a", time="2024-01-01T00:00:00Z"),
    ],
)
def test_the_same_path_twice_is_one_file(twin: RegisteredFile) -> None:
    entries = [registered("a", digest="ab", algorithm="md5"), twin, registered("a")]
    [(path, entry)] = regular_files(entries, "/s").items()
    assert (path, entry.path, bool(entry.digest)) == ("a", "a", True)
    assert regular_files(entries[::-1], "/s") == {path: entry}


@pytest.mark.parametrize(
    "twin", [registered("a", 2), registered("a", 1, digest="cd", algorithm="md5"), registered("./a", 0)]
)
def test_the_same_path_with_other_facts_is_refused(twin: RegisteredFile) -> None:
    with pytest.raises(ConflictingEntries, match="'a' is registered 2 times"):
        match([registered("a", 1, digest="ab", algorithm="md5"), twin], [landed("a")])


# What has landed.


def test_an_open_upload_is_refused_before_anything_else() -> None:
    with pytest.raises(UploadUnfinished, match=r"big\.raw"):
        match([], [], open_uploads=["big.raw"])


@pytest.mark.parametrize("entries", [[], [registered("d", perm="drwxr-xr-x")], [registered("sub/")]])
def test_nothing_registered_is_refused(entries: list[RegisteredFile]) -> None:
    with pytest.raises(NothingRegistered):
        match(entries, [landed("a")])


def test_missing_and_other_sized_files_are_named() -> None:
    entries = [registered("a"), registered("b", 2), registered("c")]
    with pytest.raises(MissingFiles, match=r"2 of 3 registered files .*: b \(3 bytes instead of 2\), c \(absent\)$"):
        match(entries, [landed("a"), landed("b", 3)])


def test_the_first_20_missing_files_are_named() -> None:
    with pytest.raises(MissingFiles, match=r"25 of 25 registered files .*: f00 \(absent\).*f19 \(absent\) and 5 more$"):
        match([registered(f"f{n:02d}") for n in range(25)], [])


def test_objects_that_nobody_registered_are_packed_and_named() -> None:
    matched = match([registered("b")], [landed("c"), landed("b"), landed("a")])
    assert [member.path for member in matched.members] == ["a", "b", "c"]
    assert matched.unlisted == ("a", "c")


def test_folder_markers_are_freed_and_not_packed() -> None:
    matched = match([registered("sub/a")], [landed("sub/", 0), landed("", 0), landed("sub/a"), landed("empty/", 0)])
    assert [member.path for member in matched.members] == ["sub/a"]
    assert [folder.path for folder in matched.folders] == ["", "empty/", "sub/"]
    assert matched.unlisted == ()


@pytest.mark.parametrize("path", ["", "sub/"])
def test_an_object_with_content_is_no_folder_marker(path: str) -> None:
    with pytest.raises(UnsafePath):
        match([registered("a")], [landed("a"), landed(path, 1)])


def test_a_file_cannot_be_a_folder_of_another() -> None:
    with pytest.raises(ConflictingEntries, match="'a/b' is a file and at once the folder of 'a/b/c/d'"):
        match([registered("a/b")], [landed("a/b"), landed("a/b!"), landed("a/b/c/d")])


@pytest.mark.parametrize("other", ["u\u0308", "u\u0308/x"])
def test_names_that_are_one_after_nfc_are_refused(other: str) -> None:
    with pytest.raises(ConflictingEntries):
        match([registered("ü")], [landed("ü"), landed(other)])


def test_names_that_differ_in_case_only_are_accepted_and_named() -> None:
    matched = match([registered("A")], [landed("A"), landed("a"), landed("b")])
    assert matched.differing_in_case == ("A", "a")
    assert len(matched.members) == 3


def test_a_member_has_what_was_registered() -> None:
    entry = registered(
        "/s/a",
        1,
        time="2023-11-14T22:13:20.123456Z",
        perm="-rwxr-x---",
        uid="p1",
        gid="g",
        digest=" ABCD ",
        algorithm="SHA-256",
    )
    [member] = match([entry], [landed("a")], source_folder="/s").members
    assert member == Member(
        "a",
        1,
        "etag",
        1_700_000_000_123_456_000,
        0o750,
        "p1",
        "g",
        "v",
        expected_digest="abcd",
        expected_algorithm="sha256",
    )


def test_a_member_lacks_what_was_not_registered() -> None:
    entry = registered("a", time="yesterday", uid="bell\a", gid="g" * 256, digest="abcd", algorithm="crc32")
    matched = match([entry], [landed("a"), landed("b", version_id=None)])
    seconds = int(MORNING.timestamp()) * 10**9
    assert matched.members == (Member("a", 1, "etag", seconds, version_id="v"), Member("b", 1, "etag", seconds))


@given(datasets(), st.randoms(use_true_random=False))
@quick
def test_the_plan_does_not_depend_on_the_order_of_what_comes_in(
    dataset: tuple[list[RegisteredFile], list[LandedObject]], shuffle: random.Random
) -> None:
    entries, objects = dataset
    first = match(entries, objects)
    shuffle.shuffle(entries)
    shuffle.shuffle(objects)
    assert match(entries + entries[:2], objects) == first
    assert [member.path for member in first.members] == sorted(item.path for item in objects)
    assert {item.path for item in objects} - {entry.path for entry in entries} == set(first.unlisted)


# Datablocks.


def rules(target_bytes: int = 1000, **others: int) -> PackingRules:
    return PackingRules(target_bytes, smallest_chunk=512, **others)


def cut(sizes: list[int], some_rules: PackingRules) -> list[list[int]]:
    blocks = group("p/1", [Member(f"f{n:03d}", size, "e", 0) for n, size in enumerate(sizes)], some_rules)
    assert [(block.index, block.count) for block in blocks] == [(n, len(blocks)) for n in range(1, len(blocks) + 1)]
    return [[member.size for member in block.members] for block in blocks]


def test_a_datablock_is_filled_up_to_the_target() -> None:
    assert cut([400, 600, 1, 999, 1], rules()) == [[400, 600], [1, 999], [1]]


def test_a_file_above_the_target_gets_a_datablock_of_its_own() -> None:
    assert cut([1, 1001, 1, 0, 5000], rules()) == [[1], [1001], [1, 0], [5000]]


def test_an_empty_file_does_not_open_a_datablock() -> None:
    assert cut([1000, 0, 0], rules()) == [[1000, 0, 0]]


def test_a_datablock_has_no_more_files_than_the_target() -> None:
    assert cut([1] * 5, rules(target_files=2)) == [[1, 1], [1, 1], [1]]


def test_a_registration_body_has_a_limit() -> None:
    one = len(json.dumps(registration(Member("f000", 1, "e", 0), "0" * 64))) + 2
    assert cut([1] * 5, rules(registration_bytes=2 * one)) == [[1, 1], [1, 1], [1]]
    assert cut([1] * 3, rules(registration_bytes=1)) == [[1], [1], [1]]


@given(members(max_size=12), st.integers(1, 9000), st.integers(1, 6), st.integers(1, 3000))
@quick
def test_a_plan_covers_each_file_once_within_its_limits(
    some: tuple[Member, ...], target_bytes: int, target_files: int, registration_bytes: int
) -> None:
    limits = rules(target_bytes, target_files=target_files, registration_bytes=registration_bytes)
    blocks = group("p/1", some, limits)
    assert [member for block in blocks for member in block.members] == list(some)
    for block in blocks:
        body = json.dumps([registration(member, "f" * 64) for member in block.members])
        assert len(block.members) <= target_files
        assert len(block.members) == 1 or (block.payload_bytes <= target_bytes and len(body) <= registration_bytes + 2)
        assert block.chunk_bytes == 512  # nothing here is larger than 9,000 chunks


def test_an_unchanged_dataset_gets_the_same_plan_and_a_changed_one_another() -> None:
    some = [Member(f"f{n}", 600, "e", 0) for n in range(3)]
    digest = plan_digest(group("p/1", some, rules()))
    assert plan_digest(group("p/1", [replace(member, version_id="w") for member in some], rules())) == digest
    assert plan_digest(group("p/1", [*some[:2], replace(some[2], etag="f")], rules())) != digest


def test_uncovered_files_are_found() -> None:
    expected = [registered("a"), registered("b", 2), registered("c")]
    assert uncovered(expected, [registered("a"), registered("b", 3), registered("x")]) == ["b", "c"]
    assert uncovered(expected, expected) == []


@pytest.mark.long
def test_a_dataset_of_100_000_files_takes_seconds() -> None:
    count = 100_000
    names = [f"grid_{n // 1000:03d}/frame {n:06d}_fractions.tiff" for n in range(count)]
    entries = [registered(f"/s/{name}", 100, time="2023-11-14T22:13:20.123456Z", perm="-rw-r--r--") for name in names]
    objects = [landed(name, 100) for name in names]
    start = time.process_time()
    matched = match(entries, objects, source_folder="/s")
    blocks = group("20.500.11935/0d4c5e2e-8a1b-4a53-9d3e-1c0a4b7f2e11", matched.members, PackingRules(200 * 10**9))
    # 3 s on the machine it was written on; an accident with n² would take hours.
    assert time.process_time() - start < 30
    assert [len(block.members) for block in blocks] == [20_000] * 5


def test_the_layout_of_20_000_files_takes_seconds() -> None:
    some = tuple(Member(f"frame {n:06d}_fractions.tiff", 100, "e", n * 1000) for n in range(20_000))
    [block] = group("p/1", some, PackingRules(10**9))
    start = time.process_time()
    plan = DatasetPlan(block.pid, (block,), 16 << 20)
    assert load_plan(dump_plan(plan)) == plan
    layout = Layout(block)
    reads = sum(1 for offset in range(0, layout.tar_bytes, 4096) for _ in layout.reads(offset, 4096))
    tail = layout.tail(["0" * 64] * len(some))
    assert time.process_time() - start < 10
    assert reads >= len(some)
    assert layout.tail_offset + len(tail) == layout.tar_bytes
    assert dump_manifest(layout, [], ["0" * 64] * len(some)).count(b"\n") == len(some) + 3
    assert len(Packer(layout, [bytes(32)], ["0" * 64] * len(some)).members) == layout.members_before(16 << 20) > 5000
