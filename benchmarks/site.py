"""A stack to be measured: its user, who uploads and submits jobs, and the clock that stands beside it.

Each case has a stack of its own, so that a worker's highest memory is that of the case.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client

from benchmarks import memory
from benchmarks.history import Event, bulk_span_s, read_events
from benchmarks.material import File
from benchmarks.proc import Processor
from benchmarks.rclone import Rclone
from cli.catalogue import UserCatalogue
from cli.ports import Ports
from cli.stack import Stack
from domain.lifecycle import JobStatus, finished
from domain.names import archive_workflow, job_workflow, raw_prefix, restore_workflow, retrieve_workflow
from settings import Settings

OVERRIDES = {
    # Tape takes no time: the subject is what the service adds.
    "MOCK_LTS_TIME_FACTOR": "0",
    "MOCK_LTS_MIGRATE_BYTES": "0",
    # A site's 300 s would be waited for if a datablock were not on tape at the first look.
    "LTS_POLL_S": "0.05",
}
"""All else is as a site has it by default."""

_USER = "alice"
"""One of the pretend SciCat's accounts; the password is the same."""

_FILES_PER_BLOCK = 20_000
_OUTCOME_WAIT_S = 5.0


class JobFailed(Exception):
    """A job did not end well, so there is nothing to measure; a sentence."""


@dataclass(frozen=True, slots=True)
class Took:
    """One job, measured."""

    seconds: float
    """From the POST to SciCat until SciCat was told that the job is finished."""
    bulk_s: float
    """From the start of the first activity that moves bulk bytes to the end of the last one."""
    cpu_s: dict[str, float]
    """Processor seconds of each process of the stack."""
    foreign: float
    """Share of the machine that others used meanwhile."""
    events: tuple[Event, ...]
    """What happened in its workflows, in order."""


@dataclass(slots=True)
class Site:
    """One running stack, seen as its users see it."""

    stack: Stack
    rclone: Rclone
    work: Path
    """A folder for files of the case, on the disk that the stack uses too."""
    user: UserCatalogue
    temporal: Client
    http: httpx.AsyncClient

    @property
    def settings(self) -> Settings:
        """What the stack's own processes see."""
        return self.stack.settings

    @property
    def lts_headers(self) -> dict[str, str]:
        """What the pretend LTS wants to see of whoever asks it."""
        return {"Authorization": f"Bearer {self.settings.lts_token.get_secret_value()}"}

    async def lts(self, method: str, path: str, body: dict[str, str] | None = None) -> httpx.Response:
        """Call the pretend LTS, e.g. its admin API.

        Raises:
            HTTPStatusError: it refuses.
        """
        url = self.settings.lts_endpoint + path
        answer = await self.http.request(method, url, json=body, headers=self.lts_headers)
        return answer.raise_for_status()

    def raw(self, pid: str) -> str:
        """The dataset's folder in the landing zone, as rclone names it."""
        return self.rclone.at(self.settings.s3_landingzone_bucket, raw_prefix(pid))

    def retrieved(self, pid: str) -> str:
        """The dataset's folder in the retrieval bucket, as rclone names it."""
        return self.rclone.at(self.settings.s3_retrieval_bucket, raw_prefix(pid).removesuffix("raw_files/"))

    async def register(self, files: Sequence[File]) -> str:
        """Make a dataset in SciCat that lists these files; return its pid."""
        pid = await self.user.create_dataset(
            {
                "type": "raw",
                "datasetName": "benchmark",
                "owner": _USER,
                "ownerGroup": "group1",
                "principalInvestigator": _USER,
                "contactEmail": f"{_USER}@example.org",
                "creationLocation": "/benchmarks",
                "creationTime": "2026-01-02T03:04:05.000Z",
                "sourceFolder": "/data/benchmark",
            }
        )
        for start in range(0, len(files), _FILES_PER_BLOCK):
            listed = [
                {"path": file.path, "size": file.size, "time": "2026-01-02T03:04:05.000Z", "perm": "-rw-r--r--"}
                for file in files[start : start + _FILES_PER_BLOCK]
            ]
            await self.user.add_files(pid, listed, algorithm="sha256")
        return pid

    async def run(self, kind: str, pid: str, files: Iterable[str] = ()) -> Took:
        """Submit a job for one dataset and wait for its end.

        The end is when SciCat says that it was told (`updatedAt`, to the millisecond): asking SciCat again and again
        would take CPU from what is measured.

        Args:
            kind: `archive` or `retrieve`.
            pid: the dataset.
            files: paths to restore; none: all of it.

        Raises:
            JobFailed: it was not finished successfully.
        """
        job: dict[str, Any] = {"type": kind, "jobParams": {}, "datasetList": [{"pid": pid, "files": list(files)}]}
        headers = await self._logged_in()
        before = Processor.now(self.stack)
        began = datetime.now(UTC)
        answer = await self.http.post(f"{self._scicat}/jobs", json=job, headers=headers)
        if not answer.is_success:
            raise JobFailed(f"SciCat refuses the {kind} job: {answer.status_code} {answer.text[:300]}")
        job_id = str(answer.json()["id"])
        await self.temporal.get_workflow_handle(job_workflow(job_id)).result()
        after = Processor.now(self.stack)
        ended = await self._finished(job_id, headers)
        if ended["statusCode"] != JobStatus.SUCCESSFUL:
            raise JobFailed(f"the {kind} job is {ended['statusCode']}: {ended.get('jobResultObject')}")
        own = archive_workflow(pid) if kind == "archive" else retrieve_workflow(pid)
        workflows = {"job": job_workflow(job_id), "dataset": restore_workflow(pid, job_id) if files else own}
        events = await read_events(self.temporal, workflows, began)
        seconds = (datetime.fromisoformat(ended["updatedAt"]) - began).total_seconds()
        return Took(seconds, bulk_span_s(events), after.since(before), after.foreign_since(before), tuple(events))

    @property
    def _scicat(self) -> str:
        return self.settings.scicat_endpoint + self.settings.scicat_api_prefix

    async def _logged_in(self) -> dict[str, str]:
        account = {"username": _USER, "password": _USER}
        answer = (await self.http.post(f"{self._scicat}/auth/login", json=account)).raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    async def _finished(self, job_id: str, headers: dict[str, str]) -> dict[str, Any]:
        """The job as SciCat has it, which should be finished now that its workflow is.

        By API v4, since v3 does not tell when a job was changed last.
        """
        deadline = asyncio.get_running_loop().time() + _OUTCOME_WAIT_S
        while True:
            answer = await self.http.get(f"{self.settings.scicat_endpoint}/api/v4/jobs/{job_id}", headers=headers)
            job: dict[str, Any] = answer.raise_for_status().json()
            if finished(str(job["statusCode"])):
                return job
            if asyncio.get_running_loop().time() > deadline:
                raise JobFailed(f"the job's workflow has ended, but SciCat has it as {job['statusCode']}")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def opened(
    folder: Path, overrides: Mapping[str, str] = OVERRIDES, scale: Mapping[str, int] | None = None
) -> AsyncGenerator[Site]:
    """A fresh stack in an empty folder, with these settings and so many workers, ended on leaving.

    Raises:
        StackError, MissingProgram: it does not come up.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    async with Stack(folder / "stack", Ports.free(), overrides, scale=scale) as stack:
        settings = stack.settings
        rclone = Rclone.of(settings, folder)
        async with (
            UserCatalogue(settings.scicat_endpoint + settings.scicat_api_prefix, _USER, _USER) as user,
            httpx.AsyncClient(timeout=60, trust_env=False) as http,
        ):
            temporal = await Client.connect(settings.temporal_address, namespace=settings.temporal_namespace)
            yield Site(stack, rclone, work, user, temporal, http)


async def settle() -> None:
    """Let the disk take what is still in memory, and fill the memory, so that nobody pays for the run before."""
    await asyncio.to_thread(os.sync)
    await asyncio.to_thread(memory.fill)
