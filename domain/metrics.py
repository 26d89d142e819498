"""Every number that the service counts or measures: its name, labels, buckets and meaning.

Code, alert rules, dashboards and the page of metrics are held against this table. Names are as Prometheus knows them:
in base units, the unit at the end, counters with `_total`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus may do with a number."""

    COUNTER = "counter"
    """Only grows, from 0 at the process's start."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Flow(StrEnum):
    """The four ways that bulk bytes go."""

    S3_READ = "s3_read"
    LTS_WRITTEN = "lts_written"
    LTS_READ = "lts_read"
    S3_WRITTEN = "s3_written"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, or one for each value of its labels."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    source: str = "workers"
    """Which processes have it."""


_BRIEF_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_S = (1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600)

OLDER_THAN_HOURS = (0, 1, 6, 24, 72, 168)
"""Ages by which running retrievals are counted."""

BYTES = Metric(
    "scopemarchiver_bytes_total",
    Kind.COUNTER,
    "Bulk bytes of requests that succeeded, by way and by the step that moved them.",
    ("flow", "step"),
)
CHUNK_SECONDS = Metric(
    "scopemarchiver_chunk_seconds",
    Kind.HISTOGRAM,
    "Time of one bulk request: at most 16 MiB, or one part of an S3 upload, which waits for the LTS as well.",
    ("flow",),
    _BRIEF_S,
)
CALL_SECONDS = Metric(
    "scopemarchiver_call_seconds",
    Kind.HISTOGRAM,
    "Time of a request that moves no bulk bytes, to s3, lts, scicat or idp.",
    ("server", "method"),
    _BRIEF_S,
    source="API, workers",
)
CALL_ERRORS = Metric(
    "scopemarchiver_call_errors_total",
    Kind.COUNTER,
    "Requests, bulk ones too, that came to an error, by its class.",
    ("server", "error"),
    source="API, workers",
)
REQUEST_SECONDS = Metric(
    "scopemarchiver_request_seconds",
    Kind.HISTOGRAM,
    "Time of a request to the API.",
    ("method", "route", "status"),
    _BRIEF_S,
    source="API",
)
STEP_ERRORS = Metric(
    "scopemarchiver_step_errors_total",
    Kind.COUNTER,
    "Attempts of a step that failed, by the error's class; waits are none.",
    ("step", "error"),
)
DATABLOCKS = Metric(
    "scopemarchiver_datablocks_total",
    Kind.COUNTER,
    "Datablocks by what was done with them: written, verified, delivered, or restored in part.",
    ("outcome",),
)
VERIFICATION_FAILURES = Metric(
    "scopemarchiver_verification_failures_total",
    Kind.COUNTER,
    "Datablocks whose bytes on the LTS were not those that were written, or whose file was gone.",
    ("step",),
)
DATASETS = Metric(
    "scopemarchiver_datasets_total",
    Kind.COUNTER,
    "Datasets that came to an end, by how, and by the class of the error if there was one.",
    ("kind", "outcome", "error"),
)
RECALL_WAIT_SECONDS = Metric(
    "scopemarchiver_recall_wait_seconds",
    Kind.HISTOGRAM,
    "Time from the request for a datablock to its arrival from tape.",
    (),
    _LONG_S,
)
DATASETS_RUNNING = Metric(
    "scopemarchiver_datasets_running",
    Kind.GAUGE,
    "Datasets in work, by their phase; those that are parked wait for a person.",
    ("kind", "phase"),
    source="API",
)
RETRIEVALS_RECALLING = Metric(
    "scopemarchiver_retrievals_recalling",
    Kind.GAUGE,
    "Retrievals that wait for tape and were begun more than so many hours ago.",
    ("older_than_hours",),
    source="API",
)
QUEUE_BACKLOG = Metric(
    "scopemarchiver_queue_backlog",
    Kind.GAUGE,
    "Tasks that no worker has taken yet, as Temporal estimates.",
    ("queue", "task"),
    source="API",
)
QUEUE_BACKLOG_AGE_SECONDS = Metric(
    "scopemarchiver_queue_backlog_age_seconds",
    Kind.GAUGE,
    "Age of the oldest of them.",
    ("queue", "task"),
    source="API",
)
QUEUE_POLLERS = Metric(
    "scopemarchiver_queue_pollers",
    Kind.GAUGE,
    "Workers that asked for tasks within the last 90 s; one with all of its slots taken does not ask.",
    ("queue", "task"),
    source="API",
)
LANDING_ZONE_BYTES = Metric(
    "scopemarchiver_landing_zone_bytes",
    Kind.GAUGE,
    "Room in the landing zone: promised to uploads, there without a promise, and allowed in all.",
    ("part",),
    source="API",
)
AUDIT_FINDINGS = Metric(
    "scopemarchiver_audit_findings",
    Kind.GAUGE,
    "What the last consistency report found, by kind.",
    ("kind",),
    source="API",
)
AUDIT_TIMESTAMP_SECONDS = Metric(
    "scopemarchiver_audit_timestamp_seconds",
    Kind.GAUGE,
    "When the last consistency report was finished, in s since the epoch.",
    source="API",
)
LTS_BYTES = Metric(
    "scopemarchiver_lts_bytes",
    Kind.GAUGE,
    "Space on the LTS: available, used, and to be kept free (LTS_FREE_SPACE_PERCENTAGE).",
    ("part",),
    source="worker on control",
)
LOOKED_TIMESTAMP_SECONDS = Metric(
    "scopemarchiver_looked_timestamp_seconds",
    Kind.GAUGE,
    "When the gauges of a part were last brought up to date, in s since the epoch.",
    ("part",),
    source="API, worker on control",
)

ALL = tuple(metric for metric in dict(globals()).values() if isinstance(metric, Metric))

SDK = {
    "temporal_worker_task_slots_used": "Steps that a worker carries out now, by `task_queue` and `worker_type`.",
    "temporal_worker_task_slots_available": "Those that it could carry out besides.",
    "temporal_request_failure_total": "Requests to Temporal that failed, by `operation`.",
    "temporal_request_latency": "Histogram: time of a request to Temporal, in s, by `operation`.",
    "temporal_workflow_task_execution_failed_total": "Workflow tasks that failed: a bug, by `workflow_type`.",
}
"""Those of the numbers of Temporal's SDK that alert rules and dashboards use."""
