"""The table of faults is what the tests say, and leaves out none that the stand-in for the LTS can play."""

import pytest

from tests.faults.table import PAGE, page, rows

PLAYED = [
    "WORM",
    "capacity full",
    "cache full",
    "slow",
    "cut after n bytes",
    "flips on the way to the LTS",
    "flips on the LTS",
    "flips on the way back",
    "lost file",
    "stuck in STARTED",
    "fails once",
    "429",
    "413",
    "503",
    "507",
    "milliseconds",
    "stripped path prefix",
    "drive offline",
    "tape offline",
    "404",
]


def test_the_page_of_faults_is_what_the_tests_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.faults.table"


@pytest.mark.parametrize("fault", PLAYED)
def test_every_fault_that_can_be_played_has_a_test(fault: str) -> None:
    assert any(fault in row.fault for row in rows())
