"""Programs that are not ours accept every datablock: tarfile, GNU tar, bsdtar, `bagit`, `sha256sum`."""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import cast
from unicodedata import normalize

import bagit  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.datablock import BlockPlan
from domain.files import Member
from domain.packing import Packer
from domain.tarstream import Layout
from tests.strategies import block_plans, content, few, members, quick
from tests.unit.test_packing import finish
from tests.unit.test_tarstream import HUGE, Sparse

TARS = ["tar", *(["bsdtar"] if shutil.which("bsdtar") else [])]
"""GNU tar must be there; bsdtar is asked where it is."""

FIXED = BlockPlan(
    "20.500.11935/0d4c5e2e-8a1b-4a53-9d3e-1c0a4b7f2e11",
    1,
    1,
    1000,
    tuple(
        Member(path, size, "e", mtime_ns, mode)
        for path, size, mtime_ns, mode in [
            (" leading and trailing ", 3, 1_500_000_000, 0o600),
            ("%25/100%.txt", 513, 0, 0o444),
            ("-rf", 0, 10**18, 0o777),
            ("a+b=c&d.tif", 512, 1_700_000_000_123_456_000, 0o640),
            ("back\\slash\\n", 1, 0, 0o644),
            ("n" * 255 + "/" + "ü" * 127 + "/" + "漢" * 85, 4, 0, 0o644),
            ("quote'\"`$(x)", 5, 0, 0o644),
            ("u\u0308 combining", 6, 0, 0o644),
            ("ü composed", 7, 0, 0o644),
        ]
    ),
)


def slash_at_100() -> BlockPlan:
    """A member whose name, cut to the ustar header's 100 bytes, ends in a slash like a folder's."""
    top = len(BlockPlan("p", 1, 1, 1000, ()).stem) + len("/data/")
    return BlockPlan("p", 1, 1, 1000, (Member("d" * (99 - top) + "/file", 9, "e", 0),))


def packed(plan: BlockPlan) -> bytes:
    return finish(Packer(Layout(plan)))


def opened(tar: bytes) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=io.BytesIO(tar))


@given(block_plans())
@example(FIXED)
@example(slash_at_100())
@quick
def test_tarfile_reads_everything_back(plan: BlockPlan) -> None:
    tar = opened(packed(plan))
    found = tar.getmembers()
    assert len(found) == len(plan.members) + 5
    for info, member, offset in zip(found, plan.members, Layout(plan).data_offsets, strict=False):
        assert info.isreg()
        assert info.name == f"{plan.stem}/data/{member.path}"
        assert (info.size, info.offset_data, info.mode) == (member.size, offset, member.mode)
        assert info.mtime == pytest.approx(member.mtime_ns / 1e9, abs=1e-4)
        for text, number, name in ((member.uid, info.uid, info.uname), (member.gid, info.gid, info.gname)):
            assert (number, name) == ((int(text), "") if is_id(text) else (0, text))
        stream = tar.extractfile(info)
        assert stream is not None
        assert stream.read() == content(member)


def is_id(text: str) -> bool:
    return text.isdigit() and int(text) < 2**32 - 1


def extract(program: str, tar: bytes, folder: Path) -> None:
    done = subprocess.run(
        [program, "-xpf", "-", "--no-same-owner"],
        input=tar,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    # GNU tar says so of times before 1970 and far ahead, and sets them as well as the file system can.
    said = [line for line in done.stderr.decode().splitlines() if not re.search("time stamp|in the future", line)]
    assert (done.returncode, said) == (0, [])


def check_tree(plan: BlockPlan, folder: Path, *, composed: bool) -> None:
    """The folder holds the members and nothing else; bsdtar composes Unicode (NFC) in all names that it reads."""
    [top] = folder.iterdir()
    data = top / "data"
    files = {str(path.relative_to(data)): path for path in data.rglob("*") if not path.is_dir()}
    if composed:
        as_planned = {normalize("NFC", member.path): member.path for member in plan.members}
        files = {as_planned[normalize("NFC", name)]: path for name, path in files.items()}
    assert sorted(files) == [member.path for member in plan.members]
    for member in plan.members:
        stat = files[member.path].stat()
        assert stat.st_mode & 0o7777 == member.mode
        if 0 <= member.mtime_ns < 2**33 * 10**9:  # what ext4 can hold for certain
            assert stat.st_mtime_ns == member.mtime_ns
        assert files[member.path].read_bytes() == content(member)


@pytest.mark.parametrize("program", TARS)
@given(plan=block_plans())
@example(plan=FIXED)
@example(plan=slash_at_100())
@few
def test_tar_programs_extract_everything(program: str, plan: BlockPlan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extract(program, packed(plan), Path(folder))
        check_tree(plan, Path(folder), composed=program == "bsdtar")


def bagit_package_reads(path: str) -> bool:
    """Whether the `bagit` package reads the name as it stands in a manifest.

    It does not decode `%25` (its issue 157), strips white space at the end of a line, and takes for line ends what
    Python's `str.splitlines` does.
    """
    return "%" not in path and path == path.rstrip() and len(path.splitlines()) == 1


@given(block_plans())
@few
def test_the_bagit_package_finds_the_bag_valid(plan: BlockPlan) -> None:
    kept = tuple(member for member in plan.members if bagit_package_reads(member.path))
    plan = BlockPlan(plan.pid, plan.index, plan.count, plan.chunk_bytes, kept or (Member("a", 1, "e", 0),))
    with tempfile.TemporaryDirectory() as folder:
        extract("tar", packed(plan), Path(folder))
        bag = bagit.Bag(str(Path(folder, plan.stem)))
        assert bag.validate()
        info = cast("dict[str, str]", bag.info)  # pyright: ignore[reportUnknownMemberType]
        assert info["External-Identifier"] == plan.pid
        assert info["Bag-Count"] == f"{plan.index} of {plan.count}"
        Path(folder, plan.stem, "data", plan.members[-1].path).write_bytes(b"something else")
        assert not bag.is_valid()


@given(block_plans())
@example(FIXED)
@few
def test_sha256sum_checks_payload_and_tag_files(plan: BlockPlan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extract("tar", packed(plan), Path(folder))
        top = Path(folder, plan.stem)
        # As the format page tells people to do it.
        payload = "sed 's/%25/%/g' manifest-sha256.txt | sha256sum --strict -c -"
        command = f"{payload} && sha256sum --strict -c tagmanifest-sha256.txt"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=top,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(b": OK\n") == len(plan.members) + 4


@given(members(), st.integers(1, 9))
@quick
def test_members_jsonl_leads_to_every_file(some: tuple[Member, ...], index: int) -> None:
    plan = BlockPlan("p/1", index, 9, 4096, some)
    tar = packed(plan)
    stream = opened(tar).extractfile(f"{plan.stem}/members.jsonl")
    assert stream is not None
    records = [json.loads(line) for line in stream.read().split(b"\n")[:-1]]
    assert [record["path"] for record in records] == [member.path for member in some]
    for record, member in zip(records, some, strict=True):
        assert tar[record["offset"] : record["offset"] + record["size"]] == content(member)
        assert (record["uid"], record["gid"], record["etag"]) == (member.uid, member.gid, member.etag)
        assert int(record["mode"], 8) == member.mode


@pytest.mark.parametrize("program", TARS)
def test_tar_programs_list_files_above_8_gib(program: str, tmp_path: Path) -> None:
    # The 3 TiB file is more than a file here may be sparse for; 16 GiB show as much.
    plan = BlockPlan(HUGE.pid, 1, 1, 1 << 24, (*HUGE.members[:2], HUGE.members[3]))
    layout = Layout(plan)
    source = Sparse(layout)
    with (tmp_path / "huge.tar").open("wb") as target:
        for start, stop in zip([0, *layout.data_offsets], [*layout.header_offsets, layout.tail_offset], strict=True):
            # Headers and paddings only: the file system makes zeros of what is left out.
            for offset in {start, max(start, stop - 1024), stop}:
                source.seek(offset)
                target.seek(offset)
                target.write(source.read(4096))
        source.seek(layout.tail_offset)
        target.seek(layout.tail_offset)
        target.write(source.read(layout.tar_bytes - layout.tail_offset))
    listed = subprocess.run([program, "-tvf", tmp_path / "huge.tar"], capture_output=True, check=True, text=True)
    assert listed.stderr == ""
    found = re.findall(r" (\d+) (?:[A-Z][a-z]{2} |\d{4}-).*/(data/\S+)$", listed.stdout, re.MULTILINE)
    assert [(int(size), name) for size, name in found] == [(m.size, f"data/{m.path}") for m in plan.members]
