"""Steps of uploads: count what lies in the landing zone, throw an upload away, finalize it."""

from collections import Counter
from datetime import datetime

from temporalio import activity
from temporalio.client import Client

from activities.running import finalized_uploads, is_running, running_uploads, tell_upload_freed
from clients.s3 import ObjectStore
from clients.scicat import Catalogue
from clients.state import State
from domain import names
from domain.errors import AlreadyArchived, BeingArchived, NothingUploaded, UploadUnfinished
from domain.message import Message
from domain.pid import check_pid
from domain.reservations import Claim, Counted

_DELETE_BATCH = 1_000
"""Versions that are deleted together; whether they may be is looked at anew for each batch."""


class CountLandingZone(Message):
    """Count the bytes of every dataset."""

    since: datetime
    """When the count is begun, by the clock of the workflow."""


class SweepUpload(Message):
    """Throw away all that was uploaded of a dataset."""

    pid: str


class SweptUpload(Message):
    """What was thrown away."""

    versions: int = 0
    uploads: int = 0
    """Multipart uploads that were open."""


class CloseUpload(Message):
    """Look whether an upload is complete, and tell SciCat."""

    pid: str


class ClosedUpload(Message):
    """What was found; SciCat is told only if the dataset is neither archived nor about to be."""

    archived: bool = False
    archiving: bool = False
    """An archive is under way, or a job for it waits."""
    job_id: str = ""
    """The job, if SciCat has one."""


class SubmitArchive(Message):
    """Ask SciCat for an archive job."""

    pid: str
    owner_group: str
    owner_user: str
    contact_email: str


class SubmittedArchive(Message):
    """The job that waits or runs."""

    job_id: str


class UploadActivities:
    """Holds the landing zone, the catalogue, the state bucket and the Temporal client."""

    def __init__(
        self, *, catalogue: Catalogue, objects: ObjectStore, landing_bucket: str, state: State, client: Client
    ) -> None:
        self._catalogue, self._objects, self._bucket = catalogue, objects, landing_bucket
        self._state, self._client = state, client

    @activity.defn
    async def count_landing_zone(self, order: CountLandingZone) -> Counted:
        """All versions of all objects, by dataset; those of uploads that run apart from all others.

        An upload that waits for an archive which has long freed the landing zone is told so.
        """
        before = await running_uploads(self._client)
        found = Counter[str]()
        async for version in self._objects.list_versions(self._bucket, ""):
            found[names.dataset_of(version.key)] += version.size
        unheard = [
            pid for pid in await finalized_uploads(self._client) if pid not in found and await self._is_free(pid)
        ]
        for pid in unheard:
            activity.logger.info("dataset %s is archived and freed: its upload had not heard of it", pid)
            await tell_upload_freed(self._client, pid)
        after = await running_uploads(self._client)
        # What was given back meanwhile has been freed, or is found by the next count.
        known = before.keys() | after.keys()
        return Counted(
            since=order.since,
            claims={pid: Claim(granted=size, found=found[pid]) for pid, size in after.items() if pid not in unheard},
            others=sum(size for pid, size in found.items() if pid not in known),
        )

    async def _is_free(self, pid: str) -> bool:
        """Whether an archive of the dataset is committed, at its end, and has left nothing in the landing zone."""
        return (
            await self._is_archived(pid)
            and not await is_running(self._client, names.archive_workflow(pid))
            and not await self._is_anything(names.raw_prefix(pid))
        )

    @activity.defn
    async def sweep_upload(self, order: SweepUpload) -> SweptUpload:
        """Abort every multipart upload and delete every version below the dataset's `raw_files/`.

        Raises:
            AlreadyArchived, BeingArchived: what lies there may be the only copy; nothing more is deleted.
        """
        pid = check_pid(order.pid)
        if await self._is_archived(pid):
            raise AlreadyArchived(f"dataset {pid} is archived; nothing of it is thrown away")
        if jobs := await self._catalogue.open_archive_jobs(pid):
            raise BeingArchived(
                f"SciCat's archive job {jobs[0].id} for dataset {pid} has not ended; nothing is deleted"
            )
        prefix = names.raw_prefix(pid)
        await self._refuse_while_archiving(pid)
        uploads = await self._objects.open_uploads(self._bucket, prefix)
        for upload in uploads:
            await self._objects.abort_multipart(self._bucket, upload.key, upload.upload_id)
        count = 0
        batch: list[tuple[str, str]] = []
        async for version in self._objects.list_versions(self._bucket, prefix):
            batch.append((version.key, version.version_id))
            if len(batch) == _DELETE_BATCH:
                count += await self._delete(pid, batch)
                batch = []
        count += await self._delete(pid, batch)
        if count or uploads:
            activity.logger.info("dataset %s: %d versions and %d open uploads swept", pid, count, len(uploads))
        return SweptUpload(versions=count, uploads=len(uploads))

    async def _delete(self, pid: str, versions: list[tuple[str, str]]) -> int:
        if versions:
            await self._refuse_while_archiving(pid)
            await self._objects.delete_versions(self._bucket, versions)
        return len(versions)

    async def _refuse_while_archiving(self, pid: str) -> None:
        if await is_running(self._client, names.archive_workflow(pid)):
            raise BeingArchived(f"dataset {pid} is being archived; nothing of it is thrown away")

    async def _is_archived(self, pid: str) -> bool:
        return bool((await self._state.index(pid)).committed)

    @activity.defn
    async def close_upload(self, order: CloseUpload) -> ClosedUpload:
        """See that something was uploaded and nothing is still under way, and mark the dataset as archivable.

        Raises:
            NothingUploaded, UploadUnfinished: SciCat was not told.
        """
        pid = check_pid(order.pid)
        if await self._is_archived(pid):
            return ClosedUpload(archived=True)
        # To call it archivable again would spoil the life cycle of a running archive.
        jobs = await self._catalogue.open_archive_jobs(pid)
        if jobs or await is_running(self._client, names.archive_workflow(pid)):
            return ClosedUpload(archiving=True, job_id=jobs[0].id if jobs else "")
        prefix = names.raw_prefix(pid)
        if uploads := await self._objects.open_uploads(self._bucket, prefix):
            path = uploads[0].key.removeprefix(prefix)
            raise UploadUnfinished(
                f"{len(uploads)} multipart uploads of dataset {pid} are still open, the first of {path!r}; complete or "
                "abort them, then finalize again"
            )
        if not await self._is_anything(prefix):
            raise NothingUploaded(f"nothing of dataset {pid} lies in the landing zone")
        await self._catalogue.mark_archivable(pid)
        return ClosedUpload()

    async def _is_anything(self, prefix: str) -> bool:
        async for _ in self._objects.list_objects(self._bucket, prefix):
            return True
        return False

    @activity.defn
    async def submit_archive(self, order: SubmitArchive) -> SubmittedArchive:
        """Create an archive job in SciCat unless it has one for the dataset that has not ended.

        SciCat calls our API from within.

        Raises:
            JobRefused: SciCat will never take such a job.
        """
        job_id = await self._catalogue.create_archive_job(
            order.pid, owner_user=order.owner_user, owner_group=order.owner_group, contact_email=order.contact_email
        )
        return SubmittedArchive(job_id=job_id)
