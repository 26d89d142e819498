"""A proxy that counts what passes, byte by byte, and can hold the line at any byte: what a process is killed at.

It stands in front of MinIO or the LTS for as long as a stack runs, on a thread of its own; servers behind it may die
and come back. Bytes are forwarded as they are; parsers look on.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

import httptools

Direction = Literal["in", "out"]
"""Towards the server, or from it."""

_PIECE = 1 << 18


@dataclass(slots=True)
class Passed:
    """Bytes of bodies that passed, and requests that began."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, direction: Direction, count: int) -> None:
        """Count bytes."""
        if direction == "in":
            self.bytes_in += count
        else:
            self.bytes_out += count


@dataclass(slots=True, eq=False)
class Hold:
    """Nothing of the bodies that it is about passes from its byte on, until it is let go."""

    about: Callable[[str], bool]
    direction: Direction
    left: int
    cut: bool
    """Connections that were held end when it is let go."""
    reached: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)

    def let_go(self) -> None:
        """Let everything pass from now on."""
        self.gone.set()


class CountingProxy:
    """One server's stand-in at an address of its own."""

    def __init__(self, port: int, target_port: int, host: str = "127.0.0.1") -> None:
        """Listen at `port` on behalf of `target_port`; started by `running`."""
        self._host, self._port, self._target = host, port, target_port
        self._passed: dict[str, Passed] = {}
        self.begun = 0
        """Requests that ever began."""
        self._holds: list[Hold] = []
        self._loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        """Where to dial it."""
        return f"http://{self._host}:{self._port}"

    @contextmanager
    def running(self) -> Generator["CountingProxy"]:
        """Serve on a thread."""
        thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self._port}", daemon=True)
        thread.start()
        starting = asyncio.start_server(self._serve, self._host, self._port, limit=_PIECE)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._close(server), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    @staticmethod
    async def _close(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # What was counted: by "<METHOD> <path and query, unquoted>".

    @property
    def passed(self) -> Mapping[str, Passed]:
        """Everything, since the last `forget`."""
        return dict(self._passed)

    def forget(self) -> None:
        """Count from zero."""
        self._passed = {}

    def bytes_of(self, about: Callable[[str], bool], direction: Direction) -> int:
        """Sum of the bodies' bytes of the requests that it is about."""
        return sum(
            passed.bytes_in if direction == "in" else passed.bytes_out
            for request, passed in self.passed.items()
            if about(request)
        )

    def requests_of(self, about: Callable[[str], bool]) -> int:
        """How many requests it is about."""
        return sum(passed.requests for request, passed in self.passed.items() if about(request))

    # Holding the line.

    @contextmanager
    def hold(
        self, about: Callable[[str], bool], direction: Direction, after_bytes: int, *, cut: bool = False
    ) -> Generator[Hold]:
        """Let so many more bytes of these bodies pass, then nothing; what waits goes on, or is cut, on leaving."""
        hold = Hold(about, direction, after_bytes, cut)
        self._holds.append(hold)
        try:
            yield hold
        finally:
            self._holds.remove(hold)
            hold.let_go()

    # One connection.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError, OSError):
            await self._connect(reader, writer)
        writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._target, limit=_PIECE)
        current: deque[str] = deque()
        pumps = [
            asyncio.create_task(self._pump(_Requests(current, self._begun), reader, up_writer, "in")),
            asyncio.create_task(self._pump(_Answers(current), up_reader, writer, "out")),
        ]
        try:
            # When either side ends, so does the other: as without a proxy.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            up_writer.transport.abort()

    def _of(self, request: str) -> Passed:
        return self._passed.setdefault(request, Passed())

    def _begun(self, request: str) -> None:
        self._of(request).requests += 1
        self.begun += 1

    async def _pump(
        self, watcher: "_Watcher", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        while data := await reader.read(_PIECE):
            watcher.feed(data)
            bodies, watcher.bodies = watcher.bodies, []
            sent = 0
            for request, count, end in bodies:
                begin = end - count
                for hold in [hold for hold in self._holds if hold.direction == direction and hold.about(request)]:
                    if not hold.gone.is_set() and hold.left < end - begin:
                        cut = begin + max(hold.left, 0)
                        writer.write(data[sent:cut])
                        await writer.drain()
                        self._of(request).add(direction, cut - begin)
                        sent = begin = cut
                        hold.left = 0
                        hold.reached.set()
                        while not hold.gone.is_set():  # noqa: ASYNC110 - it is set by another thread
                            await asyncio.sleep(0.005)
                        if hold.cut:
                            return
                    hold.left -= end - begin
                writer.write(data[sent:end])
                await writer.drain()
                self._of(request).add(direction, end - begin)
                sent = end
            writer.write(data[sent:])
            await writer.drain()


class _Watcher:
    """Parses one direction of a connection; `bodies` has (request, bytes, their end in the piece fed)."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, int, int]] = []

    def feed(self, data: bytes) -> None:
        raise NotImplementedError


class _Requests(_Watcher):
    def __init__(self, current: deque[str], begun: Callable[[str], None]) -> None:
        super().__init__()
        self._current, self._begun = current, begun
        self._url = b""
        self._name = ""
        self._parser = httptools.HttpRequestParser(self)
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data = data
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_headers_complete(self) -> None:
        self._name = f"{self._parser.get_method().decode()} {unquote(self._url.decode())}"
        self._url = b""
        self._current.append(self._name)
        self._begun(self._name)

    def on_body(self, body: bytes) -> None:
        # Requests are not pipelined: a body ends with the piece, but for the frame of a chunked one.
        self.bodies.append((self._name, len(body), _end_of(self._data, body)))


class _Answers(_Watcher):
    """What a refusal says in its body is not counted."""

    def __init__(self, current: deque[str]) -> None:
        super().__init__()
        self._current = current
        self._data = b""
        self._headless = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._data = data
        self._parser.feed_data(data)
        if self._headless:
            # The answer to a HEAD announces a body that never comes.
            self._headless = False
            self._current.popleft()
            self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self._headless = bool(self._current) and self._current[0].startswith("HEAD ")

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() < 300:
            self.bodies.append((self._current[0], len(body), _end_of(self._data, body)))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200 and not self._headless:
            self._current.popleft()


def _end_of(data: bytes, body: bytes) -> int:
    """Where the body's bytes end in the piece that they came with."""
    return len(data) if data.endswith(body) else data.rindex(body) + len(body)
