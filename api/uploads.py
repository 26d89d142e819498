"""Uploads as the API sees them: whether there is room, whether URLs may be given out, all is there, none of it.

Clients may call any of these again; what is promised to a dataset, and what it has become, its workflow knows.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from api.describing import is_open
from api.gateway import Gateway, describe, reaching
from api.orders import job_order
from clients.s3 import ObjectStore
from domain import names
from domain.errors import AlreadyArchived, AlreadyFinalized, BeingArchived, Misconfigured, WorkflowUnanswered, named
from domain.lifecycle import JobType, Outcome
from domain.message import Message
from domain.pid import check_pid
from domain.priority import Urgency
from domain.reservations import accounted, allowed
from domain.uploads import (
    FinalizedUpload,
    FinalizeUpload,
    LandingZoneOrder,
    RequestUpload,
    Reserved,
    ReserveSpace,
    UploadEnd,
    UploadOrder,
    UploadPhase,
)
from settings import Settings
from workflows import queues, search_attributes
from workflows.landing_zone import START, LandingZone
from workflows.upload import Upload

_AT_ONCE = 8
"""Requests for room that this process has under way; a server that was told nothing takes 10 for each workflow."""

_ROOM_WITHIN_S = 60.0
_DONE_WITHIN_S = 600.0
"""Longest wait for a step that may have a hundred thousand objects to delete."""

_NOTED_EVERY_S = 300.0
"""How often an upload hears that URLs are given out; of each one would be thousands."""

_PASSING = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.ABORTED, RPCStatusCode.NOT_FOUND)
"""The workflow has just given way to a fresh run of it, or the server is away."""
_PASSING_TRIES = 5

_STOPPED = "update was aborted"
"""What those are told that were under way when another one was one too many (server 1.32, observed)."""

_LONGEST_PAUSE_S = 0.4

Start = Callable[[], WithStartWorkflowOperation[Any, Any]]
T = TypeVar("T")


class Uploads:
    """Holds the Temporal client and the landing zone; keeps nothing that another process would have to know."""

    def __init__(self, *, client: Client, gateway: Gateway, objects: ObjectStore, settings: Settings) -> None:
        self._client, self._gateway, self._objects, self._settings = client, gateway, objects, settings
        self._limit = allowed(settings.s3_total_landing_space_tb, settings.free_space_factor)
        self._reservation_s = settings.upload_reservation_hours * 3600
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._noted: dict[str, float] = {}
        """Dataset → when its upload has to hear of URLs again, by the monotonic clock."""

    async def request(self, pid: str, size_gib: int) -> bool:
        """Whether there is room; then it is kept for the dataset, and nothing is left of an earlier upload of it.

        A dataset that has room already is asking to go on: what lies there stays.

        Raises:
            BeingArchived, AlreadyFinalized, AlreadyArchived: what lies there may be the only copy.
            InfrastructureError: S3, Temporal or SciCat do not answer, or the bucket is missing.
        """
        bucket = self._settings.s3_landingzone_bucket
        if await self._objects.versioning(bucket) is None:
            raise Misconfigured(f"the landing zone bucket {bucket} does not exist; run `scopemarchiver setup`")
        await self._refuse_closed(pid)
        ticket, size = uuid.uuid4().hex, accounted(size_gib)
        wish = ReserveSpace(pid=pid, bytes=size, limit_bytes=self._limit, ticket=ticket)
        async with self._slots:
            reserved = await self._tell(_landing_zone, "reserve", [wish], Reserved, ticket, _ROOM_WITHIN_S)
        if reserved.granted:
            request = RequestUpload(bytes=size, ticket=ticket, reservation_s=self._reservation_s)
            await self._tell_upload(pid, "request", None, request)
        return reserved.granted

    async def admit_urls(self, pid: str) -> None:
        """Do nothing if objects may be put into the dataset now, and remember that URLs by which one can are given out.

        A dataset that never asked for room gets URLs all the same, as clients know it; what they bring counts as soon
        as the landing zone is counted. It costs two questions to Temporal, so it may be asked for each object.

        Raises:
            BeingArchived, AlreadyFinalized, AlreadyArchived: nothing more is taken.
        """
        running = await self._refuse_closed(pid)
        if not running or time.monotonic() >= self._noted.get(pid, 0):
            await self._note_urls(pid)

    async def finalize(self, pid: str, wish: FinalizeUpload) -> FinalizedUpload:
        """Keep the dataset from now on, tell SciCat, and see to it that an archive job runs if one is wished for.

        Raises:
            NothingUploaded, UploadUnfinished: it is not complete; SciCat was not told.
            ArchiverError: SciCat refuses or does not answer.
        """
        finalized = await self._tell_upload(pid, "finalize", FinalizedUpload, wish)
        if finalized.job_id:
            # SciCat has told us of the job itself, unless something was away when it was made.
            order = job_order(self._settings, finalized.job_id, JobType.ARCHIVE)
            await self._gateway.start_job(order, within_s=_ROOM_WITHIN_S)
        return finalized

    async def abort(self, pid: str) -> None:
        """Throw away what was uploaded of a dataset; one that is not known is fine.

        Raises:
            BeingArchived, AlreadyFinalized, AlreadyArchived: nothing was thrown away.
        """
        await self._tell_upload(pid, "abort", None)

    async def _refuse_closed(self, pid: str) -> bool:
        """Whether the dataset's upload runs, unless it takes nothing more."""
        handles = (names.archive_workflow(check_pid(pid)), names.upload_workflow(pid))
        archive, upload = await asyncio.gather(*(describe(self._client.get_workflow_handle(id_)) for id_ in handles))
        if archive and is_open(archive):
            raise BeingArchived(f"dataset {pid} is being archived; nothing can be uploaded to it now")
        ends = [run.typed_search_attributes.get(search_attributes.OUTCOME) for run in (archive, upload) if run]
        running = upload is not None and is_open(upload)
        if upload and running:
            if upload.typed_search_attributes.get(search_attributes.PHASE) == UploadPhase.FINALIZED:
                raise AlreadyFinalized(f"the upload of dataset {pid} is finalized; nothing can be added to it")
        elif {Outcome.ARCHIVED, Outcome.ALREADY_ARCHIVED, UploadEnd.FREED} & set(ends):
            raise AlreadyArchived(f"dataset {pid} is archived; nothing can be added to it")
        return running

    async def _note_urls(self, pid: str) -> None:
        lifetime = timedelta(seconds=self._settings.url_expiration_seconds + _NOTED_EVERY_S)
        order = self._order(pid)
        async with reaching(_ROOM_WITHIN_S):
            await self._client.start_workflow(
                Upload.run,
                order,
                start_signal="urls_issued",
                start_signal_args=[datetime.now(UTC) + lifetime],
                **_upload_start(pid),
            )
        now = time.monotonic()
        self._noted = {other: until for other, until in self._noted.items() if until > now}
        self._noted[pid] = now + _NOTED_EVERY_S

    def _order(self, pid: str) -> UploadOrder:
        return UploadOrder(pid=pid, reservation_s=self._reservation_s)

    async def _tell_upload(self, pid: str, update: str, result: type[T] | None, *wish: Message) -> T:
        order = self._order(check_pid(pid))

        def start() -> WithStartWorkflowOperation[Any, Any]:
            return WithStartWorkflowOperation(Upload.run, order, **_upload_start(pid))

        return await self._tell(start, update, wish, result, str(uuid.uuid4()), _DONE_WITHIN_S)

    async def _tell(
        self,
        start: Start,
        update: str,
        wish: Sequence[Message],
        result: type[T] | None,
        update_id: str,
        within_s: float,
    ) -> T:
        """Tell a workflow, which is started if it is not there; told again, it is the same update.

        Raises:
            WorkflowUnanswered: no worker has answered in time.
            ArchiverError: what the workflow refuses it with.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._insist(start, update, wish, result, update_id)
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            raise WorkflowUnanswered(
                f"no worker has answered within {within_s:.0f} s; what was asked for may still be done, ask again later"
            ) from error
        except WorkflowUpdateFailedError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):
                raise named(cause.type or "", cause.message) from error
            raise

    async def _insist(
        self, start: Start, update: str, wish: Sequence[Message], result: type[T] | None, update_id: str
    ) -> T:
        tries = 0
        while True:
            try:
                async with reaching(None):
                    return await self._client.execute_update_with_start_workflow(  # pyright: ignore[reportUnknownMemberType] - typed so by the SDK
                        update, args=wish, start_workflow_operation=start(), id=update_id, result_type=result
                    )
            except RPCError as error:
                crowded = error.status is RPCStatusCode.RESOURCE_EXHAUSTED or _STOPPED in str(error)
                tries += not crowded
                if not crowded and (error.status not in _PASSING or tries >= _PASSING_TRIES):
                    raise
            # Not all at the same moment again.
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - no secret


def _landing_zone() -> WithStartWorkflowOperation[Any, Any]:
    return WithStartWorkflowOperation(LandingZone.run, LandingZoneOrder(), **START)


def _upload_start(pid: str) -> dict[str, Any]:
    return {
        "id": names.upload_workflow(pid),
        "task_queue": queues.CONTROL,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "static_summary": f"upload {pid}",
        "static_details": (
            f"The upload of dataset `{pid}`: keeps its room in the landing zone until it is archived or dropped.\n\n"
            "Signals: `reopen`, for the owner to mend what was finalized."
        ),
        "priority": Priority(priority_key=Urgency.RETRIEVE),
        "search_attributes": TypedSearchAttributes(
            [
                SearchAttributePair(search_attributes.DATASET_PID, pid),
                SearchAttributePair(search_attributes.PHASE, UploadPhase.UPLOADING.value),
            ]
        ),
    }
