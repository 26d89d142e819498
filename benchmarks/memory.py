"""Memory as a machine has it that has been up for a day: full of file pages that can be given up.

A virtual machine's memory is often not there before it is touched, and what is freed is taken back within seconds. The
host then finds a page for each first touch, at ten times the price of a page that is there (measured: 2.2 s of kernel
time for each GiB against 0.2 s), and whoever happens to need one pays. That is the host's doing, larger than what is
compared here, and falls on ours and on the peers by chance.
"""

import os
import tempfile
from pathlib import Path

_FREE_SHARE = 0.07
"""Just above what the kernel keeps free by itself."""
_READ_BYTES = 16 << 20

_hole = tempfile.TemporaryFile(dir=Path(__file__).with_name("results"))  # noqa: SIM115 - for the life of the process
"""Sparse: takes memory when it is read, and no disk."""


def fill() -> None:
    """Read a file without content until hardly any memory is free; Linux only, elsewhere nothing happens."""
    total = _bytes_of("MemTotal")
    os.truncate(_hole.fileno(), 2 * total)
    buffer = bytearray(_READ_BYTES)
    for _ in range(0, total, _READ_BYTES):
        if _bytes_of("MemFree") <= _FREE_SHARE * total:
            return
        # Read in a circle twice as long as the memory: what comes next has been given up long ago.
        if _hole.readinto(buffer) < _READ_BYTES:
            _hole.seek(0)


def _bytes_of(field: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)
