"""Steps that tell how it ended: outcomes into the state bucket, the job's result into SciCat."""

import base64
import hashlib
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client

from activities.retrieval_bucket import RetrievalBucket
from activities.running import signal_if_running
from clients.s3 import ObjectStore
from clients.scicat import Catalogue
from clients.state import Retrieved, State, StateLost
from domain import names
from domain.downloadscript import DownloadLink, download_script
from domain.errors import JobError, UnknownDataset
from domain.lifecycle import GOOD, JobStatus, JobType, Outcome, job_status
from domain.message import Message
from domain.orders import Subscriber
from domain.outcome import DatasetOutcome, bounded
from domain.pid import flat


class DeliverOutcome(Message):
    """Tell a dataset's outcome to the jobs that wait for it."""

    outcome: DatasetOutcome
    subscribers: tuple[Subscriber, ...]


class FinishJob(Message):
    """Compose a job's result from the outcomes in the state bucket and send it."""

    job_id: str
    type: JobType
    datasets: int
    cancelled: bool = False
    error_class: str = ""
    error: str = ""
    """Why the job could not be carried out as a whole."""


class FinishedJob(Message):
    """What was sent."""

    status: JobStatus
    message: str
    refused: str = ""
    """SciCat's final no, if it gave one."""


class ReportingActivities:
    """Holds the catalogue, the state bucket and the account that signs download links."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        objects: ObjectStore,
        links: ObjectStore,
        retrieval_bucket: str,
        retention: timedelta,
        state: State,
        client: Client,
        link_lifetime_s: int,
    ) -> None:
        self._catalogue, self._links, self._bucket, self._client = catalogue, links, retrieval_bucket, client
        self._promises = RetrievalBucket(objects=objects, bucket=retrieval_bucket, state=state, retention=retention)
        self._state, self._lifetime_s = state, link_lifetime_s

    @activity.defn
    async def deliver_outcome(self, order: DeliverOutcome) -> None:
        """Write the outcome under every waiting job, then signal it, once or more; jobs that have ended are past it."""
        for subscriber in order.subscribers:
            outcome = await self._kept(subscriber, order.outcome)
            job = names.job_workflow(subscriber.job_id)
            if not await signal_if_running(self._client, job, "dataset_done", subscriber.n, outcome.status.value):
                activity.logger.info("job %s has ended before it heard of %s", subscriber.job_id, outcome.pid)

    async def _kept(self, subscriber: Subscriber, outcome: DatasetOutcome) -> DatasetOutcome:
        """Keep the outcome for a job's report; what went well stays so, whoever cancels a workflow that forgot it."""
        if outcome.status is Outcome.CANCELLED:
            [before] = await self._state.outcomes(subscriber.job_id, [subscriber.n])
            if before and before.status in GOOD:
                return before
        await self._state.put_outcome(subscriber.job_id, subscriber.n, outcome)
        return outcome

    @activity.defn
    async def finish_job(self, order: FinishJob) -> FinishedJob:
        """Send status, sentence and result; SciCat's final refusal ends it too, with the outcomes kept by us.

        Download links are made here, so that they stand nowhere but in SciCat.
        """
        outcomes = await self._state.outcomes(order.job_id, range(order.datasets))
        listed = await self._state.get_list(names.job_datasets_key(order.job_id))
        known = [outcome or _missing(str(listed[n]["pid"]), order) for n, outcome in enumerate(outcomes)]
        status = job_status([outcome.status for outcome in known], cancelled=order.cancelled)
        message = order.error or _sentence(known, cancelled=order.cancelled)
        result: dict[str, Any] = {"result": [], "datasets": [_entry(outcome) for outcome in known]}
        if order.type is JobType.RETRIEVE:
            apart = len(known) > 1
            links = [link for outcome in known for link in await self._delivered(outcome, apart=apart)]
            result["result"] = [entry for entry, _ in links]
            if links:
                script = download_script([link for _, link in links], title=f"SciCat job {order.job_id}")
                result["downloadScript"] = base64.b64encode(script.encode()).decode()
        try:
            await self._catalogue.patch_job(order.job_id, status, bounded(message), result)
        except (JobError, UnknownDataset) as error:
            activity.logger.error("job %s: SciCat takes no result: %s", order.job_id, error)
            return FinishedJob(status=status, message=message, refused=bounded(str(error)))
        return FinishedJob(status=status, message=message)

    async def _delivered(self, outcome: DatasetOutcome, *, apart: bool) -> list[tuple[dict[str, Any], DownloadLink]]:
        """(result entry, link) of every datablock of a dataset that lies in the retrieval bucket.

        `apart`: datasets that are downloaded together unpack into a folder each, since they may share names.
        """
        if not outcome.blocks_key or outcome.status not in GOOD | {Outcome.PARTIAL}:
            return []
        delivered: list[tuple[dict[str, Any], DownloadLink]] = []
        for position, block in enumerate(await self._state.get_list(outcome.blocks_key)):
            if position in outcome.undelivered:
                continue
            if "files" in block:
                delivered += await self._restored(outcome.pid, block, apart=apart)
                continue
            archive_id = str(block["archive_id"])
            record = await self._record(archive_id)
            url = await self._links.presign_get(self._bucket, archive_id, self._lifetime_s)
            name = archive_id.rsplit("/", 1)[-1]
            entry = {
                "datasetId": outcome.pid,
                "name": name,
                "size": record.size,
                "archiveId": archive_id,
                "url": url,
            }
            link = DownloadLink(
                url=url,
                name=name,
                size_bytes=record.size,
                chunk_bytes=record.chunk_bytes,
                digest=record.digest,
                bagged=record.bagged,
                folder=flat(outcome.pid) if apart else "",
            )
            delivered.append((entry, link))
        return delivered

    async def _restored(
        self, pid: str, block: dict[str, Any], *, apart: bool
    ) -> list[tuple[dict[str, Any], DownloadLink]]:
        """(result entry, link) of every single file that was restored from a datablock."""
        restored: list[tuple[dict[str, Any], DownloadLink]] = []
        for file in block["files"]:
            path = str(file["path"])
            key = names.restored_key(pid, path)
            record = await self._record(key)
            url = await self._links.presign_get(self._bucket, key, self._lifetime_s)
            entry = {
                "datasetId": pid,
                "name": path,
                "size": record.size,
                "archiveId": str(block["archive_id"]),
                "url": url,
            }
            link = DownloadLink(
                url=url,
                name=f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.restored",
                size_bytes=record.size,
                chunk_bytes=record.chunk_bytes,
                digest=record.digest,
                folder=flat(pid) if apart else "",
                path=path,
            )
            restored.append((entry, link))
        return restored

    async def _record(self, key: str) -> Retrieved:
        # Before the link is made, so that no link outlives what it leads to.
        record = await self._promises.promised(key)
        if record is None:
            raise StateLost(f"the record of {key} is gone from the state bucket; retrieve the dataset again")
        return record


def _missing(pid: str, order: FinishJob) -> DatasetOutcome:
    """The outcome of a dataset that never got one: the job was cancelled or could not be carried out."""
    if order.cancelled:
        return DatasetOutcome(pid=pid, status=Outcome.CANCELLED, message="the job was cancelled")
    return DatasetOutcome(pid=pid, status=Outcome.FAILED, error_class=order.error_class, message=order.error)


def _entry(outcome: DatasetOutcome) -> dict[str, Any]:
    entry: dict[str, Any] = {"pid": outcome.pid, "status": outcome.status.value, "bytes": outcome.bytes}
    if outcome.error_class:
        entry |= {"class": outcome.error_class}
    if outcome.message:
        entry |= {"message": outcome.message}
    if outcome.leftover_count:
        entry |= {"leftovers": list(outcome.leftovers), "leftoverCount": outcome.leftover_count}
    if outcome.unlisted:
        entry |= {"unlisted": list(outcome.unlisted)}
    return entry


def _sentence(outcomes: list[DatasetOutcome], *, cancelled: bool) -> str:
    """One sentence for the job: counts by outcome, and the first reason."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.status.value] = counts.get(outcome.status.value, 0) + 1
    text = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no dataset"
    reason = next((f"; {o.pid}: {o.error_class}: {o.message}" for o in outcomes if o.error_class), "")
    return f"{'cancelled: ' if cancelled else ''}{text}{reason}"
