"""The HTTP driver for a store without tus: a whole file is one PUT (WebDAV, RFC 9110), which nobody can take up again.

An upload is nothing that the store knows of; its id says only what is to be written where. The connection lives in the
process that writes, so whoever asks for the offset, after a pause or a crash, begins at 0.
"""

import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from clients.bulk import Answer, OpenRequest, TransferFailed
from clients.lts.http import HttpLongTermStore, refuse
from clients.lts.protocol import OffsetMismatch, UploadGone, WriteOnce
from domain.errors import Misconfigured, TapeUnavailable

_UPLOAD_ID = re.compile(r"put/([0-9]+)/(.+)", re.DOTALL)
_EXISTS = 412
_LEFT_AFTER_S = 600.0
"""A PUT that nobody goes on with for so long belongs to a copy that was stopped."""


@dataclass
class _Put:
    """A PUT under way."""

    request: OpenRequest
    sent: int = 0
    touched: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HttpPutStore(HttpLongTermStore):
    """Writes by PUT and never overwrites; reads, lists, deletes and recalls as its parent."""

    def __init__(self, **options: Any) -> None:
        """Take the options of `HttpLongTermStore`."""
        super().__init__(**options)
        self._puts: dict[str, _Put] = {}
        self._puts_lock = threading.Lock()

    async def open_write(self, path: str, size_bytes: int) -> str:
        """Make the folders; the PUT itself begins with the first bytes."""
        if await self._size(path) is not None:
            raise WriteOnce(f"opening an upload of {path!r}: the file exists")
        await self._make_folders(path)
        return f"put/{size_bytes}/{path}"

    async def write_offset(self, upload_id: str, synced: int = 0) -> int:
        """All or nothing: what an earlier attempt has sent is lost with its connection."""
        size, path = _parse(upload_id)
        self._drop(upload_id)
        return size if await self._size(path) == size else 0

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        """Send the next bytes of the body; with the last of them the store answers."""
        size, path = _parse(upload_id)
        what = f"writing {data.nbytes} bytes at {offset} of {path!r}"
        put = self._put(upload_id, offset, what)
        with put.lock:
            if put.sent != offset:
                raise OffsetMismatch(f"{what}: the PUT stands at {put.sent}")
            try:
                answer = put.request.send(data)
                put.sent, put.touched = offset + data.nbytes, time.monotonic()
                if answer is None and put.sent == size:
                    answer = put.request.end()
            except TransferFailed as error:
                self._drop(upload_id)
                raise TapeUnavailable(f"{what}: {error}; the file has to be sent anew") from error
        if answer is None:
            return
        self._drop(upload_id)
        if not answer.ok or put.sent != size:
            _refuse_put(what, answer)

    async def abort(self, upload_id: str) -> None:
        """Close the connection, if it is one of this process; an unfinished PUT leaves nothing."""
        self._drop(upload_id)

    async def aclose(self) -> None:
        """Close every connection."""
        for upload_id in list(self._puts):
            self._drop(upload_id)
        await super().aclose()

    def _put(self, upload_id: str, offset: int, what: str) -> _Put:
        """The PUT under way, or a new one at offset 0."""
        size, path = _parse(upload_id)
        with self._puts_lock:
            put = self._puts.get(upload_id)
            if put is not None:
                return put
            if offset:
                raise OffsetMismatch(f"{what}: no PUT is under way here, the file has to be sent anew")
            left = time.monotonic() - _LEFT_AFTER_S
            for other, idle in list(self._puts.items()):
                if idle.touched < left:
                    self._puts.pop(other).request.close()
        headers = {
            **self._auth,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            # A late writer must not replace what another one has finished.
            "If-None-Match": "*",
        }
        try:
            request = self._pool.begin("PUT", self._file_target(path), headers)
        except TransferFailed as error:
            raise TapeUnavailable(f"{what}: {error}") from error
        with self._puts_lock:
            if upload_id in self._puts:
                request.close()
            return self._puts.setdefault(upload_id, _Put(request))

    def _drop(self, upload_id: str) -> None:
        with self._puts_lock:
            put = self._puts.pop(upload_id, None)
        if put is not None:
            put.request.close()

    async def _make_folders(self, path: str) -> None:
        """MKCOL, one by one: WebDAV refuses a PUT below a folder that is not there (RFC 4918, 9.7.1).

        Stores that make folders of their own accord refuse MKCOL in ways of their own; the PUT tells.
        """
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            what = f"making the folder {folder!r}"
            answer = await self._control.ask(what, "MKCOL", f"{self._origin}{self._file_target(folder)}/")
            if answer.status in (401, 429, 503, 507):
                refuse(what, answer.status, answer.body, answer.headers)


def _parse(upload_id: str) -> tuple[int, str]:
    """Size and path."""
    found = _UPLOAD_ID.fullmatch(upload_id)
    if found is None:
        raise UploadGone("the upload id is not one of this store's")
    return int(found[1]), found[2]


def _refuse_put(what: str, answer: Answer) -> NoReturn:
    """Raise what the answer to a PUT means."""
    if answer.status == _EXISTS:
        raise WriteOnce(f"{what}: the file exists")
    if answer.status in (404, 405):
        raise Misconfigured(f"{what}: the store takes no PUT there (it answered {answer.status})")
    if answer.ok:
        raise TapeUnavailable(f"{what}: the store answered {answer.status} before it had the whole file")
    refuse(what, answer.status, answer.body, answer.headers)
