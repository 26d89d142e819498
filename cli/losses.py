"""What was begun and nobody works on any more: found by asking SciCat, Temporal and the stores, and mended.

For the day when Temporal's database is lost, and for workflows that were terminated by hand. SciCat knows which jobs
have not finished and which datasets something was begun for, the landing zone what was uploaded, the state bucket what
is archived; Temporal knows what runs. A job is given to the archiver's API as SciCat gave it the first time.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from enum import StrEnum

from temporalio.client import Client, WorkflowExecutionStatus

from activities.running import is_running, status_of
from activities.side_by_side import each
from cli.following import ArchiverApi
from clients.s3 import ObjectStore
from clients.scicat import Catalogue, Job
from clients.state import State
from domain import names
from domain.errors import UnknownJob
from domain.lifecycle import (
    ArchiveMoment,
    FoundLifecycle,
    JobType,
    RetrieveMoment,
    archive_fields,
    finished,
    retrieve_fields,
)
from domain.message import Message

PAGE = 100
"""Datasets that SciCat is asked for at a time."""


class Kind(StrEnum):
    """What can be lost, in the order in which it is shown."""

    JOB = "job"
    """Not finished in SciCat, and no workflow carries it out."""
    ARCHIVE = "archive"
    """The life cycle says that an archive was begun; no job of SciCat's is about to go on with it."""
    ARCHIVED = "archived"
    """The same, but its datablocks are safe and registered: only the life cycle was not told."""
    RETRIEVAL = "retrieval"
    """The life cycle says that a retrieval was begun."""
    UNREPORTED = "unreported"
    """The job has ended, and SciCat did not take its result."""
    UPLOAD = "upload"
    """Files lie in the landing zone, and neither an upload nor an archive knows of them."""


REMEDY = {
    Kind.JOB: "start it again",
    Kind.ARCHIVE: "say in SciCat that it failed, so that it can be archived again",
    Kind.ARCHIVED: "say in SciCat that it is archived",
    Kind.RETRIEVAL: "say in SciCat that it failed",
}
"""What is done about it; the others are for people."""

_CUT_OFF = "it was cut off, and nobody works on it any more; "
_REASON = {
    Kind.ARCHIVE: _CUT_OFF + "the files are still in the landing zone: archive them again",
    Kind.ARCHIVED: _CUT_OFF + "all is archived, but what the landing zone still holds was not freed",
    Kind.RETRIEVAL: _CUT_OFF + "retrieve it again",
}
_STATUS = {Kind.ARCHIVE: "archiveStatusMessage", Kind.RETRIEVAL: "retrieveStatusMessage"}


class Loss(Message):
    """One thing that was lost."""

    kind: Kind
    id: str
    """Of the job, or of the dataset."""
    detail: str
    job_type: JobType | None = None
    """Of a job."""

    @property
    def remedy(self) -> str:
        """What is to be done about it; empty: that is for people to say."""
        return REMEDY.get(self.kind, "")


class Found(Message):
    """What was looked at, and what of it is lost."""

    jobs: int
    """Not finished in SciCat."""
    running: int
    """Of these, those that are carried out."""
    losses: tuple[Loss, ...]


Look = Callable[[str, int], None]
"""Hears what is looked at now, and how much of it was."""


class Losses:
    """Holds all that knows something; nothing is changed but by `mend`."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        temporal: Client,
        objects: ObjectStore,
        landing_bucket: str,
        state: State,
        api: ArchiverApi,
    ) -> None:
        self._catalogue, self._temporal, self._api = catalogue, temporal, api
        self._objects, self._landing, self._state = objects, landing_bucket, state

    async def find(self, *, since: str = "", on_look: Look) -> Found:
        """Look at everything.

        Args:
            since: jobs that were submitted before are left alone (RFC 3339).
            on_look: hears of the progress.

        Raises:
            ArchiverError, RPCError: somebody does not answer.
        """
        jobs = [job for job in await self._catalogue.open_jobs() if job.created >= since]
        found = await self._each("jobs", self._lost_job, jobs, on_look)
        lost = [loss for loss in found if loss]
        ended = {loss.id for loss in lost if loss.kind is Kind.UNREPORTED}
        wanted = {kind: _datasets(jobs, kind, but=ended) for kind in JobType}
        begun = {
            kind: [pid async for pid in self._begun(kind) if pid not in wanted[_JOB_TYPE[kind]]]
            for kind in (Kind.ARCHIVE, Kind.RETRIEVAL)
        }
        lost += filter(None, await self._each("archives", self._lost_archive, begun[Kind.ARCHIVE], on_look))
        lost += filter(None, await self._each("retrievals", self._lost_retrieval, begun[Kind.RETRIEVAL], on_look))
        known = wanted[JobType.ARCHIVE] | {loss.id for loss in lost}
        landed = [pid async for pid in self._landed() if pid not in known]
        lost += filter(None, await self._each("uploads", self._lost_upload, landed, on_look))
        return Found(
            jobs=len(jobs),
            running=found.count(None),
            losses=tuple(sorted(lost, key=lambda loss: [*Kind].index(loss.kind))),
        )

    async def mend(self, loss: Loss) -> bool:
        """Do what is to be done, if it still is; whether it was.

        Raises:
            ArchiverError, OutOfReach, Refused, RPCError: it was not done.
        """
        match loss.kind:
            case Kind.JOB if loss.job_type:
                await self._api.start_job(loss.id, loss.job_type.value)
            case Kind.ARCHIVE | Kind.ARCHIVED:
                # Once more: somebody may have taken it up while the operator was thinking.
                if (now := await self._lost_archive(loss.id)) is None:
                    return False
                found = FoundLifecycle(retrievable=(await self._catalogue.lifecycle(loss.id)).retrievable)
                moment = ArchiveMoment.COMMITTED if now.kind is Kind.ARCHIVED else ArchiveMoment.FAILURE
                await self._catalogue.patch_lifecycle(loss.id, archive_fields(moment, found, _REASON[now.kind]))
            case Kind.RETRIEVAL:
                if await self._lost_retrieval(loss.id) is None:
                    return False
                fields = retrieve_fields(RetrieveMoment.FAILED, _REASON[loss.kind])
                await self._catalogue.patch_lifecycle(loss.id, fields)
            case _:
                return False
        return True

    async def _each(
        self, what: str, look: Callable[..., Awaitable[Loss | None]], items: Collection[object], on_look: Look
    ) -> list[Loss | None]:
        looked = 0

        async def one(item: object) -> Loss | None:
            nonlocal looked
            loss = await look(item)
            looked += 1
            on_look(what, looked)
            return loss

        return await each(one, items)

    async def _lost_job(self, job: Job) -> Loss | None:
        """None while it is carried out, or if it has finished since SciCat was asked for all of them."""
        status = await status_of(self._temporal, names.job_workflow(job.id))
        if status is WorkflowExecutionStatus.RUNNING:
            return None
        try:
            job = await self._catalogue.job(job.id)
        except UnknownJob:
            return None
        if finished(job.status):
            return None
        datasets = "1 dataset" if len(job.datasets) == 1 else f"{len(job.datasets)} datasets"
        detail = f"{job.type} of {datasets}, submitted {job.created}, {job.status}"
        if status is WorkflowExecutionStatus.COMPLETED:
            return Loss(kind=Kind.UNREPORTED, id=job.id, detail=f"{detail}; it has ended, which SciCat did not take")
        how = f"its workflow was {status.name.lower()}" if status else "Temporal does not know it"
        return Loss(kind=Kind.JOB, id=job.id, detail=f"{detail}; {how}", job_type=JobType(job.type))

    async def _begun(self, kind: Kind) -> AsyncGenerator[str]:
        after = ""
        while pids := await self._catalogue.datasets_in({_STATUS[kind]: _BEGUN[kind]}, after, PAGE):
            for pid in pids:
                yield pid
            after = pids[-1]

    async def _lost_archive(self, pid: str) -> Loss | None:
        if await is_running(self._temporal, names.archive_workflow(pid)):
            return None
        life = await self._catalogue.lifecycle(pid)
        if life.archive_status != _BEGUN[Kind.ARCHIVE] or life.archivable:
            return None
        if await self._is_archived(pid):
            return Loss(kind=Kind.ARCHIVED, id=pid, detail="archived, which SciCat does not know")
        return Loss(kind=Kind.ARCHIVE, id=pid, detail="an archive was begun; no job in SciCat asks for it any more")

    async def _lost_retrieval(self, pid: str) -> Loss | None:
        if await is_running(self._temporal, names.retrieve_workflow(pid)):
            return None
        if (await self._catalogue.lifecycle(pid)).retrieve_status != _BEGUN[Kind.RETRIEVAL]:
            return None
        return Loss(kind=Kind.RETRIEVAL, id=pid, detail="a retrieval was begun; no job in SciCat asks for it any more")

    async def _landed(self) -> AsyncIterator[str]:
        """Every dataset that has files in the landing zone; each costs one question, however many files it has."""
        after = ""
        while True:
            async for item in self._objects.list_objects(self._landing, names.ALL_DATASETS, after):
                pid = names.dataset_of(item.key)
                if item.key.startswith(names.raw_prefix(pid)):
                    break
            else:
                return
            yield pid
            after = names.raw_prefix(pid).removesuffix("/") + chr(ord("/") + 1)

    async def _lost_upload(self, pid: str) -> Loss | None:
        for workflow in (names.upload_workflow(pid), names.archive_workflow(pid)):
            if await is_running(self._temporal, workflow):
                return None
        if await self._is_archived(pid):
            return None  # a leftover: the consistency report's affair
        return Loss(kind=Kind.UPLOAD, id=pid, detail="in the landing zone; its owner may go on with it, or archive it")

    async def _is_archived(self, pid: str) -> bool:
        return bool((await self._state.index(pid)).committed)


_JOB_TYPE = {Kind.ARCHIVE: JobType.ARCHIVE, Kind.RETRIEVAL: JobType.RETRIEVE}
_BEGUN = {Kind.ARCHIVE: ArchiveMoment.START.status, Kind.RETRIEVAL: RetrieveMoment.START.value}


def _datasets(jobs: list[Job], kind: JobType, *, but: set[str]) -> set[str]:
    """Datasets that open jobs of a type ask for."""
    return {dataset.pid for job in jobs if job.type == kind and job.id not in but for dataset in job.datasets}
