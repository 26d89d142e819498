"""The library itself: a disk cache, cartridges, drives and one robot, as a state machine without a clock or a disk.

Callers tell it what happened and what time it is; it answers with `moves` (bytes to be linked or dropped) and marks
what must be stored. The same calls at the same times under the same seed give the same history.

    drive:  EMPTY → FETCHING → LOADING → LOCATING ⇄ READING | WRITING → IDLE → REWINDING → UNLOADING → RETURNING → EMPTY
    file:   on disk → (migration) → on disk and tape → (eviction) → on tape → (recall) → on disk and tape
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Protocol

from mock_lts.desk import Desk
from mock_lts.model import Drive, Locality, Phase, StageEntry, StageRequest, StageState, StoredFile, Tape, Timing
from mock_lts.paths import BadPath, checked, collapsed

LONGEST_DWELL = 12
"""A queue that never falls quiet is mounted after this many dwell times (ENDIT: 600 s quiet, at most 2 h)."""
LONGEST_SHIFT_S = 7_200.0
"""A drive whose tape is always wanted gives it back after this, library seconds, when other work needs the drive."""


class Mishaps(Protocol):
    """What an operator of the mock may ask to go wrong; asked at the moment it would happen."""

    def stuck(self, path: str) -> bool:
        """This recall stays STARTED until the fault is lifted."""
        ...

    def recall_error(self, path: str) -> str | None:
        """This recall fails with the text returned."""
        ...

    def migration_held(self) -> bool:
        """Nothing is to be written to tape now."""
        ...

    def unavailable(self, path: str) -> bool:
        """This file cannot be reached now, wherever it is."""
        ...


class Change(StrEnum):
    """What has to happen to a file's bytes."""

    TO_TAPE = "to_tape"
    TO_DISK = "to_disk"
    OFF_DISK = "off_disk"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Move:
    """One change to one file's blobs."""

    change: Change
    file_id: str
    volume: str | None


@dataclass(frozen=True, slots=True)
class Rules:
    """Sizes and policies; ages and dwell in library seconds, `evict_after_s` in real ones."""

    cache_bytes: int
    migrate_bytes: float
    migrate_age_s: float
    dwell_s: float
    timing: Timing
    evict_after_s: float | None = None
    evict_on_release: bool = False
    io_error_rate: float = 0.0
    never_arrive_rate: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """Counted since the process started."""

    recalls: int = 0
    recall_failures: int = 0
    recalled_bytes: int = 0
    migrations: int = 0
    migrated_bytes: int = 0
    mounts: int = 0
    evictions: int = 0


@dataclass(slots=True)
class Queue:
    """Recalls waiting for one cartridge.

    Attributes:
        first_at: When it began to wait for a drive.
        last_at: When the last file came.
        files: By id.
        largest: No file is larger, bytes.
    """

    first_at: float
    last_at: float
    files: dict[str, StoredFile] = field(default_factory=dict[str, StoredFile])
    largest: int = 0
    _order: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])

    def put(self, file: StoredFile) -> None:
        """One more."""
        self.files[file.id] = file
        self.largest = max(self.largest, file.size)
        insort(self._order, (file.position, file.path, file.id))

    def take(self, file: StoredFile) -> None:
        """One less; it need not be there."""
        if self.files.pop(file.id, None) is not None:
            del self._order[bisect_left(self._order, (file.position, file.path, file.id))]

    def from_head(self, head_bytes: int) -> Iterator[StoredFile]:
        """Those ahead of the head in the order of the tape, then those behind it: one sweep serves a whole queue."""
        ahead = bisect_left(self._order, (head_bytes, "", ""))
        places = chain(range(ahead, len(self._order)), range(ahead))
        return (self.files[self._order[place][2]] for place in places)


class Library:
    """See the module. Public methods expect `advance(now)` to have been called for the same moment."""

    def __init__(
        self,
        rules: Rules,
        tapes: Iterable[Tape],
        drives: int,
        *,
        desk: Desk,
        mishaps: Mishaps,
        files: Iterable[StoredFile] = (),
        now: float = 0.0,
    ) -> None:
        self.rules = rules
        self.now = now
        self.desk = desk
        self.tapes = {tape.name: tape for tape in tapes}
        self.drives = [Drive(number) for number in range(drives)]
        self.files: dict[str, StoredFile] = {}
        self.by_path: dict[str, StoredFile] = {}
        self.queues: dict[str, Queue] = {}
        self.reserved_bytes = 0
        self.used_bytes = 0
        self.stored_bytes = 0
        self.tally = Tally()
        self.moves: list[Move] = []
        self.changed_files: set[str] = set()
        self.changed_tapes: set[str] = set()
        self._mishaps = mishaps
        self._fresh: dict[str, StoredFile] = {}  # waits for a flush
        self._flushing: dict[str, StoredFile] = {}  # is part of one
        self._fresh_bytes = 0
        self._folders: dict[str, int] = {}  # how many files lie below
        self._wrote_until = now
        self._evict_at: dict[str, float] = {}
        self._stuck: dict[str, StoredFile] = {}
        self._robot_free_at = now
        for file in sorted(files, key=lambda f: (f.created_at, f.path)):
            self._take_in(file)
        # A restart found the drives empty; what was asked for is asked for again.
        for file_id in desk.wanted_files():
            file = self.files.get(file_id)
            if file is None:
                desk.failed(file_id, now, "The file does not exist any more")
            elif file.on_disk:
                desk.arrived(file_id, now)
            elif file.stuck:
                self._stuck[file_id] = file
            else:
                self._enqueue(file)

    # What the world asks

    def free_bytes(self) -> int:
        """Cache space that nobody uses or has reserved."""
        return self.rules.cache_bytes - self.used_bytes - self.reserved_bytes

    def unmigrated(self) -> list[StoredFile]:
        """Files that are not on tape yet, in the order in which they will be written."""
        return [*self._flushing.values(), *self._fresh.values()]

    def reserve(self, size: int) -> bool:
        """Hold cache space for an upload, evicting the least recently used copies; False when there is not enough."""
        if not self._make_room(size):
            return False
        self.reserved_bytes += size
        return True

    def unreserve(self, size: int) -> None:
        """Give back what `reserve` held."""
        self.reserved_bytes -= size
        self._dispatch()

    def add(self, file: StoredFile) -> None:
        """Publish a file whose bytes are in the cache, in the place of a file of the same path."""
        replaced = self.by_path.get(file.path)
        if replaced is not None:
            self.delete(replaced)
        self._take_in(file)
        self.changed_files.add(file.id)
        self._dispatch()

    def delete(self, file: StoredFile) -> None:
        """Remove a file everywhere; its stretch of tape is not won back."""
        del self.files[file.id], self.by_path[file.path]
        self.stored_bytes -= file.size
        self.used_bytes -= file.size if file.on_disk else 0
        self.desk.failed(file.id, self.now, "The file was deleted")
        self._withdraw(file)
        self._flushing.pop(file.id, None)
        if self._fresh.pop(file.id, None) is not None:
            self._fresh_bytes -= file.size
        for folder in _folders_of(file.path):
            self._folders[folder] -= 1
            if not self._folders[folder]:
                del self._folders[folder]
        self._evict_at.pop(file.id, None)
        self._move(Change.DELETE, file)

    def is_folder(self, path: str) -> bool:
        """Some file lies below this path."""
        return not path or path in self._folders

    def blocked_by(self, path: str) -> str | None:
        """A file that makes `path` impossible: one of its folders, or one below it."""
        if (above := next((folder for folder in _folders_of(path) if folder in self.by_path), None)) is not None:
            return above
        if path not in self._folders:
            return None
        return next(other for other in self.by_path if other.startswith(path + "/"))

    def locality(self, file: StoredFile) -> Locality:
        """Where this file's bytes are."""
        if file.size == 0:
            return Locality.NONE
        if self._mishaps.unavailable(file.path):
            return Locality.UNAVAILABLE
        if file.on_disk:
            return Locality.DISK if file.volume is None or file.lost else Locality.DISK_AND_TAPE
        if file.lost or file.volume is None:
            return Locality.LOST
        return Locality.UNAVAILABLE if self.tapes[file.volume].offline else Locality.TAPE

    def touch(self, file: StoredFile) -> None:
        """The file was read."""
        file.last_used = self.now
        self.changed_files.add(file.id)

    def stage(self, request_id: str, wants: Sequence[tuple[str, float]]) -> StageRequest:
        """Open a stage request for (path as asked, pin lifetime in s); exact repetitions count once."""
        entries = [self._entry(asked, lifetime_s) for asked, lifetime_s in dict(wants).items()]
        request = StageRequest(request_id, self.now, entries)
        self.desk.open(request, self.now)
        for file_id in dict.fromkeys(e.file_id for e in entries if e.file_id is not None and not e.state.final):
            file = self.files[file_id]
            if file.on_disk:
                self.desk.arrived(file_id, self.now)
                self.touch(file)
                self._loosened(file, released=True)
            else:
                self._enqueue(file)
        self._dispatch()
        return request

    def cancel(self, request: StageRequest, paths: set[str] | None = None) -> None:
        """Cancel paths of a request (all when None); what nobody else waits for is not read."""
        self._let_go(self.desk.cancel(request, paths, self.now))

    def forget(self, request: StageRequest) -> None:
        """Cancel everything of a request and drop it."""
        self.cancel(request)
        self.desk.forget(request.id)

    def release(self, request: StageRequest, paths: set[str]) -> None:
        """Give the pins of a request on these paths back."""
        self._let_go(self.desk.release(request, paths))

    def flush(self) -> None:
        """Begin to migrate everything that waits, whatever the triggers say."""
        self._begin_flush()
        self._dispatch()

    def evict(self, file: StoredFile) -> bool:
        """Drop the disk copy of a migrated file that is neither pinned nor wanted; False when it must stay."""
        if not self._evictable(file):
            return False
        file.on_disk = False
        self.used_bytes -= file.size
        self.tally.evictions += 1
        self._evict_at.pop(file.id, None)
        self.changed_files.add(file.id)
        self._move(Change.OFF_DISK, file)
        return True

    def lose(self, file: StoredFile) -> None:
        """The copy on tape becomes unreadable."""
        file.lost = True
        self.changed_files.add(file.id)

    def set_drive_offline(self, number: int, *, offline: bool) -> None:
        """Take a drive away (its work returns to the queue and its tape to the shelf), or give it back."""
        drive = self.drives[number]
        if offline and not drive.offline:
            self.drives[number] = Drive(number, offline=True)
            if drive.file is not None and not drive.for_writing:
                self.reserved_bytes -= drive.file.size if drive.phase is Phase.READING else 0
                if self.desk.wanted(drive.file.id):
                    self._enqueue(drive.file)
        elif not offline:
            drive.offline = False

    def set_tape_offline(self, name: str, *, offline: bool) -> None:
        """A cartridge cannot be used any more, or can again; a drive finishes the file it has in hand."""
        self.tapes[name].offline = offline

    def faults_lifted(self) -> None:
        """Try again what a mishap had stopped."""
        for file in list(self._stuck.values()):
            self._unstick(file)
            self._enqueue(file)
        self._dispatch()

    # Time

    def advance(self, now: float) -> None:
        """Live through everything that happens until `now`, event by event."""
        self._dispatch()  # what was done since may have made room or work, at the time it was done
        while (at := self.next_event()) is not None and at <= now:
            self._live(at)
        self._live(now)

    def next_event(self) -> float | None:
        """When something happens by itself; None while the library waits for somebody."""
        times = [drive.until for drive in self.drives]
        times += self._evict_at.values()
        times += [at for name in self.queues if (at := self._ready_at(name)) > self.now]
        if (at := self._flush_at()) > self.now:
            times.append(at)
        if (expiry := self.desk.next_expiry()) is not None:
            times.append(expiry)
        at = min(times, default=math.inf)
        return None if math.isinf(at) else at

    def _live(self, now: float) -> None:
        self.now = max(self.now, now)
        self._let_go(self.desk.expire(self.now))
        for file_id in [file_id for file_id, at in self._evict_at.items() if at <= self.now]:
            del self._evict_at[file_id]
            self.evict(self.files[file_id])
        for drive in self.drives:
            if drive.until <= self.now:
                self._step(drive)
        self._dispatch()

    # Drives

    def _step(self, drive: Drive) -> None:
        """The drive's phase is over: what follows?"""
        timing = self.rules.timing
        match drive.phase:
            case Phase.FETCHING:
                self._enter(drive, Phase.LOADING, timing.load_s)
            case Phase.LOADING:
                self._seek_work(drive)
            case Phase.LOCATING:
                self._begin_transfer(drive)
            case Phase.READING:
                self._finish_read(drive)
                self._seek_work(drive)
            case Phase.WRITING:
                self._finish_write(drive)
                self._seek_work(drive)
            case Phase.IDLE:
                self._give_back(drive)
            case Phase.REWINDING:
                self._enter(drive, Phase.UNLOADING, timing.unload_s)
            case Phase.UNLOADING:
                self._use_robot(drive, Phase.RETURNING)
            case Phase.RETURNING | Phase.EMPTY:
                drive.phase, drive.until, drive.tape = Phase.EMPTY, math.inf, None
                drive.head_bytes = drive.moved_bytes = 0
                drive.for_writing = False

    def _enter(self, drive: Drive, phase: Phase, library_s: float) -> None:
        drive.phase, drive.since = phase, self.now
        drive.until = self.now + library_s * self.rules.timing.factor

    def _give_back(self, drive: Drive) -> None:
        """Begin to unload; what still waits for this tape, or to be written, takes its turn behind the others."""
        if drive.tape is not None and (queue := self.queues.get(drive.tape.name)) is not None:
            queue.first_at = self.now
        if drive.for_writing:
            self._wrote_until = self.now
        drive.file, drive.for_writing = None, False
        self._enter(drive, Phase.REWINDING, self.rules.timing.rewind_s(drive.moved_bytes))

    def _shift_is_over(self, drive: Drive) -> bool:
        """Others wait for a drive, there is none, and this one has served its tape for long."""
        long = self.now - drive.mounted_at > LONGEST_SHIFT_S * self.rules.timing.factor
        if not long or not drive.moved_bytes or any(d.phase is Phase.EMPTY and not d.offline for d in self.drives):
            return False
        return bool(self._candidates())

    def _use_robot(self, drive: Drive, phase: Phase) -> None:
        """There is one robot: whoever comes second waits."""
        begin = max(self.now, self._robot_free_at)
        self._enter(drive, phase, self.rules.timing.robot_s)
        drive.until += begin - self.now
        self._robot_free_at = drive.until

    def _dispatch(self) -> None:
        """Give idle drives work: first those with the right tape mounted, then by who has waited longest."""
        self._trigger_flush()
        for drive in self.drives:
            if drive.phase is Phase.IDLE:
                self._seek_work(drive, stay=True)
        for _, tape, writing in sorted(self._candidates(), key=lambda c: (c[0], c[1].name)):
            if any(drive.tape is tape for drive in self.drives):
                continue  # wanted for reading and for writing, and just mounted for one of them
            empty = next((d for d in self.drives if d.phase is Phase.EMPTY and not d.offline), None)
            if empty is not None:
                self._mount(empty, tape, writing=writing)
            else:
                # Nobody is free: the drive that has idled longest gives its tape back for the sake of the waiting one.
                idle = min((d for d in self.drives if d.phase is Phase.IDLE), key=lambda d: d.until, default=None)
                if idle is not None and not any(d.phase in _LEAVING for d in self.drives):
                    idle.until = self.now
                    self._step(idle)

    def _candidates(self) -> list[tuple[float, Tape, bool]]:
        """(waiting since, cartridge to mount, for writing) of all work that needs a mount."""
        mounted = {drive.tape.name for drive in self.drives if drive.tape is not None}
        found = [
            (queue.first_at, self.tapes[name], False)
            for name, queue in self.queues.items()
            if name not in mounted and self._ready_at(name) <= self.now
        ]
        if not any(drive.for_writing for drive in self.drives) and (file := self._next_to_write()) is not None:
            tape = self._tape_for(file, mounted)
            if tape is not None:
                found.append((max(file.created_at, self._wrote_until), tape, True))
        return found

    def _mount(self, drive: Drive, tape: Tape, *, writing: bool) -> None:
        drive.tape, drive.for_writing, drive.mounted_at = tape, writing, self.now
        tape.mounts += 1
        self.tally.mounts += 1
        self.changed_tapes.add(tape.name)
        for file in self.queues[tape.name].files.values() if tape.name in self.queues else ():
            self.desk.started(file.id, self.now)
        self._use_robot(drive, Phase.FETCHING)

    def _seek_work(self, drive: Drive, *, stay: bool = False) -> None:
        """Next file for the mounted tape: recalls, then writing; else idle a while in case more is asked of it."""
        tape = drive.tape
        if tape is None:
            return
        if not stay and self._shift_is_over(drive):
            self._give_back(drive)
            return
        if (file := self._next_to_read(drive, tape)) is not None:
            drive.for_writing = False
            self.desk.started(file.id, self.now)
            self._locate(drive, tape, file, file.position)
            return
        others_write = any(other.for_writing for other in self.drives if other is not drive)
        writable = None if others_write or tape.offline else self._next_to_write()
        if writable is not None and tape.used_bytes + writable.size <= tape.capacity_bytes:
            drive.for_writing = True
            self._locate(drive, tape, writable, tape.used_bytes)
        elif not stay:
            drive.file, drive.for_writing = None, False
            self._enter(drive, Phase.IDLE, self.rules.timing.idle_s)

    def _locate(self, drive: Drive, tape: Tape, file: StoredFile, position: int) -> None:
        drive.file = file
        jitter = self._draw("locate", file).lognormvariate(0, self.rules.timing.jitter_sigma)
        self._enter(drive, Phase.LOCATING, self.rules.timing.locate_s(tape, drive.head_bytes, position) * jitter)
        drive.head_bytes = position

    def _begin_transfer(self, drive: Drive) -> None:
        file = drive.file
        if file is None or file.id not in self.files or not (drive.for_writing or self.desk.wanted(file.id)):
            drive.file = None  # deleted or cancelled while the tape was winding
            self._seek_work(drive)
        elif drive.for_writing:
            self._enter(drive, Phase.WRITING, self.rules.timing.transfer_s(file.size))
        elif self._make_room(file.size):
            self.reserved_bytes += file.size
            self._enter(drive, Phase.READING, self.rules.timing.transfer_s(file.size))
        else:
            drive.file = None
            self._enqueue(file)
            self._seek_work(drive)

    # Recalls

    def _entry(self, asked: str, lifetime_s: float) -> StageEntry:
        path = collapsed(asked)
        file = self.by_path.get(path)
        entry = StageEntry(asked, path, None if file is None else file.id, lifetime_s)
        if (error := self.no_recall(path)) is not None:
            entry.state, entry.error, entry.finished_at = StageState.FAILED, error, self.now
        return entry

    def no_recall(self, path: str) -> str | None:
        """Why this path can never be recalled; None when it can."""
        file = self.by_path.get(path)
        if file is not None:
            return "The file is empty" if file.size == 0 else None
        if self.is_folder(path):
            return "Is a directory"
        try:
            checked(path)
        except BadPath as error:
            return str(error)
        return "No such file or directory"

    def _enqueue(self, file: StoredFile) -> None:
        if file.volume is None or (file.lost and not file.on_disk):
            self.tally.recall_failures += 1
            self.desk.failed(file.id, self.now, "The file is lost")
            return
        if file.id in self._stuck or any(drive.file is file and not drive.for_writing for drive in self.drives):
            return
        queue = self.queues.setdefault(file.volume, Queue(self.now, self.now))
        if file.id not in queue.files:
            queue.put(file)
            queue.last_at = self.now

    def _ready_at(self, tape_name: str) -> float:
        """When this queue may cause a mount; inf when it cannot now (tape offline, no room for any of its files)."""
        queue, tape = self.queues[tape_name], self.tapes[tape_name]
        if tape.offline or next(self._readable(queue, 0), None) is None:
            return math.inf
        dwell_s = self.rules.dwell_s * self.rules.timing.factor
        return min(queue.last_at + dwell_s, queue.first_at + LONGEST_DWELL * dwell_s)

    def _next_to_read(self, drive: Drive, tape: Tape) -> StoredFile | None:
        """The next file of the sweep that the cache has room for."""
        queue = self.queues.get(tape.name)
        while queue is not None and not tape.offline:
            file = next(self._readable(queue, drive.head_bytes), None)
            if file is None:
                return None
            self._unqueue(file)
            never = self._chance(self.rules.never_arrive_rate, "never", file, per_read=False)
            if not never and not self._mishaps.stuck(file.path):
                return file
            self.desk.started(file.id, self.now)
            file.stuck = True
            self._stuck[file.id] = file
            self.changed_files.add(file.id)
        return None

    def _readable(self, queue: Queue, head_bytes: int) -> Iterator[StoredFile]:
        """The files of a queue, in the order of a sweep, that can be reached and that the cache has room for."""
        room = math.inf if queue.largest <= self.free_bytes() else self._room()
        return (f for f in queue.from_head(head_bytes) if f.size <= room and not self._mishaps.unavailable(f.path))

    def _finish_read(self, drive: Drive) -> None:
        file, drive.file = drive.file, None
        if file is None:
            return
        self.reserved_bytes -= file.size
        drive.head_bytes = file.position + file.size
        drive.moved_bytes += file.size
        if file.id not in self.files:
            return
        first = file.reads == 0
        file.reads += 1
        self.changed_files.add(file.id)
        error = self._mishaps.recall_error(file.path)
        if error is None and file.lost:
            error = "Unrecoverable read error"
        if error is None and first and self._chance(self.rules.io_error_rate, "io", file):
            error = "I/O error"
        if error is not None:
            self.tally.recall_failures += 1
            self.desk.failed(file.id, self.now, error)
            return
        file.on_disk, file.last_used = True, self.now
        self.used_bytes += file.size
        self.tally.recalls += 1
        self.tally.recalled_bytes += file.size
        self._move(Change.TO_DISK, file)
        self.desk.arrived(file.id, self.now)
        self._loosened(file, released=True)

    def _let_go(self, file_ids: list[str]) -> None:
        """Requests have let go of these files: stop reading what nobody waits for, free what nobody pins."""
        for file in (self.files[file_id] for file_id in file_ids if file_id in self.files):
            if not self.desk.wanted(file.id):
                self._withdraw(file)
            self._loosened(file, released=True)
        if file_ids:
            self._dispatch()

    def _withdraw(self, file: StoredFile) -> None:
        self._unqueue(file)
        self._unstick(file)

    def _unstick(self, file: StoredFile) -> None:
        if self._stuck.pop(file.id, None) is not None:
            file.stuck = False
            self.changed_files.add(file.id)

    def _unqueue(self, file: StoredFile) -> None:
        queue = self.queues.get(file.volume or "")
        if queue is not None:
            queue.take(file)
            if not queue.files:
                del self.queues[file.volume or ""]

    # Migration

    def _flush_at(self) -> float:
        """When age alone starts the next flush; inf when nothing waits or it may not run."""
        oldest = next(iter(self._fresh.values()), None)
        if oldest is None or math.isinf(self.rules.migrate_age_s) or self._mishaps.migration_held():
            return math.inf
        return oldest.created_at + self.rules.migrate_age_s * self.rules.timing.factor

    def _trigger_flush(self) -> None:
        if self._fresh and (self._fresh_bytes >= self.rules.migrate_bytes or self._flush_at() <= self.now):
            self._begin_flush()

    def _begin_flush(self) -> None:
        self._flushing |= self._fresh
        self._fresh.clear()
        self._fresh_bytes = 0

    def _next_to_write(self) -> StoredFile | None:
        return None if self._mishaps.migration_held() else next(iter(self._flushing.values()), None)

    def _tape_for(self, file: StoredFile, mounted: set[str]) -> Tape | None:
        """The first cartridge with room: tapes are filled one after another."""
        fits = (t for t in self.tapes.values() if not t.offline and t.used_bytes + file.size <= t.capacity_bytes)
        return next((tape for tape in fits if tape.name not in mounted), None)

    def _finish_write(self, drive: Drive) -> None:
        file, tape, drive.file = drive.file, drive.tape, None
        if file is None or tape is None:
            return
        position = tape.used_bytes
        tape.used_bytes += file.size
        drive.head_bytes = tape.used_bytes
        drive.moved_bytes += file.size
        self.changed_tapes.add(tape.name)
        if file.id not in self.files:
            return  # deleted meanwhile: that stretch of tape is wasted
        file.volume, file.position, file.migrated_at = tape.name, position, self.now
        del self._flushing[file.id]
        self.tally.migrations += 1
        self.tally.migrated_bytes += file.size
        self.changed_files.add(file.id)
        self._move(Change.TO_TAPE, file)
        self._loosened(file, released=self.rules.evict_after_s is None)

    # Cache

    def _take_in(self, file: StoredFile) -> None:
        self.files[file.id] = file
        self.by_path[file.path] = file
        for folder in _folders_of(file.path):
            self._folders[folder] = self._folders.get(folder, 0) + 1
        self.stored_bytes += file.size
        self.used_bytes += file.size if file.on_disk else 0
        if file.volume is None and file.size and not file.lost:
            self._fresh[file.id] = file
            self._fresh_bytes += file.size
        else:
            self._loosened(file, released=False)

    def _evictable(self, file: StoredFile) -> bool:
        held = self.desk.pinned(file.id) or self.desk.wanted(file.id)
        return file.on_disk and file.volume is not None and not held

    def _loosened(self, file: StoredFile, *, released: bool) -> None:
        """One reason to keep this file on disk may be gone: when does policy want it out?"""
        if not self._evictable(file):
            return
        if released and self.rules.evict_on_release:
            self._evict_at[file.id] = self.now
        elif self.rules.evict_after_s is not None:
            self._evict_at[file.id] = max(self.now, (file.migrated_at or 0.0) + self.rules.evict_after_s)

    def _has_room(self, size: int) -> bool:
        return size <= self.free_bytes() or size <= self._room()

    def _room(self) -> int:
        """Free cache space, and what could be evicted."""
        return self.free_bytes() + sum(file.size for file in self.files.values() if self._evictable(file))

    def _make_room(self, size: int) -> bool:
        """Evict the least recently used copies until `size` fits; nothing is evicted when that cannot succeed."""
        if not self._has_room(size):
            return False
        if self.free_bytes() < size:
            for file in sorted(filter(self._evictable, self.files.values()), key=lambda f: (f.last_used, f.path)):
                if self.free_bytes() >= size:
                    break
                self.evict(file)
        return True

    def _move(self, change: Change, file: StoredFile) -> None:
        self.moves.append(Move(change, file.id, file.volume))

    def _draw(self, what: str, file: StoredFile, *, per_read: bool = True) -> random.Random:
        """Chance that depends on seed, purpose, path and attempt only: the same again after a restart."""
        attempt = f":{file.reads}" if per_read else ""
        return random.Random(f"{self.rules.seed}:{what}:{file.path}{attempt}")  # noqa: S311 - a model, no secret

    def _chance(self, rate: float, what: str, file: StoredFile, *, per_read: bool = True) -> bool:
        return rate > 0 and self._draw(what, file, per_read=per_read).random() < rate


def _folders_of(path: str) -> Iterator[str]:
    """The folders a path lies in, the outermost first."""
    return (path[:at] for at, char in enumerate(path) if char == "/")


_LEAVING = (Phase.REWINDING, Phase.UNLOADING, Phase.RETURNING)
