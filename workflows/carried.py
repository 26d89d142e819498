"""What runs are started with, and what outlives continue-as-new.

Apart from the workflows, since the sandbox imports those anew for each run, and a pydantic class takes a millisecond.
"""

from datetime import datetime

from activities.catalogue import Looked, OpenedJob
from activities.landing_zone import PlannedDataset
from activities.retrieval import LookedRetrieval
from domain.bitmap import Bitmap
from domain.lifecycle import Phase
from domain.message import Message
from domain.orders import DatasetOrder, JobOrder, Subscriber


class Carried(Message):
    """What both kinds of dataset workflows carry over."""

    subscribers: tuple[Subscriber, ...] = ()
    paused_by: str = ""
    shown: Phase = Phase.PLANNING
    """What the jobs were told last."""


class ArchiveState(Carried):
    """What a continued archive starts from."""

    looked: Looked | None = None
    planned: PlannedDataset | None = None
    written: Bitmap = Bitmap()
    """Datablocks that stand on the LTS; verified and on tape are apart, only all three together are safe."""
    verified: Bitmap = Bitmap()
    on_tape: Bitmap = Bitmap()
    generations: dict[int, int] = {}
    tape_deadline: datetime | None = None


class ArchiveOrder(DatasetOrder):
    """One argument for a run, since the SDK takes type hints only if all arguments are given."""

    state: ArchiveState = ArchiveState()


class RetrieveState(Carried):
    """What a continued retrieval starts from."""

    looked: LookedRetrieval | None = None
    """But for what is missing, which is `open`."""
    open: Bitmap = Bitmap()
    """Positions that are neither delivered nor lost; those below that are neither waited for nor ready are wanted."""
    ready: Bitmap = Bitmap()
    """Positions that may be read."""
    recalls: dict[str, Bitmap] = {}
    """Recall → positions that it brings or keeps on disk."""
    pinned_since: dict[str, datetime] = {}
    asked: dict[int, Bitmap] = {}
    """How often, if more than once → positions."""
    lost: Bitmap = Bitmap()
    reasons: dict[int, str] = {}
    bytes_done: int = 0
    deadline: datetime | None = None


class RetrieveOrder(DatasetOrder):
    """One argument for a run."""

    state: RetrieveState = RetrieveState()


class JobState(Message):
    """What a continued job starts from."""

    opened: OpenedJob | None = None
    joined: int = 0
    """Datasets joined so far, from the first one on."""
    open: dict[int, str] = {}
    """Position → pid of those that have not ended."""
    restoring: tuple[int, ...] = ()
    """Positions of which the job names single files."""
    idle: tuple[int, ...] = ()
    done: Bitmap = Bitmap()
    counts: dict[str, int] = {}
    parked: dict[int, str] = {}
    """Position → why; empty where SciCat has been told."""
    paused: bool = False
    told_pause: bool = False


class CarriedJob(JobOrder):
    """One argument for a run."""

    state: JobState = JobState()
