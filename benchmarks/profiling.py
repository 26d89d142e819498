"""Where a case's time goes: flame graphs of the workers, and the timeline of the job's workflows.

py-spy reads the workers' memory from outside; where the kernel allows that only to a process's ancestors
(`kernel.yama.ptrace_scope` above 0), it has to run as root.
"""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.history import by_step, timeline
from benchmarks.rclone import CommandFailed
from benchmarks.results import FOLDER
from benchmarks.site import Site, Took, opened, settle
from benchmarks.traffic import counted
from cli.stack import WORKERS

_PY_SPY = Path(sys.executable).parent / "py-spy"
_WAITS = ("_worker (concurrent/futures/thread.py", "EpollSelector.select", "Condition.wait", "Runner.run (asyncio/")
"""Functions that wait; py-spy takes their threads for busy where it does not halt the process."""
_WATCHED = (*WORKERS, "lts")
"""The pretend LTS too, since it shares the machine: its cost is in every time."""
_RATE_HZ = 200
_ATTACH_S = 1.5
_ENOUGH_S = 4.0
"""A short case is run again and again until there are samples enough."""
_SHOWN = 15
_LONGEST_TIMELINE = 400


async def profile(case: Case, folder: Path, console: Console) -> None:
    """Run a case again and again: warm, for the timeline, for the requests, for the flame graphs, for the tables.

    Raises:
        JobFailed, CommandFailed, StackError: it does not run.
    """
    async with opened(folder) as site:
        await case.prepare(site)
        await _run(case, site)  # the first one loads what is loaded once
        took = await _run(case, site)
        if len(took.events) <= _LONGEST_TIMELINE:
            console.print(timeline(took.events, took.seconds))
        console.print(by_step(took.events))
        console.print(f"{case.title}: {took.seconds:.3f} s, of these {took.bulk_s:.3f} s with bulk bytes")
        console.print("CPU s: " + ", ".join(f"{name} {used:.2f}" for name, used in took.cpu_s.items()))
        await case.before(site)
        async with counted(site) as traffic:
            await case.ours(site)
        console.print(_calls({**traffic.s3_calls, **traffic.lts_calls}))
        for form, ending in (("flamegraph", "svg"), ("raw", "txt")):
            async with _watched(site, form, lambda worker, e=ending: FOLDER / f"{case.name}.{worker}.{e}"):
                spent = 0.0
                while spent < _ENOUGH_S:
                    spent += (await _run(case, site)).seconds
    for worker in _WATCHED:
        stacks = FOLDER / f"{case.name}.{worker}.txt"
        if stacks.exists():
            console.print(_heaviest(worker, stacks.read_text()))
            stacks.unlink()
    console.print(f"Flame graphs: {FOLDER.name}/{case.name}.<process>.svg", highlight=False)


async def _run(case: Case, site: Site) -> Took:
    await case.before(site)
    await settle()
    return await case.ours(site)


@asynccontextmanager
async def _watched(site: Site, form: str, path_of: Callable[[str], Path]) -> AsyncGenerator[None]:
    """Let py-spy watch during a block."""
    FOLDER.mkdir(exist_ok=True)
    recorders: list[asyncio.subprocess.Process] = []
    try:
        for worker in _WATCHED:
            command = [
                *(str(_PY_SPY), "record", "--pid", str(site.stack.pid(worker)), "--output", str(path_of(worker))),
                *("--format", form, "--rate", str(_RATE_HZ), "--threads", "--nonblocking", "--duration", "unlimited"),
                *(("--function",) if form == "raw" else ()),
            ]
            recorders.append(
                await asyncio.create_subprocess_exec(
                    *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
                )
            )
        await asyncio.sleep(_ATTACH_S)
        for recorder in recorders:
            if recorder.returncode is not None:
                said = (await recorder.communicate())[1].decode(errors="replace")
                raise CommandFailed(f"py-spy cannot watch a process: {said[-300:]}")
        yield
    finally:
        for recorder in recorders:
            with contextlib.suppress(ProcessLookupError):
                recorder.send_signal(signal.SIGINT)
            await recorder.communicate()


def _heaviest(worker: str, stacks: str) -> Table:
    """Functions by the share of samples in which they, or what they called, were at work or in a socket."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("thread ")]
        if not frames or frames[-1].startswith(_WAITS):
            continue
        samples += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    table = Table(title=f"{worker}: {samples / _RATE_HZ:.2f} s of threads at work", title_justify="left")
    for column in ("own %", "with callees %"):
        table.add_column(column, justify="right")
    table.add_column("function")
    for frame in sorted(own, key=lambda frame: (own[frame], total[frame]), reverse=True)[:_SHOWN]:
        table.add_row(f"{100 * own[frame] / samples:.1f}", f"{100 * total[frame] / samples:.1f}", frame)
    return table


def _calls(calls: dict[str, int]) -> Table:
    table = Table(title="Requests to the stores", title_justify="left")
    table.add_column("bucket or route")
    table.add_column("times", justify="right")
    for name, count in sorted(calls.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{count:,}")
    return table
