"""The worker's share of the streams to the LTS: without one it does not even ask Temporal for a datablock.

The rules are those of `domain.streams`; here they are carried out, in the state bucket and in Temporal's SDK. A slot of
the SDK is given out only against a stream, so what there is no stream for waits in Temporal's queue, where priorities
and fairness order it. One task keeps all streams of a queue, every `ROUND_S`.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import (
    ActivityInboundInterceptor,
    CustomSlotSupplier,
    ExecuteActivityInput,
    Interceptor,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

from clients.state import State
from domain.errors import InfrastructureError
from domain.streams import KEEP_S, Streams

ROUND_S = 2.0
_ANSWER_S = KEEP_S / 4
"""A store that has not answered by then has to be asked again while the streams still count."""

_log = logging.getLogger("worker")


class SharedStreams(CustomSlotSupplier, Interceptor):
    """Gives out the slots of one queue in this process, as many at a time as it holds streams, and `slots` at most."""

    def __init__(self, state: State, queue: str, *, limit: int, slots: int) -> None:
        """Use `sharing`."""
        self._state, self._queue = state, queue
        self._slots = slots
        self._streams = Streams(limit)
        self._name = str(uuid4())
        self._written = 0
        self._mark: str | None = None
        self._leaving: dict[int, str] = {}
        """Streams that are used no more, and the ETag on which to say so."""
        self._given = 0
        self._waiting = 0
        self._running: dict[asyncio.Task[Any], bool] = {}
        """The steps at work, the newest last, and whether each was told to end for want of a stream."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._well = True

    @classmethod
    @asynccontextmanager
    async def sharing(cls, state: State, queue: str, *, limit: int, slots: int) -> AsyncGenerator["SharedStreams"]:
        """Share the streams of a queue with all other workers until leaving, then give back what this one has.

        Args:
            state: where the streams are kept.
            queue: the task queue.
            limit: streams that there are.
            slots: the most that this process uses.
        """
        shared = cls(state, queue, limit=limit, slots=slots)
        keeping = asyncio.create_task(shared._keep())
        try:
            yield shared
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            with suppress(InfrastructureError, TimeoutError):  # then they expire
                await shared._give_back(shared._streams.spare(0))

    # What Temporal's SDK calls

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        """Wait for a stream that is not in use; the SDK polls only then."""
        self._waiting += 1
        try:
            if not self._to_give():
                self._wake.set()
            while not self._to_give():
                self._changed.clear()
                await self._changed.wait()
            self._given += 1
        finally:
            self._waiting -= 1
        return SlotPermit()

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        """Nothing comes to these queues but by polling."""
        return None

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """It is all the same whether a slot polls or works.

        The SDK holds a lock while it calls this: nothing may be waited for here.
        """

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """A step or an empty poll has ended; called from a thread of the SDK's."""
        with suppress(RuntimeError):  # the event loop is gone, and so is the process
            self._loop.call_soon_threadsafe(self._taken_back)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Have every step end that has lost its stream."""
        return _Streaming(next, self)

    @contextmanager
    def using(self) -> Generator[None]:
        """Work on one stream.

        Raises:
            ApplicationError: of type `NoStream`: there was none, or no longer, so the step is to be tried again.
        """
        # The stream may have been lost while the SDK polled with its slot.
        if len(self._running) >= self._streams.holds(monotonic()):
            raise _no_stream()
        step = asyncio.current_task()
        assert step is not None  # noqa: S101 - activities are tasks
        self._running[step] = False
        try:
            yield
        except asyncio.CancelledError:
            if not self._running[step] or activity.cancellation_details():
                raise
            step.uncancel()
            raise _no_stream() from None
        finally:
            del self._running[step]

    # Slots

    def _to_give(self) -> bool:
        return self._given < min(self._slots, self._streams.holds(monotonic()))

    def _taken_back(self) -> None:
        self._given -= 1
        number = self._streams.for_others(monotonic())
        if number is not None:
            self._leaving[number] = self._streams.give_back(number)
            self._wake.set()
        self._changed.set()

    # Streams

    async def _keep(self) -> None:
        while True:
            try:
                await self._round()
                if not self._well:
                    _log.info("the streams of %s can be shared again", self._queue)
                self._well = True
            except (InfrastructureError, TimeoutError) as error:
                if self._well:
                    _log.warning("the streams of %s cannot be shared until S3 answers: %s", self._queue, error)
                self._well = False
            except Exception:
                # A mistake of ours, which would leave this worker without work and without a word.
                _log.exception("the streams of %s cannot be shared", self._queue)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), ROUND_S)
            self._wake.clear()

    async def _round(self) -> None:
        self._end_steps_without_stream()
        renewing = [self._renew(number, etag) for number, etag in self._streams.due(monotonic()).items()]
        failed = [said for said in await asyncio.gather(*renewing, return_exceptions=True) if said]
        self._end_steps_without_stream()
        async with asyncio.timeout(_ANSWER_S):
            objects, self._mark = await self._state.streams(self._queue)
        self._streams.look(objects, self._mark, monotonic())
        needed = min(self._slots, self._given + self._waiting)
        await self._give_back(self._streams.spare(needed))
        await self._take(needed)
        self._changed.set()
        if failed:
            raise failed[0]

    async def _renew(self, number: int, etag: str) -> None:
        sent = monotonic()
        written = await self._write(number, etag)
        if written is None:
            # Perhaps by ourselves: an earlier answer may have been lost. When that was, nobody knows; so once more.
            async with asyncio.timeout(_ANSWER_S):
                holder, now = await self._state.stream(self._queue, number)
            if holder.startswith(self._name.encode()):
                sent = monotonic()
                written = await self._write(number, now)
        if written is None:
            self._streams.lost(number)
        else:
            self._streams.wrote(number, written, sent)

    async def _take(self, needed: int) -> None:
        free = list(self._streams.free(monotonic()).items())
        # Several that try at once should not all try the same.
        random.shuffle(free)
        for number, etag in free:
            if self._streams.holds(monotonic()) >= needed:
                return
            sent = monotonic()
            if (written := await self._write(number, etag)) is not None:
                self._streams.wrote(number, written, sent)
        if self._streams.holds(monotonic()) < needed:
            self._written += 1
            async with asyncio.timeout(_ANSWER_S):
                mark = await self._state.mark_streams(self._queue, f"{self._name} {self._written}".encode(), self._mark)
            if mark is not None:
                self._streams.marked(mark)

    async def _write(self, number: int, etag: str | None) -> str | None:
        # Another content each time: the others see by the ETag that somebody still holds the stream.
        self._written += 1
        async with asyncio.timeout(_ANSWER_S):
            return await self._state.write_stream(self._queue, number, f"{self._name} {self._written}".encode(), etag)

    async def _give_back(self, numbers: list[int]) -> None:
        leaving = self._leaving | {number: self._streams.give_back(number) for number in numbers}
        self._leaving = {}
        async with asyncio.timeout(_ANSWER_S):
            for number, etag in leaving.items():
                await self._state.write_stream(self._queue, number, b"", etag)

    def _end_steps_without_stream(self) -> None:
        told = sum(self._running.values())
        without = len(self._running) - told - self._streams.holds(monotonic())
        for step in [step for step, ending in reversed(self._running.items()) if not ending][: max(0, without)]:
            self._running[step] = True
            step.cancel()


class _Streaming(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, streams: SharedStreams) -> None:  # noqa: A002
        super().__init__(next)
        self._streams = streams

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        with self._streams.using():
            return await super().execute_activity(input)


def _no_stream() -> ApplicationError:
    return ApplicationError(
        "this worker has lost its stream to the LTS; whoever has one goes on from here",
        type="NoStream",
        next_retry_delay=timedelta(seconds=ROUND_S),
        category=ApplicationErrorCategory.BENIGN,
    )
