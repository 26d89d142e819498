"""An interceptor that keeps error texts short: a history is for ever, and a stack of nested causes helps nobody.

It keeps steps on the spot brief as well.
"""

import asyncio
import logging
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from clients import telemetry
from domain import metrics
from domain.errors import ArchiverError, Damaged, InfrastructureError
from domain.outcome import bounded

DAMAGED_ATTEMPTS = 3
"""Attempts after which damaged bytes are not read once more."""

SPOT_S = 2.0
"""Longest try of a step on the spot; signals wait for it meanwhile."""

_log = logging.getLogger("activities")


class Bounding(Interceptor):
    """Turns our errors into failures of their name and sentence, and logs each with the ids that find it again."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activities of a worker."""
        return _Bounded(next)


class _Bounded(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        # The SDK tells the workflow that a local activity is late, but lets it run (temporalio 1.35, observed): what it
        # writes then would come when the workflow has long gone on.
        within_s = SPOT_S if activity.info().is_local else None
        try:
            async with asyncio.timeout(within_s):
                return await super().execute_activity(input)
        except ApplicationError as error:
            # `NotYet` of a thousand waits: formatting where it came from takes a quarter of what a poll costs.
            raise error.with_traceback(None) from None
        except ArchiverError as error:
            info = activity.info()
            name = type(error).__name__
            _log.warning(
                "%s of %s, attempt %d: %s: %s", info.activity_type, info.workflow_id, info.attempt, name, error
            )
            telemetry.count(metrics.STEP_ERRORS, step=info.activity_type, error=name)
            if isinstance(error, Damaged):
                telemetry.count(metrics.VERIFICATION_FAILURES, step=info.activity_type)
            # Bytes may be hurt on the way; those that stay damaged are a person's affair, not the next attempt's.
            final = isinstance(error, Damaged) and info.attempt >= DAMAGED_ATTEMPTS
            told = error.retry_after_s if isinstance(error, InfrastructureError) else 0
            raise ApplicationError(
                bounded(str(error)),
                type=name,
                non_retryable=final,
                next_retry_delay=timedelta(seconds=told) if told else None,
            ) from None
