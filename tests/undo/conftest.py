"""One stack for the whole table, whose worker runs in the test's own process, where steps can be struck."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from cli.ports import Ports
from cli.stack import SERVERS, Stack
from tests.lab import QUICK, visit
from tests.undo.mishaps import Mishaps
from tests.undo.scene import Scene
from worker.beating import Beating
from worker.bounding import Bounding
from worker.build import world
from workflows import queues

SETTINGS = QUICK | {
    "LTS_POLL_S": "0.1",
    "ARCHIVER_TARGET_FILES": "2",
    "ARCHIVER_RETRY_INITIAL_S": "0.05",
    "WATCH_INTERVAL_S": "0.3",
    "LTS_PIN_LIFETIME_S": "5",
    "MOCK_LTS_EVICT_AFTER_MIGRATION_S": "600",
    # Nobody aborts an upload of whose id he never heard: it ends by itself.
    "MOCK_LTS_UPLOAD_EXPIRY_S": "6",
}

_kept: list[Worker] = []
"""The garbage collector would tear terminated workflows down in the midst of other tests."""

_BEAT = timedelta(milliseconds=20)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """All servers and our API, but no worker."""
    stack = Stack(tmp_path_factory.mktemp("undo"), Ports.free(), SETTINGS, (*SERVERS, "api"))
    asyncio.run(stack.start())
    try:
        yield stack
    finally:
        asyncio.run(stack.stop())


@pytest.fixture
async def scene(servers: Stack) -> AsyncGenerator[Scene]:
    """The stack with a worker of the test's own on all queues."""
    servers.check()
    mishaps = Mishaps()

    async def broke(error: BaseException) -> None:
        mishaps.worker_broke = error

    client = await Client.connect(servers.settings.temporal_address, data_converter=pydantic_data_converter)
    async with (
        visit(servers) as lab,
        world(servers.settings, client, queues.ALL) as work,
        AsyncExitStack() as running,
    ):
        workers = [
            Worker(
                client,
                task_queue=name,
                workflows=queue.workflows,
                activities=queue.activities,
                max_concurrent_activities=100,
                max_heartbeat_throttle_interval=_BEAT,
                default_heartbeat_throttle_interval=_BEAT,
                interceptors=[Bounding(), Beating(), mishaps],
                on_fatal_error=broke,
            )
            for name, queue in work.items()
        ]
        for worker in workers:
            await running.enter_async_context(worker)
        _kept.extend(workers)
        yield Scene(lab, mishaps)
        async for left in client.list_workflows('ExecutionStatus="Running"'):
            await client.get_workflow_handle(left.id).terminate()
