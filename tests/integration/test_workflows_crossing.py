"""What reaches a dataset in its last workflow task, in which it tells its jobs how it ended and closes.

Temporal refuses the end then, and runs the task again with the news first: the steps on the spot have worked, and the
workflow does not know it.
"""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

from domain.lifecycle import JobStatus, JobType, Outcome, Phase
from tests.fakes.stage import QUICK, Stage, dev_server, on_stage
from tests.lab import eventually

SIGNALLED = EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    async with await dev_server() as server, on_stage(server.client, QUICK) as stage:
        yield stage


async def passed_on(job: WorkflowHandle[Any, Any]) -> None:
    """Wait until a job's dataset has been sent a signal."""

    async def there() -> bool:
        return any(event.event_type == SIGNALLED for event in (await job.fetch_history()).events)

    await eventually(there)


async def test_a_dataset_that_has_told_its_end_is_not_held_by_a_job_that_is_paused(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.hold("deliver_outcome")
    job = await stage.start_job("1")
    await stage.world.reached("deliver_outcome")
    await job.signal("pause")
    await passed_on(job)
    stage.world.let_go("deliver_outcome")

    assert (await stage.archiving("a").ended()).status is Outcome.ARCHIVED
    finished = await job.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL


async def test_a_job_that_is_cancelled_does_not_take_back_what_is_archived(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.hold("deliver_outcome")
    job = await stage.start_job("1")
    await stage.world.reached("deliver_outcome")
    await job.cancel()
    await passed_on(job)
    stage.world.let_go("deliver_outcome")

    dataset = stage.archiving("a")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    held = stage.world.held["a"]
    assert (held.lts, held.registered, held.committed) == ({(1, 0)}, {(1, 0)}, True)
    assert "too late" in (await dataset.progress()).note
    assert stage.world.outcome("1").status is Outcome.ARCHIVED
    await job.result()


async def test_what_is_retrieved_is_not_said_to_have_failed(stage: Stage) -> None:
    stage.world.job("1", "a", kind="retrieve")
    stage.world.held["a"].without_tape = True
    stage.world.hold("deliver_outcome")
    job = await stage.start_job("1", JobType.RETRIEVE)
    await stage.world.reached("deliver_outcome")
    dataset = stage.retrieving("a")
    await dataset.cancel()
    stage.world.let_go("deliver_outcome")

    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert (await dataset.progress()).phase is Phase.DONE
    assert stage.world.catalogue.known["a"].lifecycle["retrieveStatusMessage"] == "datasetRetrieved"
    await job.result()
