"""Copies that are told to stop: what they had done is said in the last heartbeat, and the next attempt begins there."""

import asyncio
import gc
import hashlib
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.copying import Buffers, verify_tar
from activities.progress import Bookmark, Pulse, Stopped, in_thread, moved_before
from clients.lts.protocol import LongTermStore
from domain.errors import TapeUnavailable
from domain.progress import Moved

CHUNK = 1000
CONTENT = bytes(range(256)) * 40
DIGESTS = [hashlib.sha256(CONTENT[start : start + CHUNK]).digest() for start in range(0, len(CONTENT), CHUNK)]


class Store:
    """Remembers which chunks were read."""

    def __init__(self, after: Callable[[int], None] = lambda _: None, damaged: int = -1) -> None:
        self.read: list[int] = []
        self._after, self._damaged = after, damaged

    def read_range(self, _path: str, offset: int, into: memoryview) -> None:
        into[:] = CONTENT[offset : offset + len(into)]
        chunk = offset // CHUNK
        if chunk == self._damaged:
            into[0] ^= 1
        self.read.append(chunk)
        self._after(len(self.read))


def verify(store: Store, bookmark: Bookmark, *, buffers: int = 1, first: int = 0) -> list[int]:
    size = len(CONTENT)
    held = Buffers(buffers, size)
    damaged = verify_tar(cast(LongTermStore, store), "p", size, CHUNK, DIGESTS, held, bookmark, first)
    return [found.chunk for found in damaged]


def test_chunks_count_from_the_first_one_on_in_whatever_order_they_end() -> None:
    bookmark = Bookmark(1, len(CONTENT))
    counts: list[int] = []
    for chunk in (1, 2, 0, 4, 3):
        bookmark.finished(chunk)
        counts.append(bookmark.snapshot.chunks)
    assert counts == [0, 0, 3, 3, 5]


@pytest.mark.parametrize("buffers", [1, 3])
def test_a_verification_that_is_stopped_goes_on_behind_what_matched(buffers: int) -> None:
    bookmark = Bookmark(1, len(CONTENT))
    first = Store(lambda count: bookmark.stop() if count == 5 else None)
    with pytest.raises(Stopped):
        verify(first, bookmark, buffers=buffers)
    said = bookmark.snapshot
    assert said.chunks >= 5

    again, resumed = Store(), Bookmark(1, len(CONTENT))
    resumed.resume(said.chunks, said.chunks * CHUNK)
    assert verify(again, resumed, buffers=buffers, first=said.chunks) == []
    assert sorted(first.read + again.read) == list(range(len(DIGESTS)))
    assert resumed.snapshot == Moved(index=1, bytes_done=len(CONTENT), bytes_total=len(CONTENT), chunks=len(DIGESTS))


def test_what_is_damaged_is_looked_at_again() -> None:
    bookmark = Bookmark(1, len(CONTENT))
    with pytest.raises(Stopped):
        verify(Store(lambda count: bookmark.stop() if count == 5 else None, damaged=2), bookmark)
    said = bookmark.snapshot.chunks
    assert said == 2
    assert verify(Store(damaged=2), Bookmark(1, len(CONTENT)), first=said) == [2]


async def test_what_the_last_attempt_said_stands_until_the_next_one_knows_better() -> None:
    environment, beats = ActivityEnvironment(), list[Any]()
    environment.on_heartbeat = lambda *details: beats.append(details)
    earlier = Moved(index=2, bytes_done=7, bytes_total=9, chunks=3)
    environment.info = replace(environment.info, heartbeat_details=[earlier.model_dump()])

    async def attempt() -> Moved:
        heart = Pulse()
        heart.beat()
        heart.bookmark = Bookmark(2, 9)
        heart.beat()
        return moved_before()

    assert await environment.run(attempt) == earlier
    assert beats == [(earlier.model_dump(),), (Moved(index=2, bytes_total=9),)]
    environment.info = replace(environment.info, heartbeat_details=[])
    assert await environment.run(attempt) == Moved()


async def test_a_copy_that_hangs_is_handed_over_when_its_worker_stops() -> None:
    environment = ActivityEnvironment()
    begun, answered = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        answered.wait()

    async def copy() -> None:
        await in_thread(hang, Bookmark(1, 1))

    running = asyncio.create_task(environment.run(copy))
    try:
        await asyncio.to_thread(begun.wait)
        environment.worker_shutdown()
        environment.cancel(ActivityCancellationDetails(worker_shutdown=True))
        with pytest.raises(ApplicationError) as told:
            await asyncio.wait_for(running, timeout=10)
    finally:
        answered.set()
    assert told.value.type == "WorkerShutdown"


async def test_a_copy_that_is_cancelled_for_another_reason_ends_before_the_cancel_is_told() -> None:
    """An undo must not race with it."""
    environment = ActivityEnvironment()
    begun, answered = threading.Event(), threading.Event()
    ended: list[str] = []

    def hang() -> None:
        begun.set()
        answered.wait()
        ended.append("the thread")

    async def copy() -> None:
        await in_thread(hang, Bookmark(1, 1))

    running = asyncio.create_task(environment.run(copy))
    await asyncio.to_thread(begun.wait)
    environment.cancel(ActivityCancellationDetails(cancel_requested=True))
    answered.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["the thread"]


async def test_a_copy_that_failed_does_not_keep_its_memory() -> None:
    class Held:
        """Stands for a copy's buffers."""

    async def fail() -> "weakref.ref[Held]":
        held = Held()

        def work() -> None:
            raise TapeUnavailable(f"the LTS is full, and {held} is in memory")

        with suppress(TapeUnavailable):
            await in_thread(work, Bookmark(1, 1))
        return weakref.ref(held)

    gc.disable()
    try:
        held = await ActivityEnvironment().run(fail)
        assert held() is not None, "nothing to be seen here: Python has found it by itself"
        await asyncio.sleep(1)
        assert held() is None
    finally:
        gc.enable()
