"""Files on their way into the landing zone: side by side, in parts, and not again what is there.

    there already? ──no──► read (digests) ──► URLs ──► PUT the parts that are missing ──► complete ──► there
          │ yes                                ▲                │ the URLs have ended
          └──► nothing to do                   └────────────────┘ (those of an earlier run: begin anew)

A file is read twice, first for its digests, then to be sent, in pieces: it is never in memory as a whole, not even a
part of it.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Event

from cli.catalogue import Refused
from cli.ingest import SourceFile, check_unchanged, shown
from cli.upload_api import PutRefused, UploadApi
from cli.upload_journal import FileUpload, Journal
from domain.checksum import b64
from domain.names import raw_key

PART_BYTES = 16 << 20
"""Larger files go up in parts: what an interruption costs, and the least that S3 is asked for at once."""

MAX_PARTS = 10_000
"""S3's limit."""

_FILES_AT_ONCE = 8
_LARGE_AT_ONCE = 2
"""Each may have all connections; the fewer, the sooner each is through, for its URLs live an hour."""

_READ_BYTES = 1 << 20
_NEVER_GIVEN_OUT = "none"
"""An upload id that S3 does not know: completing it asks whether the object is there already."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told how far it is; all sizes are in bytes."""

    on_bytes: Callable[[int], None]
    """So many more are in S3, or, if negative, have to be sent again."""
    on_file: Callable[[], None]
    """One more file is there."""


class Sender:
    """Sends the files of one dataset.

    Args:
        api: where to ask for URLs.
        journal: what earlier runs did; kept up to date.
        watching: who is told.
        connections: parts under way at once.
        look_first: ask for files that the journal does not know whether they are there; costs a call for each.
    """

    def __init__(
        self, api: UploadApi, journal: Journal, watching: Watching, *, connections: int, look_first: bool = False
    ) -> None:
        self._api, self._journal, self._watching = api, journal, watching
        self._look_first = look_first
        self._over = Event()
        self._connections = connections
        self._puts = asyncio.Semaphore(connections)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self.sent_bytes = 0
        """What S3 took, here and now."""

    async def send(self, files: Sequence[SourceFile]) -> None:
        """See to it that all are there.

        Raises:
            Refused: a file has changed meanwhile, or S3 or the API does not take it; others may be there.
            OutOfReach: a service does not answer.
        """
        waiting = iter(files)

        async def one_after_the_other() -> None:
            for file in waiting:
                await self._see_to(file)

        try:
            await _side_by_side(one_after_the_other, min(_FILES_AT_ONCE, len(files)))
        finally:
            self._over.set()  # or the process would wait until a thread has read its file to the end

    async def _see_to(self, file: SourceFile) -> None:
        large = self._large if file.size > part_bytes_of(file.size) else nullcontext()
        try:
            sent = not await self._is_there(file)
            if sent:
                async with large:
                    sent = await self._bring(file)
        except OSError as error:
            raise Refused(f"{shown(file.path)} cannot be read: {error.strerror}", status=409) from None
        if not sent:
            self._watching.on_bytes(file.size)
        self._watching.on_file()

    async def _is_there(self, file: SourceFile) -> bool:
        """Whether S3 has what an earlier run has sent; a promise of room that has ended may have taken it away."""
        known = self._journal.files.get(file.path)
        if known is None:
            return False
        if (known.size, known.mtime_ns) != (file.size, file.mtime_ns):
            await self._drop(known)
        elif known.sent:
            if not await self._api.complete(self._journal.pid, self._key(known), known.upload_id, known.parts):
                return True
            self._journal.forget(known.path)
        return False

    async def _bring(self, file: SourceFile) -> bool:
        """Send a file, or what is missing of it where an earlier run has begun; False if it is there after all."""
        known = self._journal.files.get(file.path)
        if known is not None:
            if not await self._went_on(file, known):
                await self._drop(known)
                await self._send_anew(file, replace(known, upload_id="", urls=[], etags={}))
            return True
        upload, md5 = await asyncio.to_thread(_read, file, self._over)
        if self._look_first and await self._lies_there(upload, md5):
            return False
        await self._send_anew(file, upload)
        return True

    async def _went_on(self, file: SourceFile, known: FileUpload) -> bool:
        """Send the missing parts, unless S3 has lost patience with what an earlier run began."""
        if len(known.etags) < len(known.digests) and not known.links_hold:
            return False
        try:
            await self._send_parts(file, known)
        except PutRefused as no:
            if no.link_ended:
                return False
            raise _about(file, no) from None
        return not await self._complete(file, known)

    async def _send_anew(self, file: SourceFile, upload: FileUpload) -> None:
        upload.upload_id, upload.urls = await self._api.begin(self._journal.pid, self._key(upload), len(upload.digests))
        if upload.upload_id:
            self._journal.begun(upload)
        try:
            await self._send_parts(file, upload)
        except PutRefused as no:
            raise _about(file, no) from None
        if no := await self._complete(file, upload):
            await self._drop(upload)
            raise Refused(f"{shown(file.path)}: S3 cannot join its parts ({no}); next time it is sent anew", status=409)

    async def _send_parts(self, file: SourceFile, upload: FileUpload) -> None:
        ranges = _parts_of(upload.size, upload.part_bytes)
        self._watching.on_bytes(sum(ranges[number - 1][1] for number in upload.etags))
        missing = iter([number for number in range(1, len(ranges) + 1) if number not in upload.etags])

        async def one_after_the_other() -> None:
            for number in missing:
                async with self._puts:
                    offset, length = ranges[number - 1]
                    etag = await self._put(file, upload, number, offset, length)
                if upload.upload_id:
                    self._journal.part(upload, number, etag)
                else:
                    upload.etags[number] = etag

        try:
            await _side_by_side(one_after_the_other, min(self._connections, len(ranges)))
        except BaseException:
            self._watching.on_bytes(-sum(ranges[number - 1][1] for number in upload.etags))
            raise

    async def _put(self, file: SourceFile, upload: FileUpload, number: int, offset: int, length: int) -> str:
        shown_bytes = 0

        async def content() -> AsyncGenerator[bytes]:
            nonlocal shown_bytes
            self._watching.on_bytes(-shown_bytes)
            shown_bytes = 0
            async for piece in _pieces(file, offset, length):
                yield piece
                shown_bytes += len(piece)
                self._watching.on_bytes(len(piece))

        try:
            etag = await self._api.put(
                upload.urls[number - 1], content, length=length, digest=upload.digests[number - 1]
            )
        except BaseException:
            self._watching.on_bytes(-shown_bytes)
            raise
        self.sent_bytes += length
        return etag

    async def _complete(self, file: SourceFile, upload: FileUpload) -> str:
        """Have it made of its parts; empty if so, else S3's word for why not."""
        await asyncio.to_thread(check_unchanged, file)
        if upload.upload_id and (
            no := await self._api.complete(self._journal.pid, self._key(upload), upload.upload_id, upload.parts)
        ):
            return no
        self._journal.sent(upload)
        return ""

    async def _lies_there(self, upload: FileUpload, md5: str) -> bool:
        """Whether S3 has a file of which we have no record."""
        # The ETag of an object that was put whole; of parts it is not looked at where only the object is left.
        asked = replace(
            upload,
            upload_id=_NEVER_GIVEN_OUT if len(upload.digests) > 1 else "",
            etags=dict.fromkeys(range(1, len(upload.digests) + 1), md5),
        )
        if await self._api.complete(self._journal.pid, self._key(asked), asked.upload_id, asked.parts):
            return False
        self._journal.sent(asked)
        return True

    async def _drop(self, upload: FileUpload) -> None:
        """Forget a file's upload, here and, if it is open, in S3: with an open one nothing can be finalized."""
        if upload.upload_id and not upload.sent:
            await self._api.abort_file(self._journal.pid, self._key(upload), upload.upload_id)
        self._journal.forget(upload.path)

    def _key(self, upload: FileUpload) -> str:
        return raw_key(self._journal.pid, upload.path)


async def _side_by_side(work: Callable[[], Coroutine[None, None, None]], times: int) -> None:
    """Do the same several times at once; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(times):
                group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


def part_bytes_of(size: int) -> int:
    """How large the parts of a file are: as small as S3's limit on their number lets them be, in whole MiB."""
    least = -(-size // MAX_PARTS)
    return max(PART_BYTES, -(-least // _READ_BYTES) * _READ_BYTES)


def _parts_of(size: int, part_bytes: int) -> list[tuple[int, int]]:
    """Offset and length of each part; an empty file is one empty part."""
    return [(offset, min(part_bytes, size - offset)) for offset in range(0, size, part_bytes)] or [(0, 0)]


def _read(file: SourceFile, over: Event) -> tuple[FileUpload, str]:
    """Digests of a file and its parts, and its MD5 in hex, which S3 has as the ETag of an object that was put whole.

    Raises:
        Refused: it has changed since it was found.
    """
    part_bytes = part_bytes_of(file.size)
    whole, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    digests: list[str] = []
    with file.source.open("rb", buffering=0) as content:
        for _, length in _parts_of(file.size, part_bytes):
            part = hashlib.sha256()
            for size in _sizes(length):
                if over.is_set():
                    raise Refused(f"{shown(file.path)} was not read to its end", status=499)
                piece = content.read(size)
                part.update(piece)
                whole.update(piece)
                if file.size <= part_bytes:
                    md5.update(piece)
            digests.append(b64(part.digest()))
    check_unchanged(file)
    return FileUpload(file.path, file.size, file.mtime_ns, whole.hexdigest(), part_bytes, digests), md5.hexdigest()


async def _pieces(file: SourceFile, offset: int, length: int) -> AsyncGenerator[bytes]:
    # Opened by a thread it would stay open if this is cancelled meanwhile.
    with file.source.open("rb", buffering=0) as content:
        content.seek(offset)
        for size in _sizes(length):
            piece = await asyncio.to_thread(content.read, size)
            if len(piece) < size:
                raise Refused(f"{shown(file.path)} became shorter while it was being uploaded", status=409)
            yield piece


def _sizes(length: int) -> Iterator[int]:
    return (min(_READ_BYTES, length - offset) for offset in range(0, length, _READ_BYTES))


def _about(file: SourceFile, no: PutRefused) -> Refused:
    if no.status == 400:
        return Refused(f"{shown(file.path)} changed while it was being uploaded ({no})", status=409)
    if no.link_ended:
        return Refused(
            f"{shown(file.path)}: {no}. The links to upload it by have ended, it seems, before all of it was there: it "
            "begins anew next time. If the line is too slow for it, the archiver's operators can let links live longer",
            status=no.status,
        )
    return Refused(f"{shown(file.path)}: {no}", status=no.status)
