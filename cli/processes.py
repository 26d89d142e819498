"""Child processes that die with their parent, and the record by which they are found again.

Every child leads a session of its own, so that a Ctrl-C reaches only the supervisor, which stops them in order. On
Linux the kernel kills a child whose supervisor is gone, even by `kill -9`. Elsewhere, and for `down`, a record says
which processes were started; a process is known by its number *and* its start time, since numbers are used again.
"""

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

TAIL_LINES = 15
_TAIL_BYTES = 64 * 1024
_LOOK_EVERY_S = 0.02

# Asks the kernel for the parent's death as a SIGKILL, then becomes the program; the request outlives exec. A
# `preexec_fn` would do the same in the forked parent, where Temporal's threads may hold locks for ever.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    sys.exit("the supervisor is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class StackError(Exception):
    """The local stack cannot go on; the first line is a sentence, the end of a log may follow."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for certain: its number, and the start time that tells it from later holders of that number."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Identify a running process; None when there is none (a zombie counts as none)."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_time(self.pid) == self.started

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to its group if it leads one; one that is gone is left in peace."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                leads = group and os.getpgid(self.pid) == self.pid
                (os.killpg if leads else os.kill)(self.pid, number)


def _start_time(pid: int) -> str | None:
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name, in parentheses, may hold anything; behind it field 3 is the state, field 22 the start time.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    told = subprocess.run(  # noqa: S603 - a number
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return None if not told or told[0].startswith("Z") else told[1].strip()


def end(processes: Iterable[ProcessId], *, grace_s: float) -> None:
    """Stop processes that are not our children: SIGTERM, then after the grace SIGKILL to their groups."""
    waiting = [process for process in processes if process.alive]
    for process in waiting:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while waiting and time.monotonic() < deadline:
        time.sleep(0.05)
        waiting = [process for process in waiting if process.alive]
    for process in waiting:
        process.send(signal.SIGKILL, group=True)
    while any(process.alive for process in waiting):
        time.sleep(0.01)


@dataclass(slots=True)
class Child:
    """A program of the stack: started, asked after and stopped by this process; its output goes to its log.

    Bound to no event loop, so that tests with loops of their own can share a stack.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    identity: ProcessId | None = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _told_to_end: bool = field(default=False, init=False)

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The running program's process number.

        Raises:
            StackError: It does not run.
        """
        if self._process is None or not self.running:
            raise StackError(f"{self.name} does not run.")
        return self._process.pid

    def start(self) -> None:
        """Start the program; it may take a while until it answers."""
        command = [str(part) for part in self.command]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        self._told_to_end = False
        self.started_at = time.time()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - no shell; the stack says what
                command,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.identity = ProcessId.of(self._process.pid)

    async def stop(self, *, grace_s: float) -> None:
        """End the program: SIGTERM, then after the grace SIGKILL to all of its group."""
        self._told_to_end = True
        self.send(signal.SIGTERM)
        await self._ended(within_s=grace_s)
        await self.kill()

    async def kill(self) -> None:
        """End the program and all of its group by SIGKILL, as a crash would."""
        self._told_to_end = True
        self.send(signal.SIGKILL)
        await self._ended(within_s=math.inf)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program and all of its group, if it runs."""
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def check(self) -> None:
        """Do nothing while the program runs, or ended because it was told to.

        Raises:
            StackError: It ended by itself; says how, with the end of its log.
        """
        if self._process is None or self.running or self._told_to_end:
            return
        code = self._process.returncode
        raise self.failure(
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        )

    def failure(self, what_happened: str) -> StackError:
        """Word an error about this program, with the end of its log."""
        tail = last_lines(self.log)
        return StackError(
            f"{self.name} {what_happened}; " + (f"its log ends:\n{tail}" if tail else "its log is empty.")
        )

    async def _ended(self, *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self.running and time.monotonic() < deadline:  # noqa: ASYNC110 - a child's end sets no asyncio.Event
            await asyncio.sleep(_LOOK_EVERY_S)


def last_lines(log: Path, count: int = TAIL_LINES) -> str:
    """Read the end of a log; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])
