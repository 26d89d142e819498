"""Datasets that wait for tape: what they cost while nothing happens.

A wait is an activity that fails with a delay until it is tried again, so it should hold no slot, hardly any processor,
and no history however long it takes.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.table import Table
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.service import RPCError, RPCStatusCode

from benchmarks import many
from benchmarks.proc import Processor
from benchmarks.results import CPU_OF, FOLDER
from benchmarks.site import OVERRIDES, Site, opened
from domain.names import retrieve_workflow

RESULT = FOLDER / "waiting.json"
POLL_S = 60
CPU_BAR = 0.05
"""Of one core, for all workers together."""
EVENTS_BAR = 100

_ASKED_AT_ONCE = 32
_SETTLED_S = 150
"""After the last dataset has begun to wait its polls still grow from seconds to `POLL_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """What a wait of many datasets cost."""

    datasets: int
    seconds: float
    poll_s: float
    worker_cores: float
    """Processor of all workers together, in cores."""
    cores: dict[str, float]
    """The same for each part of the stack."""
    slots_held: int
    """Activities that a worker had in hand at the end of the wait."""
    waiting: int
    """Activities that wait for their next try."""
    events_median: int
    events_most: int
    """Of the history of one dataset's workflow."""
    delivered_s: float
    """From the moment at which tape came back until the last job was finished."""


async def measure(folder: Path, *, datasets: int, wait_s: float, tell: Callable[[str], None]) -> Waited:
    """Archive datasets of one small file each, ask for all of them, let no recall come for a while, and look.

    Args:
        folder: where the stack lies meanwhile; does not exist.
        datasets: how many.
        wait_s: how long nothing happens.
        tell: told what happens now.

    Raises:
        JobFailed, CommandFailed, StackError: there is nothing to report.
    """
    tell("starting a stack")
    async with opened(folder, OVERRIDES | {"LTS_POLL_S": str(POLL_S)}) as site:
        tell(f"registering {datasets:,} datasets")
        pids = await many.landed(site, datasets)
        tell("archiving them")
        await many.ended(site, await many.submitted(site, "archive", pids))
        await site.lts("POST", "/admin/evict")
        await site.lts("POST", "/admin/faults", {"kind": "recall_stuck"})
        tell("asking for them")
        jobs = await many.submitted(site, "retrieve", pids)
        await _all_wait(site, pids)
        await asyncio.sleep(_SETTLED_S)
        tell(f"waiting {wait_s:.0f} s")
        before = Processor.now(site.stack)
        await asyncio.sleep(wait_s)
        after = Processor.now(site.stack)
        seconds = after.at_s - before.at_s
        used = after.since(before)
        found = await _described(site, pids)
        events = [workflow.events for workflow in found]
        tell("tape is back")
        await site.lts("DELETE", "/admin/faults")
        began = asyncio.get_running_loop().time()
        await many.ended(site, jobs)
        return Waited(
            datasets=datasets,
            seconds=round(seconds, 1),
            poll_s=POLL_S,
            worker_cores=round(sum(used[name] for name in CPU_OF["workers"]) / seconds, 4),
            cores={part: round(sum(used[name] for name in names) / seconds, 4) for part, names in CPU_OF.items()},
            slots_held=sum(workflow.held for workflow in found),
            waiting=sum(workflow.waiting for workflow in found),
            events_median=int(median(events)),
            events_most=max(events),
            delivered_s=round(asyncio.get_running_loop().time() - began, 1),
        )


def table(waited: Waited) -> Table:
    """What was found, beside what was asked for."""
    shown = Table(title=f"{waited.datasets:,} datasets wait {waited.seconds:.0f} s for a recall", title_justify="left")
    for column, justify in (("", "left"), ("found", "right"), ("bar", "right")):
        shown.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    shown.add_row("workers, of a core", f"{waited.worker_cores:.1%}", f"< {CPU_BAR:.0%}")
    for part, cores in waited.cores.items():
        if part != "workers":
            shown.add_row(f"{part}, of a core", f"{cores:.1%}", "")
    shown.add_row("slots held", str(waited.slots_held), "0")
    shown.add_row("activities that wait for their next try", f"{waited.waiting:,}", "")
    events = f"{waited.events_median} ({waited.events_most})"
    shown.add_row("events of a dataset, median (most)", events, f"< {EVENTS_BAR}")
    shown.add_row("delivered after tape came back, s", f"{waited.delivered_s:.0f}", "")
    return shown


def save(waited: Waited) -> None:
    """Keep it beside the other results."""
    RESULT.write_text(json.dumps(asdict(waited), indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class _Described:
    events: int
    held: int
    waiting: int


async def _all_wait(site: Site, pids: Sequence[str]) -> None:
    while True:
        if all(workflow.waiting for workflow in await _described(site, pids)):
            return
        await asyncio.sleep(5)


async def _described(site: Site, pids: Sequence[str]) -> list[_Described]:
    asked = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def describe(pid: str) -> _Described:
        try:
            async with asked:
                raw = (await site.temporal.get_workflow_handle(retrieve_workflow(pid)).describe()).raw_description
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return _Described(0, 0, 0)  # its job has not come to it yet
        states = [pending.state for pending in raw.pending_activities]
        held = states.count(PendingActivityState.PENDING_ACTIVITY_STATE_STARTED)
        return _Described(raw.workflow_execution_info.history_length, held, len(states) - held)

    return list(await asyncio.gather(*(describe(pid) for pid in pids)))
