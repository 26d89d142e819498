"""The table of undone steps is made of the steps that the worker registers."""

from tests.undo.rows import registered
from tests.undo.table import PAGE, page


async def test_the_page_of_undone_steps_names_what_the_worker_registers() -> None:
    assert PAGE.read_text() == page(await registered()), "run: python -m tests.undo.table"
