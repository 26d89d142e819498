"""No token, password or signature is left anywhere: not in a log, a history, an answer, a record of ours."""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from cli.ports import Ports
from cli.stack import Stack
from domain import names
from domain.lifecycle import JobStatus
from tests.ingestor import Ingestor, decoded, scicat_token, traded
from tests.lab import QUICK, Lab, some_bytes
from tests.secrecy import Secrets

FILES = {f"movie{n}.tif": some_bytes(7_000_000, n) for n in range(2)} | {"session.xml": b"<session/>"}

GIVEN_OUT = ("/token", "/s3/presignedUrls")
"""What answers with secrets, on purpose."""

LTS_PAGES = ("state", "requests")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """A stack of its own that says as much as it can."""
    talkative = QUICK | {"LOG_LEVEL": "debug", "UVICORN_LOG_LEVEL": "trace"}
    running = Stack(tmp_path_factory.mktemp("secrecy"), Ports.free(), talkative)
    asyncio.run(running.start())
    try:
        yield running
    finally:
        asyncio.run(running.stop())


@asynccontextmanager
async def hearing(http: httpx.AsyncClient, port: int) -> AsyncGenerator[dict[str, bytes]]:
    """Keep all that our API answers meanwhile, headers and bodies, by request."""
    heard: dict[str, bytes] = {}

    async def keep(answer: httpx.Response) -> None:
        # Two answers are secrets themselves: what they hold is looked for everywhere else.
        if answer.url.port == port and not (answer.status_code == 201 and answer.url.path in GIVEN_OUT):
            await answer.aread()
            name = f"answer {len(heard)} to {answer.request.method} {answer.url.path}: {answer.status_code}"
            heard[name] = f"{answer.headers.items()}\n{answer.text}".encode()

    http.event_hooks = {"response": [keep]}
    try:
        yield heard
    finally:
        http.event_hooks = {}


async def test_no_secret_is_left_anywhere(lab: Lab) -> None:
    settings, places = lab.stack.settings, dict[str, bytes]()
    secrets = Secrets.of_stack(lab.stack.folder)
    async with hearing(lab.http, settings.uvicorn_port) as heard:
        given_out, uploaded = await upload(lab)
        pid, job = await archive_and_retrieve(lab)
        await ask_for_what_is_refused(lab, pid, job)
        # What the job's result holds is for its owner; here it shows that this run's secrets would be found.
        result = job.pop("jobResultObject")
        assert "a presigned URL" in secrets.found_in(result["result"][0]["url"])
        assert "a presigned URL" in secrets.found_in(result["downloadScript"])
        signatures = re.findall(r"X-Amz-Signature=([0-9a-f]+)", str(result["result"]))
        assert len(signatures) == len(result["result"])
        given_out |= {f"signature {n}": word for n, word in enumerate(signatures)}
        secrets = Secrets.of_stack(lab.stack.folder, **given_out)
        for name, word in given_out.items():
            assert name in secrets.found_in(f"x{word}x")
        result["result"] = result["downloadScript"] = None

        places["the job in SciCat"] = str(job | result).encode()
        places["the dataset in SciCat"] = str(await lab.user.dataset(pid)).encode()
        places |= await histories(lab)
        places |= await records(lab)
        places |= {f"/admin/{what} of the LTS": (await lab.lts("GET", f"/admin/{what}")).content for what in LTS_PAGES}
        await lab.stack.kill("temporal")
        lost = await lab.api("POST", "/archiver/jobs", json={"id": str(uuid.uuid4()), "type": "archive"})
        assert lost.status_code == 500
    places |= heard
    places |= {log.name: log.read_bytes() for log in (lab.stack.folder / "logs").iterdir()}
    database = (lab.stack.folder / "data").glob("temporal.sqlite*")
    places["Temporal's database"] = b"".join(file.read_bytes() for file in database)

    # Nothing was looked through in vain.
    told = {
        f"history of archive-dataset/{pid}": pid,
        f"history of job/{job['id']}": job["id"],
        f"history of upload/{uploaded}": uploaded,
        "Temporal's database": pid,
        "worker-control.log": "DEBUG",
        "api.log": "/archiver/jobs",
        "scicat.log": "url action",
        "lts.log": "",
        "minio.log": "",
        "idp.log": "",
    }
    for place, word in told.items():
        assert word.encode() in places[place], place

    leaks = [
        f"{place} has {', '.join(sorted(found))}"
        for place, content in places.items()
        if (found := secrets.found_in(content))
    ]
    assert not leaks, "\n".join(leaks)


async def archive_and_retrieve(lab: Lab) -> tuple[str, dict[str, Any]]:
    """The main work with a stumble at every server; return the pid and the retrieve job."""
    refusal = {"kind": "status", "status": 401, "route": "/uploads", "count": 1}
    await lab.lts("POST", "/admin/faults", json=refusal)
    pid = await lab.archived(FILES)
    broken = await lab.dataset(FILES, upload=False)
    assert (await lab.ended(await lab.archive(broken)))["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    # SciCat refuses the result with its links a few times.
    fault = {"path_prefix": "/api", "path_contains": "jobs/", "method": "PATCH", "status": 500, "times": 3}
    await lab.scicat("POST", "/mock/faults", json=fault)
    job = await lab.ended(await lab.retrieve(pid))
    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL, job["jobResultObject"]
    return pid, job


async def upload(lab: Lab) -> tuple[dict[str, str], str]:
    """Uploads that go well, and badly in every way; return the secrets that they were given, and a dataset."""
    alices = await scicat_token(lab, "alice")
    said = (await traded(lab, alices)).json()
    secrets = {"alice's token": alices} | {name: said[name] for name in ("access_token", "refresh_token")}
    client = Ingestor(lab.http, f"http://127.0.0.1:{lab.stack.ports.api}", said["access_token"])
    pid = await lab.dataset(FILES, upload=False)
    named = {"dataset_id": pid, "object_name": names.raw_key(pid, "movie0.tif")}
    await client.ask("requestDatasetUpload", dataset_id=pid, dataset_size_gib=0)
    urls: list[str] = []
    for parts in (1, 2):
        begun = await client.ask("presignedUrls", **named, parts=parts)
        urls += begun["urls"]
        await client.put(begun["urls"][0], FILES["movie0.tif"])
    secrets |= {
        f"signature of upload {n}": word
        for n, url in enumerate(urls)
        for word in re.findall(r"X-Amz-Signature=([0-9a-f]+)", decoded(url))
    }
    assert len(secrets) == 3 + len(urls) == 6
    part = {"part_number": 1, "etag": urls[1][:200], "checksum_sha256": "x"}
    completion = {"upload_id": begun["upload_id"], "parts": [part], "checksum_sha256": "x"}
    answers = [
        # A signature that does not count, and one whose time is over.
        await lab.http.put(decoded(urls[0]).replace("movie0", "movie1"), content=b"x"),
        await lab.http.put(re.sub("X-Amz-Date=....", "X-Amz-Date=2020", decoded(urls[0])), content=b"x"),
        await client.post("completeUpload", **named, **completion),
        await client.post("completeUpload", **named, **completion | {"upload_id": decoded(urls[1])}),
        await client.post("presignedUrls", dataset_id=pid, object_name=said["access_token"], parts=1),
        await client.finalize(pid),
        await client.post("abortMultipartUpload", **named, upload_id=begun["upload_id"]),
        await client.post("abortDatasetUpload", dataset_id=pid),
        await Ingestor(lab.http, f"http://127.0.0.1:{lab.stack.ports.api}", said["access_token"][:-9]).finalize(pid),
        await traded(lab, alices[:-9]),
    ]
    assert [a.status_code for a in answers] == [403, 403, 500, 500, 422, 500, 201, 201, 401, 401]
    await client.ask("requestDatasetUpload", dataset_id=pid, dataset_size_gib=0)
    for path, content in FILES.items():
        await lab.upload(pid, {path: content})
    await lab.http.post(f"{lab.stack.settings.idp_url}/mock/faults", json={"path_contains": "token", "status": 401})
    assert (await traded(lab, alices)).status_code == 500
    fault = {"path_prefix": "/api", "path_contains": "jobs", "method": "POST", "status": 400, "times": 1}
    await lab.scicat("POST", "/mock/faults", json=fault)
    assert (await client.finalize(pid)).status_code == 500
    assert (await client.finalize(pid)).status_code == 201
    await lab.stack.kill("idp")
    assert (await traded(lab, alices)).status_code == 500
    return secrets, pid


async def ask_for_what_is_refused(lab: Lab, pid: str, job: dict[str, Any]) -> None:
    """Requests that fail in every way, with secrets in the wrong places."""
    settings = lab.stack.settings
    password = settings.operator_password.get_secret_value()
    url = job["jobResultObject"]["result"][0]["url"]
    token = {"Authorization": f"Bearer {settings.lts_token.get_secret_value()}"}
    answers = [
        await lab.api("GET", f"/archiver/jobs/{job['id']}"),
        await lab.api("GET", f"/archiver/datasets/{quote(pid)}"),
        await lab.api("GET", "/archiver/jobs"),
        await lab.api("GET", "/archiver/jobs", auth=("scicat", password)),
        await lab.api("GET", "/archiver/jobs", auth=None, headers=token),
        await lab.api("POST", "/archiver/jobs", json={"id": url, "type": password}),
        await lab.api("POST", "/archiver/jobs", content=f'{{"id": "{password}'),
        await lab.api("POST", "/archiver/datasets/pause", json={"pid": {"password": password}}),
        await lab.api("POST", "/archiver/datasets/pause", json={"pid": pid, "by": url * 2}),
        await lab.api("POST", "/archiver/datasets/pause", json={"pid": pid}),
        await lab.api("GET", "/health/readyz", auth=None),
        await lab.api("GET", "/openapi.json", auth=None),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 401, 401, 422, 422, 422, 422, 409, 200, 200]


async def histories(lab: Lab) -> dict[str, bytes]:
    """Every workflow that Temporal knows: its history, and what `describe` adds (memo, search attributes, failures)."""
    found: dict[str, bytes] = {}
    async for listed in lab.temporal.list_workflows(""):
        handle = lab.temporal.get_workflow_handle(listed.id, run_id=listed.run_id)
        history = await handle.fetch_history()
        name = f"history of {listed.id}"
        found[name] = found.get(name, b"") + b"\n".join(event.SerializeToString() for event in history.events)
        found[f"description of {listed.id} {listed.run_id}"] = (
            await handle.describe()
        ).raw_description.SerializeToString()
    async for schedule in await lab.temporal.list_schedules():
        described = await lab.temporal.get_schedule_handle(schedule.id).describe()
        found[f"schedule {schedule.id}"] = described.raw_description.SerializeToString()
    return found


async def records(lab: Lab) -> dict[str, bytes]:
    """Every object of the state bucket."""
    bucket = lab.stack.settings.s3_state_bucket
    keys = {version.key async for version in lab.objects.list_versions(bucket, "")}
    return {f"record {key}": await lab.objects.get(bucket, key) or b"" for key in keys}
