"""`scopemarchiver upload` as a user runs it beside a local stack: killed in the middle, run again, archived."""

import asyncio
import json
import os
import sys
from pathlib import Path

from domain import names
from tests.lab import Lab, eventually, some_bytes

MIB = 2**20
FILES = {
    "a movie (1)+ü%20.mrc": b"".join(bytes([number]) * MIB + some_bytes(15 * MIB) for number in range(4)) + b"rest",
    "empty": b"",
    "sub folder/é 'quoted' $HOME.txt": b"text",
    "sub folder/exactly one part": some_bytes(16 * MIB, seed=1),
    **{f"small/{number}": some_bytes(1000, seed=number) for number in range(20)},
}


CONNECTIONS = 1
"""Of the run that is killed."""


async def command(workplace: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Start it where `make up` has left its folder; it knows no more."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SCICAT_", "S3_", "API_"))}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cli", "upload", "data", *arguments),
        cwd=workplace,
        env=environment | {"XDG_CACHE_HOME": str(workplace / "cache")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def records(workplace: Path) -> list[Path]:
    return list(workplace.glob("cache/**/*.jsonl"))


def parts_in(workplace: Path) -> int:
    return sum(record.read_text().count('{"part": ') for record in records(workplace))


async def test_an_upload_that_was_killed_goes_on_and_is_archived(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / ".local").symlink_to(lab.stack.folder)
    for path, content in FILES.items():
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(content)
    total = sum(map(len, FILES.values()))

    first = await command(tmp_path, "--connections", str(CONNECTIONS))

    async def has_sent_a_part() -> bool:
        return parts_in(tmp_path) > 0

    await eventually(has_sent_a_part, every_s=0.01)
    first.kill()
    await first.communicate()
    assert first.returncode == -9, "it was to be killed in the middle"
    before = parts_in(tmp_path)
    [record] = records(tmp_path)
    assert record.stat().st_mode & 0o077 == 0
    pid = json.loads(record.read_text().splitlines()[0])["dataset"]["pid"]
    assert len(await lab.objects.open_uploads(lab.landing, names.raw_prefix(pid))) == 1

    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        second = await command(tmp_path, "--archive", "--json")
        out, err = await asyncio.wait_for(second.communicate(), timeout=60)
        assert second.returncode == 0, err.decode()
        told = json.loads(out)
        assert (told["pid"], told["files"], told["bytes"]) == (pid, len(FILES), total)
        assert f"going on with {pid}" in err.decode()
        assert told["sent_bytes"] <= total - before * 16 * MIB
        assert "archive job" in told["message"]
        assert not record.exists()

        await lab.phase(pid, "waiting_tape")
        landed = await lab.landed(pid)
        assert {path: versions[0].size for path, versions in landed.items()} == {
            path: len(content) for path, content in FILES.items()
        }
        # What was on its way when the process was killed may have come to S3 after the next one had looked.
        again = {path: versions for path, versions in landed.items() if len(versions) > 1}
        assert len(again) <= CONNECTIONS, "nothing else was sent twice"
        assert all(len({version.etag for version in versions}) == 1 for versions in again.values())
        assert await lab.objects.open_uploads(lab.landing, names.raw_prefix(pid)) == []
    finally:
        await lab.lts("DELETE", "/admin/faults")

    async def archived() -> bool:
        return (await lab.lifecycle(pid))["archiveStatusMessage"] == "datasetOnArchiveDisk"

    async def freed() -> bool:
        return await lab.landed(pid) == {}

    await eventually(archived)
    await eventually(freed)  # the same bytes once more are older than what was archived
    unpacked = await lab.unpacked(pid)
    assert unpacked.keys() == FILES.keys()
    assert all(unpacked[path] == content for path, content in FILES.items())
