"""The workflows as the API sees them: start a job once, ask where something stands.

A workflow cannot see the heartbeats of its activities, so an answer is the query merged with `describe`.
"""

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import TemporalError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from domain import names
from domain.lifecycle import JobType, Phase
from domain.orders import JobOrder
from domain.progress import BlockProgress, DatasetProgress, JobProgress, Moved
from workflows import queues, search_attributes
from workflows.archive_job import ArchiveJob
from workflows.retrieve_job import RetrieveJob

_WORKFLOWS = {JobType.ARCHIVE: ArchiveJob, JobType.RETRIEVE: RetrieveJob}

_RPC = timedelta(seconds=5)
_QUERY = timedelta(seconds=3)

_UNANSWERED = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION)

NOT_YET = "NotYet"
"""Type of the failure with which a poll says that its time has not come."""

Handle = WorkflowHandle[Any, Any]
P = TypeVar("P", JobProgress, DatasetProgress)


class OtherType(Exception):
    """The job id runs already, as a job of another type."""


class OutOfReach(TemporalError):
    """Temporal did not answer the first call of a client that connects when it is needed."""


class Gateway:
    """Holds the Temporal client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def start_job(self, order: JobOrder) -> str:
        """Start the job unless it was started before; return the run id of its first run either way.

        Raises:
            OtherType: the id was started as another type.
            RPCError, OutOfReach: Temporal does not answer.
        """
        workflow = _WORKFLOWS[order.type]
        workflow_id = names.job_workflow(order.job_id)
        with suppress(WorkflowAlreadyStartedError), _reaching():
            await self._client.start_workflow(
                workflow.__name__,
                order,
                id=workflow_id,
                task_queue=queues.CONTROL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"{order.type.value} job {order.job_id}",
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(search_attributes.SCICAT_JOB_ID, [order.job_id]),
                        SearchAttributePair(search_attributes.PHASE, Phase.PLANNING.value),
                    ]
                ),
                rpc_timeout=_RPC,
            )
        description = await self._client.get_workflow_handle(workflow_id).describe(rpc_timeout=_RPC)
        if description.workflow_type != workflow.__name__:
            raise OtherType(f"job {order.job_id} was started as {description.workflow_type}")
        return description.raw_description.workflow_execution_info.first_run_id or description.run_id

    async def healthy(self) -> bool:
        """Whether Temporal answers."""
        return await self._client.service_client.check_health(timeout=_RPC)

    async def job(self, job_id: str) -> JobProgress | None:
        """Where a job stands, None if Temporal does not know it."""
        handle = self._client.get_workflow_handle(names.job_workflow(job_id))
        described = await _describe(handle)
        if described is None:
            return None
        told = await _query(handle, JobProgress)
        if told is None:
            kind = JobType.ARCHIVE if described.workflow_type == ArchiveJob.__name__ else JobType.RETRIEVE
            told = JobProgress.model_validate({"id": job_id, "type": kind.value, **_without_query(described)})
        failing = [a for a in described.raw_description.pending_activities if a.last_failure.message]
        notes = [
            told.note,
            *(
                f"{a.activity_type.name}, attempt {a.attempt}: {a.last_failure.message}"
                for a in failing
                if a.last_failure.application_failure_info.type != NOT_YET
            ),
        ]
        return told.model_copy(
            update={"workflow_id": described.id, "run_id": described.run_id, "note": "; ".join(filter(None, notes))}
        )

    async def dataset(self, pid: str) -> list[DatasetProgress]:
        """Where the archive and the retrieval of a dataset stand, whichever Temporal knows; the later one first."""
        ids = {"archive": names.archive_workflow(pid), "retrieve": names.retrieve_workflow(pid)}
        found = await asyncio.gather(*(self._dataset(pid, kind, workflow_id) for kind, workflow_id in ids.items()))
        known = [pair for pair in found if pair is not None]
        return [progress for _, progress in sorted(known, key=lambda pair: pair[0], reverse=True)]

    async def _dataset(self, pid: str, kind: str, workflow_id: str) -> tuple[str, DatasetProgress] | None:
        handle = self._client.get_workflow_handle(workflow_id)
        described = await _describe(handle)
        if described is None:
            return None
        told = await _query(handle, DatasetProgress)
        if told is None:
            told = DatasetProgress.model_validate({"pid": pid, "kind": kind, **_without_query(described)})
        return described.start_time.isoformat(), await self._merge(told, described)

    async def _merge(self, told: DatasetProgress, described: WorkflowExecutionDescription) -> DatasetProgress:
        """Add what only `describe` knows: bytes moved, attempts, the last error of each running activity."""
        blocks = {block.index: block for block in told.blocks}
        waiting_for, note = told.waiting_for, told.note
        for pending in described.raw_description.pending_activities:
            failure = pending.last_failure.message
            moved = await self._moved(pending.heartbeat_details.payloads)
            if moved and moved.index in blocks:
                block = blocks[moved.index]
                blocks[moved.index] = block.model_copy(
                    update={"bytes_done": moved.bytes_done, "attempt": pending.attempt, "last_error": failure}
                )
            elif pending.last_failure.application_failure_info.type == NOT_YET:
                waiting_for = failure
            elif failure:
                note = f"{pending.activity_type.name}, attempt {pending.attempt}: {failure}"
        merged = tuple(blocks[block.index] for block in told.blocks)
        return told.model_copy(
            update={
                "blocks": merged,
                "bytes_done": told.bytes_done + _gain(told.blocks, merged),
                "waiting_for": waiting_for,
                "note": note,
            }
        )

    async def _moved(self, payloads: Sequence[Payload]) -> Moved | None:
        details = await self._client.data_converter.decode(payloads, [Moved]) if payloads else []
        return details[0] if details and isinstance(details[0], Moved) else None


def _gain(before: tuple[BlockProgress, ...], after: tuple[BlockProgress, ...]) -> int:
    return sum(new.bytes_done - old.bytes_done for old, new in zip(before, after, strict=True))


@contextmanager
def _reaching() -> Generator[None]:
    """The SDK says RuntimeError when its first call cannot connect, and RPCError for every later one."""
    try:
        yield
    except RuntimeError as error:
        raise OutOfReach(str(error)) from error


async def _describe(handle: Handle) -> WorkflowExecutionDescription | None:
    try:
        with _reaching():
            return await handle.describe(rpc_timeout=_RPC)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _query(handle: Handle, model: type[P]) -> P | None:
    """Ask the workflow, None if no worker answers in time."""
    try:
        return await handle.query("progress", result_type=model, rpc_timeout=_QUERY)
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError):
        return None
    except RPCError as error:
        if error.status in _UNANSWERED:
            return None
        raise


def _without_query(described: WorkflowExecutionDescription) -> dict[str, object]:
    """What can be said of a workflow that cannot be asked."""
    running = described.status is WorkflowExecutionStatus.RUNNING
    shown = described.typed_search_attributes.get(search_attributes.PHASE)
    ended = described.status.name.lower() if described.status else "closed"
    attempts = described.raw_description.pending_workflow_task.attempt
    silent = f"no worker polls the queue {queues.CONTROL}"
    if attempts > 1:
        silent = f"the workflow's own task fails, attempt {attempts}: the log of the control worker says why"
    return {
        "phase": Phase(shown) if shown and running else Phase.DONE if not running else Phase.PLANNING,
        "note": silent if running else f"the workflow is {ended}",
    }
