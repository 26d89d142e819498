"""Time-outs and retries by kind of step, from the timing that a workflow was started with."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig, LocalActivityConfig

from domain.errors import NEVER_RETRIED
from domain.orders import Timing

_LIGHT = timedelta(minutes=10)
"""Longest attempt of a step that moves no bulk bytes."""

_SPOT = timedelta(seconds=5)
"""When a step on the spot is given up; the worker ends it before (`worker.bounding`)."""

_PROMPT_ATTEMPTS = 3

_ENDLESS = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Policies:
    """One `ActivityConfig` for each kind of step."""

    timing: Timing

    @property
    def _heartbeat(self) -> timedelta:
        """The worker beats each second for whatever runs, so a dead one is known after this time."""
        return timedelta(seconds=self.timing.heartbeat_s)

    def _retry(self) -> RetryPolicy:
        return RetryPolicy(
            initial_interval=timedelta(seconds=self.timing.retry_initial_s),
            maximum_interval=timedelta(seconds=self.timing.retry_longest_s),
            non_retryable_error_types=NEVER_RETRIED,
        )

    def spot(self) -> LocalActivityConfig:
        """One try within the workflow task itself; what fails there becomes an activity like any other."""
        return LocalActivityConfig(
            start_to_close_timeout=_SPOT,
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )

    def light(self) -> ActivityConfig:
        """Catalogue, state and other short steps."""
        return ActivityConfig(
            start_to_close_timeout=_LIGHT,
            schedule_to_close_timeout=timedelta(seconds=self.timing.retry_s),
            heartbeat_timeout=self._heartbeat,
            retry_policy=self._retry(),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )

    def long(self) -> ActivityConfig:
        """Steps that loop over all files or datablocks of a dataset: planning, registering."""
        return self.light() | ActivityConfig(
            start_to_close_timeout=timedelta(days=1),
            schedule_to_close_timeout=timedelta(seconds=self.timing.retry_s) + timedelta(days=1),
        )

    def endless(self) -> ActivityConfig:
        """Steps behind the commit point and a job's last word: retried until they are done."""
        return self.long() | ActivityConfig(schedule_to_close_timeout=_ENDLESS)

    def prompt(self) -> ActivityConfig:
        """Steps for whose end somebody waits who will ask again: tried a few times, then the reason is told."""
        retry = RetryPolicy(
            initial_interval=timedelta(seconds=self.timing.retry_initial_s),
            maximum_attempts=_PROMPT_ATTEMPTS,
            non_retryable_error_types=NEVER_RETRIED,
        )
        return self.long() | ActivityConfig(retry_policy=retry)

    def transfer(self, queue: str, size_bytes: int) -> ActivityConfig:
        """Bulk bytes: may take as long as the size asks for."""
        allowed = timedelta(seconds=self.timing.retry_s + size_bytes / self.timing.slowest_transfer_bytes_s)
        return ActivityConfig(
            task_queue=queue,
            start_to_close_timeout=allowed,
            schedule_to_close_timeout=allowed,
            heartbeat_timeout=self._heartbeat,
            retry_policy=self._retry(),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )

    def wait(self, remaining: timedelta, config: ActivityConfig | None = None) -> ActivityConfig:
        """A poll that fails with `NotYet` until its time has come; holds no slot and adds no history in between.

        Args:
            remaining: how long to wait.
            config: of a step that is its own poll; by default that of a short question.
        """
        question = ActivityConfig(
            start_to_close_timeout=timedelta(minutes=2),
            heartbeat_timeout=self._heartbeat,
            retry_policy=self._retry(),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        return (config or question) | ActivityConfig(
            schedule_to_close_timeout=max(remaining, timedelta(milliseconds=1))
        )
