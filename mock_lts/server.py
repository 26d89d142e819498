"""uvicorn, set up for this app."""

from __future__ import annotations

import asyncio
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mock_lts.config import Config
from mock_lts.gate import Connections

MAX_HEADER_BYTES = 64 << 10


def protocol(config: Config, connections: Connections) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which also tells us about its connections: ASGI has no way to cut one.

    uvicorn waits for ever for the end of a request's headers, and takes any amount of them; this one does not.
    """

    class Protocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            connections.made(transport)
            super().connection_made(transport)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            connections.lost(self.transport)
            self._headers_are_in()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._deadline is not None:
                self._header_bytes += len(data)
                if self._header_bytes > MAX_HEADER_BYTES:
                    self._refuse(b"431 Request Header Fields Too Large")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_headers()

        def on_headers_complete(self) -> None:
            self._headers_are_in()
            super().on_headers_complete()

        def _await_headers(self) -> None:
            self._headers_are_in()
            self._deadline = self.loop.call_later(config.idle_limit_s, self._refuse, b"408 Request Timeout")

        def _headers_are_in(self) -> None:
            self._header_bytes = 0
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _refuse(self, status: bytes) -> None:
            self._headers_are_in()
            if not self.transport.is_closing():
                cycle = cast("RequestResponseCycle | None", self.cycle)
                if cycle is None or cycle.response_complete:
                    self.transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self.transport.close()

    return Protocol


def server(app: ASGIApp, config: Config, connections: Connections) -> uvicorn.Server:
    """A server that is ready to run."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            loop="uvloop",
            http=protocol(config, connections),
            lifespan="on",
            log_level=config.log_level,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=75,
        )
    )
