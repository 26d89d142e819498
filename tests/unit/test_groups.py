"""Tests that share a stack share a process: whoever marks them so relies on two packages that know each other."""

import pytest

pytestmark = pytest.mark.xdist_group("groups")


def test_a_group_is_known_to_whoever_hands_out_the_tests(request: pytest.FixtureRequest) -> None:
    handed_out = bool(request.config.getoption("loadgroup", False))
    assert request.node.nodeid.endswith("@groups") == handed_out
