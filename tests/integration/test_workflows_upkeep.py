"""What the Schedules start goes through all pages, in as many runs as it takes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from activities.consistency import CheckedPage, CheckPage, ClosedReport, CloseReport, Source
from activities.expiring import ExpiredPage, ExpirePage, SweepUploads, SweptUploads
from domain.consistency import Inconsistency
from tests.fakes.stage import dev_server
from tests.replay import recorded
from workflows import queues
from workflows.upkeep import ConsistencyReport, ExpireRetrieved, Expiry, Reporting, SweepRetrieved

SHORT = {"limit.historyCount.suggestContinueAsNew": "30"}
"""Histories after which the server asks for a fresh run: some four steps."""

PAGES = 8
WORKFLOWS = (ExpireRetrieved, SweepRetrieved, ConsistencyReport)


async def carry_out(
    server: WorkflowEnvironment, activities: Sequence[Callable[..., Any]], run: Callable[..., Any], argument: Any
) -> tuple[Any, int]:
    """(result, number of runs) of a workflow; all of them are replayed."""
    async with Worker(server.client, task_queue=queues.CONTROL, workflows=WORKFLOWS, activities=activities):
        started: WorkflowHandle[Any, Any] = await server.client.start_workflow(
            run, argument, id="upkeep", task_queue=queues.CONTROL
        )
        result = await started.result()
    replayer = Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter)
    run_id, runs = (await started.describe()).run_id, 0
    while run_id:
        history = await server.client.get_workflow_handle("upkeep", run_id=run_id).fetch_history()
        recorded.keep([history])
        await replayer.replay_workflow(history)
        run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        runs += 1
    return result, runs


@pytest.mark.long
async def test_an_expiry_of_many_pages_goes_on_in_fresh_runs() -> None:
    asked: list[str] = []

    @activity.defn
    async def expire_page(order: ExpirePage) -> ExpiredPage:
        asked.append(order.after)
        return ExpiredPage(after=str(len(asked)) if len(asked) < PAGES else "", looked=10, removed=1)

    async with await dev_server(SHORT) as server:
        done, runs = await carry_out(server, [expire_page], ExpireRetrieved.run, Expiry())
    assert done == Expiry(looked=10 * PAGES, removed=PAGES)
    assert asked == ["", *map(str, range(1, PAGES))]
    assert runs > 1


async def test_a_sweep_is_one_step() -> None:
    @activity.defn
    async def sweep_uploads(order: SweepUploads) -> SweptUploads:
        return SweptUploads(aborted=int(order.older_than_s), kept=1)

    async with await dev_server() as server:
        swept, runs = await carry_out(server, [sweep_uploads], SweepRetrieved.run, SweepUploads(older_than_s=2))
    assert swept == SweptUploads(aborted=2, kept=1)
    assert runs == 1


async def test_a_report_of_many_pages_is_one_report() -> None:
    asked: list[CheckPage] = []
    closed: list[CloseReport] = []
    follows: dict[Source, Source | None] = dict(zip(Source, [*Source][1:], strict=False))

    @activity.defn
    async def check_page(order: CheckPage) -> CheckedPage:
        asked.append(order)
        if len(asked) % (PAGES // 2):
            return CheckedPage(source=order.source, after=str(order.page))
        return CheckedPage(source=follows.get(order.source))

    @activity.defn
    async def close_report(order: CloseReport) -> ClosedReport:
        closed.append(order)
        return ClosedReport(key=order.report, counts={Inconsistency.ORPHAN: 1})

    async with await dev_server(SHORT) as server:
        result, runs = await carry_out(server, [check_page, close_report], ConsistencyReport.run, Reporting())
    assert [order.page for order in asked] == [*range(len(asked))]
    assert [order.source for order in asked[:: PAGES // 2]] == [*Source]
    assert {order.report for order in asked} == {order.report for order in closed} == {result.key}
    assert result.key == closed[0].started.partition("+")[0].replace("-", "").replace(":", "") + "Z"
    assert runs > 1
