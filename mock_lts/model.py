"""What a tape library consists of: files, cartridges, drives, stage requests, and how long things take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum


class Locality(StrEnum):
    """Where a file's bytes are, in the words of the Tape REST API v1."""

    DISK = "DISK"
    TAPE = "TAPE"
    DISK_AND_TAPE = "DISK_AND_TAPE"
    LOST = "LOST"
    NONE = "NONE"
    UNAVAILABLE = "UNAVAILABLE"


class StageState(StrEnum):
    """Life of one file in a stage request: SUBMITTED → STARTED → one of the other three."""

    SUBMITTED = "SUBMITTED"
    STARTED = "STARTED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Nothing follows this state."""
        return self not in (StageState.SUBMITTED, StageState.STARTED)


@dataclass(slots=True)
class StoredFile:
    """A published file. Its bytes never change; an overwritten path is another file with another id.

    Attributes:
        id: Name of its blob on disk, and its ETag.
        position: Offset on the cartridge, bytes.
        last_used: Epoch seconds of the last read or recall, for LRU.
        reads: Recalls attempted so far, so that jitter differs between them and not between runs.
        lost: The copy on tape cannot be read any more.
        stuck: A recall has begun that a fault does not let end.
    """

    id: str
    path: str
    size: int
    created_at: float
    last_used: float
    on_disk: bool = True
    volume: str | None = None
    position: int = 0
    migrated_at: float | None = None
    reads: int = 0
    lost: bool = False
    sha256: str | None = None
    stuck: bool = False


@dataclass(slots=True)
class Tape:
    """A cartridge; `used_bytes` only grows, as on real tape."""

    name: str
    capacity_bytes: int
    used_bytes: int = 0
    mounts: int = 0
    offline: bool = False


class Phase(StrEnum):
    """What a drive is doing."""

    EMPTY = "empty"
    FETCHING = "fetching"
    LOADING = "loading"
    LOCATING = "locating"
    READING = "reading"
    WRITING = "writing"
    IDLE = "idle"
    REWINDING = "rewinding"
    UNLOADING = "unloading"
    RETURNING = "returning"


@dataclass(slots=True)
class Drive:
    """A drive and the work in it; `since` and `until` are when its phase began and ends, epoch seconds."""

    number: int
    phase: Phase = Phase.EMPTY
    since: float = 0.0
    until: float = math.inf
    mounted_at: float = 0.0
    tape: Tape | None = None
    file: StoredFile | None = None
    for_writing: bool = False
    head_bytes: int = 0
    moved_bytes: int = 0
    offline: bool = False


@dataclass(slots=True)
class StageEntry:
    """One file of a stage request; `asked` is the path byte for byte as the client wrote it."""

    asked: str
    path: str
    file_id: str | None
    lifetime_s: float
    state: StageState = StageState.SUBMITTED
    started_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    pin_expires_at: float | None = None
    released: bool = False


@dataclass(slots=True)
class StageRequest:
    """A bulk recall; all its times follow from its entries."""

    id: str
    created_at: float
    entries: list[StageEntry] = field(default_factory=list["StageEntry"])

    @property
    def started_at(self) -> float:
        """When the first file started; the time of creation while none has (the spec demands a value)."""
        return min((e.started_at for e in self.entries if e.started_at is not None), default=self.created_at)

    @property
    def completed_at(self) -> float | None:
        """When the last file reached its end; None while one has not."""
        if not all(entry.state.final for entry in self.entries):
            return None
        return max((e.finished_at for e in self.entries if e.finished_at is not None), default=self.created_at)


@dataclass(frozen=True, slots=True)
class Timing:
    """An LTO-9 drive in a small library, library seconds.

    Sources: IBM "LTO specifications" (rate, load, unload, rewind, mean locate of 45 s) and IBM Diamondback "mount
    performance" (robot: 270 mounts an hour). The serpentine shape and the jitter are assumptions.
    """

    factor: float
    robot_s: float = 13.0
    load_s: float = 17.0
    unload_s: float = 30.0
    locate_min_s: float = 5.0
    locate_span_s: float = 85.0
    idle_s: float = 60.0
    bytes_per_s: float = 400e6
    wraps: int = 280
    jitter_sigma: float = 0.1

    def locate_s(self, tape: Tape, head_bytes: int, target_bytes: int) -> float:
        """Winding time between two offsets; none when the head is there already."""
        if head_bytes == target_bytes:
            return 0.0
        return self.locate_min_s + self.locate_span_s * abs(
            self._place(tape, head_bytes) - self._place(tape, target_bytes)
        )

    def transfer_s(self, size_bytes: int) -> float:
        """Reading or writing at the native rate."""
        return size_bytes / self.bytes_per_s

    def rewind_s(self, moved_bytes: int) -> float:
        """Rewinding before an unload; IBM gives the mean by how much was moved since the load."""
        if moved_bytes < 5e9:
            return 55.0
        return 110.0 if moved_bytes < 50e9 else 165.0

    def _place(self, tape: Tape, offset_bytes: int) -> float:
        """Where along the ribbon an offset lies, 0 to 1: data runs to and fro in wraps, odd ones backwards."""
        wrap, along = divmod(offset_bytes / tape.capacity_bytes * self.wraps, 1.0)
        return along if int(wrap) % 2 == 0 else 1.0 - along
