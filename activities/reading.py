"""Reads of the landing zone, many at a time: large ones in threads, small ones by asyncio."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future

from clients import telemetry
from clients.s3_bulk import BulkObjects
from clients.s3_small import SmallObjects
from clients.s3_wire import Range
from domain.metrics import Flow

SMALL_BYTES = 1 << 20
"""Below this an answer's headers cost more than its bytes."""


class RangeReader:
    """Starts reads of one bucket from any thread."""

    def __init__(
        self,
        bucket: str,
        *,
        large: BulkObjects,
        small: SmallObjects,
        threads: Executor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Read nothing yet; `loop` is the one that `small` belongs to and must not be that of the calling thread."""
        self._bucket, self._large, self._small = bucket, large, small
        self._threads, self._loop = threads, loop

    def start(self, wanted: Iterable[Range]) -> list[Future[None]]:
        """Begin to fill the buffers of these ranges; they are full when all futures have ended well.

        The futures raise ObjectChanged, ObjectStoreUnavailable, Misconfigured.
        """
        started: list[Future[None]] = []
        small: list[Range] = []
        for one in wanted:
            if one.into.nbytes < SMALL_BYTES:
                small.append(one)
            else:
                started.append(self._threads.submit(self._read_large, one))
        if small:
            started.append(asyncio.run_coroutine_threadsafe(self._read_small(small), self._loop))
        return started

    def _read_large(self, wanted: Range) -> None:
        with telemetry.moving(Flow.S3_READ, wanted.into.nbytes):
            self._large.read_range(self._bucket, wanted)

    async def _read_small(self, wanted: Sequence[Range]) -> None:
        # As one, or counting would take longer than some of the reads.
        with telemetry.moving(Flow.S3_READ, sum(one.into.nbytes for one in wanted)):
            await self._small.read(self._bucket, wanted)
