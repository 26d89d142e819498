"""What only Temporal's `describe` knows of a workflow, joined with what the workflow says of itself.

A workflow never sees the heartbeats, attempts and failures of its activities, and while no worker polls its queue it
says nothing at all.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.converter import DataConverter

from domain.lifecycle import Phase
from domain.outcome import bounded
from domain.progress import SHOWN, BlockProgress, DatasetProgress, JobProgress, Moved, StepProgress
from workflows import search_attributes

NOT_YET = "NotYet"
"""Type of the failure with which a poll says that its time has not come."""

_STATES = {
    PendingActivityState.PENDING_ACTIVITY_STATE_STARTED: "running",
    PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED: "stopping",
}


async def steps_of(described: WorkflowExecutionDescription, converter: DataConverter) -> tuple[StepProgress, ...]:
    """The workflow's pending activities."""
    pending = described.raw_description.pending_activities[:SHOWN]
    return tuple([_step(each, await _moved(each, converter)) for each in pending])


def _step(pending: PendingActivityInfo, moved: Moved) -> StepProgress:
    state = _STATES.get(pending.state, "queued")
    since = pending.last_started_time if state != "queued" else pending.scheduled_time
    following = ""
    if state == "queued" and pending.next_attempt_schedule_time.ToDatetime(UTC) > datetime.now(UTC):
        state, since = "waiting", pending.last_attempt_complete_time
        following = _moment(pending.next_attempt_schedule_time)
    failure = pending.last_failure
    kind = failure.application_failure_info.type
    return StepProgress(
        name=pending.activity_type.name,
        queue=pending.activity_options.task_queue.name,
        state=state,
        since=_moment(since),
        attempt=pending.attempt,
        next_attempt=following,
        last_error="" if kind == NOT_YET else bounded(": ".join(filter(None, (kind, failure.message)))),
        block=moved.index,
        bytes_done=moved.bytes_done,
        bytes_total=moved.bytes_total,
    )


async def _moved(pending: PendingActivityInfo, converter: DataConverter) -> Moved:
    payloads = pending.heartbeat_details.payloads
    details: Sequence[object] = await converter.decode(payloads, [Moved]) if payloads else []
    return details[0] if details and isinstance(details[0], Moved) else Moved()


def _moment(at: Timestamp) -> str:
    return at.ToDatetime(UTC).isoformat(timespec="seconds") if at.seconds else ""


def awaited(described: WorkflowExecutionDescription) -> str:
    """What a poll of the workflow waits for; empty if none does."""
    failures = (pending.last_failure for pending in described.raw_description.pending_activities)
    return next((f.message for f in failures if f.application_failure_info.type == NOT_YET), "")


def dataset_with_steps(told: DatasetProgress, steps: Sequence[StepProgress], waiting_for: str) -> DatasetProgress:
    """Add bytes moved, attempts and errors to the datablocks, and what a poll waits for."""
    moving = {step.block: step for step in steps if step.block}
    before = told.blocks or tuple(BlockProgress(index=index, state="moving") for index in sorted(moving))
    blocks = tuple(_block(block, moving.get(block.index)) for block in before)
    gained = sum(new.bytes_done for new in blocks) - sum(old.bytes_done for old in before)
    # Why it is parked or paused counts for more than what a poll that is left says.
    waits = bool(waiting_for) and told.phase not in (Phase.PARKED, Phase.PAUSED, Phase.DONE)
    return told.model_copy(
        update={
            "steps": tuple(steps),
            "blocks": blocks,
            "bytes_done": told.bytes_done + gained,
            "waiting_for": waiting_for if waits else told.waiting_for,
            "waiting_since": told.waiting_since or (told.since if waits else ""),
        }
    )


def _block(block: BlockProgress, step: StepProgress | None) -> BlockProgress:
    if step is None:
        return block
    return block.model_copy(
        update={
            # What is read back was written in full before: the count of bytes done never falls.
            "bytes_done": max(block.bytes_done, step.bytes_done),
            "bytes_total": block.bytes_total or step.bytes_total,
            "attempt": step.attempt,
            "last_error": step.last_error,
        }
    )


def unanswered_dataset(described: WorkflowExecutionDescription, pid: str, kind: str, why: str) -> DatasetProgress:
    """What can be said of a dataset whose workflow does not answer."""
    attributes = described.typed_search_attributes
    return DatasetProgress(
        pid=pid,
        kind=kind,
        phase=phase_of(described),
        bytes_total=attributes.get(search_attributes.TOTAL_BYTES) or 0,
        jobs=tuple(f"job/{job}" for job in attributes.get(search_attributes.SCICAT_JOB_ID) or ()),
        outcome=attributes.get(search_attributes.OUTCOME),  # pyright: ignore[reportArgumentType] - checked by the model
        note=why,
    )


def unanswered_job(described: WorkflowExecutionDescription, job_id: str, kind: str, why: str) -> JobProgress:
    """What can be said of a job whose workflow does not answer."""
    return JobProgress(
        id=job_id,
        type=kind,
        phase=phase_of(described),
        status=described.typed_search_attributes.get(search_attributes.OUTCOME) or "",
        note=why,
    )


def phase_of(described: WorkflowExecution) -> Phase:
    """The phase by the search attribute; whatever is closed is done."""
    if not is_open(described):
        return Phase.DONE
    return Phase(described.typed_search_attributes.get(search_attributes.PHASE) or Phase.PLANNING)


def is_open(described: WorkflowExecution) -> bool:
    """Whether the workflow has not ended."""
    return described.status is WorkflowExecutionStatus.RUNNING


def cut_off(described: WorkflowExecution) -> str:
    """How a workflow ended that did not come to its own end, e.g. `terminated`; empty if it did, or runs."""
    if described.status in (None, WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.COMPLETED):
        return ""
    return f"the workflow was cut off: {described.status.name.lower().replace('_', ' ')}"
