"""Where a workflow stands: one model for the Temporal query, the API and the CLI.

The workflow fills in what it knows. What only `describe` knows (bytes moved inside a running activity, attempts, last
error) is merged in by the API, since a workflow never sees the heartbeats of its activities.
"""

from domain.lifecycle import Outcome, Phase
from domain.message import Message

SHOWN = 200
"""Datablocks or datasets that one answer lists; counts cover all of them."""


class Moved(Message):
    """The details of a heartbeat: what `describe` shows of a running copy."""

    index: int = 0
    """Of the datablock, from 1 on."""
    bytes_done: int = 0
    bytes_total: int = 0


class BlockProgress(Message):
    """One datablock on its way."""

    index: int
    name: str = ""
    state: str = "planned"
    """What it does or waits for now; `safe` when it is all three of the following."""
    written: bool = False
    verified: bool = False
    """Read back and compared."""
    on_tape: bool = False
    bytes_total: int = 0
    bytes_done: int = 0
    attempt: int = 0
    last_error: str = ""


class DatasetProgress(Message):
    """An archive or a retrieval of one dataset."""

    pid: str
    kind: str
    phase: Phase
    since: str = ""
    """RFC 3339, UTC: when the phase began."""
    waiting_for: str = ""
    paused_by: str = ""
    bytes_total: int = 0
    bytes_done: int = 0
    blocks_total: int = 0
    states: dict[str, int] = {}
    """How many datablocks are in which state."""
    safety: dict[str, int] = {}
    """Of an archive: how many datablocks are `written`, `verified`, `on_tape`, and `safe`: all three."""
    blocks: tuple[BlockProgress, ...] = ()
    """Those that are not finished first, at most `SHOWN`."""
    jobs: tuple[str, ...] = ()
    """Workflow ids of the jobs that wait for it."""
    outcome: Outcome | None = None
    error_class: str = ""
    message: str = ""
    note: str = ""
    """What the API adds, e.g. that no worker polls a queue."""


class JobDatasetProgress(Message):
    """One dataset as its job sees it."""

    pid: str
    n: int = 0
    """Position in the job."""
    phase: str = ""
    status: str = ""
    error_class: str = ""
    message: str = ""
    bytes: int = 0


class JobProgress(Message):
    """A job."""

    id: str
    type: str
    phase: Phase
    status: str = ""
    """The SciCat status last sent."""
    datasets_total: int = 0
    datasets_open: int = 0
    datasets_parked: int = 0
    """Those that wait for a person."""
    outcomes: dict[str, int] = {}
    datasets: tuple[JobDatasetProgress, ...] = ()
    message: str = ""
    workflow_id: str = ""
    run_id: str = ""
    note: str = ""
