"""Whose step goes first where more waits on a task queue than it has slots for."""

from enum import IntEnum

from domain.lifecycle import JobType

MAX_FAIRNESS_KEY_BYTES = 64
"""Temporal refuses longer ones."""


class Urgency(IntEnum):
    """Temporal's priority key: on one queue, whatever has a smaller number goes before all that has a larger one.

    Only the light steps of `control` have different ones, and they are short, so nothing starves. Everything that reads
    from the LTS counts as a retrieval: an archive that is not read back at once finds its bytes on tape only.
    """

    RETRIEVE = 2
    """Somebody waits for it, and its pins take up the LTS's disk; somebody waits for an upload to be let in, too."""
    ARCHIVE = 3
    """Temporal's own default."""
    UPKEEP = 4
    """What the schedules do."""


def urgency_of(job_type: JobType) -> Urgency:
    """How urgent a job is, and the datasets that it is the first to ask for."""
    return Urgency.RETRIEVE if job_type is JobType.RETRIEVE else Urgency.ARCHIVE


def fairness_key(owner_group: str) -> str:
    """By whom a queue takes turns within one urgency: the owner group, cut to what Temporal allows.

    Groups that differ behind the cut share one turn.
    """
    return owner_group.encode()[:MAX_FAIRNESS_KEY_BYTES].decode(errors="ignore")
