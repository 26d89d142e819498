"""Where a workflow stands: one model for the Temporal query, the API and the CLI.

The workflow fills in what it knows. What only `describe` knows (bytes moved inside a running activity, attempts, last
error) is merged in by the API, since a workflow never sees the heartbeats of its activities.
"""

from domain.lifecycle import Outcome, Phase
from domain.message import Message
from domain.uploads import UploadEnd, UploadPhase

SHOWN = 200
"""Datablocks or datasets that one answer lists; counts cover all of them."""

DETAILED = 10
"""Jobs or datasets that the details of a workflow name."""


class Moved(Message):
    """The details of a heartbeat: what `describe` shows of a running copy."""

    index: int = 0
    """Of the datablock, from 1 on."""
    bytes_done: int = 0
    bytes_total: int = 0
    chunks: int = 0
    """Leading chunks of a verification that matched: the next attempt begins behind them."""


class StepProgress(Message):
    """A step that runs, waits in a queue, or waits for its next attempt; only `describe` knows of it."""

    name: str
    """Of the activity."""
    queue: str = ""
    state: str = "queued"
    """queued, running, waiting (for its next attempt) or stopping."""
    since: str = ""
    """RFC 3339, UTC: when this attempt began, or was put into the queue; of a waiting step, when the last one ended."""
    attempt: int = 1
    next_attempt: str = ""
    """RFC 3339, UTC; of a waiting step."""
    last_error: str = ""
    """Class and sentence of the last attempt that failed; a poll whose time has not come is none."""
    block: int = 0
    """Datablock that it moves, from 1 on; 0: none, or not known yet."""
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


class _Progress(Message):
    """What is said of every workflow."""

    workflow_id: str = ""
    run_id: str = ""
    steps: tuple[StepProgress, ...] = ()
    """Its pending activities, at most `SHOWN`; empty in the answer of the workflow itself."""
    note: str = ""
    """What the API adds, e.g. that no worker polls a queue."""


class DatasetProgress(_Progress):
    """An archive or a retrieval of one dataset."""

    pid: str
    kind: str
    phase: Phase
    since: str = ""
    """RFC 3339, UTC: when the phase began."""
    waiting_for: str = ""
    waiting_since: str = ""
    """RFC 3339, UTC; empty while nothing is waited for."""
    paused_by: str = ""
    cancelled_by: str = ""
    """Why it was cancelled, as soon as that is known; it may still be undoing."""
    committed: bool = False
    """An archive behind its commit point: neither cancelled nor given up any more."""
    ending: bool = False
    """It has its outcome, or undoes what it did: too late to cancel it or to give it up."""
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
    others: dict[str, str] = {}
    """Other workflows of the same dataset that the API knows: workflow id → outcome, or phase while it runs."""


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


class JobProgress(_Progress):
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
    cancelled: bool = False
    reporting: bool = False
    """All that is left is its report to SciCat: too late to cancel it."""


class UploadProgress(Message):
    """Where an upload stands."""

    pid: str
    phase: UploadPhase
    reserved_bytes: int = 0
    """What it keeps of the room in the landing zone."""
    expires: str = ""
    """RFC 3339, UTC: when it is dropped if nobody goes on with it; empty of one that is kept until it is archived."""
    urls_until: str = ""
    """RFC 3339, UTC: no URL that was given out can be used after it; empty: none was."""
    outcome: UploadEnd | None = None
    note: str = ""


class LandingZoneProgress(Message):
    """Who was promised how much."""

    counted: bool
    """Whether it is known yet what lies there; until then requests wait."""
    taken_bytes: int = 0
    """By promises and by what nobody was promised."""
    others_bytes: int = 0
    """Of it, what nobody was promised."""
    reserved: dict[str, int] = {}
    """Dataset → bytes, the largest first, at most `SHOWN`."""
    datasets: int = 0


def dataset_details(shown: DatasetProgress) -> str:
    """The same in Markdown, for Temporal's web page: short, since the workflow keeps it in its memory.

    It begins with a title, since a run that follows another has lost the summary that the first was started with.
    """
    lines = [f"{shown.kind} of `{shown.pid}`", f"**{_spaced(shown.phase)}** since {shown.since}"]
    lines += [f"waits for: {shown.waiting_for}"] if shown.waiting_for else []
    lines += [f"paused by {shown.paused_by}"] if shown.paused_by else []
    lines += [f"cancelled: {shown.cancelled_by}"] if shown.cancelled_by else []
    states = ", ".join(f"{count} {_spaced(state)}" for state, count in sorted(shown.states.items()))
    lines += [f"{shown.blocks_total} datablocks: {states}"] if states else []
    lines += [f"{shown.bytes_total:,} bytes"] if shown.bytes_total else []
    lines += [f"**{_spaced(shown.outcome)}** {shown.error_class} {shown.message}".rstrip()] if shown.outcome else []
    lines += ["asked for by " + ", ".join(f"`{job}`" for job in shown.jobs[:DETAILED])] if shown.jobs else []
    return _markdown(lines)


def job_details(shown: JobProgress) -> str:
    """A job in Markdown."""
    lines = [f"{shown.type} job `{shown.id}`", f"**{_spaced(shown.phase)}** {shown.status}".rstrip()]
    counts = {"open": shown.datasets_open, "parked": shown.datasets_parked, **dict(sorted(shown.outcomes.items()))}
    if shown.datasets_total:
        told = ", ".join(f"{count} {_spaced(what)}" for what, count in counts.items() if count)
        lines.append(f"{shown.datasets_total} datasets: {told}")
    lines += [
        f"`{dataset.pid}` {dataset.phase}" + (f": {dataset.message}" if dataset.message else "")
        for dataset in shown.datasets[:DETAILED]
        if dataset.pid
    ]
    lines += ["cancelled by an operator"] if shown.cancelled else []
    lines += [shown.message] if shown.message else []
    return _markdown(lines)


def upload_details(shown: UploadProgress) -> str:
    """An upload in Markdown."""
    lines = [f"upload of `{shown.pid}`", f"**{_spaced(shown.phase)}**"]
    lines += [f"{shown.reserved_bytes:,} bytes are kept for it"] if shown.reserved_bytes else []
    lines += [f"dropped {shown.expires} if nobody goes on with it"] if shown.expires else []
    lines += [shown.note] if shown.note else []
    lines += [f"**{_spaced(shown.outcome)}**"] if shown.outcome else []
    return _markdown(lines)


def landing_zone_details(shown: LandingZoneProgress) -> str:
    """Who was promised how much, in Markdown."""
    if not shown.counted:
        return _markdown(["being counted; requests wait"])
    lines = [
        f"{shown.taken_bytes:,} bytes are taken",
        f"{shown.others_bytes:,} of them by what nobody was promised",
        f"{shown.datasets} datasets have a promise",
    ]
    lines += [f"`{pid}` {count:,} bytes" for pid, count in list(shown.reserved.items())[:DETAILED]]
    return _markdown(lines)


def _spaced(word: str) -> str:
    return word.replace("_", " ")


def _markdown(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
