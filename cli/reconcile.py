"""`reconcile`: begin again what Temporal has lost, by what SciCat and the stores know."""

import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.text import Text

from cli.catalogue import OutOfReach, Refused
from cli.client import FAILED, Json, api_endpoint, err, run
from cli.following import ArchiverApi
from cli.ingest import shown
from cli.local import DEFAULT_FOLDER
from cli.orphans import service_settings
from cli.services import plainly
from domain import names
from domain.errors import ArchiverError, DatasetError, JobError
from settings import Settings

if TYPE_CHECKING:  # they bring the S3 client with them
    from cli.losses import Found, Loss, Losses

EXIT_CODES = (
    "Exit codes: 0 nothing is left to do; 1 something is, or was refused; 2 wrong usage; "
    "3 a service is out of reach or does not let you in."
)

_SHOWN = 20
"""Of each kind; `--json` names all."""
_LINE_EVERY = 500


def register(app: typer.Typer) -> None:
    """Add `reconcile`."""
    app.command("reconcile", epilog=EXIT_CODES, rich_help_panel="Service")(reconcile_command)


def reconcile_command(
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it is only shown.")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(help="Leave jobs alone that were submitted before this day.", formats=["%Y-%m-%d"]),
    ] = None,
    as_json: Json = False,
) -> None:
    """Begin again what was begun and nobody works on any more, e.g. after the loss of Temporal's database.

    Asks SciCat which jobs have not finished and which datasets are marked as begun, and Temporal who is at work. Such
    jobs are given to the archiver's API as SciCat gives them, and go on from what is on the LTS. Datasets that no job
    asks for any more are set free in SciCat. Uploads are named, and left to their owners. What runs is left alone.

    Run `setup` first. It may be run again at any time.

    Of the local stack in `.local/`, or of the settings where S3_ENDPOINT is set or no stack runs. The API is the one
    on this machine unless API_ENDPOINT names another.

    \b
    Examples:
      scopemarchiver reconcile
      scopemarchiver reconcile --apply
      scopemarchiver reconcile --since 2026-11-01 --json
    """
    with plainly():
        settings = service_settings(DEFAULT_FOLDER)
        settings.require("SCICAT_USER", "SCICAT_PASSWORD", "JOB_ENDPOINT_USERNAME", "JOB_ENDPOINT_PASSWORD")
    moment = since.replace(tzinfo=UTC).isoformat() if since else ""
    found, troubles = run(_reconcile(settings, moment, apply=apply))
    if as_json:
        losses = [
            loss.model_dump(mode="json") | {"remedy": loss.remedy, "trouble": troubles.get(loss.id, "")}
            for loss in found.losses
        ]
        answer = {"applied": apply, "jobs": found.jobs, "running": found.running, "losses": losses}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print("\n".join(_lines(found, applied=apply)))
        for subject, trouble in troubles.items():
            err.print(Text(f"{shown(subject)}: not done: {trouble}"), soft_wrap=True)
    if troubles or (not apply and any(loss.remedy for loss in found.losses)):
        raise typer.Exit(FAILED)


async def _reconcile(settings: Settings, since: str, *, apply: bool) -> tuple["Found", dict[str, str]]:
    """What is lost, and, of that which was to be mended, id → why it was not."""
    from temporalio.service import RPCError

    kept = "nothing was changed"
    try:
        with _Progress() as progress:
            async with _losses(settings) as losses:
                found = await losses.find(since=since, on_look=progress.show)
                if not apply:
                    return found, {}
                kept = "what was done before stays done; run the command again"
                return found, await _mend(losses, [loss for loss in found.losses if loss.remedy], progress)
    except (ArchiverError, OutOfReach) as error:
        raise OutOfReach(f"{error}; {kept}") from error
    except RPCError as error:
        raise OutOfReach(f"Temporal at {settings.temporal_address}: {error}; {kept}") from error


async def _mend(losses: "Losses", lost: list["Loss"], progress: "_Progress") -> dict[str, str]:
    """Mend one after another; id → why that one was not."""
    troubles: dict[str, str] = {}
    for done, loss in enumerate(lost, start=1):
        try:
            await losses.mend(loss)
        except (DatasetError, JobError, Refused) as error:
            troubles[loss.id] = str(error)
        progress.show("mended", done)
    return troubles


@asynccontextmanager
async def _losses(settings: Settings) -> AsyncGenerator["Losses"]:
    from activities.running import is_running
    from cli.losses import Losses
    from clients.s3 import ObjectStore
    from clients.scicat import Catalogue
    from clients.state import State
    from clients.temporal import connect

    try:
        temporal = await connect(**settings.temporal_connection)
    except RuntimeError as error:  # what the SDK raises when it cannot connect
        raise OutOfReach(f"Temporal does not answer at {settings.temporal_address}: check TEMPORAL_ADDRESS") from error
    if not await is_running(temporal, names.LANDING_ZONE):
        raise OutOfReach("Temporal is not set up for us: run `scopemarchiver setup` first")
    account = (settings.job_endpoint_username.get_secret_value(), settings.job_endpoint_password.get_secret_value())
    catalogue = Catalogue(**settings.scicat_connection)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(catalogue.aclose)
        objects = await stack.enter_async_context(ObjectStore.connect(**settings.s3_connection))
        yield Losses(
            catalogue=catalogue,
            temporal=temporal,
            objects=objects,
            landing_bucket=settings.s3_landingzone_bucket,
            state=State(objects, settings.s3_state_bucket),
            api=await stack.enter_async_context(ArchiverApi(api_endpoint(settings), *account)),
        )


class _Progress:
    """What is looked at: a line that changes on a terminal, a line every some hundred in a pipe; all on stderr."""

    def __init__(self) -> None:
        columns = SpinnerColumn(), TextColumn("{task.description}")
        self._line = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._line.add_task("asking SciCat")

    def __enter__(self) -> "_Progress":
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def show(self, what: str, count: int) -> None:
        self._line.update(self._task, description=f"{what}: {count}")
        if not err.is_terminal and count % _LINE_EVERY == 0:
            err.print(f"{what}: {count}")


def _lines(found: "Found", *, applied: bool) -> Iterator[str]:
    """A line for each loss, and at the end what was looked at."""
    counts = Counter(loss.kind for loss in found.losses)
    named = Counter[str]()
    for loss in found.losses:
        named[loss.kind] += 1
        if named[loss.kind] <= _SHOWN:
            yield f"{loss.kind.value:<10}  {shown(loss.id)}  ({loss.detail})" + (f": {loss.remedy}" * bool(loss.remedy))
        elif named[loss.kind] == counts[loss.kind]:
            yield f"{loss.kind.value:<10}  and {counts[loss.kind] - _SHOWN} more"
    told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items())
    yield f"{found.jobs} jobs have not finished in SciCat, {found.running} of them run; lost: {told or 'nothing'}"
    if not applied and any(loss.remedy for loss in found.losses):
        yield "nothing was changed: --apply does it"
