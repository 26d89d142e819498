"""Waiting for several things, none of which may get lost when the work is cancelled meanwhile.

A cancel is delivered once, at some `await`. Whoever catches it has to raise it again, but not before that which was
awaited has ended: an undo must never race with a step that still runs.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, is_cancelled_exception

T = TypeVar("T")

_TOLD_AT_ONCE = 500
"""External signals in flight; Temporal allows 2,000 for each workflow."""


async def ended(tasks: Sequence[asyncio.Task[Any]]) -> bool:
    """Wait until all have ended; return whether a cancel came meanwhile, which the caller has to raise."""
    cancelled = False
    while not all(task.done() for task in tasks):
        try:
            await workflow.wait(tasks)
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Carry the work to its end; a cancel that comes meanwhile is raised afterwards."""
    task = asyncio.create_task(work)
    cancelled = await ended([task])
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


async def unless(
    running: workflow.ActivityHandle[T], interrupted: Callable[[], bool], keep: Callable[[T], None] | None = None
) -> tuple[T] | None:
    """Wait for an activity, but cancel it when the condition comes true.

    Args:
        running: the activity.
        interrupted: the condition.
        keep: called with the activity's result, also if that came when this work was cancelled already.

    Returns:
        The result; None if the activity was cancelled for the condition's sake.

    Raises:
        ActivityError: it failed.
        asyncio.CancelledError: this work was cancelled; the activity has ended.
    """
    interruption = asyncio.create_task(workflow.wait_condition(interrupted))
    cancelled = False
    try:
        await workflow.wait([running, interruption], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        cancelled = True
    interruption.cancel()
    running.cancel()
    cancelled = await ended([running]) or cancelled
    try:
        # It may have finished in spite of the cancel: then its result counts.
        result = running.result()
    except asyncio.CancelledError:
        if cancelled:
            raise
        return None
    except ActivityError as error:
        if cancelled:
            raise asyncio.CancelledError from None
        # An attempt that fails after the cancel is not retried, and its own error is told (server 1.32, observed).
        if is_cancelled_exception(error) or error.retry_state is RetryState.CANCEL_REQUESTED:
            return None
        raise
    if keep:
        keep(result)
    if cancelled:
        raise asyncio.CancelledError
    return (result,)


async def all_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all side by side; when one fails, cancel the others, wait for them, and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    if not tasks:
        return
    cancelled = False
    try:
        await workflow.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        cancelled = True
    for task in tasks:
        task.cancel()
    if await ended(tasks) or cancelled:
        raise asyncio.CancelledError
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            raise error


async def signal_each(workflow_ids: Sequence[str], signal: str, args: Sequence[Sequence[Any]]) -> list[bool]:
    """Signal workflows, each with its own arguments; return which of them were there to hear it."""

    async def tell(workflow_id: str, arguments: Sequence[Any]) -> bool:
        try:
            await workflow.get_external_workflow_handle(workflow_id).signal(signal, args=arguments)
        except ApplicationError as error:
            if error.type != "ExternalWorkflowExecutionNotFound":
                raise
            workflow.logger.info("%s has ended before it heard %s", workflow_id, signal)
            return False
        return True

    told = list(zip(workflow_ids, args, strict=True))
    reached: list[bool] = []
    for first in range(0, len(told), _TOLD_AT_ONCE):
        reached += await asyncio.gather(*(tell(*each) for each in told[first : first + _TOLD_AT_ONCE]))
    return reached
