"""`upload`: a folder goes into the archive through the archiver's API, as the Ingestor does it, by command.

    log in ──► token ──► dataset in SciCat ──► room ──► files ──► files in SciCat ──► finalize
                                │                │        │             │
                                └────────────────┴── a next run goes on here

Wherever it ends before, nothing is thrown away, and the same command goes on.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Self

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from cli.binaries import cache_folder
from cli.catalogue import Refused, UserCatalogue
from cli.client import EXIT_CODES, USAGE, Connection, Json, connected, err, explain, fail, run, tell
from cli.following import MIB
from cli.ingest import FILES_PER_BLOCK, Inventory, dataset_body, file_entry, scan, shown
from cli.upload_api import Declined, NoRoom, UploadApi
from cli.upload_files import Sender, Watching
from cli.upload_journal import Journal, unfinished

NO_ROOM = 4
ROOM_EVERY_S = 60.0
"""Between two requests for room, unless the API says how long to wait."""

_NOT_COMPLETE = ("NothingUploaded", "UploadUnfinished")
_CLOSED = ("AlreadyFinalized", "BeingArchived", "AlreadyArchived")
_LINE_EVERY = 500
_NAMED = 3


def register(app: typer.Typer) -> None:
    """Add `upload`."""
    epilog = f"{EXIT_CODES[:-1]}; 4 there is no room, with --no-wait; 130 Ctrl-C."
    app.command("upload", epilog=epilog, rich_help_panel="Datasets")(upload_command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the options say."""

    pid: str = ""
    name: str = ""
    owner_group: str = ""
    archive: bool = False
    wait: bool = True
    connections: int = 8


def upload_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to upload.", exists=True, file_okay=False, readable=True)
    ],
    pid: Annotated[str, typer.Option(help="Upload to this dataset, which SciCat has already.")] = "",
    name: Annotated[str, typer.Option(help="Name of a new dataset in SciCat; the folder's name if not given.")] = "",
    owner_group: Annotated[
        str, typer.Option(help="SciCat group that owns a new one; your first group if not given.")
    ] = "",
    archive: Annotated[bool, typer.Option("--archive", help="Have it archived as soon as all of it is there.")] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Begin a new dataset, though an upload of this folder has not ended.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="If there is no room for it now, end with exit code 4.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Throw away what is uploaded of this folder and not finalized; then end.")
    ] = False,
    connections: Annotated[int, typer.Option(help="Parts under way at once.", min=1, max=64)] = 8,
    as_json: Json = False,
) -> None:
    """Upload a folder through the archiver's API, register it in SciCat, and finalize it; go on if that was begun.

    Prints the dataset's id. Needs an account of SciCat's whose group may upload (SCICAT_USER and SCICAT_PASSWORD, or
    SCICAT_TOKEN), and no account of S3's. Interrupted by Ctrl-C, a lost line or a crash, the same command goes on:
    what is there with the same size and checksum is not sent again.

    \b
    Examples:
      scopemarchiver upload /data/session-12
      scopemarchiver upload /data/session-12 --name "Grid 4, morning" --owner-group group1 --archive
      scopemarchiver upload /data/session-12 --pid 20.500.11935/0d4c…
      scopemarchiver upload /data/session-12 --abort
    """
    connection = connected("SCICAT_ENDPOINT", "API_ENDPOINT")
    if pid and new:
        fail("--new begins a dataset, --pid names one: give one of them", USAGE)
    source = str(folder.resolve())
    begun = "" if pid or new else next(iter(unfinished(_records(), api_url=connection.api_url, folder=source)), "")
    wishes = Wishes(
        pid=pid or begun,
        name=name,
        owner_group=owner_group,
        archive=archive,
        wait=not no_wait,
        connections=connections,
    )
    if abort:
        return _abort(connection, wishes.pid, source, as_json=as_json)
    inventory = scan(folder)
    explain(inventory)
    if inventory.refused:
        fail(f"nothing was uploaded: {len(inventory.refused)} name(s) would be refused by the archive", USAGE)
    if not inventory.files:
        fail(f"nothing to upload: {shown(str(folder))} holds no regular file", USAGE)
    if begun:
        _say(f"going on with {begun}, whose upload from here has not ended (--new begins another dataset)")
    uploading = Uploading(connection, inventory, source, wishes)
    with _ending(uploading, folder):
        said = run(uploading.run())
    _say(f"{uploading.pid}: {said}")
    tell(
        {
            "pid": uploading.pid,
            "files": len(inventory.files),
            "bytes": inventory.size_bytes,
            "sent_bytes": uploading.sent_bytes,
            "message": said,
            "skipped": [{"path": remark.path, "reason": remark.reason} for remark in inventory.skipped],
        },
        uploading.pid,
        as_json=as_json,
    )
    return None


def _abort(connection: Connection, pid: str, source: str, *, as_json: bool) -> None:
    if not pid:
        fail(f"no upload of {shown(source)} is known here that has not ended; name it with --pid", USAGE)
    run(_throw_away(connection, pid, source))
    _say(f"nothing of the upload of {pid} is left; in SciCat the dataset stays (--pid uploads to it anew)")
    tell({"pid": pid, "aborted": True}, pid, as_json=as_json)


async def _throw_away(connection: Connection, pid: str, source: str) -> None:
    async with connection.catalogue() as catalogue, UploadApi(connection.api_url, catalogue) as api:
        with Journal.open(_records(), api_url=connection.api_url, pid=pid, folder=source) as journal:
            await api.abort(pid)
            journal.remove()


class Uploading:
    """One run of the command."""

    def __init__(self, connection: Connection, inventory: Inventory, source: str, wishes: Wishes) -> None:
        self._connection, self._inventory, self._source, self._wishes = connection, inventory, source, wishes
        self.pid = wishes.pid
        """Empty until there is one."""
        self.sent_bytes = 0

    async def run(self) -> str:
        """Do all of it; what has become of the dataset, in a sentence.

        Raises:
            OutOfReach, Refused: a service failed or said no; a next run goes on.
        """
        async with self._connection.catalogue() as catalogue, UploadApi(self._connection.api_url, catalogue) as api:
            await api.admit()  # before anything is registered
            fresh = not self.pid
            if fresh:
                self.pid = await self._register(catalogue)
            with Journal.open(
                _records(), api_url=self._connection.api_url, pid=self.pid, folder=self._source, new=fresh
            ) as journal:
                dataset = await catalogue.dataset(self.pid)
                self._refuse_vanished(journal)
                if journal.complete and self._unchanged(journal):
                    try:
                        return await self._finalize(api, catalogue, journal, dataset)
                    except Declined as no:
                        if no.code not in _NOT_COMPLETE:
                            raise
                await self._room(api)
                await self._send(api, journal)
                await self._register_files(catalogue, journal)
                journal.completed()
                return await self._finalize(api, catalogue, journal, dataset)

    async def _register(self, catalogue: UserCatalogue) -> str:
        email, groups = await catalogue.who_am_i()
        user = await catalogue.user_name()
        group = self._wishes.owner_group or next(iter(groups), "")
        if not group:
            raise Refused(f"{user} belongs to no group in SciCat, so nothing of theirs has an owner", status=403)
        name = self._wishes.name or Path(self._source).name
        body = dataset_body(self._inventory, name=name, source=self._source, user=user, email=email, group=group)
        return await catalogue.create_dataset(body)

    async def _room(self, api: UploadApi) -> None:
        while True:
            try:
                return await api.request_room(self.pid, self._inventory.size_bytes)
            except NoRoom as full:
                if not self._wishes.wait:
                    _say(f"scopemarchiver: {full}")
                    raise typer.Exit(NO_ROOM) from None
                wait_s = full.retry_after_s or ROOM_EVERY_S
                _say(f"{full}: asking again in {wait_s:.0f} s (--no-wait ends instead)")
            except Declined as no:
                if no.code in _CLOSED:
                    raise Refused(f"{no}; `scopemarchiver status {self.pid}` says more", status=no.status) from None
                raise
            await asyncio.sleep(wait_s)

    async def _send(self, api: UploadApi, journal: Journal) -> None:
        with _Bars(self._inventory, self.pid) as bars:
            watching = Watching(bars.on_bytes, bars.on_file)
            sender = Sender(
                api,
                journal,
                watching,
                connections=self._wishes.connections,
                # What was uploaded from elsewhere, or before a record was lost, stands in none.
                look_first=not journal.from_start,
            )
            await sender.send(self._inventory.files)
            self.sent_bytes = sender.sent_bytes

    async def _register_files(self, catalogue: UserCatalogue, journal: Journal) -> None:
        """Register what SciCat does not have yet."""
        known = await catalogue.files(self.pid)
        files = {file.path: file for file in self._inventory.files}
        if other := [path for path, file in files.items() if known.get(path, file.size) != file.size]:
            raise Refused(
                f"SciCat has other sizes than the folder for {_some(other)} of {self.pid}: the archive would refuse it",
                status=409,
            )
        if absent := sorted(known.keys() - files.keys()):
            _say(f"SciCat has files of this dataset that the folder has not: {_some(absent)}")
        missing = [file for path, file in files.items() if path not in known]
        for start in range(0, len(missing), FILES_PER_BLOCK):
            entries = [
                file_entry(file, journal.files[file.path].sha256) for file in missing[start : start + FILES_PER_BLOCK]
            ]
            await catalogue.add_files(self.pid, entries, algorithm="sha256")

    async def _finalize(
        self, api: UploadApi, catalogue: UserCatalogue, journal: Journal, dataset: dict[str, Any]
    ) -> str:
        email, _ = await catalogue.who_am_i()
        try:
            said = await api.finalize(
                self.pid,
                archive=self._wishes.archive,
                owner_group=str(dataset.get("ownerGroup", "")),
                owner_user=await catalogue.user_name(),
                email=email or str(dataset.get("contactEmail", "")),
            )
        except Declined as no:
            if no.code == "UploadUnfinished":
                raise Declined(
                    f"{no}. If nobody else uploads to it, an interruption has left that behind: "
                    "--abort throws away what is there, and the next run sends it anew",
                    status=no.status,
                    code=no.code,
                ) from None
            raise
        journal.remove()
        return said

    def _unchanged(self, journal: Journal) -> bool:
        sent = {path: (file.size, file.mtime_ns) for path, file in journal.files.items() if file.sent}
        return sent == {file.path: (file.size, file.mtime_ns) for file in self._inventory.files}

    def _refuse_vanished(self, journal: Journal) -> None:
        """What went up and is not in the folder any more would be archived without anybody knowing of it."""
        if gone := sorted(journal.files.keys() - {file.path for file in self._inventory.files}):
            raise Refused(
                f"{_some(gone)} of {self.pid} went up before and cannot be found in the folder now: put it back, or "
                "--abort, which throws away all that is there",
                status=409,
            )


@contextmanager
def _ending(uploading: Uploading, folder: Path) -> Generator[None]:
    """Say how to go on if it does not end well."""
    try:
        yield
    except typer.Exit:
        if uploading.pid:
            _say(
                f"what is uploaded stays; go on with: scopemarchiver upload {quote(str(folder))} --pid {uploading.pid}"
            )
        raise


class _Bars:
    """A bar on a terminal; in a pipe a line for each tenth, and every some files. All of it on stderr."""

    def __init__(self, inventory: Inventory, pid: str) -> None:
        self._files, self._bytes, self._pid = len(inventory.files), inventory.size_bytes, pid
        self._done = self._done_bytes = self._tenth = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bars.add_task("uploading", total=self._bytes, files="")

    def __enter__(self) -> Self:
        _say(f"uploading {self._files} files, {self._bytes / MIB:,.0f} MiB, as {self._pid}")
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def on_bytes(self, count: int) -> None:
        self._done_bytes += count
        self._bars.update(self._task, completed=self._done_bytes)
        if 10 * self._done_bytes // max(1, self._bytes) > self._tenth:
            self._tenth = 10 * self._done_bytes // max(1, self._bytes)
            self._line()

    def on_file(self) -> None:
        self._done += 1
        self._bars.update(self._task, files=f"{self._done} of {self._files} files")
        if self._done % _LINE_EVERY == 0 or self._done == self._files:
            self._line()

    def _line(self) -> None:
        if not err.is_terminal:
            size = f"{self._done_bytes / MIB:,.0f} of {self._bytes / MIB:,.0f} MiB"
            _say(f"{self._done} of {self._files} files, {size}")


def _records() -> Path:
    return cache_folder() / "uploads"


def _some(paths: list[str]) -> str:
    named = ", ".join(shown(path) for path in paths[:_NAMED])
    return f"{named} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else named


def _say(sentence: str) -> None:
    err.print(Text(sentence), soft_wrap=True)
