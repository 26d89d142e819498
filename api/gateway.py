"""The workflows as the API sees them: start a job once, ask where something stands, tell it what to do.

Nothing is kept here: every answer is the workflow's own, joined with what `describe` and the visibility store know.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import TemporalError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api.describing import (
    awaited,
    cut_off,
    dataset_with_steps,
    is_open,
    phase_of,
    steps_of,
    unanswered_dataset,
    unanswered_job,
)
from domain import names
from domain.lifecycle import JobType, Phase
from domain.orders import JobOrder
from domain.priority import urgency_of
from domain.progress import DatasetProgress, JobProgress
from domain.steering import JobList, JobSummary, Steered, Verb, dataset_refusal, job_refusal
from workflows import queues, search_attributes
from workflows.archive_job import ArchiveJob
from workflows.retrieve_job import RetrieveJob

_WORKFLOWS = {JobType.ARCHIVE: ArchiveJob, JobType.RETRIEVE: RetrieveJob}

_RPC = timedelta(seconds=5)
_QUERY = timedelta(seconds=3)

_UNANSWERED = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION)

_BAD_TOKEN = (RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.UNKNOWN)
"""What a list is answered with whose page token the server cannot read (1.32, observed)."""

POLLING = timedelta(seconds=90)
"""A worker asks for tasks at least each minute, and Temporal remembers for five when one last did (1.32, observed)."""

TASKS = {
    "workflow": TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    "activity": TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
}
"""What a task queue has, by what we call it."""

Handle = WorkflowHandle[Any, Any]
P = TypeVar("P", JobProgress, DatasetProgress)
T = TypeVar("T")


class OtherType(Exception):
    """The job id runs already, as a job of another type."""


class NoSuchPage(Exception):
    """The page token is none of ours."""


class OutOfReach(TemporalError):
    """Temporal cannot be connected to, or does not answer in time."""


class Gateway:
    """Holds the Temporal client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def start_job(self, order: JobOrder, *, within_s: float) -> str:
        """Start the job unless it was started before; return the run id of its first run either way.

        Args:
            order: the job.
            within_s: longest wait for Temporal.

        Raises:
            OtherType: the id was started as another type.
            RPCError, OutOfReach: Temporal does not answer.
        """
        workflow = _WORKFLOWS[order.type]
        workflow_id = names.job_workflow(order.job_id)
        async with reaching(within_s):
            with suppress(WorkflowAlreadyStartedError):
                await self._client.start_workflow(
                    workflow.__name__,
                    order,
                    id=workflow_id,
                    task_queue=queues.CONTROL,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    static_summary=f"{order.type.value} job {order.job_id}",
                    static_details=(
                        f"SciCat's {order.type.value} job `{order.job_id}`.\n\n"
                        "Signals: `pause` and `resume`, for all of its datasets. "
                        "Cancel ends the datasets that no other job waits for."
                    ),
                    # Whose job it is, is not known before it is read.
                    priority=Priority(priority_key=urgency_of(order.type)),
                    search_attributes=TypedSearchAttributes(
                        [
                            SearchAttributePair(search_attributes.SCICAT_JOB_ID, [order.job_id]),
                            SearchAttributePair(search_attributes.PHASE, Phase.PLANNING.value),
                        ]
                    ),
                )
            description = await self._client.get_workflow_handle(workflow_id).describe()
        if description.workflow_type != workflow.__name__:
            raise OtherType(f"job {order.job_id} was started as {description.workflow_type}")
        return description.raw_description.workflow_execution_info.first_run_id or description.run_id

    async def healthy(self) -> bool:
        """Whether Temporal answers."""
        return await self._client.service_client.check_health(timeout=_RPC)

    async def job(self, job_id: str) -> JobProgress | None:
        """Where a job stands, None if Temporal does not know it."""
        handle = self._client.get_workflow_handle(names.job_workflow(job_id))
        described = await describe(handle)
        if described is None:
            return None
        told = await _query(handle, JobProgress)
        if told is None:
            kind = JobType.ARCHIVE if described.workflow_type == ArchiveJob.__name__ else JobType.RETRIEVE
            told = unanswered_job(described, job_id, kind.value, await self._silence(described))
        told = told.model_copy(update={"steps": await steps_of(described, self._client.data_converter)})
        return await self._completed(told, described)

    async def jobs(
        self,
        *,
        phase: str = "",
        outcome: str = "",
        owner_group: str = "",
        running: bool | None = None,
        limit: int = 50,
        page: str = "",
    ) -> JobList:
        """The jobs that Temporal remembers, less those that the filters leave out; those that run come first.

        Raises:
            NoSuchPage: `page` was not in the answer to an earlier call.
        """
        wanted = [
            f"WorkflowType IN ({', '.join(_quoted(workflow.__name__) for workflow in _WORKFLOWS.values())})",
            # A job that went on in a fresh run is listed once.
            "ExecutionStatus != 'ContinuedAsNew'",
        ]
        wanted += [f"Phase = {_quoted(phase)}"] if phase else []
        wanted += [f"Outcome = {_quoted(outcome)}"] if outcome else []
        wanted += [f"OwnerGroup = {_quoted(owner_group)}"] if owner_group else []
        wanted += [] if running is None else [f"ExecutionStatus {'=' if running else '!='} 'Running'"]
        try:
            token = base64.urlsafe_b64decode(page.encode()) if page else None
        except (binascii.Error, ValueError) as error:
            raise NoSuchPage("no page of a list begins there") from error
        async with reaching():
            listed = self._client.list_workflows(
                " AND ".join(wanted), page_size=limit, next_page_token=token, rpc_timeout=_RPC
            )
            try:
                await listed.fetch_next_page()
            except RPCError as error:
                if token and error.status in _BAD_TOKEN:
                    raise NoSuchPage("no page of a list begins there") from error
                raise
        return JobList(
            jobs=tuple(map(_summary, listed.current_page or ())),
            next_page=base64.urlsafe_b64encode(listed.next_page_token or b"").decode(),
        )

    async def steer_job(self, job_id: str, verb: Verb) -> Steered | None:
        """Tell a job, which passes it on to its datasets; None if Temporal does not know it."""
        before = await self.job(job_id)
        if before is None:
            return None
        refused = job_refusal(before, verb) or await self._tell(before.workflow_id, verb, "")
        after = before if refused else await _afterwards(self.job(job_id), before) or before
        if verb is Verb.CANCEL and not (refused or after.cancelled):
            # It may have come to its end between the look and the word.
            refused = job_refusal(after, verb)
        return _steered(verb, {before.workflow_id: refused}).model_copy(update={"job": after})

    async def steer_dataset(self, pid: str, verb: Verb, by: str) -> Steered | None:
        """Tell every workflow of a dataset that runs; None if Temporal knows none.

        Args:
            pid: the dataset.
            verb: what to tell them.
            by: who says so, for `progress`; empty: an operator.
        """
        before = await self.dataset(pid)
        if not before:
            return None

        async def tell(shown: DatasetProgress) -> str:
            return dataset_refusal(shown, verb) or await self._tell(shown.workflow_id, verb, by)

        refused = dict(
            zip((shown.workflow_id for shown in before), await asyncio.gather(*map(tell, before)), strict=True)
        )
        after = before if all(refused.values()) else await _afterwards(self.dataset(pid), before)
        for shown in after:
            # It may have passed the commit point between the look and the word.
            if verb is Verb.CANCEL and shown.committed and not refused.get(shown.workflow_id):
                refused[shown.workflow_id] = dataset_refusal(shown, verb)
        return _steered(verb, refused).model_copy(update={"datasets": tuple(after)})

    async def _tell(self, workflow_id: str, verb: Verb, by: str) -> str:
        """Signal or cancel; return why it was not heard, empty if it was."""
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            if verb is Verb.CANCEL:
                await handle.cancel(reason=by, rpc_timeout=_RPC)
            else:
                args = [by] if verb is Verb.PAUSE and by else []
                await handle.signal(verb.value.replace("-", "_"), args=args, rpc_timeout=_RPC)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return "already ended: a moment ago"
        return ""

    async def dataset(self, pid: str) -> list[DatasetProgress]:
        """Where every workflow of a dataset stands that Temporal knows; those that run first, the later ones first."""
        ids = {names.archive_workflow(pid): "archive", names.retrieve_workflow(pid): "retrieve"}
        ids |= dict.fromkeys(await self._restoring(pid), "retrieve")
        found = await asyncio.gather(*(self._dataset(pid, kind, workflow_id) for workflow_id, kind in ids.items()))
        known = sorted(filter(None, found), key=lambda known: known[:2], reverse=True)
        standing = {shown.workflow_id: shown for _, _, shown in known}
        words = {workflow_id: shown.outcome or shown.phase for workflow_id, shown in standing.items()}
        return [
            shown.model_copy(update={"others": {other: word for other, word in words.items() if other != workflow_id}})
            for workflow_id, shown in standing.items()
        ]

    async def _restoring(self, pid: str) -> list[str]:
        """Workflows that restore single files of the dataset; each job has one of its own."""
        query = f"DatasetPid = {_quoted(pid)} AND ExecutionStatus = 'Running'"
        async with reaching():
            listed = self._client.list_workflows(query, limit=100, rpc_timeout=_RPC)
            return [run.id async for run in listed if run.id.startswith(names.restore_workflow(pid, ""))]

    async def _dataset(self, pid: str, kind: str, workflow_id: str) -> tuple[bool, datetime, DatasetProgress] | None:
        handle = self._client.get_workflow_handle(workflow_id)
        described = await describe(handle)
        if described is None:
            return None
        told = await _query(handle, DatasetProgress)
        if told is None:
            told = unanswered_dataset(described, pid, kind, await self._silence(described))
        steps = await steps_of(described, self._client.data_converter)
        shown = await self._completed(dataset_with_steps(told, steps, awaited(described)), described)
        return is_open(described), described.start_time, shown

    async def _completed(self, told: P, described: WorkflowExecutionDescription) -> P:
        """With its ids, with what nobody works on, and how it ended if it could not say so."""
        idle = sorted({step.queue for step in told.steps if step.state == "queued" and step.queue})
        # A worker with all of its slots taken does not ask for more, so nobody can tell it from one that is not there.
        unasked = [
            f"no worker takes steps from the queue {queue} now: none runs, or all of its slots are taken"
            for queue in idle
            if not await self._polled(queue, TASKS["activity"])
        ]
        notes = [told.note, cut_off(described), *unasked]
        return told.model_copy(
            update={
                "workflow_id": described.id,
                "run_id": described.run_id,
                "phase": told.phase if is_open(described) else Phase.DONE,
                "note": "; ".join(dict.fromkeys(filter(None, notes))),
            }
        )

    async def _silence(self, described: WorkflowExecutionDescription) -> str:
        """Why a workflow does not answer."""
        attempts = described.raw_description.pending_workflow_task.attempt
        if attempts > 1:
            return f"the workflow's own task fails, attempt {attempts}: the log of the control worker says why"
        if not await self._polled(described.task_queue, TASKS["workflow"]):
            return f"no worker polls the queue {described.task_queue}"
        return f"no worker answers on the queue {described.task_queue}, though one polled it lately"

    async def _polled(self, queue: str, kind: TaskQueueType.ValueType) -> bool:
        """Whether a worker asks for tasks of a queue."""
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
        )
        async with reaching():
            described = await self._client.workflow_service.describe_task_queue(request, timeout=_RPC)
        last = max((poller.last_access_time.ToDatetime(UTC) for poller in described.pollers), default=None)
        return last is not None and datetime.now(UTC) - last < POLLING


def _quoted(text: str) -> str:
    """A string of the visibility store's query language."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _summary(run: WorkflowExecution) -> JobSummary:
    attributes = run.typed_search_attributes
    return JobSummary(
        id=run.id.removeprefix(names.job_workflow("")),
        type=(JobType.ARCHIVE if run.workflow_type == ArchiveJob.__name__ else JobType.RETRIEVE).value,
        phase=phase_of(run),
        outcome=attributes.get(search_attributes.OUTCOME) or "",
        owner_group=attributes.get(search_attributes.OWNER_GROUP) or "",
        started=run.start_time.isoformat(timespec="seconds"),
        ended=run.close_time.isoformat(timespec="seconds") if run.close_time else "",
        workflow_id=run.id,
        run_id=run.run_id,
    )


def _steered(verb: Verb, refused: dict[str, str]) -> Steered:
    return Steered(
        verb=verb,
        acted=tuple(workflow_id for workflow_id, why in refused.items() if not why),
        left_alone={workflow_id: why for workflow_id, why in refused.items() if why},
    )


@asynccontextmanager
async def reaching(within_s: float | None = 10.0) -> AsyncGenerator[None]:
    """Give up on Temporal after so long, at once where there is nobody; None: go on for ever.

    The SDK says RuntimeError when its first call cannot connect, for which it has no time-out of its own: a machine
    that is switched off is waited for without end. Later calls are RPCErrors.
    """
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError as error:
        raise OutOfReach(f"no answer within {within_s:g} s") from error
    except RuntimeError as error:
        raise OutOfReach(str(error)) from error


async def _afterwards(ask: Awaitable[T], before: T) -> T:
    """Where things stand after a word; that was heard also if Temporal does not answer any more."""
    try:
        return await ask
    except (RPCError, TemporalError):
        return before


async def describe(handle: Handle) -> WorkflowExecutionDescription | None:
    """What Temporal says of a workflow's latest run, None if it knows none."""
    try:
        async with reaching():
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
