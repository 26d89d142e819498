"""A Temporal server as it is at first: setup makes the namespace, and a worker tells whether it polls."""

import asyncio
import socket
import time

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from cli.setup import prepare_temporal
from settings import Settings
from tests.fakes.stage import dev_server
from tests.lab import eventually
from worker.__main__ import reach
from worker.health import RECENT_S, complaints, polled_s_ago
from worker.versioning import deployment


@activity.defn
async def nothing() -> None:
    """What a worker without workflows needs."""


def at(client: Client, build: str = "", namespace: str = "default") -> Settings:
    address = client.service_client.config.target_host
    return Settings(temporal_address=address, temporal_namespace=namespace, worker_build_id=build)


async def test_setup_makes_a_namespace_that_is_not_there() -> None:
    async with await dev_server() as server:
        told = await prepare_temporal(at(server.client, namespace="archive"))
        assert told[0] == "Made the namespace archive."
        assert await prepare_temporal(at(server.client, namespace="archive")) == []


async def test_a_worker_waits_for_its_namespace_and_says_who_makes_it(caplog: pytest.LogCaptureFixture) -> None:
    async with await dev_server() as server:
        settings = at(server.client, namespace="archive")
        reaching = asyncio.create_task(reach(settings, asyncio.Event(), {}))

        async def is_told() -> bool:
            return "no namespace archive yet, trying again; `scopemarchiver setup` makes it" in caplog.text

        await eventually(is_told)
        await prepare_temporal(settings)
        client = await asyncio.wait_for(reaching, timeout=60)
        assert client is not None
        assert client.namespace == "archive"


@pytest.mark.parametrize("build", ["", "one"])
async def test_a_worker_is_healthy_while_it_polls(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await dev_server() as server:
        client, host = server.client, socket.gethostname()
        settings = at(client, build)
        monkeypatch.setenv("TEMPORAL_ADDRESS", settings.temporal_address)
        assert await complaints(["control"]) == ["no worker of this host polls control"]
        async with Worker(client, task_queue="control", activities=[nothing], deployment_config=deployment(settings)):
            assert await eventually(lambda: polled_s_ago(client, "control", host)) < RECENT_S
            assert await complaints(["control"]) == []
            assert await polled_s_ago(client, "control", f"not-{host}") is None
            later = time.time() + RECENT_S + 70
            monkeypatch.setattr(time, "time", lambda: later)
            assert [said.split(" (")[0] for said in await complaints(["control"])] == [
                "no worker of this host polls control"
            ]
