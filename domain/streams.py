"""Streams to the LTS that all workers share: who may use how many of them, decided by each process for itself.

Each stream is a small object in a store that all workers see, written only on the condition that nobody else has
written it meanwhile. Whoever wrote it last holds the stream, and writes it again every few seconds:

    absent, or empty: free ── taken ──> held ── given back ──> free
                                         │ ^
                not written for EXPIRE_S │ │ written again, if nobody was faster
                                         v │
                                 anybody may take it

Clocks of different machines are never compared, nor those of the store. A holder stops relying on its stream `KEEP_S`
after it *began* the last write that succeeded. Others take it over only when they have *seen* the object unchanged for
`EXPIRE_S`, so from after that write on. What lies between is the time in which a holder ends what it has running.

Times are seconds of any clock of the process that never goes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

RENEW_S = 3.0
KEEP_S = 10.0
EXPIRE_S = 20.0

TERM_S = 60.0
"""So long a stream stays with one process although another wants it."""
YIELD_S = 5.0
"""For so long a process that gave one up for others takes none itself."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A stream's object as a listing shows it."""

    etag: str
    free: bool
    """It is empty."""


@dataclass(slots=True)
class _Held:
    etag: str
    since: float
    sent: float
    """When the last write that succeeded was begun."""


@dataclass(slots=True)
class _Watched:
    seen: Seen
    since: float
    """When it was first seen like this."""


@dataclass(slots=True)
class Streams:
    """What one process knows of the streams of one direction, numbered from 0, and what it may do next."""

    limit: int
    _held: dict[int, _Held] = field(default_factory=dict[int, _Held])
    _watched: dict[int, _Watched] = field(default_factory=dict[int, _Watched])
    _mark: str | None = None
    _wanted_at: float | None = None
    _yielded_at: float | None = None

    def holds(self, now: float) -> int:
        """How many streams this process may use at this moment."""
        return sum(now - held.sent < KEEP_S for held in self._held.values())

    def look(self, objects: Mapping[int, Seen], mark: str | None, now: float) -> None:
        """Take note of a listing.

        Args:
            objects: the streams' objects by number; absent ones are free.
            mark: ETag of the object that whoever goes without a stream writes; None: there is none.
            now: when the listing had come, not when it was asked for.
        """
        for number in range(self.limit):
            seen = objects.get(number)
            known = self._watched.get(number)
            if seen is None:
                self._watched.pop(number, None)
            elif known is None or known.seen != seen:
                self._watched[number] = _Watched(seen, now)
        if self._mark is not None and mark not in (self._mark, None):
            self._wanted_at = now
        self._mark = mark or ""

    def marked(self, etag: str) -> None:
        """The mark is one of this process's own."""
        self._mark = etag

    def due(self, now: float) -> dict[int, str]:
        """Streams to be written again, with the ETag that their object must still have."""
        return {number: held.etag for number, held in self._held.items() if now - held.sent >= RENEW_S}

    def free(self, now: float) -> dict[int, str | None]:
        """Streams that may be tried, with the ETag that their object must still have; None: there must be none."""
        if self._yielded_within(YIELD_S, now):
            return {}
        found: dict[int, str | None] = {}
        for number in range(self.limit):
            watched = self._watched.get(number)
            if number in self._held:
                continue
            if watched is None:
                found[number] = None
            elif watched.seen.free or now - watched.since >= EXPIRE_S:
                found[number] = watched.seen.etag
        return found

    def wrote(self, number: int, etag: str, sent: float) -> None:
        """The store took a stream's object from this process.

        Args:
            number: of the stream.
            etag: that the object has now.
            sent: when the write was begun.
        """
        held = self._held.get(number)
        self._held[number] = _Held(etag, held.since if held else sent, sent)

    def lost(self, number: int) -> None:
        """Somebody else has the stream, or it cannot be told."""
        self._held.pop(number, None)

    def give_back(self, number: int) -> str:
        """Use a stream no more; return the ETag on which its object is to be emptied.

        Raises:
            KeyError: it is not held.
        """
        return self._held.pop(number).etag

    def spare(self, needed: int) -> list[int]:
        """Streams beyond those that are needed, the latest first."""
        held = sorted(self._held, key=lambda number: self._held[number].since, reverse=True)
        return held[: max(0, len(held) - needed)]

    def for_others(self, now: float) -> int | None:
        """The stream to give back to whoever goes without, if this process has had it for its term; else None.

        To be asked when one is not in use.
        """
        if self._wanted_at is None or now - self._wanted_at > YIELD_S or not self._held:
            return None
        # Who has more gives more often, so that in the end all have the same.
        if self._yielded_within(max(YIELD_S, TERM_S / len(self._held)), now):
            return None
        oldest = min(self._held, key=lambda number: self._held[number].since)
        if now - self._held[oldest].since < TERM_S:
            return None
        self._yielded_at = now
        return oldest

    def _yielded_within(self, seconds: float, now: float) -> bool:
        return self._yielded_at is not None and now - self._yielded_at < seconds
