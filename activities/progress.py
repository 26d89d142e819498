"""Long steps at work: heartbeats with a typed bookmark, threads that stop at the next unit, errors with their names.

A copy runs in threads and knows nothing of Temporal; it counts its bytes into a `Bookmark` and is told by it to stop.
The worker beats for every activity, each second, from the event loop (`worker/beating.py`).
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from domain.polling import delay_s
from domain.progress import Moved

T = TypeVar("T")

_FORGOTTEN_S = 0.5
"""After which nobody looks at the error of a copy any more."""


class Stopped(Exception):
    """The copy was told to stop and did, between two units."""


class Bookmark:
    """Shared by the threads of one copy and the heartbeat: how far it is, and whether it shall stop."""

    def __init__(self, index: int, bytes_total: int) -> None:
        self._index, self._total = index, bytes_total
        self._lock = threading.Lock()
        self._done = 0
        self._chunks = 0
        self._ahead: set[int] = set()
        self._stop = threading.Event()

    def resume(self, chunks: int, bytes_done: int) -> None:
        """Begin behind the leading chunks that an earlier attempt has finished."""
        self._chunks, self._done = chunks, bytes_done

    def finished(self, chunk: int) -> None:
        """Note a chunk that need not be looked at again; they may come in any order."""
        with self._lock:
            self._ahead.add(chunk)
            while self._chunks in self._ahead:
                self._ahead.remove(self._chunks)
                self._chunks += 1

    def moved(self, count: int) -> None:
        """Count bytes that are done for good, then stop if told so.

        Raises:
            Stopped: the copy shall end here.
        """
        with self._lock:
            self._done += count
        self.check()

    def check(self) -> None:
        """Stop if told so.

        Raises:
            Stopped: the copy shall end here.
        """
        if self._stop.is_set():
            raise Stopped

    def stop(self) -> None:
        """Ask the threads to end at the next unit."""
        self._stop.set()

    @property
    def snapshot(self) -> Moved:
        """The heartbeat's details."""
        return Moved(index=self._index, bytes_done=self._done, bytes_total=self._total, chunks=self._chunks)


class Pulse:
    """What the heartbeat of one running activity says; the worker beats, a copy hangs its bookmark in."""

    bookmark: Bookmark | None = None

    def beat(self) -> None:
        """Beat once, with the bookmark; until there is one, what an earlier attempt has said stands."""
        if self.bookmark:
            activity.heartbeat(self.bookmark.snapshot)
        else:
            activity.heartbeat(*activity.info().heartbeat_details)


def moved_before() -> Moved:
    """What an earlier attempt of the running activity said last; it may be a second old."""
    details = activity.info().heartbeat_details
    return Moved.model_validate(details[0]) if details else Moved()


pulse: ContextVar[Pulse] = ContextVar("pulse")
"""Set by the worker for each activity."""


async def in_thread(work: Callable[[], T], bookmark: Bookmark) -> T:
    """Run a blocking copy in a thread; on cancel or worker shutdown it ends at the next unit.

    One that hangs in a call that nobody answers does not keep a worker from stopping: it ends with the process.

    Raises:
        ApplicationError: of type `WorkerShutdown`, so that another worker goes on at once.
    """
    heart = pulse.get(Pulse())
    heart.bookmark = bookmark
    running = asyncio.ensure_future(asyncio.to_thread(work))
    leaving = asyncio.ensure_future(activity.wait_for_worker_shutdown())
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            bookmark.stop()
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        bookmark.stop()
        told = activity.cancellation_details()
        if told and told.worker_shutdown:
            raise _handed_over(heart) from None
        with suppress(Exception):
            await asyncio.shield(running)
        raise
    except Stopped:
        raise _handed_over(heart) from None
    finally:
        leaving.cancel()
        if running.done() and (running.cancelled() or running.exception()):
            # The error's stack and we hold one another, and with us the copy's buffers; Python would not look for long.
            asyncio.get_running_loop().call_later(_FORGOTTEN_S, gc.collect)


def _handed_over(heart: Pulse) -> ApplicationError:
    heart.beat()
    return ApplicationError(
        "this worker is shutting down; another one goes on from here",
        type="WorkerShutdown",
        next_retry_delay=timedelta(milliseconds=1),
        category=ApplicationErrorCategory.BENIGN,
    )


def not_yet(what: str, *, initial_s: float, longest_s: float, told_s: float = 0) -> ApplicationError:
    """The error of a poll whose time has not come: Temporal's retry is the clock, delays grow with the attempts.

    Args:
        what: what is waited for, for people.
        initial_s: the first delay.
        longest_s: the longest delay.
        told_s: the other side has asked to wait at least so long.
    """
    attempt = activity.info().attempt
    delay = delay_s(attempt, initial_s=initial_s, longest_s=longest_s, told_s=told_s, now_s=time.time())
    return ApplicationError(
        what, type="NotYet", next_retry_delay=timedelta(seconds=delay), category=ApplicationErrorCategory.BENIGN
    )
