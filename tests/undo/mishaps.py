"""What can befall a step between the worker and the workflow, played by an interceptor of the worker.

The step itself is the real one: it fails before its work, or it works and is cancelled, worked once more, or not heard.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from domain import names

COMMIT = "commit"
"""The step with which the commit point is passed."""

NO_NEWS = {"watch_datasets"}
"""Polls that find nothing as long as all goes well."""

_NEVER = timedelta(days=20_000)
"""A pause that ends after every deadline: a retry after it is one too many."""

_SOON = timedelta(milliseconds=20)

Body = Callable[[], Awaitable[Any]]


class Mishap(StrEnum):
    """The columns of the table."""

    FAILS = "fails for good"
    MISTAKE = "finds a user's mistake"
    CANCELLED = "is cancelled while it runs"
    CROSSED = "works on the spot as a cancel comes"
    TWICE = "runs twice"
    LOST = "has worked, but its answer is lost"


@dataclass(eq=False)
class Strike:
    """One mishap of one step."""

    step: str
    mishap: Mishap
    behind: bool | None = None
    """Strikes behind the commit point, or before it; None: on either side."""
    call: int = 1
    """Which of the step's calls there; a retry is the same call."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """It has struck."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """It strikes no more; one that holds a step lets it go."""
    interrupted: bool = False
    """The step heard of the cancel."""
    workflow_id: str = ""
    attempts: int = 0
    _calls: list[str] = field(default_factory=list[str])

    @property
    def over(self) -> bool:
        """It needs nobody any more."""
        passes = self.mishap in (Mishap.TWICE, Mishap.LOST, Mishap.MISTAKE)
        return self.reached.is_set() if passes else self.released.is_set()

    def means(self, info: activity.Info, *, behind: bool) -> bool:
        """Whether this attempt is to be struck."""
        if info.activity_type != self.step or self.behind not in (None, behind) or self.released.is_set():
            return False
        if info.is_local and self.mishap is Mishap.CANCELLED:
            # On the spot nothing is cancelled; what fails there is tried again where it can be.
            return True
        if self.mishap is Mishap.CROSSED and not info.is_local:
            return False
        if info.activity_id not in self._calls:
            self._calls.append(info.activity_id)
        place = self._calls.index(info.activity_id) + 1
        # What is for good, or is told behind the commit point, meets whoever tries again.
        lasting = self.mishap is Mishap.FAILS or (self.mishap is Mishap.MISTAKE and self.behind)
        return place >= self.call if lasting else place == self.call

    async def play(self, info: activity.Info, body: Body) -> Any:
        """Run the step as the mishap has it."""
        self.workflow_id = str(info.workflow_id)
        self.attempts += 1
        match self.mishap:
            case Mishap.FAILS:
                self.reached.set()
                again = _SOON if _endless(info) else _NEVER
                raise ApplicationError(f"{self.step} fails", type="TapeUnavailable", next_retry_delay=again)
            case Mishap.MISTAKE:
                self.reached.set()
                raise ApplicationError(f"{self.step} finds a mistake", type="ChangedWhileArchiving")
            case Mishap.CANCELLED if info.is_local:
                raise ApplicationError("not on the spot", type="TapeUnavailable")
            case Mishap.CANCELLED:
                return await self._hold(body)
            case Mishap.CROSSED:
                result = await body()
                self.reached.set()
                await self.released.wait()
                return result
            case Mishap.TWICE:
                with self._no_news():
                    await body()
                with self._no_news():
                    result = await body()
                self.reached.set()
                return result
            case Mishap.LOST:
                with self._no_news():
                    result = await body()
                if self.reached.is_set():
                    return result
                self.reached.set()
                raise ApplicationError("the answer is lost", type="TapeUnavailable", next_retry_delay=_SOON)

    @contextmanager
    def _no_news(self) -> Generator[None]:
        """Of a poll that finds something only when all goes wrong, that there is nothing is an answer too."""
        try:
            yield
        except ApplicationError:
            if self.step in NO_NEWS:
                self.reached.set()
            raise

    async def _hold(self, body: Body) -> Any:
        """Work, and answer only when let go; a cancel comes first."""
        failed: ApplicationError | None = None
        result: Any = None
        try:
            result = await body()
        except ApplicationError as error:
            failed = error
        self.reached.set()
        try:
            while not self.released.is_set():
                # A cancel comes with the answer to a heartbeat.
                activity.heartbeat()
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.interrupted = True
            raise
        if failed:
            raise failed
        return result


def _endless(info: activity.Info) -> bool:
    """A job never parks: its steps are retried until they are done."""
    return str(info.workflow_id).startswith(names.job_workflow(""))


@dataclass(eq=False)
class Seen:
    """What the steps of one dataset and of its jobs were, and what strikes them."""

    pid: str
    strikes: list[Strike] = field(default_factory=list[Strike])
    steps: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    """(step, behind the commit point) of every attempt."""
    behind: bool = False


class Mishaps(Interceptor):
    """Goes innermost, so that the worker's own interceptors see what befalls a step."""

    def __init__(self) -> None:
        self.worker_broke: BaseException | None = None
        """Then nothing goes on."""
        self._datasets: list[Seen] = []
        self._jobs: dict[str, Seen] = {}
        self._introduced = asyncio.Condition()

    def watch(self, pid: str) -> Seen:
        """Note the steps of this dataset from now on."""
        seen = Seen(pid)
        self._datasets.append(seen)
        return seen

    async def introduce(self, job_id: str, seen: Seen) -> None:
        """Say whose job this is; until then it does not begin."""
        async with self._introduced:
            self._jobs[names.job_workflow(job_id)] = seen
            self._introduced.notify_all()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the activities of a worker."""
        return _Befallen(next, self)

    async def befall(self, info: activity.Info, body: Body) -> Any:
        """Run one attempt."""
        seen = await self._whose(str(info.workflow_id))
        if info.activity_type == COMMIT:
            seen.behind = True
        seen.steps.append((info.activity_type, seen.behind))
        for strike in seen.strikes:
            if strike.means(info, behind=seen.behind):
                return await strike.play(info, body)
        return await body()

    async def _whose(self, workflow_id: str) -> Seen:
        for seen in reversed(self._datasets):
            if seen.pid in workflow_id:
                return seen
        async with self._introduced:
            await asyncio.wait_for(self._introduced.wait_for(lambda: workflow_id in self._jobs), 30)
        return self._jobs[workflow_id]


class _Befallen(ActivityInboundInterceptor):
    def __init__(self, wrapped: ActivityInboundInterceptor, mishaps: Mishaps) -> None:
        super().__init__(wrapped)
        self._mishaps = mishaps

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        return await self._mishaps.befall(activity.info(), lambda: self.next.execute_activity(input))
