"""`up` and `down`: the local stack at the command line."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli import binaries
from cli.ports import HOST, Ports
from cli.processes import StackError, last_lines
from cli.services import plainly
from cli.stack import ALL_SERVICES, Stack, StackState, bring_down, check_names

DEFAULT_FOLDER = Path(".local")

Folder = Annotated[Path, typer.Option(help="Where the stack keeps its data, secrets and logs.")]


def register(app: typer.Typer) -> None:
    """Add `up` and `down`."""
    app.command(rich_help_panel="Local stack")(up)
    app.command(rich_help_panel="Local stack")(down)


def up(
    folder: Folder = DEFAULT_FOLDER,
    port_base: Annotated[
        int | None, typer.Option(help="Use consecutive ports from here instead of each program's own.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once everything answers; `down` stops it.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Start just this: {', '.join(ALL_SERVICES)}; repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this out, e.g. to run it in a debugger; repeatable.")
    ] = None,
) -> None:
    """Start everything on this machine: Temporal, MinIO, a pretend tape library, a pretend SciCat, API and workers.

    Stays in front until Ctrl-C or until a process dies. Listens on the loopback interface only.

    Settings come from ./config.toml and the environment, as always. A single port is chosen by LOCAL_API_PORT,
    LOCAL_SCICAT_PORT, LOCAL_LTS_PORT, LOCAL_MINIO_PORT, LOCAL_MINIO_CONSOLE_PORT, LOCAL_TEMPORAL_PORT or
    LOCAL_TEMPORAL_UI_PORT.

    Examples:

    scopemarchiver up

    scopemarchiver up --detach --port-base 21000

    scopemarchiver up --only temporal --only minio

    scopemarchiver up --without worker-archival

    ARCHIVER_TARGET_SIZE_GB=0.01 MOCK_LTS_TIME_FACTOR=0.01 scopemarchiver up
    """
    with plainly():
        ports = Ports.chosen(os.environ, port_base)
        check_names([*(only or ()), *(without or ())])
        services = [name for name in only or ALL_SERVICES if name not in (without or ())]
        if "minio" in services:
            binaries.minio()  # here, where Ctrl-C still ends it, should it have to be built
        if detach:
            _start_detached(folder, ports, services)
        else:
            asyncio.run(_stay_in_front(Stack(folder, ports, services=services)))


def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the local stack, in front or detached; its data stay.

    Examples:

    scopemarchiver down

    scopemarchiver down --folder elsewhere
    """
    if bring_down(folder):
        typer.echo(f"The stack in {folder} is down; its data stay there.")
    else:
        typer.echo(f"No stack runs in {folder}.")


async def _stay_in_front(stack: Stack) -> None:
    """Run the stack until SIGINT or SIGTERM; a second one kills what does not stop."""
    supervising = asyncio.current_task()
    assert supervising is not None  # noqa: S101 - this is a coroutine
    loop = asyncio.get_running_loop()

    def stop_politely() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stack.kill_all)
        typer.echo("Stopping.", err=True)
        supervising.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_politely)
    try:
        async with stack:
            show(stack.folder, stack.ports, stack.services)
            await stack.wait()
    except asyncio.CancelledError:
        return  # as asked


def _start_detached(folder: Path, ports: Ports, services: Sequence[str]) -> None:
    """Start a supervisor of its own session, wait until the stack answers, and show what is where."""
    running = StackState.read(folder)
    if running is not None and running.ready and running.supervisor.alive:
        show(folder, running.ports, running.children)
        return
    log = folder / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    stack = {"folder": str(folder.absolute()), "ports": asdict(ports), "services": list(services)}
    command = [sys.executable, "-P", "-m", "cli.local", json.dumps(stack)]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(  # noqa: S603 - this very program
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while supervisor.poll() is None:
            state = StackState.read(folder)
            if state is not None and state.ready and state.supervisor.pid == supervisor.pid:
                show(folder, ports, services)
                return
            time.sleep(0.1)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    raise StackError(last_lines(log, count=40) or f"The stack did not start: see {log}.")


def show(folder: Path, ports: Ports, services: Collection[str]) -> None:
    """Print where everything is, and who may log in."""
    table = Table(title="The local stack", title_justify="left")
    for heading in ("what", "where", "user", "password"):
        table.add_column(heading, overflow="fold")
    for service, *row in (
        ("api", "API", f"http://{HOST}:{ports.api}", "scicat", "job_endpoint_password"),
        ("scicat", "SciCat *", f"http://{HOST}:{ports.scicat}", "alice", "alice"),
        ("idp", "Identities *", f"http://{HOST}:{ports.idp}", "archiver-service", "idp_password"),
        ("temporal", "Temporal", f"http://{HOST}:{ports.temporal_ui}", "", ""),
        ("temporal", "  gRPC", f"{HOST}:{ports.temporal}", "", ""),
        ("minio", "MinIO", f"http://{HOST}:{ports.minio_console}", "archiver", "s3_password"),
        ("minio", "  S3", f"http://{HOST}:{ports.minio}", "archiver", "s3_password"),
        ("lts", "Tapes *", f"http://{HOST}:{ports.lts}", "(token)", "lts_token"),
    ):
        if service in services:
            table.add_row(*row)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"* stand-ins. Passwords with a _ are files in {folder / 'secrets'}. Logs are in {folder / 'logs'}.")
    console.print("Ctrl-C stops it where it runs in front; `make down` stops it anyhow.")


def main(description: str) -> int:
    """Supervise a detached stack: `python -m cli.local '{"folder": ..., "ports": ..., "services": ...}'`."""
    told = json.loads(description)
    try:
        with plainly():
            stack = Stack(Path(told["folder"]), Ports(**told["ports"]), services=told["services"])
            asyncio.run(_stay_in_front(stack))
    except typer.Exit as stop:  # nobody above understands it
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
