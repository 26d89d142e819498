"""Every status that is written to SciCat, as tables: who reaches for a status string asks here.

The names are those of SciCat's frontend and of the original archiver; SciCat checks none of them (4.27, observed).
"""

from collections.abc import Iterable
from enum import StrEnum

from domain.message import Message


class JobType(StrEnum):
    """What a SciCat job asks for."""

    ARCHIVE = "archive"
    RETRIEVE = "retrieve"


class Outcome(StrEnum):
    """How a dataset's part of a job ended; the search attribute `Outcome`."""

    ARCHIVED = "archived"
    ALREADY_ARCHIVED = "already_archived"
    RETRIEVED = "retrieved"
    PARTIAL = "partial"
    DATASET_ERROR = "dataset_error"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GIVEN_UP = "given_up"


GOOD = frozenset({Outcome.ARCHIVED, Outcome.ALREADY_ARCHIVED, Outcome.RETRIEVED})


class Phase(StrEnum):
    """What a workflow does now; the search attribute `Phase`."""

    PLANNING = "planning"
    WRITING = "writing"
    VERIFYING = "verifying"
    WAITING_TAPE = "waiting_tape"
    REGISTERING = "registering"
    FREEING = "freeing"
    RECALLING = "recalling"
    COPYING = "copying"
    PAUSED = "paused"
    PARKED = "parked"
    UNDOING = "undoing"
    DONE = "done"


IDLE = frozenset({Phase.WAITING_TAPE, Phase.RECALLING, Phase.PAUSED, Phase.PARKED})
"""Phases in which a dataset does not count against its job's window."""


class JobStatus(StrEnum):
    """SciCat v3 `jobStatusMessage`, v4 `statusCode`."""

    IN_PROGRESS = "inProgress"
    SUCCESSFUL = "finishedSuccessful"
    WITH_DATASET_ERRORS = "finishedWithDatasetErrors"
    UNSUCCESSFUL = "finishedUnsuccessful"


def finished(status: str) -> bool:
    """Whether a job in this status is left alone."""
    return status in (JobStatus.SUCCESSFUL, JobStatus.WITH_DATASET_ERRORS, JobStatus.UNSUCCESSFUL)


def job_status(outcomes: Iterable[Outcome], *, cancelled: bool = False) -> JobStatus:
    """How a job ends whose datasets ended so; `partial` counts as some good."""
    ended = list(outcomes)
    if cancelled or not ended:
        return JobStatus.UNSUCCESSFUL
    if all(outcome in GOOD for outcome in ended):
        return JobStatus.SUCCESSFUL
    some_good = any(outcome in GOOD or outcome is Outcome.PARTIAL for outcome in ended)
    if some_good or all(outcome is Outcome.DATASET_ERROR for outcome in ended):
        return JobStatus.WITH_DATASET_ERRORS
    return JobStatus.UNSUCCESSFUL


class FoundLifecycle(Message):
    """The life cycle as it was read before anything was changed: what a cancelled archive goes back to."""

    archivable: bool = True
    retrievable: bool = False
    archive_status: str = "datasetCreated"

    def without_stale_start(self) -> "FoundLifecycle":
        """A `started` that no run stands behind counts as never started."""
        if self.archive_status != ArchiveMoment.START.status:
            return self
        return FoundLifecycle(archivable=True, retrievable=self.retrievable, archive_status="datasetCreated")


def _told(reason: str) -> dict[str, str]:
    """A reason as SciCat's schema has it, an object: its Python client takes a string for a broken dataset."""
    return {"message": reason}


class ArchiveMoment(StrEnum):
    """The moments of an archive at which the life cycle changes."""

    START = "start"
    DATASET_ERROR = "dataset_error"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    COMMITTED = "committed"
    FREED = "freed"

    @property
    def status(self) -> str:
        """`archiveStatusMessage` at this moment; empty where it is the one found, or stays."""
        return _ARCHIVE_STATUS[self]


_ARCHIVE_STATUS = {
    ArchiveMoment.START: "started",
    ArchiveMoment.DATASET_ERROR: "missingFilesError",
    ArchiveMoment.FAILURE: "scheduleArchiveJobFailed",
    ArchiveMoment.CANCELLED: "",
    ArchiveMoment.COMMITTED: "datasetOnArchiveDisk",
    ArchiveMoment.FREED: "",
}


def archive_fields(moment: ArchiveMoment, found: FoundLifecycle, reason: str = "") -> dict[str, object]:
    """Fields for a PATCH of `datasetlifecycle`."""
    match moment:
        case ArchiveMoment.START:
            return {"archiveStatusMessage": moment.status, "archivable": False, "archiveReturnMessage": _told("")}
        case ArchiveMoment.COMMITTED:
            return {
                "archiveStatusMessage": moment.status,
                "archivable": False,
                "retrievable": True,
                "archiveReturnMessage": _told(reason),
            }
        case ArchiveMoment.FREED:
            return {"isOnCentralDisk": False}
        case _:
            return {
                "archiveStatusMessage": moment.status or found.archive_status,
                "archivable": found.archivable if moment is ArchiveMoment.CANCELLED else True,
                "retrievable": found.retrievable,
                "archiveReturnMessage": _told(reason),
            }


def uploaded_fields() -> dict[str, object]:
    """Fields for a PATCH of `datasetlifecycle` when all files have arrived: from here on it may be archived."""
    return {"archiveStatusMessage": "datasetCreated", "archivable": True}


class RetrieveMoment(StrEnum):
    """The moments of a retrieval at which the life cycle changes; the value is `retrieveStatusMessage`."""

    START = "started"
    RETRIEVED = "datasetRetrieved"
    FAILED = "datasetRetrievalFailed"


def retrieve_fields(moment: RetrieveMoment, reason: str = "") -> dict[str, object]:
    """Fields for a PATCH of `datasetlifecycle`; archivable and retrievable are never touched."""
    return {"retrieveStatusMessage": moment.value, "retrieveReturnMessage": _told(reason)}
