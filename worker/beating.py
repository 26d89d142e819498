"""An interceptor that beats for every running activity, so that a dead worker is known within seconds.

Beats come from the event loop: a worker whose loop is blocked is as good as dead. Pause and cancel come with them.
"""

import asyncio
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.progress import Pulse, pulse

BEAT_S = 1.0


class Beating(Interceptor):
    """Gives every activity of a worker a pulse."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activities of a worker."""
        return _Beating(next)


class _Beating(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if activity.info().heartbeat_timeout is None:
            return await super().execute_activity(input)
        heart = Pulse()
        pulse.set(heart)
        beating = asyncio.create_task(_beat(heart))
        try:
            return await super().execute_activity(input)
        finally:
            beating.cancel()


async def _beat(heart: Pulse) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        heart.beat()
