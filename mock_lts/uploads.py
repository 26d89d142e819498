"""Uploads: files on their way in. One appears at its path only with its last byte.

open → finishing → done (the file is published; the record stays a while for a client that lost the last answer)
  ↘ gone (terminated, expired or refused at the end)

An upload by tus is in the database and survives us; one by PUT cannot be resumed and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.types import Receive

from mock_lts.conditions import Conditions
from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.intake import Hash, Intake
from mock_lts.keeper import Keeper
from mock_lts.model import StoredFile
from mock_lts.problems import ConnectionCut, Problem
from mock_lts.store import UploadRow

if TYPE_CHECKING:
    from hashlib import _Hash as Sha  # pyright: ignore[reportPrivateUsage] - typeshed's only name for it

CHECKPOINT_BYTES = 16 << 20
"""An unchecked body is acknowledged to the database this often, so that a long one survives a crash of ours."""
GROWTH_BYTES = 64 << 20
"""Cache space is held in steps of this for a body that does not say how long it is."""
ALGORITHMS: Final[dict[str, Callable[[], Sha]]] = {"sha256": hashlib.sha256, "sha1": lambda: hashlib.sha1()}  # noqa: S324 - tus demands sha1


class Upload:
    """One upload; `lock` is held by whoever moves its offset.

    Attributes:
        durable: It is in the database.
        growing: Its length is not known yet; `row.length` is the cache space held so far.
        replaced: Publishing it has replaced a file.
    """

    def __init__(
        self,
        row: UploadRow,
        *,
        whole: Sha | None = None,
        durable: bool = True,
        growing: bool = False,
        conditions: Conditions | None = None,
    ) -> None:
        self.row = row
        self.lock = asyncio.Lock()
        self.finishing = False
        self.whole = whole
        self.sha256: str | None = None
        self.durable = durable
        self.growing = growing
        self.conditions = conditions
        self.replaced = False


class Uploads:
    """Every upload, kept in memory and in the database."""

    def __init__(self, config: Config, keeper: Keeper, counters: Counters, threads: Executor) -> None:
        self._config = config
        self._keeper = keeper
        self._counters = counters
        self._threads = threads
        self._uploads = {row.id: Upload(row) for row in keeper.store.uploads()}

    def recover(self) -> None:
        """After a start: reserve what open uploads need, publish those whose last byte was in, sweep the rest away."""
        library, vault = self._keeper.library, self._keeper.vault
        for upload in self._all("open"):
            row = upload.row
            if row.id in library.files:  # the crash came between the two commits of `_publish`
                self._set_phase(upload, "done")
            elif not vault.cached(row.id).exists():
                self._set_phase(upload, "gone")
            else:
                library.reserved_bytes += row.length
        volumes: dict[str, set[str]] = {}
        for file in library.files.values():
            if file.volume is not None:
                volumes.setdefault(file.volume, set()).add(file.id)
        cached = {file.id for file in library.files.values() if file.on_disk}
        vault.sweep(cached | {upload.row.id for upload in self._all("open")}, volumes)
        for upload in self._all("open"):
            if upload.row.offset == upload.row.length:
                vault.harden(upload.row.id)
                self._publish(upload)

    def open_uploads(self) -> list[UploadRow]:
        """Those that wait for bytes."""
        return [upload.row for upload in self._all("open")]

    def create(self, path: str, length: int, metadata: str) -> Upload:
        """Open an upload, with what its client says of it, and hold cache space for all of it.

        Raises:
            Problem: 409 the path cannot be written, 413 larger than the store can ever take, 507 no room now.
        """
        row = self._row(path, length, None)
        row.metadata = metadata
        upload = Upload(row, whole=hashlib.sha256() if self._config.repr_digest else None)
        self._uploads[row.id] = upload
        self._keeper.store.put_upload(row)
        return upload

    async def put(
        self, path: str, length: int | None, receive: Receive, sha256: bytes | None, conditions: Conditions
    ) -> tuple[str, bool]:
        """Take a whole file in one body and publish it, or leave no trace of it.

        Args:
            path: Where it is to appear.
            length: None when only the body's end tells.
            receive: ASGI.
            sha256: What the body must have.
            conditions: Asked before the body and again before publishing.

        Returns:
            The file's id, and whether it replaced another.

        Raises:
            Problem: As `create`, and 400 broken or another digest, 408 idle, 412 conditions, 507 disk full.
            ConnectionCut: A fault wants the connection dropped.
        """
        row = self._row(path, length or 0, conditions)
        upload = Upload(row, durable=False, growing=length is None, conditions=conditions)
        self._uploads[row.id] = upload
        summed = hashlib.sha256() if sha256 is not None or self._config.repr_digest else None
        try:
            async with upload.lock:
                hashes = [] if summed is None else [summed]
                row.offset, refusal = await self._ingest(upload, receive, hashes, checkpoints=False)
                if refusal is not None:
                    raise refusal
                if length not in (None, row.offset):
                    raise Problem(400, f"the body has {row.offset} bytes and not {length}")
                if summed is not None:
                    if sha256 not in (None, summed.digest()):
                        raise Problem(400, "the body does not have the digest that the request promised")
                    upload.sha256 = summed.hexdigest()
                self._demand_open(upload)
                with self._keeper.acting() as library:
                    library.unreserve(row.length - row.offset)
                    row.length = row.offset
                await self.finish(upload)
                self._counters.of(path).kept += row.length
        except BaseException:
            self.drop(upload)
            raise
        finally:
            del self._uploads[row.id]
        return row.id, upload.replaced

    def _row(self, path: str, length: int, conditions: Conditions | None) -> UploadRow:
        """A new upload's record, with its empty blob and its cache space."""
        if length > self._config.max_upload_bytes:
            raise Problem(413, f"larger than {self._config.max_upload_bytes} bytes")
        self.demand_space()
        if self._keeper.faults.tapes_full():
            raise Problem(507, "the tapes are full")
        with self._keeper.acting() as library:
            self._demand_writable(path, conditions)
            if not library.reserve(length):
                raise Problem(507, f"the cache has no room for {length} bytes", {"Retry-After": "60"})
        now = self._keeper.clock()
        row = UploadRow(uuid.uuid4().hex, path, length, 0, now, now + self._config.upload_expiry_s, "open")
        self._keeper.vault.create(row.id)
        return row

    def demand_space(self) -> None:
        """Refuse bytes while a fault says that the cache is full.

        Raises:
            Problem: 507.
        """
        if self._keeper.faults.cache_full():
            raise Problem(507, "the cache is full", {"Retry-After": "60"})

    def get(self, upload_id: str) -> Upload:
        """An upload that is open, finishing or done.

        Raises:
            Problem: 404 never heard of it, 410 terminated or expired.
        """
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise Problem(404, "no such upload")
        self._expire_if_due(upload)
        if upload.row.phase == "gone":
            raise Problem(410, "the upload was terminated or has expired")
        return upload

    async def terminate(self, upload: Upload) -> None:
        """Drop an upload at once, also under a PATCH that is running. A file already published stays."""
        if upload.finishing:
            async with upload.lock:
                pass
        self.drop(upload)

    def drop(self, upload: Upload) -> None:
        """Forget an upload's bytes and give its space back, unless it is published."""
        if upload.row.phase == "open":
            with self._keeper.acting() as library:
                library.unreserve(upload.row.length)
            self._keeper.vault.delete(upload.row.id, None)
        self._set_phase(upload, "gone")

    def expire(self) -> None:
        """Drop every upload whose time is up."""
        for upload in list(self._uploads.values()):
            self._expire_if_due(upload)

    async def take_body(self, upload: Upload, receive: Receive, checksum: tuple[str, bytes] | None) -> None:
        """Receive a body at the upload's offset; publish the file if it was the last. The caller holds the lock.

        With a checksum all of the body counts or nothing; without one, whatever arrived counts even if the connection
        breaks.

        Raises:
            Problem: 408 idle, 410 terminated meanwhile, 413 too long, 460 wrong checksum, 507 disk full, 409 see
                `create`.
            ConnectionCut: A fault wants the connection dropped.
        """
        row = upload.row
        start = row.offset
        summed = ALGORITHMS[checksum[0]]() if checksum else None
        whole = None if upload.whole is None else upload.whole.copy()
        hashes = [digest for digest in (summed, whole) if digest is not None]
        written, refusal = await self._ingest(upload, receive, hashes, checkpoints=checksum is None)
        self._demand_open(upload)
        if summed is not None and checksum is not None:
            if refusal is not None:
                raise refusal
            if summed.digest() != checksum[1]:
                raise Problem(460, "the body does not have the checksum that Upload-Checksum promised")
            if checksum[0] == "sha256" and start == 0 and written == row.length:
                upload.sha256 = checksum[1].hex()
        upload.whole = whole
        row.offset = start + written
        self._counters.of(row.path).kept += written
        self._acknowledge(upload)
        if row.offset == row.length:
            await self.finish(upload)
        if refusal is not None:
            raise refusal

    async def finish(self, upload: Upload) -> None:
        """Make all bytes durable and publish the file. The caller holds the lock.

        Raises:
            Problem: 409, the path has become impossible meanwhile; the upload is gone.
        """
        upload.finishing = True
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._keeper.vault.harden, upload.row.id)
            if self._config.repr_digest and upload.whole is None and upload.sha256 is None:  # begun before a restart
                blob = self._keeper.vault.cached(upload.row.id)
                upload.sha256 = await loop.run_in_executor(self._threads, _sha256_of, blob)
            self._publish(upload)
            await loop.run_in_executor(self._threads, self._keeper.store.sync)
        finally:
            upload.finishing = False

    async def _ingest(
        self, upload: Upload, receive: Receive, hashes: Sequence[Hash], *, checkpoints: bool
    ) -> tuple[int, Exception | None]:
        """Write a body at the upload's offset; how many bytes of it are in the blob, and why it has no more."""
        refusal: Exception | None = None
        blob = self._keeper.vault.cached(upload.row.id)
        try:
            async with Intake(blob, upload.row.offset, hashes, self._threads) as intake:
                try:
                    await self._receive(upload, receive, intake, checkpoints=checkpoints)
                except (Problem, ConnectionCut) as error:
                    refusal = error
                except TimeoutError:
                    limit_s = self._config.idle_limit_s
                    refusal = Problem(408, f"no data for {limit_s:g} s", {"Connection": "close"})
                await intake.finish()
        except OSError as error:
            raise _disk_problem(error) from error
        return intake.written, refusal

    async def _receive(self, upload: Upload, receive: Receive, intake: Intake, *, checkpoints: bool) -> None:
        row = upload.row
        start, room = row.offset, row.length - row.offset
        counted = self._counters.of(row.path)
        tap = self._keeper.faults.tap(row.path, "in", start)
        loop = asyncio.get_running_loop()
        received = 0
        renewed_at = loop.time()
        more = True
        limit_s = self._config.idle_limit_s
        async with asyncio.timeout(limit_s) as watch:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the connection broke within the body")
                piece, more = message.get("body", b""), message.get("more_body", False)
                cut = False
                if tap is not None:
                    piece, cut = await tap.through(piece)
                received += len(piece)
                counted.received += len(piece)
                if received > room:
                    room = self._more_room(upload, received)
                if piece:
                    await intake.feed(piece)
                if cut:
                    raise ConnectionCut
                self._demand_open(upload)
                if (now := loop.time()) > renewed_at + 1.0:  # not at every piece: that would cost 5 % of the CPU
                    renewed_at = now
                    watch.reschedule(now + limit_s)
                if checkpoints and start + intake.written - row.offset >= CHECKPOINT_BYTES:
                    row.offset = start + intake.written
                    self._acknowledge(upload)

    def _more_room(self, upload: Upload, received: int) -> int:
        """The room for a body that has outgrown what was held for it."""
        row, largest = upload.row, self._config.max_upload_bytes
        if not upload.growing:
            raise Problem(413, "the body is longer than was said")
        if received > largest:
            raise Problem(413, f"larger than {largest} bytes")
        with self._keeper.acting() as library:
            for wanted in (min(received + GROWTH_BYTES, largest), received):
                if library.reserve(wanted - row.length):
                    row.length = wanted
                    return wanted
        raise Problem(507, f"the cache has no room for {received} bytes", {"Retry-After": "60"})

    def _publish(self, upload: Upload) -> None:
        row = upload.row
        now = self._keeper.clock()
        sha256 = upload.sha256 if upload.whole is None else upload.whole.hexdigest()
        try:
            with self._keeper.acting() as library:
                self._demand_writable(row.path, upload.conditions)
                upload.replaced = row.path in library.by_path
                # In this order: a recall that waits for room must not take what the file needs.
                library.add(StoredFile(row.id, row.path, row.length, now, now, sha256=sha256))
                library.unreserve(row.length)
        except Problem:
            self.drop(upload)
            raise
        self._set_phase(upload, "done")

    def _demand_writable(self, path: str, conditions: Conditions | None) -> None:
        library = self._keeper.library
        if conditions is not None:
            conditions.demand(library.by_path.get(path))
            conditions.demand_absent(library.by_path.get(path))
        if self._keeper.worm and path in library.by_path:
            raise Problem(409, "a file of this name exists, and this store is write-once")
        if (other := library.blocked_by(path)) is not None:
            raise Problem(409, f"{other} is a file and would have to be a folder, or the other way round")

    def _demand_open(self, upload: Upload) -> None:
        if upload.row.phase != "open":
            raise Problem(410, "the upload was terminated meanwhile")

    def _acknowledge(self, upload: Upload) -> None:
        upload.row.expires_at = self._keeper.clock() + self._config.upload_expiry_s
        self._keeper.store.set_offset(upload.row.id, upload.row.offset, upload.row.expires_at)

    def _expire_if_due(self, upload: Upload) -> None:
        idle = not upload.lock.locked()
        if idle and upload.row.phase != "gone" and upload.row.expires_at <= self._keeper.clock():
            self.drop(upload)

    def _set_phase(self, upload: Upload, phase: str) -> None:
        upload.row.phase = phase
        if upload.durable:
            self._keeper.store.put_upload(upload.row)

    def _all(self, phase: str) -> list[Upload]:
        return [upload for upload in self._uploads.values() if upload.row.phase == phase]


def _sha256_of(blob: Path) -> str:
    with blob.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _disk_problem(error: OSError) -> Problem:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Problem(507 if full else 500, f"the disk refuses: {error.strerror}")
