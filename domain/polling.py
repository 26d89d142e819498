"""When to ask again for what takes its time."""

TOGETHER_S = 10.0
"""Delays from here on end on a whole second, so that the polls of many datasets come together.

Workers, LTS and Temporal's server then wake once a second for all of them, which saves a third of their processor time
(`docs/explanations/performance.md`).
"""


def delay_s(attempt: int, *, initial_s: float, longest_s: float, told_s: float, now_s: float) -> float:
    """Seconds until the next poll: half as long again with each attempt.

    Args:
        attempt: of the poll that found nothing, from 1.
        initial_s: the first delay.
        longest_s: the longest delay.
        told_s: the other side has asked to wait at least so long, 0 if it has not.
        now_s: Unix time.
    """
    delay = max(min(initial_s * 1.5 ** (min(attempt, 32) - 1), longest_s), told_s)
    if delay < TOGETHER_S:
        return delay
    whole = round(now_s + delay) - now_s
    return whole if whole >= told_s else whole + 1
