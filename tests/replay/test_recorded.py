"""Workflows that run while the software is replaced go on: every recorded history replays with today's code.

Where one does not, the change needs `workflow.patched`, or, before anybody has used the release, `make histories`.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from tests.replay.recorded import FOLDER, features, load
from worker.build import WORKFLOWS
from workflows import patches

RECORDED = sorted(FOLDER.glob("*.json.gz"))


@pytest.mark.parametrize("kind", [each.__name__ for each in WORKFLOWS])
async def test_what_was_recorded_replays(kind: str) -> None:
    histories = [load(path) for path in RECORDED if path.name.startswith(f"{kind}-")]
    assert histories, f"no history of {kind} was recorded: `make histories`"
    replayer = Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter)

    async def each() -> AsyncIterator[WorkflowHistory]:
        for history in histories:
            yield history

    # All in one go: to begin a replay takes longer than the replay.
    results = await replayer.replay_workflows(each(), raise_on_replay_failure=False)
    assert results.replay_failures == {}


def test_what_was_recorded_holds_every_step_signal_and_way_to_end() -> None:
    seen = set[str]().union(*(features(load(path)) for path in RECORDED))
    signals = {"join", "leave", "pause", "resume", "retry", "give_up", "recall_ready", "dataset_done", "dataset_phase"}
    signals |= {"urls_issued", "freed", "reopen", "release", "counted"}
    archiving = {"plan_dataset", "open_block", "write_block", "verify_block", "await_tape", "register_blocks"}
    reading_back = {"loosen_block", "await_evicted", "recall_block", "await_recalled", "release_block"}
    undoing = {"undo_blocks", "unregister_blocks"}
    retrieving = {"look_retrieval", "request_recall", "await_recall", "copy_block", "release_recall", "name_blocks"}
    retrieving |= {"restore_files"}
    of_jobs = {"open_job", "join_datasets", "watch_datasets", "finish_job", "report_job"}
    of_uploads = {"count_landing_zone", "sweep_upload", "close_upload", "submit_archive"}
    steps = archiving | reading_back | undoing | retrieving | of_jobs | of_uploads
    ends = {
        "workflow_execution_cancel_requested_event_attributes",
        "workflow_execution_completed_event_attributes",
        "workflow_execution_continued_as_new_event_attributes",
    }

    assert signals <= {name.rpartition(": ")[2] for name in seen if "signaled" in name}
    assert steps <= {name.rpartition(": ")[2] for name in seen if "scheduled" in name}
    assert "marker_recorded_event_attributes" in seen, "steps on the spot"
    assert set(patches.ALL) <= {name.rpartition(": ")[2] for name in seen if "marker" in name}
    assert ends <= seen


@workflow.defn(name="ArchiveDataset", sandboxed=False)
class Changed:
    """Sleeps where `ArchiveDataset` looks."""

    @workflow.run
    async def run(self, _: Any) -> None:
        await workflow.sleep(1)


async def test_a_workflow_that_does_other_steps_is_noticed() -> None:
    path = next(path for path in RECORDED if path.name.startswith("ArchiveDataset-"))
    replayer = Replayer(workflows=[Changed], data_converter=pydantic_data_converter)

    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(load(path))
