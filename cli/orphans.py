"""`orphans`: what does not match between SciCat, the LTS and the service's own buckets, as the last report says."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.client import OUT_OF_REACH, Json, fail, run
from cli.ingest import shown
from cli.local import DEFAULT_FOLDER
from cli.processes import StackError
from cli.services import plainly
from cli.stack import settings_of
from domain import names
from domain.consistency import Inconsistency, Report
from domain.errors import InfrastructureError
from settings import Settings, load_settings

FOUND = 1
EXIT_CODES = "Exit codes: 0 everything matches; 1 something does not; 3 a service is out of reach, or no report yet."

FRESH = "consistency-report/fresh"
"""Workflow id of a report that a person asks for; who asks meanwhile waits for the same one."""


def register(app: typer.Typer) -> None:
    """Add `orphans`."""
    app.command("orphans", epilog=EXIT_CODES, rich_help_panel="Service")(orphans_command)


def orphans_command(
    fresh: Annotated[bool, typer.Option("--fresh", help="Have a new report made first, and wait for it.")] = False,
    as_json: Json = False,
) -> None:
    """Show what does not match between SciCat, the LTS and the buckets: the last consistency report.

    It changes nothing. Of the local stack in `.local/`, or of the settings where S3_ENDPOINT is set or no stack runs.

    \b
    Examples:
      scopemarchiver orphans
      scopemarchiver orphans --fresh --json
    """
    with plainly():
        settings = service_settings(DEFAULT_FOLDER)
    found = run(_latest(settings, fresh=fresh))
    if found is None:
        fail("there is no consistency report yet: ask for one with --fresh, or see that a worker runs", OUT_OF_REACH)
    try:
        report = Report.model_validate(found)
    except ValidationError:
        fail("the report is of another release of this program: ask for a new one with --fresh", OUT_OF_REACH)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(report)))
    if report.counts:
        raise typer.Exit(FOUND)


def service_settings(folder: Path) -> Settings:
    """The service's own settings: the environment's if it names an S3, else those of the stack that runs in a folder.

    Raises:
        SettingsError: no stack runs there, and the environment does not say enough.
    """
    if not os.environ.get("S3_ENDPOINT"):
        try:
            return settings_of(folder)
        except StackError:
            pass
    settings = load_settings()
    settings.require("S3_USER", "S3_PASSWORD")
    return settings


async def _latest(settings: Settings, *, fresh: bool) -> object | None:
    # Loading an S3 client takes longer than all else together.
    from clients.s3 import ObjectStore
    from clients.state import State

    if fresh:
        await _make(settings)
    try:
        async with ObjectStore.connect(**settings.s3_connection) as objects:
            return await State(objects, settings.s3_state_bucket).get_json(names.LATEST_REPORT)
    except InfrastructureError as error:
        fail(f"S3 at {settings.s3_endpoint}: {error}; check S3_ENDPOINT, S3_USER and S3_PASSWORD", OUT_OF_REACH)


async def _make(settings: Settings) -> None:
    from temporalio.client import WorkflowFailureError
    from temporalio.common import Priority, WorkflowIDConflictPolicy
    from temporalio.service import RPCError

    from clients.temporal import connect
    from domain.priority import Urgency
    from workflows import queues
    from workflows.upkeep import ConsistencyReport, Reporting

    try:
        client = await connect(**settings.temporal_connection)
        await client.execute_workflow(
            ConsistencyReport.run,
            Reporting(),
            id=FRESH,
            task_queue=queues.CONTROL,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            priority=Priority(priority_key=Urgency.UPKEEP),
        )
    except WorkflowFailureError as error:
        fail(f"no report was made: {error.cause}", OUT_OF_REACH)
    except (RPCError, RuntimeError) as error:  # the second is what the SDK raises when it cannot connect
        fail(f"Temporal at {settings.temporal_address}: {error}; check TEMPORAL_ADDRESS", OUT_OF_REACH)


def _lines(report: Report) -> list[str]:
    """A line for each finding, the worst kinds first, and at the end what was looked at."""
    order = list(Inconsistency)
    lines = [
        f"{finding.kind.value:<11} {shown(finding.path)}  ({finding.detail})"
        for finding in sorted(report.findings, key=lambda finding: (order.index(finding.kind), finding.path))
    ]
    if (more := sum(report.counts.values()) - len(report.findings)) > 0:
        lines.append(f"and {more} more, which the report counts and does not name")
    counted = ", ".join(f"{report.counts[kind]} {kind.value}" for kind in order if kind in report.counts)
    at_work = f"; {report.at_work} more are being archived" if report.at_work else ""
    lines.append(
        f"{report.finished}: {counted or 'everything matches'}, "
        f"in {report.datasets - report.at_work} datasets with {report.files} files on the LTS{at_work}"
    )
    return lines
