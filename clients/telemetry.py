"""What the process tells of its work: numbers and spans. Whoever works says what it does, and knows not who listens.

As with logging, who listens is settled once, when a process starts; in one where nobody does, telling costs a look at
a variable. Numbers go to the meter of Temporal's SDK, which serves them together with its own: one address per process,
answered by a thread of the SDK's that needs no GIL. Spans go to OpenTelemetry (`clients/tracing.py`).
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from domain import metrics
from domain.errors import Misconfigured
from domain.metrics import Flow, Kind, Metric

if TYPE_CHECKING:
    # A command that measures nothing shall not wait for either to load.
    from temporalio.runtime import Runtime

    from clients.tracing import Tracing

P = ParamSpec("P")
T = TypeVar("T")

step: ContextVar[str] = ContextVar("step", default="")
"""The step that is being carried out; set by the worker."""

_SERVERS = {Flow.S3_READ: "s3", Flow.S3_WRITTEN: "s3", Flow.LTS_READ: "lts", Flow.LTS_WRITTEN: "lts"}

_BUSY = (429,)


@dataclass
class _Listeners:
    instruments: dict[str, Any] = field(default_factory=dict[str, Any])
    """By the metric's name; a meter's counter, gauge or histogram."""
    tracing: "Tracing | None" = None


_listeners = _Listeners()


def start(*, metrics_address: str, otlp_endpoint: str, service: str) -> dict[str, Any]:
    """Listen from now on, as far as there is somewhere to tell it.

    Args:
        metrics_address: IP address and port at which to serve `/metrics`; empty: nowhere.
        otlp_endpoint: base URL of an OpenTelemetry collector, which takes OTLP over HTTP; empty: none.
        service: what this process is called in traces.

    Returns:
        The arguments of `clients.temporal.connect` that make Temporal's client tell as well.

    Raises:
        Misconfigured: nobody can listen at that address.
    """
    arguments: dict[str, Any] = {}
    if metrics_address:
        arguments["runtime"] = _start_metrics(metrics_address)
    if otlp_endpoint:
        from clients.tracing import Tracing

        _listeners.tracing = Tracing(otlp_endpoint, service)
        arguments["interceptors"] = [_listeners.tracing.interceptor]
    return arguments


def _start_metrics(address: str) -> "Runtime":
    from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

    served = PrometheusConfig(
        bind_address=address,
        counters_total_suffix=True,
        durations_as_seconds=True,
        histogram_bucket_overrides={metric.name: metric.buckets for metric in metrics.ALL if metric.buckets},
    )
    try:
        # Prometheus knows itself whom it asked, so no label has to say it.
        runtime = Runtime(telemetry=TelemetryConfig(metrics=served, attach_service_name=False))
    except ValueError as error:
        raise Misconfigured(f"no metrics can be served at {address} (METRICS_ADDRESS): {error}") from error
    meter = runtime.metric_meter
    make: dict[Kind, Callable[[str, str], Any]] = {
        # The exporter puts the suffix back.
        Kind.COUNTER: lambda name, meaning: meter.create_counter(name.removesuffix("_total"), meaning),
        Kind.GAUGE: meter.create_gauge_float,
        Kind.HISTOGRAM: meter.create_histogram_float,
    }
    _listeners.instruments = {metric.name: make[metric.kind](metric.name, metric.meaning) for metric in metrics.ALL}
    return runtime


def stop() -> None:
    """Send what is left; nobody listens any more."""
    if _listeners.tracing:
        _listeners.tracing.close()
    _listeners.tracing = None
    _listeners.instruments = {}


def count(metric: Metric, value: int = 1, /, **labels: str) -> None:
    """Add to a counter."""
    if _listeners.instruments:
        _listeners.instruments[metric.name].add(value, labels)


def show(metric: Metric, value: float, /, **labels: str) -> None:
    """Set a gauge."""
    if _listeners.instruments:
        _listeners.instruments[metric.name].set(value, labels)


def observe(metric: Metric, seconds: float, /, **labels: str) -> None:
    """Put a value into a histogram."""
    if _listeners.instruments:
        _listeners.instruments[metric.name].record(max(0.0, seconds), labels)


def serving(name: str, carrier: Mapping[str, str]) -> AbstractContextManager[Any]:
    """A span around what a request makes us do, None if nobody listens; `carrier` has the request's headers."""
    return _listeners.tracing.serving(name, carrier) if _listeners.tracing else nullcontext()


def trace_id() -> str:
    """The trace that the present work belongs to, 32 hex digits; empty if to none."""
    return _listeners.tracing.trace_id() if _listeners.tracing else ""


@dataclass(slots=True)
class Call:
    """A request under way, or how it ended."""

    status: int = 0
    """Of the answer, where it is HTTP's."""


@contextmanager
def calling(server: str, method: str) -> Generator[Call]:
    """A request to a server that moves no bulk bytes; an error that it comes to passes through.

    Args:
        server: s3, lts, scicat or idp.
        method: of HTTP.
    """
    call, begun = Call(), time.perf_counter()
    try:
        yield call
    except Exception as error:
        called(server, method, time.perf_counter() - begun, error=type(error).__name__)
        raise
    called(server, method, time.perf_counter() - begun, status=call.status)


def called(server: str, method: str, seconds: float, *, status: int = 0, error: str = "") -> None:
    """A request to a server that moved no bulk bytes has just ended: with a status, or in an error of this class."""
    error = error or (str(status) if status in _BUSY or status >= 500 else "")
    observe(metrics.CALL_SECONDS, seconds, server=server, method=method)
    _ended(server, f"{server} {method}", seconds, error)


@contextmanager
def moving(flow: Flow, size_bytes: int) -> Generator[None]:
    """One bulk request of so many bytes; they count when it has succeeded."""
    server, name, begun = _SERVERS[flow], flow.value.replace("_", " "), time.perf_counter()
    try:
        yield
    except Exception as error:
        _ended(server, name, time.perf_counter() - begun, type(error).__name__)
        raise
    seconds = time.perf_counter() - begun
    observe(metrics.CHUNK_SECONDS, seconds, flow=flow.value)
    count(metrics.BYTES, size_bytes, flow=flow.value, step=step.get())
    _ended(server, name, seconds)


def _ended(server: str, name: str, seconds: float, error: str = "") -> None:
    if error:
        count(metrics.CALL_ERRORS, server=server, error=error)
    if _listeners.tracing:
        _listeners.tracing.sent(name, seconds, error)


class Threads(ThreadPoolExecutor):
    """Threads that know whose work they do: what they count and log is of the step that has submitted it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit, with the context of whoever does."""
        return super().submit(copy_context().run, fn, *args, **kwargs)


def begin_at_zero(metric: Metric, label: str, values: Iterable[str]) -> None:
    """Show a counter before it has counted: what appears with its first count has not grown, to Prometheus."""
    for value in values:
        count(metric, 0, **{label: value})
