"""What can be made to go wrong: each fault is a small model, kept in one list until it is used up or lifted.

The list survives restarts. Three faults are done at once and never in it: what they spoil stays spoilt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Direction = Literal["in", "out"]


class _Fault(BaseModel):
    """`count` is how often it still strikes (None = until lifted); `path` limits it to one file."""

    model_config = ConfigDict(extra="forbid")

    id: int = 0
    count: int | None = Field(None, ge=1)
    path: str | None = None

    def hits(self, path: str) -> bool:
        """Is this file meant?"""
        return self.path is None or self.path == path


class Slow(_Fault):
    """Bodies pass at this speed; `delay_s` is waited once per body."""

    kind: Literal["slow"]
    direction: Direction | None = None
    bytes_per_s: float | None = Field(None, gt=0)
    delay_s: float = Field(0, ge=0, le=600)


class Cut(_Fault):
    """The connection is dropped after this many bytes of one body."""

    kind: Literal["cut"]
    direction: Direction
    after_bytes: int = Field(0, ge=0)
    count: int | None = Field(1, ge=1)


class CorruptInFlight(_Fault):
    """The byte at this offset of the file is flipped while it passes."""

    kind: Literal["corrupt_in_flight"]
    direction: Direction
    offset: int = Field(0, ge=0)
    count: int | None = Field(1, ge=1)


class Status(_Fault):
    """The next requests are refused with this status.

    `route` is the beginning of a URL's path such as `/uploads`; `path` a file under `/files/`, or a whole URL path.
    """

    kind: Literal["status"]
    status: int = Field(ge=400, le=599)
    method: str | None = None
    route: str | None = None
    retry_after_s: int | None = Field(None, ge=0)
    count: int | None = Field(1, ge=1)

    def refuses(self, method: str, path: str) -> bool:
        """Is this request meant? `path` is the URL's."""
        meant = self.path in (None, path) or path == f"/files/{self.path}"
        return meant and self.method in (None, method) and path.startswith(self.route or "")


class RecallStuck(_Fault):
    """A recall stays STARTED until this is lifted."""

    kind: Literal["recall_stuck"]


class RecallFails(_Fault):
    """A recall ends as FAILED."""

    kind: Literal["recall_fails"]
    error: str = "I/O error"
    count: int | None = Field(1, ge=1)


class Unavailable(_Fault):
    """A file, or each, cannot be reached: UNAVAILABLE, reads refused with 503, recalls from tape wait."""

    kind: Literal["unavailable"]


class Dialect(_Fault):
    """Tape REST as other servers speak it."""

    kind: Literal["dialect"]
    canceled: bool = Field(False, description="CANCELED for CANCELLED, as gfal2 spells it")
    on_disk: bool = Field(False, description="onDisk instead of state, as the specification allows")
    strict: bool = Field(False, description="unknown keys at the top of a body are refused, as by dCache")
    more_versions: bool = Field(False, description="discovery names v1.1 before v1, as EOS may")


_PLAIN = Dialect.model_validate({"kind": "dialect"})


class Worm(_Fault):
    """Write once: no overwriting, no deleting."""

    kind: Literal["worm"]


class StripPrefix(_Fault):
    """Tape REST answers echo paths without this prefix (dCache#7508, #7585)."""

    kind: Literal["strip_prefix"]
    prefix: str = Field(min_length=1)


class Milliseconds(_Fault):
    """Tape REST times are milliseconds, as dCache's are."""

    kind: Literal["milliseconds"]


class CacheFull(_Fault):
    """Uploads are refused with 507, as if no cache space were left."""

    kind: Literal["cache_full"]


class TapesFull(_Fault):
    """New uploads are refused with 507 and nothing is migrated."""

    kind: Literal["tapes_full"]


class HoldMigration(_Fault):
    """Nothing is migrated."""

    kind: Literal["hold_migration"]


class DriveOffline(_Fault):
    """A drive drops its work and is gone."""

    kind: Literal["drive_offline"]
    drive: int = Field(ge=0)


class TapeOffline(_Fault):
    """A cartridge cannot be mounted; what is only there is UNAVAILABLE."""

    kind: Literal["tape_offline"]
    tape: str


class LoseFile(_Fault):
    """The copy on tape becomes unreadable, for ever: done at once."""

    kind: Literal["lose_file"]
    path: str | None = Field(min_length=1)


class CorruptAtRest(_Fault):
    """The byte at this offset of a stored copy is flipped, for ever: done at once."""

    kind: Literal["corrupt_at_rest"]
    path: str | None = Field(min_length=1)
    offset: int = Field(0, ge=0)
    where: Literal["disk", "tape", "both"] = "both"


class ForgetRequests(_Fault):
    """A stage request, or each, is unknown from now on and its pins are gone: done at once."""

    kind: Literal["forget_requests"]
    request_id: str | None = None


Lasting = (
    Slow
    | Cut
    | CorruptInFlight
    | Status
    | RecallStuck
    | RecallFails
    | Unavailable
    | Dialect
    | Worm
    | StripPrefix
    | Milliseconds
    | CacheFull
    | TapesFull
    | HoldMigration
    | DriveOffline
    | TapeOffline
)
AtOnce = LoseFile | CorruptAtRest | ForgetRequests
Fault = Annotated[Lasting | AtOnce, Field(discriminator="kind")]
FAULT: TypeAdapter[Fault] = TypeAdapter(Fault)
_FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])
F = TypeVar("F", bound=_Fault)


class Tap:
    """The faults on one body as it passes."""

    def __init__(self, faults: Faults, found: list[_Fault], start: int) -> None:
        self._faults, self._found = faults, found
        self._offset = start
        self._passed = 0

    async def through(self, data: bytes) -> tuple[bytes, bool]:
        """What becomes of the next bytes, and whether the connection is to be cut behind them."""
        cut = False
        for fault in self._found:
            if isinstance(fault, Slow):
                first = fault.delay_s if self._passed == 0 else 0.0
                if first:
                    self._faults.use(fault)
                await asyncio.sleep(first + (len(data) / fault.bytes_per_s if fault.bytes_per_s else 0.0))
            elif isinstance(fault, CorruptInFlight):
                at = fault.offset - self._offset
                if 0 <= at < len(data):
                    data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
                    self._faults.use(fault)
            elif isinstance(fault, Cut) and self._passed + len(data) >= fault.after_bytes:
                data = data[: fault.after_bytes - self._passed]
                self._faults.use(fault)
                cut = True
        self._offset += len(data)
        self._passed += len(data)
        return data, cut


class Faults:
    """The faults in force; it answers the library's questions about mishaps."""

    def __init__(self) -> None:
        self._active: list[Fault] = []
        self._last_id = 0
        self._save: Callable[[str], None] = lambda _: None

    def restore(self, saved: str | None, save: Callable[[str], None]) -> None:
        """Take up the list as it was left; from now on every change of it is given to `save`."""
        self._active = _FAULTS.validate_json(saved or "[]")
        self._last_id = max((fault.id for fault in self._active), default=0)
        self._save = save

    @property
    def active(self) -> tuple[Fault, ...]:
        """Those in force, the oldest first."""
        return tuple(self._active)

    def add(self, fault: Fault) -> None:
        """Put a fault in force and number it."""
        self._last_id += 1
        fault.id = self._last_id
        self._active.append(fault)
        self._changed()

    def remove(self, fault: Fault) -> None:
        """Lift a fault."""
        self._active.remove(fault)
        self._changed()

    def use(self, fault: _Fault) -> None:
        """The fault struck once; gone when that was the last time."""
        if fault.count is not None:
            fault.count -= 1
            self._active = [other for other in self._active if other is not fault or fault.count > 0]
            self._changed()

    def _changed(self) -> None:
        self._save(_FAULTS.dump_json(self._active).decode())

    def of(self, kind: type[F]) -> Iterator[F]:
        """Those in force of one kind."""
        return (fault for fault in self.active if isinstance(fault, kind))

    def tap(self, path: str, direction: Direction, start: int) -> Tap | None:
        """The faults for a body that begins at byte `start` of a file; None, as nearly always, when there are none."""
        found: list[_Fault] = [
            fault
            for fault in self._active
            if isinstance(fault, Slow | Cut | CorruptInFlight)
            and fault.direction in (direction, None)
            and fault.hits(path)
        ]
        return Tap(self, found, start) if found else None

    def refusal(self, method: str, path: str) -> Status | None:
        """The status this request is to be refused with; counted as used."""
        for fault in self.of(Status):
            if fault.refuses(method, path):
                self.use(fault)
                return fault
        return None

    def cache_full(self) -> bool:
        """No room for uploads."""
        return any(self.of(CacheFull))

    def tapes_full(self) -> bool:
        """No room on any cartridge."""
        return any(self.of(TapesFull))

    def worm(self) -> bool:
        """Nothing may be overwritten or deleted."""
        return any(self.of(Worm))

    def dialect(self) -> Dialect:
        """How Tape REST is to be spoken."""
        return next(self.of(Dialect), _PLAIN)

    def unavailable(self, path: str) -> bool:
        """See `library.Mishaps`."""
        return any(fault.hits(path) for fault in self.of(Unavailable))

    def milliseconds(self) -> bool:
        """Times are wanted in milliseconds."""
        return any(self.of(Milliseconds))

    def echoed(self, path: str) -> str:
        """The path as the answer shows it."""
        for fault in self.of(StripPrefix):
            path = path.removeprefix(fault.prefix)
        return path

    def stuck(self, path: str) -> bool:
        """See `library.Mishaps`."""
        fault = next((fault for fault in self.of(RecallStuck) if fault.hits(path)), None)
        if fault is not None:
            self.use(fault)
        return fault is not None

    def recall_error(self, path: str) -> str | None:
        """See `library.Mishaps`."""
        fault = next((fault for fault in self.of(RecallFails) if fault.hits(path)), None)
        if fault is None:
            return None
        self.use(fault)
        return fault.error

    def migration_held(self) -> bool:
        """See `library.Mishaps`."""
        return any(self.of(HoldMigration)) or self.tapes_full()
