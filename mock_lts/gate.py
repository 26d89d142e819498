"""The gate in front of everything: who may enter, which requests a fault refuses, what is counted."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.faults import Faults
from mock_lts.problems import ConnectionCut, Problem

OPEN_PATHS = ("/health", "/.well-known/wlcg-tape-rest-api")


class Connections:
    """The open connections, so that a fault can cut one; `server.protocol` fills it."""

    def __init__(self) -> None:
        self._transports: dict[object, asyncio.Transport] = {}

    def made(self, transport: asyncio.Transport) -> None:
        """A client has connected."""
        self._transports[_peer(transport)] = transport

    def lost(self, transport: asyncio.Transport) -> None:
        """A client is gone."""
        self._transports.pop(_peer(transport), None)

    async def cut(self, scope: Scope, receive: Receive, *, unsent: bool = False) -> None:
        """Drop the request's connection; what was sent before still arrives, unless `unsent` is to go too.

        Raises:
            ConnectionCut: There is no connection: the app is called in-process.
        """
        transport = self._transports.get(scope.get("client"))
        if transport is None:
            raise ConnectionCut
        if unsent:
            transport.abort()
        else:
            transport.close()
        while (await receive())["type"] != "http.disconnect":
            pass


class Gate:
    """The outermost ASGI layer."""

    def __init__(self, app: ASGIApp, *, config: Config, faults: Faults, counters: Counters) -> None:
        self._app = app
        self._token = config.token.get_secret_value()
        self._faults = faults
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], _tidied(scope)
        tus = path == "/uploads" or path.startswith("/uploads/")
        status: int | None = None

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if tus:  # every answer names the version, whoever gives it
                    message["headers"] = [*message.get("headers", ()), (b"tus-resumable", b"1.0.0")]
            await send(message)

        self._counters.began(method, path)
        try:
            self._admit(scope)
            await self._app(scope, receive, counting)
        except Problem as problem:
            await problem.response()(scope, receive, counting)
        finally:
            self._counters.answered(method, path, status)

    def _admit(self, scope: Scope) -> None:
        path = scope["path"]
        if self._token and path not in OPEN_PATHS and not self._knows_token(Request(scope)):
            raise Problem(401, "a token is needed", {"WWW-Authenticate": 'Bearer, Basic realm="mock_lts"'})
        if not path.startswith(("/admin", "/health")) and path != "/":
            fault = self._faults.refusal(scope["method"], path)
            if fault is not None:
                retry = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
                raise Problem(fault.status, "an injected fault refuses this request", retry)

    def _knows_token(self, request: Request) -> bool:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        offered = value.strip().encode()
        if scheme.lower() == "basic":
            try:
                offered = base64.b64decode(offered, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(offered, self._token.encode())


def base_url(request: Request, config: Config) -> str:
    """How clients reach this server, without a slash at the end."""
    return (config.public_url or str(request.base_url)).rstrip("/")


def _tidied(scope: Scope) -> str:
    """Tape REST paths with double slashes or one at the end mean the same; the router would not find them."""
    path: str = scope["path"]
    if re.match(r"/+(api|\.well-known)/", path):
        path = scope["path"] = re.sub(r"/{2,}", "/", path).rstrip("/")
    return path


def _peer(transport: asyncio.Transport) -> object:
    name: tuple[str, int] | None = transport.get_extra_info("peername")
    return None if name is None else (name[0], name[1])
