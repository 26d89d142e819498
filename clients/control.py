"""Control calls: small questions and answers over HTTP, on connections that are kept. Bulk bytes: `clients.bulk`."""

import asyncio
import io
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from clients import telemetry
from clients.bulk import Answer
from domain.errors import InfrastructureError

_SAFE = ("GET", "HEAD", "OPTIONS", "PROPFIND")

_LARGE_BYTES = 1 << 20
"""aiohttp warns of a larger body that it is given as bytes."""


class ControlCalls:
    """Those to one service. Redirects are not followed, cookies not kept, proxies of the environment not used."""

    def __init__(
        self,
        service: str,
        unavailable: type[InfrastructureError],
        *,
        ca_file: Path | None,
        connect_timeout_s: float,
        timeout_s: float,
        total_timeout_s: float = 3600.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            service: as metrics and traces name it.
            unavailable: raised when nobody answers.
            ca_file: certificates to trust instead of the system's.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for a name's address, and for the next bytes of an answer.
            total_timeout_s: for sending a request and for the whole answer, however steadily it trickles.
            headers: of every request.
        """
        self._service, self._unavailable = service, unavailable
        self._tls = ssl.create_default_context(cafile=ca_file)
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout_s, connect=timeout_s, sock_connect=connect_timeout_s, sock_read=timeout_s
        )
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session:
            await self._session.close()

    async def ask(
        self,
        what: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One request; a question is asked once more when its answer breaks off.

        Before there is an answer, aiohttp does that itself, for orders that may be repeated too: PUT and DELETE.

        Args:
            what: is being done, for the error.
            method: of HTTP.
            url: quoted as it is to be sent.
            headers: beside those that every request has.
            content: sent as it is.
            body: sent as JSON, instead.

        Raises:
            InfrastructureError: `unavailable`, nobody answered, or not in time.
        """
        headers = dict(headers or {})
        if body is not None:
            content, headers["Content-Type"] = compact(body), "application/json"
        for last in (method not in _SAFE, True):
            try:
                with telemetry.calling(self._service, method) as call:
                    async with self._connected.request(
                        method, URL(url, encoded=True), headers=headers, data=_sent(content), allow_redirects=False
                    ) as answer:
                        said = {name.lower(): value for name, value in answer.headers.items()}
                        call.status = answer.status
                        return Answer(answer.status, said, await self._read(answer.content))
            except (aiohttp.ClientError, TimeoutError) as error:
                if last or not isinstance(error, aiohttp.ClientPayloadError):
                    raise self._unavailable(f"{what}: no answer ({type(error).__name__})") from error
        raise AssertionError("unreachable")

    async def _read(self, stream: aiohttp.StreamReader) -> bytes:
        """All of it. aiohttp's own time-out does not come when a chunk is malformed (3.14, measured)."""
        pieces: list[bytes] = []
        while True:
            async with asyncio.timeout(self._timeout.sock_read):
                piece = await stream.readany()
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    @property
    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Not before there is an event loop.
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                # Servers close idle connections after 5 s; whoever closes first never meets a dead one.
                connector=aiohttp.TCPConnector(limit=100, keepalive_timeout=3.0, ssl=self._tls),
            )
        return self._session


def _sent(content: bytes | None) -> bytes | io.BytesIO | None:
    return io.BytesIO(content) if content and len(content) > _LARGE_BYTES else content


def compact(body: Mapping[str, Any]) -> bytes:
    """JSON without a blank that is not needed."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
