"""What Linux's `/proc` says of the stack's processes: memory, disk, processor; nothing elsewhere."""

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cli.stack import Stack

_PAGE_BYTES = 4096


def highest_memory_mib(stack: Stack) -> dict[str, float]:
    """The most memory that each worker had resident since it started, in MiB."""
    lines = {name: _read(stack.pid(name), "status") for name in stack.workers}
    return {
        name: int(line.split()[1]) / 1024
        for name, text in lines.items()
        for line in text.splitlines()
        if line.startswith("VmHWM:")
    }


def disk_written_bytes(stack: Stack) -> int:
    """Bytes that the workers have given to a disk since they started, less their logs.

    The kernel counts whole pages at the moment that they become dirty, whether or not the file lives on.
    """
    written = 0
    for name in stack.workers:
        for line in _read(stack.pid(name), "io").splitlines():
            if line.startswith("write_bytes:"):
                log_pages = math.ceil(stack.log(name).stat().st_size / _PAGE_BYTES)
                written += int(line.split()[1]) - log_pages * _PAGE_BYTES
    return max(0, written)


@dataclass(frozen=True, slots=True)
class Processor:
    """Processor seconds used until a moment: of each process of the stack, of this one, and of the whole machine."""

    at_s: float
    stack: Mapping[str, float]
    own: float
    machine: float

    @classmethod
    def now(cls, stack: Stack) -> Self:
        """Read the clocks."""
        tick = os.sysconf("SC_CLK_TCK")
        used: dict[str, float] = {}
        for name in stack.services:
            fields = _read(stack.pid(name), "stat").rpartition(")")[2].split()
            if fields:
                used[name] = (int(fields[11]) + int(fields[12])) / tick
        busy = 0.0
        if used:
            user, nice, system, _, _, irq, softirq, *_ = (
                int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
            )
            busy = (user + nice + system + irq + softirq) / tick
        return cls(time.monotonic(), used, time.process_time(), busy)

    def since(self, before: Self) -> dict[str, float]:
        """Seconds of each process of the stack between two moments."""
        return {name: used - before.stack.get(name, 0.0) for name, used in self.stack.items()}

    def foreign_since(self, before: Self) -> float:
        """The share of the machine that was busy with something else between two moments, 0 to 1."""
        ours = sum(self.since(before).values()) + self.own - before.own
        others = self.machine - before.machine - ours
        return max(0.0, others / ((self.at_s - before.at_s) * (os.cpu_count() or 1)))


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text() if sys.platform == "linux" else ""
