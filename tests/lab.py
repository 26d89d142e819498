"""A whole stack and the people around it: a user who uploads, registers and submits, and an observer of every store.

Tests use it to say what they mean in a line. The user speaks REST and S3 as a client would; the observer
looks into the stores themselves, never into what the service believes of them.
"""

import asyncio
import base64
import io
import random
import subprocess
import tarfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter

from cli.catalogue import UserCatalogue
from cli.stack import Stack
from clients.s3 import ObjectStore, ObjectVersion
from domain import names
from domain.orders import DatasetOrder
from domain.progress import LandingZoneProgress
from workflows import queues

T = TypeVar("T")

# What makes a stack quick and small enough for tests; a test's own overrides win.
QUICK = {
    "LTS_POLL_S": "0.2",
    "LTS_CHUNK_BYTES": str(5 * 2**20),
    "ARCHIVER_TARGET_SIZE_GB": "0.012",
    "ARCHIVER_TARGET_FILES": "50",
    "ARCHIVER_SECOND_LOOK_S": "0.2",
    "ARCHIVER_RETRY_INITIAL_S": "0.2",
    "WATCH_INTERVAL_S": "1",
    # No schedule starts anything by itself in the middle of a test.
    "EXPIRY_INTERVAL_HOURS": "1000000",
    "CONSISTENCY_INTERVAL_HOURS": "1000000",
    "RECONCILE_INTERVAL_HOURS": "1000000",
    "GRACEFUL_SHUTDOWN_S": "6",
    "MOCK_LTS_TIME_FACTOR": "0.0005",
    "MOCK_LTS_MIGRATE_AGE_S": "200",
    "MOCK_LTS_EVICT_AFTER_MIGRATION_S": "0.2",
    "LOG_LEVEL": "info",
}

# What SciCat wants to know of a new dataset.
DATASET = {
    "type": "raw",
    "owner": "alice",
    "contactEmail": "alice@example.org",
    "sourceFolder": "/data/session",
    "creationTime": "2026-01-02T03:04:05.000Z",
    "ownerGroup": "group1",
    "principalInvestigator": "alice",
    "creationLocation": "lab",
    "datasetName": "test",
}

FINISHED = ("finishedSuccessful", "finishedWithDatasetErrors", "finishedUnsuccessful")


async def eventually(ask: Callable[[], Awaitable[T | None]], *, within_s: float = 40, every_s: float = 0.05) -> T:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + within_s
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within_s} s; last answer: {answer!r}"
        await asyncio.sleep(every_s)


def troubles(progress: Mapping[str, Any]) -> str:
    """Which steps of a workflow failed last, and why, as the API tells it."""
    failed = [step for step in progress.get("steps", ()) if step["last_error"]]
    return "; ".join(f"{step['name']}: {step['last_error']}" for step in failed)


@dataclass
class Lab:
    """One stack, seen from outside."""

    stack: Stack
    objects: ObjectStore
    user: UserCatalogue
    temporal: Client
    http: httpx.AsyncClient

    # The user

    async def dataset(
        self,
        files: Mapping[str, bytes],
        *,
        register: Mapping[str, int] | None = None,
        entries: list[dict[str, Any]] | None = None,
        upload: bool = True,
        group: str = "group1",
    ) -> str:
        """Register a dataset and upload its files; return the pid.

        Args:
            files: content by relative path.
            register: size by path to register instead of the files' own; empty for none at all.
            entries: whole `dataFileList` to register instead.
            upload: whether the files reach the landing zone.
            group: owner group.
        """
        pid = await self.user.create_dataset(DATASET | {"ownerGroup": group})
        sizes = {path: len(content) for path, content in files.items()} if register is None else register
        listed = entries or [
            {"path": path, "size": size, "time": "2026-01-02T03:04:05.000Z", "perm": "-rw-r--r--"}
            for path, size in sizes.items()
        ]
        if listed:
            await self.user.add_files(pid, listed, algorithm="sha256")
        if upload:
            await self.upload(pid, files)
        return pid

    async def upload(self, pid: str, files: Mapping[str, bytes]) -> None:
        """Put files into the landing zone."""
        for path, content in files.items():
            await self.objects.put(self.landing, names.raw_key(pid, path), content)

    async def archive(self, *pids: str) -> str:
        """Submit an archive job to SciCat, as the user; return its id."""
        return await self.user.create_job("archive", pids)

    async def retrieve(self, *pids: str) -> str:
        """Submit a retrieve job to SciCat, as the user; return its id."""
        return await self.user.create_job("retrieve", pids)

    @asynccontextmanager
    async def begun(self, kind: str, workflow_id: str, order: DatasetOrder) -> AsyncGenerator[None]:
        """A dataset's workflow with an order of the test's own, for the job that is submitted meanwhile.

        It waits for that job: SciCat takes none for a dataset whose archive has set its life cycle already.
        """
        handle = await self.temporal.start_workflow(
            kind, order, id=workflow_id, task_queue=queues.CONTROL, start_signal="pause"
        )
        yield
        await handle.signal("resume")

    async def ended(self, job_id: str, *, within_s: float = 60) -> dict[str, Any]:
        """Wait until the job is finished in SciCat, and return it as SciCat has it (v3)."""

        async def finished() -> dict[str, Any] | None:
            job = await self.user.job(job_id)
            return job if job["jobStatusMessage"] in FINISHED else None

        return await eventually(finished, within_s=within_s)

    async def archived(self, files: Mapping[str, bytes]) -> str:
        """A dataset that is archived; return its pid."""
        pid = await self.dataset(files)
        job = await self.ended(await self.archive(pid))
        assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
        return pid

    # The observer

    @property
    def landing(self) -> str:
        """The landing zone's bucket."""
        return self.stack.settings.s3_landingzone_bucket

    async def lifecycle(self, pid: str) -> dict[str, Any]:
        """SciCat's life cycle of the dataset."""
        return (await self.user.dataset(pid))["datasetlifecycle"]

    async def landed(self, pid: str) -> dict[str, list[ObjectVersion]]:
        """All versions of all objects of the dataset in the landing zone, by relative path, the newest first."""
        found: dict[str, list[ObjectVersion]] = {}
        prefix = names.raw_prefix(pid)
        async for version in self.objects.list_versions(self.landing, prefix):
            found.setdefault(version.key.removeprefix(prefix), []).append(version)
        return found

    async def on_lts(self, pid: str) -> dict[str, int]:
        """Files of the dataset on the LTS, finished ones, by path."""
        answer = await self.lts("GET", "/admin/state")
        prefix = names.datablocks_prefix(pid)
        return {f["path"]: f["size"] for f in answer.json()["files"] if f["path"].startswith(prefix)}

    async def lts(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Call the pretend tape library, e.g. its admin API."""
        settings = self.stack.settings
        headers = {"Authorization": f"Bearer {settings.lts_token.get_secret_value()}"}
        answer = await self.http.request(method, settings.lts_endpoint + path, headers=headers, **arguments)
        assert answer.is_success, answer.text
        return answer

    async def uploads_on_lts(self, pid: str) -> list[str]:
        """Paths of the dataset's unfinished uploads on the LTS."""
        answer = await self.lts("GET", "/admin/state")
        prefix = names.datablocks_prefix(pid)
        return [upload["path"] for upload in answer.json()["uploads"] if upload["path"].startswith(prefix)]

    async def unpacked(self, pid: str) -> dict[str, bytes]:
        """Retrieve the dataset and unpack what the job's links give: content by relative path."""
        job = await self.ended(await self.retrieve(pid))
        assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
        return await self.contents(job, pid)

    async def contents(self, job: Mapping[str, Any], pid: str) -> dict[str, bytes]:
        """Unpack what the links of a retrieve job give for one of its datasets: content by relative path."""
        found: dict[str, bytes] = {}
        for entry in job["jobResultObject"]["result"]:
            if entry["datasetId"] != pid:
                continue
            answer = await self.http.get(entry["url"])
            with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None and member.name.split("/")[1] == "data":
                        found[member.name.split("/", 2)[2]] = content.read()
        return found

    async def as_service(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Call SciCat's REST API v3 with the service's account, which may do everything, e.g. delete a dataset."""
        settings = self.stack.settings
        account = {
            "username": settings.scicat_user.get_secret_value(),
            "password": settings.scicat_password.get_secret_value(),
        }
        login = await self.scicat("POST", "/api/v3/auth/login", json=account)
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
        return await self.scicat(method, f"/api/v3/{path}", headers=headers, **arguments)

    async def scicat(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Call the pretend SciCat's test hooks."""
        answer = await self.http.request(method, self.stack.settings.scicat_endpoint + path, **arguments)
        assert answer.is_success, answer.text
        return answer

    async def api(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Call our API with SciCat's account, or with `auth=`; whatever it answers is returned."""
        settings = self.stack.settings
        account = (settings.job_endpoint_username.get_secret_value(), settings.job_endpoint_password.get_secret_value())
        url = f"http://127.0.0.1:{settings.uvicorn_port}{path}"
        arguments.setdefault("auth", account)
        return await self.http.request(method, url, **arguments)

    def archiving(self, pid: str) -> WorkflowHandle[Any, Any]:
        """The workflow that archives the dataset."""
        return self.temporal.get_workflow_handle(names.archive_workflow(pid))

    def retrieving(self, pid: str) -> WorkflowHandle[Any, Any]:
        """The workflow that retrieves the dataset."""
        return self.temporal.get_workflow_handle(names.retrieve_workflow(pid))

    async def room(self) -> LandingZoneProgress:
        """Who was promised how much of the landing zone."""
        return await self.temporal.get_workflow_handle(names.LANDING_ZONE).query(
            "progress", result_type=LandingZoneProgress
        )

    async def phase(self, pid: str, *phases: str, within_s: float = 40) -> dict[str, Any]:
        """Wait until the dataset's archive is in one of the phases, by the API, and return the progress."""

        async def there() -> dict[str, Any] | None:
            answer = await self.api("GET", f"/archiver/datasets/{quote(pid)}")
            return answer.json() if answer.is_success and answer.json()["phase"] in phases else None

        return await eventually(there, within_s=within_s)


@asynccontextmanager
async def visit(stack: Stack) -> AsyncGenerator[Lab]:
    """Connect to a running stack."""
    settings = stack.settings
    async with (
        ObjectStore.connect(
            endpoint=settings.s3_endpoint,
            access_key=settings.s3_user.get_secret_value(),
            secret_key=settings.s3_password.get_secret_value(),
            region=settings.s3_region,
        ) as objects,
        UserCatalogue(settings.scicat_endpoint + "/api/v3", "alice", "alice") as user,
        httpx.AsyncClient(timeout=30, trust_env=False) as http,
    ):
        temporal = await Client.connect(settings.temporal_address, data_converter=pydantic_data_converter, lazy=True)
        yield Lab(stack, objects, user, temporal, http)


async def download(job: dict[str, Any], folder: Path) -> Path:
    """Run the job's download script with real bash; return the folder that it unpacked into."""
    script = base64.b64decode(job["jobResultObject"]["downloadScript"])
    bash = await asyncio.create_subprocess_exec(
        "bash", cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(bash.communicate(script), timeout=60)
    assert bash.returncode == 0, said.decode()
    return folder / "extracted"


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Deterministic bytes that do not compress."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - content for tests, no secret
