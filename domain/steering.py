"""What a person may tell a running workflow, what keeps that from having an effect, and what is answered."""

from enum import StrEnum

from domain.lifecycle import Phase
from domain.message import Message
from domain.progress import DatasetProgress, JobProgress


class Verb(StrEnum):
    """What can be told."""

    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    GIVE_UP = "give-up"
    CANCEL = "cancel"


JOB_VERBS = (Verb.PAUSE, Verb.RESUME, Verb.CANCEL)
"""What a job passes on to its datasets; parked is a dataset, so retry and give-up are told to it."""


class Steered(Message):
    """What a verb did, and where things stood right after it."""

    verb: Verb
    acted: tuple[str, ...]
    """Workflow ids of those that were told."""
    left_alone: dict[str, str] = {}
    """Workflow id → why it was not, or to no effect."""
    job: JobProgress | None = None
    datasets: tuple[DatasetProgress, ...] = ()


class JobSummary(Message):
    """One line of a list of jobs."""

    id: str
    type: str
    phase: Phase
    """parked: at least one of its datasets is; done: it has ended."""
    outcome: str = ""
    """Status in SciCat of a job that has ended."""
    owner_group: str = ""
    started: str
    """RFC 3339, UTC."""
    ended: str = ""
    workflow_id: str
    run_id: str


class JobList(Message):
    """Jobs that Temporal remembers: those that run, then those that ended last."""

    jobs: tuple[JobSummary, ...]
    next_page: str = ""
    """Give it as `page` to get those that follow; empty: there are none."""


def dataset_refusal(shown: DatasetProgress, verb: Verb) -> str:
    """Why the verb would have no effect on this dataset now; empty if it has one."""
    if shown.phase is Phase.DONE:
        return f"already ended: {shown.outcome or shown.note}"
    if verb in (Verb.CANCEL, Verb.GIVE_UP) and shown.committed:
        return "too late, already archived: behind the commit point it only goes forward"
    again = verb is Verb.CANCEL and shown.cancelled_by
    if verb in (Verb.PAUSE, Verb.CANCEL, Verb.GIVE_UP) and shown.ending and not again:
        return "too late: it is about to end"
    if verb is Verb.GIVE_UP and shown.phase is not Phase.PARKED:
        return f"not parked but {shown.phase.value}: only what is parked can be given up; cancel ends it in any phase"
    return ""


def job_refusal(shown: JobProgress, verb: Verb) -> str:
    """Why the verb would have no effect on this job now; empty if it has one."""
    if shown.phase is Phase.DONE:
        return f"already ended: {shown.status or shown.note}"
    if verb is Verb.CANCEL and shown.reporting and not shown.cancelled:
        return "too late: all of its datasets have ended, and its result is being reported to SciCat"
    return ""
