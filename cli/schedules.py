"""Temporal Schedules of the service: made by `scopemarchiver setup`, and changed by it when the settings have changed.

Whether a Schedule is paused, and why, is an operator's affair: that is kept.
"""

from datetime import timedelta

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.common import Priority
from temporalio.service import RPCError, RPCStatusCode

from activities.expiring import SweepUploads
from domain.message import Message
from domain.priority import Urgency
from settings import Settings
from workflows import queues
from workflows.upkeep import ConsistencyReport, ExpireRetrieved, Expiry, ReconcileLandingZone, Reporting, SweepRetrieved

EXPIRE, SWEEP, REPORT = "expire-retrieved", "sweep-retrieved", "consistency-report"
RECONCILE = "reconcile-landing-zone"

_CATCH_UP = timedelta(minutes=10)
"""What the server missed for longer is not made up for: the next one does all of it."""


async def prepare_schedules(client: Client, settings: Settings) -> list[str]:
    """Make the Schedules that are missing, and change those that differ from the settings; a sentence each."""
    done: list[str] = []
    for schedule_id, wanted in _schedules(settings).items():
        handle = client.get_schedule_handle(schedule_id)
        if not await _exists(handle):
            try:
                await client.create_schedule(schedule_id, wanted)
                done.append(f"Made the schedule {schedule_id}.")
                continue
            except ScheduleAlreadyRunningError:
                pass  # made by somebody else meanwhile
        if await _essence(client, (await handle.describe()).schedule) != await _essence(client, wanted):
            await handle.update(lambda found, wanted=wanted: _with_its_state(found, wanted))
            done.append(f"Changed the schedule {schedule_id}.")
    return done


def _schedules(settings: Settings) -> dict[str, Schedule]:
    often = timedelta(hours=settings.expiry_interval_hours)
    old = settings.abandoned_upload_hours * 3600
    return {
        EXPIRE: _schedule(EXPIRE, ExpireRetrieved, Expiry(), often),
        SWEEP: _schedule(SWEEP, SweepRetrieved, SweepUploads(older_than_s=old), often),
        RECONCILE: _schedule(RECONCILE, ReconcileLandingZone, None, timedelta(hours=settings.reconcile_interval_hours)),
        REPORT: _schedule(REPORT, ConsistencyReport, Reporting(), timedelta(hours=settings.consistency_interval_hours)),
    }


def _schedule(schedule_id: str, workflow: type, order: Message | None, every: timedelta) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            workflow.__name__,
            args=[] if order is None else [order],
            id=schedule_id,
            task_queue=queues.CONTROL,
            priority=Priority(priority_key=Urgency.UPKEEP),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCH_UP),
    )


async def _exists(handle: ScheduleHandle) -> bool:
    try:
        await handle.describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True


async def _essence(client: Client, schedule: Schedule) -> object:
    """What has to be as the settings say."""
    action = schedule.action
    if not isinstance(action, ScheduleActionStartWorkflow):
        return None
    args = [arg if isinstance(arg, Payload) else (await client.data_converter.encode([arg]))[0] for arg in action.args]
    return (
        *(action.workflow, action.task_queue, [arg.data for arg in args], action.priority),
        *(schedule.spec.intervals, schedule.policy),
    )


def _with_its_state(found: ScheduleUpdateInput, wanted: Schedule) -> ScheduleUpdate:
    wanted.state = found.description.schedule.state
    return ScheduleUpdate(schedule=wanted)
