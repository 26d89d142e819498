"""The rows of the table: every step that the worker registers, and what there has to be after each of its mishaps."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from temporalio.client import Client

from activities.consistency import ConsistencyActivities
from activities.expiring import ExpiringActivities
from activities.restoring import RestoringActivities
from activities.retrieval import RetrievalActivities
from activities.uploading import UploadActivities
from cli.ports import Ports
from cli.stack_environment import settings_for
from tests.undo.mishaps import COMMIT, Mishap
from worker.build import world
from workflows import queues


class End(StrEnum):
    """What there is afterwards."""

    CLEAN = "as if never begun"
    ARCHIVED = "archived"
    STOPPED = "not retrieved, no pin left"
    RETRIEVED = "retrieved"


@dataclass(frozen=True)
class Row:
    """One step on one side of the commit point."""

    step: str
    behind: bool = False
    retrieval: bool = False

    @property
    def of_job(self) -> bool:
        """A job's own step: it is retried until it is done, and a cancel is the job's."""
        return self.step in OF_JOBS

    @property
    def side(self) -> bool | None:
        """Where it is struck: behind the commit point, before it, or (None) wherever it comes."""
        return None if self.of_job or self.step in LAST_WORDS else self.behind

    @property
    def where(self) -> str:
        """Which of its rows this is, if the step has two."""
        return ", behind the commit point" if self.behind and self.step in BOTH else ""

    @property
    def calm(self) -> bool:
        """An undo or a last word: it is neither given up nor cancelled."""
        return self.step in CALM or self.ends is End.CLEAN

    @property
    def ends(self) -> End:
        """How the story ends in which it is struck, if nothing befalls it."""
        if self.step in UNDO or (self.step in BOTH_AND_UNDO and not self.behind):
            return End.CLEAN
        if self.retrieval:
            return End.STOPPED if self.step == "name_blocks" else End.RETRIEVED
        return End.ARCHIVED

    def end(self, mishap: Mishap) -> End | None:
        """What has to be there afterwards; None if the mishap cannot befall the step."""
        stopped = End.STOPPED if self.retrieval else End.CLEAN
        match mishap:
            case Mishap.TWICE | Mishap.LOST:
                return self.ends
            case Mishap.FAILS:
                return self.ends if self.of_job or self.calm or self.behind else stopped
            case Mishap.MISTAKE:
                if self.of_job or self.calm:
                    return None
                return self.ends if self.behind else stopped
            case Mishap.CANCELLED:
                late = self.behind or self.step in LAST_WORDS | ALL_COPIED or self.ends is stopped
                return self.ends if late else stopped
            case Mishap.CROSSED if self.step not in ON_THE_SPOT:
                return None
            case Mishap.CROSSED:
                return self.ends if self.behind or self.step in ENDS_THE_TASK else stopped


OF_JOBS = {"open_job", "join_datasets", "watch_datasets", "report_job", "finish_job"}

BEHIND = {COMMIT, "free_dataset"}
"""Steps that come behind the commit point only. Whatever is not named here has to be undone."""

BOTH = {"move_archive", "remove_files", "undo_blocks"}
"""Steps on both sides, so they have two rows."""

ON_THE_SPOT = {
    "look",
    "move_archive",
    "plan_dataset",
    "register_blocks",
    COMMIT,
    "free_dataset",
    "deliver_outcome",
    "move_retrieve",
}
"""Steps of small datasets that are tried within a workflow task; `open_block` is only where there is one datablock."""

ENDS_THE_TASK = {"register_blocks", "deliver_outcome"}
"""Steps behind which everything up to the end is done in the same workflow task, before anybody hears of a cancel."""

UNDO = {"unregister_blocks"}

BOTH_AND_UNDO = {"remove_files", "undo_blocks"}
"""Before the commit point they belong to an undo."""

CALM = {*UNDO, "release_block", "release_recall", "name_blocks", "deliver_outcome"}

LAST_WORDS = {*UNDO, "deliver_outcome", "finish_job", "name_blocks"}
"""When they run it has ended already, well or not."""

ALL_COPIED = {"release_recall"}
"""Steps that are cancelled when every datablock is copied: then nothing is left to cancel."""

_RETRIEVAL = (RetrievalActivities, RestoringActivities)
_APART = (ConsistencyActivities, ExpiringActivities, UploadActivities)
"""What Schedules and uploads run is no step of an archive or a retrieval."""


async def registered() -> list[Row]:
    """A row for every step of an archive or a retrieval that a worker of ours registers; nothing is connected to."""
    settings = settings_for(Ports(), {}, {"S3_ENDPOINT": "http://127.0.0.1:9", "LTS_ENDPOINT": "http://127.0.0.1:9"})
    async with world(settings, cast("Client", None), queues.ALL) as work:
        steps = [step for queue in work.values() for step in queue.activities]
    taking_part = [step for step in cast("list[Any]", steps) if not isinstance(step.__self__, _APART)]
    return [row for step in taking_part for row in _rows(step)]


def _rows(step: Any) -> Iterator[Row]:
    name: str = step.__name__
    retrieval = isinstance(step.__self__, _RETRIEVAL) or name == "move_retrieve"
    for behind in (False, True) if name in BOTH else (name in BEHIND,):
        yield Row(name, behind=behind, retrieval=retrieval)
