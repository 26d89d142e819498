"""Histories that grow too long for one run: many datablocks in a dataset, many datasets in a job."""

from collections.abc import AsyncGenerator

import pytest

from domain.lifecycle import Outcome
from tests.fakes.stage import QUICK, Stage, namespace, on_stage

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

MOST_EVENTS = 51_200
"""What Temporal bears in one run."""


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    async with namespace() as client, on_stage(client, QUICK) as stage:
        yield stage


async def test_fifteen_hundred_datablocks_are_archived_over_several_runs(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=1_500)

    dataset = await stage.join("p", "1")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert len(held.lts) == len(held.registered) == 1_500
    assert stage.world.calls["write_block"] == 1_500, "nothing is written twice because a run gives way to the next"
    runs = await stage.runs(dataset)
    assert len(runs) > 1
    assert max(len(run.events) for run in runs) < MOST_EVENTS / 2


async def test_two_thousand_datasets_in_one_job_are_all_told_of(stage: Stage) -> None:
    pids = [f"p/{n}" for n in range(2_000)]
    for pid in pids:
        stage.world.dataset(pid)
    stage.world.job("1", *pids)

    await (await stage.start_job("1")).result()

    assert stage.world.catalogue.jobs["1"].status == "finishedSuccessful"
    assert {stage.world.outcome("1", n).pid for n in range(2_000)} == set(pids)
    described = (await stage.job("1").describe()).raw_description.workflow_execution_info
    assert described.execution.run_id != described.first_run_id, "it went on in a fresh run"
    assert described.history_length < MOST_EVENTS / 2
