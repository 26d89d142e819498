"""`python -m worker.health --queue control`: whether the worker on this host takes work, for a container.

Temporal is asked who polls, since a process that merely runs may poll nothing.
"""

import argparse
import asyncio
import socket
import sys
import time

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from clients.temporal import connect
from settings import SettingsError, load_settings
from workflows import queues

RECENT_S = 120.0
"""A poll lasts a minute when there is nothing to do, and Temporal notes when it began."""


async def polled_s_ago(client: Client, queue: str, host: str) -> float | None:
    """How long ago a worker on this host last began to poll the queue, in s; None if Temporal knows of none.

    Raises:
        RPCError: Temporal refuses, or does not answer.
    """
    asked = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        # Every worker takes activities; whether it takes workflows too is its own affair.
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    described = await client.workflow_service.describe_task_queue(asked)
    polls = [
        poller.last_access_time.ToNanoseconds() / 1e9
        for poller in described.pollers
        # The SDK names a worker by its process and its host, and each container is a host.
        if poller.identity.endswith(f"@{host}")
    ]
    return max(0.0, time.time() - max(polls)) if polls else None


async def complaints(names: list[str]) -> list[str]:
    """A sentence for each queue that the worker on this host does not poll.

    Raises:
        RuntimeError: Temporal cannot be reached.
        RPCError: It refuses, or does not answer.
        SettingsError: The configuration cannot be used.
    """
    client = await connect(**load_settings().temporal_connection)
    found = {name: await polled_s_ago(client, name, socket.gethostname()) for name in names}
    return [
        f"no worker of this host polls {name}" + ("" if ago is None else f" (the last poll began {ago:.0f} s ago)")
        for name, ago in found.items()
        if ago is None or ago > RECENT_S
    ]


def main() -> int:
    """0 if the worker polls all of these queues; otherwise 1, and what is wrong on stderr."""
    parser = argparse.ArgumentParser(prog="worker.health", description=__doc__)
    parser.add_argument("--queue", "-q", action="append", choices=queues.ALL, required=True, help="repeatable")
    try:
        wrong = asyncio.run(complaints(parser.parse_args().queue))
    except SettingsError as error:
        wrong = list(error.sentences)
    except (RuntimeError, RPCError) as error:
        wrong = [f"Temporal does not answer: {error}"]
    sys.stderr.writelines(f"{sentence}\n" for sentence in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
