"""An HTTP server that says what it is told to, for answers that no well-behaved server gives."""

import http.server
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Canned:
    """One answer; `cut_after` ends the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut_after: int | None = None
    close: bool = False
    """End the connection afterwards without having said so."""


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that turns away in the middle of an answer is what some tests are about."""


class CannedServer:
    """Answers by method and path in a thread of its own; a list of answers is used up, its last one stays."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[Canned]] = {}
        self.seen: list[Seen] = []
        self.connections = 0
        canned = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                canned.connections += 1

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                canned.seen.append(Seen(self.command, self.path, dict(self.headers.items()), body))
                waiting = canned.answers.get((self.command, self.path.partition("?")[0]), [Canned(404)])
                said = waiting[0] if len(waiting) == 1 else waiting.pop(0)
                self.send_response(said.status)
                for name, value in ({"Content-Length": str(len(said.body))} | dict(said.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said.body[: said.cut_after])
                self.close_connection = self.close_connection or said.close or said.cut_after is not None

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_PROPFIND = do_MKCOL = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "CannedServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def says(self, method: str, path: str, *answers: Canned) -> None:
        """Set what is answered at a path."""
        self.answers[(method, path)] = list(answers)
