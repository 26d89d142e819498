"""The staging desk: stage requests, who waits for which file, and the pins that keep files cached. Pure, no clock."""

from __future__ import annotations

from collections.abc import Iterable

from mock_lts.model import StageEntry, StageRequest, StageState

REQUEST_RETENTION_S = 14 * 86_400
"""dCache forgets finished requests after 14 days."""


class Desk:
    """Every stage request that a client may still ask about.

    A file is *wanted* while an unfinished entry names it, and *pinned* while a finished one holds a pin on it. Several
    requests may pin one file: it is free when the last of them has let go or run out.
    """

    def __init__(self, requests: Iterable[StageRequest] = ()) -> None:
        self.requests: dict[str, StageRequest] = {}
        self.changed: dict[tuple[str, int], StageEntry] = {}
        self.forgotten: set[str] = set()
        self._waiting: dict[str, dict[tuple[str, int], StageEntry]] = {}
        self._pins: dict[str, dict[tuple[str, int], StageEntry]] = {}
        for request in requests:
            self.requests[request.id] = request
            for index, entry in enumerate(request.entries):
                self._index((request.id, index), entry)

    def open_requests(self) -> int:
        """How many requests still have something to do."""
        return len({request_id for waiting in self._waiting.values() for request_id, _ in waiting})

    def wanted(self, file_id: str) -> bool:
        """Some request waits for this file."""
        return bool(self._waiting.get(file_id))

    def wanted_files(self) -> list[str]:
        """Every file that some request waits for, the one asked for first at the front."""
        return [file_id for file_id, waiting in self._waiting.items() if waiting]

    def pinned(self, file_id: str) -> bool:
        """Some request keeps this file on disk."""
        return bool(self._pins.get(file_id))

    def pin_count(self, file_id: str) -> int:
        """How many pins hold this file."""
        return len(self._pins.get(file_id, {}))

    def pins(self) -> list[tuple[str, StageEntry]]:
        """Every pin as (request id, entry)."""
        return [(key[0], entry) for held in self._pins.values() for key, entry in held.items()]

    def open(self, request: StageRequest, now: float) -> None:
        """Take in a new request; forget those that finished long ago."""
        before = now - REQUEST_RETENTION_S
        for old in [r for r in self.requests.values() if r.created_at < before and (r.completed_at or now) < before]:
            self.forget(old.id)
        self.requests[request.id] = request
        for index, entry in enumerate(request.entries):
            self.changed[request.id, index] = entry
            self._index((request.id, index), entry)

    def forget(self, request_id: str) -> None:
        """Drop a request; its entries must have been cancelled before."""
        request = self.requests.pop(request_id)
        for index, entry in enumerate(request.entries):
            self._unindex((request_id, index), entry)
            self.changed.pop((request_id, index), None)
        self.forgotten.add(request_id)

    def started(self, file_id: str, now: float) -> None:
        """A drive is at work for this file."""
        for key, entry in self._waiting.get(file_id, {}).items():
            if entry.state is StageState.SUBMITTED:
                entry.state, entry.started_at = StageState.STARTED, now
                self.changed[key] = entry

    def arrived(self, file_id: str, now: float) -> None:
        """The file is on disk: everybody who waited is served, and holds a pin unless it was released meanwhile."""
        for key, entry in self._waiting.pop(file_id, {}).items():
            entry.state, entry.finished_at = StageState.COMPLETED, now
            entry.started_at = now if entry.started_at is None else entry.started_at
            if not entry.released and entry.lifetime_s > 0:
                entry.pin_expires_at = now + entry.lifetime_s
            self._index(key, entry)
            self.changed[key] = entry

    def failed(self, file_id: str, now: float, error: str) -> None:
        """The file will not come for those who wait now."""
        for key, entry in self._waiting.pop(file_id, {}).items():
            entry.state, entry.finished_at, entry.error = StageState.FAILED, now, error
            self.changed[key] = entry

    def cancel(self, request: StageRequest, paths: set[str] | None, now: float) -> list[str]:
        """Cancel entries (all when `paths` is None), pins included; returns the files touched."""
        touched: list[str] = []
        for index, entry in self._chosen(request, paths):
            self._unindex((request.id, index), entry)
            if not entry.state.final:
                entry.state, entry.finished_at = StageState.CANCELLED, now
            touched += self._let_go((request.id, index), entry)
        return touched

    def release(self, request: StageRequest, paths: set[str]) -> list[str]:
        """Give pins back; an entry still on its way will get none. Returns the files touched."""
        touched: list[str] = []
        for index, entry in self._chosen(request, paths):
            if entry.state.final:
                self._unindex((request.id, index), entry)
            touched += self._let_go((request.id, index), entry)
        return touched

    def next_expiry(self) -> float | None:
        """When the next pin runs out."""
        return min((e.pin_expires_at or 0.0 for held in self._pins.values() for e in held.values()), default=None)

    def expire(self, now: float) -> list[str]:
        """End the pins whose time is up; returns their files."""
        touched: list[str] = []
        for held in list(self._pins.values()):
            for key, entry in list(held.items()):
                if entry.pin_expires_at is not None and entry.pin_expires_at <= now:
                    self._unindex(key, entry)
                    touched += self._let_go(key, entry)
        return touched

    def _chosen(self, request: StageRequest, paths: set[str] | None) -> list[tuple[int, StageEntry]]:
        return [(i, entry) for i, entry in enumerate(request.entries) if paths is None or entry.path in paths]

    def _let_go(self, key: tuple[str, int], entry: StageEntry) -> list[str]:
        entry.pin_expires_at, entry.released = None, True
        self.changed[key] = entry
        return [] if entry.file_id is None else [entry.file_id]

    def _index(self, key: tuple[str, int], entry: StageEntry) -> None:
        if entry.file_id is None:
            return
        if not entry.state.final:
            self._waiting.setdefault(entry.file_id, {})[key] = entry
        elif entry.pin_expires_at is not None:
            self._pins.setdefault(entry.file_id, {})[key] = entry

    def _unindex(self, key: tuple[str, int], entry: StageEntry) -> None:
        for index in (self._waiting, self._pins):
            held = index.get(entry.file_id or "")
            if held is not None:
                held.pop(key, None)
                if not held:
                    index.pop(entry.file_id or "", None)
