"""`python -m benchmarks.page`: put the numbers of `results/latest.json` into the page that explains them."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import (
    COST_COLUMNS,
    CPU_COLUMNS,
    LATEST,
    TIME_COLUMNS,
    Row,
    cost_cells,
    cpu_cells,
    first_of_each,
    load,
    time_cells,
)

PAGE = Path(__file__).parent.parent / "docs" / "explanations" / "performance.md"
BEGIN = "<!-- results: from benchmarks/results/latest.json, by `python -m benchmarks.page` -->"
END = "<!-- end of results -->"


def with_results(page: str, rows: Sequence[Row]) -> str:
    """The page with the rows between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page has no place for results")
    tables = (
        _table(TIME_COLUMNS, map(time_cells, rows)),
        _table(COST_COLUMNS, map(cost_cells, first_of_each(rows))),
        _table(CPU_COLUMNS, map(cpu_cells, first_of_each(rows))),
    )
    return "\n\n".join([f"{before}{BEGIN}", *tables, f"{END}{after}"])


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*head, *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)])


def main() -> int:
    """Rewrite the page."""
    rows = load(LATEST)
    if not rows or any(row.scale != 1 for row in rows):
        sys.stderr.write("There are no results in full size: run `make bench`.\n")
        return 1
    PAGE.write_text(with_results(PAGE.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
