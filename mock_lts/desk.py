"""The staging desk: stage requests, who waits for which file, and the pins that keep files cached. Pure, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import takewhile

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
        self._unfinished: dict[str, int] = {}
        self._expiries: list[tuple[float, str, int]] = []  # a heap; pins given back are still in it
        for request in requests:
            self.requests[request.id] = request
            for index, entry in enumerate(request.entries):
                self._index((request.id, index), entry)

    def open_requests(self) -> int:
        """How many requests still have something to do."""
        return len(self._unfinished)

    def find(self, request_id: str, now: float) -> StageRequest | None:
        """A request, unless it finished long ago."""
        request = self.requests.get(request_id)
        if request is not None and _forgettable(request, now - REQUEST_RETENTION_S):
            self.forget(request_id)
            return None
        return request

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
        for old in list(takewhile(lambda r: r.created_at < before, self.requests.values())):
            if _forgettable(old, before):
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
        for key, entry in self._served(file_id):
            entry.state, entry.finished_at = StageState.COMPLETED, now
            entry.started_at = now if entry.started_at is None else entry.started_at
            if not entry.released and entry.lifetime_s > 0:
                entry.pin_expires_at = now + entry.lifetime_s
            self._index(key, entry)
            self.changed[key] = entry

    def failed(self, file_id: str, now: float, error: str) -> None:
        """The file will not come for those who wait now."""
        for key, entry in self._served(file_id):
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
        while self._expiries and self._pin_at(*self._expiries[0]) is None:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def expire(self, now: float) -> list[str]:
        """End the pins whose time is up; returns their files."""
        touched: list[str] = []
        while (at := self.next_expiry()) is not None and at <= now:
            _, request_id, index = heapq.heappop(self._expiries)
            entry = self.requests[request_id].entries[index]
            self._unindex((request_id, index), entry)
            touched += self._let_go((request_id, index), entry)
        return touched

    def _pin_at(self, expires_at: float, request_id: str, index: int) -> StageEntry | None:
        """The pin that was to expire then, if it still holds."""
        request = self.requests.get(request_id)
        entry = None if request is None else request.entries[index]
        return entry if entry is not None and entry.pin_expires_at == expires_at else None

    def _served(self, file_id: str) -> list[tuple[tuple[str, int], StageEntry]]:
        """Those who waited for a file and wait no more."""
        waiting = list(self._waiting.pop(file_id, {}).items())
        for (request_id, _), _ in waiting:
            self._finish_one(request_id)
        return waiting

    def _finish_one(self, request_id: str) -> None:
        self._unfinished[request_id] -= 1
        if not self._unfinished[request_id]:
            del self._unfinished[request_id]

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
            self._unfinished[key[0]] = self._unfinished.get(key[0], 0) + 1
        elif entry.pin_expires_at is not None:
            self._pins.setdefault(entry.file_id, {})[key] = entry
            heapq.heappush(self._expiries, (entry.pin_expires_at, *key))

    def _unindex(self, key: tuple[str, int], entry: StageEntry) -> None:
        for index in (self._waiting, self._pins):
            held = index.get(entry.file_id or "")
            if held is not None and held.pop(key, None) is not None:
                if index is self._waiting:
                    self._finish_one(key[0])
                if not held:
                    del index[entry.file_id or ""]


def _forgettable(request: StageRequest, before: float) -> bool:
    return request.created_at < before and request.completed_at is not None and request.completed_at < before
