"""Servers that die: before a job starts and in the middle of it. It is said what is missing, and the job ends well."""

import asyncio
import base64
import json
import signal
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from cli import setup
from cli.catalogue import OutOfReach
from cli.ports import HOST, Ports, is_free
from cli.processes import ProcessId
from cli.stack import Stack
from domain import names
from domain.lifecycle import JobStatus
from tests.lab import QUICK, Lab, eventually, some_bytes, troubles

# The stack below is started once, so all of these tests belong into one process.
pytestmark = pytest.mark.xdist_group("outages")

FILES = {f"movie{n}.tif": some_bytes(7_000_000, n) for n in range(3)} | {"session.xml": b"<session/>"}

ROOT_PATH = "/archiver/api/v1"
"""As behind a production proxy, which strips it: everything must work all the same."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """A stack of its own, since servers that die would disturb everybody else."""
    running = Stack(tmp_path_factory.mktemp("outages"), Ports.free(), QUICK | {"UVICORN_ROOT_PATH": ROOT_PATH})
    asyncio.run(running.start())
    try:
        yield running
    finally:
        asyncio.run(running.stop())


@asynccontextmanager
async def down(lab: Lab, server: str) -> AsyncGenerator[None]:
    """Without this server, which comes back whatever happens."""
    await lab.stack.kill(server)
    try:
        yield
    finally:
        await lab.stack.restart(server)


async def logged(lab: Lab, process: str, *words: str) -> None:
    """Wait for one line of the log that has all these words."""

    async def there() -> bool:
        return any(all(word in line for word in words) for line in lab.stack.log(process).read_text().splitlines())

    await eventually(there)


async def missing(lab: Lab) -> set[str]:
    """What the readiness probe names."""
    answer = await lab.api("GET", "/health/readyz", auth=None)
    if answer.status_code == 200:
        return set()
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    errors: list[dict[str, str]] = answer.json()["errors"]
    assert all(error["dependency"] in answer.json()["error"] and error["message"] for error in errors)
    return {error["dependency"] for error in errors}


async def slow(lab: Lab, direction: str, bytes_per_s: float = 4e6) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "slow", "direction": direction, "bytes_per_s": bytes_per_s})


async def moved(lab: Lab, pid: str, counter: str, at_least: int) -> None:
    """Wait until so many bytes of one of the dataset's datablocks went over the LTS's wire."""
    prefix = names.datablocks_prefix(pid)

    async def enough() -> bool:
        paths = (await lab.lts("GET", "/admin/requests")).json()["paths"]
        return any(counted[counter] >= at_least for path, counted in paths.items() if path.startswith(prefix))

    await eventually(enough)


async def assert_archived(lab: Lab, job_id: str, pid: str) -> None:
    job = await lab.ended(job_id, within_s=90)
    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL, job["jobResultObject"]
    assert await lab.landed(pid) == {}
    blocks = await lab.user.datablocks(pid)
    assert {block["archiveId"]: block["packedSize"] for block in blocks} == await lab.on_lts(pid)
    assert await lab.unpacked(pid) == FILES


@pytest.mark.long
@pytest.mark.fault("SciCat, MinIO and the LTS are down when a job starts", "named and waited for")
async def test_what_is_down_at_the_start_is_named_and_waited_for(lab: Lab) -> None:
    pid = await lab.dataset(FILES)
    await lab.stack.kill("worker-control")
    job_id = await lab.archive(pid)
    unasked = (await lab.api("GET", f"/archiver/jobs/{job_id}")).json()
    assert unasked["phase"] == "planning"
    # A worker that polled a moment ago may just be slow.
    assert unasked["note"].startswith(("no worker polls the queue control", "no worker answers on the queue control"))
    await asyncio.gather(*(lab.stack.kill(name) for name in ("minio", "lts", "scicat")))

    await lab.stack.restart("worker-control")
    await logged(lab, "worker-control", "open_job", job_id, "CatalogueUnavailable", "no answer")
    assert await missing(lab) == {"s3", "scicat"}
    said = troubles((await lab.api("GET", f"/archiver/jobs/{job_id}")).json())
    assert "open_job" in said
    assert "no answer" in said

    await lab.stack.restart("scicat")
    await logged(lab, "worker-control", "open_job", job_id, "ObjectStoreUnavailable")
    assert await missing(lab) == {"s3"}

    await lab.stack.restart("minio")
    await logged(lab, "worker-control", "open_block", pid, "TapeUnavailable")
    assert await missing(lab) == set()
    progress = (await lab.api("GET", f"/archiver/datasets/{quote(pid)}")).json()
    assert "open_block" in troubles(progress)
    assert len(await lab.landed(pid)) == len(FILES)

    await lab.stack.restart("lts")
    await assert_archived(lab, job_id, pid)


@pytest.mark.fault("Temporal is down when a job is posted", "the post fails visibly and can be repeated")
async def test_a_job_that_temporal_cannot_take_fails_visibly_and_can_be_posted_again(lab: Lab) -> None:
    pid, other = await lab.dataset(FILES), await lab.dataset({"a": b"a"})
    async with down(lab, "temporal"):
        named, answer, *submitted = await asyncio.gather(
            missing(lab),
            lab.api("POST", "/archiver/jobs", json={"id": str(uuid.uuid4()), "type": "archive"}),
            lab.archive(pid),
            lab.archive(other),
            return_exceptions=True,
        )
    assert named == {"temporal"}
    assert isinstance(answer, httpx.Response)
    assert answer.status_code == 500
    assert answer.json().keys() == {"code", "message", "details", "timestamp"}
    assert answer.json()["code"] == "TemporalUnavailable"
    for told in submitted:
        assert isinstance(told, OutOfReach)
        assert "A remote URL call failed" in str(told)

    jobs: list[dict[str, Any]] = (await lab.as_service("GET", "jobs")).json()
    by_pid = {job["datasetList"][0]["pid"]: job["id"] for job in jobs if job["jobStatusMessage"] == "jobSubmitted"}
    assert (await lab.api("POST", "/archiver/jobs", json={"id": by_pid[pid], "type": "archive"})).status_code == 201
    # What SciCat calls an archive is none because somebody says so.
    assert (await lab.api("POST", "/archiver/jobs", json={"id": by_pid[other], "type": "retrieve"})).status_code == 201
    await assert_archived(lab, by_pid[pid], pid)
    refused = await lab.ended(by_pid[other])
    assert refused["jobStatusMessage"] == JobStatus.UNSUCCESSFUL
    shown = (await lab.api("GET", f"/archiver/jobs/{by_pid[other]}")).json()
    assert "is of type 'archive' in SciCat, not 'retrieve'" in shown["message"]
    assert list(await lab.landed(other)) == ["a"]


@pytest.mark.parametrize(
    ("server", "dependency", "step", "error"),
    [
        pytest.param("minio", "s3", "", "ObjectStoreUnavailable", marks=pytest.mark.long),
        ("lts", "", "", "TapeUnavailable"),
        pytest.param("scicat", "scicat", "register_blocks", "CatalogueUnavailable", marks=pytest.mark.long),
        ("temporal", "temporal", "", ""),
    ],
    ids=["minio", "lts", "scicat", "temporal"],
)
@pytest.mark.fault(
    "a server is killed during an archive", "said in the log and by the readiness probe, then it goes on"
)
async def test_an_archive_survives_a_server_killed_in_the_middle(
    lab: Lab, server: str, dependency: str, step: str, error: str
) -> None:
    pid = await lab.dataset(FILES)
    await slow(lab, "in")
    job_id = await lab.archive(pid)
    await moved(lab, pid, "received", 2_000_000)
    async with down(lab, server):
        named, asked = await asyncio.gather(missing(lab), lab.api("GET", f"/archiver/datasets/{quote(pid)}"))
        assert named == ({dependency} - {""})
        if server == "temporal":
            assert (asked.status_code, asked.json()["code"]) == (500, "TemporalUnavailable")
        else:
            assert asked.status_code == 200
            await logged(lab, "worker-control" if step else "worker-archival", step, pid, error)
        if server != "minio":
            assert len(await lab.landed(pid)) == len(FILES)
    await lab.lts("DELETE", "/admin/faults")

    await assert_archived(lab, job_id, pid)


@pytest.mark.parametrize(
    "server", [*(pytest.param(server, marks=pytest.mark.long) for server in ("minio", "lts")), "temporal"]
)
@pytest.mark.fault("a server is killed during a retrieval", "it goes on, and no pin is left")
async def test_a_retrieval_survives_a_server_killed_in_the_middle(lab: Lab, server: str) -> None:
    pid = await lab.archived(FILES)
    await slow(lab, "out")
    job_id = await lab.retrieve(pid)
    await moved(lab, pid, "sent", sum(map(len, FILES.values())) // 3 + 2_000_000)
    async with down(lab, server):
        if server == "temporal":
            assert await missing(lab) == {"temporal"}
        else:
            await logged(lab, "worker-retrieval", "copy_block", pid, "Unavailable")
    await lab.lts("DELETE", "/admin/faults")

    job = await lab.ended(job_id, within_s=90)
    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL, job["jobResultObject"]
    assert await lab.unpacked(pid) == FILES
    state = (await lab.lts("GET", "/admin/state")).json()
    assert [pin for pin in state["pins"] if pid in pin["path"]] == []


@pytest.mark.long
@pytest.mark.fault("Temporal loses all that it knew, in the midst of an archive", "posted again, the job ends well")
async def test_a_job_is_posted_again_when_temporal_has_lost_everything(lab: Lab) -> None:
    """As after a power cut, where its database is not on the disk yet; what is in the stores still counts."""
    pid = await lab.dataset(FILES)
    await slow(lab, "in")
    job_id = await lab.archive(pid)
    await moved(lab, pid, "received", 4_000_000)
    await lab.stack.kill("temporal")
    for file in (lab.stack.folder / "data").glob("temporal.sqlite*"):
        file.unlink()
    await lab.stack.restart("temporal")
    await setup.prepare_temporal(lab.stack.settings)
    assert (await lab.api("GET", f"/archiver/jobs/{job_id}")).status_code == 404
    await lab.lts("DELETE", "/admin/faults")

    assert (await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "archive"})).status_code == 201

    await assert_archived(lab, job_id, pid)


@pytest.mark.fault("the API is told to stop in the midst of a request", "it is answered, and nothing new is taken")
async def test_the_api_answers_what_it_has_taken_before_it_stops(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    job_id = await lab.archive(pid)
    first = await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "archive"})
    settings, port = lab.stack.settings, lab.stack.ports.api
    account = f"{settings.job_endpoint_username.get_secret_value()}:{settings.job_endpoint_password.get_secret_value()}"
    body = json.dumps({"id": job_id, "type": "archive"}).encode()
    head = [
        "POST /archiver/jobs HTTP/1.1",
        f"Host: {HOST}",
        f"Authorization: Basic {base64.b64encode(account.encode()).decode()}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Expect: 100-continue",
    ]
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write("\r\n".join([*head, "", ""]).encode())
    async with asyncio.timeout(30):
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        process = ProcessId.of(lab.stack.pid("api"))
        assert process

        lab.stack.signal("api", signal.SIGTERM)

        async def closed() -> bool:
            return is_free(port)

        await eventually(closed)
        await logged(lab, "api", "Waiting for connections to close")
        assert process.alive
        writer.write(body)
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == first.json()

    async def gone() -> bool:
        return not process.alive

    await eventually(gone, within_s=10)
    await lab.stack.restart("api")
    assert (await lab.ended(job_id))["jobStatusMessage"] == JobStatus.SUCCESSFUL
