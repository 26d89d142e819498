"""Tests that share a stack share a process: whoever marks them so relies on two packages that know each other."""

import os

import pytest

pytestmark = pytest.mark.xdist_group("groups")


def test_a_group_is_known_to_whoever_hands_out_the_tests(pytestconfig: pytest.Config) -> None:
    handed_out = bool(pytestconfig.getoption("loadgroup", False))
    assert ("@groups " in os.environ["PYTEST_CURRENT_TEST"]) == handed_out
