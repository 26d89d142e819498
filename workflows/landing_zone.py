"""Who may upload how much: the one workflow that promises room in the landing zone, one request at a time.

It does nothing else, so a promise takes a few milliseconds. One that was terminated comes back with the next request,
with the promises that the running uploads know of and what lies in the landing zone.
"""

from typing import Any

from temporalio import workflow
from temporalio.common import Priority, WorkflowIDConflictPolicy

from workflows import queues

with workflow.unsafe.imports_passed_through():
    from activities.uploading import CountLandingZone, UploadActivities
    from domain import names
    from domain.orders import Timing
    from domain.priority import Urgency
    from domain.progress import SHOWN, LandingZoneProgress, landing_zone_details
    from domain.reservations import Counted, Reservations
    from domain.uploads import LandingZoneOrder, ReleaseSpace, Reserved, ReserveSpace
    from workflows.policies import Policies


START: dict[str, Any] = {
    "id": names.LANDING_ZONE,
    "task_queue": queues.CONTROL,
    "priority": Priority(priority_key=Urgency.RETRIEVE),
    "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
    "static_summary": "who may upload how much",
    "static_details": "Promises room in the landing zone to uploads, one request at a time. Its query is `progress`.",
}
"""How it is started by whoever finds it missing."""


@workflow.defn
class LandingZone:
    """Runs for ever, in one run after another."""

    @workflow.init
    def __init__(self, order: LandingZoneOrder) -> None:
        self._reservations = order.reservations or Reservations()
        self._counted = order.reservations is not None
        self._show()

    @workflow.run
    async def run(self, order: LandingZoneOrder) -> None:
        """Count what is there, then admit."""
        if not self._counted:
            self._reservations = self._reservations.reconciled(
                await workflow.execute_activity_method(
                    UploadActivities.count_landing_zone,
                    CountLandingZone(since=workflow.now()),
                    **Policies(Timing()).endless(),
                )
            )
            self._counted = True
            self._show()
        await workflow.wait_condition(
            lambda: workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished()
        )
        workflow.continue_as_new(LandingZoneOrder(reservations=self._reservations))

    @workflow.update
    async def reserve(self, wish: ReserveSpace) -> Reserved:
        """Promise room if there is some; asking again for the same dataset renews its promise."""
        await self._known()
        after = self._reservations.requested(
            wish.pid, wish.bytes, wish.limit_bytes, ticket=wish.ticket, now=workflow.now()
        )
        if after is not None:
            self._reservations = after
            self._show()
        return Reserved(granted=after is not None, taken_bytes=self._reservations.bytes)

    @workflow.signal
    async def release(self, given_back: ReleaseSpace) -> None:
        """A dataset needs its room no more."""
        await self._known()
        self._reservations = self._reservations.released(given_back.pid, given_back.ticket)
        self._show()

    @workflow.signal
    async def counted(self, counted: Counted) -> None:
        """What was found by a later count."""
        await self._known()
        self._reservations = self._reservations.reconciled(counted)
        self._show()

    @workflow.query
    def progress(self) -> LandingZoneProgress:
        """Who was promised how much."""
        holds = sorted(self._reservations.holds.items(), key=lambda held: (-held[1].bytes, held[0]))
        return LandingZoneProgress(
            counted=self._counted,
            taken_bytes=self._reservations.bytes,
            others_bytes=self._reservations.others,
            reserved={pid: hold.bytes for pid, hold in holds[:SHOWN]},
            datasets=len(holds),
        )

    async def _known(self) -> None:
        await workflow.wait_condition(lambda: self._counted)

    def _show(self) -> None:
        workflow.set_current_details(landing_zone_details(self.progress()))
