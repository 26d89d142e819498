"""`python -m worker --queue control`: polls task queues until it is told to stop."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from settings import Settings, SettingsError, load_settings
from worker.beating import Beating
from worker.bounding import Bounding
from worker.build import REQUIRED, world
from workflows import queues

_BEAT = timedelta(seconds=1)
"""The SDK holds heartbeats back for 0.8 of their time-out unless told otherwise; pause and cancel come with them."""

_RECONNECT_S = 2.0

_log = logging.getLogger("worker")


async def serve(settings: Settings, names: list[str], stop: asyncio.Event) -> None:
    """Work on these queues until `stop` is set, then hand running copies over and return."""
    client = await _connect(settings, stop)
    if client is None:
        return
    async with world(settings, client, names) as work, AsyncExitStack() as stack:
        for name in names:
            queue = work[name]
            await stack.enter_async_context(
                Worker(
                    client,
                    task_queue=name,
                    workflows=queue.workflows,
                    activities=queue.activities,
                    max_concurrent_activities=queue.slots,
                    max_heartbeat_throttle_interval=_BEAT,
                    default_heartbeat_throttle_interval=_BEAT,
                    graceful_shutdown_timeout=timedelta(seconds=settings.graceful_shutdown_s),
                    interceptors=[Bounding(), Beating()],
                )
            )
        _log.info("working on %s", ", ".join(names))
        await stop.wait()
        _log.info("stopping")


async def _connect(settings: Settings, stop: asyncio.Event) -> Client | None:
    """Wait for Temporal, which may start after us; None if told to stop meanwhile."""
    while not stop.is_set():
        try:
            return await Client.connect(
                settings.temporal_address,
                namespace=settings.temporal_namespace,
                data_converter=pydantic_data_converter,
            )
        except RuntimeError as error:  # what the SDK raises when it cannot connect
            _log.warning("Temporal does not answer at %s, trying again: %s", settings.temporal_address, error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout=_RECONNECT_S)
    return None


async def _main(settings: Settings, names: list[str]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, names, stop)


def main() -> int:
    """Run a worker; the exit code is 0 after a polite stop, 1 if it could not start or broke."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("--queue", "-q", action="append", choices=queues.ALL, required=True, help="repeatable")
    names: list[str] = parser.parse_args().queue
    # Each run of a workflow imports its modules anew; without bytecode files it would compile them, 8 ms each time.
    sys.dont_write_bytecode = False
    try:
        settings = load_settings()
        settings.require(*REQUIRED)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)
        asyncio.run(_main(settings, names))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception:
        _log.exception("the worker ends")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # The SDK's native threads sometimes abort the interpreter's exit (temporalio 1.35, measured): leave at once.
    os._exit(code)
