"""The table of faults, made of the marks `fault(fault, outcome)` on the tests by `python -m tests.faults.table`."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reference" / "faults.md"

_HEAD = """# Faults

What goes wrong, what comes of it, and the test in which it does. The page is made out of the marks on the tests by
`python -m tests.faults.table`; a test says so when it is stale. Most of these tests run against the whole local stack,
whose servers are killed or told to misbehave.

| fault | outcome | test |
|---|---|---|
"""


@dataclass(frozen=True, order=True)
class Row:
    """One mark."""

    file: str
    line: int
    fault: str
    outcome: str
    test: str


def rows() -> list[Row]:
    """Every mark of every test, by file and place."""
    files = sorted(TESTS.rglob("test_*.py"))
    return sorted(row for path in files for row in _rows_of(path))


def page() -> str:
    """The whole page."""
    lines = [f"| {row.fault} | {row.outcome} | `{row.test}` |\n" for row in rows()]
    return _HEAD + "".join(lines)


def _rows_of(path: Path) -> Iterator[Row]:
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                fault, outcome = (str(ast.literal_eval(argument)) for argument in mark.args)
                yield Row(path.relative_to(TESTS).as_posix(), mark.lineno, fault, outcome, node.name)


if __name__ == "__main__":
    PAGE.write_text(page())
