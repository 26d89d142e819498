"""Asking each process of the local stack whether it serves yet."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from cli.ports import HOST, is_free

Question = Callable[[], Awaitable[bool]]


def http_answers(port: int, path: str) -> Question:
    """Ask whether a GET is answered without a server error."""

    async def ask() -> bool:
        if is_free(port):  # cheaper than a refused request
            return False
        # Proxies and certificates of the environment do not concern the loopback interface.
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5) as client:  # noqa: S501 - see above
            with suppress(httpx.TransportError):
                return (await client.get(f"http://{HOST}:{port}{path}")).status_code < 500
        return False

    return ask


def temporal_answers(port: int, namespace: str) -> Question:
    """Ask whether Temporal knows the namespace."""

    async def ask() -> bool:
        client = await _connect(port, namespace)
        if client is None:
            return False
        with suppress(RPCError):
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
            return True
        return False

    return ask


def worker_polls(port: int, namespace: str, queue: str, started_at: Callable[[], float]) -> Question:
    """Ask whether somebody has polled the queue since our worker started (Temporal remembers earlier ones for minutes).

    Args:
        port: Temporal's port.
        namespace: The namespace.
        queue: The task queue.
        started_at: Tells when the worker was started, in s since the epoch.
    """

    async def ask() -> bool:
        client = await _connect(port, namespace)
        if client is None:
            return False
        # Every worker takes activities; whether one takes workflows too is its own affair.
        with suppress(RPCError):
            described = await client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=namespace,
                    task_queue=TaskQueue(name=queue),
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
                )
            )
            return any(poller.last_access_time.ToNanoseconds() / 1e9 > started_at() for poller in described.pollers)
        return False

    return ask


async def _connect(port: int, namespace: str) -> Client | None:
    if is_free(port):
        return None
    try:
        return await Client.connect(f"{HOST}:{port}", namespace=namespace)
    except (RPCError, RuntimeError):  # the SDK raises the latter when it cannot connect
        return None
