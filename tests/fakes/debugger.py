"""What VS Code does with `launch.json`: reads a configuration, and debugs by it through the Debug Adapter Protocol."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, cast

PROJECT = Path(__file__).parents[2]

_WITHIN_S = 60


def jsonc(path: Path) -> dict[str, Any]:
    """JSON in which whole lines may be comments, as VS Code has it."""
    return json.loads(re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.MULTILINE))


def configurations() -> dict[str, dict[str, Any]]:
    """What can be launched, by name."""
    listed = jsonc(PROJECT / ".vscode/launch.json")["configurations"]
    return {configuration["name"]: configuration for configuration in listed}


def substituted(configuration: dict[str, Any], stack: Path) -> dict[str, Any]:
    """The configuration as VS Code hands it to the debugger, with a stack that runs in another folder than `.local`."""
    text = json.dumps(configuration).replace("${workspaceFolder}/.local", str(stack))
    filled: dict[str, Any] = json.loads(text.replace("${workspaceFolder}", str(PROJECT)))
    lines = Path(filled.pop("envFile")).read_text().splitlines()
    told = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    return {
        "python": [sys.executable],
        "cwd": str(PROJECT),
        "console": "internalConsole",
        **filled,
        "env": told | filled.get("env", {}),
    }


class Debugger:
    """A debug adapter of debugpy, spoken to as editors do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.output = ""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator[Self]:
        """Start an adapter; what it launched ends with it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "debugpy.adapter"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        debugger = cls(process)
        hearing = asyncio.create_task(debugger._hear())
        try:
            yield debugger
            await debugger.ask("disconnect", terminateDebuggee=True)
        finally:
            hearing.cancel()
            # It waits for another program to debug; whatever still runs below it ends with it.
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def launch(self, configuration: dict[str, Any], file: Path, line: int) -> None:
        """Start a program with one breakpoint."""
        await self.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True)
        launching = asyncio.ensure_future(self.ask("launch", **configuration))
        await self.event("initialized")
        await self.breakpoints(file, line)
        await self.ask("configurationDone")
        await launching

    async def breakpoints(self, file: Path, *lines: int) -> None:
        """Stop at these lines of the file, and at no others."""
        wanted = [{"line": line} for line in lines]
        await self.ask("setBreakpoints", source={"path": str(file)}, breakpoints=wanted)

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        async with asyncio.timeout(_WITHIN_S):
            while (event := await self._events.get())["event"] != name:
                pass
        return event.get("body", {})

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request; return the body of its answer."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        request = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(request).encode()
        stdin = cast("asyncio.StreamWriter", self._process.stdin)
        stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        await stdin.drain()
        said = await asyncio.wait_for(answer, _WITHIN_S)
        assert said["success"], f"{command}: {said.get('message')}; {self.output}"
        return said.get("body", {})

    async def _hear(self) -> None:
        stdout = cast("asyncio.StreamReader", self._process.stdout)
        while header := await stdout.readuntil(b"\r\n\r\n"):
            said = json.loads(await stdout.readexactly(int(header.split(b":")[1])))
            if said["type"] == "response":
                self._answers.pop(said["request_seq"]).set_result(said)
            elif said["type"] == "event" and said["event"] == "output":
                self.output += said["body"]["output"]
            elif said["type"] == "event":
                self._events.put_nowait(said)
