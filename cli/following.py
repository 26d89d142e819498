"""Watch a job or a dataset until it ends, and show how far it has come: a live table on a terminal, lines in a pipe.

SciCat says whether the job has ended; the archiver's API says what it does meanwhile. The API may be away or not for
everybody's eyes: then there is less to see, and waiting goes on.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.catalogue import Document, OutOfReach, Refused, UserCatalogue, foreign, trusted
from domain.lifecycle import Phase, finished
from domain.message import Message
from domain.names import datablocks_prefix
from domain.progress import DatasetProgress, JobProgress, StepProgress

MIB = 1 << 20
SHOWN_DATASETS = 10
"""Datasets of one job that are asked about, and shown, one by one."""

PATIENCE_S = 120.0
"""How long SciCat may be away before waiting for a job ends."""

JOB_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_MessageT = TypeVar("_MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Look:
    """What could be seen of a job at one moment."""

    at_s: float
    """On the monotonic clock."""
    status: str
    """SciCat's `jobStatusMessage`."""
    job: JobProgress | None = None
    datasets: tuple[DatasetProgress, ...] = ()
    note: str = ""
    """Why there is less to see than usual."""


class ArchiverApi:
    """The archiver's HTTP API: where things stand, and the verbs of operators."""

    def __init__(
        self, url: str, user: str, password: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            auth=(user, password),
            timeout=15,
            transport=transport,
            trust_env=foreign(url),
            verify=trusted(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def start_job(self, job_id: str, job_type: str) -> Document:
        """Tell of a SciCat job, as SciCat does; one that runs already is left alone."""
        return await self._call("POST", "archiver/jobs", json={"id": job_id, "type": job_type})

    async def job(self, job_id: str) -> Document:
        """Where a job stands."""
        return await self._call("GET", f"archiver/jobs/{quote(job_id, safe='')}")

    async def jobs(self, **filters: str | int) -> Document:
        """One page of a list of jobs."""
        return await self._call("GET", "archiver/jobs", params=filters)

    async def dataset(self, pid: str) -> Document:
        """Where a dataset stands; the pid's slash stays a slash."""
        return await self._call("GET", f"archiver/datasets/{quote(pid, safe='/')}")

    async def steer_job(self, job_id: str, verb: str) -> Document:
        """Pause, resume or cancel a job."""
        return await self._call("POST", f"archiver/jobs/{quote(job_id, safe='')}/{verb}")

    async def steer_dataset(self, pid: str, verb: str, by: str) -> Document:
        """Tell the running workflows of a dataset."""
        return await self._call("POST", f"archiver/datasets/{verb}", json={"pid": pid, "by": by})

    async def _call(self, method: str, path: str, **content: Any) -> Document:
        """Ask or tell.

        Raises:
            OutOfReach: no answer, a fault, or the account is refused.
            Refused: unknown (404), without effect (409), or not to be understood (422).
        """
        try:
            answer = await self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise OutOfReach(f"the archiver's API at {self._http.base_url} does not answer: {reason}") from None
        if answer.status_code == 404:
            raise Refused("the archiver does not know it", status=404)
        if answer.status_code in (409, 422):
            raise Refused(reasons(answer), status=answer.status_code)
        if answer.status_code in (401, 403):
            raise OutOfReach(
                "the archiver's API does not let us in (OPERATOR_USERNAME and OPERATOR_PASSWORD, "
                "or JOB_ENDPOINT_USERNAME and JOB_ENDPOINT_PASSWORD)"
            )
        if not answer.is_success:
            raise OutOfReach(f"the archiver's API answered {path} with {answer.status_code}")
        return cast(Document, answer.json())


def reasons(answer: httpx.Response) -> str:
    """What a 409 (a sentence) or a 422 (a list of reasons) says."""
    detail: str | list[Document] = answer.json().get("detail", "")
    return detail if isinstance(detail, str) else "; ".join(str(reason.get("msg", "")) for reason in detail)


async def subject_of(api: ArchiverApi, subject: str) -> tuple[bool, Document]:
    """Whether it is a job, told by its form, and what the API says of it.

    Raises:
        OutOfReach, Refused: as the API's calls.
    """
    if JOB_ID.fullmatch(subject):
        try:
            return True, await api.job(subject)
        except Refused as unknown:  # a pid may be a bare UUID, too
            if unknown.status != 404:
                raise
    return False, await api.dataset(subject)


async def watch(
    subject: str,
    *,
    api: ArchiverApi,
    on_look: Callable[[Look, Document], None],
    interval_s: float = 1.0,
) -> tuple[bool, Document]:
    """Look at a job or a dataset again and again until it has ended; return what `subject_of` then says.

    Raises:
        OutOfReach: the API did not answer at first, or has been away for two minutes.
        Refused: it is unknown.
    """
    seen: tuple[Look, Document] | None = None
    while True:
        try:
            is_job, answer = await subject_of(api, subject)
            look = await _job_look(api, answer) if is_job else _dataset_look(answer)
            seen = look, answer
            on_look(look, answer)
            if answer.get("phase") == Phase.DONE:
                return is_job, answer
        except OutOfReach as error:
            if seen is None or time.monotonic() - seen[0].at_s > PATIENCE_S:
                raise
            on_look(replace(seen[0], note=str(error)), seen[1])
        await asyncio.sleep(interval_s)


def _dataset_look(answer: Document) -> Look:
    dataset = DatasetProgress.model_validate(answer)
    return Look(time.monotonic(), dataset.outcome or dataset.phase.value, None, (dataset,), dataset.note)


async def _job_look(api: ArchiverApi, answer: Document) -> Look:
    job = JobProgress.model_validate(answer)
    return Look(time.monotonic(), job.status or job.phase.value, job, await _open_datasets(api, job), job.note)


async def follow(
    job_id: str,
    *,
    catalogue: UserCatalogue,
    api: ArchiverApi,
    on_look: Callable[[Look], None],
    interval_s: float = 1.0,
) -> Document:
    """Look again and again until SciCat calls the job finished; return the job as SciCat then holds it.

    Raises:
        OutOfReach: SciCat has been away for two minutes.
    """
    answered = time.monotonic()
    while True:
        note = ""
        status = ""
        try:
            job = await catalogue.job(job_id)
            answered = time.monotonic()
            status = str(job.get("jobStatusMessage", ""))
            if finished(status):
                on_look(Look(time.monotonic(), status))
                return job
        except OutOfReach as error:
            if time.monotonic() - answered > PATIENCE_S:
                raise
            note = str(error)
        on_look(await _look(api, job_id, status, note))
        await asyncio.sleep(interval_s)


async def _look(api: ArchiverApi, job_id: str, status: str, note: str) -> Look:
    progress, reason = await _ask(JobProgress, api.job(job_id))
    if progress is None:
        return Look(time.monotonic(), status, note=note or reason)
    return Look(time.monotonic(), status, progress, await _open_datasets(api, progress), note or progress.note)


async def _open_datasets(api: ArchiverApi, job: JobProgress) -> tuple[DatasetProgress, ...]:
    """Of the first of the job's datasets that have not ended, what can be heard."""
    pids = [dataset.pid for dataset in job.datasets if dataset.phase != Phase.DONE][:SHOWN_DATASETS]
    return tuple([dataset for pid in pids if (dataset := (await _ask(DatasetProgress, api.dataset(pid)))[0])])


async def _ask(model: type[_MessageT], question: Awaitable[Document]) -> tuple[_MessageT | None, str]:
    """The answer, or why there is none."""
    try:
        return model.model_validate(await question), ""
    except (OutOfReach, Refused) as error:
        return None, str(error)
    except ValidationError:
        return None, "the archiver's API answers in a form that this program does not know"


class Display:
    """Shows looks: on stderr where stdout holds a result, on stdout where they are the result."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._began: dict[str, tuple[Phase, float, int]] = {}
        self._said: dict[str, object] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, look: Look) -> None:
        """Take note of a look."""
        if self._live is not None:
            self._live.update(self._table(look))
        else:
            self._lines(look)

    def speed(self, look: Look, dataset: DatasetProgress) -> float:
        """MiB per second since the dataset's phase was first seen; 0 while unknown."""
        began = self._began.get(dataset.pid)
        if began is None or began[0] != dataset.phase:
            began = self._began[dataset.pid] = (dataset.phase, look.at_s, dataset.bytes_done)
        seconds = look.at_s - began[1]
        return max(0.0, (dataset.bytes_done - began[2]) / MIB / seconds) if seconds > 0 else 0.0

    def _table(self, look: Look) -> RenderableType:
        table = Table(title=Text(f"{self._title} · {look.status or 'waiting for SciCat'}"), title_justify="left")
        for column in ("dataset", "phase", "", "MiB", "MiB/s", "datablocks"):
            table.add_column(column, justify="right" if column.startswith("MiB") else "left")
        for dataset in look.datasets:
            table.add_row(
                Text(dataset.pid),
                Text(phase_text(dataset)),
                ProgressBar(total=max(1, dataset.bytes_total), completed=dataset.bytes_done, width=24),
                f"{dataset.bytes_done / MIB:,.0f}/{dataset.bytes_total / MIB:,.0f}",
                f"{self.speed(look, dataset):,.0f}",
                Text(states_text(dataset)),
            )
        if look.job is not None and look.job.datasets_total > len(look.datasets):
            table.caption = f"{look.job.datasets_open} of {look.job.datasets_total} datasets are not finished"
        troubles = [f"{d.pid}: {trouble}" for d in look.datasets for trouble in troubles_of(d.steps)]
        notes = [Text(note, style="yellow") for note in (look.note, *troubles) if note]
        return Group(table, *notes) if notes else table

    def _lines(self, look: Look) -> None:
        self._say("", (look.status, look.note), f"{self._title}: {look.status or 'waiting for SciCat'}", look.note)
        for dataset in look.datasets:
            tenth = 10 * dataset.bytes_done // max(1, dataset.bytes_total)
            speed = self.speed(look, dataset)
            troubles = troubles_of(dataset.steps)
            self._say(
                dataset.pid,
                (dataset.phase, tenth, tuple(sorted(dataset.states.items())), dataset.waiting_for, troubles),
                f"{dataset.pid}: {phase_text(dataset)}",
                f"{dataset.bytes_done / MIB:,.0f} of {dataset.bytes_total / MIB:,.0f} MiB" * bool(dataset.bytes_total),
                f"{speed:,.0f} MiB/s" * bool(speed),
                states_text(dataset),
                *troubles,
            )

    def _say(self, about: str, what: object, *parts: str) -> None:
        """Print a line if there is something new to say."""
        if self._said.get(about) != what:
            self._said[about] = what
            self._console.print(Text(", ".join(part for part in parts if part)), soft_wrap=True)


def phase_text(dataset: DatasetProgress) -> str:
    """What the dataset does, and what for; datablocks by their bare names."""
    waiting_for = dataset.waiting_for.replace(datablocks_prefix(dataset.pid), "")
    return f"{dataset.phase.value} ({waiting_for})" if waiting_for else dataset.phase.value


def troubles_of(steps: Sequence[StepProgress]) -> list[str]:
    """What fails at the moment, and when it is tried again; the same sentence once."""
    told = (
        f"{step.name}, attempt {step.attempt}: {step.last_error}"
        + (f" (again at {step.next_attempt})" if step.next_attempt else "")
        for step in steps
        if step.last_error
    )
    return list(dict.fromkeys(told))


def states_text(dataset: DatasetProgress) -> str:
    """How many datablocks are in which state, e.g. `2 writing, 1 on tape`."""
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in dataset.states.items() if count)


def ending(job: Document) -> tuple[str, list[tuple[str, str, str]]]:
    """SciCat's status of a finished job and per dataset (pid, outcome, sentence)."""
    result: Any = job.get("jobResultObject")
    listed: Any = cast(Document, result).get("datasets") if isinstance(result, dict) else None
    entries = cast("Sequence[object]", listed) if isinstance(listed, list) else ()
    rows = [
        (_text(entry, "pid", "datasetId"), _text(entry, "status"), _text(entry, "message", "sentence"))
        for entry in (cast(Document, entry) for entry in entries if isinstance(entry, dict))
    ]
    return str(job.get("jobStatusMessage", "")), rows


def _text(entry: Document, *names: str) -> str:
    return next((str(entry[name]) for name in names if entry.get(name)), "")
