"""A state bucket in memory, as far as it is about streams; it can stand still, as S3 does when it is away."""

import asyncio
from dataclasses import dataclass, field

from clients.state import State
from domain.errors import ObjectStoreUnavailable
from domain.streams import Seen


@dataclass
class StreamsInMemory(State):
    """The part of `State` that `SharedStreams` uses."""

    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict[str, tuple[bytes, str]])
    away: bool = False
    lose_answers: int = 0
    """So many writes are done and not answered."""
    writes: int = 0

    async def streams(self, queue: str) -> tuple[dict[int, Seen], str | None]:
        await self._answer()
        found = {int(name): Seen(etag, free=not body) for name, (body, etag) in self.objects.items() if name != "mark"}
        return found, self.objects.get("mark", (b"", None))[1]

    async def write_stream(self, queue: str, number: int, holder: bytes, known: str | None) -> str | None:
        return await self._write(str(number), holder, known)

    async def stream(self, queue: str, number: int) -> tuple[bytes, str]:
        await self._answer()
        return self.objects.get(str(number), (b"", ""))

    async def mark_streams(self, queue: str, content: bytes, known: str | None) -> str | None:
        return await self._write("mark", content, known)

    async def _write(self, name: str, body: bytes, known: str | None) -> str | None:
        await self._answer()
        if self.objects.get(name, (b"", None))[1] != known:
            return None
        self.writes += 1
        self.objects[name] = (body, f"etag {self.writes}" if body else "empty")
        if self.lose_answers and name != "mark":
            self.lose_answers -= 1
            raise ObjectStoreUnavailable("the answer was lost")
        return self.objects[name][1]

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise ObjectStoreUnavailable("away")
