"""A stack seen through proxies: every byte is counted, and a process can be killed at any of them."""

import signal
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

from activities.copying import USEFUL_BUFFERS
from api.orders import job_order
from cli.ports import Ports
from cli.processes import ProcessId
from domain import names
from domain.lifecycle import JobType
from domain.orders import DatasetOrder, JobOrder, Writing
from tests.fakes.proxy import CountingProxy, Direction, Hold
from tests.lab import Lab, eventually

CHUNK = 5 * 2**20
BUFFERS = USEFUL_BUFFERS
"""Units that one copy has in its hands."""

GONE_WITHIN_S = 10
"""A worker that is told to stop is gone within this time: that is the promise."""

HEARTBEAT_S = 4.0
"""A dead worker is noticed after this time; shorter than the service's, for patience's sake."""


@contextmanager
def lines(ports: Ports) -> Generator[tuple[CountingProxy, CountingProxy]]:
    """Proxies in front of MinIO and the LTS."""
    own = Ports.free()
    with ExitStack() as stack:
        s3 = stack.enter_context(CountingProxy(own.minio, ports.minio).running())
        lts = stack.enter_context(CountingProxy(own.lts, ports.lts).running())
        yield s3, lts


@dataclass(frozen=True)
class Site:
    """A lab, and the lines to its stores."""

    lab: Lab
    s3: CountingProxy
    lts: CountingProxy

    # Jobs whose datasets were started before them, with a packing and a timing of the test's own.

    async def archive(
        self,
        pid: str,
        *,
        target_bytes: int = 10**12,
        target_files: int = 20_000,
        writing: Writing | None = None,
        **timing: float,
    ) -> str:
        """Submit an archive job; by default all files go into one datablock."""
        order = job_order(self.lab.stack.settings, "", JobType.ARCHIVE)
        packing = order.packing.model_copy(update={"target_bytes": target_bytes, "target_files": target_files})
        order = order.model_copy(update={"packing": packing, "writing": writing or Writing()})
        async with self._begun("ArchiveDataset", names.archive_workflow(pid), order, pid, timing):
            return await self.lab.archive(pid)

    async def retrieve(self, pid: str, **timing: float) -> str:
        """Submit a retrieve job."""
        order = job_order(self.lab.stack.settings, "", JobType.RETRIEVE)
        async with self._begun("RetrieveDataset", names.retrieve_workflow(pid), order, pid, timing):
            return await self.lab.retrieve(pid)

    def _begun(
        self, kind: str, workflow_id: str, order: JobOrder, pid: str, timing: Mapping[str, float]
    ) -> AbstractAsyncContextManager[None]:
        own = DatasetOrder(
            pid=pid,
            timing=order.timing.model_copy(update={"heartbeat_s": HEARTBEAT_S, **timing}),
            packing=order.packing,
            writing=order.writing,
            limits=order.limits,
        )
        return self.lab.begun(kind, workflow_id, own)

    async def good(self, job_id: str, *, within_s: float = 60) -> None:
        """Wait until the job has ended well."""
        job = await self.lab.ended(job_id, within_s=within_s)
        assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]

    # What went over the lines since the test began.

    def source_read(self, pid: str) -> int:
        """Bytes of the dataset's files that left the landing zone."""
        return self.s3.bytes_of(lambda request: is_source(request) and names.raw_prefix(pid) in request, "out")

    def lts_written(self) -> int:
        """Bytes that were sent to the LTS, taken or not."""
        return self.lts.bytes_of(is_write, "in")

    def lts_read(self) -> int:
        """Bytes of files that left the LTS."""
        return self.lts.bytes_of(is_read, "out")

    def delivered(self) -> int:
        """Bytes of parts that were sent to the retrieval bucket."""
        return self.s3.bytes_of(is_part, "in")

    async def strike(self, blows: Sequence["Blow"], begin: Callable[[], Awaitable[str]]) -> str:
        """Kill each process at its byte of the work that `begin` starts, and start it again; return the job's id."""
        with ExitStack() as stack:
            waiting = {
                stack.enter_context(self._line(blow).hold(blow.about, blow.direction, blow.place, cut=True)): blow
                for blow in blows
            }
            job = await begin()
            while waiting:
                hold = await reached(*waiting)
                victim = waiting.pop(hold).victim
                await self.lab.stack.kill(victim)
                hold.let_go()
                await self.lab.stack.restart(victim)
        return job

    async def told_to_stop(self, worker: str) -> Callable[[], Awaitable[bool]]:
        """Send SIGTERM; return what waits for the end of the process, no longer than is promised."""
        process = ProcessId.of(self.lab.stack.pid(worker))
        self.lab.stack.signal(worker, signal.SIGTERM)

        async def gone() -> bool:
            return process is None or not process.alive

        async def wait() -> bool:
            return await eventually(gone, within_s=GONE_WITHIN_S)

        return wait

    def _line(self, blow: "Blow") -> CountingProxy:
        return self.s3 if blow.about in (is_source, is_part) else self.lts

    def forget(self) -> None:
        """Count from zero."""
        self.s3.forget()
        self.lts.forget()


@dataclass(frozen=True)
class Blow:
    """Which process dies, and when: after so many bytes of these bodies."""

    victim: str
    about: Callable[[str], bool]
    direction: Direction
    place: int


def is_source(request: str) -> bool:
    return request.startswith("GET /landingzone/")


def is_write(request: str) -> bool:
    return request.startswith("PATCH /uploads/")


def is_read(request: str) -> bool:
    return request.startswith("GET /files/")


def is_part(request: str) -> bool:
    return request.startswith("PUT /retrieval/") and "partNumber=" in request


async def attempts_after(handle: WorkflowHandle[Any, Any], step: str) -> list[str]:
    """Of each time that a step took several attempts: what the last but one failed with."""
    scheduled: set[int] = set()
    found: list[str] = []
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            if event.activity_task_scheduled_event_attributes.activity_type.name == step:
                scheduled.add(event.event_id)
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            if started.scheduled_event_id in scheduled and started.attempt > 1:
                failure = started.last_failure
                found.append(failure.application_failure_info.type or failure.message)
    return found


async def reached(*holds: Hold, within_s: float = 30) -> Hold:
    """Wait until a line is held, and say which."""

    async def there() -> Hold | None:
        return next((hold for hold in holds if hold.reached.is_set()), None)

    return await eventually(there, within_s=within_s, every_s=0.005)
