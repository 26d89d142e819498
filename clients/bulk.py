"""Blocking HTTP/1.1 for threads: bulk bytes go from a buffer to a socket and back without a copy.

A socket that fills or drains a 16 MiB buffer in a thread costs a third of the CPU of any asyncio client
(`docs/explanations/decisions/0002-data-plane.md`), and the GIL is released while it does so.

Nothing here knows S3 or the LTS: whoever calls turns `TransferFailed` and the statuses into errors of their own.
"""

import http.client
import select
import ssl
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

_SLICE_BYTES = 1 << 20
"""Socket time-outs cover one `sendall` as a whole: sent in slices, they mean "no progress" and not "a slow line"."""

_SMALL_BODY_BYTES = 1 << 20
_FILLED = (200, 206)
_SAFE = ("GET", "HEAD")


class TransferFailed(Exception):
    """No complete answer: refused, cut, timed out, too short, too long. The text names no query string."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; `body` is empty when the bytes went into the caller's buffer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the server has done what it was asked for."""
        return self.status // 100 == 2


class ConnectionPool:
    """Keep-alive connections to one server, for any number of threads at once.

    There are as many connections as there are requests in flight; at most `max_idle` of them are kept for the next.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ca_file: Path | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        max_idle: int = 32,
    ) -> None:
        """Connect to nothing yet; of `base_url` only scheme, host and port are used.

        Args:
            base_url: `http://` or `https://` address of the server.
            ca_file: certificates to trust instead of the system's.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes in either direction.
            max_idle: connections kept open between requests.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http(s) address")
        self._host, self._port = parts.hostname, parts.port
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._max_idle = max_idle
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: memoryview | Iterable[memoryview] | None = None,
        into: memoryview | None = None,
        repeatable: bool = False,
    ) -> Answer:
        """Send one request and read its whole answer.

        A GET or HEAD is repeated once when the connection breaks; so is a `repeatable` request when a kept connection
        turns out dead before the first byte of an answer. A body that can be iterated only once is never repeated,
        and an error raised by the iterable passes through unchanged (unless it is an OSError).

        Args:
            method: HTTP method.
            target: path and query, percent-encoded.
            headers: must hold `Content-Length` if `body` is an iterable.
            body: bytes to send; views are sent as they are.
            into: buffer for the body of a 200 or 206, which must have exactly this length.
            repeatable: sending the request twice does no harm.

        Raises:
            TransferFailed: no complete answer.
        """
        headers = dict(headers)
        views: Iterable[memoryview] | None
        if isinstance(body, memoryview):
            headers["Content-Length"] = str(body.nbytes)
            views = (cast(memoryview, body),)
        else:
            views = body
            if body is None and method not in _SAFE:
                headers["Content-Length"] = "0"
        kept = self._take()
        try:
            return self._attempt(kept, method, target, headers, views, into)
        except _Broken as broken:
            again = method in _SAFE or (repeatable and kept is not None and not broken.answered)
            if not again or broken.timed_out or isinstance(body, Iterator):
                raise self._failed(method, target, broken) from broken.__cause__
        try:
            return self._attempt(None, method, target, headers, views, into)
        except _Broken as broken:
            raise self._failed(method, target, broken) from broken.__cause__

    def begin(self, method: str, target: str, headers: Mapping[str, str]) -> "OpenRequest":
        """Start a request whose body comes piece by piece, on a connection of its own.

        Args:
            method: HTTP method.
            target: path and query, percent-encoded.
            headers: must hold `Content-Length`.

        Raises:
            TransferFailed: no connection.
        """
        connection = self._new()
        request = OpenRequest(connection, f"{method} {target.partition('?')[0]} on {self._host}")
        with request.failing():
            connection.connect()
            connection.sock.settimeout(self._timeout_s)
            _send_head(connection, method, target, headers)
        return request

    def close(self) -> None:
        """Close the idle connections; those in use are closed by their requests' end."""
        with self._lock:
            self._max_idle = 0
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()

    def _failed(self, method: str, target: str, broken: "_Broken") -> TransferFailed:
        path = target.partition("?")[0]
        return TransferFailed(f"{method} {path} on {self._host}: {broken}")

    def _new(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._connect_timeout_s, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._connect_timeout_s)

    def _take(self) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not _has_something_to_read(connection):
                return connection
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _attempt(
        self,
        kept: http.client.HTTPConnection | None,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Iterable[memoryview] | None,
        into: memoryview | None,
    ) -> Answer:
        """One request on one connection, which afterwards is either back in the pool or closed."""
        connection = kept or self._new()
        reusable = False
        answered = False
        try:
            if kept is None:
                connection.connect()
                connection.sock.settimeout(self._timeout_s)
            cut = self._send(connection, method, target, headers, body)
            response = connection.getresponse()
            answered = True
            if cut is not None and response.status < 400:
                raise _Broken("the connection was cut while the body was being sent", answered=True) from cut
            answer, whole = _receive(response, into)
            reusable = whole and cut is None and not response.will_close
        except TimeoutError as error:
            raise _Broken("no answer in time", answered=answered, timed_out=True) from error
        except http.client.HTTPException as error:
            # RemoteDisconnected is an HTTPException and a ConnectionResetError: the end before any byte.
            said = "the connection was closed" if isinstance(error, ConnectionError) else "the answer is not HTTP"
            raise _Broken(said, answered=answered) from error
        except OSError as error:
            raise _Broken(_plain(error), answered=answered) from error
        finally:
            if reusable:
                self._give_back(connection)
            else:
                connection.close()
        return answer

    @staticmethod
    def _send(
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Iterable[memoryview] | None,
    ) -> OSError | None:
        """Send the request; return the error when the server stopped listening, since it may have answered why."""
        _send_head(connection, method, target, headers)
        if body is None:
            return None
        sent = 0
        for view in body:
            try:
                _send_piece(connection, view)
            except (BrokenPipeError, ConnectionResetError) as error:
                return error
            sent += view.nbytes
        if sent != int(headers["Content-Length"]):
            raise ValueError(f"the body has {sent} bytes, {headers['Content-Length']} were announced")
        return None


class OpenRequest:
    """A request under way: pieces of its body, then the answer. Not for several threads at once."""

    def __init__(self, connection: http.client.HTTPConnection, name: str) -> None:
        self._connection, self._name = connection, name

    def send(self, piece: memoryview) -> Answer | None:
        """Send a piece; what the server answers before it has all of them is returned, and ends the request.

        Raises:
            TransferFailed: the connection broke; the request is at its end.
        """
        if self._connection.sock is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TransferFailed(f"{self._name}: the request was given up")
        if _has_something_to_read(self._connection):
            return self.end()
        with self.failing():
            try:
                _send_piece(self._connection, piece)
            except (BrokenPipeError, ConnectionResetError):
                return self.end()
        return None

    def end(self) -> Answer:
        """Read the answer and close the connection.

        Raises:
            TransferFailed: no complete answer.
        """
        with self.failing():
            answer, _ = _receive(self._connection.getresponse(), None)
        self.close()
        return answer

    def close(self) -> None:
        """Give the request up."""
        self._connection.close()

    @contextmanager
    def failing(self) -> Generator[None]:
        """Close the connection on any error, and say what it means."""
        try:
            yield
        except (_Broken, http.client.HTTPException, OSError) as error:
            self.close()
            said = _plain(error) if isinstance(error, OSError) else str(error) or "the answer is not HTTP"
            raise TransferFailed(f"{self._name}: {said}") from error
        except BaseException:
            self.close()
            raise


def _send_head(connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str]) -> None:
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()


def _send_piece(connection: http.client.HTTPConnection, piece: memoryview) -> None:
    view = piece.cast("B")
    for start in range(0, view.nbytes, _SLICE_BYTES):
        connection.sock.sendall(view[start : start + _SLICE_BYTES])


class _Broken(Exception):
    """An attempt without a complete answer."""

    def __init__(self, text: str, *, answered: bool, timed_out: bool = False) -> None:
        super().__init__(text)
        self.answered, self.timed_out = answered, timed_out


def _has_something_to_read(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection has ended or holds bytes that nobody asked for: either way it is of no use."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _receive(response: http.client.HTTPResponse, into: memoryview | None) -> tuple[Answer, bool]:
    """Read the body; also say whether nothing of it is left on the connection."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if into is None or response.status not in _FILLED:
        body = response.read(_SMALL_BODY_BYTES)
        whole = not _more(response)
        if not whole and response.status < 400:
            raise _Broken(f"the answer is cut short or longer than {_SMALL_BODY_BYTES} bytes", answered=True)
        return Answer(response.status, headers, body), whole
    size = into.nbytes
    if response.length is not None and response.length != size:
        raise _Broken(f"the answer has {response.length} bytes, {size} were asked for", answered=True)
    view, filled = into.cast("B"), 0
    while filled < size:
        got = response.readinto(view[filled:])
        if not got:
            raise _Broken(f"the answer ended after {filled} of {size} bytes", answered=True)
        filled += got
    if _more(response):
        raise _Broken(f"the answer is longer than the {size} bytes asked for", answered=True)
    return Answer(response.status, headers), True


def _more(response: http.client.HTTPResponse) -> bool:
    """Whether bytes of the body are still to come, or should have come."""
    if response.isclosed():
        return False
    return bool(response.read(1)) or bool(response.length)


def _plain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    return error.strerror or type(error).__name__
