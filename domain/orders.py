"""What a workflow is started with: all that settings decide is decided when a job starts, and never read again."""

from enum import StrEnum

from domain.lifecycle import JobType
from domain.message import Message


class Timing(Message):
    """How long things may take, in seconds."""

    retry_s: float = 24 * 3600
    """Infrastructure errors are retried this long before the dataset is parked."""
    retry_initial_s: float = 1
    retry_longest_s: float = 300
    park_s: float = 7 * 24 * 3600
    """A parked dataset is given up after this time."""
    slowest_transfer_bytes_s: float = 5 * 2**20
    """A transfer may take its size at this rate on top of `retry_s`."""
    heartbeat_s: float = 10
    poll_initial_s: float = 1
    poll_longest_s: float = 300
    recall_deadline_s: float = 7 * 24 * 3600
    migration_deadline_s: float = 2 * 24 * 3600
    pin_lifetime_s: float = 3600
    second_look_s: float = 60
    """An undo looks again after this time, for a late answer of what it undid."""
    watch_s: float = 300
    """How often a job looks for datasets that were terminated."""


class Packing(Message):
    """How datasets are cut into datablocks."""

    target_bytes: int = 200_000_000_000
    target_files: int = 20_000
    smallest_chunk: int = 16 * 2**20


class Limits(Message):
    """How much goes on at a time."""

    window: int = 200
    """Datasets of a job that move at a time; waiting and parked ones do not count."""
    blocks: int = 4
    """Datablocks of a dataset that are written, verified or copied at a time."""
    history: int = 10_000
    """Events after which a run gives way to a fresh one, if the server has not asked for that before."""


class VerifyPolicy(StrEnum):
    """When a datablock is read back from the LTS and compared."""

    READ_BACK = "read-back"
    """As soon as it is written, out of the cache."""
    TAPE_READ_BACK = "tape-read-back"
    """When it is on tape and not in the cache any more: recalled, so that the bytes come from tape."""


class Writing(Message):
    """How datablocks are written to the LTS."""

    verify: VerifyPolicy = VerifyPolicy.READ_BACK
    free_space_percentage: float = 0
    """With less of the LTS free, no datablock is begun; 0: nobody looks."""


class Subscriber(Message):
    """A job that waits for a dataset."""

    job_id: str
    n: int
    """Position of the dataset in the job."""
    windowed: bool = False
    """The job has more datasets than its window: it wants to know when this one waits."""


class FilesOf(Message):
    """Which job names the files to restore: its n-th dataset."""

    job_id: str
    n: int


class DatasetOrder(Message):
    """Archive or retrieve one dataset."""

    pid: str
    files_of: FilesOf | None = None
    """Retrieve just these files; None: all of it."""
    timing: Timing = Timing()
    packing: Packing = Packing()
    writing: Writing = Writing()
    limits: Limits = Limits()


class JobOrder(Message):
    """Carry out one SciCat job."""

    job_id: str
    type: JobType
    timing: Timing = Timing()
    packing: Packing = Packing()
    writing: Writing = Writing()
    limits: Limits = Limits()
