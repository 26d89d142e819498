"""The steps of uploads in a world of a few dictionaries, and whoever asks the API's side of them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import Replayer, Worker

from activities.uploading import (
    ClosedUpload,
    CloseUpload,
    CountLandingZone,
    SubmitArchive,
    SubmittedArchive,
    SweepUpload,
    SweptUpload,
)
from api.gateway import Gateway
from api.uploads import Uploads
from clients.s3 import ObjectStore
from domain import names
from domain.errors import AlreadyArchived, ArchiverError, BeingArchived, NothingUploaded
from domain.progress import LandingZoneProgress, UploadProgress
from domain.reservations import Claim, Counted
from settings import Settings
from tests.replay import recorded
from worker.bounding import Bounding
from workflows import queues
from workflows.landing_zone import LandingZone
from workflows.upkeep import ReconcileLandingZone
from workflows.upload import Upload

WORKFLOWS = (Upload, LandingZone, ReconcileLandingZone)


@dataclass
class Yard:
    """What lies in the landing zone and stands in SciCat, by dataset."""

    lying: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes of those that have any."""
    claims: dict[str, Claim] = field(default_factory=dict[str, Claim])
    """What the next count finds of uploads."""
    archiving: set[str] = field(default_factory=set[str])
    archived: set[str] = field(default_factory=set[str])
    jobs: dict[str, str] = field(default_factory=dict[str, str])
    archivable: list[str] = field(default_factory=list[str])
    failures: dict[str, list[ArchiverError]] = field(default_factory=lambda: defaultdict(list))
    """What the next calls of a step raise."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    """Steps that wait."""
    swept: list[str] = field(default_factory=list[str])

    async def _step(self, name: str) -> None:
        if name in self.gates:
            await self.gates[name].wait()
        if self.failures[name]:
            raise self.failures[name].pop(0)

    @activity.defn
    async def count_landing_zone(self, order: CountLandingZone) -> Counted:
        await self._step("count_landing_zone")
        others = sum(size for pid, size in self.lying.items() if pid not in self.claims)
        return Counted(since=order.since, claims=self.claims, others=others)

    @activity.defn
    async def sweep_upload(self, order: SweepUpload) -> SweptUpload:
        await self._step("sweep_upload")
        if order.pid in self.archived:
            raise AlreadyArchived("archived")
        if order.pid in self.archiving:
            raise BeingArchived("archiving")
        self.swept.append(order.pid)
        return SweptUpload(versions=int(self.lying.pop(order.pid, 0) > 0))

    @activity.defn
    async def close_upload(self, order: CloseUpload) -> ClosedUpload:
        await self._step("close_upload")
        if order.pid in self.archived:
            return ClosedUpload(archived=True)
        if order.pid in self.jobs:
            return ClosedUpload(archiving=True, job_id=self.jobs[order.pid])
        if order.pid not in self.lying:
            raise NothingUploaded("nothing there")
        self.archivable.append(order.pid)
        return ClosedUpload()

    @activity.defn
    async def submit_archive(self, order: SubmitArchive) -> SubmittedArchive:
        await self._step("submit_archive")
        return SubmittedArchive(job_id=self.jobs.setdefault(order.pid, f"job-of-{order.pid}"))


class _Bucket:
    async def versioning(self, bucket: str) -> str:
        return "Enabled"


class _Jobs(Gateway):
    """Starts no job, but keeps which it was asked for."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.started: list[str] = []

    async def start_job(self, order: Any, **_: Any) -> str:
        self.started.append(order.job_id)
        return "run"


@dataclass
class Front:
    """The uploads' side of the API over a Temporal server with one worker."""

    client: Client
    yard: Yard
    settings: Settings
    touched: set[str] = field(default_factory=set[str])

    def api(self) -> Uploads:
        """One more API process."""
        self.jobs = _Jobs(self.client)
        return Uploads(
            client=self.client, gateway=self.jobs, objects=cast("ObjectStore", _Bucket()), settings=self.settings
        )

    def upload(self, pid: str) -> WorkflowHandle[Any, UploadProgress]:
        """A dataset's upload."""
        return self.client.get_workflow_handle(names.upload_workflow(pid), result_type=UploadProgress)

    async def standing(self, pid: str) -> UploadProgress:
        """Where an upload stands."""
        return await self.upload(pid).query("progress", result_type=UploadProgress)

    @property
    def admission(self) -> WorkflowHandle[Any, Any]:
        """The one who admits."""
        return self.client.get_workflow_handle(names.LANDING_ZONE)

    async def room(self) -> LandingZoneProgress:
        """Who was promised how much."""
        return await self.admission.query("progress", result_type=LandingZoneProgress)

    def worker(self) -> Worker:
        """A worker."""
        yard = self.yard
        return Worker(
            self.client,
            task_queue=queues.CONTROL,
            workflows=WORKFLOWS,
            activities=[yard.count_landing_zone, yard.sweep_upload, yard.close_upload, yard.submit_archive],
            interceptors=[Bounding()],
        )

    async def histories(self, *pids: str) -> list[WorkflowHistory]:
        """Of the last two runs of all that ran for these datasets; what still runs is terminated."""
        found: list[WorkflowHistory] = []
        ids = [names.LANDING_ZONE, "reconcile-landing-zone", *map(names.upload_workflow, pids)]
        for workflow_id in ids:
            handle = self.client.get_workflow_handle(workflow_id)
            try:
                described = await handle.describe()
            except RPCError:
                continue
            if described.status is WorkflowExecutionStatus.RUNNING:
                await handle.terminate()
            run_id: str = described.run_id
            while run_id and len(found) < 200:
                found.append(await self.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history())
                started = found[-1].events[0].workflow_execution_started_event_attributes
                run_id = started.continued_execution_run_id
        return found


@asynccontextmanager
async def front(client: Client, *pids: str, **settings: Any) -> AsyncGenerator[Front]:
    """A worker and the API's side; on leaving, the histories of these datasets and of the admission are replayed."""
    given: dict[str, Any] = {"upload_reservation_hours": 24, "url_expiration_seconds": 3600} | settings
    front = Front(client, Yard(), Settings(**given))
    async with front.worker():
        yield front
    histories = await front.histories(*pids)
    assert histories
    recorded.keep(histories)
    replayer = Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter)
    for history in histories:
        await replayer.replay_workflow(history)
