"""`python -m worker --queue control`: polls task queues until it is told to stop."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import uvloop
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from clients import telemetry
from clients.temporal import connect
from domain import metrics
from domain.errors import Misconfigured
from settings import Settings, SettingsError, load_settings, logs
from settings.needs import Process, needed
from worker.beating import Beating
from worker.bounding import Bounding
from worker.build import tuner, world
from worker.naming import Naming, facts
from worker.versioning import deployment
from workflows import queues

_BEAT = timedelta(seconds=1)
"""The SDK holds heartbeats back for 0.8 of their time-out unless told otherwise; pause and cancel come with them."""

_RECONNECT_S = 2.0

_GRACE = 0.5
"""Share of GRACEFUL_SHUTDOWN_S after which steps that still run are cancelled."""
_END = 0.9
"""Share of it after which the process is gone, whatever hangs."""

_log = logging.getLogger("worker")


async def serve(settings: Settings, names: list[str], stop: asyncio.Event) -> None:
    """Work on these queues until `stop` is set, then hand running copies over and return."""
    told = telemetry.start(**settings.telemetry, service="-".join(("scopemarchiver", *names)))
    telemetry.begin_at_zero(metrics.VERIFICATION_FAILURES, "step", ("verify_block", "copy_block", "restore_files"))
    client = await reach(settings, stop, told)
    if client is None:
        return
    async with world(settings, client, names) as work, AsyncExitStack() as stack:
        workers: list[Worker] = []
        for name in names:
            queue = work[name]
            workers.append(
                Worker(
                    client,
                    task_queue=name,
                    workflows=queue.workflows,
                    # The sandbox is for the tests, which run every workflow in it: here it would only cost (ADR 10).
                    workflow_runner=UnsandboxedWorkflowRunner(),
                    activities=queue.activities,
                    tuner=tuner(queue.slots),
                    max_heartbeat_throttle_interval=_BEAT,
                    default_heartbeat_throttle_interval=_BEAT,
                    graceful_shutdown_timeout=timedelta(seconds=_GRACE * settings.graceful_shutdown_s),
                    interceptors=[
                        *(Naming(jobs=settings.log_format == "json"), Bounding(), Beating()),
                        *queue.interceptors,
                    ],
                    deployment_config=deployment(settings),
                )
            )
            await stack.enter_async_context(workers[-1])
        _log.info("working on %s", ", ".join(names))
        await stop.wait()
        _log.info("stopping")
        # All at once: none of them takes anything more, and each has the same time for what it has.
        await asyncio.gather(*(worker.shutdown() for worker in workers))


async def reach(settings: Settings, stop: asyncio.Event, told: Mapping[str, Any]) -> Client | None:
    """Wait for Temporal and for our namespace, which may come after us; None if told to stop meanwhile."""
    while not stop.is_set():
        try:
            client = await connect(**settings.temporal_connection, **told)
        except RuntimeError as error:  # what the SDK raises when it cannot connect
            _log.warning("Temporal does not answer at %s, trying again: %s", settings.temporal_address, error)
        else:
            if await _has_namespace(client):
                return client
            said = "Temporal has no namespace %s yet, trying again; `scopemarchiver setup` makes it"
            _log.warning(said, client.namespace)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=_RECONNECT_S)
    return None


async def _has_namespace(client: Client) -> bool:
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        # Whoever may not ask for it may still work in it.
        return error.status is not RPCStatusCode.NOT_FOUND
    return True


async def _main(settings: Settings, names: list[str]) -> None:
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            # A thread of its own: a copy that waits for an answer, or a server that is away, must not hold us up.
            end = threading.Timer(_END * settings.graceful_shutdown_s, _leave, [0])
            end.daemon = True
            end.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    await serve(settings, names, stopping)


def main() -> int:
    """Run a worker; the exit code is 0 after a polite stop, 1 if it could not start or broke."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("--queue", "-q", action="append", choices=queues.ALL, required=True, help="repeatable")
    names: list[str] = parser.parse_args().queue
    # Each run of a workflow imports its modules anew; without bytecode files it would compile them, 8 ms each time.
    sys.dont_write_bytecode = False
    # By default Python looks for cycles after every 700 allocations. Those that hold much, of copies that failed, are
    # collected when they arise (`activities/progress.py`).
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        settings = load_settings()
        settings.require(*needed(settings, Process.WORKER))
        logs.configure(settings.log_level, settings.log_format, facts)
        try:
            uvloop.run(_main(settings, names))
        finally:
            telemetry.stop()
    except (SettingsError, Misconfigured) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception:
        _log.exception("the worker ends")
        return 1
    return 0


def _leave(code: int) -> None:
    """End the process at once, whatever its threads do: the SDK's sometimes abort an ordinary exit (1.35, measured)."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
