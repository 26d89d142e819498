"""docker-compose.yml run for real, by podman: `make test-compose`.

The servers are Temporal on PostgreSQL, MinIO, traefik and Prometheus, in containers as the compose file has them, with
the stand-ins of the profile `development` around them. Where a registry's image cannot be had, a local one is made
under its name (tests/compose/standins.py); the report at the end says what really ran, and what could not.

Everything that a user does goes by the published addresses: uploads and downloads by traefik's S3 port, the API below
traefik's prefix, the pretend SciCat by its own port.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client

from cli.catalogue import OutOfReach, Refused
from cli.client import download_script_of, upload
from cli.demo import compare, localities, run_script
from cli.following import follow
from cli.ingest import open_zone, scan
from domain import names
from domain.lifecycle import JobStatus, Phase
from tests.compose import standins
from tests.compose.engine import inspect, podman
from tests.compose.system import FILES, System, services_of
from tests.lab import eventually

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("compose")]

WATCHED = {"api", "worker-control", "worker-archival", "worker-retrieval", "temporal", "minio", "traefik"}
"""Prometheus's jobs, by its configuration."""


class User:
    """Alice: she uploads a folder, asks for an archive and a retrieval of it, and looks how far they are."""

    def __init__(self, system: System, folder: Path) -> None:
        self._connection = system.user
        self._inventory, self._source = scan(folder), folder

    async def upload(self) -> str:
        """Register the folder and upload it; return the pid."""
        return await upload(self._connection, self._inventory, name="composed", source=str(self._source))

    async def ask(self, kind: str, pid: str) -> str:
        """Ask for an archive or a retrieval; return the job's id."""
        async with self._connection.catalogue() as catalogue:
            return await catalogue.create_job(kind, [pid])

    async def sees(self, pid: str, phase: Phase) -> None:
        """Wait until the dataset is in this phase, by the API."""
        async with self._connection.api() as api:

            async def there() -> bool:
                with contextlib.suppress(OutOfReach, Refused):  # not up again, or not begun
                    return (await api.dataset(pid))["phase"] == phase
                return False

            await eventually(there, within_s=120, every_s=0.2)

    async def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until the job has ended well; return it."""
        async with self._connection.catalogue() as catalogue, self._connection.api() as api:
            job = await follow(job_id, catalogue=catalogue, api=api, on_look=lambda _: None, interval_s=0.5)
        assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL, job["jobResultObject"]
        return job

    async def on_tape_only(self, pid: str) -> None:
        """Wait until no datablock of the dataset is on the LTS's disks any more."""
        async with self._connection.catalogue() as catalogue:
            blocks = [str(block["archiveId"]) for block in await catalogue.datablocks(pid)]
        assert len(blocks) > 1

        async def there() -> bool:
            return set((await localities(self._connection, blocks)).values()) == {"TAPE"}

        await eventually(there, within_s=60, every_s=0.2)

    async def left(self, pid: str) -> list[str]:
        """What the landing zone still holds of the dataset."""
        async with open_zone(self._connection.zone) as s3:
            found = await s3.list_object_versions(Bucket=self._connection.landing_bucket, Prefix=names.raw_prefix(pid))
        return [str(version.get("Key")) for version in found.get("Versions", [])]

    async def differences(self, job: dict[str, Any], work: Path) -> list[str]:
        """Fetch by the job's own script what it brought back; what is not as it was."""
        assert await run_script(download_script_of(job), work, work / "extracted")
        return compare(self._inventory, work / "extracted")


@contextlib.asynccontextmanager
async def fault(system: System, kind: str, **fields: Any) -> AsyncGenerator[None]:
    """The pretend tape library misbehaves in this way meanwhile."""
    account = {"Authorization": f"Bearer {system.secret('lts_token')}"}
    async with httpx.AsyncClient(base_url=system.lts, headers=account, trust_env=False) as library:
        answer = await library.post("/admin/faults", json={"kind": kind, **fields})
        assert answer.is_success, answer.text
        yield
        await eventually(lambda: _lifted(library), within_s=60)


async def _lifted(library: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await library.delete("/admin/faults")).is_success
    return False


def test_what_is_left_out_is_what_nothing_stands_in_for(system: System) -> None:
    images = {name: service["image"] for name, service in services_of(FILES[:2]).items() if "build" not in service}
    assert system.left_out == sorted(
        name for name, image in images.items() if standins.repository(image) not in standins.STAND_INS
    )


def test_nobody_has_rights_that_it_can_do_without(system: System) -> None:
    for service, container in system.containers().items():
        if not container.running:
            continue
        status = Path(f"/proc/{container.pid}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines())
        assert "0" not in facts["Uid"].split(), service
        assert (int(facts["CapEff"], 16), facts["NoNewPrivs"]) == (0, "1"), service
        [host] = [facts["HostConfig"] for facts in inspect(container.name)]
        assert host["ReadonlyRootfs"], service
        assert host["Memory"] > 0, service


def test_a_second_up_and_a_second_set_up_change_nothing(system: System) -> None:
    def servers() -> dict[str, tuple[str, str]]:
        return {name: (c.name, c.started) for name, c in system.containers().items() if c.running}

    before = servers()
    system.up()
    assert servers() == before
    assert not [line for line in system.setup().splitlines() if line.startswith(("Made", "Registered", "Started"))]


@pytest.mark.parametrize(
    ("path", "leads_to", "says"),
    [
        ("/api/v1/docs", "", "swagger"),
        ("/archiver/api/v1/docs", "", "swagger"),
        ("/archiver/api/v1/openapi.json", "", "/archiver/jobs"),
        ("/temporal-ui", "/temporal-ui/", ""),
        ("/temporal-ui/", "", "Temporal"),
        ("/minio/", "", "MinIO"),
        ("/traefik/dashboard", "/traefik/dashboard/", ""),
        ("/traefik/dashboard/", "", "Traefik"),
    ],
)
def test_addresses_behind_traefik(system: System, path: str, leads_to: str, says: str) -> None:
    answer = httpx.get(system.http + path, trust_env=False, timeout=30)
    if leads_to:
        assert answer.is_redirect
        assert answer.headers["location"] == system.http + leads_to
    else:
        assert answer.status_code == 200
        assert says.lower() in answer.text.lower()


async def test_prometheus_hears_of_every_server_that_runs(system: System) -> None:
    ask = ("wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/query?query=up==1")

    async def silent() -> set[str]:
        said = json.loads(await asyncio.to_thread(podman, "exec", system.containers()["prometheus"].name, *ask))
        return WATCHED - {series["metric"]["job"] for series in said["data"]["result"]}

    async def all_heard() -> bool:
        return not await silent()

    await eventually(all_heard, within_s=90, every_s=1)


async def test_clients_that_ask_for_glacier_are_served_all_the_same(system: System) -> None:
    zone = system.user.zone
    async with open_zone(zone) as s3:
        key = "by a presigned link"
        url = await s3.generate_presigned_url("put_object", Params={"Bucket": zone.bucket, "Key": key})
        assert url.startswith(system.s3)
        async with httpx.AsyncClient(headers={"x-amz-storage-class": "GLACIER"}, trust_env=False) as client:
            answer = await client.put(url, content=b"cold")
        assert answer.is_success, answer.text
        await s3.delete_object(Bucket=zone.bucket, Key=key)


async def test_a_restart_of_every_container_in_the_middle_costs_no_byte(
    system: System, session: Path, tmp_path: Path
) -> None:
    user = User(system, session)
    pid = await user.upload()
    async with fault(system, "slow", direction="in", bytes_per_s=1 << 20):
        job = await user.ask("archive", pid)
        await user.sees(pid, Phase.WRITING)
        before = system.containers()
        await asyncio.to_thread(system.restart)
        after = system.containers()
    assert all(after[name].started > was.started for name, was in before.items() if was.running)
    await asyncio.to_thread(system.wait_until_healthy)
    await user.ended(job)
    assert await user.left(pid) == []
    await user.on_tape_only(pid)

    brought_back = await user.ended(await user.ask("retrieve", pid))
    assert await user.differences(brought_back, tmp_path) == []


async def test_temporal_and_its_database_are_killed_in_the_middle_of_a_recall(
    system: System, session: Path, tmp_path: Path
) -> None:
    user = User(system, session)
    pid = await user.upload()
    await user.ended(await user.ask("archive", pid))
    await user.on_tape_only(pid)
    async with fault(system, "recall_stuck"):
        job = await user.ask("retrieve", pid)
        await user.sees(pid, Phase.RECALLING)
        run = await _run_of(system, pid)
        before = system.containers()
        system.kill("temporal", "postgres")
        await eventually(lambda: _came_back(system, before, "temporal", "postgres"), within_s=120)
        await asyncio.to_thread(system.wait_until_healthy)
        await user.sees(pid, Phase.RECALLING)
        assert await _run_of(system, pid) == run
    brought_back = await user.ended(job)
    assert await user.differences(brought_back, tmp_path) == []


async def _run_of(system: System, pid: str) -> str:
    """The run id of the dataset's retrieval, as Temporal's published address knows it."""
    temporal = await Client.connect(system.temporal)
    described = await temporal.get_workflow_handle(names.retrieve_workflow(pid)).describe()
    return described.run_id


async def _came_back(system: System, before: dict[str, Any], *services: str) -> bool:
    """Whether each of them runs again, as another process."""
    now = await asyncio.to_thread(system.containers)
    return all(now[name].running and now[name].pid != before[name].pid for name in services)
