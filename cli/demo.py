"""`scopemarchiver demo`: the main job from one end to the other, with real files and every byte compared at the end.

    scan ─► upload, register ─► archive ─► checks ─► retrieve ─► download, unpack ─► compare

Nothing here has inside knowledge of a run: SciCat, S3, the tape library and the API are asked as their users ask them.
"""

import asyncio
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, cast

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import client
from cli.catalogue import Document, OutOfReach, foreign, trusted
from cli.client import EXIT_CODES, FAILED, USAGE, Connection, err, explain, fail, upload
from cli.following import MIB, Display, Look, ending, follow
from cli.ingest import Inventory, open_zone, s3_errors, scan, shown
from cli.local import DEFAULT_FOLDER
from cli.ports import Ports
from cli.processes import StackError
from cli.services import plainly
from cli.session import DEFAULT_BYTES, generate_session
from cli.stack import Stack, StackState
from domain.lifecycle import JobStatus, Phase
from domain.names import archive_workflow, job_workflow, raw_prefix, retrieve_workflow

FEWEST_BLOCKS = 3
_LOOK_EVERY_S = 0.25
_EVICTION_PATIENCE_S = 60.0
_SHOWN_DIFFERENCES = 20
_READ_BYTES = 1 << 20
_FILES_PER_BLOCK = 2_000
_GB_PER_BLOCK = 0.15
_NO_SOURCES = frozenset({"__pycache__", "site-packages", "dist-packages"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog=EXIT_CODES, rich_help_panel="Datasets")(demo_command)


def demo_command(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The folder to archive.", exists=True, file_okay=False, readable=True),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack running afterwards, in front, until Ctrl-C.")
    ] = False,
    size_mib: Annotated[
        int, typer.Option("--session-mib", min=1, help="Size of the generated session, without DIR.")
    ] = DEFAULT_BYTES // MIB,
    stack: Annotated[Path, typer.Option(help="Folder of the local stack.")] = DEFAULT_FOLDER,
    port_base: Annotated[
        int | None, typer.Option(help="Start the stack on consecutive ports from here instead of its usual ones.")
    ] = None,
) -> None:
    """Archive a folder to (pretend) tape and bring it back, and compare every byte.

    Without DIR it takes the standard library of the Python that runs this, thousands of real files, and a generated
    electron-microscopy session. It starts the local stack unless one runs, with low limits so that there are at least
    three datablocks, and with tape delays that are short but there; and stops it again. A running stack is used as is.

    \b
    Examples:
      scopemarchiver demo
      scopemarchiver demo ~/pictures --keep
    """
    with plainly(), tempfile.TemporaryDirectory(prefix="scopemarchiver-demo-") as temporary:
        work = Path(temporary)
        inventory = _material(folder, work / "session", size_mib * MIB)
        differences = client.run(
            _demo(inventory, work, stack_folder=stack, port_base=port_base, keep=keep, source=folder)
        )
    if differences:
        raise typer.Exit(FAILED)


@dataclass(slots=True)
class Report:
    """What the demo found out: seconds and bytes per step, what does not hold, where to look."""

    steps: list[tuple[str, float, int]] = field(default_factory=list[tuple[str, float, int]])
    """(step, seconds, bytes; 0 where no bytes are meant)."""
    problems: list[str] = field(default_factory=list[str])
    links: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @contextmanager
    def step(self, name: str, size_bytes: int = 0) -> Generator[None]:
        """Time a step."""
        position = len(self.steps)  # before the phases that are found out inside
        began = time.monotonic()
        yield
        self.steps.insert(position, (name, time.monotonic() - began, size_bytes))

    def check(self, good: bool, what: str, otherwise: str = "") -> None:
        """Note whether something holds."""
        line = Text(f"  ✓ {what}", style="green") if good else Text(f"  ✗ {otherwise or what}", style="red")
        err.print(line, soft_wrap=True)
        if not good:
            self.problems.append(otherwise or f"not so: {what}")


@dataclass(slots=True)
class PhaseClock:
    """How long the dataset was seen in each phase; a phase shorter than the time between two looks may be missed."""

    seen: dict[Phase, tuple[float, float]] = field(default_factory=dict[Phase, tuple[float, float]])
    """Phase → (first seen, left)."""
    _now: Phase | None = None

    def look(self, look: Look) -> None:
        """Take note."""
        phase = look.datasets[0].phase if look.datasets else None
        if self._now is not None:
            self.seen[self._now] = (self.seen[self._now][0], look.at_s)
        if phase is not None:
            self.seen.setdefault(phase, (look.at_s, look.at_s))
        self._now = phase

    def steps(self, size_bytes: int) -> Iterator[tuple[str, float, int]]:
        """One step per phase; only those that move the payload have bytes."""
        moving = (Phase.WRITING, Phase.VERIFYING, Phase.COPYING)
        for phase, (began, left) in self.seen.items():
            if phase is Phase.DONE:
                continue
            yield f"  {phase.value.replace('_', ' ')}", left - began, size_bytes if phase in moving else 0


def demo_overrides(files: int) -> dict[str, str]:
    """Settings for a stack of the demo's own: at least three datablocks from three files on, and quick tapes."""
    return {
        "ARCHIVER_TARGET_FILES": str(max(1, min(_FILES_PER_BLOCK, (files - 1) // (FEWEST_BLOCKS - 1)))),
        "ARCHIVER_TARGET_SIZE_GB": str(_GB_PER_BLOCK),
        "LTS_POLL_S": "1",
        # two minutes of mounting and winding last 0.2 s; a file leaves the disk cache soon after it is on tape, so
        # that a retrieval meets a tape and not a cache
        "MOCK_LTS_TIME_FACTOR": "0.00167",
        "MOCK_LTS_EVICT_AFTER_MIGRATION_S": "1",
    }


def _material(folder: Path | None, session: Path, session_bytes: int) -> Inventory:
    """The files to archive; exits when they cannot be archived."""
    if folder is not None:
        inventory = scan(folder)
    else:
        err.print("making an electron-microscopy session", highlight=False)
        generate_session(session, total_bytes=session_bytes)
        inventory = scan(session, prefix="session/")
        library = scan(Path(sysconfig.get_path("stdlib")), prefix="standard-library/", leave_out=_NO_SOURCES)
        inventory.files += library.files
        inventory.skipped += library.skipped
        inventory.refused += library.refused
    explain(inventory)
    if inventory.refused:
        fail("the archive would refuse the names above; nothing was started", USAGE)
    if not inventory.files:
        fail("there is no regular file to archive", USAGE)
    return inventory


async def _demo(
    inventory: Inventory, work: Path, *, stack_folder: Path, port_base: int | None, keep: bool, source: Path | None
) -> list[str]:
    """The whole demo; returns what does not hold."""
    overrides = demo_overrides(len(inventory.files))
    async with _running_stack(stack_folder, port_base, overrides) as (connection, own):
        report = Report()
        try:
            await demonstrate(
                connection,
                inventory,
                work,
                report,
                source=str((source or work).resolve()),
                fewest_blocks=min(FEWEST_BLOCKS, len(inventory.files)) if own else 1,
                await_eviction=own is not None,
            )
        finally:
            show(report, Console(highlight=False))
        if own is not None and keep:
            err.print("the stack goes on running until Ctrl-C", highlight=False)
            await own.wait()
        return report.problems


@asynccontextmanager
async def _running_stack(
    folder: Path, port_base: int | None, overrides: dict[str, str]
) -> AsyncGenerator[tuple[Connection, Stack | None]]:
    """The connection to the stack that runs; one of our own, stopped at the end, where none does."""
    state = StackState.read(folder)
    running = client.local_stack(folder)
    if state is not None and state.ready and running is not None:
        err.print(Text(f"using the stack that runs in {folder}, with its own settings"), soft_wrap=True)
        yield running, None
        return
    err.print(Text(f"starting the local stack in {folder}"), soft_wrap=True)
    try:
        ports = Ports.chosen(os.environ, port_base)
    except ValueError as error:
        raise StackError(str(error)) from None
    async with Stack(folder, ports, overrides) as stack:
        yield client.stack_connection(stack.settings, stack.ports), stack
        err.print("stopping the stack; `make up` brings it, and the pages named above, back", highlight=False)


async def demonstrate(
    connection: Connection,
    inventory: Inventory,
    work: Path,
    report: Report,
    *,
    source: str,
    fewest_blocks: int = 1,
    await_eviction: bool = False,
) -> None:
    """Archive, check, retrieve, unpack, compare; everything that does not hold goes into the report.

    Args:
        connection: the services to use.
        inventory: the files, nothing of which may be refused.
        work: an empty folder for what is downloaded.
        report: filled in as far as things go.
        source: `sourceFolder` of the dataset.
        fewest_blocks: how many datablocks must come out.
        await_eviction: wait until no datablock is left in the disk cache, so that the retrieval needs a recall.

    Raises:
        OutOfReach, Refused: a service failed.
    """
    size = inventory.size_bytes
    with report.step("upload and register", size):
        pid = await upload(connection, inventory, name="Demo session", source=source)
    job = await _run_job(connection, "archive", pid, size, report)
    if job is None:
        return
    archive_ids = await _check_catalogue(connection, pid, inventory, report, fewest_blocks)
    await _check_landing_zone(connection, pid, report)
    await _check_tape(connection, archive_ids, report, await_eviction=await_eviction)
    await _check_cartridges(connection, report)

    job = await _run_job(connection, "retrieve", pid, size, report)
    if job is None:
        return
    extracted = work / "extracted"
    with report.step("download, check, unpack", size):
        good = await run_script(client.download_script_of(job), work, extracted)
    report.check(good, "the download script ended well", "the download script failed (see above)")
    with report.step("compare", size):
        differences = await asyncio.to_thread(compare, inventory, extracted)
    report.check(not differences, f"all {len(inventory.files)} files are back, with the same names and bytes")
    report.problems += differences


async def _run_job(connection: Connection, kind: str, pid: str, size: int, report: Report) -> Document | None:
    """Post a job to SciCat and follow it to its end; None (and a problem noted) unless it ends well."""
    clock = PhaseClock()
    async with connection.catalogue() as catalogue, connection.api() as api:
        with report.step(kind, size):
            job_id = await catalogue.create_job(kind, [pid])
            report.links.append((f"{kind} job", connection.workflow_url(job_workflow(job_id))))
            workflow = archive_workflow(pid) if kind == "archive" else retrieve_workflow(pid)
            report.links.append((f"{kind} of the dataset", connection.workflow_url(workflow)))
            with Display(err, kind) as display:

                def on_look(look: Look) -> None:
                    clock.look(look)
                    display.show(look)

                job = await follow(job_id, catalogue=catalogue, api=api, on_look=on_look, interval_s=_LOOK_EVERY_S)
    report.steps += clock.steps(size)
    status, rows = ending(job)
    said = "; ".join(f"{outcome}: {sentence}" for _, outcome, sentence in rows)
    good = status == JobStatus.SUCCESSFUL
    report.check(good, f"the {kind} job is {status}", f"the {kind} job is {status}; {said}")
    return job if good else None


async def _check_catalogue(
    connection: Connection, pid: str, inventory: Inventory, report: Report, fewest: int
) -> list[str]:
    """SciCat must know datablocks that hold just our files; returns their archiveIds."""
    async with connection.catalogue() as catalogue:
        blocks = await catalogue.datablocks(pid)
    report.check(
        len(blocks) >= fewest,
        f"SciCat knows {len(blocks)} datablocks",
        f"SciCat knows {len(blocks)} datablocks, at least {fewest} were expected",
    )
    listed = [
        (str(entry.get("path")), int(entry.get("size", -1)))
        for block in blocks
        for entry in cast("list[Document]", block.get("dataFileList", []))
    ]
    wanted = [(file.path, file.size) for file in inventory.files]
    report.check(sorted(listed) == sorted(wanted), f"they list all {len(wanted)} files with their sizes")
    return [str(block.get("archiveId")) for block in blocks]


async def _check_landing_zone(connection: Connection, pid: str, report: Report) -> None:
    """No object of the dataset may be left in the landing zone: no version, no delete marker."""
    left: list[str] = []
    async with open_zone(connection.zone) as s3:
        with s3_errors(connection.s3_url):
            pages = s3.get_paginator("list_object_versions")
            async for page in pages.paginate(Bucket=connection.landing_bucket, Prefix=raw_prefix(pid)):
                left += [f"{version.get('Key')} ({version.get('VersionId')})" for version in page.get("Versions", [])]
                left += [f"{marker.get('Key')} (delete marker)" for marker in page.get("DeleteMarkers", [])]
    report.check(
        not left,
        "the landing zone holds nothing of it, no old version either",
        f"the landing zone still holds {len(left)} versions, e.g. {', '.join(map(shown, left[:3]))}",
    )


async def _check_tape(connection: Connection, paths: list[str], report: Report, *, await_eviction: bool) -> None:
    """Every datablock must be on tape by the tape library's own word."""
    deadline = time.monotonic() + _EVICTION_PATIENCE_S
    while True:
        states = await localities(connection, paths)
        cached = [path for path in paths if states.get(path) != "TAPE"]
        if not (await_eviction and cached and time.monotonic() < deadline):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    missing = [f"{path} ({states.get(path, 'not there')})" for path in paths if "TAPE" not in states.get(path, "")]
    where = "on tape" if cached else "on tape only, so retrieving needs a recall"
    report.check(bool(paths) and not missing, f"all datablocks are {where}", f"not on tape: {', '.join(missing)}")


async def _check_cartridges(connection: Connection, report: Report) -> None:
    """The pretend library shows how full its cartridges are; any other is asked no more than the Tape REST API."""
    try:
        async with _library(connection) as http:
            answer = await http.get(f"{connection.lts_url}/admin/state", params={"path": "none"})
            if answer.is_error:
                return
            tapes = cast("list[Document]", answer.json()["tapes"])
    except (httpx.HTTPError, ValueError, KeyError):
        return
    filled = [f"{tape['name']} ({tape['used_bytes'] / MIB:,.0f} MiB)" for tape in tapes if tape["used_bytes"]]
    report.check(bool(filled), f"the cartridges fill: {', '.join(filled)}", "all cartridges are empty")
    report.links.append(("cartridges, drives and queues", f"{connection.lts_url}/"))


def _library(connection: Connection) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {connection.lts_token}"} if connection.lts_token else {}
    return httpx.AsyncClient(headers=headers, timeout=30, trust_env=foreign(connection.lts_url), verify=trusted())


async def localities(connection: Connection, paths: list[str]) -> dict[str, str]:
    """Path → locality in the words of the WLCG Tape REST API v1; files that the tape library does not know are absent.

    Raises:
        OutOfReach: it does not answer as it should.
    """
    try:
        async with _library(connection) as http:
            site = (await http.get(f"{connection.lts_url}/.well-known/wlcg-tape-rest-api")).raise_for_status().json()
            endpoints = cast("list[Document]", site["endpoints"])
            base = next(str(endpoint["uri"]) for endpoint in endpoints if endpoint.get("version") == "v1")
            answer = await http.post(f"{base.rstrip('/')}/archiveinfo", json={"paths": paths})
            files = cast("list[Document]", answer.raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError, StopIteration) as error:
        raise OutOfReach(f"the tape library at {connection.lts_url} does not answer as it should: {error!r}") from None
    return {str(file["path"]): str(file["locality"]) for file in files if file.get("locality")}


async def run_script(script: str, work: Path, extracted: Path) -> bool:
    """Run a download script with the bash that people have; its progress goes to our stderr."""
    if not script:
        err.print("the job left no download script", style="red")
        return False
    path = work / "download.sh"
    client.write_private(path, script)
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(path),
        env={**os.environ, "DOWNLOAD_FOLDER": str(work / "downloads"), "EXTRACTION_FOLDER": str(extracted)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
    )
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def compare(inventory: Inventory, extracted: Path) -> list[str]:
    """Say of every file that is missing, differs, or is too many what is wrong, the first twenty of each kind."""
    wanted = {file.path: file for file in inventory.files}
    found = {file.path: file for file in scan(extracted).files} if extracted.is_dir() else {}
    missing = [f"missing: {shown(path)}" for path in wanted if path not in found]
    extra = [f"not in the original: {shown(path)}" for path in found if path not in wanted]
    changed = [
        f"differs: {shown(path)}"
        for path, file in wanted.items()
        if path in found and not _same_bytes(file.source, found[path].source)
    ]
    return [line for lines in (missing, extra, changed) for line in islice(lines, _SHOWN_DIFFERENCES)]


def _same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(_READ_BYTES), right.read(_READ_BYTES)
            if a != b:
                return False
            if not a:
                return True


def show(report: Report, console: Console) -> None:
    """Print the table of times, the links, and what does not hold."""
    table = Table(title="What it took", title_justify="left")
    for column in ("step", "MiB", "s", "MiB/s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, seconds, size in report.steps:
        speed = f"{size / MIB / seconds:,.0f}" if size and seconds > 0 else ""
        table.add_row(name, f"{size / MIB:,.0f}" if size else "", f"{seconds:,.1f}", speed)
    table.caption = "datablocks overlap: a phase is that of the one furthest behind"
    table.caption_justify = "left"
    console.print(table)
    for name, url in report.links:
        console.print(Text(f"{name}: {url}"), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(problem, style="red"), soft_wrap=True)
    if not report.problems:
        console.print("Everything came back as it was.")
