"""The library's own rules: migration, recalls in tape order, the cache, drives that go away."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mock_lts.desk import Desk
from mock_lts.faults import Faults
from mock_lts.library import LONGEST_SHIFT_S, Library, Rules
from mock_lts.model import Locality, Phase, StoredFile, Tape, Timing

PATHS = st.sampled_from(["a", "b", "c", "d/e/a", "d/e/b", "d/c"])
LTO9 = 18_000_000_000_000


def library(seed: int = 0, tapes: int = 3, drives: int = 1, **changes: Any) -> tuple[Library, Desk]:
    rules: dict[str, Any] = {
        "cache_bytes": 10**12,
        "migrate_bytes": 10**11,
        "migrate_age_s": 3600.0,
        "dwell_s": 600.0,
        "timing": Timing(1.0),
        "seed": seed,
        **changes,
    }
    desk = Desk()
    names = [Tape(f"T{n}", LTO9) for n in range(tapes)]
    return Library(Rules(**rules), names, drives, desk=desk, mishaps=Faults()), desk


def add(shelf: Library, path: str, size: int) -> StoredFile:
    file = StoredFile(f"id-{path}", path, size, shelf.now, shelf.now)
    shelf.add(file)
    return file


class TestLibrary:
    def history(self, seed: int) -> list[tuple[float, str]]:
        shelf, _ = library(seed, drives=2)
        files = [add(shelf, f"f{n}", 10**10) for n in range(12)]
        shelf.advance(20_000)
        for file in files:
            assert shelf.evict(file)
        wanted = files[::3]
        shelf.stage("r", [(file.path, 3600.0) for file in wanted])
        seen: list[tuple[float, str]] = []
        while (at := shelf.next_event()) is not None and at < 30_000:
            shelf.advance(at)
            seen.append((at, " ".join(f"{d.phase}:{d.file.path if d.file else ''}" for d in shelf.drives)))
        assert all(file.on_disk for file in wanted)
        return seen

    def test_the_same_seed_tells_the_same_story(self):
        assert self.history(1) == self.history(1)
        assert self.history(1) != self.history(2)

    def test_migration_waits_for_bytes_or_age(self):
        shelf, _ = library()
        file = add(shelf, "f", 4 * 10**8)
        shelf.advance(3599)
        assert shelf.locality(file) is Locality.DISK
        assert {drive.phase for drive in shelf.drives} == {"empty"}
        # Robot 13 s, load 17 s, nothing to wind on a fresh tape, 1 s of writing.
        shelf.advance(3600 + 30.9)
        assert shelf.locality(file) is Locality.DISK
        shelf.advance(3600 + 31)
        assert shelf.locality(file) is Locality.DISK_AND_TAPE
        big = [add(shelf, f"big{n}", 5 * 10**10) for n in range(2)]
        shelf.advance(shelf.now + 400)
        assert [shelf.locality(f) for f in big] == [Locality.DISK_AND_TAPE] * 2

    def test_a_recall_takes_minutes_and_one_mount_serves_a_queue(self):
        shelf, desk = library()
        files = [add(shelf, f"f{n}", 4 * 10**9) for n in range(5)]
        shelf.flush()
        shelf.advance(1_000)
        mounts = shelf.tally.mounts
        for file in files:
            shelf.evict(file)
        request = shelf.stage("r", [(file.path, 3600.0) for file in reversed(files)])
        shelf.advance(1_599)
        assert request.started_at == request.created_at
        shelf.advance(1_000 + 600 + 13 + 17 + 4)
        assert request.completed_at is None
        shelf.advance(2_500)
        assert request.completed_at is not None
        assert shelf.tally.mounts == mounts + 1
        # Read in the order of the tape, not of the request.
        assert [entry.path for entry in sorted(request.entries, key=lambda e: e.finished_at or 0)] == [
            file.path for file in files
        ]
        assert all(desk.pinned(file.id) for file in files)
        shelf.advance(6_200)
        assert not any(desk.pinned(file.id) for file in files)

    def test_the_least_recently_used_copy_goes_and_pins_stay(self):
        shelf, _ = library(cache_bytes=30)
        a, b, c = (add(shelf, name, 10) for name in "abc")
        assert not shelf.reserve(1)
        shelf.flush()
        shelf.advance(500)
        shelf.stage("r", [("a", 1e6)])
        shelf.touch(c)
        assert shelf.reserve(10)
        assert [file.on_disk for file in (a, b, c)] == [True, False, True]
        assert not shelf.reserve(11)
        assert c.on_disk

    def test_a_recall_without_room_waits_for_it(self):
        shelf, _ = library(cache_bytes=30)
        a, b = add(shelf, "a", 20), add(shelf, "b", 10)
        shelf.flush()
        shelf.advance(500)
        shelf.stage("pin", [("b", 1e6)])
        assert shelf.evict(a)
        assert shelf.reserve(15)
        request = shelf.stage("r", [("a", 1e6)])
        shelf.advance(100_000)
        assert request.completed_at is None
        shelf.unreserve(15)
        shelf.advance(100_500)
        assert a.on_disk
        assert b.on_disk

    def test_a_drive_taken_away_gives_its_work_back(self):
        shelf, _ = library(drives=2)
        file = add(shelf, "a", 4 * 10**11)
        shelf.flush()
        shelf.advance(2_000)
        shelf.evict(file)
        request = shelf.stage("r", [("a", 3600.0)])
        shelf.advance(3_000)
        (reading,) = (drive.number for drive in shelf.drives if drive.phase == "reading")
        shelf.set_drive_offline(reading, offline=True)
        assert shelf.reserved_bytes == 0
        shelf.advance(6_000)
        assert request.completed_at is not None

    def test_tapes_are_filled_one_after_another(self):
        shelf, _ = library(migrate_bytes=1.0)
        files = [add(shelf, f"f{n}", 10**10 * 7 // 10) for n in range(4)]
        for tape in shelf.tapes.values():
            tape.capacity_bytes = 15 * 10**9
        shelf.advance(3_000)
        assert [file.volume for file in files] == ["T0", "T0", "T1", "T1"]
        assert [file.position for file in files] == [0, 7 * 10**9, 0, 7 * 10**9]

    def test_a_sweep_reads_in_the_order_of_the_tape(self):
        shelf, _ = library()
        sizes = [random.Random(n).randint(10**6, 4 * 10**10) for n in range(30)]  # noqa: S311 - no secret
        files = [add(shelf, f"f{n:02}", size) for n, size in enumerate(sizes)]
        shelf.flush()
        shelf.advance(10_000)
        for file in files:
            assert shelf.evict(file)
        asked = files[::2]
        random.Random(0).shuffle(asked)  # noqa: S311
        first = shelf.stage("first", [(file.path, 1e6) for file in asked])
        shelf.advance(10_000 + 600 + 13 + 17 + 91)
        late = files[1::2]
        second = shelf.stage("second", [(file.path, 1e6) for file in late])  # the drive is under way
        shelf.advance(20_000)
        arrived = sorted([*first.entries, *second.entries], key=lambda e: e.finished_at or 0)
        positions = [shelf.by_path[entry.path].position for entry in arrived]
        turns = [n for n in range(1, len(positions)) if positions[n] < positions[n - 1]]
        # Forwards to the end, and once back for what had come too late.
        assert len(turns) == 1
        assert positions[turns[0] - 1] == max(positions)
        assert shelf.tally.mounts == 2  # one for writing, one for all of this

    def test_the_robot_carries_one_cartridge_at_a_time(self):
        shelf, _ = library(drives=2, migrate_bytes=1.0, dwell_s=0.0)
        for tape in shelf.tapes.values():
            tape.capacity_bytes = 10**10
        files = [add(shelf, f"f{n}", 10**10) for n in range(2)]
        shelf.advance(5_000)
        for file in files:
            shelf.evict(file)
        begun = shelf.now
        shelf.stage("r", [(file.path, 1e6) for file in files])
        assert [(d.phase, d.until - begun) for d in shelf.drives] == [(Phase.FETCHING, 13.0), (Phase.FETCHING, 26.0)]

    def test_a_tape_wanted_for_reading_and_writing_goes_into_one_drive(self):
        shelf, _ = library(tapes=1, drives=2, dwell_s=0.0)
        old = add(shelf, "old", 10**9)
        shelf.flush()
        shelf.advance(5_000)
        shelf.evict(old)
        new = add(shelf, "new", 10**9)
        shelf.set_drive_offline(0, offline=True)
        shelf.set_drive_offline(1, offline=True)
        shelf.stage("r", [("old", 1e6)])
        shelf.flush()
        for number in range(2):
            shelf.set_drive_offline(number, offline=False)
        shelf.advance(5_001)
        assert [drive.tape is not None for drive in shelf.drives] == [True, False]
        shelf.advance(6_000)
        assert (old.on_disk, new.volume) == (True, "T0")

    def test_nobody_waits_for_ever_for_a_drive_that_is_always_wanted(self):
        shelf, _ = library(tapes=2, migrate_bytes=1.0, dwell_s=0.0)
        for tape in shelf.tapes.values():
            tape.capacity_bytes = 10**12 + 1
        busy = [add(shelf, f"busy{n:03}", 10**10) for n in range(100)]
        quiet = add(shelf, "quiet", 10**10)
        shelf.advance(10_000)
        assert {file.volume for file in busy} != {quiet.volume}
        for file in (*busy, quiet):
            assert shelf.evict(file)
        begun = shelf.now
        shelf.stage("0", [(file.path, 0.0) for file in busy])
        shelf.advance(begun + 1_000)
        request = shelf.stage("quiet", [("quiet", 1e6)])
        round_ = 0
        while request.completed_at is None and shelf.now < begun + 100_000:
            shelf.advance(shelf.now + 200)
            round_ += 1
            for file in busy:  # whatever has come is asked for again at once
                shelf.evict(file)
            shelf.stage(f"r{round_}", [(file.path, 0.0) for file in busy])
        assert request.completed_at is not None
        assert request.completed_at - begun < LONGEST_SHIFT_S + 1_000

    def test_writing_and_reading_take_turns_at_one_drive(self):
        shelf, _ = library(tapes=2, migrate_bytes=1.0, dwell_s=0.0, cache_bytes=10**15)
        first = add(shelf, "first", LTO9 - 10**9)  # fills a tape: what follows is written to the other
        shelf.advance(60_000)
        assert shelf.evict(first)
        n = 0
        request = None
        begun = shelf.now
        while shelf.now < begun + 30_000:
            for _ in range(10):
                add(shelf, f"f{(n := n + 1)}", 10**10)
            shelf.advance(shelf.now + 100)  # more than the drive can write
            if request is None and n >= 500:  # what waits to be written has waited longer
                request = shelf.stage("r", [("first", 1e6)])
        assert request is not None
        assert request.started_at - request.created_at < LONGEST_SHIFT_S + 1_000

    def test_an_absent_tape_keeps_nobody_else_waiting(self):
        shelf, _ = library(migrate_bytes=1.0, dwell_s=0.0)
        for tape in shelf.tapes.values():
            tape.capacity_bytes = 10**10
        far, near = add(shelf, "far", 10**10), add(shelf, "near", 10**10)
        shelf.advance(3_000)
        for file in (far, near):
            shelf.evict(file)
        shelf.set_tape_offline(far.volume or "", offline=True)
        request = shelf.stage("r", [("far", 1e6), ("near", 1e6)])
        shelf.advance(5_000)
        assert [entry.state for entry in request.entries] == ["SUBMITTED", "COMPLETED"]


class Life(RuleBasedStateMachine):
    """Whatever is asked for: space adds up, pins hold, a tape is in one drive, nothing taken in is lost, work ends."""

    @initialize(
        drives=st.integers(1, 3),
        migrate_bytes=st.sampled_from([0.0, 50.0, 1e9]),
        migrate_age_s=st.sampled_from([0.0, 600.0]),
        dwell_s=st.sampled_from([0.0, 60.0]),
        factor=st.sampled_from([0.0, 0.01, 1.0]),
        evict_after_s=st.sampled_from([None, 0.0, 100.0]),
        evict_on_release=st.booleans(),
    )
    def begin(self, drives: int, factor: float, **changes: Any) -> None:
        self.shelf, self.desk = library(
            drives=drives, cache_bytes=100, timing=Timing(factor), io_error_rate=0.1, **changes
        )
        self.uploads: list[int] = []
        self.kept: dict[str, str] = {}  # path → id of all that was published and not deleted
        self.numbers = itertools.count()

    @rule(seconds=st.sampled_from([0.001, 0.1, 5.0, 30.0, 200.0, 5_000.0]))
    def wait(self, seconds: float) -> None:
        self.shelf.advance(self.shelf.now + seconds)

    @rule(size=st.integers(0, 60))
    def upload(self, size: int) -> None:
        if self.shelf.reserve(size):
            self.uploads.append(size)

    @precondition(lambda self: bool(self.uploads))
    @rule(path=PATHS)
    def publish(self, path: str) -> None:
        size, file_id = self.uploads.pop(), f"id{next(self.numbers)}"
        self.shelf.add(StoredFile(file_id, path, size, self.shelf.now, self.shelf.now))
        self.shelf.unreserve(size)
        self.kept[path] = file_id

    @rule(paths=st.lists(PATHS, min_size=1, max_size=6), lifetime_s=st.sampled_from([0.0, 10.0, 1000.0]))
    def recall(self, paths: list[str], lifetime_s: float) -> None:
        self.shelf.stage(f"r{next(self.numbers)}", [(path, lifetime_s) for path in paths])

    @precondition(lambda self: bool(self.desk.requests))
    @rule(data=st.data(), paths=st.sets(PATHS), what=st.sampled_from(["release", "cancel", "forget"]))
    def let_go(self, data: st.DataObject, paths: set[str], what: str) -> None:
        request = data.draw(st.sampled_from(list(self.desk.requests.values())))
        if what == "forget":
            self.shelf.forget(request)
        else:
            {"release": self.shelf.release, "cancel": self.shelf.cancel}[what](request, paths)

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        if (file := self.shelf.by_path.get(path)) is not None:
            self.shelf.delete(file)
            del self.kept[path]

    @rule(path=PATHS)
    def evict(self, path: str) -> None:
        if (file := self.shelf.by_path.get(path)) is not None:
            self.shelf.evict(file)

    @rule()
    def flush(self) -> None:
        self.shelf.flush()

    @rule(drive=st.integers(0, 2), offline=st.booleans())
    def switch_drive(self, drive: int, offline: bool) -> None:
        self.shelf.set_drive_offline(drive % len(self.shelf.drives), offline=offline)

    @rule(tape=st.integers(0, 2), offline=st.booleans())
    def switch_tape(self, tape: int, offline: bool) -> None:
        self.shelf.set_tape_offline(f"T{tape}", offline=offline)

    @invariant()
    def the_books_are_right(self) -> None:
        shelf = self.shelf
        files = shelf.files.values()
        reading = [d.file.size for d in shelf.drives if d.file is not None and d.phase is Phase.READING]
        assert shelf.used_bytes == sum(file.size for file in files if file.on_disk)
        assert shelf.reserved_bytes == sum(self.uploads) + sum(reading)
        assert shelf.free_bytes() >= 0  # what is staged, held and being staged fits the cache
        assert shelf.stored_bytes == sum(file.size for file in files)
        assert {f.id for f in shelf.unmigrated()} == {f.id for f in files if f.volume is None and f.size}
        for path in {path for file in files for path in (file.path.rpartition("/")[0],) if path}:
            assert shelf.is_folder(path)
        unfinished = {r.id for r in self.desk.requests.values() if r.completed_at is None}
        assert self.desk.open_requests() == len(unfinished)

    @invariant()
    def nothing_taken_in_is_lost(self) -> None:
        assert {path: file.id for path, file in self.shelf.by_path.items()} == self.kept
        assert all(file.on_disk or file.volume is not None for file in self.shelf.files.values())

    @invariant()
    def what_is_pinned_is_on_disk(self) -> None:
        assert all(file.on_disk for file in self.shelf.files.values() if self.desk.pinned(file.id))
        pins = [entry.pin_expires_at or 0.0 for _, entry in self.desk.pins()]
        assert self.desk.next_expiry() == min(pins, default=None)

    @invariant()
    def a_tape_is_in_one_drive_and_the_robot_has_two_hands(self) -> None:
        mounted = [drive.tape.name for drive in self.shelf.drives if drive.tape is not None]
        assert len(mounted) == len(set(mounted))
        assert sum(drive.for_writing for drive in self.shelf.drives) <= 1
        ends = [d.until for d in self.shelf.drives if d.phase in (Phase.FETCHING, Phase.RETURNING)]
        if self.shelf.rules.timing.factor:
            assert len(ends) == len(set(ends))  # one after another

    def teardown(self) -> None:
        """Once nothing is in its way, all work ends."""
        shelf = self.shelf
        for number in range(len(shelf.drives)):
            shelf.set_drive_offline(number, offline=False)
        for name in shelf.tapes:
            shelf.set_tape_offline(name, offline=False)
        while self.uploads:
            shelf.unreserve(self.uploads.pop())
        for request in self.desk.requests.values():
            shelf.release(request, {entry.path for entry in request.entries})
        shelf.flush()
        shelf.advance(shelf.now + 1e6)
        assert not shelf.unmigrated()
        assert all(request.completed_at is not None for request in self.desk.requests.values())
        self.the_books_are_right()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


class TestLongLife(Life.TestCase):
    settings = settings(max_examples=1500, stateful_step_count=120, deadline=None)
    pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


Step = tuple[str, int, float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "stage", "release", "evict", "drive", "wait"]),
        st.integers(0, 9),
        st.sampled_from([0.1, 60.0, 700.0, 4000.0]),
    ),
    max_size=40,
)


def story(seed: int, steps: list[Step]) -> list[Any]:
    """Everything that happened to a library that was asked these things at these times, event by event."""
    shelf, desk = library(seed, drives=2, cache_bytes=10**12, io_error_rate=0.2, never_arrive_rate=0.1)
    told: list[Any] = []
    for number, (what, n, seconds) in enumerate(steps):
        file = shelf.by_path.get(f"p{n}")
        request = next(iter(desk.requests.values()), None)
        match what:
            case "add":
                shelf.add(StoredFile(f"id{number}", f"p{n}", 10**10 + n, shelf.now, shelf.now))
            case "stage":
                shelf.stage(f"r{number}", [(f"p{m}", 500.0) for m in range(n + 1)])
            case "release" if request is not None:
                shelf.release(request, {entry.path for entry in request.entries})
            case "evict" if file is not None:
                shelf.evict(file)
            case "drive":
                shelf.set_drive_offline(n % 2, offline=n < 3)
            case _:
                pass
        end = shelf.now + seconds
        while (at := shelf.next_event()) is not None and at <= end:
            shelf.advance(at)
            drives = [(d.phase, d.until, d.tape and d.tape.name, d.file and d.file.path) for d in shelf.drives]
            told.append((at, drives, list(shelf.moves)))
        shelf.advance(end)
    told += [(f.path, f.volume, f.position, f.on_disk, f.reads) for f in shelf.files.values()]
    told += [(e.path, e.state, e.started_at, e.finished_at) for r in desk.requests.values() for e in r.entries]
    return told


@given(seed=st.integers(0, 5), steps=STEPS)
@settings(max_examples=40, deadline=None)
def test_the_same_asked_at_the_same_times_gives_the_same_history(seed: int, steps: list[Step]):
    assert story(seed, steps) == story(seed, steps)
