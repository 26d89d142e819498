"""`verify`, `extract` and `manifest rebuild`: on plain files, with the exit codes that they promise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.__main__ import app
from cli.datablock import _Source  # pyright: ignore[reportPrivateUsage]
from domain.datablock import BlockPlan
from domain.files import Member
from domain.manifest import dump_manifest
from domain.packing import Packer
from domain.tarstream import Layout
from tests.strategies import content
from tests.unit.test_checking import FILES, plain_tar
from tests.unit.test_packing import finish

MEMBERS = (
    Member("100%/25%25.txt", 700, "e", 1_700_000_000_123_456_789),
    Member("a", 3000, "e", 0),
    Member("empty", 0, "e", 0),
    Member("漢/ü" + "n" * 100, 5000, "e", 10**18),
)
PLAN = BlockPlan("20.5/ü", 2, 3, 16 << 20, MEMBERS, generation=1)
PACKER = Packer(Layout(PLAN))
TAR = finish(PACKER)
OFFSETS = dict(zip([member.path for member in MEMBERS], PACKER.layout.data_offsets, strict=True))
MANIFEST = dump_manifest(PACKER.layout, PACKER.chunks, PACKER.members)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)
    Path("block.tar").write_bytes(TAR)
    Path("block.jsonl").write_bytes(MANIFEST)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def damage(*offsets: int) -> None:
    tar = bytearray(TAR)
    for offset in offsets:
        tar[offset] ^= 1
    Path("block.tar").write_bytes(tar)


def report(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)


@pytest.mark.parametrize("more", [(), ("--manifest", "block.jsonl"), ("--chunk-bytes", str(16 << 20))])
def test_an_intact_datablock(more: tuple[str, ...]) -> None:
    result = run("verify", "block.tar", *more)
    assert result.exit_code == 0
    assert result.stdout.startswith("block.tar: intact: datablock 2 of 3 of 20.5/ü, 4 files")
    found = report(run("verify", "block.tar", "--json", *more))
    assert (found["intact"], found["findings"]) == (True, [])
    assert (found["pid"], found["index"], found["count"], found["generation"]) == ("20.5/ü", 2, 3, 1)
    assert (found["digest"], found["tar_bytes"]) == (PACKER.digest.hex(), len(TAR))


@pytest.mark.parametrize("path", [path for path in OFFSETS if path != "empty"])
@pytest.mark.parametrize("more", [(), ("--manifest", "block.jsonl")])
def test_a_damaged_file_is_named(path: str, more: tuple[str, ...]) -> None:
    offset = OFFSETS[path] + 10
    damage(offset)
    result = run("verify", "block.tar", *more)
    assert result.exit_code == 1
    assert "damaged" in result.stdout
    assert path in result.stdout
    found = report(run("verify", "block.tar", "--json", *more))
    assert not found["intact"]
    [finding] = [finding for finding in found["findings"] if finding["fault"] == "content"]
    assert (finding["member"], finding["members"], finding["chunks"]) == (path, [path], [0])
    assert finding["offset"] <= offset < finding["offset"] + finding["length"]


def test_chunk_range_and_files_are_named() -> None:
    plan = replace(PLAN, chunk_bytes=4096)
    packer = Packer(Layout(plan))
    tar = bytearray(finish(packer))
    offset = packer.layout.data_offsets[1]
    tar[offset] ^= 1
    Path("small.tar").write_bytes(tar)
    Path("small.jsonl").write_bytes(dump_manifest(packer.layout, packer.chunks, packer.members))
    result = run("verify", "small.tar", "--manifest", "small.jsonl")
    chunk = offset // 4096
    assert f"chunk {chunk} (bytes {chunk * 4096} to {chunk * 4096 + 4095}) is damaged; hit: 'a'" in result.stdout
    assert result.stdout.endswith("files lost or in doubt: 1\n    a\n")


def test_damage_between_the_files_loses_none() -> None:
    damage(OFFSETS["a"] - 512)
    result = run("verify", "block.tar", "--json")
    assert result.exit_code == 1
    findings = report(result)["findings"]
    assert [(f["fault"], f["member"], f["members"]) for f in findings] == [("tar", "", []), ("header", "a", [])]
    assert run("extract", "block.tar", "a").exit_code == 0


@pytest.mark.parametrize("size", [len(TAR) - 1, len(TAR) - 3000, OFFSETS["a"] + 1, OFFSETS["100%/25%25.txt"] + 1])
def test_a_file_that_is_cut_short(size: int) -> None:
    Path("block.tar").write_bytes(TAR[:size])
    for more in ((), ("--manifest", "block.jsonl")):
        result = run("verify", "block.tar", *more)
        assert result.exit_code == 1
        assert str(size) in result.stdout
    assert run("manifest", "rebuild", "block.tar").exit_code == 1
    assert not list(Path().glob("*.manifest.jsonl"))


@pytest.mark.parametrize("command", [("verify",), ("manifest", "rebuild"), ("extract",)])
@pytest.mark.parametrize("data", [b"", b"text\n" * 500, plain_tar(FILES), plain_tar(FILES, "run 7/")])
def test_what_is_no_datablock(command: tuple[str, ...], data: bytes) -> None:
    Path("other.tar").write_bytes(data)
    result = run(*command, "other.tar", *(["a.txt"] if command == ("extract",) else []))
    assert result.exit_code == 2
    assert "no tar" in result.stderr or "no datablock" in result.stderr


def test_wrong_usage() -> None:
    assert run("verify", "absent.tar").exit_code == 2
    assert run("verify", "block.tar", "--manifest", "block.tar").exit_code == 2
    other = Packer(Layout(replace(PLAN, generation=2)))
    finish(other)
    Path("other.jsonl").write_bytes(dump_manifest(other.layout, other.chunks, other.members))
    result = run("verify", "block.tar", "--manifest", "other.jsonl")
    assert (result.exit_code, PLAN.stem in result.stderr) == (2, True)


def test_names_in_damaged_headers_cannot_command_a_terminal() -> None:
    Path("block.tar").write_bytes(TAR[:1024].replace(b"/data/100%", b"/data/\x1b[2%") + TAR[1024:])
    result = run("verify", "block.tar")
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.path[:8])
@pytest.mark.parametrize("more", [(), ("--manifest", "block.jsonl")])
def test_one_file(member: Member, more: tuple[str, ...]) -> None:
    result = run("extract", "block.tar", member.path, "-o", "out", *more)
    assert (result.exit_code, Path("out").read_bytes()) == (0, content(member))
    if not more:
        assert Path("out").stat().st_mtime_ns == member.mtime_ns
    assert run("extract", "block.tar", member.path, "-o", "-", *more).stdout_bytes == content(member)
    Path("folder").mkdir()
    assert run("extract", "block.tar", member.path, "-o", "folder", *more).exit_code == 0
    assert Path("folder", member.path.rsplit("/", 1)[-1]).read_bytes() == content(member)


def test_an_existing_file_is_never_replaced() -> None:
    for number in range(2):
        assert run("extract", "block.tar", "a").exit_code == 0, number
    Path("a").write_bytes(b"mine")
    result = run("extract", "block.tar", "a")
    assert (result.exit_code, Path("a").read_bytes()) == (2, b"mine")
    assert "is there already" in result.stderr
    Path("a").unlink()
    Path("a").symlink_to("nowhere")
    assert run("extract", "block.tar", "a").exit_code == 2
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_a_damaged_file_is_not_written() -> None:
    damage(OFFSETS["a"] + 2999)
    result = run("extract", "block.tar", "a")
    assert (result.exit_code, "is damaged" in result.stderr) == (1, True)
    assert sorted(path.name for path in Path().iterdir()) == ["block.jsonl", "block.tar"]
    result = run("extract", "block.tar", "a", "-o", "-")
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert run("extract", "block.tar", "empty").exit_code == 0


def test_a_file_is_got_in_spite_of_damaged_lists() -> None:
    begin = TAR.index(b'{"path":"a"')
    damage(TAR.index(b'"digest":"', begin) + 12)
    assert run("extract", "block.tar", "a").exit_code == 0
    damage(TAR.index(b'"offset":', begin) + 9)
    assert run("extract", "block.tar", "empty").exit_code == 0
    damage(begin)
    assert run("extract", "block.tar", "a", "-o", "again").exit_code == 0
    Path("block.tar").write_bytes(TAR[: OFFSETS["漢/ü" + "n" * 100]])
    result = run("extract", "block.tar", "a", "-o", "third")
    assert (result.exit_code, "--manifest" in result.stderr) == (1, True)
    assert run("extract", "block.tar", "a", "-o", "third", "--manifest", "block.jsonl").exit_code == 0


def test_no_such_file() -> None:
    result = run("extract", "block.tar", "100%/25%.txt")
    assert (result.exit_code, "'100%/25%25.txt'" in result.stderr) == (2, True)
    assert run("extract", "block.tar", "b", "--manifest", "block.jsonl").exit_code == 2
    assert run("extract", "block.tar", "a", "-o", "no/such/folder").exit_code == 2


def test_one_file_is_got_without_reading_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = BlockPlan("p", 1, 1, 16 << 20, tuple(Member(f"{n:03}", 300_000, "e", 0) for n in range(30)))
    Path("many.tar").write_bytes(finish(Packer(Layout(plan))))
    moved = 0
    runs = _Source.runs

    def counted(self: _Source, offset: int, length: int) -> Any:
        nonlocal moved
        for part in runs(self, offset, length):
            moved += len(part)
            yield part

    monkeypatch.setattr(_Source, "runs", counted)
    assert run("extract", "many.tar", "017").exit_code == 0
    assert moved < 300_000 + 30 * 10_000


def test_the_manifest_is_made_anew() -> None:
    result = run("manifest", "rebuild", "block.tar")
    assert result.exit_code == 0
    assert result.stdout == f"{PLAN.stem}.manifest.jsonl\n"
    assert Path(f"{PLAN.stem}.manifest.jsonl").read_bytes() == MANIFEST
    assert run("manifest", "rebuild", "block.tar", "-o", "-").stdout_bytes == MANIFEST
    assert report(run("manifest", "rebuild", "block.tar", "-o", "new", "--json"))["manifest"] == "new"
    Path("new").write_bytes(b"other")
    assert run("manifest", "rebuild", "block.tar", "-o", "new").exit_code == 2
    assert Path("new").read_bytes() == b"other"


@pytest.mark.parametrize("offset", [0, OFFSETS["a"], OFFSETS["a"] - 500, TAR.index(b"Payload-Oxum")])
def test_no_manifest_is_made_of_a_damaged_datablock(offset: int) -> None:
    damage(offset)
    assert run("manifest", "rebuild", "block.tar", "-o", "new").exit_code == 1
    assert report(run("manifest", "rebuild", "block.tar", "-o", "new", "--json"))["findings"]
    assert not Path("new").exists()


def test_an_unusual_chunk_size_has_to_be_given() -> None:
    packer = Packer(Layout(replace(PLAN, chunk_bytes=5_555_555)))
    Path("odd.tar").write_bytes(finish(packer))
    result = run("manifest", "rebuild", "odd.tar")
    assert (result.exit_code, "--chunk-bytes" in result.stderr) == (2, True)
    result = run("verify", "odd.tar")
    assert (result.exit_code, "note:" in result.stderr) == (0, True)
    result = run("manifest", "rebuild", "odd.tar", "--chunk-bytes", "5555555", "-o", "-")
    assert result.stdout_bytes == dump_manifest(packer.layout, packer.chunks, packer.members)
