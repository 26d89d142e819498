"""Promises of room in the landing zone: never more than there is, one for each dataset, and none for ever."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from domain.reservations import GIB, UNCLAIMED, Claim, Counted, Reservations, accounted, allowed

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = NOW + UNCLAIMED + timedelta(seconds=1)
SIZES = st.integers(min_value=1, max_value=100)
PIDS = st.sampled_from("abcdef")


def request(space: Reservations, pid: str, size: int, limit: int, ticket: str = "t") -> Reservations | None:
    return space.requested(pid, size, limit, ticket=ticket, now=NOW)


def granted(space: Reservations, pid: str, size: int, limit: int = 1 << 60, ticket: str = "t") -> Reservations:
    after = request(space, pid, size, limit, ticket)
    assert after
    return after


@pytest.mark.parametrize(("size_gib", "size"), [(0, GIB), (1, 2 * GIB), (1023, 1024 * GIB)])
def test_a_size_that_was_cut_off_to_whole_gib_accounts_for_one_more(size_gib: int, size: int) -> None:
    assert accounted(size_gib) == size


def test_of_a_hundred_decimal_terabytes_nine_tenths_are_given_away() -> None:
    assert allowed(100, 0.9) == 90 * 10**12
    assert allowed(0.5, 1) == 5 * 10**11


@given(st.integers(0, 50), st.lists(st.tuples(PIDS, SIZES), max_size=8), SIZES, st.integers(0, 400))
def test_a_new_dataset_gets_room_exactly_when_there_is_some(
    others: int, held: list[tuple[str, int]], size: int, limit: int
) -> None:
    space = Reservations(others=others)
    for pid, bytes_ in held:
        space = granted(space, pid, bytes_)
    taken = others + sum(dict(held).values())
    after = request(space, "new", size, limit)
    assert (after is not None) is (taken + size <= limit)
    if after:
        assert after.bytes == taken + size


def test_a_repeated_request_is_a_renewal_whose_size_is_looked_at_anew() -> None:
    space = granted(granted(Reservations(), "a", 60), "b", 30)
    assert granted(space, "a", 60, 90).bytes == 90
    assert granted(space, "a", 70, 100).bytes == 100
    assert request(space, "a", 71, 100) is None
    assert granted(space, "a", 10, 90).bytes == 40


def test_whoever_asks_for_no_more_than_it_has_is_not_refused_when_room_has_become_scarce() -> None:
    space = granted(Reservations(others=50), "a", 60)
    assert granted(space, "a", 60, limit=20).holds["a"].granted == 60
    assert granted(space, "a", 5, limit=20).bytes == 55
    assert request(space, "a", 61, limit=20) is None


def test_a_promise_that_was_renewed_is_not_given_back_by_whoever_had_it_before() -> None:
    space = granted(granted(Reservations(), "a", 60, ticket="1"), "a", 70, ticket="2")
    assert space.released("a", "1") == space
    assert space.released("a", "2").bytes == 0
    assert space.released("b", "2") == space


def test_after_a_count_more_than_was_promised_counts_and_so_does_what_nobody_was_promised() -> None:
    space = granted(granted(Reservations(others=1), "a", 60), "b", 30)
    after = space.reconciled(
        Counted(
            since=LATER,
            claims={"a": Claim(granted=60, found=80), "b": Claim(granted=30, found=10)},
            others=7,
        )
    )
    assert after.bytes == 80 + 30 + 7
    assert after.reconciled(Counted(since=LATER, claims={"a": Claim(granted=60), "b": Claim(granted=30)})).bytes == 90


def test_a_promise_that_no_upload_claims_ends_unless_it_is_new() -> None:
    space = granted(Reservations(), "a", 60)
    assert space.reconciled(Counted(since=NOW + UNCLAIMED)).bytes == 60
    assert space.reconciled(Counted(since=LATER)).bytes == 0


def test_a_promise_of_which_only_the_upload_knows_comes_back_and_can_be_given_back_by_it() -> None:
    space = Reservations().reconciled(Counted(since=NOW, claims={"a": Claim(granted=60, found=70)}))
    assert space.bytes == 70
    assert space.released("a", "whatever it was").bytes == 0


class Life(RuleBasedStateMachine):
    """Requests, releases and counts in any order, beside a plain account of what each dataset has."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Reservations()
        self.has: dict[str, int] = {}
        self.orphans: set[str] = set()
        """Those of them that no upload stands behind."""
        self.others = 0
        self.limit = 0

    @initialize(limit=st.integers(0, 500))
    def begins(self, limit: int) -> None:
        self.limit = limit

    @rule(pid=PIDS, size=SIZES)
    def asks(self, pid: str, size: int) -> None:
        before = self.has.get(pid, 0)
        fits = self.others + sum(self.has.values()) - before + size <= self.limit
        after = request(self.space, pid, size, self.limit)
        assert (after is not None) is (fits or size <= before)
        if after:
            self.space, self.has[pid] = after, size
            self.orphans.discard(pid)

    @rule(pid=PIDS)
    def gives_back(self, pid: str) -> None:
        self.space = self.space.released(pid, "t")
        self.has.pop(pid, None)
        self.orphans.discard(pid)

    @rule(pid=PIDS)
    def loses_its_upload(self, pid: str) -> None:
        if pid in self.has:
            self.orphans.add(pid)

    @rule(others=st.integers(0, 100))
    def is_counted(self, others: int) -> None:
        for pid in self.orphans:
            del self.has[pid]
        self.orphans.clear()
        claims = {pid: Claim(granted=size) for pid, size in self.has.items()}
        self.space, self.others = self.space.reconciled(Counted(since=LATER, claims=claims, others=others)), others

    @invariant()
    def adds_up(self) -> None:
        assert {pid: hold.granted for pid, hold in self.space.holds.items()} == self.has
        assert self.space.bytes == self.others + sum(self.has.values())


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=20)
