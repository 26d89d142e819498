"""What the clients did: requests by route and status, how many at once, bytes by path. Since the process started."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

_ID = re.compile(r"^(/uploads|/api/v1/tape/(?:stage|release)|/admin/faults)/[^/]+")


def route_of(path: str) -> str:
    """The route a URL path belongs to, such as `/uploads/{id}`."""
    if path == "/files" or path.startswith("/files/"):
        return "/files/{path}"
    return _ID.sub(r"\1/{id}", path)


@dataclass(slots=True)
class PathBytes:
    """Bytes of one path: `received` on the wire, `kept` of these (a refused PATCH counts nothing), `sent`."""

    received: int = 0
    kept: int = 0
    sent: int = 0


@dataclass(slots=True)
class Counters:
    """See the module."""

    requests: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    paths: dict[str, PathBytes] = field(default_factory=dict[str, PathBytes])
    most_at_once: Counter[str] = field(default_factory=Counter[str])
    _going_on: Counter[str] = field(default_factory=Counter[str])

    def began(self, method: str, path: str) -> None:
        """A request came."""
        route = f"{method} {route_of(path)}"
        self._going_on[route] += 1
        self.most_at_once[route] = max(self.most_at_once[route], self._going_on[route])

    def answered(self, method: str, path: str, status: int | None) -> None:
        """A request ended; None = without an answer."""
        route = f"{method} {route_of(path)}"
        self._going_on[route] -= 1
        by_status = self.requests.setdefault(route, Counter())
        by_status["none" if status is None else str(status)] += 1

    def of(self, path: str) -> PathBytes:
        """The bytes of one path, to be added to."""
        return self.paths.setdefault(path, PathBytes())

    def totals(self) -> PathBytes:
        """The bytes of all paths together."""
        return PathBytes(
            received=sum(p.received for p in self.paths.values()),
            kept=sum(p.kept for p in self.paths.values()),
            sent=sum(p.sent for p in self.paths.values()),
        )

    def reset(self) -> None:
        """Start from zero."""
        self.requests.clear()
        self.most_at_once = self._going_on.copy()
        self.paths.clear()
