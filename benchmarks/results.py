"""What a benchmark found: rows, a table for people, JSON for the documentation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

MIB = 1 << 20
FOLDER = Path(__file__).parent / "results"
LATEST = FOLDER / "latest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case beside one peer; numbers are None where there is none.

    Times are medians. Bytes are those of one run, counted at the stores in a pass of its own.
    """

    case: str
    title: str
    ours_s: float | None = None
    """From the POST to SciCat until SciCat has the job as finished."""
    bulk_s: float | None = None
    """Of this, from the first activity that moves bulk bytes to the end of the last."""
    peer: str | None = None
    peer_s: float | None = None
    ratio: float | None = None
    bar: float | None = None
    """The most that the ratio may be (the seconds, where there is no peer)."""
    goal: float | None = None
    payload_bytes: int = 0
    bytes_read_source: int | None = None
    bytes_written_lts: int | None = None
    bytes_read_lts: int | None = None
    scratch_bytes: int | None = None
    worker_max_rss_mib: float | None = None
    """Of the worker process that had most, its highest."""
    cpu_s: dict[str, float] = field(default_factory=dict[str, float])
    """Processor seconds of each process of the stack in one run of ours."""
    foreign: float | None = None
    """Largest share of the machine that others had during a run of ours: above 0.15, measure again."""
    ours_runs_s: tuple[float, ...] = ()
    peer_runs_s: tuple[float, ...] = ()
    scale: float = 1.0
    note: str = ""
    calls: dict[str, int] = field(default_factory=dict[str, int])
    """Requests to the stores in one run."""

    @property
    def measured(self) -> float | None:
        """What bar and goal are about."""
        return self.ratio if self.peer else self.ours_s


def save(rows: Sequence[Row], path: Path) -> None:
    """Put the rows in the place of those of the same cases; rows of other cases stay."""
    fresh = {row.case for row in rows}
    kept = [row for row in _read(path) if row["case"] not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, *(asdict(row) for row in rows)], indent=1) + "\n")


def load(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return [Row(**row) for row in _read(path)]


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


CPU_OF = {
    "workers": ("worker-control", "worker-archival", "worker-retrieval"),
    "API": ("api",),
    "MinIO": ("minio",),
    "Temporal": ("temporal",),
    "LTS": ("lts",),
    "SciCat": ("scicat",),
}
TIME_COLUMNS = ("case", "ours s", "bulk s", "peer", "peer s", "ratio", "bar", "goal")
COST_COLUMNS = ("case", "source read", "LTS written", "LTS read", "scratch bytes", "worker MiB")
CPU_COLUMNS = ("case", *CPU_OF, "all", "foreign load")
_TEXT = ("case", "peer")


def tables(rows: Sequence[Row]) -> tuple[Table, Table, Table]:
    """The rows for a terminal: times beside the peers', and what a run costs."""
    times = _table("Ours beside a peer (medians)", TIME_COLUMNS)
    before = ""
    for row in rows:
        style = "" if row.bar is None or row.measured is None else "green" if row.measured <= row.bar else "red"
        ours, peer = time_cells(row)[:3], time_cells(row)[3:]
        styles = ["", "", style if not row.peer else "", "", "", style, "", ""]
        texts = [*(ours if row.case != before else ("", "", "")), *peer]
        times.add_row(*(Text(text, style) for text, style in zip(texts, styles, strict=True)))
        before = row.case
    costs = _table("Bytes moved for each byte of payload, scratch, highest memory of one worker", COST_COLUMNS)
    for row in first_of_each(rows):
        costs.add_row(*map(Text, cost_cells(row)))
    processor = _table("Processor seconds of a run, by process", CPU_COLUMNS)
    for row in first_of_each(rows):
        processor.add_row(*map(Text, cpu_cells(row)))
    return times, costs, processor


def first_of_each(rows: Iterable[Row]) -> list[Row]:
    """One row of each case."""
    return list({row.case: row for row in reversed(list(rows))}.values())[::-1]


def time_cells(row: Row) -> tuple[str, ...]:
    """A row's cells, in the order of `TIME_COLUMNS`."""
    unit = "" if row.peer else " s"
    return (
        row.title,
        row.note if row.ours_s is None else _number(row.ours_s),
        _number(row.bulk_s),
        row.peer or "",
        _number(row.peer_s),
        _number(row.ratio),
        _number(row.bar, unit),
        _number(row.goal, unit),
    )


def cost_cells(row: Row) -> tuple[str, ...]:
    """A row's cells, in the order of `COST_COLUMNS`."""
    return (
        row.title,
        _times(row.bytes_read_source, row.payload_bytes),
        _times(row.bytes_written_lts, row.payload_bytes),
        _times(row.bytes_read_lts, row.payload_bytes),
        "" if row.scratch_bytes is None else f"{row.scratch_bytes:,}",
        "" if row.worker_max_rss_mib is None else f"{row.worker_max_rss_mib:.0f}",
    )


def cpu_cells(row: Row) -> tuple[str, ...]:
    """A row's cells, in the order of `CPU_COLUMNS`."""
    used = [_number(sum(row.cpu_s.get(name, 0.0) for name in names)) for names in CPU_OF.values()]
    return (row.title, *used, _number(sum(row.cpu_s.values())), "" if row.foreign is None else f"{row.foreign:.0%}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT else "right")
    return table


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.2f}{unit}"


def _times(count: int | None, payload: int) -> str:
    """Bytes as a multiple of the payload, where that says something."""
    if count is None:
        return ""
    return f"{count / payload:.3f}" if payload >= MIB and (not count or count / payload > 0.1) else f"{count:,} B"
