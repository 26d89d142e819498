"""`python -m benchmarks run`, `profile CASE`, `control` and `waiting`: the Makefile's `bench…` and `profile`."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import control, many, waiting
from benchmarks.cases import Case, everyday, extreme
from benchmarks.peers import check_programs
from benchmarks.profiling import profile
from benchmarks.rclone import CommandFailed
from benchmarks.results import FOLDER, LATEST, Row, save, tables
from benchmarks.runner import measure
from benchmarks.site import JobFailed
from cli.go_build import MissingProgram
from cli.processes import StackError

_BROKEN = (CommandFailed, JobFailed, MissingProgram, StackError)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
console = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)

Scale = Annotated[
    float, typer.Option(envvar="SCALE", min=0.001, help="Multiplies sizes; other than 1 is not kept as the latest.")
]
Work = Annotated[Path, typer.Option(help="Where stacks and material lie meanwhile; the disk is part of the result.")]
_WORK = Path(".local")


@app.command("run")
def run_command(
    cases: Annotated[str, typer.Option(envvar="CASES", help="Only these, by name, separated by commas.")] = "",
    full: Annotated[bool, typer.Option(envvar="FULL", help="Also the extreme ones: 60 GB of disk.")] = False,
    repeats: Annotated[int, typer.Option(envvar="REPEATS", min=1, help="Timed runs of each.")] = 3,
    scale: Scale = 1.0,
    work: Work = _WORK,
) -> None:
    """Measure, print a table, and write results/latest.json (results/scaled.json at another scale)."""
    chosen = _chosen(cases, [*everyday(scale), *(extreme(scale) if full or cases else ())])
    rows: list[Row] = []
    failed = False
    with _plainly():
        check_programs()
    for case in chosen:
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="bench-", dir=_made(work)) as folder:
                rows += asyncio.run(
                    measure(
                        case,
                        Path(folder) / "site",
                        repeats=repeats,
                        scale=scale,
                        tell=lambda what, name=case.name: err.print(f"{name}: {what}"),
                    )
                )
        except _BROKEN as error:
            failed = True
            err.print(f"{case.name} failed: {error}", style="red", markup=False)
        else:
            err.print(f"{case.name}: done in {time.monotonic() - began:.0f} s")
    if rows:
        console.print(*tables(rows), sep="\n")
        path = LATEST if scale == 1 else FOLDER / "scaled.json"
        save(rows, path)
        err.print(f"written to {path.parent.name}/{path.name}")
    raise typer.Exit(1 if failed else 0)


@app.command("profile")
def profile_command(
    name: Annotated[str, typer.Argument(metavar="CASE", envvar="CASE")] = "archive-tiny",
    scale: Scale = 1.0,
    work: Work = _WORK,
) -> None:
    """Show where a case's time goes: timeline, requests, flame graphs of the workers."""
    case = _chosen(name, [*everyday(scale), *extreme(scale)])[0]
    with _plainly(), tempfile.TemporaryDirectory(prefix="bench-", dir=_made(work)) as folder:
        asyncio.run(profile(case, Path(folder) / "site", console))


@app.command("waiting")
def waiting_command(
    full: Annotated[bool, typer.Option(envvar="FULL", help="10,000 datasets instead of 1,000.")] = False,
    minutes: Annotated[float, typer.Option(envvar="MINUTES", min=0.1, help="How long nothing happens.")] = 10.0,
    scale: Scale = 1.0,
    work: Work = _WORK,
) -> None:
    """Measure what datasets cost that wait for tape, print it, and write results/waiting.json."""
    datasets = max(1, round((10_000 if full else 1_000) * scale))
    with _plainly(), tempfile.TemporaryDirectory(prefix="bench-", dir=_made(work)) as folder:
        waited = asyncio.run(
            waiting.measure(
                Path(folder) / "site",
                datasets=datasets,
                wait_s=minutes * 60,
                tell=lambda what: err.print(f"waiting: {what}"),
            )
        )
    console.print(waiting.table(waited))
    if scale == 1:
        waiting.save(waited)


@app.command("control")
def control_command(
    scale: Scale = 1.0,
    workers: Annotated[
        int, typer.Option(envvar="WORKERS", min=1, help="Beside one worker on each queue: so many, in turn.")
    ] = 1,
    repeats: Annotated[int, typer.Option(envvar="REPEATS", min=1, help="Runs of each, where it is in turn.")] = 2,
    work: Work = _WORK,
) -> None:
    """Measure a job of 1,000 datasets of 1 KiB, print it, and write results/control.json (results/workers.json)."""
    datasets = max(1, round(many.JOB_DATASETS * scale))

    def tell(what: str) -> None:
        err.print(f"control: {what}")

    with _plainly(), tempfile.TemporaryDirectory(prefix="bench-", dir=_made(work)) as folder:
        if workers > 1:
            found = asyncio.run(
                control.beside(Path(folder), datasets=datasets, workers=workers, repeats=repeats, tell=tell)
            )
            console.print(control.comparison(found))
            control.save_comparison(found)
            return
        carried = asyncio.run(control.measure(Path(folder) / "site", datasets=datasets, workers=1, tell=tell))
    console.print(control.table(carried))
    if scale == 1:
        control.save(carried)


def _chosen(names: str, cases: list[Case]) -> list[Case]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {case.name: case for case in cases}
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: the cases are {', '.join(known)}")
    return [known[name] for name in wanted] or cases


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


@contextmanager
def _plainly() -> Generator[None]:
    """End with exit code 1 and the error's own sentence."""
    try:
        yield
    except _BROKEN as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
