"""Steps of the Schedules that clear the retrieval bucket: objects past their time, uploads that nobody goes on with."""

from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client

from activities.running import retrieve_jobs, retrieved_datasets
from activities.side_by_side import each
from clients.s3 import ObjectStore
from clients.state import Retrieved, State
from domain import names
from domain.message import Message
from domain.retention import is_due


class ExpirePage(Message):
    """Remove what is due among the next objects."""

    after: str = ""
    """Key of the last object that was looked at."""
    limit: int = 1_000


class ExpiredPage(Message):
    """What came of it."""

    after: str = ""
    """Where the next page begins; empty at the end."""
    looked: int
    removed: int


class SweepUploads(Message):
    """Abort uploads that are as old and that no running retrieval fills."""

    older_than_s: float


class SweptUploads(Message):
    """What came of it."""

    aborted: int = 0
    kept: int = 0
    """Old ones that a running retrieval fills, or that are none of ours."""


class ExpiringActivities:
    """Holds the retrieval bucket, its records, and the Temporal client."""

    def __init__(self, *, objects: ObjectStore, retrieval_bucket: str, state: State, client: Client) -> None:
        self._objects, self._bucket, self._state, self._client = objects, retrieval_bucket, state, client

    @activity.defn
    async def expire_page(self, order: ExpirePage) -> ExpiredPage:
        """Remove objects whose time is over, and then their records; an object without a record is left alone."""
        keys = await self._state.retrieved_keys(order.after, order.limit)
        records = await each(self._state.retrieved, keys, at_once=16)
        due = [record for record in records if record is not None and _due(record)]
        wanted = await self._wanted() if due else set[str]()
        removed = [await self._remove(record.key) for record in due if record.pid not in wanted]
        more = len(keys) == order.limit
        return ExpiredPage(after=keys[-1] if more else "", looked=len(keys), removed=sum(removed))

    async def _wanted(self) -> set[str]:
        """Datasets of running jobs, whose links are still to be given out, however long their other datasets take."""
        wanted: set[str] = set()
        for job_id in await retrieve_jobs(self._client):
            wanted.update(str(entry["pid"]) for entry in await self._state.get_list(names.job_datasets_key(job_id)))
        return wanted

    async def _remove(self, key: str) -> bool:
        """Remove one unless it was asked for again meanwhile."""
        record = await self._state.retrieved(key)
        if record is None or not _due(record):
            return False
        for upload in await self._objects.open_uploads(self._bucket, key, [key]):
            if upload.key == key:
                await self._objects.abort_multipart(self._bucket, key, upload.upload_id)
        await self._objects.delete_objects(self._bucket, [key])
        await self._state.drop_retrieved(key)
        activity.logger.info("removed %s from the retrieval bucket: it was kept until %s", key, record.keep_until)
        return True

    @activity.defn
    async def sweep_uploads(self, order: SweepUploads) -> SweptUploads:
        """Abort what killed workers left open in the retrieval bucket, as far as S3 lists it.

        The landing zone is not swept: its uploads belong to people, who may go on with them.
        """
        latest = datetime.now(UTC) - timedelta(seconds=order.older_than_s)
        old = [upload for upload in await self._objects.open_uploads(self._bucket, "") if upload.initiated <= latest]
        filled = await retrieved_datasets(self._client) if old else set[str]()
        aborted = 0
        for upload in old:
            pid = names.dataset_of(upload.key)
            if pid and pid not in filled:
                await self._objects.abort_multipart(self._bucket, upload.key, upload.upload_id)
                activity.logger.info("aborted an upload of %s, begun %s", upload.key, upload.initiated)
                aborted += 1
        return SweptUploads(aborted=aborted, kept=len(old) - aborted)


def _due(record: Retrieved) -> bool:
    return is_due(record.keep_until, datetime.now(UTC))
