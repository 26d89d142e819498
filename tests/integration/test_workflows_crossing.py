"""What reaches a dataset in its last workflow task, in which it tells its jobs how it ended and closes.

Temporal refuses the end then, and runs the task again with the news first: the steps on the spot have worked, and the
workflow does not know it.
"""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import WorkflowHandle

from domain.lifecycle import JobStatus, JobType, Outcome, Phase
from tests.fakes.stage import QUICK, Dataset, Stage, namespace, on_stage
from tests.lab import eventually
from worker import bounding

SIGNALLED = EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED
REFUSED = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND

PATIENT_S = 4
"""A step on the spot is held here until the news is there: longer than its two seconds on a busy machine."""


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Stage]:
    monkeypatch.setattr(bounding, "SPOT_S", PATIENT_S)
    timing = QUICK.model_copy(update={"second_look_s": 1})
    async with namespace() as client, on_stage(client, timing) as stage:
        yield stage


async def about_to_end(stage: Stage, kind: JobType = JobType.ARCHIVE) -> WorkflowHandle[Any, Any]:
    """Start job 1 and hold the step on the spot in which its dataset tells it the end."""
    stage.world.hold("deliver_outcome")
    job = await stage.start_job("1", kind)
    await stage.world.reached("deliver_outcome")
    return job


async def passed_on(job: WorkflowHandle[Any, Any]) -> None:
    """Wait until a job's dataset has been sent a signal."""

    async def there() -> bool:
        return any(event.event_type == SIGNALLED for event in (await job.fetch_history()).events)

    await eventually(there)


async def was_refused(dataset: Dataset) -> bool:
    """Whether a workflow task of it was run again because of news."""
    events = (await dataset.handle.fetch_history()).events
    return any(event.workflow_task_failed_event_attributes.cause == REFUSED for event in events)


async def test_a_dataset_that_has_told_its_end_is_not_held_by_a_job_that_is_paused(stage: Stage) -> None:
    stage.world.job("1", "a")
    job = await about_to_end(stage)
    await job.signal("pause")
    await passed_on(job)
    stage.world.let_go("deliver_outcome")

    dataset = stage.archiving("a")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert await was_refused(dataset)
    finished = await job.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL


async def test_a_paused_job_that_leaves_a_dataset_does_not_end_the_pause_of_somebody_else(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.job("2", "a")
    stage.world.hold("write_block")
    first, second = await stage.start_job("1"), await stage.start_job("2")
    await stage.world.reached("write_block")
    await stage.world.until(lambda: stage.world.done["join_datasets"] == 2)
    dataset = stage.archiving("a")
    await first.signal("pause")
    assert (await dataset.phase(Phase.PAUSED)).paused_by == "job 1"
    await dataset.signal("pause")
    await first.cancel()
    await first.result()
    stage.world.let_go("write_block")

    assert (await dataset.progress()).paused_by == "an operator"
    await dataset.signal("resume")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    await second.result()


async def test_a_job_that_is_cancelled_does_not_take_back_what_is_archived(stage: Stage) -> None:
    stage.world.job("1", "a")
    job = await about_to_end(stage)
    await job.cancel()
    await passed_on(job)
    stage.world.let_go("deliver_outcome")

    dataset = stage.archiving("a")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert await was_refused(dataset)
    held = stage.world.held["a"]
    assert (held.lts, held.registered, held.committed) == ({(1, 0)}, {(1, 0)}, True)
    assert "too late" in (await dataset.progress()).note
    assert stage.world.outcome("1").status is Outcome.ARCHIVED
    await job.result()


async def test_nor_does_it_say_cancelled_of_what_was_committed_by_a_worker_that_died(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, but that the worker is gone before it has kept the outcome."""
    put, died = stage.world.state.put_outcome, False

    async def put_unless_it_dies(*outcome: Any) -> None:
        nonlocal died
        if died:
            await put(*outcome)
        died = True

    monkeypatch.setattr(stage.world.state, "put_outcome", put_unless_it_dies)
    stage.world.job("1", "a")
    job = await about_to_end(stage)
    await job.cancel()
    await passed_on(job)
    stage.world.hold("finish_job")
    stage.world.let_go("deliver_outcome")

    assert (await stage.archiving("a").ended()).status is Outcome.ARCHIVED
    assert stage.world.outcome("1").status is Outcome.ARCHIVED
    stage.world.let_go("finish_job")
    await job.result()


async def test_what_a_worker_commits_that_was_thought_dead_is_not_freed(stage: Stage) -> None:
    """The first look of the undo has taken everything off the LTS, and the second finds a commit."""
    stage.world.job("1", "a")
    stage.world.hold("await_tape")
    job = await stage.start_job("1")
    await stage.world.reached("await_tape")
    dataset = stage.archiving("a")
    await dataset.cancel()
    await stage.world.until(lambda: stage.world.done["undo_blocks"] == 1)
    held = stage.world.held["a"]
    held.registered, held.committed = {(1, 0)}, True

    assert (await dataset.ended()).status is Outcome.CANCELLED
    assert stage.world.calls["unregister_blocks"] == 2
    assert held.landed
    await job.result()


async def test_what_is_retrieved_is_not_said_to_have_failed(stage: Stage) -> None:
    stage.world.job("1", "a", kind="retrieve")
    stage.world.held["a"].without_tape = True
    job = await about_to_end(stage, JobType.RETRIEVE)
    dataset = stage.retrieving("a")
    await dataset.cancel()
    stage.world.let_go("deliver_outcome")

    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert await was_refused(dataset)
    shown = await dataset.progress()
    assert (shown.phase, shown.cancelled_by, shown.states) == (Phase.DONE, "", {"delivered": 1})
    assert stage.world.catalogue.known["a"].lifecycle["retrieveStatusMessage"] == "datasetRetrieved"
    await job.result()


async def test_a_job_that_was_told_of_a_success_is_not_told_otherwise(stage: Stage) -> None:
    """Of a retrieval that finds everything there, all is one workflow task, and a cancel makes it forget all."""
    stage.world.job("1", "a", kind="retrieve")
    stage.world.held["a"].delivered = {0}
    stage.world.hold("finish_job")
    job = await about_to_end(stage, JobType.RETRIEVE)
    dataset = stage.retrieving("a")
    await dataset.cancel()
    stage.world.let_go("deliver_outcome")

    await dataset.ended()
    assert await was_refused(dataset)
    assert stage.world.outcome("1").status is Outcome.RETRIEVED
    stage.world.let_go("finish_job")
    finished = await job.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL
