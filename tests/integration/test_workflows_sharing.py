"""Jobs that share a dataset: they join it, are told of its end, and leave it; what they share is done once."""

from collections.abc import AsyncGenerator

import pytest

from domain.lifecycle import JobStatus, Outcome, Phase
from domain.orders import Limits, Subscriber
from tests.fakes.stage import QUICK, Stage, namespace, on_stage


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    async with namespace() as client, on_stage(client, QUICK) as stage:
        yield stage


async def test_two_jobs_for_one_dataset_are_one_run_and_both_are_told(stage: Stage) -> None:
    stage.world.job("1", "p")
    stage.world.job("2", "p")
    stage.world.hold("plan_dataset")
    jobs = [await stage.start_job("1"), await stage.start_job("2")]
    await stage.world.until(
        lambda: stage.world.calls["join_datasets"] == 2 and not stage.world.running["join_datasets"]
    )
    stage.world.let_go("plan_dataset")
    for job in jobs:
        finished = await job.result()
        assert finished
        assert finished.status is JobStatus.SUCCESSFUL
    assert stage.world.calls["look"] == stage.world.calls["write_block"] == 1
    assert stage.world.outcome("1") == stage.world.outcome("2")


async def test_a_job_that_names_a_dataset_twice_is_told_for_both_places(stage: Stage) -> None:
    scicat = stage.world.job("1", "p", "q", "p")
    finished = await (await stage.start_job("1")).result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL
    assert [entry["pid"] for entry in scicat.result["datasets"]] == ["p", "q", "p"]
    assert stage.world.calls["write_block:p"] == 1


async def test_joining_twice_subscribes_once(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("look")
    await stage.join("p", "1", "1", "2", "1")
    dataset = await stage.join("p", "1")
    assert (await dataset.progress()).jobs == ("job/1", "job/2")
    stage.world.let_go("look")
    await dataset.ended()
    [told] = stage.world.asked("deliver_outcome")
    assert [subscriber.job_id for subscriber in told.subscribers] == ["1", "2"]


async def test_a_job_that_joins_while_the_end_is_told_is_told_too(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("deliver_outcome", deaf=True)
    first = await stage.join("p", "1")
    await stage.world.reached("deliver_outcome")
    second = await stage.join("p", "2")
    stage.world.let_go("deliver_outcome")
    assert (await first.ended()).status is Outcome.ARCHIVED
    await second.ended()
    assert stage.world.outcome("2").status is Outcome.ARCHIVED
    assert stage.world.calls["look"] == 1


async def test_a_job_that_joins_after_the_end_finds_the_work_done(stage: Stage) -> None:
    stage.world.dataset("p")
    assert (await (await stage.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert (await (await stage.join("p", "2")).ended()).status is Outcome.ALREADY_ARCHIVED
    assert stage.world.calls["write_block"] == 1


async def test_a_job_that_leaves_does_not_disturb_the_others(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1", "2")
    await stage.world.reached("write_block")
    await dataset.signal("leave", "1")
    await dataset.signal("leave", "unheard-of")
    assert (await dataset.progress()).jobs == ("job/2",)
    stage.world.let_go("write_block")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert list(stage.world.state.outcomes_of) == [("2", 0)]
    assert stage.world.cancelled["write_block"] == 0


async def test_the_last_job_to_leave_cancels_and_all_is_undone(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1", "2")
    await stage.world.reached("write_block")
    await dataset.signal("leave", "1")
    await dataset.signal("leave", "2")
    outcome = await dataset.ended()
    assert outcome.message == "every job that waited for it was cancelled"
    stage.world.assert_nothing_left("p")
    assert stage.world.state.outcomes_of == {}


async def test_a_job_that_joins_during_the_undo_is_taken_along(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    stage.world.hold("undo_blocks", deaf=True)
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")
    await dataset.signal("leave", "1")
    await stage.world.reached("undo_blocks")

    late = await stage.join("p", "2")
    stage.world.let_go("write_block")
    stage.world.let_go("undo_blocks")

    assert (await late.ended()).status is Outcome.ARCHIVED
    assert stage.world.outcome("2").status is Outcome.ARCHIVED
    assert ("1", 0) not in stage.world.state.outcomes_of
    assert stage.world.calls["look"] == 2


async def test_a_job_that_joins_during_the_undo_and_leaves_again_leaves_it_undone(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    stage.world.hold("undo_blocks", deaf=True)
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")
    await dataset.signal("leave", "1")
    await stage.world.reached("undo_blocks")
    dataset = await stage.join("p", "2")
    await dataset.signal("leave", "2")
    stage.world.let_go("undo_blocks")
    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


@pytest.mark.parametrize("left_before", [False, True])
async def test_an_operator_cancels_for_all_even_for_those_that_join_during_the_undo(
    stage: Stage, left_before: bool
) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    stage.world.hold("undo_blocks", deaf=True)
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")
    if left_before:
        await dataset.signal("leave", "1")
        await stage.world.reached("undo_blocks")
    await dataset.cancel()
    await stage.world.reached("undo_blocks")
    dataset = await stage.join("p", "2")
    stage.world.let_go("undo_blocks")

    assert (await dataset.ended()).status is Outcome.CANCELLED
    assert stage.world.outcome("2").status is Outcome.CANCELLED
    assert (("1", 0) in stage.world.state.outcomes_of) is not left_before
    stage.world.assert_nothing_left("p")


async def test_the_pause_of_a_job_ends_when_that_job_is_cancelled(stage: Stage) -> None:
    stage.world.job("1", "p")
    stage.world.job("2", "p")
    stage.world.hold("write_block")
    first, second = await stage.start_job("1"), await stage.start_job("2")
    await stage.world.reached("write_block")
    await stage.world.until(
        lambda: stage.world.calls["join_datasets"] == 2 and not stage.world.running["join_datasets"]
    )
    dataset = stage.archiving("p")
    await first.signal("pause")
    assert (await dataset.phase(Phase.PAUSED)).paused_by == "job 1"
    stage.world.let_go("write_block")

    await first.cancel()

    finished = await second.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL
    finished = await first.result()
    assert finished
    assert finished.status is JobStatus.UNSUCCESSFUL


async def test_a_job_that_joins_a_parked_dataset_says_so_in_scicat(stage: Stage) -> None:
    stage.world.job("2", "p")
    stage.world.fail("write_block", "NoSpace", times=1, final=True)
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)

    job = await stage.start_job("2")
    await stage.world.until(lambda: stage.world.calls["report_job"] == 1)
    [report] = stage.world.asked("report_job")
    assert report.message == "dataset p is parked: NoSpace: write_block fails as told"
    assert [d.phase for d in (await stage.job_progress("2")).datasets] == ["parked"]
    assert (await stage.job_progress("2")).datasets_parked == 1

    await dataset.signal("retry")
    finished = await job.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL


async def test_search_attributes_find_datasets_by_every_job_and_by_phase() -> None:
    async with namespace() as client, on_stage(client, QUICK, Limits(window=1)) as stage:

        async def matching(query: str) -> set[str]:
            return {found.id async for found in stage.client.list_workflows(query)}

        async def eventually(query: str, *ids: str) -> None:
            while await matching(query) != set(ids):
                await stage.world.until(lambda: True)

        stage.world.job("1", "p", "q")
        stage.world.fail("write_block:p", "NoSpace", times=1, final=True)
        stage.world.hold("look:q")
        await stage.start_job("1")
        await eventually('Phase="planning"', "archive-dataset/q")
        stage.world.let_go("look:q")
        await stage.archiving("q").ended()
        dataset = await stage.join("p", "late")
        await eventually('ScicatJobId="late"', "archive-dataset/p")
        await eventually('ScicatJobId="1"', "archive-dataset/p", "archive-dataset/q", "job/1")
        await eventually('Phase="parked"', "archive-dataset/p", "job/1")
        await eventually('DatasetPid="q" AND Outcome="archived" AND OwnerGroup="group1"', "archive-dataset/q")
        await eventually('TotalBytes=900 AND Phase="done"', "archive-dataset/q")
        await dataset.signal("leave", "late")
        await eventually('ScicatJobId="late"')
        await dataset.signal("retry")
        await stage.job("1").result()
        await eventually('Phase="done" AND Outcome="finishedSuccessful"', "job/1")


async def test_a_job_with_a_window_is_told_at_once_that_the_dataset_it_joins_waits(stage: Stage) -> None:
    held = stage.world.dataset("p", off_line=True)
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.WAITING_TAPE)
    stage.limits = Limits(window=1)
    stage.world.job("2", "p", "q")
    job = await stage.start_job("2")
    await stage.archiving("q").ended()
    held.off_line = False
    await dataset.signal("join", Subscriber(job_id="1", n=0))
    finished = await job.result()
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL
