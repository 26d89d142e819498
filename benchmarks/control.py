"""A job of a thousand tiny datasets: how many datasets a second control can carry, and what each costs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.table import Table
from temporalio.client import Client

from benchmarks import many
from benchmarks.proc import Processor
from benchmarks.results import CPU_OF, FOLDER
from benchmarks.site import opened, settle
from domain.names import archive_workflow, job_workflow

RESULT = FOLDER / "control.json"
SECONDS_BAR = 120.0
"""For 1,000 datasets on two cores, from the POST of the job to its end."""

_SAMPLED = 20
"""Histories that are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a job of many tiny datasets cost."""

    datasets: int
    seconds: float
    """From the POST of the job to SciCat until the job's workflow has ended."""
    cpu_ms: Mapping[str, float]
    """Processor milliseconds for each dataset, by part of the stack."""
    foreign: float
    """Share of the machine that others had."""
    events_median: int
    """Of the history of one dataset."""
    events_job: int
    """Of the history of the job's last run."""


async def measure(folder: Path, *, datasets: int, tell: Callable[[str], None]) -> Carried:
    """Archive datasets of one small file each in one job.

    Args:
        folder: where the stack lies meanwhile; does not exist.
        datasets: how many.
        tell: told what happens now.

    Raises:
        JobFailed, CommandFailed, StackError: there is nothing to report.
    """
    tell("starting a stack")
    async with opened(folder) as site:
        tell(f"registering {datasets:,} datasets")
        pids = await many.landed(site, datasets)
        await settle()
        tell("archiving them")
        before = Processor.now(site.stack)
        jobs = await many.submitted(site, "archive", pids)
        await many.ended(site, jobs)
        after = Processor.now(site.stack)
        used = after.since(before)
        events = [await _events(site.temporal, archive_workflow(pid)) for pid in pids[:_SAMPLED]]
        return Carried(
            datasets=datasets,
            seconds=round(after.at_s - before.at_s, 1),
            cpu_ms={
                part: round(sum(used[name] for name in names) / datasets * 1000, 1) for part, names in CPU_OF.items()
            },
            foreign=round(after.foreign_since(before), 3),
            events_median=int(median(events)),
            events_job=await _events(site.temporal, job_workflow(jobs[-1])),
        )


def table(carried: Carried) -> Table:
    """What was found, beside what was asked for."""
    shown = Table(title=f"{carried.datasets:,} datasets of 1 KiB in one job", title_justify="left")
    for column, justify in (("", "left"), ("found", "right"), ("bar", "right")):
        shown.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    bar = f"{SECONDS_BAR * carried.datasets / 1000:,.0f}"
    shown.add_row("seconds from the POST to the job's end", f"{carried.seconds:.0f}", bar)
    for part, milliseconds in carried.cpu_ms.items():
        shown.add_row(f"{part}, processor ms for each dataset", f"{milliseconds:.0f}", "")
    shown.add_row("events of a dataset", str(carried.events_median), "")
    shown.add_row("events of the job's last run", f"{carried.events_job:,}", "")
    shown.add_row("foreign load", f"{carried.foreign:.0%}", "")
    return shown


def save(carried: Carried) -> None:
    """Keep it beside the other results."""
    RESULT.write_text(json.dumps(asdict(carried), indent=1) + "\n")


async def _events(client: Client, workflow_id: str) -> int:
    description = await client.get_workflow_handle(workflow_id).describe()
    return description.raw_description.workflow_execution_info.history_length
