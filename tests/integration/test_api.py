"""The API as a process: what it needs to start, and what it answers with everything behind it."""

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from cli.ports import Ports
from tests.lab import Lab

CREDENTIALS = {
    "JOB_ENDPOINT_USERNAME": "scicat",
    "JOB_ENDPOINT_PASSWORD": "wetter-horn",
    "SCICAT_USER": "archiveManager",
    "SCICAT_PASSWORD": "schreck-horn",
    "S3_USER": "archiver",
    "S3_PASSWORD": "finster-aar",
    "S3_LINK_USER": "links",
    "S3_LINK_PASSWORD": "lauter-aar",
}


def start(folder: Path, *command: str, **differently: str) -> subprocess.CompletedProcess[str]:
    """Run one of our processes with all credentials, some of them wrong, and no config.toml; it must end by itself."""
    given = CREDENTIALS | differently
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = inherited | given | {"SECRETS_DIR": str(folder), "UVICORN_PORT": str(Ports.free().api)}
    return subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_no_process_starts_without_credentials_of_its_own(tmp_path: Path) -> None:
    """Neither without them, nor (as production is the default) with such as everybody knows."""
    cases = [
        (("api",), "JOB_ENDPOINT_USERNAME", ""),
        (("api",), "JOB_ENDPOINT_PASSWORD", ""),
        (("api",), "S3_PASSWORD", ""),
        (("api",), "S3_PASSWORD", "minioadmin"),
        (("worker", "--queue", "control"), "SCICAT_PASSWORD", ""),
        (("worker", "--queue", "control"), "SCICAT_PASSWORD", "aman"),
        (("worker", "--queue", "archival"), "S3_USER", ""),
    ]
    ended = await asyncio.gather(
        *(asyncio.to_thread(start, tmp_path, *command, **{name: value}) for command, name, value in cases)
    )
    for (command, name, value), process in zip(cases, ended, strict=True):
        assert process.returncode == 1, (command, name, process.stderr)
        [sentence] = process.stderr.splitlines()
        assert name in sentence
        assert sentence.endswith(".")
        assert not value or value not in sentence
        assert process.stdout == ""


async def test_a_worker_in_production_has_an_account_for_links(tmp_path: Path) -> None:
    without = {"S3_LINK_USER": "", "S3_LINK_PASSWORD": ""}
    ended = await asyncio.to_thread(start, tmp_path, "worker", "--queue", "control", **without)
    assert (ended.returncode, ended.stderr.splitlines()) == (
        1,
        [f"{name} must be set and not be empty." for name in without],
    )


async def test_everything_behind_the_api_is_ready(lab: Lab) -> None:
    ready = await lab.api("GET", "/health/readyz", auth=None)
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    alive = await lab.api("GET", "/health/livez", auth=None)
    assert (alive.status_code, alive.json()["status"]) == (200, "healthy")


async def test_a_job_keeps_its_type_after_it_has_ended(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    job_id = await lab.archive(pid)
    await lab.ended(job_id)
    again = await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "archive"})
    other = await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "retrieve"})

    assert again.status_code == 201
    assert again.json()["name"] == f"job/{job_id}"
    assert other.status_code == 422
    assert "ArchiveJob" in other.json()["detail"][0]["msg"]
    progress = (await lab.api("GET", f"/archiver/jobs/{job_id}")).json()
    assert (progress["type"], progress["run_id"]) == ("archive", again.json()["uuid"])


@pytest.mark.parametrize("auth", [None, ("scicat", "wrong"), ("", "")])
async def test_credentials_are_asked_for_before_anything_is_started(lab: Lab, auth: tuple[str, str] | None) -> None:
    job_id = str(uuid.uuid4())
    answer = await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "archive"}, auth=auth)
    assert (answer.status_code, answer.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
    unknown = await lab.api("GET", f"/archiver/jobs/{job_id}")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, f"no job {job_id} is known")
