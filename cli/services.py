"""Commands that run one part of the service in the foreground, as a deployment does."""

import asyncio
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from cli.go_build import MissingProgram
from cli.processes import StackError
from settings import SettingsError, load_settings


@contextmanager
def plainly() -> Generator[None]:
    """End the command with exit code 1 and the error's own sentence, where a traceback would tell a person nothing."""
    try:
        yield
    except (MissingProgram, SettingsError, StackError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def register(app: typer.Typer) -> None:
    """Add `api`, `worker` and `setup`."""
    app.command(rich_help_panel="Service")(api)
    app.command(rich_help_panel="Service")(worker)
    app.command("setup", rich_help_panel="Service")(set_up)


def api() -> None:
    """Run the HTTP API in the foreground."""
    _become("api")


def worker(
    queue: Annotated[
        list[str],
        typer.Option("--queue", "-q", help="Task queue to work on: control, archival, retrieval; repeatable."),
    ],
) -> None:
    """Run a worker in the foreground, on one or more task queues.

    Examples:

    scopemarchiver worker --queue control

    scopemarchiver worker --queue archival --queue retrieval
    """
    _become("worker", *(part for name in queue for part in ("--queue", name)))


def set_up(
    minio: Annotated[
        bool,
        typer.Option("--minio", help="S3 is a MinIO whose root is S3_USER: make the account of S3_LINK_USER, too."),
    ] = False,
) -> None:
    """Make what the service needs: buckets, namespace, search attributes, schedules. May be repeated at any time."""
    # Temporal's client takes longer to load than all else together, and most commands need none.
    from cli.setup import prepare

    with plainly():
        done = asyncio.run(prepare(load_settings(), minio=minio))
    typer.echo("\n".join(done or ["Everything was there already."]))


def _become(module: str, *arguments: str) -> NoReturn:
    # `api` and `worker` are neighbours of `cli`, not below it: they are run, not imported. The process is replaced, so
    # that a signal to it reaches the service itself.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])  # noqa: S606 - this very program
