"""An interceptor by which everything that a step counts and logs says whose it is.

An activity knows its workflow, and so its dataset, but not the jobs that the dataset is for. Where logs are for
machines the workflow hands them on in a header; no decision of a workflow depends on it, so it changes no replay.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from temporalio import activity, workflow
from temporalio.converter import PayloadConverter
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    StartActivityInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from clients import telemetry
from domain import names
from workflows.dataset import DatasetWorkflow

_HEADER = "scicat-jobs"
_SHOWN = 5
"""Jobs of one dataset that a line of the log names."""

_converter = PayloadConverter.default
_jobs: ContextVar[tuple[str, ...]] = ContextVar("jobs", default=())


class Naming(Interceptor):
    """Says which step runs; and, if told to, for which jobs."""

    def __init__(self, *, jobs: bool) -> None:
        """Decide whether workflows hand their jobs on."""
        self._jobs = jobs

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activities of a worker."""
        return _Named(next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> "type[_HandingOn] | None":  # noqa: A002
        """Wrap the workflows of a worker."""
        return _HandingOn if self._jobs else None


class _Named(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        telemetry.step.set(activity.info().activity_type)
        if payload := input.headers.get(_HEADER):
            _jobs.set(tuple(_converter.from_payload(payload)))
        return await super().execute_activity(input)


class _HandingOn(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        input.headers = _with_jobs(input.headers)
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        input.headers = _with_jobs(input.headers)
        return super().start_local_activity(input)


def _with_jobs(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    jobs = _waiting_jobs()
    return {**headers, _HEADER: _converter.to_payload(jobs)} if jobs else headers


def _waiting_jobs() -> list[str]:
    """The jobs that the running workflow works for, if it is a dataset's."""
    instance = workflow.instance()
    subscribers = instance.subscribers if isinstance(instance, DatasetWorkflow) else ()
    return sorted({subscriber.job_id for subscriber in subscribers})[:_SHOWN]


def facts() -> Mapping[str, str | list[str]]:
    """Whose work is being done now, for a line of the log."""
    if activity.in_activity():
        info = activity.info()
        workflow_id, run_id, jobs = info.workflow_id or "", info.workflow_run_id or "", [*_jobs.get()]
        step, attempt = info.activity_type, str(info.attempt)
    elif workflow.in_workflow():
        running = workflow.info()
        workflow_id, run_id, jobs, step, attempt = running.workflow_id, running.run_id, _waiting_jobs(), "", ""
    else:
        return {"trace_id": telemetry.trace_id()}
    job, pid = names.belongs_to(workflow_id)
    return {
        "job_ids": [job] if job else jobs,
        "pid": pid,
        "workflow_id": workflow_id,
        "run_id": run_id,
        "step": step,
        "attempt": attempt,
        "trace_id": telemetry.trace_id(),
    }
