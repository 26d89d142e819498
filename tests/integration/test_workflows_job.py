"""A SciCat job decides: whom it starts, whom it waits for, and what it says at the end."""

import time
from collections.abc import AsyncGenerator

import pytest
from temporalio.client import WorkflowExecutionStatus

from clients.scicat import JobDataset
from domain.lifecycle import JobStatus, JobType, Outcome, Phase
from domain.orders import Limits
from tests.fakes.stage import QUICK, Stage, dev_server, namespace, on_stage, skipping
from tests.lab import eventually
from workflows import search_attributes as attributes

SEVEN = tuple("abcdefg")


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    async with namespace() as client, on_stage(client, QUICK, Limits(window=2)) as stage:
        yield stage


@pytest.fixture
async def patient() -> AsyncGenerator[Stage]:
    """With long pauses between retries, which this server skips."""
    timing = QUICK.model_copy(update={"retry_longest_s": 3_600, "retry_initial_s": 3_600})
    async with skipping() as server, on_stage(server.client, timing) as stage:
        yield stage


@pytest.fixture
async def impatient() -> AsyncGenerator[Stage]:
    """Other steps than a job's are parked after a second."""
    timing = QUICK.model_copy(update={"retry_s": 1})
    async with namespace() as client, on_stage(client, timing) as stage:
        yield stage


async def finish(stage: Stage, job_id: str = "1") -> JobStatus:
    finished = await stage.job(job_id).result()
    assert finished
    return finished.status


async def test_only_as_many_datasets_move_at_a_time_as_the_window_allows(stage: Stage) -> None:
    stage.world.job("1", *SEVEN)
    stage.world.hold("write_block")
    await stage.start_job("1")
    await stage.world.reached("write_block", 2)
    progress = await stage.job_progress("1")
    assert (progress.datasets_total, progress.datasets_open) == (7, 2)
    stage.world.let_go("write_block")
    assert await finish(stage) is JobStatus.SUCCESSFUL
    assert stage.world.highest["write_block"] <= 2
    assert (await stage.job_progress("1")).outcomes == {"archived": 7}


async def test_datasets_that_wait_do_not_count_against_the_window(stage: Stage) -> None:
    stage.world.job("1", *SEVEN)
    for pid in SEVEN:
        stage.world.held[pid].off_line = True
    await stage.start_job("1")
    await stage.world.until(lambda: stage.world.calls["verify_block"] == 7)
    for pid in SEVEN:
        stage.world.held[pid].off_line = False
    assert await finish(stage) is JobStatus.SUCCESSFUL
    assert stage.world.highest["write_block"] <= 2


async def test_datasets_of_a_retrieval_that_wait_for_tape_do_not_count_either(stage: Stage) -> None:
    stage.world.job("1", *SEVEN, kind="retrieve")
    for pid in SEVEN:
        stage.world.held[pid].stuck = {0}
    await stage.start_job("1", JobType.RETRIEVE)
    await stage.world.until(lambda: stage.world.calls["request_recall"] == 7)
    for pid in SEVEN:
        stage.world.held[pid].stuck = set()
    assert await finish(stage) is JobStatus.SUCCESSFUL


async def test_a_bad_dataset_does_not_sink_its_job(stage: Stage) -> None:
    scicat = stage.world.job("1", *SEVEN)
    scicat.datasets = (*scicat.datasets, JobDataset("../../etc"), JobDataset("a", ("one.file",)))
    stage.world.catalogue.known["../../etc"] = stage.world.catalogue.known["a"]
    stage.world.fail("plan_dataset:c", "MissingFiles")
    stage.world.dataset("e", committed=True)
    await stage.start_job("1")
    assert await finish(stage) is JobStatus.WITH_DATASET_ERRORS
    assert scicat.status == "finishedWithDatasetErrors"
    told = [(entry["status"], entry.get("class", "")) for entry in scicat.result["datasets"]]
    assert told[2] == ("dataset_error", "MissingFiles")
    assert told[4] == ("already_archived", "")
    assert told[7:] == [("dataset_error", "UnsafePath"), ("dataset_error", "PartialArchive")]
    assert (await stage.job_progress("1")).outcomes == {"archived": 5, "already_archived": 1, "dataset_error": 3}


async def test_an_outcome_that_is_told_twice_counts_once(stage: Stage) -> None:
    stage.world.job("1", "a", "b")
    stage.world.hold("write_block:b")
    await stage.start_job("1")
    await stage.archiving("a").ended()
    await stage.world.reached("write_block:b")
    await stage.job("1").signal("dataset_done", args=[0, "archived"])
    await stage.job("1").signal("dataset_phase", args=[0, "a phase of a later release", ""])
    progress = await stage.job_progress("1")
    assert (progress.outcomes, progress.datasets_open) == ({"archived": 1}, 1)
    stage.world.let_go("write_block:b")
    assert await finish(stage) is JobStatus.SUCCESSFUL


async def test_a_terminated_dataset_is_found_by_the_watch_even_if_it_was_joined_late(stage: Stage) -> None:
    stage.world.job("1", *SEVEN)
    for pid in SEVEN:
        stage.world.held[pid].off_line = True
    await stage.start_job("1")
    await stage.world.until(lambda: stage.world.calls["verify_block"] == 7)
    await stage.archiving("g").phase(Phase.WAITING_TAPE)
    await stage.archiving("g").handle.terminate()
    await stage.world.until(lambda: ("1", 6) in stage.world.state.outcomes_of)
    for pid in SEVEN:
        stage.world.held[pid].off_line = False
    assert await finish(stage) is JobStatus.WITH_DATASET_ERRORS
    outcome = stage.world.outcome("1", 6)
    assert (outcome.status, outcome.error_class) == (Outcome.FAILED, "Terminated")


async def test_a_cancelled_job_leaves_all_its_datasets_which_are_undone(stage: Stage) -> None:
    scicat = stage.world.job("1", *SEVEN)
    stage.world.hold("write_block")
    await stage.start_job("1")
    await stage.world.reached("write_block", 2)
    await stage.job("1").cancel()
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    assert {entry["status"] for entry in scicat.result["datasets"]} == {"cancelled"}
    for pid in SEVEN[:2]:
        assert (await stage.archiving(pid).ended()).status is Outcome.CANCELLED
        stage.world.assert_nothing_left(pid)
    assert stage.world.calls["look"] == 2
    assert (await stage.job("1").describe()).status is WorkflowExecutionStatus.COMPLETED


async def test_a_cancelled_job_tells_the_truth_of_a_dataset_that_was_archived_before(stage: Stage) -> None:
    """Behind the commit point the dataset goes on, and its job waits for what comes of it."""
    scicat = stage.world.job("1", "a", "b")
    stage.world.hold("free_dataset:a")
    stage.world.hold("write_block:b")
    await stage.start_job("1")
    await stage.world.reached("free_dataset:a")
    await stage.world.reached("write_block:b")
    await stage.job("1").signal("pause")
    await stage.archiving("a").phase(Phase.PAUSED)

    await stage.job("1").cancel()

    assert (await stage.archiving("b").ended()).status is Outcome.CANCELLED
    progress = await stage.archiving("a").phase(Phase.FREEING)
    assert progress.note == "job 1 was cancelled: too late, already archived; what is left to do is done"
    assert (await stage.job_progress("1")).outcomes == {"cancelled": 1}
    assert await stage.archiving("a").running()
    stage.world.let_go("free_dataset:a")
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    assert [entry["status"] for entry in scicat.result["datasets"]] == ["archived", "cancelled"]
    assert (await stage.job_progress("1")).outcomes == {"cancelled": 1, "archived": 1}


async def test_a_cancelled_job_does_not_wait_for_a_dataset_that_was_terminated(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.hold("write_block")
    stage.timing = stage.timing.model_copy(update={"watch_s": 3600})
    await stage.start_job("1")
    await stage.world.reached("write_block")
    await stage.archiving("a").handle.terminate()
    await stage.job("1").cancel()
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    stage.world.let_go("write_block")


async def test_a_cancel_while_datasets_are_being_joined_leaves_those_too(stage: Stage) -> None:
    stage.world.job("1", *SEVEN)
    stage.world.hold("join_datasets", deaf=True)
    stage.world.hold("look")
    await stage.start_job("1")
    await stage.world.reached("join_datasets")
    await stage.job("1").cancel()
    await stage.job_progress("1")
    stage.world.let_go("join_datasets")
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    for pid in SEVEN[:2]:
        assert (await stage.archiving(pid).ended()).status is Outcome.CANCELLED
    assert stage.world.calls["join_datasets"] == 1


async def test_a_cancel_before_the_job_was_read_starts_nothing(stage: Stage) -> None:
    scicat = stage.world.job("1", *SEVEN)
    stage.world.hold("open_job", deaf=True)
    await stage.start_job("1")
    await stage.world.reached("open_job")
    await stage.job("1").cancel()
    await stage.job_progress("1")
    stage.world.let_go("open_job")
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    assert scicat.status == "finishedUnsuccessful"
    assert stage.world.calls["join_datasets"] == 0


async def test_a_cancel_during_the_report_comes_too_late(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.hold("finish_job", deaf=True)
    await stage.start_job("1")
    await stage.world.reached("finish_job")
    await stage.job("1").cancel()
    await stage.job_progress("1")
    stage.world.let_go("finish_job")
    assert await finish(stage) is JobStatus.SUCCESSFUL


async def test_pause_and_resume_of_a_job_reach_its_datasets(stage: Stage) -> None:
    stage.world.job("1", *SEVEN)
    stage.world.hold("write_block")
    await stage.start_job("1")
    await stage.world.reached("write_block", 2)
    await stage.job("1").signal("pause")
    for pid in SEVEN[:2]:
        assert (await stage.archiving(pid).phase(Phase.PAUSED)).paused_by == "job 1"
    assert (await stage.job_progress("1")).phase is Phase.PAUSED
    assert stage.world.calls["look"] == 2, "paused datasets do not count, but a paused job joins no more"
    stage.world.let_go("write_block")
    await stage.job("1").signal("resume")
    assert await finish(stage) is JobStatus.SUCCESSFUL


async def test_while_scicat_is_away_a_job_with_a_parked_dataset_can_still_be_cancelled(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.fail("report_job", "CatalogueUnavailable")
    stage.world.fail("write_block", final=True)
    await stage.start_job("1")
    await stage.world.until(lambda: stage.world.calls["report_job"] > 1)
    await stage.job("1").cancel()
    assert (await stage.archiving("a").ended()).status is Outcome.CANCELLED
    assert await finish(stage) is JobStatus.UNSUCCESSFUL


async def test_a_job_whose_parked_dataset_scicat_will_not_hear_of_goes_on(stage: Stage) -> None:
    stage.world.job("1", "a")
    stage.world.fail("report_job", "UnknownJob")
    stage.world.fail("write_block", times=1, final=True)
    await stage.start_job("1")
    await stage.archiving("a").phase(Phase.PARKED)
    await stage.world.until(lambda: stage.world.calls["report_job"] == 1)
    await stage.archiving("a").signal("retry")
    assert await finish(stage) is JobStatus.SUCCESSFUL


async def test_an_unknown_job_ends_completed_with_a_report(patient: Stage) -> None:
    finished = await (await patient.start_job("nobody")).result()
    assert finished
    assert (finished.status, finished.refused) == (JobStatus.UNSUCCESSFUL, "nobody")
    assert patient.world.calls["open_job"] == 6


async def test_a_job_of_another_type_ends_completed_with_a_report(stage: Stage) -> None:
    scicat = stage.world.job("1", "a", kind="retrieve")
    await stage.start_job("1")
    assert await finish(stage) is JobStatus.UNSUCCESSFUL
    assert scicat.status == "finishedUnsuccessful"
    assert stage.world.calls["join_datasets"] == 0


@pytest.mark.parametrize("kind", ["archive", "retrieve"])
async def test_a_finished_job_is_left_alone(stage: Stage, kind: str) -> None:
    scicat = stage.world.job("1", "a", kind=kind)
    scicat.status = "finishedSuccessful"
    assert await (await stage.start_job("1")).result() is None
    assert scicat.history == []
    assert (await stage.job_progress("1")).status == "finishedSuccessful"


async def test_the_report_is_sent_however_long_scicat_is_away(impatient: Stage) -> None:
    scicat = impatient.world.job("1", "a")
    impatient.world.fail("finish_job", "CatalogueUnavailable", times=60)
    handle = await impatient.start_job("1")
    since = time.monotonic()
    finished = await handle.result()
    assert time.monotonic() - since > 2 * impatient.timing.retry_s, "other steps would have been parked"
    assert finished
    assert finished.status is JobStatus.SUCCESSFUL
    assert scicat.status == "finishedSuccessful"


async def test_continue_as_new_keeps_everything() -> None:
    """With a server that suggests it after a few dozen events, for jobs and datasets alike."""
    limit = {"limit.historyCount.suggestContinueAsNew": "60"}
    async with await dev_server(limit) as server, on_stage(server.client, QUICK, Limits(window=3, blocks=2)) as stage:
        scicat = stage.world.job("1", *SEVEN, *"hijklm", "b")
        stage.world.dataset("a", blocks=12, damaged={3: 1, 11: 1})
        stage.world.fail("write_block:d", "NoSpace", times=1, final=True)
        stage.world.fail("plan_dataset:f", "MissingFiles")
        stage.world.held["e"].off_line = True
        handle = await stage.start_job("1")
        first = (await handle.describe()).run_id
        await stage.archiving("d").phase(Phase.PARKED)
        await stage.world.until(lambda: ("1", 12) in stage.world.state.outcomes_of)
        await handle.signal("pause")
        assert (await stage.archiving("e").phase(Phase.PAUSED)).paused_by == "job 1"
        await handle.signal("resume")
        stage.world.held["e"].off_line = False
        assert [d.phase for d in (await stage.job_progress("1")).datasets if d.pid == "d"] == ["parked"]
        await stage.archiving("d").signal("retry")

        assert await finish(stage) is JobStatus.WITH_DATASET_ERRORS
        assert (await handle.describe()).run_id != first
        assert (await stage.job_progress("1")).outcomes == {
            "archived": 12,
            "dataset_error": 1,
            "already_archived": 1,
        } or (await stage.job_progress("1")).outcomes == {"archived": 13, "dataset_error": 1}
        assert [entry["status"] for entry in scicat.result["datasets"]].count("dataset_error") == 1
        assert stage.world.calls["report_job"] == 1, "what was told is not told again"
        held = stage.world.held["a"]
        assert held.registered == held.lts == {(n, 1 if n in (3, 11) else 0) for n in range(1, 13)}
        assert stage.world.calls["look:a"] == stage.world.calls["plan_dataset:a"] == 1
        described = await stage.archiving("a").handle.describe()
        assert described.raw_description.workflow_execution_info.first_run_id != described.run_id


async def test_a_job_that_is_paused_while_it_is_read_says_whose_it_is(stage: Stage) -> None:
    stage.world.job("1", "a", group="group A")
    stage.world.hold("open_job")
    handle = await stage.start_job("1")
    await stage.world.reached("open_job")
    await handle.signal("pause")
    assert (await stage.job_progress("1")).phase is Phase.PAUSED
    stage.world.let_go("open_job")

    async def read() -> bool:
        return (await stage.job_progress("1")).datasets_total == 1

    await eventually(read)
    await handle.signal("resume")

    assert await finish(stage) is JobStatus.SUCCESSFUL
    assert (await handle.describe()).typed_search_attributes.get(attributes.OWNER_GROUP) == "group A"
