"""What a scientist's own program does with the archive: ingest a folder, ask for an archive or a retrieval, look.

Everything goes through SciCat and S3 as any client of theirs would; only `status` asks the archiver itself.
"""

import asyncio
import base64
import binascii
import json
import os
import sys
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast
from urllib.parse import quote

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cli.catalogue import Document, OutOfReach, Refused, UserCatalogue
from cli.following import (
    MIB,
    ArchiverApi,
    Display,
    Look,
    ending,
    follow,
    phase_text,
    states_text,
    subject_of,
    troubles_of,
)
from cli.following import watch as watch_until_end
from cli.ingest import Inventory, LandingZone, SourceFile, dataset_body, ingest, scan, shown
from cli.local import DEFAULT_FOLDER
from cli.ports import HOST, Ports
from cli.processes import StackError
from cli.stack import StackState, settings_of
from domain.lifecycle import GOOD, JobStatus, Outcome, finished
from domain.progress import DatasetProgress, JobProgress
from settings import Settings, SettingsError, load_settings

FAILED, USAGE, OUT_OF_REACH = 1, 2, 3
LOCAL_USER = "alice"
"""A user of the pretend SciCat, with the name as password, who owns what is ingested on a laptop."""

EXIT_CODES = (
    "Exit codes: 0 all well; 1 the job or dataset failed or was refused; 2 wrong usage, or a folder that cannot be "
    "archived as it is; 3 a service is out of reach or does not let you in."
)
LOOK_EVERY_S = 1.0
_SHOWN_REMARKS = 20
_LINE_EVERY = 500
_RESULT = TypeVar("_RESULT")

err = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Every service that a user's program talks to, and as whom."""

    scicat_url: str
    """With the API prefix, e.g. `http://127.0.0.1:3000/api/v3`."""
    scicat_user: str = ""
    scicat_password: str = field(default="", repr=False)
    scicat_token: str = field(default="", repr=False)
    """Instead of name and password."""
    s3_url: str
    s3_key: str = field(default="", repr=False)
    s3_secret: str = field(default="", repr=False)
    s3_region: str = "eu-west-1"
    landing_bucket: str = "landingzone"
    api_url: str
    api_user: str = ""
    api_password: str = field(default="", repr=False)
    temporal_ui_url: str = ""
    namespace: str = "default"
    lts_url: str = ""
    lts_token: str = field(default="", repr=False)

    @property
    def zone(self) -> LandingZone:
        """Where files are uploaded to."""
        return LandingZone(self.s3_url, self.s3_key, self.s3_secret, self.s3_region, self.landing_bucket)

    def catalogue(self) -> UserCatalogue:
        """SciCat as this user."""
        return UserCatalogue(self.scicat_url, self.scicat_user, self.scicat_password, token=self.scicat_token)

    def api(self) -> ArchiverApi:
        """The archiver's API."""
        return ArchiverApi(self.api_url, self.api_user, self.api_password)

    def workflow_url(self, workflow_id: str) -> str:
        """A workflow's page in Temporal's web UI."""
        return f"{self.temporal_ui_url}/namespaces/{self.namespace}/workflows/{quote(workflow_id, safe='')}"


SERVICES = ("SCICAT_ENDPOINT", "S3_ENDPOINT", "API_ENDPOINT")


def connect(
    environment: Mapping[str, str], stack: Connection | None, *, services: Collection[str] = SERVICES
) -> Connection:
    """Join what the environment says with the local stack; the environment wins, service by service.

    A service that the environment names is never sent the local stack's credentials.

    Args:
        environment: variables by name.
        stack: the local stack, if one runs.
        services: those that are wanted; the others may be named by neither.

    Raises:
        OutOfReach: a service that is wanted is named by neither.
    """
    # Whoever has an operator's account means that one.
    account = "OPERATOR" if environment.get("OPERATOR_USERNAME") else "JOB_ENDPOINT"
    groups = {
        "SCICAT_ENDPOINT": {
            "scicat_user": "SCICAT_USER",
            "scicat_password": "SCICAT_PASSWORD",
            "scicat_token": "SCICAT_TOKEN",
        },
        "S3_ENDPOINT": {
            "s3_key": "S3_USER",
            "s3_secret": "S3_PASSWORD",
            "s3_region": "S3_REGION",
            "landing_bucket": "S3_LANDINGZONE_BUCKET",
        },
        "API_ENDPOINT": {"api_user": f"{account}_USERNAME", "api_password": f"{account}_PASSWORD"},
    }
    values: dict[str, str] = {}
    for endpoint, fields in groups.items():
        url = f"{endpoint.split('_')[0].lower()}_url"
        named = environment.get(endpoint, "").rstrip("/")
        if named:
            values[url] = named if "://" in named else f"https://{named}"
        elif stack is not None:
            values |= {name: getattr(stack, name) for name in (url, *fields)}
        elif endpoint not in services:
            values[url] = ""
        else:
            raise OutOfReach(f"no local stack is running here (start one with `make up`), and {endpoint} is not set")
        values |= {name: environment[variable] for name, variable in fields.items() if environment.get(variable)}
    if values.get("scicat_token"):  # it says who one is
        values |= {"scicat_user": "", "scicat_password": ""}
    if environment.get("SCICAT_ENDPOINT"):
        values["scicat_url"] += environment.get("SCICAT_API_PREFIX", "/api/v3")
    if stack is not None:
        values |= {name: getattr(stack, name) for name in ("temporal_ui_url", "namespace", "lts_url", "lts_token")}
    return Connection(**values)


def local_stack(folder: Path = DEFAULT_FOLDER) -> Connection | None:
    """The stack that runs in a folder, if one does."""
    try:
        state, settings = StackState.read(folder), settings_of(folder)
    except StackError:
        return None
    return stack_connection(settings, state.ports) if state is not None else None


def stack_connection(settings: Settings, ports: Ports) -> Connection:
    """The local stack as one of the pretend SciCat's users sees it."""
    return Connection(
        scicat_url=settings.scicat_endpoint + settings.scicat_api_prefix,
        scicat_user=LOCAL_USER,
        scicat_password=LOCAL_USER,
        s3_url=settings.s3_endpoint,
        s3_key=settings.s3_user.get_secret_value(),
        s3_secret=settings.s3_password.get_secret_value(),
        s3_region=settings.s3_region,
        landing_bucket=settings.s3_landingzone_bucket,
        api_url=f"http://{HOST}:{ports.api}",
        api_user=settings.job_endpoint_username.get_secret_value(),
        api_password=settings.job_endpoint_password.get_secret_value(),
        temporal_ui_url=f"http://{HOST}:{ports.temporal_ui}",
        namespace=settings.temporal_namespace,
        lts_url=settings.lts_endpoint,
        lts_token=settings.lts_token.get_secret_value(),
    )


def register(app: typer.Typer) -> None:
    """Add the client's commands."""
    app.command("ingest", epilog=EXIT_CODES, rich_help_panel="Datasets")(ingest_command)
    app.command("archive", epilog=EXIT_CODES, rich_help_panel="Datasets")(archive_command)
    app.command("retrieve", epilog=EXIT_CODES, rich_help_panel="Datasets")(retrieve_command)
    app.command("status", epilog=EXIT_CODES, rich_help_panel="Datasets")(status_command)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended, showing progress.")]
Pids = Annotated[list[str], typer.Argument(help="Dataset ids, e.g. 20.500.11935/0d4c…", show_default=False)]


def ingest_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to upload.", exists=True, file_okay=False, readable=True)
    ],
    name: Annotated[str, typer.Option(help="Name of the dataset in SciCat; the folder's name if not given.")] = "",
    owner_group: Annotated[str, typer.Option(help="SciCat group that owns it; your first group if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Upload a folder's files to the landing zone and register them in SciCat as a new dataset.

    Prints the dataset's id. Only regular files go up; links, sockets and names that are not UTF-8 stay behind and are
    named. Names that the archive would refuse are named before anything is uploaded.

    \b
    Examples:
      scopemarchiver ingest /data/session-12
      scopemarchiver ingest . --name "Grid 4, morning" --owner-group group1
      scopemarchiver archive $(scopemarchiver ingest /data/session-12) --wait
    """
    inventory = scan(folder)
    explain(inventory)
    if inventory.refused:
        fail(f"nothing was uploaded: {len(inventory.refused)} name(s) would be refused by the archive", USAGE)
    if not inventory.files:
        fail(f"nothing to upload: {shown(str(folder))} holds no regular file", USAGE)
    connection = connected()
    title = name or folder.resolve().name
    pid = run(upload(connection, inventory, name=title, source=str(folder.resolve()), group=owner_group))
    tell(
        {
            "pid": pid,
            "files": len(inventory.files),
            "bytes": inventory.size_bytes,
            "skipped": [{"path": remark.path, "reason": remark.reason} for remark in inventory.skipped],
        },
        pid,
        as_json=as_json,
    )


def archive_command(pids: Pids, wait: Wait = False, as_json: Json = False) -> None:
    """Ask SciCat to archive datasets: to tape, verified, and then out of the landing zone.

    Prints the job's id, which `status` takes.

    \b
    Examples:
      scopemarchiver archive 20.500.11935/0d4c…
      scopemarchiver archive 20.500.11935/0d4c… 20.500.11935/77e1… --wait
    """
    _job("archive", pids, wait=wait, as_json=as_json)


def retrieve_command(
    pids: Pids,
    wait: Wait = False,
    script: Annotated[
        Path | None,
        typer.Option(help="With --wait: write the download script here; run it with bash.", dir_okay=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask SciCat to bring archived datasets back from tape, ready for download.

    Prints the job's id, which `status` takes. Tapes take minutes to days.

    \b
    Examples:
      scopemarchiver retrieve 20.500.11935/0d4c…
      scopemarchiver retrieve 20.500.11935/0d4c… --wait --script download.sh && bash download.sh
    """
    if script is not None and not wait:
        fail("--script needs --wait: there is no script before the job has ended", USAGE)
    job = _job("retrieve", pids, wait=wait, as_json=as_json, good_enough=script is not None)
    if script is not None:
        text = download_script_of(job)
        if not text:
            fail("the job left no download script", FAILED)
        write_private(script, text)
        err.print(Text(f"Fetch the files with: bash {script}"), soft_wrap=True)
        raise typer.Exit(0 if job.get("jobStatusMessage") == JobStatus.SUCCESSFUL else FAILED)


def status_command(
    subject: Annotated[str, typer.Argument(metavar="JOB|PID", help="A job's or a dataset's id.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look each second until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Say where a job or a dataset stands, and why it waits.

    With --watch a terminal shows a live table, and a pipe gets a line for whatever is new; with --json each line is the
    whole answer.

    \b
    Examples:
      scopemarchiver status 5a3c8a52-9e0f-4a0c-b7a5-0f6f4c1f8c11
      scopemarchiver status 20.500.11935/0d4c… --watch
      scopemarchiver status 20.500.11935/0d4c… --json
    """
    is_job, answer = run(_stand(connected("API_ENDPOINT"), subject, watch=watch, as_json=as_json))
    try:
        lines, good = _job_lines(answer) if is_job else _dataset_lines(answer)
    except ValidationError:  # a newer API: show what it says, judge nothing
        lines, good = [json.dumps(answer, indent=2, ensure_ascii=False)], True
    if not (watch and as_json):
        tell(answer, "\n".join(lines), as_json=as_json)
    if not good:
        raise typer.Exit(FAILED)


async def _stand(connection: Connection, subject: str, *, watch: bool, as_json: bool) -> tuple[bool, Document]:
    """Ask, again and again if it is to be watched; whether it is a job, and the last answer."""
    async with connection.api() as api:
        if not watch:
            return await subject_of(api, subject)
        if as_json:
            return await watch_until_end(subject, api=api, on_look=_JsonLines().show, interval_s=LOOK_EVERY_S)
        with Display(Console(highlight=False), subject) as display:
            return await watch_until_end(
                subject, api=api, on_look=lambda look, _: display.show(look), interval_s=LOOK_EVERY_S
            )


class _JsonLines:
    """Prints an answer whenever it differs from the one before."""

    _last: Document | None = None

    def show(self, _: Look, answer: Document) -> None:
        if answer != self._last:
            self._last = answer
            tell(answer, "", as_json=True)


async def upload(connection: Connection, inventory: Inventory, *, name: str, source: str, group: str = "") -> str:
    """Ingest as the connection's user, showing progress; return the pid."""
    async with connection.catalogue() as catalogue:
        email, groups = await catalogue.who_am_i()
        if not group and not groups:
            raise Refused(
                f"{connection.scicat_user} belongs to no group, so nothing of theirs has an owner", status=403
            )
        body = dataset_body(
            inventory,
            name=name,
            source=source,
            user=connection.scicat_user,
            email=email,
            group=group or groups[0],
        )
        with _UploadDisplay(inventory) as display:
            return await ingest(
                inventory,
                body,
                catalogue=catalogue,
                zone=connection.zone,
                on_dataset=display.on_dataset,
                on_file=display.on_file,
            )


class _UploadDisplay:
    """Bars on a terminal, a line every some files in a pipe; all on stderr."""

    def __init__(self, inventory: Inventory) -> None:
        self._files, self._bytes = len(inventory.files), inventory.size_bytes
        self._done = self._done_bytes = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files ·"),
            TextColumn("{task.fields[size]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bars.add_task("uploading", total=self._files, size="")

    def __enter__(self) -> "_UploadDisplay":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def on_dataset(self, pid: str) -> None:
        err.print(Text(f"uploading {self._files} files, {self._bytes / MIB:,.0f} MiB, as {pid}"), soft_wrap=True)

    def on_file(self, file: SourceFile) -> None:
        self._done += 1
        self._done_bytes += file.size
        size = f"{self._done_bytes / MIB:,.0f} of {self._bytes / MIB:,.0f} MiB"
        self._bars.update(self._task, advance=1, size=size)
        if not err.is_terminal and (self._done % _LINE_EVERY == 0 or self._done == self._files):
            err.print(f"{self._done} of {self._files} files, {size}")


def _job(kind: str, pids: list[str], *, wait: bool, as_json: bool, good_enough: bool = False) -> Document:
    """Post a job, and wait for it if told so; exits when it did not end well, unless something is still to be done."""
    job = run(post_and_follow(connected(), kind, pids, wait=wait))
    status, rows = ending(job)
    shown_job = {"job": job["id"], "type": kind, "pids": pids, "status": status}
    if wait:
        shown_job["result"] = job.get("jobResultObject") or {}
        for pid, outcome, sentence in rows:
            err.print(Text(f"{pid}: {outcome}" + (f": {sentence}" if sentence else "")), soft_wrap=True)
        err.print(Text(f"job {job['id']}: {status}"), soft_wrap=True)
    tell(shown_job, str(job["id"]), as_json=as_json)
    if wait and status != JobStatus.SUCCESSFUL and not good_enough:
        raise typer.Exit(FAILED)
    return job


async def post_and_follow(connection: Connection, kind: str, pids: list[str], *, wait: bool) -> Document:
    """Post a job to SciCat as the user; return it at once, or as it is when it has ended."""
    async with connection.catalogue() as catalogue, connection.api() as api:
        email, _ = await catalogue.who_am_i()
        job_id = await catalogue.create_job(kind, pids, email)
        if not wait:
            return {"id": job_id, "jobStatusMessage": ""}
        err.print(Text(f"job {job_id} (Ctrl-C ends only the waiting, not the job)"), soft_wrap=True)
        with Display(err, kind) as display:
            return await follow(job_id, catalogue=catalogue, api=api, on_look=display.show, interval_s=LOOK_EVERY_S)


def _job_lines(answer: Document) -> tuple[list[str], bool]:
    job = JobProgress.model_validate(answer)
    lines = [f"{job.type} job {job.id}: {job.status or job.phase.value}"]
    lines += [
        f"  {dataset.pid}: {dataset.status or dataset.phase}" + (f": {dataset.message}" if dataset.message else "")
        for dataset in job.datasets
    ]
    lines += [f"  and {job.datasets_total - len(job.datasets)} more"] if job.datasets_total > len(job.datasets) else []
    lines += [f"  {text}" for text in (*troubles_of(job.steps), job.message, job.note) if text]
    return lines, not finished(job.status) or job.status == JobStatus.SUCCESSFUL


def _dataset_lines(answer: Document) -> tuple[list[str], bool]:
    dataset = DatasetProgress.model_validate(answer)
    lines = [f"{dataset.kind} of {dataset.pid}: {dataset.outcome or phase_text(dataset)}"]
    if dataset.bytes_total:
        lines.append(f"  {dataset.bytes_done / MIB:,.1f} of {dataset.bytes_total / MIB:,.1f} MiB")
    lines += [f"  datablocks: {states_text(dataset)}"] if states_text(dataset) else []
    since = dataset.waiting_since or dataset.since
    lines += [f"  since {since}"] if since and dataset.outcome is None else []
    looks = [step.next_attempt for step in dataset.steps if step.next_attempt and not step.last_error]
    lines += [f"  next look at {min(looks)}"] if looks else []
    lines += [f"  paused by {dataset.paused_by}"] if dataset.paused_by else []
    lines += [f"  cancelled: {dataset.cancelled_by}"] if dataset.cancelled_by and dataset.outcome is None else []
    lines += [f"  {text}" for text in (*troubles_of(dataset.steps), dataset.message, dataset.note) if text]
    lines += [f"  besides: {other}: {word}" for other, word in dataset.others.items()]
    return lines, dataset.outcome is None or Outcome(dataset.outcome) in GOOD


def explain(inventory: Inventory) -> None:
    """Say what stays behind and what stands in the way."""
    for word, remarks in (("left out", inventory.skipped), ("refused", inventory.refused)):
        for remark in remarks[:_SHOWN_REMARKS]:
            err.print(Text(f"{word}: {remark.path}: {remark.reason}"), soft_wrap=True)
        if len(remarks) > _SHOWN_REMARKS:
            err.print(f"{word}: {len(remarks) - _SHOWN_REMARKS} more")


def download_script_of(job: Document) -> str:
    """The text of a finished retrieval's download script, empty if there is none."""
    result: Any = job.get("jobResultObject")
    encoded = cast(Document, result).get("downloadScript") if isinstance(result, dict) else None
    try:
        return base64.b64decode(str(encoded or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: the links in a script give access to data."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def api_endpoint(settings: Settings) -> str:
    """The archiver's API as the service's own settings know it, unless the environment names another."""
    return os.environ.get("API_ENDPOINT") or f"http://{HOST}:{settings.uvicorn_port}"


def this_service() -> Connection | None:
    """The API of the service whose settings and secrets lie here, as its operator: so it is in its containers."""
    try:
        settings = load_settings()
        settings.require("OPERATOR_USERNAME", "OPERATOR_PASSWORD")
    except SettingsError:
        return None
    return Connection(
        scicat_url="",
        s3_url="",
        api_url=api_endpoint(settings),
        api_user=settings.operator_username.get_secret_value(),
        api_password=settings.operator_password.get_secret_value(),
    )


def connected(*services: str) -> Connection:
    """The connection that the environment, the local stack or this service gives; exits if none does.

    Args:
        services: those that are wanted; all, if none is named.
    """
    # Its accounts at SciCat and S3 are not for people.
    here = local_stack() or (this_service() if services == ("API_ENDPOINT",) else None)
    try:
        return connect(os.environ, here, services=services or SERVICES)
    except OutOfReach as error:
        fail(str(error), OUT_OF_REACH)


def run(work: Coroutine[Any, Any, _RESULT]) -> _RESULT:
    """Run to the end; exits with the documented code when a service fails or says no."""
    try:
        return asyncio.run(work)
    except OutOfReach as error:
        fail(str(error), OUT_OF_REACH)
    except Refused as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def tell(result: Mapping[str, Any], line: str, *, as_json: bool) -> None:
    """Print the result on stdout."""
    print(json.dumps(result, ensure_ascii=False) if as_json else line)
    sys.stdout.flush()


def fail(sentence: str, code: int) -> NoReturn:
    """Say why, and exit."""
    err.print(Text(f"scopemarchiver: {sentence}"), soft_wrap=True)
    raise typer.Exit(code)
