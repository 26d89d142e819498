"""The library's own rules: migration, recalls in tape order, the cache, drives that go away."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from mock_lts.desk import Desk
from mock_lts.faults import Faults
from mock_lts.library import Library, Rules
from mock_lts.model import Locality, StageRequest, StoredFile, Tape, Timing

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


@pytest.mark.parametrize("seed", range(25))
def test_a_random_life_keeps_the_books(seed: int):
    """Whatever is asked: space adds up, no tape is in two drives, pinned files stay on disk, all work ends."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    steps = itertools.count()
    shelf, desk = library(
        seed,
        drives=chance.choice([1, 2, 3]),
        cache_bytes=100,
        migrate_bytes=chance.choice([1.0, 50.0, 1e9]),
        migrate_age_s=chance.choice([0.0, 600.0]),
        dwell_s=chance.choice([0.0, 60.0]),
        timing=Timing(chance.choice([0.0, 0.01, 1.0])),
        evict_after_s=chance.choice([None, 0.0, 100.0]),
        evict_on_release=chance.random() < 0.3,
        io_error_rate=0.1,
    )
    uploads: list[int] = []

    def upload() -> None:
        size = chance.randint(0, 40)
        if shelf.reserve(size):
            uploads.append(size)

    def publish() -> None:
        if uploads:
            size = uploads.pop()
            shelf.add(StoredFile(f"id{next(steps)}", f"p{chance.randint(0, 25)}", size, shelf.now, shelf.now))
            shelf.unreserve(size)

    def recall() -> None:
        paths = [f"p{chance.randint(0, 26)}" for _ in range(chance.randint(1, 6))]
        shelf.stage(f"r{next(steps)}", [(path, chance.choice([0.0, 10.0, 1000.0])) for path in paths])

    def some_request(act: Callable[[StageRequest, set[str]], None]) -> None:
        if desk.requests:
            request = chance.choice(list(desk.requests.values()))
            act(request, {entry.path for entry in request.entries if chance.random() < 0.7})

    def forget(request: StageRequest, _: set[str]) -> None:
        shelf.forget(request)

    def some_file(act: Callable[[StoredFile], object]) -> None:
        if shelf.by_path:
            act(chance.choice(list(shelf.by_path.values())))

    acts: list[Callable[[], object]] = [
        *[upload, publish, recall] * 3,
        lambda: some_request(shelf.release),
        lambda: some_request(shelf.cancel),
        lambda: some_request(forget),
        lambda: some_file(shelf.delete),
        lambda: some_file(shelf.evict),
        shelf.flush,
        lambda: shelf.set_drive_offline(chance.randrange(len(shelf.drives)), offline=chance.random() < 0.4),
        lambda: shelf.set_tape_offline(f"T{chance.randrange(3)}", offline=chance.random() < 0.4),
    ]
    for _ in range(200):
        shelf.advance(shelf.now + chance.expovariate(1 / chance.choice([0.01, 5, 200])))
        chance.choice(acts)()
        shelf.advance(shelf.now)
        files = shelf.files.values()
        assert shelf.used_bytes == sum(file.size for file in files if file.on_disk)
        reading = sum(drive.file.size for drive in shelf.drives if drive.file and drive.phase == "reading")
        assert shelf.reserved_bytes == sum(uploads) + reading
        assert shelf.free_bytes() >= 0
        assert all(file.on_disk or file.volume for file in files)
        assert all(file.on_disk for file in files if desk.pinned(file.id))
        mounted = [drive.tape.name for drive in shelf.drives if drive.tape]
        assert len(mounted) == len(set(mounted))
    for drive in range(len(shelf.drives)):
        shelf.set_drive_offline(drive, offline=False)
    for name in shelf.tapes:
        shelf.set_tape_offline(name, offline=False)
    for size in uploads:
        shelf.unreserve(size)
    for request in desk.requests.values():
        shelf.release(request, {entry.path for entry in request.entries})
    shelf.flush()
    shelf.advance(shelf.now + 1e6)
    assert not shelf.unmigrated()
    assert all(request.completed_at is not None for request in desk.requests.values())
