"""Rounds of chaos: a few each time, many in `make test-long`, any by `python -m tests.chaos`."""

from collections.abc import Generator

import pytest

from tests.chaos.plan import VICTIMS, Plan
from tests.chaos.rounds import Ring, ring, round_of

# A round that hangs says so itself, and is named.
pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(420)]

FEW, MANY = (19, 46, 49), 50
"""Three that are soon over and kill everything together, and how many there are in the long run."""
SEEDS = [*FEW, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(MANY) if seed not in FEW)]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Generator[Ring]:
    """One stack for all rounds; each has datasets of its own."""
    with ring(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.fault(
    "any process, or two at once, is killed at any moment of an archive or a retrieval of ten datasets",
    "both jobs end well: same bytes, nothing twice, nothing left over",
)
async def test_whatever_is_killed_nothing_is_lost_and_nothing_is_left(where: Ring, seed: int) -> None:
    report = await round_of(where, Plan.of(seed))
    assert not report.problems, str(report)


def test_a_seed_is_a_plan_and_the_few_kill_everything() -> None:
    plans = [Plan.of(seed) for seed in FEW]
    assert plans == [Plan.of(seed) for seed in FEW]
    assert len({str(plan) for plan in plans}) == len(FEW)
    blows = [blow for plan in plans for blow in (*plan.archive, *plan.retrieve)]
    assert {victim for blow in blows for victim in blow.victims} == set(VICTIMS)
    assert any(len(blow.victims) == 2 for blow in blows)
