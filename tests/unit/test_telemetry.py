"""What a process tells of its work: costs nothing where nobody listens, and is told to whom it belongs."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from clients import telemetry
from clients.telemetry import Threads
from domain import metrics, names
from domain.errors import Misconfigured, TapeUnavailable
from domain.metrics import Flow
from tests.fakes.otlp import Spans, collector
from tests.fakes.scraping import Scrape, scrape

SECRET = "s3cr3tW0rd-of_32.characters+long"
URL = f"https://s3/b/k?X-Amz-Signature={SECRET}"


@pytest.fixture(scope="module")
def address() -> str:
    """One page for the module: the SDK serves it until the process ends."""
    from cli.ports import HOST, Ports

    return f"{HOST}:{Ports.free().api}"


@pytest.fixture(scope="module")
def runtime(address: str) -> Iterator[Any]:
    yield telemetry.start(metrics_address=address, otlp_endpoint="", service="test")["runtime"]
    telemetry.stop()


async def page(address: str) -> Scrape:
    return await scrape(address)


def test_nothing_is_loaded_that_is_not_asked_for() -> None:
    code = (
        "import sys, cli.__main__, api.__main__, worker.__main__;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_without_a_listener_nothing_happens() -> None:
    assert telemetry.start(metrics_address="", otlp_endpoint="", service="test") == {}
    with telemetry.moving(Flow.S3_READ, 1), telemetry.calling("lts", "GET"), telemetry.serving("GET", {}) as span:
        telemetry.count(metrics.DATABLOCKS, outcome="written")
    assert span is None
    assert telemetry.trace_id() == ""


async def test_bytes_count_when_they_have_arrived(runtime: Any, address: str) -> None:
    telemetry.step.set("a_step")
    with telemetry.moving(Flow.LTS_WRITTEN, 5):
        pass
    with pytest.raises(TapeUnavailable), telemetry.moving(Flow.LTS_WRITTEN, 7):
        raise TapeUnavailable("it is away")
    found = await page(address)
    assert found.all(metrics.BYTES.name, flow="lts_written", step="a_step") == [5]
    assert found.all(f"{metrics.CHUNK_SECONDS.name}_count", flow="lts_written") == [1]
    assert found.all(metrics.CALL_ERRORS.name, server="lts", error="TapeUnavailable") == [1]


async def test_a_refusal_is_an_answer_and_a_broken_server_is_an_error(runtime: Any, address: str) -> None:
    for status in (200, 404, 429, 503):
        with telemetry.calling("scicat", "GET") as call:
            call.status = status
    found = await page(address)
    assert found.all(f"{metrics.CALL_SECONDS.name}_count", server="scicat", method="GET") == [4]
    assert found.all(metrics.CALL_ERRORS.name, server="scicat", error="429") == [1]
    assert found.all(metrics.CALL_ERRORS.name, server="scicat", error="503") == [1]
    assert found.sum(metrics.CALL_ERRORS.name, server="scicat") == 2


async def test_a_counter_is_there_before_it_has_counted(runtime: Any, address: str) -> None:
    telemetry.begin_at_zero(metrics.VERIFICATION_FAILURES, "step", ["a_step"])
    assert (await page(address)).all(metrics.VERIFICATION_FAILURES.name, step="a_step") == [0]


def test_an_address_that_is_taken_is_named(runtime: Any, address: str) -> None:
    with pytest.raises(Misconfigured, match=rf"no metrics can be served at {address} \(METRICS_ADDRESS\)"):
        telemetry.start(metrics_address=address, otlp_endpoint="", service="test")


def test_threads_know_whose_work_they_do() -> None:
    with Threads(1) as threads:
        told: list[Future[str]] = []
        for step in ("one", "other"):
            telemetry.step.set(step)
            told.append(threads.submit(telemetry.step.get))
    assert [each.result() for each in told] == ["one", "other"]


# Traces


@pytest.fixture
def spans() -> Iterator[Spans]:
    with collector() as spans:
        told = telemetry.start(metrics_address="", otlp_endpoint=spans.endpoint, service="test")
        assert len(told["interceptors"]) == 1
        yield spans
        telemetry.stop()


def test_a_request_goes_on_with_the_trace_that_it_comes_with(spans: Spans) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with telemetry.serving("GET /jobs", {"traceparent": f"00-{trace}-{parent}-01"}):
        assert telemetry.trace_id() == trace
        with telemetry.calling("scicat", "GET"):
            pass
    with telemetry.calling("lts", "GET"):
        pass
    telemetry.stop()
    assert not spans.named("lts GET"), "it belongs to no request"
    [served], [sent] = spans.named("GET /jobs"), spans.named("scicat GET")
    assert (served.trace_id.hex(), served.parent_span_id.hex()) == (trace, parent)
    assert sent.parent_span_id == served.span_id
    assert served.start_time_unix_nano <= sent.start_time_unix_nano <= sent.end_time_unix_nano


def test_no_secret_reaches_a_trace(spans: Spans) -> None:
    with pytest.raises(ValueError, match="k"), telemetry.serving("GET", {}):
        raise ValueError(URL)
    telemetry.stop()
    [span] = spans.named("GET")
    assert span.status.code == StatusCode.ERROR.value
    assert span.events
    assert "X-Amz-Signature=[redacted]" in str(span)
    assert SECRET not in str(span)


# Names


@pytest.mark.parametrize(
    ("workflow_id", "job", "pid"),
    [
        (names.job_workflow("7"), "7", ""),
        (names.archive_workflow("20.500/a"), "", "20.500/a"),
        (names.retrieve_workflow("20.500/a"), "", "20.500/a"),
        (names.restore_workflow("20.500/a", "7"), "7", "20.500/a"),
        (names.upload_workflow("20.500/a"), "", "20.500/a"),
        (names.LANDING_ZONE, "", ""),
    ],
)
def test_a_workflows_id_says_what_it_is_about(workflow_id: str, job: str, pid: str) -> None:
    assert names.belongs_to(workflow_id) == (job, pid)
