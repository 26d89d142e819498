"""Temporal's database is lost: what SciCat, the LTS and the buckets alone give back, by `scopemarchiver reconcile`."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli import setup
from cli.ports import Ports
from cli.stack import Stack
from tests.lab import QUICK, Lab, eventually, some_bytes, visit

PROJECT = Path(__file__).parents[2]

MOVIES = {"movie 1.tif": some_bytes(9_000_000, 1), "movie 2.tif": some_bytes(8_000_000, 2), "notes": b"ice is thin"}


@dataclass(frozen=True)
class Answer:
    """What the command said."""

    code: int
    said: dict[str, Any]

    @property
    def losses(self) -> set[tuple[str, str]]:
        """(Kind, id)."""
        return {(loss["kind"], loss["id"]) for loss in self.said["losses"]}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncGenerator[Lab]:
    """A stack of its own, since it is to lose its memory."""
    async with Stack(tmp_path / ".local", Ports.free(), QUICK) as stack, visit(stack) as lab:
        yield lab


async def command(lab: Lab, *arguments: str) -> tuple[int, str, str]:
    """Run one of our commands beside the stack: exit code, stdout, stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("S3_", "API_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cli", *arguments),
        cwd=lab.stack.folder.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complained = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def reconcile(lab: Lab, *arguments: str) -> Answer:
    code, said, complained = await command(lab, "reconcile", "--json", *arguments)
    assert said, complained
    return Answer(code, json.loads(said))


async def lose_memory(lab: Lab) -> None:
    """Temporal comes back empty, at the same address; the workers have run all the time."""
    await lab.stack.kill("temporal")
    for file in (lab.stack.folder / "data").glob("temporal.sqlite*"):
        file.unlink()
    await lab.stack.restart("temporal")


async def written(lab: Lab) -> dict[str, int]:
    """Bytes that the LTS has taken in, by path."""
    answer = await lab.lts("GET", "/admin/requests")
    return {path: counted["received"] for path, counted in answer.json()["paths"].items() if counted["received"]}


async def open_recalls(lab: Lab) -> int:
    return (await lab.lts("GET", "/admin/state")).json()["stage_requests"]["open"]


@pytest.mark.long
async def test_everything_is_begun_again_and_nothing_is_done_twice(lab: Lab) -> None:
    on_tape, untold = [await lab.archived(MOVIES) for _ in range(2)]
    being_archived, terminated, uploaded = [await lab.dataset(MOVIES) for _ in range(3)]
    await lab.lts("POST", "/admin/evict", json={})
    for fault in ("recall_stuck", "hold_migration"):
        await lab.lts("POST", "/admin/faults", json={"kind": fault})

    retrieve = await lab.retrieve(on_tape)
    archive, cut_off = await lab.archive(being_archived), await lab.archive(terminated)
    await asyncio.gather(lab.phase(being_archived, "waiting_tape"), lab.phase(terminated, "waiting_tape"))
    await eventually(lambda: open_recalls(lab))
    await lab.archiving(terminated).terminate("by a hasty operator")
    await lab.ended(cut_off)
    # Whoever dies right behind the commit mark leaves these; the retrieval's end was not told either.
    await lab.user.set_lifecycle(untold, {"archiveStatusMessage": "started", "archivable": False, "retrievable": False})
    await lab.user.set_lifecycle(untold, {"retrieveStatusMessage": "started"})
    mended = {("archive", terminated), ("archived", untold), ("retrieval", untold)}
    left = {("upload", uploaded)}
    assert (await reconcile(lab)).losses == mended | left, "the others are at work"
    before, stored = await written(lab), await lab.on_lts(being_archived)
    assert len(stored) == 2

    await lose_memory(lab)
    code, _, complained = await command(lab, "reconcile", "--apply")
    assert (code, "run `scopemarchiver setup` first" in complained) == (3, True), complained
    await setup.prepare_temporal(lab.stack.settings)

    lost = {("job", archive), ("job", retrieve)} | mended | left
    looked = await reconcile(lab)
    assert (looked.code, looked.losses, looked.said["running"]) == (1, lost, 0)
    assert (await lab.api("GET", f"/archiver/jobs/{archive}")).status_code == 404, "a look changes nothing"

    applied = await reconcile(lab, "--apply")
    assert (applied.code, applied.losses) == (0, lost)
    again = await reconcile(lab)
    assert (again.code, again.losses, again.said["running"]) == (0, left | {("upload", terminated)}, 2)
    assert (await lab.lifecycle(terminated))["archivable"]
    life = await lab.lifecycle(untold)
    told = (life["archiveStatusMessage"], life["archivable"], life["retrievable"], life["retrieveStatusMessage"])
    assert told == ("datasetOnArchiveDisk", False, True, "datasetRetrievalFailed")
    resubmitted = await lab.archive(terminated)
    await lab.lts("DELETE", "/admin/faults")

    ended = await asyncio.gather(*(lab.ended(job) for job in (archive, retrieve, resubmitted)))
    assert {job["jobStatusMessage"] for job in ended} == {"finishedSuccessful"}, ended
    assert await lab.contents(ended[1], on_tape) == MOVIES
    assert await written(lab) == before, "what was on the LTS was not written again"
    assert await lab.on_lts(being_archived) == stored
    assert await lab.uploads_on_lts(being_archived) == []
    assert await lab.landed(being_archived) == await lab.landed(terminated) == {}
    assert await lab.unpacked(being_archived) == await lab.unpacked(terminated) == MOVIES

    code, report, _ = await command(lab, "orphans", "--fresh")
    assert (code, "everything matches" in report) == (0, True), report
    assert set(await lab.landed(uploaded)) == set(MOVIES)
