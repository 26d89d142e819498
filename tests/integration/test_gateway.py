"""What the API's gateway hears of workflows and tells them, on a real server with pretended steps."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowHandle
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.worker import Worker

from api.gateway import Gateway, NoSuchPage
from domain import names
from domain.lifecycle import JobType, Phase
from domain.orders import DatasetOrder
from domain.progress import DatasetProgress
from domain.steering import Verb
from tests.fakes.activities import World, activities
from tests.fakes.stage import QUICK, Stage, namespace, on_stage
from tests.lab import eventually
from worker.build import WORKFLOWS
from workflows import queues
from workflows import search_attributes as attributes

ODD = '20.500/it\'s "odd"'


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with namespace() as client:
        yield client


@pytest.fixture
async def stage(client: Client) -> AsyncGenerator[Stage]:
    async with on_stage(client, QUICK) as stage:
        yield stage


@pytest.fixture
def gateway(client: Client) -> Gateway:
    return Gateway(client)


async def attributes_of(handle: WorkflowHandle[Any, Any]) -> dict[str, Any]:
    """What the visibility store shows of a workflow, by name."""
    return {pair.key.name: pair.value for pair in (await handle.describe()).typed_search_attributes}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - of any type


async def details_of(handle: WorkflowHandle[Any, Any]) -> str:
    """What Temporal's web page shows as current details."""
    metadata: WorkflowMetadata = await handle.query("__temporal_workflow_metadata")
    return metadata.current_details


def shows(handle: WorkflowHandle[Any, Any], **wanted: Any) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        found = await attributes_of(handle)
        return {name: found.get(name) for name in wanted} == wanted

    return ask


# Verbs


async def test_behind_the_commit_point_it_is_said_to_be_too_late(stage: Stage, gateway: Gateway) -> None:
    stage.world.dataset(ODD)
    stage.world.hold("commit")
    dataset = await stage.join(ODD, "1")
    await stage.world.reached("commit")
    archive = names.archive_workflow(ODD)
    for verb in (Verb.CANCEL, Verb.GIVE_UP):
        steered = await gateway.steer_dataset(ODD, verb, "")
        assert steered
        assert steered.acted == ()
        assert steered.left_alone[archive].startswith("too late, already archived")
    paused = await gateway.steer_dataset(ODD, Verb.PAUSE, "nadia")
    assert paused
    assert (paused.acted, paused.datasets[0].phase, paused.datasets[0].paused_by) == ((archive,), "paused", "nadia")
    await gateway.steer_dataset(ODD, Verb.RESUME, "")
    stage.world.let_go("commit")
    assert (await dataset.ended()).status == "archived"
    for verb in Verb:
        steered = await gateway.steer_dataset(ODD, verb, "")
        assert steered
        assert (steered.acted, steered.left_alone) == ((), {archive: "already ended: archived"})


async def test_a_cancel_that_comes_while_it_is_being_committed_is_not_said_to_have_been_heard(
    stage: Stage, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.world.dataset("a")
    stage.world.hold("register_blocks")
    stage.world.hold("commit")
    dataset = await stage.join("a", "1")
    await stage.world.reached("register_blocks")
    tell = Gateway._tell  # pyright: ignore[reportPrivateUsage]

    async def late(self: Gateway, workflow_id: str, verb: Verb, by: str) -> str:
        """Between the look and the word it passes the commit point."""
        stage.world.let_go("register_blocks")
        await stage.world.reached("commit")
        return await tell(self, workflow_id, verb, by)

    monkeypatch.setattr(Gateway, "_tell", late)
    steered = await gateway.steer_dataset("a", Verb.CANCEL, "")
    assert steered
    assert steered.acted == ()
    assert "too late" in steered.left_alone[names.archive_workflow("a")]
    stage.world.let_go("commit")
    assert (await dataset.ended()).status == "archived"


async def test_a_verb_reaches_whatever_of_a_dataset_runs_and_leaves_the_rest_alone(
    stage: Stage, gateway: Gateway
) -> None:
    stage.world.dataset("a")
    archived = await stage.join("a", "1")
    await archived.ended()
    stage.world.dataset("a", committed=True)
    stage.world.hold("copy_block")
    retrieving = await stage.join("a", "2", kind=JobType.RETRIEVE)
    await stage.world.reached("copy_block")

    paused = await gateway.steer_dataset("a", Verb.PAUSE, "")
    assert paused
    assert paused.acted == (names.retrieve_workflow("a"),)
    assert paused.left_alone == {names.archive_workflow("a"): "already ended: archived"}
    [first, second] = paused.datasets
    assert (first.kind, first.phase, first.paused_by, first.others) == (
        *("retrieve", "paused", "an operator"),
        {names.archive_workflow("a"): "archived"},
    )
    assert (second.kind, second.others) == ("archive", {names.retrieve_workflow("a"): "paused"})
    await stage.world.until(lambda: stage.world.cancelled["copy_block"] == 1)
    stage.world.let_go("copy_block")
    await gateway.steer_dataset("a", Verb.RESUME, "")
    assert (await retrieving.ended()).status == "retrieved"
    assert await gateway.steer_dataset("unknown", Verb.PAUSE, "") is None


async def test_a_job_passes_pause_resume_and_cancel_on_until_it_reports(stage: Stage, gateway: Gateway) -> None:
    stage.world.job("1", "a", "b")
    stage.world.hold("write_block")
    stage.world.hold("finish_job")
    await stage.start_job("1")
    await stage.world.reached("write_block", 2)

    paused = await gateway.steer_job("1", Verb.PAUSE)
    assert paused
    assert paused.job
    assert (paused.acted, paused.job.phase) == (("job/1",), "paused")
    for pid in "ab":
        assert (await stage.archiving(pid).phase(Phase.PAUSED)).paused_by == "job 1"
    assert await shows(stage.job("1"), Phase="paused")()
    await gateway.steer_job("1", Verb.RESUME)
    await stage.world.reached("write_block", 2)
    assert await shows(stage.job("1"), Phase="writing")()

    cancelled = await gateway.steer_job("1", Verb.CANCEL)
    assert cancelled
    assert cancelled.acted == ("job/1",)
    for pid in "ab":
        assert (await stage.archiving(pid).ended()).status == "cancelled"
        assert await shows(stage.archiving(pid).handle, Phase="done", Outcome="cancelled")()
        stage.world.assert_nothing_left(pid)
    stage.world.let_go("finish_job")
    await stage.job("1").result()
    after = await gateway.steer_job("1", Verb.PAUSE)
    assert after
    assert (after.acted, after.left_alone) == ((), {"job/1": "already ended: finishedUnsuccessful"})
    assert await gateway.steer_job("2", Verb.PAUSE) is None


async def test_a_job_that_reports_cannot_be_cancelled_any_more(stage: Stage, gateway: Gateway) -> None:
    stage.world.job("1", "a")
    stage.world.hold("finish_job")
    await stage.start_job("1")
    await stage.world.reached("finish_job")
    steered = await gateway.steer_job("1", Verb.CANCEL)
    assert steered
    assert steered.left_alone["job/1"].startswith("too late")
    stage.world.let_go("finish_job")
    await stage.job("1").result()


# What is shown


async def test_a_parked_dataset_shows_in_its_job_in_every_list_and_on_temporals_page(
    stage: Stage, gateway: Gateway
) -> None:
    scicat = stage.world.job("1", "a", "b")
    assert scicat
    stage.world.hold("write_block:b")
    stage.world.fail("plan_dataset:a", "Misconfigured", final=True)
    await stage.start_job("1")
    dataset = stage.archiving("a")
    parked = await dataset.phase(Phase.PARKED)
    assert parked.waiting_since == parked.since
    await stage.world.reached("write_block:b")
    await eventually(shows(stage.job("1"), Phase="parked"))
    assert await shows(dataset.handle, Phase="parked", ScicatJobId=["1"])()
    assert [job.id for job in (await gateway.jobs(phase="parked")).jobs] == ["1"]
    assert "Misconfigured: plan_dataset fails as told" in await details_of(dataset.handle)
    assert "`a` parked: Misconfigured" in await details_of(stage.job("1"))

    stage.world.heal("plan_dataset:a")
    await gateway.steer_dataset("a", Verb.RETRY, "")
    assert (await dataset.ended()).status == "archived"
    await eventually(shows(stage.job("1"), Phase="writing"))
    stage.world.let_go("write_block:b")
    await stage.job("1").result()
    assert await shows(stage.job("1"), Phase="done", Outcome="finishedSuccessful", OwnerGroup="group1")()
    assert (await attributes_of(dataset.handle))["TotalBytes"] > 0
    assert "**archived**" in await details_of(dataset.handle)


async def test_jobs_are_listed_by_what_they_are_a_page_at_a_time(stage: Stage, gateway: Gateway) -> None:
    stage.world.hold("write_block:c")
    stage.world.fail("plan_dataset:b", "MissingFiles")
    stage.world.hold("write_block:a")
    for job_id, pid in (("1", "a"), ("2", "b"), ("3", "c")):
        stage.world.job(job_id, pid)
        await stage.start_job(job_id)
    await stage.job("2").result()
    stage.world.let_go("write_block:a")
    await stage.job("1").result()
    await stage.world.reached("write_block:c")

    async def listed(**filters: Any) -> list[str]:
        return [job.id for job in (await gateway.jobs(**filters)).jobs]

    async def all_there() -> bool:
        """Those that run come first, then those that ended last."""
        return await listed() == ["3", "1", "2"] and await listed(running=False) == ["1", "2"]

    await eventually(all_there)
    assert await listed(running=True, owner_group="group1") == ["3"]
    assert await listed(outcome="finishedWithDatasetErrors") == ["2"]
    assert await listed(phase="writing") == ["3"]
    assert await listed(owner_group="it's nobody's") == []
    [line] = (await gateway.jobs(outcome="finishedSuccessful")).jobs
    assert (line.type, line.phase, line.owner_group, bool(line.ended)) == ("archive", "done", "group1", True)

    first = await gateway.jobs(limit=2)
    second = await gateway.jobs(limit=2, page=first.next_page)
    assert [job.id for job in (*first.jobs, *second.jobs)] == ["3", "1", "2"]
    for page in ("none of ours", "bm9uZQ=="):
        with pytest.raises(NoSuchPage):
            await gateway.jobs(page=page)
    stage.world.let_go("write_block:c")
    await stage.job("3").result()


async def test_what_fails_is_shown_with_its_attempts_and_when_it_is_tried_again(stage: Stage, gateway: Gateway) -> None:
    stage.timing = QUICK.model_copy(update={"retry_initial_s": 600, "retry_longest_s": 600, "retry_s": 6000})
    stage.world.dataset("a")
    stage.world.fail("write_block")
    dataset = await stage.join("a", "1")
    await stage.world.until(lambda: stage.world.calls["write_block"] == 1)

    async def failed() -> Any:
        [shown] = await gateway.dataset("a")
        return next((step for step in shown.steps if step.last_error), None)

    step = await eventually(failed)
    assert (step.name, step.queue, step.state, step.attempt) == ("write_block", "archival", "waiting", 2)
    assert step.last_error == "TapeUnavailable: write_block fails as told"
    assert step.next_attempt > step.since
    stage.world.heal("write_block")
    await gateway.steer_dataset("a", Verb.RETRY, "")
    assert (await dataset.ended()).status == "archived"


async def test_a_terminated_workflow_is_done_and_said_to_be_cut_off(stage: Stage, gateway: Gateway) -> None:
    stage.world.dataset("a")
    stage.world.hold("write_block")
    dataset = await stage.join("a", "1")
    await stage.world.reached("write_block")
    await dataset.handle.terminate()
    [shown] = await gateway.dataset("a")
    assert (shown.phase, shown.outcome, shown.note) == ("done", None, "the workflow was cut off: terminated")
    steered = await gateway.steer_dataset("a", Verb.PAUSE, "")
    assert steered
    assert steered.left_alone == {names.archive_workflow("a"): "already ended: the workflow was cut off: terminated"}
    stage.world.let_go("write_block")


async def test_a_dataset_that_begins_anew_after_its_undo_is_planning_again(stage: Stage) -> None:
    """A job joins while the archive is undone for want of jobs: the run that follows does not look like an undo."""
    stage.world.job("1", "a")
    stage.world.hold("write_block")
    await stage.start_job("1")
    await stage.world.reached("write_block")
    stage.world.hold("undo_blocks")
    await stage.job("1").cancel()
    await stage.world.reached("undo_blocks")
    dataset = stage.archiving("a")
    assert await shows(dataset.handle, Phase="undoing")()
    await stage.join("a", "2")
    stage.world.hold("look")
    stage.world.let_go("undo_blocks")
    await stage.world.reached("look")
    # What is said during a step on the spot is seen when that is over.
    await eventually(shows(dataset.handle, Phase="planning", ScicatJobId=["2"]))
    stage.world.let_go("look")
    stage.world.let_go("write_block")
    assert (await dataset.ended()).status == "archived"
    await stage.job("1").result()


# Without workers


async def start_archive(client: Client, pid: str) -> None:
    await client.start_workflow(
        "ArchiveDataset",
        DatasetOrder(pid=pid, timing=QUICK),
        id=names.archive_workflow(pid),
        task_queue=queues.CONTROL,
        search_attributes=TypedSearchAttributes([SearchAttributePair(attributes.PHASE, Phase.PLANNING.value)]),
    )


async def test_without_a_worker_it_is_said_so_and_what_is_told_counts_when_one_comes(
    client: Client, gateway: Gateway
) -> None:
    await start_archive(client, "a")
    [shown] = await gateway.dataset("a")
    assert (shown.phase, shown.note) == ("planning", "no worker polls the queue control")
    steered = await gateway.steer_dataset("a", Verb.PAUSE, "nadia")
    assert steered
    assert steered.acted == (names.archive_workflow("a"),)
    assert steered.datasets[0].note == "no worker polls the queue control"

    async with on_stage(client, QUICK) as stage:
        stage.world.dataset("a")
        dataset = stage.archiving("a")
        assert (await dataset.phase(Phase.PAUSED)).paused_by == "nadia"
        await gateway.steer_dataset("a", Verb.RESUME, "")
        assert (await dataset.ended()).status == "archived"


async def test_a_step_that_no_worker_takes_is_named(client: Client, gateway: Gateway) -> None:
    """The control worker runs, that of the queue for writing does not."""
    world = World(client)
    world.dataset("a")
    async with Worker(client, task_queue=queues.CONTROL, workflows=WORKFLOWS, activities=activities(world)):
        await start_archive(client, "a")

        async def noted() -> DatasetProgress | None:
            [shown] = await gateway.dataset("a")
            return shown if "archival" in shown.note else None

        shown = await eventually(noted)
        assert shown.note.startswith("no worker takes steps from the queue archival now")
        assert [(step.name, step.state) for step in shown.steps] == [("write_block", "queued")]
        steered = await gateway.steer_dataset("a", Verb.CANCEL, "")
        assert steered
        assert steered.datasets[0].cancelled_by == "an operator cancelled it"
        await client.get_workflow_handle(names.archive_workflow("a")).result()
        world.assert_nothing_left("a")
