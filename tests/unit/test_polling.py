"""When to ask again: later each time, never sooner than told, long waits together."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.polling import TOGETHER_S, delay_s

NOW = 1_800_000_000.75

attempts = st.integers(1, 10_000)
delays = st.floats(0.01, 14_400)
moments = st.floats(1.7e9, 2.5e9)


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1.0), (2, 1.5), (3, 2.25), (5, 5.0625), (50, 9.0)])
def test_it_grows_by_half_up_to_the_longest(attempt: int, delay: float) -> None:
    assert delay_s(attempt, initial_s=1, longest_s=9, told_s=0, now_s=NOW) == delay


def test_a_long_delay_ends_on_the_nearest_whole_second() -> None:
    assert delay_s(40, initial_s=1, longest_s=60, told_s=0, now_s=NOW) == 60.25
    assert delay_s(40, initial_s=1, longest_s=60, told_s=0, now_s=NOW + 0.5) == 59.75


@given(attempts, delays, delays, moments)
def test_long_delays_end_together_and_near_what_they_would_be(
    attempt: int, initial: float, longest: float, now: float
) -> None:
    plain = min(initial * 1.5 ** (min(attempt, 32) - 1), longest)
    delay = delay_s(attempt, initial_s=initial, longest_s=longest, told_s=0, now_s=now)
    assert delay == plain if plain < TOGETHER_S else (now + delay) % 1 == 0
    assert abs(delay - plain) < 0.5 + 1e-6


@given(attempts, delays, delays, delays, moments)
def test_nobody_is_asked_sooner_than_he_said(
    attempt: int, initial: float, longest: float, told: float, now: float
) -> None:
    assert delay_s(attempt, initial_s=initial, longest_s=longest, told_s=told, now_s=now) >= told


@given(delays, delays, moments)
def test_it_never_comes_sooner_with_more_attempts(initial: float, longest: float, now: float) -> None:
    found = [delay_s(n, initial_s=initial, longest_s=longest, told_s=0, now_s=now) for n in range(1, 40)]
    # Half a second is what the nearest whole one may take away.
    assert all(later > sooner - 0.5 - 1e-6 for sooner, later in pairwise(found))
