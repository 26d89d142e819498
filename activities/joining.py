"""Steps between jobs and the dataset workflows that they share: start or join them, leave them, watch over them.

Dataset workflows are nobody's children, since two jobs may wait for the same one.
"""

import asyncio
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import TemporalError
from temporalio.service import RPCError, RPCStatusCode

from activities.progress import not_yet
from clients.state import State
from domain import names
from domain.errors import DatasetError, PartialArchive
from domain.lifecycle import JobType, Outcome, Phase
from domain.message import Message
from domain.orders import DatasetOrder, FilesOf, JobOrder, Subscriber
from domain.outcome import DatasetOutcome
from domain.pid import check_pid
from domain.priority import fairness_key, urgency_of

BATCH = 50
"""Datasets that one activity joins."""


class JoinDatasets(Message):
    """Join the datasets `first` to `last` (exclusive) of a job."""

    order: JobOrder
    first: int
    last: int
    windowed: bool
    owner_group: str = ""
    """Of the job, where SciCat says it."""


class Refused(Message):
    """A dataset that was not even started."""

    n: int
    outcome: DatasetOutcome


class JoinedDatasets(Message):
    """What was joined; `pids` has an entry for every position asked for."""

    pids: tuple[str, ...]
    restoring: tuple[int, ...] = ()
    """Positions of which the job names single files."""
    refused: tuple[Refused, ...] = ()


class WatchDatasets(Message):
    """Look whether dataset workflows ended without a word."""

    job_id: str
    type: JobType
    datasets: dict[int, str]
    """Position → pid of the open ones."""
    restoring: tuple[int, ...] = ()
    interval_s: float


class Vanished(Message):
    """Datasets whose workflow is closed although their outcome never came."""

    outcomes: dict[int, DatasetOutcome]


class JoiningActivities:
    """Holds the Temporal client."""

    def __init__(self, *, client: Client, state: State) -> None:
        self._client, self._state = client, state

    @activity.defn
    async def join_datasets(self, request: JoinDatasets) -> JoinedDatasets:
        """Start or join a batch of dataset workflows; joining twice subscribes once."""
        order = request.order
        listed = await self._state.get_list(names.job_datasets_key(order.job_id))
        entries = listed[request.first : request.last]
        refused: list[Refused] = []

        async def join(n: int, pid: str, files: int) -> None:
            try:
                check_pid(pid)
                if files and order.type is JobType.ARCHIVE:
                    raise PartialArchive(
                        f"the job names {files} files of dataset {pid}; a dataset is archived whole or not at all"
                    )
            except DatasetError as error:
                outcome = DatasetOutcome(
                    pid=pid, status=Outcome.DATASET_ERROR, error_class=type(error).__name__, message=str(error)
                )
                activity.logger.warning("job %s: dataset %r: %s: %s", order.job_id, pid, outcome.error_class, error)
                await self._state.put_outcome(order.job_id, n, outcome)
                refused.append(Refused(n=n, outcome=outcome))
                return
            subscriber = Subscriber(job_id=order.job_id, n=n, windowed=request.windowed)
            await self._join(request, pid, subscriber, single_files=bool(files))

        await asyncio.gather(*(join(request.first + i, str(e["pid"]), len(e["files"])) for i, e in enumerate(entries)))
        return JoinedDatasets(
            pids=tuple(str(entry["pid"]) for entry in entries),
            restoring=tuple(request.first + i for i, entry in enumerate(entries) if entry["files"]),
            refused=tuple(refused),
        )

    async def _join(self, request: JoinDatasets, pid: str, subscriber: Subscriber, *, single_files: bool) -> None:
        order = request.order
        archive = order.type is JobType.ARCHIVE
        await self._client.start_workflow(
            "ArchiveDataset" if archive else "RetrieveDataset",
            DatasetOrder(
                pid=pid,
                files_of=FilesOf(job_id=order.job_id, n=subscriber.n) if single_files else None,
                timing=order.timing,
                packing=order.packing,
                writing=order.writing,
                limits=order.limits,
            ),
            id=dataset_workflow(order.type, pid, order.job_id, restoring=single_files),
            task_queue=activity.info().task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal="join",
            start_signal_args=[subscriber],
            static_summary=f"{order.type.value} {pid}",
            static_details=(
                f"The {order.type.value} of dataset `{pid}`, for every job that asks for it.\n\n"
                "Signals: `pause`, `resume`, `retry` and `give_up` (while parked), `recall_ready`. "
                "Cancel ends it for all of its jobs. Do not terminate: nothing would be undone."
            ),
            priority=Priority(priority_key=urgency_of(order.type), fairness_key=fairness_key(request.owner_group)),
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(SearchAttributeKey.for_keyword("DatasetPid"), pid),
                    SearchAttributePair(SearchAttributeKey.for_keyword("Phase"), Phase.PLANNING.value),
                ]
            ),
        )

    @activity.defn
    async def watch_datasets(self, order: WatchDatasets) -> Vanished:
        """Return the datasets that ended without telling, e.g. terminated by hand; while there are none, `NotYet`."""
        vanished: dict[int, DatasetOutcome] = {}
        for n, pid in order.datasets.items():
            workflow_id = dataset_workflow(order.type, pid, order.job_id, restoring=n in order.restoring)
            outcome = await self._ended(workflow_id, pid)
            if outcome is not None:
                vanished[n] = outcome
        if not vanished:
            raise not_yet("all datasets are at work", initial_s=order.interval_s, longest_s=order.interval_s)
        return Vanished(outcomes=vanished)

    async def _ended(self, workflow_id: str, pid: str) -> DatasetOutcome | None:
        """The outcome of a closed dataset workflow, None while it runs."""
        handle = self._client.get_workflow_handle(workflow_id, result_type=DatasetOutcome)
        try:
            description = await handle.describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return _lost(pid, "is unknown to Temporal")
        if description.status is WorkflowExecutionStatus.RUNNING:
            return None
        if description.status is WorkflowExecutionStatus.COMPLETED:
            try:
                return await handle.result(rpc_timeout=timedelta(seconds=10))
            except (WorkflowFailureError, TemporalError):
                return _lost(pid, "ended without a result")
        return _lost(pid, f"was {description.status.name.lower() if description.status else 'lost'} by an operator")


def dataset_workflow(job_type: JobType, pid: str, job_id: str, *, restoring: bool) -> str:
    """Workflow id of a job's dataset."""
    if job_type is JobType.ARCHIVE:
        return names.archive_workflow(pid)
    return names.restore_workflow(pid, job_id) if restoring else names.retrieve_workflow(pid)


def _lost(pid: str, how: str) -> DatasetOutcome:
    return DatasetOutcome(
        pid=pid,
        status=Outcome.FAILED,
        error_class="Terminated",
        message=f"the workflow of dataset {pid} {how}; what it had done is kept, submit the job again",
    )
