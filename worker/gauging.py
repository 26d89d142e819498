"""What only a worker can look up for the metrics: the space on the LTS."""

import asyncio
import logging
import time

from clients import telemetry
from clients.lts.protocol import LongTermStore, Space
from domain import metrics
from domain.errors import InfrastructureError

_log = logging.getLogger("worker")


async def watch_space(store: LongTermStore, kept_free_percentage: float, every_s: float) -> None:
    """Show the space on the LTS until cancelled; nothing where the store does not say."""
    while isinstance(store, Space):
        try:
            space = await store.space()
        except InfrastructureError as error:
            _log.info("the space of the LTS is unknown: %s", error)
        else:
            total = space.available_bytes + space.used_bytes
            telemetry.show(metrics.LTS_BYTES, space.available_bytes, part="available")
            telemetry.show(metrics.LTS_BYTES, space.used_bytes, part="used")
            telemetry.show(metrics.LTS_BYTES, total * kept_free_percentage / 100, part="to_be_kept_free")
            telemetry.show(metrics.LOOKED_TIMESTAMP_SECONDS, time.time(), part="lts")
        await asyncio.sleep(every_s)
