"""Spans by OpenTelemetry, sent to a collector; loaded only where they are asked for.

The standard variables hold: `OTEL_TRACES_SAMPLER` and its argument, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_EXPORTER_OTLP_HEADERS`.
"""

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue
from temporalio.contrib.opentelemetry import TracingInterceptor

from domain.redaction import redacted

_DELAY_MS = 1_000
"""Longest that a span waits for others to be sent with."""
_TIMEOUT_S = 3.0
"""Longest that spans are tried to be sent, before they are dropped or the process ends."""


class Tracing:
    """One tracer for the process."""

    def __init__(self, endpoint: str, service: str) -> None:
        """Connect to nothing yet."""
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(_Redacting(exporter), schedule_delay_millis=_DELAY_MS))
        self._tracer = self._provider.get_tracer("scopemarchiver")
        self._propagator = TraceContextTextMapPropagator()

    @property
    def interceptor(self) -> TracingInterceptor:
        """For a client of Temporal: it and its workers hand the trace on in headers, and make spans of their steps."""
        return TracingInterceptor(self._tracer)

    @contextmanager
    def serving(self, name: str, carrier: Mapping[str, str]) -> Generator[Span]:
        """A span around what a request makes us do; it goes on with the trace that the request's headers name."""
        context = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span(name, context=context, kind=SpanKind.SERVER) as span:
            yield span

    def sent(self, name: str, seconds: float, error: str = "") -> None:
        """A span of a request of ours that has just ended, in an error of this class or well; none outside a trace."""
        if not trace.get_current_span().get_span_context().is_valid:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, start_time=ended - round(seconds * 1e9))
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(ended)

    @staticmethod
    def trace_id() -> str:
        """32 hex digits; empty outside of every span."""
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else ""

    def close(self) -> None:
        """Send what is left, for a short while."""
        # A collector that is away must not keep a process from ending.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_TIMEOUT_S)


class _Redacting(SpanExporter):
    """The texts of errors pass the same net here as in logs."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Redact, then export."""
        return self._exporter.export([_clean(span) for span in spans])

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return self._exporter.force_flush(timeout_millis)


def _clean(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_clean_values(span.attributes),
        events=[Event(event.name, _clean_values(event.attributes), event.timestamp) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, redacted(span.status.description or "") or None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _clean_values(attributes: Attributes) -> dict[str, AttributeValue]:
    return {name: redacted(value) if isinstance(value, str) else value for name, value in (attributes or {}).items()}
