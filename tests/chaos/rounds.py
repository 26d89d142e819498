"""One round: a user archives ten datasets and retrieves them while processes die; then everything is looked at."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause

from cli.catalogue import OutOfReach, Refused
from cli.ports import Ports
from cli.stack import WORKERS, Stack
from domain import names
from tests.chaos.plan import Blow, Plan
from tests.fakes.proxy import CountingProxy
from tests.faults.site import lines
from tests.lab import FINISHED, QUICK, Lab, eventually, some_bytes, visit

T = TypeVar("T")
S = TypeVar("S", list[str], dict[str, str])

Ring = tuple[Stack, Sequence[CountingProxy]]

DATASETS = 10
HEARTBEAT_S = 3
PIN_S = 12
"""A pin whose answer was lost ends by itself; renewed long before that while it is needed."""
UPLOAD_S = 20
"""An upload whose answer was lost ends by itself, like one that nobody writes to."""

SETTINGS = QUICK | {
    "HEARTBEAT_TIMEOUT_S": str(HEARTBEAT_S),
    "LTS_PIN_LIFETIME_S": str(PIN_S),
    "MOCK_LTS_UPLOAD_EXPIRY_S": str(UPLOAD_S),
}

JOB_S = 150
"""Longer than any job of a round may take: something hangs."""

OURS = ("job/", "archive-dataset/", "retrieve-dataset/")
"""Workflows that end; others, of schedules for instance, may run for ever."""

BROKEN = re.compile(
    r"Failed (activation|handling activation|converting activation|encoding completion) .*", re.IGNORECASE
)
"""What the SDK logs when a workflow's own code fails."""

OUT_OF_REACH = (OutOfReach, Refused, httpx.TransportError)


@dataclass
class Report:
    """How a round went."""

    plan: Plan
    struck: list[Blow] = field(default_factory=list[Blow])
    missed: list[Blow] = field(default_factory=list[Blow])
    """Those whose place never came: the job had ended."""
    presses: int = 0
    """Times that a job was asked for again, since asking had failed."""
    expired: int = 0
    """Pins and uploads on the LTS whose answers were lost: they ended by themselves."""
    seconds: float = 0
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return f"{self.plan}\n" + "\n".join(f"- {problem}" for problem in self.problems)

    @property
    def kills(self) -> Counter[str]:
        """Times that each process was killed."""
        return Counter(victim for blow in self.struck for victim in blow.victims)


def contents_of(seed: int) -> list[dict[str, bytes]]:
    """The datasets of a round: most of them small, one of two datablocks, one with a file of several chunks."""
    chance = random.Random(seed)  # noqa: S311 - content for tests, no secret

    def some(size: int) -> bytes:
        return some_bytes(size, chance.randrange(2**32))

    def small() -> dict[str, bytes]:
        return {f"frame {n}.tif": some(chance.randrange(300_000)) for n in range(chance.randint(1, 3))}

    large = {f"movie{n}.mrc": some(5_000_000) for n in range(3)}
    long = {"long.mrc": some(11_000_000), "empty.txt": b""}
    return [large, long, *(small() for _ in range(DATASETS - 2))]


@contextmanager
def ring(folder: Path) -> Generator[Ring]:
    """A stack that is there to be killed, behind proxies that count by how far a job has come."""
    ports = Ports.free()
    with lines(ports) as (s3, lts):
        stack = Stack(folder, ports, SETTINGS | {"S3_ENDPOINT": s3.url, "LTS_ENDPOINT": lts.url})
        asyncio.run(stack.start())
        try:
            yield stack, (s3, lts)
        finally:
            asyncio.run(stack.stop())


async def round_of(ring: Ring, plan: Plan) -> Report:
    """Run one round; what went wrong stands in the report.

    Raises:
        StackError: a process ended that nobody told to.
    """
    stack, proxies = ring
    report = Report(plan)
    began = time.monotonic()
    said = {name: stack.log(name).stat().st_size for name in WORKERS}
    async with visit(stack) as lab:
        try:
            await _Round(lab, proxies, report).run()
        except AssertionError as failed:
            report.problems.append(str(failed).partition("\n")[0])
    report.problems += _broken_workflows(stack, said)
    stack.check()
    report.seconds = time.monotonic() - began
    return report


def _broken_workflows(stack: Stack, said: Mapping[str, int]) -> Iterator[str]:
    """What the workers have said since then of workflows whose own code fails."""
    for name, start in said.items():
        log = stack.log(name).read_bytes()[start:].decode(errors="replace")
        yield from (f"{name} says: {match.group()}" for match in BROKEN.finditer(log))


class _Round:
    """The user, whoever kills, and the observer of one round."""

    def __init__(self, lab: Lab, proxies: Sequence[CountingProxy], report: Report) -> None:
        self._lab, self._proxies, self._report = lab, proxies, report
        self._contents: dict[str, Mapping[str, bytes]] = {}
        self._heard: list[bytes] = []
        """Results of steps, as they stand in the histories."""

    async def run(self) -> None:
        """Archive, retrieve, look."""
        plan = self._report.plan
        datasets = contents_of(plan.seed)
        pids = await asyncio.gather(*map(self._lab.dataset, datasets))
        self._contents = dict(zip(pids, datasets, strict=True))
        archived = await self._carry_out("archive", plan.archive)
        retrieved = await self._carry_out("retrieve", plan.retrieve)
        problems = self._report.problems
        for job in (archived, retrieved):
            problems += [problem async for problem in self._job_problems(job)]
        for pid in pids:
            problems += [problem async for problem in self._dataset_problems(pid, retrieved)]
        problems += [problem async for problem in self._leftovers()]

    # The user.

    async def _carry_out(self, kind: str, blows: Sequence[Blow]) -> dict[str, Any]:
        """Ask for a job while blows fall, and wait until it is finished."""
        first_fell, over = asyncio.Event(), asyncio.Event()
        striking = asyncio.create_task(self._strike(blows, first_fell, over))
        try:
            if blows and not blows[0].at:
                await first_fell.wait()
            job_id = await self._press(kind)
            return await patiently(lambda: self._finished(job_id), within_s=JOB_S)
        finally:
            over.set()
            await striking

    async def _finished(self, job_id: str) -> dict[str, Any] | None:
        job = await self._lab.user.job(job_id)
        return job if job["jobStatusMessage"] in FINISHED else None

    async def _press(self, kind: str) -> str:
        """Submit a job as often as it takes; one that SciCat has taken is the same job when it is sent again."""
        try:
            return await self._lab.user.create_job(kind, list(self._contents))
        except OUT_OF_REACH:
            self._report.presses += 1
        jobs = await patiently(lambda: self._jobs(kind))
        if not jobs[0]:
            await asyncio.sleep(0.1)
            return await self._press(kind)
        job_id: str = jobs[0][0]["id"]
        await patiently(lambda: self._send_again(job_id, kind))
        return job_id

    async def _jobs(self, kind: str) -> tuple[list[dict[str, Any]]]:
        """SciCat's jobs of this kind for the round's datasets; wrapped, since none is an answer too."""
        listed: list[dict[str, Any]] = (await self._lab.as_service("GET", "jobs")).json()
        mine = {*self._contents}
        return ([j for j in listed if j["type"] == kind and {d["pid"] for d in j["datasetList"]} == mine],)

    async def _send_again(self, job_id: str, kind: str) -> str | None:
        """What SciCat's action does, once more; the answer's run id."""
        answer = await self._lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": kind})
        if answer.status_code == 201:
            return str(answer.json()["uuid"])
        self._report.presses += 1
        return None

    # Whoever kills.

    @property
    def _requests(self) -> int:
        """Requests that the stores ever had."""
        return sum(proxy.begun for proxy in self._proxies)

    async def _strike(self, blows: Sequence[Blow], first_fell: asyncio.Event, over: asyncio.Event) -> None:
        stack, start = self._lab.stack, self._requests
        for blow in blows:
            while self._requests - start < blow.at and not over.is_set():  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.005)
            if over.is_set():
                self._report.missed.append(blow)
                continue
            await asyncio.gather(*map(stack.kill, blow.victims))
            self._report.struck.append(blow)
            first_fell.set()
            await asyncio.sleep(blow.down_s)
            await asyncio.gather(*map(stack.restart, blow.victims))

    # The observer.

    async def _job_problems(self, job: Mapping[str, Any]) -> AsyncGenerator[str]:
        job_id, kind = job["id"], job["type"]
        if job["jobStatusMessage"] != "finishedSuccessful":
            yield f"the {kind} job is {job['jobStatusMessage']}: {job['jobResultObject']}"
        [jobs] = await self._jobs(kind)
        if len(jobs) != 1:
            yield f"{len(jobs)} {kind} jobs stand in SciCat"
        again = await self._send_again(job_id, kind)
        runs = [run.run_id async for run in self._lab.temporal.list_workflows(f'WorkflowId = "job/{job_id}"')]
        if runs != [again]:
            yield f"the {kind} job has the runs {runs}, and is said to be {again}"

    async def _dataset_problems(self, pid: str, retrieved: Mapping[str, Any]) -> AsyncGenerator[str]:
        lab = self._lab
        if differing := list(_differences(self._contents[pid], await lab.contents(retrieved, pid))):
            yield f"{pid} came back otherwise: {', '.join(differing)}"
        if landed := await lab.landed(pid):
            yield f"{pid} was not freed: {', '.join(landed)}"
        registered = {block["archiveId"]: block["packedSize"] for block in await lab.user.datablocks(pid)}
        if (stored := await lab.on_lts(pid)) != registered:
            yield f"{pid} is {registered} in SciCat and {stored} on the LTS"
        buckets = (lab.stack.settings.s3_retrieval_bucket, lab.stack.settings.s3_landingzone_bucket)
        for bucket in buckets:
            for archive_id in registered:
                if uploads := await lab.objects.open_uploads(bucket, archive_id, [archive_id]):
                    yield f"{len(uploads)} uploads of {archive_id} are open in {bucket}"
        life = await lab.lifecycle(pid)
        told = tuple(life[name] for name in _LIFE)
        if told != tuple(_LIFE.values()):
            yield f"the life cycle of {pid} is {told}"
        for workflow_id in (names.archive_workflow(pid), names.retrieve_workflow(pid)):
            async for problem in self._history_problems(workflow_id):
                yield problem

    async def _history_problems(self, workflow_id: str) -> AsyncGenerator[str]:
        """Tasks of a workflow whose own code failed; a signal that meets its last task is no failure."""
        async for event in self._lab.temporal.get_workflow_handle(workflow_id).fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                failed = event.workflow_task_failed_event_attributes
                if failed.cause != WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
                    cause = WorkflowTaskFailedCause.Name(failed.cause)
                    yield f"a task of {workflow_id} failed: {cause}, {failed.failure.message}"
            elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                self._heard += [p.data for p in event.activity_task_completed_event_attributes.result.payloads]
            elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
                details = event.marker_recorded_event_attributes.details.values()
                self._heard += [p.data for told in details for p in told.payloads]

    async def _leftovers(self) -> AsyncGenerator[str]:
        """What nobody needs any more, on the LTS and in Temporal; only what no workflow knew of may end by itself."""
        held = await self._held()
        self._report.expired = len(held)
        for name, what in held.items():
            if any(name.encode() in heard for heard in self._heard):
                yield f"left on the LTS, though its workflow knew of it: {what}"
        for what in (await _once_empty(self._held, within_s=1.5 * max(PIN_S, UPLOAD_S))).values():
            yield f"left on the LTS: {what}"
        for workflow_id in await _once_empty(self._running, within_s=15):
            yield f"{workflow_id} still runs"

    async def _held(self) -> dict[str, str]:
        """Pins, unfinished recalls and uploads by id."""
        state = (await self._lab.lts("GET", "/admin/state")).json()
        pins = {pin["request_id"]: f"a pin on {pin['path']}" for pin in state["pins"]}
        uploads = {upload["id"]: f"an upload of {upload['path']}" for upload in state["uploads"]}
        recalls = state["stage_requests"]["open"]
        return pins | uploads | ({"recalls": f"{recalls} recalls"} if recalls else {})

    async def _running(self) -> list[str]:
        listed = self._lab.temporal.list_workflows('ExecutionStatus = "Running"')
        return [found.id async for found in listed if found.id.startswith(OURS)]


_LIFE = {
    "archiveStatusMessage": "datasetOnArchiveDisk",
    "retrieveStatusMessage": "datasetRetrieved",
    "archivable": False,
    "retrievable": True,
    "isOnCentralDisk": False,
}


def _differences(sent: Mapping[str, bytes], found: Mapping[str, bytes]) -> Iterator[str]:
    for path in sorted(sent.keys() | found.keys()):
        if sent.get(path) != found.get(path):
            yield path


async def _once_empty(ask: Callable[[], Awaitable[S]], *, within_s: float) -> S:
    """What is still there after that time."""
    deadline = time.monotonic() + within_s
    while (found := await ask()) and time.monotonic() < deadline:  # noqa: ASYNC110 - others end it
        await asyncio.sleep(0.1)
    return found


async def patiently(ask: Callable[[], Awaitable[T | None]], *, within_s: float = 60) -> T:
    """Ask until there is an answer, whoever is down meanwhile."""

    async def once() -> T | None:
        try:
            return await ask()
        except OUT_OF_REACH:
            return None

    return await eventually(once, within_s=within_s, every_s=0.1)
