"""What happened in the workflows of a job, by Temporal's own clock: for the gaps between steps, and the bulk part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.table import Table
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

_BULK = ("write_block", "verify_block", "copy_block", "restore_files")
_PREFIX = "EVENT_TYPE_"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a workflow's history."""

    at_s: float
    """Since the job was posted."""
    workflow: str
    kind: str
    """Such as `ACTIVITY_TASK_STARTED`."""
    subject: str = ""
    """The activity or signal."""
    attempt: int = 0


async def read_events(client: Client, workflows: Mapping[str, str], began: datetime) -> list[Event]:
    """The events of these workflows' last runs, put in order; `workflows` is id by a name to show."""
    events: list[Event] = []
    for name, workflow_id in workflows.items():
        activities: dict[int, str] = {}
        async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
            subject, attempt = "", 0
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                subject = event.activity_task_scheduled_event_attributes.activity_type.name
                activities[event.event_id] = subject
            elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                started = event.activity_task_started_event_attributes
                subject, attempt = activities[started.scheduled_event_id], started.attempt
            elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                subject = activities[event.activity_task_completed_event_attributes.scheduled_event_id]
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                subject = event.workflow_execution_signaled_event_attributes.signal_name
            at_s = event.event_time.ToNanoseconds() / 1e9 - began.timestamp()
            kind = EventType.Name(event.event_type).removeprefix(_PREFIX)
            events.append(Event(at_s, name, kind, subject, attempt))
    return sorted(events, key=lambda event: event.at_s)


def bulk_span_s(events: Sequence[Event]) -> float:
    """From the first start of an activity that moves bulk bytes to the last end of one; 0 if there was none."""
    bulk = [event for event in events if event.subject in _BULK]
    starts = [event.at_s for event in bulk if event.kind == "ACTIVITY_TASK_STARTED"]
    ends = [event.at_s for event in bulk if event.kind == "ACTIVITY_TASK_COMPLETED"]
    return max(ends) - min(starts) if starts and ends else 0.0


def timeline(events: Sequence[Event], seconds: float) -> Table:
    """Every event with the milliseconds since the one before: where nothing happens, somebody waits."""
    table = Table(title=f"From the POST to the end: {seconds * 1000:,.0f} ms", title_justify="left")
    for column, justify in (("at ms", "right"), ("+ ms", "right"), ("workflow", "left"), ("event", "left")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("of")
    before = 0.0
    for event in events:
        again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
        cells = (event.workflow, event.kind.lower().replace("_", " "), event.subject + again)
        table.add_row(f"{event.at_s * 1000:,.0f}", f"{(event.at_s - before) * 1000:,.0f}", *cells)
        before = event.at_s
    return table


def by_step(events: Sequence[Event]) -> Table:
    """Per activity: how long it waited for a worker, how long it ran; and what workflow tasks took between them."""
    table = Table(title="By step", title_justify="left")
    table.add_column("step")
    for column in ("times", "waited ms", "ran ms"):
        table.add_column(column, justify="right")
    steps: dict[str, list[float]] = {}
    scheduled: dict[tuple[str, str], list[float]] = {}
    started: dict[tuple[str, str], list[float]] = {}
    tasks: dict[str, float] = {}
    for event in events:
        key = (event.workflow, event.subject)
        if event.kind == "ACTIVITY_TASK_SCHEDULED":
            scheduled.setdefault(key, []).append(event.at_s)
        elif event.kind == "ACTIVITY_TASK_STARTED" and scheduled.get(key):
            step = steps.setdefault(f"{event.workflow}: {event.subject}", [0, 0.0, 0.0])
            step[0] += 1
            step[1] += event.at_s - scheduled[key].pop(0)
            started.setdefault(key, []).append(event.at_s)
        elif event.kind == "ACTIVITY_TASK_COMPLETED" and started.get(key):
            steps[f"{event.workflow}: {event.subject}"][2] += event.at_s - started[key].pop(0)
        elif event.kind in ("WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED"):
            tasks[f"{event.workflow}/{event.kind}"] = event.at_s
            if event.kind.endswith("STARTED"):
                step = steps.setdefault(f"{event.workflow}: (workflow tasks)", [0, 0.0, 0.0])
                step[0] += 1
                step[1] += event.at_s - tasks.get(f"{event.workflow}/WORKFLOW_TASK_SCHEDULED", event.at_s)
        elif event.kind == "WORKFLOW_TASK_COMPLETED":
            begun = tasks.get(f"{event.workflow}/WORKFLOW_TASK_STARTED", event.at_s)
            steps[f"{event.workflow}: (workflow tasks)"][2] += event.at_s - begun
    for name, (times, waited, ran) in steps.items():
        table.add_row(name, f"{times:.0f}", f"{waited * 1000:,.0f}", f"{ran * 1000:,.0f}")
    return table
