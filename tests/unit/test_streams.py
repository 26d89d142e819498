"""Whatever comes late or never: no more streams are in use than there are, and nobody goes without for ever."""

import random
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from domain.streams import EXPIRE_S, KEEP_S, RENEW_S, TERM_S, YIELD_S, Seen, Streams

LIMIT = 2


@dataclass
class Store:
    """Writes on conditions, one after another."""

    objects: dict[int, Seen] = field(default_factory=dict[int, Seen])
    mark: str | None = None
    writes: int = 0

    def put(self, number: int, match: str | None, *, free: bool = False) -> str | None:
        """The new ETag; None if the object has another one than that."""
        present = self.objects.get(number)
        if (present.etag if present else None) != match:
            return None
        self.writes += 1
        # An empty object has always the same one.
        etag = "empty" if free else f"etag {self.writes}"
        self.objects[number] = Seen(etag, free)
        return etag

    def want(self) -> str:
        """Write the mark."""
        self.writes += 1
        self.mark = f"mark {self.writes}"
        return self.mark


@dataclass
class Process:
    """One of those that share the streams, with a clock of its own."""

    store: Store
    ahead_s: float
    streams: Streams = field(default_factory=lambda: Streams(LIMIT))
    wanted: int = LIMIT

    def clock(self, true_s: float) -> float:
        return true_s + self.ahead_s

    def round(self, true_s: float) -> None:
        """What a process does every few seconds, all of it at once and answered."""
        now = self.clock(true_s)
        for number, etag in self.streams.due(now).items():
            self.written(number, self.store.put(number, etag), now)
        self.streams.look(dict(self.store.objects), self.store.mark, now)
        for number, match in self.streams.free(now).items():
            if self.streams.holds(now) < self.wanted:
                self.written(number, self.store.put(number, match), now)
        if self.streams.holds(now) < self.wanted:
            self.streams.marked(self.store.want())

    def between_two_tasks(self, true_s: float) -> None:
        """One stream is not in use for a moment."""
        number = self.streams.for_others(self.clock(true_s))
        if number is not None:
            assert self.store.put(number, self.streams.give_back(number), free=True)

    def written(self, number: int, etag: str | None, sent: float) -> None:
        if etag is None:
            self.streams.lost(number)
        else:
            self.streams.wrote(number, etag, sent)


@dataclass
class Request:
    """A write that was sent, was perhaps served, and is perhaps answered."""

    sender: Process
    streams: Streams
    number: int
    match: str | None
    sent: float
    free: bool = False


class Sharing(RuleBasedStateMachine):
    """Three processes and a store, with everything between them as late as it likes."""

    requests = Bundle("requests")
    answers = Bundle("answers")
    listings = Bundle("listings")

    @initialize(ahead=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
    def begin(self, ahead: list[float]) -> None:
        self.true_s = 0.0
        self.store = Store()
        self.processes = [Process(self.store, ahead_s) for ahead_s in ahead]

    who = st.integers(0, 2)

    @rule(seconds=st.sampled_from([0.5, RENEW_S, KEEP_S - 0.5, KEEP_S, EXPIRE_S - KEEP_S, EXPIRE_S, TERM_S]))
    def time_passes(self, seconds: float) -> None:
        self.true_s += seconds

    @rule(who=who)
    def all_is_well(self, who: int) -> None:
        self.processes[who].round(self.true_s)

    @rule(target=requests, who=who, data=st.data())
    def a_write_is_sent(self, who: int, data: st.DataObject) -> Request:
        process = self.processes[who]
        now = process.clock(self.true_s)
        open_ = {**process.streams.free(now), **process.streams.due(now)}
        number, match = data.draw(st.sampled_from(sorted(open_.items()))) if open_ else (0, "nothing to write")
        return Request(process, process.streams, number, match, now)

    @rule(target=answers, request=consumes(requests))
    def it_is_served(self, request: Request) -> tuple[Request, str | None]:
        return request, self.store.put(request.number, request.match, free=request.free)

    @rule(answer=consumes(answers))
    def it_is_answered(self, answer: tuple[Request, str | None]) -> None:
        request, etag = answer
        if request.free:
            return
        if etag is None:
            request.streams.lost(request.number)
        else:
            request.streams.wrote(request.number, etag, request.sent)

    @rule(answer=consumes(answers))
    def its_answer_is_lost(self, answer: object) -> None:
        pass

    @rule(target=listings, who=who)
    def the_streams_are_listed(self, who: int) -> tuple[Streams, Process, dict[int, Seen]]:
        process = self.processes[who]
        return process.streams, process, dict(self.store.objects)

    @rule(listing=consumes(listings))
    def the_listing_comes(self, listing: tuple[Streams, Process, dict[int, Seen]]) -> None:
        streams, process, objects = listing
        streams.look(objects, None, process.clock(self.true_s))

    @rule(target=requests, who=who)
    def one_is_given_back(self, who: int) -> Request:
        process = self.processes[who]
        spare = process.streams.spare(0)
        if not spare:
            return Request(process, process.streams, 0, "nothing to give back", 0.0, free=True)
        return Request(process, process.streams, spare[0], process.streams.give_back(spare[0]), 0.0, free=True)

    @rule(who=who)
    def a_process_is_killed_and_started_again(self, who: int) -> None:
        self.processes[who].streams = Streams(LIMIT)

    @invariant()
    def no_more_are_in_use_than_there_are(self) -> None:
        if hasattr(self, "processes"):
            assert sum(p.streams.holds(p.clock(self.true_s)) for p in self.processes) <= LIMIT


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_the_streams_of_a_killed_process_are_free_again() -> None:
    store = Store()
    dead, alive = Process(store, 1000.0), Process(store, -1000.0)
    dead.round(0.0)
    assert dead.streams.holds(1000.0) == LIMIT
    rounds = [2.0 * n for n in range(1, 30)]
    got = {t: alive.streams.holds(alive.clock(t)) for t in rounds if alive.round(t) is None}
    assert all(held == 0 for t, held in got.items() if t < EXPIRE_S)
    assert got[rounds[0] + EXPIRE_S] == LIMIT


def test_a_process_that_lost_touch_goes_on_if_nobody_took_its_streams() -> None:
    process = Process(Store(), 0.0)
    process.round(0.0)
    assert process.streams.holds(KEEP_S + 1) == 0
    process.round(10 * EXPIRE_S)
    assert process.streams.holds(10 * EXPIRE_S) == LIMIT


def test_who_goes_without_gets_one_after_the_others_term_and_then_they_share() -> None:
    store = Store()
    first, second = Process(store, 5.0), Process(store, 700.0)
    chance = random.Random(0)  # noqa: S311 - a test's order of events
    first.round(0.0)
    held: list[tuple[int, int]] = []
    for second_of_time in range(1, 1200):
        true_s = float(second_of_time)
        for process in chance.sample([first, second], 2):
            process.round(true_s)
            process.between_two_tasks(true_s)
        held.append((first.streams.holds(first.clock(true_s)), second.streams.holds(second.clock(true_s))))
    assert held[int(TERM_S) - 2] == (LIMIT, 0)
    shared = held[int(TERM_S + 2 * YIELD_S) :]
    # While one is handed over nobody has it.
    assert sum(map(sum, shared)) > 0.9 * LIMIT * len(shared)
    for theirs in zip(*shared, strict=True):
        assert 0.8 < sum(theirs) / len(shared) < 1.2
        assert theirs.count(0) < 0.15 * len(shared)


def test_nobody_gives_up_what_nobody_else_wants() -> None:
    process = Process(Store(), 0.0, wanted=LIMIT + 1)
    for n in range(200):
        process.round(float(n))
        process.between_two_tasks(float(n))
        assert process.streams.holds(float(n)) == LIMIT


def test_a_process_needs_no_more_than_it_works_with() -> None:
    process = Process(Store(), 0.0)
    process.round(0.0)
    assert len(process.streams.spare(1)) == 1
    assert process.streams.spare(LIMIT) == []
