"""A job of a thousand tiny datasets: how many datasets a second control can carry, and what each costs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.table import Table
from temporalio.client import Client

from benchmarks import many
from benchmarks.proc import Processor
from benchmarks.results import CPU_OF, FOLDER
from benchmarks.site import opened, settle
from cli.stack import WORKERS
from domain.names import archive_workflow, job_workflow

RESULT = FOLDER / "control.json"
COMPARISON = FOLDER / "workers.json"
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
    history_bytes_median: int
    """Of one dataset, as Temporal counts it."""
    history_bytes_job: int
    database_bytes: int
    """By which the dev server's database has grown for each dataset, its part of the job and of indexes included."""
    workers: int = 1
    """Processes on each queue."""


async def measure(folder: Path, *, datasets: int, workers: int, tell: Callable[[str], None]) -> Carried:
    """Archive datasets of one small file each in one job.

    Args:
        folder: where the stack lies meanwhile; does not exist.
        datasets: how many.
        workers: processes on each queue.
        tell: told what happens now.

    Raises:
        JobFailed, CommandFailed, StackError: there is nothing to report.
    """
    tell(f"starting a stack with {workers} worker(s) on each queue")
    async with opened(folder, scale=dict.fromkeys(WORKERS, workers)) as site:
        tell(f"registering {datasets:,} datasets")
        pids = await many.landed(site, datasets)
        await settle()
        tell("archiving them")
        database = _database_bytes(folder)
        before = Processor.now(site.stack)
        jobs = await many.submitted(site, "archive", pids)
        await many.ended(site, jobs)
        after = Processor.now(site.stack)
        used = after.since(before)
        sampled = [await _history(site.temporal, archive_workflow(pid)) for pid in pids[:_SAMPLED]]
        job_events, job_bytes = await _history(site.temporal, job_workflow(jobs[-1]))
        return Carried(
            workers=workers,
            datasets=datasets,
            seconds=round(after.at_s - before.at_s, 1),
            cpu_ms={
                part: round(sum(_used(used, name) for name in names) / datasets * 1000, 1)
                for part, names in CPU_OF.items()
            },
            foreign=round(after.foreign_since(before), 3),
            events_median=int(median(events for events, _ in sampled)),
            events_job=job_events,
            history_bytes_median=int(median(size for _, size in sampled)),
            history_bytes_job=job_bytes,
            database_bytes=round((_database_bytes(folder) - database) / datasets),
        )


async def beside(
    folder: Path, *, datasets: int, workers: int, repeats: int, tell: Callable[[str], None]
) -> list[Carried]:
    """Measure with one worker process on each queue and with several, in turn, so many times.

    Raises:
        JobFailed, CommandFailed, StackError: there is nothing to report.
    """
    return [
        await measure(folder / f"{n}-{count}", datasets=datasets, workers=count, tell=tell)
        for n in range(repeats)
        for count in (1, workers)
    ]


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
    shown.add_row("history of a dataset, KB", f"{carried.history_bytes_median / 1000:.1f}", "")
    shown.add_row("Temporal's database, KB for each dataset", f"{carried.database_bytes / 1000:.1f}", "")
    shown.add_row("events of the job's last run", f"{carried.events_job:,}", "")
    shown.add_row("foreign load", f"{carried.foreign:.0%}", "")
    return shown


def save(carried: Carried) -> None:
    """Keep it beside the other results."""
    RESULT.write_text(json.dumps(asdict(carried), indent=1) + "\n")


def save_comparison(found: Sequence[Carried]) -> None:
    """Keep them beside the other results."""
    COMPARISON.write_text(json.dumps([asdict(run) for run in found], indent=1) + "\n")


def comparison(found: Sequence[Carried]) -> Table:
    """Runs with one worker process on each queue and with several, in the order in which they ran, and the ratio."""
    shown = Table(title=f"{found[0].datasets:,} datasets of 1 KiB in one job", title_justify="left")
    for column in ("worker processes on each queue", "seconds", "workers, processor ms each", "foreign load"):
        shown.add_column(column, justify="right")
    for run in found:
        shown.add_row(str(run.workers), f"{run.seconds:.1f}", f"{run.cpu_ms['workers']:.0f}", f"{run.foreign:.0%}")
    one, several = (median(run.seconds for run in found if (run.workers == 1) is single) for single in (True, False))
    shown.add_row("several / one", f"{several / one:.2f}", "", "")
    return shown


def _used(used: Mapping[str, float], name: str) -> float:
    """Of a worker all of its processes, whose names are its own and a number."""
    return sum(seconds for process, seconds in used.items() if process == name or process.rpartition("-")[0] == name)


def _database_bytes(folder: Path) -> int:
    """What is in the dev server's write-ahead log still has to be counted as well."""
    return sum(file.stat().st_size for file in (folder / "stack" / "data").glob("temporal.sqlite*"))


async def _history(client: Client, workflow_id: str) -> tuple[int, int]:
    described = await client.get_workflow_handle(workflow_id).describe()
    info = described.raw_description.workflow_execution_info
    return info.history_length, info.history_size_bytes
