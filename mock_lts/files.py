"""The read side: `GET`, `HEAD` and `DELETE` of `/files/<path>`, with single ranges and preconditions (RFC 9110)."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import uuid
from concurrent.futures import Executor
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mock_lts.conditions import Conditions, etag
from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.gate import Connections
from mock_lts.intake import BLOCK_BYTES
from mock_lts.keeper import Keeper
from mock_lts.model import Locality, StoredFile
from mock_lts.paths import BadPath, from_url
from mock_lts.problems import Problem

TYPICAL_RECALL_S = 120
""""More than 2 minutes" to mount, position and unmount in practice (CERN, indico 985953), library seconds."""
IMPLICIT_PIN_S = 600.0
"""How long a file stays that a refused read has recalled, real seconds."""


def file_path(request: Request) -> str:
    """The file's name in a `/files/<path>` URL.

    Raises:
        Problem: 400, not an acceptable name.
    """
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    try:
        return from_url(raw.partition(b"?")[0], "/files/")
    except BadPath as error:
        raise Problem(400, str(error)) from error


class Files:
    """The routes."""

    def __init__(
        self, config: Config, keeper: Keeper, counters: Counters, connections: Connections, threads: Executor
    ) -> None:
        self._keeper = keeper
        self._counters = counters
        self._connections = connections
        self._threads = threads
        self._idle_limit_s = config.idle_limit_s
        self._implicit_recall = config.implicit_recall
        self._retry_after = str(max(1, round(TYPICAL_RECALL_S * config.time_factor)))

    def routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/files/{path:path}", self._read, methods=["GET"]),
            Route("/files/{path:path}", self._delete, methods=["DELETE"]),
        ]

    async def _read(self, request: Request) -> Response:
        path = file_path(request)
        with self._keeper.acting() as library:
            file = self._known(path)
            conditions = Conditions.of(request.headers)
            conditions.demand(file)
            headers = _headers(file)
            if conditions.fresh(file):
                return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Last-Modified")})
            # RFC 9110, 14.2: only GET has ranges.
            wanted = request.headers.get("range", "") if request.method == "GET" else ""
            start, end, status = _range(wanted if conditions.range_applies(file) else "", file.size, headers)
            if request.method == "HEAD":
                return Response(status_code=status, headers=headers)
            where = library.locality(file)
            if not file.on_disk or where is Locality.UNAVAILABLE:
                if self._implicit_recall and not self._keeper.desk.wanted(file.id):
                    library.stage(str(uuid.uuid4()), [(path, IMPLICIT_PIN_S)])
                raise Problem(
                    503, f"the file is nearline ({where}): stage it first", {"Retry-After": self._retry_after}
                )
            library.touch(file)
            # Opened here and now: an eviction that comes later cannot hurt this reader.
            try:
                fd = os.open(self._keeper.vault.cached(file.id), os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as error:
                raise Problem(500, f"the bytes cannot be read: {error.strerror}") from error
        return _BlobResponse(self, path, fd, start, end, status, headers)

    async def _delete(self, request: Request) -> Response:
        path = file_path(request)
        with self._keeper.acting() as library:
            file = self._known(path)
            conditions = Conditions.of(request.headers)
            conditions.demand(file)
            conditions.demand_absent(file)
            if self._keeper.worm:
                raise Problem(403, "this store is write-once")
            library.delete(file)
        return Response(status_code=204)

    def _known(self, path: str) -> StoredFile:
        file = self._keeper.library.by_path.get(path)
        if file is None:
            raise Problem(404, "no such file")
        return file

    async def send(self, response: _BlobResponse, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a stretch of a blob, each mebibyte read in a thread while the one before it goes out."""
        loop = asyncio.get_running_loop()
        counted = self._counters.of(response.path)
        tap = self._keeper.faults.tap(response.path, "out", response.start)
        at, end = response.start, response.end

        def read(offset: int) -> asyncio.Future[bytes]:
            return loop.run_in_executor(self._threads, os.pread, response.fd, min(BLOCK_BYTES, end - offset), offset)

        ahead = read(at)
        # uvicorn swallows what is sent to a client that has left; without this we would read on to the end for nobody.
        left = asyncio.create_task(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
            while at < end and not left.done():
                block, cut = await asyncio.shield(ahead), False
                if not block:
                    raise RuntimeError(f"the blob of {response.path} is shorter than it should be")
                at += len(block)
                if at < end:
                    ahead = read(at)
                if tap is not None:
                    block, cut = await tap.through(block)
                counted.sent += len(block)
                try:
                    async with asyncio.timeout(self._idle_limit_s):
                        await send({"type": "http.response.body", "body": block, "more_body": at < end or cut})
                    stalled = False
                except TimeoutError:
                    stalled = True  # a client that takes nothing would hold some MiB for ever
                if cut or stalled:
                    left.cancel()
                    await self._connections.cut(scope, receive, unsent=stalled)
                    return
            if response.start == end:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            left.cancel()
            if ahead.done():
                os.close(response.fd)
            else:
                ahead.add_done_callback(lambda _: os.close(response.fd))


class _BlobResponse(Response):
    def __init__(
        self, files: Files, path: str, fd: int, start: int, end: int, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self.path, self.fd, self.start, self.end = path, fd, start, end
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._files.send(self, scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(file: StoredFile) -> dict[str, str]:
    headers = {
        "ETag": etag(file),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Last-Modified": formatdate(file.created_at, usegmt=True),
    }
    if file.sha256 is not None:  # RFC 9530
        headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:"
    return headers


def _range(wanted: str, size: int, headers: dict[str, str]) -> tuple[int, int, int]:
    """(first byte, byte after the last, status); sets the headers that go with it. Odd ranges are ignored."""
    valid = re.fullmatch(r"bytes=(\d{0,99})-(\d{0,99})", wanted.replace(" ", ""), re.IGNORECASE | re.ASCII)
    start, end, status = 0, size, 200
    if valid is not None and valid[1] + valid[2]:
        first, last = valid[1], valid[2]
        if first and last and int(last) < int(first):
            first = last = ""
        elif first:
            start, end, status = int(first), min(int(last) + 1 if last else size, size), 206
        else:
            start, end, status = max(0, size - int(last)), size, 206
    if status == 206:
        if start >= size:
            raise Problem(416, f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return start, end, status
