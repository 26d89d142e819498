"""What the Schedules run: expiry and sweep of the retrieval bucket, count of the landing zone, consistency report.

Each is a loop over pages that activities look at; a long one goes on in a fresh run.
"""

from temporalio import workflow
from temporalio.workflow import ActivityConfig

from workflows.awaiting import signal_each

with workflow.unsafe.imports_passed_through():
    from activities.consistency import (
        CheckPage,
        ClosedReport,
        CloseReport,
        ConsistencyActivities,
        Source,
    )
    from activities.expiring import ExpirePage, ExpiringActivities, SweepUploads, SweptUploads
    from activities.uploading import CountLandingZone, UploadActivities
    from domain import names
    from domain.message import Message
    from domain.orders import Timing
    from domain.reservations import Counted
    from workflows.policies import Policies

_STEP: ActivityConfig = Policies(Timing()).long()


class Expiry(Message):
    """How far an expiry has come."""

    after: str = ""
    looked: int = 0
    removed: int = 0


@workflow.defn
class ExpireRetrieved:
    """Removes what is past its time from the retrieval bucket."""

    @workflow.run
    async def run(self, done: Expiry) -> Expiry:
        """Page by page, from where the argument says."""
        while True:
            page = await workflow.execute_activity_method(
                ExpiringActivities.expire_page, ExpirePage(after=done.after), **_STEP
            )
            done = Expiry(after=page.after, looked=done.looked + page.looked, removed=done.removed + page.removed)
            if not done.after:
                return done
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(done)


@workflow.defn
class SweepRetrieved:
    """Aborts abandoned uploads to the retrieval bucket."""

    @workflow.run
    async def run(self, order: SweepUploads) -> SweptUploads:
        """One listing."""
        return await workflow.execute_activity_method(ExpiringActivities.sweep_uploads, order, **_STEP)


@workflow.defn
class ReconcileLandingZone:
    """Counts what lies in the landing zone, and tells the one who admits uploads."""

    @workflow.run
    async def run(self) -> Counted:
        """One listing."""
        counted = await workflow.execute_activity_method(
            UploadActivities.count_landing_zone, CountLandingZone(since=workflow.now()), **_STEP
        )
        await signal_each([names.LANDING_ZONE], "counted", [[counted]])
        return counted


class Reporting(Message):
    """How far a report has come."""

    started: str = ""
    source: Source = Source.CATALOGUE
    after: str = ""
    page: int = 0


@workflow.defn
class ConsistencyReport:
    """Writes down what does not match between SciCat, the LTS and our buckets; it changes none of them."""

    @workflow.run
    async def run(self, done: Reporting) -> ClosedReport:
        """Source by source, page by page, from where the argument says."""
        started = done.started or workflow.now().isoformat(timespec="seconds")
        report = started.translate(str.maketrans("", "", "-:")).partition("+")[0] + "Z"
        source: Source | None = done.source
        after, number = done.after, done.page
        while source is not None:
            page = await workflow.execute_activity_method(
                ConsistencyActivities.check_page,
                CheckPage(report=report, page=number, source=source, after=after),
                **(_STEP | ActivityConfig(summary=f"{source.value}, page {number + 1}")),
            )
            source, after, number = page.source, page.after, number + 1
            if source is not None and workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(Reporting(started=started, source=source, after=after, page=number))
        return await workflow.execute_activity_method(
            ConsistencyActivities.close_report, CloseReport(report=report, started=started), **_STEP
        )
