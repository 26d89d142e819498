"""`.vscode/launch.json` by debugpy's own adapter: a worker of the local stack stops at a breakpoint, and goes on."""

import inspect
from pathlib import Path

import pytest

from activities.tape import TapeActivities
from cli.ports import Ports
from cli.stack import ALL_SERVICES, Stack
from tests.fakes.debugger import PROJECT, Debugger, configurations, jsonc, substituted
from tests.lab import QUICK, visit

WORKER = "worker: archival (writes to the LTS)"


@pytest.mark.long
async def test_a_worker_in_the_debugger_stops_at_a_breakpoint_and_does_its_work(tmp_path: Path) -> None:
    configuration = configurations()[WORKER]
    [task] = [t for t in jsonc(PROJECT / ".vscode/tasks.json")["tasks"] if t["label"] == configuration["preLaunchTask"]]
    left_out = task["args"][-1]
    services = [name for name in ALL_SERVICES if name != left_out]
    file, line = begin_of(TapeActivities.write_block)
    async with (
        Stack(tmp_path, Ports.free(), QUICK | task["options"]["env"], services) as stack,
        visit(stack) as lab,
        Debugger.open() as debugger,
    ):
        await debugger.launch(substituted(configuration, stack.folder), file, line)
        pid = await lab.dataset({"movie.tif": b"frames"})
        job = await lab.archive(pid)

        stopped = await debugger.event("stopped")
        assert stopped["reason"] == "breakpoint", debugger.output
        thread = stopped["threadId"]
        [frame, *_] = (await debugger.ask("stackTrace", threadId=thread))["stackFrames"]
        assert (Path(frame["source"]["path"]), frame["line"]) == (file, line)
        seen = await debugger.ask("evaluate", expression="order.pid", frameId=frame["id"])
        assert seen["result"] == repr(pid)

        await debugger.breakpoints(file)
        await debugger.ask("continue", threadId=thread)
        assert (await lab.ended(job))["jobStatusMessage"] == "finishedSuccessful"


def begin_of(step: object) -> tuple[Path, int]:
    """File and line of a step's first statement, which takes a line of its own."""
    function = inspect.unwrap(step)  # pyright: ignore[reportArgumentType] - it is a function
    lines, first = inspect.getsourcelines(function)
    [offset] = [n for n, text in enumerate(lines) if text.strip() == "_mind_what_was_told(order)"]
    return Path(inspect.getfile(function)).resolve(), first + offset
