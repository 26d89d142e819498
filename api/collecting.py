"""What waits, for the metrics: asked of Temporal and of the state bucket every so often, never by a scrape.

It stands in the API since that answers whether there are workers or not. Each part is looked at for itself: where one
does not answer, the others are still brought up to date, and `scopemarchiver_looked_timestamp_seconds` tells.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.exceptions import TemporalError
from temporalio.service import RPCError

from api.gateway import POLLING, TASKS, reaching
from clients import telemetry
from clients.s3 import ObjectStore
from domain import metrics, names
from domain.consistency import Inconsistency, Report
from domain.errors import ArchiverError
from domain.lifecycle import Phase
from domain.progress import LandingZoneProgress
from domain.reservations import allowed
from settings import Settings
from workflows import queues

_log = logging.getLogger("api")

_RPC = timedelta(seconds=5)
_LOOK_S = 30.0

_AWAY = (RPCError, TemporalError, ArchiverError)

_PHASES = {
    "archive": (
        "ArchiveDataset",
        [phase for phase in Phase if phase not in (Phase.RECALLING, Phase.COPYING, Phase.DONE)],
    ),
    "retrieve": (
        "RetrieveDataset",
        [Phase.PLANNING, Phase.RECALLING, Phase.COPYING, Phase.PAUSED, Phase.PARKED],
    ),
}
"""Kind → workflow type, and the phases that it knows."""


class Collector:
    """Looks, and shows what it has seen."""

    def __init__(self, client: Client, objects: ObjectStore, settings: Settings) -> None:
        """Look at nothing yet.

        Args:
            client: of Temporal; one without tracing, or each look would be a trace.
            objects: the object store.
            settings: of the process.
        """
        self._client, self._objects, self._settings = client, objects, settings
        self._report_etag = ""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "datasets": self._datasets,
            "queues": self._queues,
            "landing_zone": self._landing_zone,
            "audit": self._audit,
        }
        while True:
            for part, look in parts.items():
                try:
                    async with reaching(_LOOK_S):
                        await look()
                except _AWAY as error:
                    _log.info("the metrics of %s are not brought up to date: %s", part, error)
                except Exception:
                    # Nobody awaits us: whatever it is, the other parts go on, and the alert for stale metrics comes.
                    _log.exception("the metrics of %s are not brought up to date", part)
                else:
                    telemetry.show(metrics.LOOKED_TIMESTAMP_SECONDS, time.time(), part=part)
            await asyncio.sleep(self._settings.metrics_interval_s)

    async def _datasets(self) -> None:
        for kind, (workflow, phases) in _PHASES.items():
            for phase in phases:
                found = await self._count(f"WorkflowType = '{workflow}' AND Phase = '{phase.value}'")
                telemetry.show(metrics.DATASETS_RUNNING, found, kind=kind, phase=phase.value)
        now = datetime.now(UTC)
        for hours in metrics.OLDER_THAN_HOURS:
            before = (now - timedelta(hours=hours)).isoformat(timespec="seconds")
            found = await self._count(
                f"WorkflowType = 'RetrieveDataset' AND Phase = '{Phase.RECALLING.value}' AND StartTime <= '{before}'"
            )
            telemetry.show(metrics.RETRIEVALS_RECALLING, found, older_than_hours=str(hours))

    async def _count(self, query: str) -> int:
        counted = await self._client.count_workflows(f"{query} AND ExecutionStatus = 'Running'", rpc_timeout=_RPC)
        return counted.count

    async def _queues(self) -> None:
        for queue in queues.ALL:
            for task, kind in TASKS.items():
                if task == "workflow" and queue != queues.CONTROL:
                    continue
                described = await self._client.workflow_service.describe_task_queue(
                    DescribeTaskQueueRequest(
                        namespace=self._client.namespace,
                        task_queue=TaskQueue(name=queue),
                        task_queue_type=kind,
                        report_stats=True,
                    ),
                    timeout=_RPC,
                )
                now = datetime.now(UTC)
                asking = [p for p in described.pollers if now - p.last_access_time.ToDatetime(UTC) < POLLING]
                age = described.stats.approximate_backlog_age.ToTimedelta().total_seconds()
                labels = {"queue": queue, "task": task}
                telemetry.show(metrics.QUEUE_BACKLOG, described.stats.approximate_backlog_count, **labels)
                telemetry.show(metrics.QUEUE_BACKLOG_AGE_SECONDS, max(0.0, age), **labels)
                telemetry.show(metrics.QUEUE_POLLERS, len(asking), **labels)

    async def _landing_zone(self) -> None:
        handle = self._client.get_workflow_handle(names.LANDING_ZONE)
        progress = await handle.query("progress", result_type=LandingZoneProgress, rpc_timeout=_RPC)
        total_tb, factor = self._settings.s3_total_landing_space_tb, self._settings.free_space_factor
        promised = progress.taken_bytes - progress.others_bytes
        telemetry.show(metrics.LANDING_ZONE_BYTES, promised, part="promised")
        telemetry.show(metrics.LANDING_ZONE_BYTES, progress.others_bytes, part="others")
        telemetry.show(metrics.LANDING_ZONE_BYTES, allowed(total_tb, factor), part="allowed")

    async def _audit(self) -> None:
        """The report may have thousands of findings: it is read when there is another one."""
        bucket = self._settings.s3_state_bucket
        data, etag = await self._objects.get_unless(bucket, names.LATEST_REPORT, self._report_etag)
        if data is None:
            return
        report = Report.model_validate_json(data)
        for kind in Inconsistency:
            telemetry.show(metrics.AUDIT_FINDINGS, report.counts.get(kind, 0), kind=kind.value)
        finished = datetime.fromisoformat(report.finished).timestamp()
        telemetry.show(metrics.AUDIT_TIMESTAMP_SECONDS, finished)
        self._report_etag = etag
