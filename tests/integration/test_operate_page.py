"""Every line of docs/how-to/operate.md, as bash runs it against a stack, does what the page says of it."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from temporalio.client import WorkflowHandle

from api.gateway import Gateway
from api.uploads import Uploads
from domain import names
from domain.errors import AlreadyFinalized
from domain.uploads import FinalizeUpload
from tests.lab import Lab, eventually

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs/how-to/operate.md"

BEGIN = "Steer what runs"
WAITING_FOR_SPACE = {
    "What runs, what waits for a person": 11,
    "Where it is, why it waits": 8,
    "Pause and resume": 12,
    "Cancel": 6,
}
WAITING_FOR_TAPE = {"A tape is in, and the next look is minutes away": 1, "After the end": 2}
PARKED = {"A dataset is parked": 7}
UPLOADS = {"Who has room in the landing zone": 5}


def lines_of_page() -> dict[str, list[str]]:
    """The shell lines below each heading."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines() if line]
        if lines:
            found[part.partition("\n")[0]] = lines
    return found


LINES = lines_of_page()


def test_every_line_of_the_page_is_run_by_a_test_of_this_file() -> None:
    known = {BEGIN: 6, **WAITING_FOR_SPACE, **WAITING_FOR_TAPE, **PARKED, **UPLOADS}
    assert {heading: len(lines) for heading, lines in LINES.items()} == known


@dataclass(frozen=True)
class Shell:
    """A person's shell, who has copied the first lines of the page."""

    environment: dict[str, str]

    async def run(
        self,
        line: str,
        *,
        pid: str = "",
        job: str = "",
        at: str = "",
        then: Callable[[], Awaitable[object]] | None = None,
    ) -> str:
        """Run one line; return what it prints.

        Args:
            line: the line.
            pid: what `$PID` is.
            job: what `$JOB` is.
            at: when it has printed this,
            then: this is done while it runs.

        Raises:
            AssertionError: it failed.
        """
        bash = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", "\n".join([*LINES[BEGIN], line])),
            cwd=PROJECT,
            env=self.environment | {"PID": pid, "JOB": job},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert bash.stdout
        said = ""
        async with asyncio.timeout(60):
            while then and at not in said and (printed := await bash.stdout.readline()):
                said += printed.decode()
            if then:
                await then()
            rest, complained = await bash.communicate()
        said += rest.decode()
        assert bash.returncode == 0, f"{line}\n{said}\n{complained.decode()}"
        return said


@dataclass(frozen=True)
class Archive:
    """A job that archives one dataset."""

    lab: Lab
    shell: Shell
    pid: str
    job: str

    async def run(self, line: str, *, at: str = "", then: Callable[[], Awaitable[object]] | None = None) -> str:
        """Run a line with these ids."""
        return await self.shell.run(line, pid=self.pid, job=self.job, at=at, then=then)

    async def phase(self, *phases: str) -> dict[str, Any]:
        """Wait for a phase."""
        return await self.lab.phase(self.pid, *phases)

    async def shown(self) -> dict[str, Any]:
        """Where it stands."""
        return (await self.lab.api("GET", f"/archiver/datasets/{quote(self.pid)}")).json()

    @property
    def workflow(self) -> WorkflowHandle[Any, Any]:
        """The dataset's."""
        return self.lab.archiving(self.pid)


Begin = Callable[[], Awaitable[Archive]]


@pytest.fixture
def shell(lab: Lab) -> Shell:
    """Of somebody who works on this stack."""
    settings = lab.stack.settings
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return Shell(
        kept
        | {
            "TEMPORAL_ADDRESS": settings.temporal_address,
            "API_ENDPOINT": f"http://127.0.0.1:{settings.uvicorn_port}",
            "OPERATOR_USERNAME": settings.operator_username.get_secret_value(),
            "OPERATOR_PASSWORD": settings.operator_password.get_secret_value(),
        }
    )


@pytest.fixture
async def begin(lab: Lab, shell: Shell) -> AsyncGenerator[Begin]:
    """Submit a job of one small dataset; no fault outlives the test."""

    async def submit() -> Archive:
        pid = await lab.dataset({"movie.tif": b"frames" * 1000})
        return Archive(lab, shell, pid, await lab.archive(pid))

    try:
        yield submit
    finally:
        await lab.lts("DELETE", "/admin/faults")


async def begin_several(begin: Begin, count: int) -> list[Archive]:
    return list(await asyncio.gather(*(begin() for _ in range(count))))


def pairs(lines: list[str]) -> list[tuple[str, str]]:
    return list(zip(lines[::2], lines[1::2], strict=True))


# While the LTS has no room, archives wait in the phase `writing`, without end.


async def test_the_lines_for_what_is_being_written(lab: Lab, begin: Begin) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "cache_full"})
    archives = await begin_several(begin, 6)
    await asyncio.gather(*(eventually(lambda each=each: waits_for_space(each)) for each in archives))

    await lists(archives[0], archives[1:], LINES["What runs, what waits for a person"])
    await asks(archives[0], LINES["Where it is, why it waits"])
    pausing = pairs(LINES["Pause and resume"])
    await asyncio.gather(
        *(pauses(each, pause, resume) for each, (pause, resume) in zip(archives, pausing, strict=True))
    )
    cancelling = LINES["Cancel"]
    await asyncio.gather(*(cancels(each, line) for each, line in zip(archives, cancelling, strict=True)))


async def waits_for_space(archive: Archive) -> bool:
    return bool((await archive.shown()).get("states", {}).get("waiting_space"))


async def lists(archive: Archive, others: list[Archive], lines: list[str]) -> None:
    """Every list holds what it promises, and no list what it leaves out."""
    said = dict(zip(lines, await asyncio.gather(*map(archive.run, lines)), strict=True))
    dataset, job, other = f"archive-dataset/{archive.pid}", archive.job, others[0].job
    for line, output in said.items():
        if "count" in line:
            assert int(output.split()[-1]) >= 2 * len([archive, *others]), output
        elif "ExecutionStatus" in line or "--running" in line or "running=true" in line:
            assert job in output, line
            assert other in output, line
        elif "DatasetPid" in line:
            assert dataset in output, line
            assert other not in output, line
        elif "ScicatJobId" in line:
            assert dataset in output, line
            assert f"job/{job}" in output, line
            assert other not in output, line
        else:
            assert any(word in line for word in ("parked", "failed", "finishedUnsuccessful")), line
            assert job not in output, line
            assert archive.pid not in output, line


async def asks(archive: Archive, lines: list[str]) -> None:
    """Every answer says what it waits for, or what runs."""
    said = await asyncio.gather(*map(archive.run, lines))
    [asked, asked_job, described, details, status, job_status, by_api, job_by_api] = said
    assert "no room" in asked or "507" in asked or "full" in asked, asked
    assert '"phase":"writing"' in asked.replace(" ", "")
    assert archive.pid in asked_job
    assert "write_block" in described or "open_block" in described, described
    assert "**writing**" in details, details
    assert f"archive of {archive.pid}: writing (" in status
    assert json.loads(job_status)["datasets"][0]["pid"] == archive.pid
    shown = json.loads(by_api)
    assert shown["waiting_for"] in status
    assert shown["waiting_since"] >= "20"
    assert shown["steps"][0]["name"] in ("write_block", "open_block")
    assert json.loads(job_by_api)["datasets_open"] == 1


async def pauses(archive: Archive, pause: str, resume: str) -> None:
    """Nothing of it runs while it is paused, and `progress` says who wanted it."""
    await archive.run(pause)
    paused = await archive.phase("paused")
    assert paused["paused_by"].startswith(f"job {archive.job}" if "$JOB" in pause else "nadia")

    async def quiet() -> bool:
        return not (await archive.shown())["steps"]

    await eventually(quiet)
    await archive.run(resume)
    assert (await archive.phase("writing"))["paused_by"] == ""
    await eventually(lambda: waits_for_space(archive))


async def cancels(archive: Archive, line: str) -> None:
    """It is undone, and the landing zone is whole."""
    await archive.run(line)
    assert (await archive.phase("done"))["outcome"] == "cancelled"
    ended = await archive.lab.ended(archive.job)
    assert ended["jobStatusMessage"] == "finishedUnsuccessful"
    assert list(await archive.lab.landed(archive.pid)) == ["movie.tif"]
    assert await archive.lab.on_lts(archive.pid) == {}
    assert (await archive.lab.lifecycle(archive.pid))["archiveStatusMessage"] == "datasetCreated"


# While nothing is migrated, archives wait for tape.


async def test_the_lines_for_what_waits_for_tape_and_for_its_end(lab: Lab, begin: Begin) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    archive = await begin()
    await archive.phase("waiting_tape")

    [ready] = LINES["A tape is in, and the next look is minutes away"]
    before = await looks(archive)
    await archive.run(ready)

    async def looked_again() -> bool:
        return await looks(archive) == before + 1

    await eventually(looked_again)

    wait, watch = LINES["After the end"]
    result = asyncio.ensure_future(archive.run(wait))

    async def go_on() -> None:
        assert not result.done(), "both wait for the end"
        await lab.lts("DELETE", "/admin/faults")

    watched = await archive.run(watch, at="waiting_tape", then=go_on)
    assert "waiting_tape" in watched
    assert f"archive of {archive.pid}: archived" in watched
    assert "archived" in await result
    await lab.ended(archive.job)


async def looks(archive: Archive) -> int:
    """How often the wait for tape was begun; its polls add nothing to the history."""
    history = await archive.workflow.fetch_history()
    return sum(
        event.activity_task_scheduled_event_attributes.activity_type.name == "await_tape" for event in history.events
    )


# While every datablock is damaged on its way back, archives are parked again and again.


async def test_the_lines_for_what_is_parked(lab: Lab, begin: Begin) -> None:
    damage = {"kind": "corrupt_in_flight", "direction": "out", "offset": 1000, "count": None}
    await lab.lts("POST", "/admin/faults", json=damage)
    archives = await begin_several(begin, 4)
    kept, *given_up = archives
    *retries, retry_all, give_up, give_up_by_us, give_up_by_api = LINES["A dataset is parked"]
    why = {each.pid: (await each.phase("parked"))["waiting_for"] for each in archives}
    assert all("Damaged" in text for text in why.values())

    async def tried_again(archive: Archive) -> bool:
        """Under another name, since what is damaged is written anew."""
        shown = await archive.shown()
        again = shown["phase"] == "parked" and shown["waiting_for"] != why[archive.pid]
        if again:
            why[archive.pid] = shown["waiting_for"]
        return again

    for line in retries:
        await kept.run(line)
        await eventually(lambda: tried_again(kept))
    assert kept.job in await kept.run("scopemarchiver jobs --phase parked")

    await kept.run(retry_all)
    for each in archives:
        await eventually(lambda each=each: tried_again(each))

    await asyncio.gather(
        *(gives_up(each, line) for each, line in zip(given_up, [give_up, give_up_by_us, give_up_by_api], strict=True))
    )
    await lab.lts("DELETE", "/admin/faults")
    await kept.run(retries[0])
    assert (await kept.phase("done"))["outcome"] == "archived"
    await lab.ended(kept.job)


async def gives_up(archive: Archive, line: str) -> None:
    """It is undone, and the landing zone is whole."""
    await archive.run(line)
    assert (await archive.phase("done"))["outcome"] == "given_up"
    await archive.lab.ended(archive.job)
    assert list(await archive.lab.landed(archive.pid)) == ["movie.tif"]
    assert await archive.lab.on_lts(archive.pid) == {}


# An upload is finalized, and its owner has to mend it.


async def test_the_lines_for_uploads(lab: Lab, shell: Shell) -> None:
    room, standing, uploads, count, reopen = LINES["Who has room in the landing zone"]
    pid = await lab.dataset({"movie.tif": b"frames"}, upload=False)
    api = Uploads(client=lab.temporal, gateway=Gateway(lab.temporal), objects=lab.objects, settings=lab.stack.settings)
    assert await api.request(pid, 4)
    assert f'"{pid}":{5 * 2**30}' in (await shell.run(room)).replace(" ", "")
    assert '"phase":"uploading"' in (await shell.run(standing, pid=pid)).replace(" ", "")
    assert f"upload/{pid}" in await shell.run(uploads)

    stray = names.raw_key(f"{pid}-stray", "file")
    await lab.objects.put(lab.landing, stray, bytes(1_234))
    # The last count may have met what has been archived since.
    there = sum([version.size async for version in lab.objects.list_versions(lab.landing, "")])
    assert there >= 1_234
    await shell.run(count)

    async def counted() -> bool:
        return (await lab.room()).others_bytes == there

    await eventually(counted)
    await lab.upload(pid, {"movie.tif": b"frames"})
    await api.finalize(pid, FinalizeUpload(create_job=False))
    with pytest.raises(AlreadyFinalized):
        await api.abort(pid)
    await shell.run(reopen, pid=pid)
    await api.abort(pid)
    assert await lab.landed(pid) == {}
