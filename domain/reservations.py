"""How much room the landing zone has: what was promised to uploads, and what lies there without a promise.

A promise holds from the grant until the dataset is archived and freed, aborted, or its time is up. It accounts for what
was asked for, or for what really lies there if that is more.
"""

from datetime import datetime, timedelta

from domain.message import Message

GIB = 2**30
TB = 10**12

UNCLAIMED = timedelta(minutes=10)
"""A promise that no upload has taken up for so long belongs to nobody: whoever asked has died between the two."""


def accounted(size_gib: int) -> int:
    """Bytes to promise for a size that the client has cut off to whole GiB."""
    return (size_gib + 1) * GIB


def allowed(total_tb: float, factor: float) -> int:
    """Bytes that may be promised and lie there, of a landing zone of so many (decimal) TB."""
    return int(total_tb * TB * factor)


class Hold(Message):
    """One dataset's promise."""

    granted: int
    """Bytes that were asked for."""
    found: int = 0
    """Bytes that lay there at the last count, all versions."""
    ticket: str = ""
    """Of the request that was granted last; empty: not known any more."""
    since: datetime
    """Of the last grant."""

    @property
    def bytes(self) -> int:
        """What it takes of the room."""
        return max(self.granted, self.found)


class Claim(Message):
    """An upload that says that a promise is its own."""

    granted: int
    found: int = 0


class Counted(Message):
    """What really is: the uploads that run, and what lies in the landing zone."""

    since: datetime
    """When the count was begun."""
    claims: dict[str, Claim] = {}
    """Dataset → its upload; only of those that were granted something."""
    others: int = 0
    """Bytes of datasets that have no promise."""


class Reservations(Message):
    """All promises; a value: each change gives another one."""

    holds: dict[str, Hold] = {}
    """Dataset → promise."""
    others: int = 0
    """Bytes in the landing zone that nobody was promised, at the last count."""

    @property
    def bytes(self) -> int:
        """What is taken of the room."""
        return self.others + sum(hold.bytes for hold in self.holds.values())

    def requested(self, pid: str, size: int, limit: int, *, ticket: str, now: datetime) -> "Reservations | None":
        """Promise so many bytes, or, to a dataset that has a promise, so many instead of those that it had.

        Args:
            pid: the dataset.
            size: bytes.
            limit: bytes that may be taken in all.
            ticket: of this request; only who has it can give the promise back.
            now: the time.

        Returns:
            With the promise; None if there is no room, and then an earlier promise stays as it was.
        """
        before = self.holds.get(pid)
        hold = Hold(granted=size, found=before.found if before else 0, ticket=ticket, since=now)
        after = self._with(self.holds | {pid: hold})
        grown = before is None or hold.bytes > before.bytes
        return None if grown and after.bytes > limit else after

    def released(self, pid: str, ticket: str) -> "Reservations":
        """Without the dataset's promise, unless it was renewed by a request of another ticket meanwhile."""
        hold = self.holds.get(pid)
        if hold is None or hold.ticket not in ("", ticket):
            return self
        return self._with({other: kept for other, kept in self.holds.items() if other != pid})

    def reconciled(self, counted: Counted) -> "Reservations":
        """As they are after a count.

        Promises that no upload claims and that are not new are dropped; those of which only the upload knew come back.
        """
        holds: dict[str, Hold] = {}
        for pid, hold in self.holds.items():
            claim = counted.claims.get(pid)
            if claim is not None:
                holds[pid] = hold.model_copy(update={"found": claim.found})
            elif hold.since + UNCLAIMED >= counted.since:
                holds[pid] = hold
        for pid, claim in counted.claims.items():
            if pid not in holds:
                holds[pid] = Hold(granted=claim.granted, found=claim.found, since=counted.since)
        return Reservations(holds=holds, others=counted.others)

    def _with(self, holds: dict[str, Hold]) -> "Reservations":
        return self.model_copy(update={"holds": holds})
