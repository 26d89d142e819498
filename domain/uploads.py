"""An upload from the grant of its room to the end of its archive, and what is said on the way."""

from datetime import datetime
from enum import StrEnum

from domain.message import Message
from domain.reservations import Reservations


class UploadPhase(StrEnum):
    """What an upload does now; the search attribute `Phase`."""

    UPLOADING = "uploading"
    FINALIZED = "finalized"
    """Complete; it waits for an archive to free the landing zone."""
    ABORTED = "aborted"
    """Thrown away; what is still under way is swept when its time is up."""
    DONE = "done"


class UploadEnd(StrEnum):
    """How an upload ended; the search attribute `Outcome`."""

    FREED = "freed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    REFUSED = "refused"
    """It never began."""


class ReserveSpace(Message):
    """Promise a dataset room in the landing zone."""

    pid: str
    bytes: int
    limit_bytes: int
    """How much may be taken in all."""
    ticket: str
    """Of this request."""


class Reserved(Message):
    """Whether there was room."""

    granted: bool
    taken_bytes: int
    """By all datasets, afterwards."""


class ReleaseSpace(Message):
    """Give a promise back."""

    pid: str
    ticket: str


class RequestUpload(Message):
    """Begin an upload whose room was promised, or go on with one."""

    bytes: int
    ticket: str
    reservation_s: float


class FinalizeUpload(Message):
    """All is uploaded."""

    create_job: bool
    owner_group: str = ""
    owner_user: str = ""
    contact_email: str = ""


class FinalizedUpload(Message):
    """What came of it."""

    job_id: str = ""
    """SciCat's archive job that waits or runs; empty if there is none."""
    archived: bool = False
    """It was archived already."""


class UploadState(Message):
    """What outlives continue-as-new."""

    phase: UploadPhase = UploadPhase.UPLOADING
    granted: int = 0
    ticket: str = ""
    urls_until: datetime | None = None
    expires: datetime | None = None


class UploadOrder(Message):
    """One argument for a run."""

    pid: str
    reservation_s: float
    state: UploadState = UploadState()


class LandingZoneOrder(Message):
    """One argument for a run."""

    reservations: Reservations | None = None
    """None: to be counted first."""
