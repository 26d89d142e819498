"""The format page says what the code does: its example and its commands are run."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from domain import bagit
from domain.checksum import s3_composite
from domain.datablock import BlockPlan, plan_digest
from domain.files import Member
from domain.manifest import dump_manifest, dump_segment, load_manifest
from domain.packing import Packer, units
from domain.planfile import DatasetPlan, Marker, dump_plan
from domain.tarstream import Layout
from tests import naive_datablock

PAGE = (Path(__file__).parents[2] / "docs/reference/datablock-format.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CONTENTS = {"empty.log": b"", "grid 1/frame 100%.tif": b"hello\n"}


def block(kind: str, beginning: str) -> str:
    [found] = [text for language, text in BLOCKS if language == kind and text.startswith(beginning)]
    return found


CANONICAL = block("json", '{"algorithm"').strip()


def planned() -> BlockPlan:
    """The example's plan, read from the page."""
    facts = json.loads(CANONICAL)
    assert facts.pop("format") == "bagit-tar-1"
    members = tuple(Member(*member) for member in facts.pop("members"))
    return BlockPlan(members=members, **facts)


def packed(plan: BlockPlan) -> tuple[Packer, bytes]:
    packer, tar = Packer(Layout(plan)), b""
    for unit in units(packer.layout.tar_bytes, plan.chunk_bytes):
        buffer = bytearray(unit.length)
        for run in packer.layout.reads(unit.offset, unit.length):
            content = CONTENTS[plan.members[run.member].path]
            begin = run.offset - unit.offset
            buffer[begin : begin + run.length] = content[run.start : run.start + run.length]
        packer.seal(unit, memoryview(buffer))
        tar += buffer
    return packer, tar


PLAN = planned()
PACKER, TAR = packed(PLAN)


def value(label: str) -> str:
    [found] = re.findall(rf"^\| {re.escape(label)} \| `(.*)` \|$", PAGE, re.MULTILINE)
    return found


def test_the_example_plan_has_the_digest_that_the_page_says() -> None:
    assert value("block digest") == hashlib.sha256(CANONICAL.encode()).hexdigest() == PLAN.digest
    assert value("name of the tar") == f"{PLAN.stem}.tar"
    assert value("plan digest") == plan_digest([PLAN])


def test_the_example_tar_is_the_one_that_the_page_describes() -> None:
    layout = PACKER.layout
    assert value("headers of the members at") == str(layout.header_offsets)
    assert value("contents of the members at") == str(layout.data_offsets)
    assert value("first tag file's header at") == str(layout.tail_offset)
    assert value("size of the tar") == str(len(TAR)) == str(layout.tar_bytes)
    assert value("sha256 of the tar, here also of its only chunk") == hashlib.sha256(TAR).hexdigest()
    assert value("datablock digest") == PACKER.digest.hex()
    assert value("the same as S3's composite checksum") == s3_composite(PACKER.digest, 1)
    assert naive_datablock.write(PLAN, CONTENTS) == TAR


def test_the_tag_files_are_those_of_the_page() -> None:
    files = dict(bagit.tag_files(PLAN, PACKER.layout.data_offsets, PACKER.members))
    assert files["bagit.txt"].decode() == block("text", "BagIt-Version")
    assert files["bag-info.txt"].decode() == block("text", "Bag-Group")
    assert files["manifest-sha256.txt"].decode() == block("text", "e3b0c442")
    assert files["members.jsonl"].decode() == block("json", '{"path"')
    assert files["tagmanifest-sha256.txt"].decode() == block("text", hashlib.sha256(bagit.BAGIT_TXT).hexdigest())


def test_the_records_are_those_of_the_page() -> None:
    manifest = dump_manifest(PACKER.layout, PACKER.chunks, PACKER.members)
    assert manifest.decode() == block("json", '{"format":"bagit-tar-1","pid":"20.500.12345/abc","archive_id"')
    assert load_manifest(manifest).digest.hex() == value("datablock digest")
    assert dump_segment(0, PACKER.chunks, 0, PACKER.members).decode() == block("json", '{"first_chunk"')
    md5 = hashlib.md5(b"hello\n", usedforsecurity=False).hexdigest()
    first, second = PLAN.members
    members = (
        replace(first, version_id="v1"),
        replace(second, version_id="v2", expected_digest=md5, expected_algorithm="md5"),
    )
    plan = DatasetPlan(
        PLAN.pid,
        (replace(PLAN, members=members),),
        16777216,
        unlisted=("empty.log",),
        markers=(Marker("grid 1/", "d41d8cd98f00b204e9800998ecf8427e", "v0"),),
    )
    assert dump_plan(plan).decode() == block("json", '{"format":"bagit-tar-1","pid":"20.500.12345/abc","plan_digest"')


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / f"{PLAN.stem}.tar"
    path.write_bytes(TAR)
    return path


def run(script: str, tar: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash") or "bash"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "tar": str(tar), **variables}
    return subprocess.run(
        [bash, "-euo", "pipefail", "-c", script],
        cwd=tar.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_tells_how_to_check_and_unpack(tar: Path) -> None:
    done = run(block("sh", "tar -xf"), tar)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path, content in CONTENTS.items():
        assert (tar.parent / PLAN.stem / "data" / path).read_bytes() == content


def test_the_check_on_the_page_finds_damage(tar: Path) -> None:
    tar.write_bytes(TAR.replace(b"hello\n", b"hullo\n"))
    done = run(block("sh", "tar -xf"), tar)
    assert done.returncode == 1
    assert "data/grid 1/frame 100%.tif: FAILED" in done.stdout


def test_the_page_tells_how_to_compute_the_datablock_digest(tar: Path) -> None:
    script = block("bash", "hex=")
    assert run(script, tar).stdout == f"{value('datablock digest')}  -\n"
    # In several chunks too, the last of them shorter.
    several, other_tar = packed(replace(PLAN, chunk_bytes=5000))
    tar.write_bytes(other_tar)
    assert run(script.replace("16777216", "5000"), tar).stdout == f"{several.digest.hex()}  -\n"


def test_the_page_tells_how_to_get_one_file(tar: Path) -> None:
    offset = str(PACKER.layout.data_offsets[1])
    assert run(block("sh", "tail"), tar, offset=offset, size="6").stdout == "hello\n"
