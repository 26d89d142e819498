"""What an activity failed with, in the words in which we tell it."""

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    from domain.outcome import bounded


def reason(error: FailureError) -> tuple[str, str, bool]:
    """(class, sentence, final) of what an activity failed with; behind a time-out stands what its last attempt said.

    That of a local activity comes as it is, and in a replay in an `ActivityError` (temporalio 1.35, observed).
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    while isinstance(cause, ActivityTimeout) and cause.cause:
        cause = cause.cause
    if isinstance(cause, ApplicationError):
        return cause.type or "ApplicationError", bounded(cause.message), cause.non_retryable
    return type(cause).__name__, bounded(str(cause or error)), False
