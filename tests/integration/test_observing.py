"""What an operator sees of one archive and one retrieval: numbers, traces and lines of the log, of real processes."""

import asyncio
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.ports import HOST, Ports
from cli.schedules import REPORT
from cli.stack import OURS, Stack
from domain import metrics
from domain.metrics import Flow, Kind
from tests.fakes.otlp import Spans, collector
from tests.fakes.scraping import Scrape, scrape
from tests.lab import QUICK, Lab, eventually, some_bytes, visit

pytestmark = pytest.mark.xdist_group("observing")

FILES = {
    "movies/a.tif": some_bytes(7_000_000, 1),
    "movies/b.tif": some_bytes(6_000_000, 2),
    "gain.mrc": some_bytes(3_000_000, 3),
    "session.xml": b"<session/>",
}
PAYLOAD = sum(map(len, FILES.values()))


@dataclass
class Seen:
    """What was to be seen."""

    spans: Spans
    pid: str = ""
    job: str = ""
    stored: dict[str, int] = field(default_factory=dict[str, int])
    """Datablocks on the LTS, path → size."""
    taken: int = 0
    given: int = 0
    """Bytes that the LTS says it took and gave."""
    numbers: Scrape = field(default_factory=lambda: Scrape(""))
    """After the first dataset was archived and retrieved."""
    damaged: str = ""
    """The second dataset, whose bytes are read back wrong."""
    damaged_job: str = ""
    later: Scrape = field(default_factory=lambda: Scrape(""))
    """While it is parked."""
    last: Scrape = field(default_factory=lambda: Scrape(""))
    """After the consistency report."""
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Generator[Seen]:
    """A stack of its own that tells everything, and what it told."""
    with collector() as spans:
        seen = Seen(spans)
        asyncio.run(_watch(seen, tmp_path_factory.mktemp("observed")))
        yield seen


async def _watch(seen: Seen, folder: Path) -> None:
    ports, more = Ports.free(), Ports.free()
    addresses = {
        name: f"{HOST}:{port}" for name, port in zip(OURS, (more.api, more.temporal, more.minio, more.lts), strict=True)
    }
    telling = {
        "METRICS_INTERVAL_S": "0.2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": seen.spans.endpoint,
        "LOG_FORMAT": "json",
        "RETRIEVAL_SLOTS": "2",
        # Nothing is read twice, however busy the machine.
        "HEARTBEAT_TIMEOUT_S": "60",
    }
    own = {name: {"METRICS_ADDRESS": address} for name, address in addresses.items()}
    stack = Stack(folder, ports, QUICK | telling, own=own)
    async with stack, visit(stack) as lab:
        await _archive_and_retrieve(seen, lab)
        seen.numbers = await scrape(*addresses.values())
        await _damage(seen, lab, addresses["api"])
        seen.later = await scrape(*addresses.values())
        await lab.archiving(seen.damaged).signal("give_up")
        await lab.ended(seen.damaged_job)
        await lab.lts("DELETE", "/admin/faults")
        await lab.temporal.get_schedule_handle(REPORT).trigger()
        await _until(addresses["api"], lambda page: bool(page.all(metrics.AUDIT_TIMESTAMP_SECONDS.name)))
        seen.last = await scrape(*addresses.values())
    for name in OURS:
        seen.logs[name] = [json.loads(line) for line in stack.log(name).read_text().splitlines()]


async def _archive_and_retrieve(seen: Seen, lab: Lab) -> None:
    seen.pid = await lab.dataset(FILES)
    seen.job = await lab.archive(seen.pid)
    assert (await lab.ended(seen.job))["jobStatusMessage"] == "finishedSuccessful"
    seen.stored = await lab.on_lts(seen.pid)

    async def only_on_tape() -> bool:
        state = (await lab.lts("GET", "/admin/state")).json()
        return all(file["locality"] == "TAPE" for file in state["files"])

    await eventually(only_on_tape)
    retrieval = await lab.ended(await lab.retrieve(seen.pid))
    assert retrieval["jobStatusMessage"] == "finishedSuccessful"
    counters = (await lab.lts("GET", "/admin/state")).json()["counters"]
    seen.taken, seen.given = counters["bytes_kept"], counters["bytes_sent"]


async def _damage(seen: Seen, lab: Lab, api: str) -> None:
    """A first chunk that the LTS does not take, then bytes that come back otherwise, until a person has to look."""
    await lab.lts("POST", "/admin/faults", json={"kind": "status", "status": 503, "method": "PATCH"})
    flipped = {"kind": "corrupt_in_flight", "direction": "out", "offset": 600, "count": None}
    await lab.lts("POST", "/admin/faults", json=flipped)
    seen.damaged = await lab.dataset({"a": b"aaaa"})
    seen.damaged_job = await lab.archive(seen.damaged)
    await _until(api, lambda page: page.sum(metrics.DATASETS_RUNNING.name, kind="archive", phase="parked") == 1)


async def _until(address: str, there: Callable[[Scrape], bool]) -> None:
    async def ask() -> bool:
        return there(await scrape(address))

    await eventually(ask)


# Numbers


def test_bytes_are_exact_each_way(seen: Seen) -> None:
    tars = sum(seen.stored.values())
    moved = {
        (flow, step): seen.numbers.sum(metrics.BYTES.name, flow=flow.value, step=step)
        for flow, step in (
            (Flow.S3_READ, "write_block"),
            (Flow.LTS_WRITTEN, "write_block"),
            (Flow.LTS_READ, "verify_block"),
            (Flow.LTS_READ, "copy_block"),
            (Flow.S3_WRITTEN, "copy_block"),
        )
    }
    assert moved == {
        (Flow.S3_READ, "write_block"): PAYLOAD,
        (Flow.LTS_WRITTEN, "write_block"): tars,
        (Flow.LTS_READ, "verify_block"): tars,
        (Flow.LTS_READ, "copy_block"): tars,
        (Flow.S3_WRITTEN, "copy_block"): tars,
    }
    assert seen.numbers.sum(metrics.BYTES.name) == sum(moved.values()), "no step moves anything else"
    assert (seen.taken, seen.given) == (tars, 2 * tars), "by the LTS's own count"


def test_chunks_datablocks_datasets_and_waits_are_counted(seen: Seen) -> None:
    blocks = len(seen.stored)
    assert blocks >= 2
    page = seen.numbers
    for outcome in ("written", "verified", "delivered"):
        assert page.sum(metrics.DATABLOCKS.name, outcome=outcome) == blocks
    chunks = sum(-(-size // int(QUICK["LTS_CHUNK_BYTES"])) for size in seen.stored.values())
    assert page.sum(f"{metrics.CHUNK_SECONDS.name}_count", flow="lts_written") == chunks
    assert page.sum(f"{metrics.CHUNK_SECONDS.name}_bucket", flow="lts_written", le="60") == chunks
    assert page.sum(metrics.DATASETS.name, kind="archive", outcome="archived", error="") == 1
    assert page.sum(metrics.DATASETS.name, kind="retrieve", outcome="retrieved", error="") == 1
    assert page.sum(f"{metrics.RECALL_WAIT_SECONDS.name}_count") == blocks
    assert page.all(metrics.VERIFICATION_FAILURES.name, step="verify_block") == [0, 0, 0], "shown before the first"


def test_every_server_that_is_asked_is_measured(seen: Seen) -> None:
    calls = f"{metrics.CALL_SECONDS.name}_count"
    assert seen.numbers.sum(calls, server="s3", method="PutObject") > 0
    assert seen.numbers.sum(calls, server="lts", method="PROPFIND") > 0
    assert seen.numbers.sum(calls, server="scicat", method="PATCH") > 0
    requests = f"{metrics.REQUEST_SECONDS.name}_count"
    assert seen.numbers.sum(requests, method="POST", route="/archiver/jobs", status="201") == 2


def test_what_waits_and_who_works_is_shown(seen: Seen) -> None:
    page = seen.later
    assert page.all(metrics.DATASETS_RUNNING.name, kind="archive", phase="parked") == [1]
    assert page.all(metrics.RETRIEVALS_RECALLING.name, older_than_hours="0") == [0]
    for queue in ("control", "archival", "retrieval"):
        assert page.all(metrics.QUEUE_POLLERS.name, queue=queue, task="activity") == [1]
        assert page.all(metrics.QUEUE_BACKLOG.name, queue=queue, task="activity") == [0]
    assert page.all(metrics.LANDING_ZONE_BYTES.name, part="allowed") == [90e12]
    slots = {"worker_type": "ActivityWorker", "task_queue": "retrieval"}
    used = page.sum("temporal_worker_task_slots_used", **slots)
    assert used + page.sum("temporal_worker_task_slots_available", **slots) == 2


def test_failures_are_counted_by_step_and_class(seen: Seen) -> None:
    page = seen.later
    assert page.sum(metrics.STEP_ERRORS.name, step="write_block", error="TapeUnavailable") == 1
    assert page.sum(metrics.CALL_ERRORS.name, server="lts", error="TapeUnavailable") == 1
    assert page.sum(metrics.VERIFICATION_FAILURES.name, step="verify_block") >= 1
    assert seen.last.sum(metrics.DATASETS.name, kind="archive", outcome="given_up", error="Damaged") == 1


def test_space_and_audit_are_shown(seen: Seen) -> None:
    free, used, wanted = (
        seen.last.sum(metrics.LTS_BYTES.name, part=part) for part in ("available", "used", "to_be_kept_free")
    )
    assert used >= sum(seen.stored.values())
    assert wanted == pytest.approx(0.2 * (free + used))  # pyright: ignore[reportUnknownMemberType]
    assert seen.last.sum(metrics.AUDIT_FINDINGS.name) == 0
    assert len(seen.last.all(metrics.AUDIT_FINDINGS.name)) == 6


def test_the_pages_have_every_metric_and_the_sdks_that_rules_name(seen: Seen) -> None:
    names = seen.last.names | seen.later.names
    histograms = {metric.name for metric in metrics.ALL if metric.kind is Kind.HISTOGRAM}
    wanted = {metric.name for metric in metrics.ALL} - histograms | {f"{name}_bucket" for name in histograms}
    assert wanted <= names
    # What has not happened yet is not shown by the SDK.
    unseen = {"temporal_workflow_task_execution_failed_total"}
    assert {f"{name}_bucket" if "latency" in name else name for name in metrics.SDK} - unseen <= names


# Traces


def test_one_trace_leads_from_the_request_to_the_lts(seen: Seen) -> None:
    spans = seen.spans
    archived = [
        span
        for span in spans.named("RunActivity:write_block")
        if {"temporalWorkflowID": f"archive-dataset/{seen.pid}"}.items()
        <= {attribute.key: attribute.value.string_value for attribute in span.attributes}.items()
    ]
    assert len(archived) == len(seen.stored)
    [trace] = {span.trace_id for span in archived}
    of_trace = [span for span in spans.by_id.values() if span.trace_id == trace]
    [root] = [span for span in of_trace if not span.parent_span_id]
    assert root.name == "POST /archiver/jobs"
    written = next(span for span in of_trace if span.name == "lts written")
    way = spans.ancestry(written)
    assert [name for name in way if name.startswith(("POST", "StartWorkflow", "RunActivity", "lts"))] == [
        "POST /archiver/jobs",
        "StartWorkflow:ArchiveJob",
        "RunActivity:join_datasets",
        "RunActivity:write_block",
        "lts written",
    ]
    names = {span.name for span in of_trace}
    assert {"RunWorkflow:ArchiveJob", "RunWorkflow:ArchiveDataset", "s3 read", "lts read", "scicat PATCH"} <= names
    assert "s3 PutObject" in names


def test_looks_for_the_metrics_are_no_traces(seen: Seen) -> None:
    roots = {span.name for span in seen.spans.by_id.values() if not span.parent_span_id}
    by_schedule = {f"RunActivity:{step}" for step in ("check_page", "close_report", "count_landing_zone")}
    assert roots - by_schedule == {"POST /archiver/jobs"}


# The log


def test_a_line_of_a_step_says_whose_it_is(seen: Seen) -> None:
    [line] = [line for line in seen.logs["worker-archival"] if line["logger"] == "activities"]
    assert line["step"] == "write_block"
    assert line["level"] == "warning"
    assert line["job_ids"] == [seen.damaged_job]
    assert line["pid"] == seen.damaged
    assert line["workflow_id"] == f"archive-dataset/{seen.damaged}"
    assert len(line["run_id"]) == 36
    assert line["attempt"] == "1"
    assert bytes.fromhex(line["trace_id"]) in {span.trace_id for span in seen.spans.named("POST /archiver/jobs")}


def test_a_line_of_a_workflow_says_whose_it_is(seen: Seen) -> None:
    lines = [line for line in seen.logs["worker-control"] if "is parked" in line["message"]]
    assert lines
    for line in lines:
        assert (line["pid"], line["job_ids"]) == (seen.damaged, [seen.damaged_job])
        assert line["trace_id"]


def test_the_apis_lines_name_the_job(seen: Seen) -> None:
    [line] = [line for line in seen.logs["api"] if line.get("job_ids") == [seen.job] and "runs" in line["message"]]
    assert bytes.fromhex(line["trace_id"]) in {span.trace_id for span in seen.spans.named("POST /archiver/jobs")}
