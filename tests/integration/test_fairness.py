"""Groups take turns at a queue that has too few slots, and what somebody waits for goes first."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from api.gateway import Gateway
from cli.stack import TEMPORAL_FEATURES
from domain.lifecycle import JobType
from domain.orders import JobOrder, Limits
from domain.priority import MAX_FAIRNESS_KEY_BYTES, Urgency, fairness_key
from tests.fakes.stage import QUICK, Stage, dev_server, on_stage
from workflows import queues

A_HANDFUL = 8
"""Tasks of the busy group that may go before the other's: the server has taken some out of its backlog already."""


async def queued(stage: Stage, count: int) -> None:
    """Wait until so many writes wait for a slot, in the queue itself: a workflow knows of its steps earlier."""
    question = DescribeTaskQueueRequest(
        namespace=stage.client.namespace,
        task_queue=TaskQueue(name=queues.ARCHIVAL),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        report_stats=True,
    )
    async with asyncio.timeout(60):
        while True:
            answer = await stage.client.workflow_service.describe_task_queue(question)
            if answer.stats.approximate_backlog_count == count:
                return
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("many", [50, 200])
async def test_a_group_with_one_datablock_does_not_wait_for_all_of_another_groups(many: int) -> None:
    limits, slots = Limits(blocks=many), {queues.ARCHIVAL: 1}
    async with await dev_server(TEMPORAL_FEATURES) as server, on_stage(server.client, QUICK, limits, slots) as stage:
        stage.world.job("busy", "a", group="busy")
        stage.world.held["a"].blocks = many
        stage.world.job("other", "b", group="other")
        stage.world.hold("write_block")
        await stage.start_job("busy")
        await queued(stage, many - 1)
        await stage.start_job("other")
        await queued(stage, many)
        stage.world.let_go("write_block")
        await stage.job("other").result()
        order = [write.pid for write in stage.world.asked("write_block")]
        # One of them was being written all the while.
        assert order.index("b") <= 1 + A_HANDFUL, order
        await stage.job("busy").result()


async def priorities(stage: Stage, dataset_id: str) -> dict[str, tuple[int, str]]:
    """(priority key, fairness key) of each step of a workflow that has ended, by the step's name."""
    history = await stage.client.get_workflow_handle(dataset_id).fetch_history()
    found: dict[str, tuple[int, str]] = {}
    for event in history.events:
        started = event.workflow_execution_started_event_attributes
        scheduled = event.activity_task_scheduled_event_attributes
        if event.HasField("workflow_execution_started_event_attributes"):
            found["started"] = shown(started.priority)
        elif event.HasField("activity_task_scheduled_event_attributes"):
            found[scheduled.activity_type.name] = shown(scheduled.priority)
    return found


def shown(priority: Priority) -> tuple[int, str]:
    return priority.priority_key, priority.fairness_key


async def test_every_step_says_how_urgent_it_is_and_for_which_group() -> None:
    async with await dev_server() as server, on_stage(server.client, QUICK) as stage:
        # SciCat's v3 does not say of whom a job is; the dataset does.
        stage.world.job("1", "a", group="group A").owner_group = ""
        stage.world.job("2", "b", kind="retrieve", group="group B")
        await stage.start_job("1")
        await Gateway(stage.client).start_job(
            JobOrder(job_id="2", type=JobType.RETRIEVE, timing=stage.timing), within_s=30
        )
        await stage.job("1").result()
        await stage.job("2").result()

        archive = await priorities(stage, "archive-dataset/a")
        assert archive.pop("started") == (Urgency.ARCHIVE, "")
        # What is not read back at once has to be recalled for it.
        assert archive.pop("verify_block") == (Urgency.RETRIEVE, "group A")
        assert archive.keys() >= {"plan_dataset", "write_block", "await_tape"}
        assert set(archive.values()) == {(Urgency.ARCHIVE, "group A")}

        retrieve = await priorities(stage, "retrieve-dataset/b")
        assert retrieve.pop("started") == (Urgency.RETRIEVE, "group B")
        # What a step does not say, it has from its workflow.
        assert retrieve.pop("look_retrieval") == (Urgency.RETRIEVE, "")
        assert retrieve.keys() >= {"request_recall", "copy_block"}
        assert set(retrieve.values()) == {(Urgency.RETRIEVE, "group B")}

        job = await priorities(stage, "job/2")
        assert job.pop("open_job") == job.pop("started") == (Urgency.RETRIEVE, "")
        assert set(job.values()) == {(Urgency.RETRIEVE, "group B")}


@given(st.text())
def test_a_fairness_key_is_as_much_of_the_group_as_temporal_takes(group: str) -> None:
    key = fairness_key(group)
    assert len(key.encode()) <= MAX_FAIRNESS_KEY_BYTES
    assert group.startswith(key)
    assert key == group or len((key + group[len(key)]).encode()) > MAX_FAIRNESS_KEY_BYTES
