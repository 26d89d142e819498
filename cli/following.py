"""Watch a job until it ends, and show how far it has come: a live table on a terminal, lines in a pipe.

SciCat says whether the job has ended; the archiver's API says what it does meanwhile. The API may be away or not for
everybody's eyes: then there is less to see, and waiting goes on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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

from cli.catalogue import Document, OutOfReach, Refused, UserCatalogue, foreign
from domain.lifecycle import Phase, finished
from domain.message import Message
from domain.names import datablocks_prefix
from domain.progress import DatasetProgress, JobProgress

MIB = 1 << 20
SHOWN_DATASETS = 10
"""Datasets of one job that are asked about, and shown, one by one."""

PATIENCE_S = 120.0
"""How long SciCat may be away before waiting for a job ends."""

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
    """The archiver's HTTP API, for asking only."""

    def __init__(
        self, url: str, user: str, password: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            auth=(user, password),
            timeout=15,
            transport=transport,
            trust_env=foreign(url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def job(self, job_id: str) -> Document:
        """Where a job stands."""
        return await self._get(f"archiver/jobs/{quote(job_id, safe='')}")

    async def dataset(self, pid: str) -> Document:
        """Where a dataset stands; the pid's slash stays a slash."""
        return await self._get(f"archiver/datasets/{quote(pid, safe='/')}")

    async def _get(self, path: str) -> Document:
        """Ask.

        Raises:
            OutOfReach: no answer, a fault, or the account is refused.
            Refused: unknown (404) or not to be answered.
        """
        try:
            answer = await self._http.get(path)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise OutOfReach(f"the archiver's API at {self._http.base_url} does not answer: {reason}") from None
        if answer.status_code == 404:
            raise Refused("the archiver does not know it", status=404)
        if answer.status_code in (401, 403):
            raise OutOfReach("the archiver's API does not let us in (JOB_ENDPOINT_USERNAME, JOB_ENDPOINT_PASSWORD)")
        if not answer.is_success:
            raise OutOfReach(f"the archiver's API answered {path} with {answer.status_code}")
        return cast(Document, answer.json())


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
    pids = [dataset.pid for dataset in progress.datasets if dataset.phase != Phase.DONE][:SHOWN_DATASETS]
    seen = [dataset for pid in pids if (dataset := (await _ask(DatasetProgress, api.dataset(pid)))[0])]
    return Look(time.monotonic(), status, progress, tuple(seen), note or progress.note)


async def _ask(model: type[_MessageT], question: Awaitable[Document]) -> tuple[_MessageT | None, str]:
    """The answer, or why there is none."""
    try:
        return model.model_validate(await question), ""
    except (OutOfReach, Refused) as error:
        return None, str(error)
    except ValidationError:
        return None, "the archiver's API answers in a form that this program does not know"


class Display:
    """Shows looks on stderr, so that stdout holds results only."""

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
        return Group(table, Text(look.note, style="yellow")) if look.note else table

    def _lines(self, look: Look) -> None:
        self._say("", (look.status, look.note), f"{self._title}: {look.status or 'waiting for SciCat'}", look.note)
        for dataset in look.datasets:
            tenth = 10 * dataset.bytes_done // max(1, dataset.bytes_total)
            speed = self.speed(look, dataset)
            self._say(
                dataset.pid,
                (dataset.phase, tenth, tuple(sorted(dataset.states.items())), dataset.waiting_for),
                f"{dataset.pid}: {phase_text(dataset)}",
                f"{dataset.bytes_done / MIB:,.0f} of {dataset.bytes_total / MIB:,.0f} MiB" * bool(dataset.bytes_total),
                f"{speed:,.0f} MiB/s" * bool(speed),
                states_text(dataset),
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
