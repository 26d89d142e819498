"""A Temporal server with one worker of ours over the fake activities, and the people who press buttons.

On leaving, everything that ran is replayed from its history: a workflow that decides by anything else than its history
fails the test in which it ran.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import EventType, IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowHistory
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from activities.reporting import FinishedJob
from cli import binaries
from cli.stack import TEMPORAL_PACE, temporal_settings
from domain import names
from domain.lifecycle import JobType
from domain.orders import DatasetOrder, FilesOf, JobOrder, Limits, Subscriber, Timing, Writing
from domain.outcome import DatasetOutcome
from domain.progress import DatasetProgress, JobProgress
from tests.fakes.activities import World, activities
from tests.replay import recorded
from worker.bounding import Bounding
from worker.build import WORKFLOW_TASKS, WORKFLOWS
from workflows import queues, search_attributes

QUICK = Timing(
    retry_s=60,
    retry_initial_s=0.02,
    retry_longest_s=0.05,
    poll_initial_s=0.02,
    poll_longest_s=0.05,
    second_look_s=0.01,
    watch_s=0.1,
)
"""For a server whose clock is the wall's."""

_TYPES = {
    search_attributes.SCICAT_JOB_ID: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    search_attributes.TOTAL_BYTES: IndexedValueType.INDEXED_VALUE_TYPE_INT,
}


_RETENTION_S = 86_400

_LAST_MOMENTS = 50
"""Tenths of a second."""

_LAST_EVENTS = 20
"""Of a workflow that is left running, for whoever reads why the test failed."""

_kept: list[Worker] = []


class _Complaints(logging.Handler):
    """Keeps what the SDK complains about: failed workflow tasks, evictions that leave tasks behind."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "activation" in text.lower() or "evict" in text.lower() or "never retrieved" in text:
            self.said.append(f"{text}: {record.exc_info}")


@dataclass
class Stage:
    """Starts jobs and datasets, signals them, and asks them."""

    client: Client
    world: World
    timing: Timing
    limits: Limits = field(default_factory=Limits)
    writing: Writing = field(default_factory=Writing)
    sleep: Callable[[timedelta], Awaitable[None]] | None = None
    """Lets time pass on a server that skips it."""

    async def days(self, count: float) -> None:
        """Let so many days pass on a server that skips them."""
        assert self.sleep
        await self.sleep(timedelta(days=count))

    async def start_job(self, job_id: str, kind: JobType = JobType.ARCHIVE) -> WorkflowHandle[Any, FinishedJob | None]:
        """As the API does it."""
        return await self.client.start_workflow(
            f"{kind.value.capitalize()}Job",
            JobOrder(job_id=job_id, type=kind, timing=self.timing, writing=self.writing, limits=self.limits),
            id=names.job_workflow(job_id),
            task_queue=queues.CONTROL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            result_type=FinishedJob | None,  # pyright: ignore[reportArgumentType] - types of a union's kind are fine
        )

    async def join(
        self,
        pid: str,
        *jobs: str,
        kind: JobType = JobType.ARCHIVE,
        windowed: bool = False,
        files_of: FilesOf | None = None,
    ) -> "Dataset":
        """Start or join a dataset for jobs of which nothing else is known, as `join_datasets` does it."""
        order = DatasetOrder(pid=pid, timing=self.timing, writing=self.writing, limits=self.limits, files_of=files_of)
        handles = [
            await self.client.start_workflow(
                "ArchiveDataset" if kind is JobType.ARCHIVE else "RetrieveDataset",
                order,
                id=names.archive_workflow(pid) if kind is JobType.ARCHIVE else names.retrieve_workflow(pid),
                task_queue=queues.CONTROL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal="join",
                start_signal_args=[Subscriber(job_id=job, n=0, windowed=windowed)],
                result_type=DatasetOutcome,
            )
            for job in jobs
        ]
        # Only a handle that comes from a start lets time be skipped while its result is awaited.
        return Dataset(handles[-1])

    def job(self, job_id: str) -> WorkflowHandle[Any, FinishedJob | None]:
        """A job's workflow."""
        return self.client.get_workflow_handle(names.job_workflow(job_id), result_type=FinishedJob | None)  # pyright: ignore[reportArgumentType]

    def archiving(self, pid: str) -> "Dataset":
        """The archive of a dataset."""
        return Dataset(self.client.get_workflow_handle(names.archive_workflow(pid), result_type=DatasetOutcome))

    def retrieving(self, pid: str) -> "Dataset":
        """The retrieval of a dataset."""
        return Dataset(self.client.get_workflow_handle(names.retrieve_workflow(pid), result_type=DatasetOutcome))

    async def job_progress(self, job_id: str) -> JobProgress:
        """Ask a job where it stands."""
        return await self.job(job_id).query("progress", result_type=JobProgress)

    async def histories(self) -> tuple[list[WorkflowHistory], list[str]]:
        """Of the first and of the last run of every workflow that has ended; and those that had to be terminated."""
        found: list[WorkflowHistory] = []
        left: list[str] = []
        for workflow_id in self._ids():
            handle = self.client.get_workflow_handle(workflow_id)
            try:
                described = await handle.describe()
            except RPCError:
                continue
            # A job hears of a dataset's end from its last step, a moment before that dataset's workflow is over.
            for _ in range(_LAST_MOMENTS):
                if described.status is not WorkflowExecutionStatus.RUNNING:
                    break
                await asyncio.sleep(0.1)
                described = await handle.describe()
            else:
                events = (await handle.fetch_history()).events[-_LAST_EVENTS:]
                told = [EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in events]
                left.append(f"{workflow_id} (its last events: {', '.join(told)})")
                await handle.terminate()
                continue
            first = described.raw_description.workflow_execution_info.first_run_id or described.run_id
            for run_id in dict.fromkeys([first, described.run_id]):
                found.append(await self.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history())
        return found, left

    async def runs(self, dataset: "Dataset") -> list[WorkflowHistory]:
        """The histories of all runs of a dataset, the last one first."""
        found: list[WorkflowHistory] = []
        run_id = (await dataset.handle.describe()).run_id
        while run_id:
            handle = self.client.get_workflow_handle(dataset.handle.id, run_id=run_id)
            found.append(await handle.fetch_history())
            run_id = found[-1].events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        return found

    def _ids(self) -> Sequence[str]:
        jobs = map(names.job_workflow, self.world.catalogue.jobs)
        pids = list(self.world.held)
        return [*jobs, *map(names.archive_workflow, pids), *map(names.retrieve_workflow, pids)]


@dataclass
class Dataset:
    """The workflow of one dataset."""

    handle: WorkflowHandle[Any, DatasetOutcome]

    async def signal(self, name: str, *args: Any) -> None:
        """Press a button."""
        await self.handle.signal(name, args=list(args))

    async def cancel(self) -> None:
        """`temporal workflow cancel`."""
        await self.handle.cancel()

    async def progress(self) -> DatasetProgress:
        """Ask where it stands."""
        return await self.handle.query("progress", result_type=DatasetProgress)

    async def phase(self, *phases: str, within_s: float = 10) -> DatasetProgress:
        """Wait until it is in one of the phases."""
        await self.there()
        async with asyncio.timeout(within_s):
            while True:
                if (found := await self.progress()).phase in phases:
                    return found
                await asyncio.sleep(0.02)

    async def safe(self, count: int, within_s: float = 30) -> DatasetProgress:
        """Wait until so many datablocks are safe."""
        async with asyncio.timeout(within_s):
            while True:
                if (found := await self.progress()).safety.get("safe") == count:
                    return found
                await asyncio.sleep(0.02)

    async def quiet(self, within_s: float = 10) -> None:
        """Wait until it runs no step."""
        async with asyncio.timeout(within_s):
            while (await self.handle.describe()).raw_description.pending_activities:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.02)

    async def ended(self) -> DatasetOutcome:
        """Wait for its end; a server that skips time does so meanwhile."""
        await self.there()
        return await self.handle.result()

    async def there(self) -> None:
        """Wait until it was started."""
        async with asyncio.timeout(10):
            while True:
                try:
                    await self.handle.describe()
                    return
                except RPCError as error:
                    if error.status is not RPCStatusCode.NOT_FOUND:
                        raise
                await asyncio.sleep(0.02)

    async def running(self) -> bool:
        """Whether it has not ended."""
        return (await self.handle.describe()).status is WorkflowExecutionStatus.RUNNING


@asynccontextmanager
async def on_stage(
    client: Client, timing: Timing, limits: Limits | None = None, slots: Mapping[str, int] | None = None
) -> AsyncGenerator[Stage]:
    """A worker on all queues, with so many slots where it is said; on leaving, every history is replayed."""
    world = World(client)
    stage = Stage(client, world, timing, limits or Limits())
    complaints = _Complaints()
    logging.getLogger("temporalio").addHandler(complaints)
    steps = activities(world)
    workers = [
        Worker(
            client,
            task_queue=queue,
            workflows=WORKFLOWS if queue == queues.CONTROL else (),
            activities=steps,
            interceptors=[Bounding()],
            max_concurrent_workflow_tasks=WORKFLOW_TASKS,
            max_concurrent_activities=(slots or {}).get(queue),
            max_heartbeat_throttle_interval=timedelta(milliseconds=20),
            default_heartbeat_throttle_interval=timedelta(milliseconds=20),
        )
        for queue in queues.ALL
    ]
    try:
        async with AsyncExitStack() as running:
            for worker in workers:
                await running.enter_async_context(worker)
            yield stage
            histories, left = await stage.histories()
            if left:
                # The garbage collector would tear them down in the middle of other tests.
                _kept.extend(workers)
    finally:
        logging.getLogger("temporalio").removeHandler(complaints)
    assert not left, f"a test ends what it has started: {left}"
    assert not complaints.said, complaints.said
    recorded.keep(histories)
    replayer = Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter)
    for history in histories:
        await replayer.replay_workflow(history)


@asynccontextmanager
async def skipping() -> AsyncGenerator[WorkflowEnvironment]:
    """A server of its own that skips time while a result is awaited."""
    program = str(binaries.temporal_test_server())
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=program, data_converter=pydantic_data_converter
    ) as server:
        await _add_search_attributes(server.client, server.client.namespace)
        yield server


_shared: list[WorkflowEnvironment] = []
"""The server of this process, which `end_shared_server` ends."""


@asynccontextmanager
async def namespace() -> AsyncGenerator[Client]:
    """A namespace of its own on a real server: half a second cheaper than a server of its own."""
    if not _shared:
        _shared.append(await dev_server())
    server = _shared[0].client
    name = f"test-{uuid.uuid4()}"
    await server.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=Duration(seconds=_RETENTION_S))
    )
    await _add_search_attributes(server, name)
    yield await Client.connect(
        server.service_client.config.target_host, namespace=name, data_converter=pydantic_data_converter
    )


def end_shared_server() -> None:
    """When the tests of this process are over; left alone it would stay behind."""
    while _shared:
        asyncio.run(_shared.pop().shutdown())


async def dev_server(settings: Mapping[str, str] = MappingProxyType({})) -> WorkflowEnvironment:
    """A real server in memory with dynamic configuration of its own; stop it with `shutdown`."""
    return await WorkflowEnvironment.start_local(  # pyright: ignore[reportUnknownMemberType] - typed so by the SDK
        dev_server_existing_path=str(binaries.temporal()),
        dev_server_extra_args=temporal_settings({**TEMPORAL_PACE, **settings}),
        data_converter=pydantic_data_converter,
        search_attributes=search_attributes.ALL,
    )


async def _add_search_attributes(client: Client, namespace: str) -> None:
    types = {key.name: _TYPES.get(key, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD) for key in search_attributes.ALL}
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=namespace, search_attributes=types)
    )
