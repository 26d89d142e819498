"""A collector that keeps the spans that it is sent."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Spans:
    """All that came, from whichever process."""

    endpoint: str
    by_id: dict[bytes, Span] = field(default_factory=dict[bytes, Span])

    def named(self, name: str) -> list[Span]:
        """Those of this name."""
        return [span for span in [*self.by_id.values()] if span.name == name]

    def ancestry(self, span: Span) -> list[str]:
        """Names from the root to the span."""
        names = [span.name]
        while span.parent_span_id:
            span = self.by_id[span.parent_span_id]
            names.append(span.name)
        return names[::-1]


@contextmanager
def collector() -> Generator[Spans]:
    """Listen on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.by_id.update((span.span_id, span) for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    spans = Spans(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
