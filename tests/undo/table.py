"""The table of undone steps, made of the rows that the tests try by `python -m tests.undo.table`."""

import asyncio
from pathlib import Path

from tests.undo.mishaps import Mishap
from tests.undo.rows import End, Row, registered

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "undo.md"

_HEAD = f"""# What is undone

Every step that a worker runs for an archive or a retrieval, what can befall it, and what there is afterwards. The rows
are the steps that the worker registers, so a new step is a new row; the page is made by `python -m tests.undo.table`,
and a test says so when it is stale. `make test-long` tries every cell with the real step on a real S3 server and the
pretend LTS and SciCat (`tests/undo/`), `make test` the most telling ones.

- *{End.CLEAN}*: no datablock in SciCat, no file and no open upload on the LTS, the landing zone byte for byte as
  before, the life cycle as the status table says (cancelled: as found), no pin. Then the same dataset is archived,
  without harm. On a write-once LTS what was written stays, is listed under `orphans/`, and is taken over by the next
  archive.
- *{End.ARCHIVED}*: every datablock on the LTS and in SciCat, their bytes those of the files, the landing zone freed.
- *{End.STOPPED}*: what is archived stays as it is, no recall and no pin is left, and the next retrieval
  delivers it.
- *{End.RETRIEVED}*: every byte lies in the retrieval bucket, no pin is left.

An upload or a pin of whose id nobody ever heard, since the answer was lost, ends by the LTS's own expiry.

"""

_PARKED = {
    End.CLEAN: "parked; after `give_up` as if never begun",
    End.STOPPED: "parked; after `give_up` not retrieved, no pin left",
}


def cell(row: Row, mishap: Mishap) -> str:
    """What there is afterwards, and what leads to it."""
    end = row.end(mishap)
    match mishap:
        case _ if end is None:
            return "-"
        case Mishap.FAILS if row.step == "await_recall":
            return f"at the recall's deadline {end}"
        case Mishap.FAILS if row.of_job:
            return f"retried without end; then {end}"
        case Mishap.FAILS if row.behind:
            return f"parked; `give_up` comes too late; after `retry` {end}"
        case Mishap.FAILS if row.calm:
            return f"parked; after `retry` {end}"
        case Mishap.MISTAKE if row.behind:
            return f"parked; after `retry` {end}"
        case Mishap.FAILS:
            return _PARKED[end]
        case Mishap.CANCELLED | Mishap.CROSSED if end is row.ends:
            return f"too late: {end}"
        case _:
            return str(end)


def page(rows: list[Row]) -> str:
    """The whole page."""
    parts = {"An archive": [row for row in rows if not row.retrieval], "A retrieval": [r for r in rows if r.retrieval]}
    return _HEAD + "\n".join(f"## {title}\n\n{_table(listed)}" for title, listed in parts.items())


def _table(rows: list[Row]) -> str:
    lines = [["step", *(str(mishap) for mishap in Mishap)], ["---"] * (1 + len(Mishap))]
    lines += [[f"`{row.step}`{row.where}", *(cell(row, mishap) for mishap in Mishap)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(asyncio.run(registered())))
