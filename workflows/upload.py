"""The upload of one dataset: it keeps its room in the landing zone until the archive has freed it, or it is dropped.

    request ──► uploading ──► finalized ──► freed
                    │ abort, time is up
                    ▼
                 aborted ──► swept

Nothing is thrown away that was finalized, or that an archive waits for, works on, or has done.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.workflow import ActivityConfig

from workflows.awaiting import signal_each
from workflows.failures import reason

with workflow.unsafe.imports_passed_through():
    from activities.uploading import CloseUpload, SubmitArchive, SweepUpload, UploadActivities
    from domain import names
    from domain.errors import AlreadyArchived, AlreadyFinalized, DatasetError
    from domain.message import Message
    from domain.orders import Timing
    from domain.progress import UploadProgress, upload_details
    from domain.uploads import (
        FinalizedUpload,
        FinalizeUpload,
        ReleaseSpace,
        RequestUpload,
        UploadEnd,
        UploadOrder,
        UploadPhase,
        UploadState,
    )
    from workflows import search_attributes as attributes
    from workflows.policies import Policies

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_POLICIES = Policies(Timing())


@workflow.defn
class Upload:
    """Holds the promise of one dataset."""

    @workflow.init
    def __init__(self, order: UploadOrder) -> None:
        state = order.state
        self._order = order
        self._granted = state.granted
        self._ticket = state.ticket
        self._finalized = state.phase is UploadPhase.FINALIZED
        self._aborted = state.phase is UploadPhase.ABORTED
        self._urls_until = state.urls_until
        self._expires = state.expires or workflow.now() + timedelta(seconds=order.reservation_s)
        self._freed = False
        self._end = UploadEnd.REFUSED
        """How it ends if it is over."""
        self._ended = False
        self._note = ""
        self._shown = state.phase
        self._turn = asyncio.Lock()
        self._tell()

    @workflow.run
    async def run(self, order: UploadOrder) -> UploadProgress:
        """Wait for the end; what leads there is told by others."""
        while True:
            await self._wait()
            if not self._over:
                continue
            await self._release(self._ticket)
            if self._over and workflow.all_handlers_finished():
                self._ended = True
                self._show([attributes.OUTCOME.value_set(self._end.value)])
                return self.progress()

    async def _wait(self) -> None:
        """Until it is over, or its time is up, or a fresh run should go on."""
        finalized = self._finalized
        left = None if finalized else max(self._expires - workflow.now(), timedelta())
        try:
            await workflow.wait_condition(
                lambda: workflow.all_handlers_finished() and (self._over or self._full or self._finalized != finalized),
                timeout=left,
            )
        except TimeoutError:
            async with self._turn:
                await self._expire()
            return
        if self._full and not self._over:
            workflow.continue_as_new(self._order.model_copy(update={"state": self._carry()}))

    @property
    def _over(self) -> bool:
        """Nothing is kept, and nothing can come any more."""
        return self._freed or not (self._granted or self._finalized or self._urls_until)

    @property
    def _full(self) -> bool:
        return workflow.info().is_continue_as_new_suggested()

    def _carry(self) -> UploadState:
        return UploadState(
            phase=self._phase,
            granted=self._granted,
            ticket=self._ticket,
            urls_until=self._urls_until,
            expires=self._expires,
        )

    # What others say.

    @workflow.update
    async def request(self, wish: RequestUpload) -> None:
        """Begin, with nothing left of an earlier upload; or go on with what is there."""
        async with self._turn:
            try:
                self._refuse_closed()
                if not self._granted:
                    await self._step(UploadActivities.sweep_upload, SweepUpload(pid=self._order.pid), "clear leftovers")
            except ApplicationError:
                # Whoever asked has been promised room, which is not needed now.
                await self._release(wish.ticket)
                raise
            self._aborted = False
            self._granted, self._ticket = wish.bytes, wish.ticket
            self._order = self._order.model_copy(update={"reservation_s": wish.reservation_s})
            self._prolong()
            self._show([attributes.TOTAL_BYTES.value_set(wish.bytes)])

    @workflow.signal
    def urls_issued(self, until: datetime) -> None:
        """URLs were given out that can be used until then."""
        self._urls_until = max(until, self._urls_until or until)
        self._prolong()
        self._tell()

    @workflow.update
    async def finalize(self, wish: FinalizeUpload) -> FinalizedUpload:
        """All is uploaded; from here on it is kept until it is archived. May be said any number of times."""
        async with self._turn:
            if self._freed:
                return FinalizedUpload(archived=True)
            pid = self._order.pid
            closed = await self._step(UploadActivities.close_upload, CloseUpload(pid=pid), "is it complete?")
            if closed.archived:
                return FinalizedUpload(archived=True)
            self._finalized, self._aborted = True, False
            self._show()
            if closed.archiving or not wish.create_job:
                return FinalizedUpload(job_id=closed.job_id)
            order = SubmitArchive(
                pid=pid,
                owner_group=wish.owner_group,
                owner_user=wish.owner_user,
                contact_email=wish.contact_email,
            )
            submitted = await self._step(UploadActivities.submit_archive, order, "archive job in SciCat")
            return FinalizedUpload(job_id=submitted.job_id)

    @workflow.update
    async def abort(self) -> None:
        """Throw away what was uploaded. What is still under way is swept when the time is up."""
        async with self._turn:
            self._refuse_closed()
            await self._step(UploadActivities.sweep_upload, SweepUpload(pid=self._order.pid), "abort")
            self._end = UploadEnd.ABORTED
            self._aborted = True
            await self._give_back()

    @workflow.signal
    def freed(self) -> None:
        """The dataset is archived and the landing zone freed of it."""
        self._freed = True
        self._end = UploadEnd.FREED

    @workflow.signal
    def reopen(self) -> None:
        """An operator lets the owner mend what was finalized, e.g. upload what was missing."""
        self._finalized = False
        self._prolong()
        self._show()

    @workflow.query
    def progress(self) -> UploadProgress:
        """Where it stands."""
        return UploadProgress(
            pid=self._order.pid,
            phase=self._phase,
            reserved_bytes=self._granted,
            expires="" if self._finalized or self._ended else self._expires.isoformat(timespec="seconds"),
            urls_until=self._urls_until.isoformat(timespec="seconds") if self._urls_until else "",
            outcome=self._end if self._ended else None,
            note=self._note,
        )

    # What becomes of it.

    def _refuse_closed(self) -> None:
        pid = self._order.pid
        if self._freed:
            raise _refusal(AlreadyArchived(f"dataset {pid} is archived"))
        if self._finalized:
            raise _refusal(AlreadyFinalized(f"the upload of dataset {pid} is finalized; what was uploaded is kept"))

    def _prolong(self) -> None:
        self._expires = workflow.now() + timedelta(seconds=self._order.reservation_s)

    async def _expire(self) -> None:
        """Drop it, unless somebody has said something meanwhile, or an archive is concerned with it."""
        if self._finalized or self._freed or workflow.now() < self._expires:
            return
        if self._granted or self._aborted:
            try:
                await workflow.execute_activity_method(
                    UploadActivities.sweep_upload,
                    SweepUpload(pid=self._order.pid),
                    **(_POLICIES.long() | ActivityConfig(summary="time is up")),
                )
            except ActivityError as error:
                kind, text, _ = reason(error)
                if kind == AlreadyArchived.__name__:
                    self.freed()
                    return
                self._note = f"kept though its time was up: {kind}: {text}"
                self._prolong()
                self._show()
                return
        self._urls_until = None
        self._end = UploadEnd.ABORTED if self._aborted else UploadEnd.EXPIRED
        await self._give_back()

    async def _give_back(self) -> None:
        if self._granted:
            self._granted = 0
            await self._release(self._ticket)
            self._show([attributes.TOTAL_BYTES.value_set(0)])

    async def _release(self, ticket: str) -> None:
        if ticket:
            given_back = ReleaseSpace(pid=self._order.pid, ticket=ticket)
            await signal_each([names.LANDING_ZONE], "release", [[given_back]])

    async def _step(self, method: Callable[[UploadActivities, M], Awaitable[T]], order: M, summary: str) -> T:
        """A step for whose end a client waits: it hears soon what is wrong, and asks again itself.

        Raises:
            ApplicationError: what it failed with.
        """
        try:
            return await workflow.execute_activity_method(
                method, order, **(_POLICIES.prompt() | ActivityConfig(summary=summary))
            )
        except ActivityError as error:
            kind, text, _ = reason(error)
            raise ApplicationError(text, type=kind, non_retryable=True) from error

    @property
    def _phase(self) -> UploadPhase:
        if self._ended:
            return UploadPhase.DONE
        if self._finalized:
            return UploadPhase.FINALIZED
        return UploadPhase.ABORTED if self._aborted else UploadPhase.UPLOADING

    def _show(self, updates: Sequence[SearchAttributeUpdate[Any]] = ()) -> None:
        if self._phase is not self._shown:
            self._shown = self._phase
            updates = [attributes.PHASE.value_set(self._phase.value), *updates]
        attributes.upsert(*updates)
        self._tell()

    def _tell(self) -> None:
        workflow.set_current_details(upload_details(self.progress()))


def _refusal(error: DatasetError) -> ApplicationError:
    return ApplicationError(str(error), type=type(error).__name__, non_retryable=True)
