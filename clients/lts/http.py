"""A long-term store behind public protocols: tus 1.0, HTTP ranges, WebDAV PROPFIND, and the WLCG Tape REST API v1.

Control calls go through `clients.control`, bulk bytes through `clients.bulk`. The Tape REST servers in use differ from
their specification and from each other, so answers are read leniently: what is known to differ is named where it is
read.
"""

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

from clients.bulk import Answer, ConnectionPool, TransferFailed
from clients.control import ControlCalls, compact
from clients.lts.protocol import (
    ChunkRefused,
    FileAbsent,
    FileStat,
    Locality,
    Nearline,
    OffsetMismatch,
    Recalled,
    RecallGone,
    RecallState,
    SpaceReport,
    UploadGone,
    WriteOnce,
)
from domain.errors import Busy, Damaged, InfrastructureError, Misconfigured, NoSpace, TapeUnavailable, TooLarge

_GONE = (404, 410)
_KEPT = (405, 409, 423)
_KEPT_BY_ITS_WORDS = re.compile(r"write.?once|worm\b|immutable|retention", re.IGNORECASE)
_ARCHIVEINFO_BATCH = 1000
"""dCache answers at most 10,000 paths of an archiveinfo."""
_DISCOVERY = "/.well-known/wlcg-tape-rest-api"
_TUS = {"Tus-Resumable": "1.0.0"}
_DAV = "{DAV:}"

_STATES = {
    "COMPLETED": RecallState.ONLINE,
    "FAILED": RecallState.FAILED,
    "CANCELLED": RecallState.CANCELLED,
    # Not in the specification, but in use.
    "CANCELED": RecallState.CANCELLED,
}


class HttpLongTermStore:
    """Implements `LongTermStore`, `NearlineStore`, `Listable` and `Space`.

    An upload's id is the path of its URL on this server: a `Location` that names another host is never followed there,
    since the token would be sent along.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        ca_file: Path | None = None,
        uploads_path: str = "/uploads",
        files_path: str = "/files",
        tape: bool = True,
        tape_endpoint: str | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        max_idle: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: address of the store.
            token: bearer token, None where the store asks for none.
            ca_file: certificates to trust instead of the system's.
            uploads_path: where uploads are created, below the endpoint.
            files_path: folder of the files, below the endpoint.
            tape: whether there is tape behind the store; without, localities are unknown and discovery is not asked.
            tape_endpoint: base address of the Tape REST API v1, instead of asking discovery.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes in either direction.
            max_idle: bulk connections kept open between requests.
        """
        parts = urlsplit(endpoint)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        base_path = parts.path.rstrip("/")
        self._uploads, self._files = base_path + uploads_path, base_path + files_path
        self._auth = {"Authorization": f"Bearer {token}"} if token else {}
        self._has_tape = tape
        self._tape_uri = tape_endpoint.rstrip("/") if tape_endpoint else None
        self._pool_options: dict[str, Any] = {
            "ca_file": ca_file,
            "connect_timeout_s": connect_timeout_s,
            "timeout_s": timeout_s,
            "max_idle": max_idle,
        }
        self._pool = ConnectionPool(self._origin, **self._pool_options)
        self._control = ControlCalls(
            "lts",
            TapeUnavailable,
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            headers={**self._auth, "Accept-Encoding": "identity"},
        )

    # --- LongTermStore ------------------------------------------------------------------------------------------------

    async def open_write(self, path: str, size_bytes: int) -> str:
        """Create a tus upload; its id is the path of its URL."""
        metadata = f"path {base64.b64encode(path.encode()).decode()}"
        headers = {**_TUS, "Upload-Length": str(size_bytes), "Upload-Metadata": metadata}
        what = f"opening an upload of {path!r}"
        answer = await self._control.ask(what, "POST", self._origin + self._uploads, headers=headers)
        _mind_write_once(what, answer)
        if answer.status != 201 or "location" not in answer.headers:
            refuse(what, answer.status, answer.body, answer.headers)
        return urlsplit(urljoin(self._origin + self._uploads, answer.headers["location"])).path

    async def write_offset(self, upload_id: str, synced: int = 0) -> int:
        """Ask tus for the offset; what is acknowledged is durable."""
        what = "asking for an upload's offset"
        answer = await self._control.ask(what, "HEAD", self._upload_url(upload_id), headers=_TUS)
        if answer.status in _GONE:
            raise UploadGone(f"{what}: the upload is unknown")
        if not answer.ok:
            refuse(what, answer.status, b"")
        return _count(answer.headers.get("upload-offset"), what)

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        """PATCH one chunk with its checksum. Sent twice, the second is refused by its offset, so it may be repeated."""
        headers = {
            **self._auth,
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {base64.b64encode(sha256).decode()}",
        }
        what = f"writing {data.nbytes} bytes at {offset}"
        target = urlsplit(self._upload_url(upload_id)).path
        answer = self._bulk(self._pool, what, "PATCH", target, headers, body=data)
        match answer.status:
            case 200 | 204:
                reached = _count(answer.headers.get("upload-offset"), what)
                if reached != offset + data.nbytes:
                    raise OffsetMismatch(f"{what}: the store stands at {reached}")
            case 404 | 410:
                raise UploadGone(f"{what}: the upload is unknown")
            case 409:
                raise OffsetMismatch(f"{what}: the store stands elsewhere")
            case 460:
                raise ChunkRefused(f"{what}: other bytes arrived than were sent")
            case status:
                refuse(what, status, answer.body, answer.headers)

    def sync(self, upload_id: str) -> None:
        """Nothing is left to do: what is acknowledged is durable."""

    async def finish(self, upload_id: str, path: str, size_bytes: int) -> None:
        """Look whether the file is there, since tus publishes it with its last byte.

        Raises:
            TapeUnavailable: it is not there.
            Damaged: it has another size.
        """
        found = await self._size(path)
        if found is None:
            raise TapeUnavailable(f"finishing {path!r}: its upload has ended but there is no such file")
        if found != size_bytes:
            raise Damaged(f"finishing {path!r}: the file has {found} bytes instead of {size_bytes}")

    async def abort(self, upload_id: str) -> None:
        """Terminate a tus upload."""
        what = "aborting an upload"
        answer = await self._control.ask(what, "DELETE", self._upload_url(upload_id), headers=_TUS)
        if not answer.ok and answer.status not in _GONE:
            refuse(what, answer.status, answer.body)

    async def stat(self, path: str) -> FileStat | None:
        """HEAD the file for its size, ask the Tape REST API for its locality."""
        size = await self._size(path)
        if size is None:
            return None
        if not self._has_tape:
            return FileStat(size)
        return FileStat(size, (await self._archiveinfo([path])).get(path, Locality.UNAVAILABLE))

    def read_range(self, path: str, offset: int, into: memoryview) -> None:
        """GET a range straight into the buffer; why one is refused is asked of the Tape REST API.

        Raises:
            Damaged: the file ends before the range does.
        """
        if not into.nbytes:
            return
        what = f"reading {into.nbytes} bytes at {offset} of {path!r}"
        wanted = f"bytes {offset}-{offset + into.nbytes - 1}/"
        headers = {**self._auth, "Range": f"bytes={offset}-{offset + into.nbytes - 1}"}
        answer = self._bulk(self._pool, what, "GET", self._file_target(path), headers, into=into)
        match answer.status:
            case 206 if answer.headers.get("content-range", wanted).startswith(wanted):
                return
            case 200 if offset == 0:
                return
            case 200 | 206:
                raise TapeUnavailable(f"{what}: the store answered with another range")
            case 404 | 410:
                raise FileAbsent(f"{what}: there is no such file")
            case 416:
                raise Damaged(f"{what}: the file is shorter")
            case 401:
                pass
            case _ if self._has_tape and self._on_tape_only(path):
                # Stores differ in the status with which they refuse a file that is not on disk.
                raise Nearline(f"{what}: the bytes are on tape only")
            case _:
                pass
        refuse(what, answer.status, answer.body)

    async def delete(self, path: str) -> None:
        """DELETE the file."""
        what = f"deleting {path!r}"
        answer = await self._control.ask(what, "DELETE", self._origin + self._file_target(path))
        _mind_write_once(what, answer)
        if not answer.ok and answer.status not in _GONE:
            refuse(what, answer.status, answer.body)

    async def aclose(self) -> None:
        """Close every connection."""
        self._pool.close()
        await self._control.aclose()

    # --- NearlineStore ------------------------------------------------------------------------------------------------

    async def localities(self, paths: Sequence[str]) -> dict[str, Locality]:
        """Ask archiveinfo; a file of which it says nothing good is looked for: only absent ones are left out."""
        found = await self._archiveinfo(paths)
        for path in dict.fromkeys(paths):
            if path not in found and await self._size(path) is not None:
                found[path] = Locality.UNAVAILABLE
        return found

    async def request_recall(self, paths: Sequence[str], pin_lifetime: timedelta) -> str:
        """Post a stage request."""
        lifetime = _duration(pin_lifetime)
        files = [{"path": _absolute(path), "diskLifetime": lifetime} for path in paths]
        what = f"requesting a recall of {len(paths)} files"
        answer = await self._control.ask(what, "POST", await self._tape("/stage"), body={"files": files})
        if not answer.ok:
            refuse(what, answer.status, answer.body, answer.headers)
        recall_id = _mapping(_json(answer.body or b"{}", what)).get("requestId")
        if not recall_id:
            recall_id = unquote(answer.headers.get("location", "").rstrip("/").rpartition("/")[2])
        if not recall_id:
            raise TapeUnavailable(f"{what}: the store gave no request id")
        return str(recall_id)

    async def recall_state(self, recall_id: str, paths: Sequence[str] = ()) -> list[Recalled]:
        """Poll a stage request.

        Args:
            recall_id: from `request_recall`.
            paths: what was asked for. If given, the answer has exactly these: a path that the server echoes with a
                prefix cut off is recognised by its end, and one of which it says nothing is still waited for.
        """
        what = "asking for a recall's state"
        answer = await self._control.ask(what, "GET", await self._tape(f"/stage/{quote(recall_id, safe='')}"))
        if answer.status in _GONE:
            raise RecallGone(f"{what}: the store does not know it")
        if not answer.ok:
            refuse(what, answer.status, answer.body, answer.headers)
        items = _mappings(_mapping(_json(answer.body, what)).get("files"))
        if not paths:
            return [_recalled(str(item.get("path", "")).lstrip("/"), item) for item in items]
        named = _by_path(items, paths)
        return [
            _recalled(path, named[path]) if path in named else Recalled(path, RecallState.WAITING)
            for path in dict.fromkeys(paths)
        ]

    async def release(self, recall_id: str, paths: Sequence[str]) -> None:
        """Give the pins back; a path that the store does not take in a request of several is asked for alone."""
        what = f"releasing {len(paths)} files"
        url = await self._tape(f"/release/{quote(recall_id, safe='')}")
        answer = await self._control.ask(what, "POST", url, body={"paths": [_absolute(path) for path in paths]})
        if answer.status == 400 and len(paths) > 1:
            for path in paths:
                await self.release(recall_id, [path])
        elif not answer.ok and answer.status not in (400, *_GONE):
            refuse(what, answer.status, answer.body)

    async def cancel(self, recall_id: str) -> None:
        """Delete a stage request, which cancels what is left of it."""
        what = "cancelling a recall"
        answer = await self._control.ask(what, "DELETE", await self._tape(f"/stage/{quote(recall_id, safe='')}"))
        if not answer.ok and answer.status not in _GONE:
            refuse(what, answer.status, answer.body)

    # --- Listable, Space ----------------------------------------------------------------------------------------------

    async def list(self, prefix: str, *, after: str = "", limit: int | None = None) -> dict[str, int]:
        """PROPFIND folder by folder, since servers refuse `Depth: infinity`; the largest folder is in memory."""
        found: dict[str, int] = {}
        if limit == 0:
            return found
        async with aclosing(self._walk(prefix.strip("/"), after)) as walk:
            async for path, size in walk:
                if path.startswith(prefix):
                    found[path] = size
                    if len(found) == limit:
                        break
        return found

    async def _walk(self, folder: str, after: str) -> AsyncGenerator[tuple[str, int]]:
        """Path and size of every file below the folder, by path. A folder sorts by its name and a slash."""
        root = self._files + "/"
        children: dict[str, ET.Element] = {}
        for href, properties in await self._propfind(folder, "1", ("resourcetype", "getcontentlength")):
            path = href.removeprefix(root).rstrip("/")
            is_folder = properties.find(f"{_DAV}resourcetype/{_DAV}collection") is not None
            # Only what lies below: no server leads us back up, or in circles.
            if href.startswith(root) and path.startswith(f"{folder}/" if folder else "") and path != folder:
                children[f"{path}/" if is_folder else path] = properties
        for path in sorted(children):
            if not path.endswith("/"):
                if path > after:
                    size = children[path].findtext(f"{_DAV}getcontentlength")
                    yield path, _count(size, f"listing {folder!r}")
            elif path > after or after.startswith(path):
                async for below in self._walk(path.rstrip("/"), after):
                    yield below

    async def space(self) -> SpaceReport:
        """PROPFIND the quota properties of RFC 4331."""
        names = ("quota-available-bytes", "quota-used-bytes")
        for _, properties in await self._propfind("", "0", names):
            available, used = (properties.findtext(_DAV + name) for name in names)
            if available is not None and used is not None:
                return SpaceReport(_count(available, "asking for space"), _count(used, "asking for space"))
        raise TapeUnavailable("asking for space: the store does not say")

    async def _propfind(self, folder: str, depth: str, names: Iterable[str]) -> Sequence[tuple[str, ET.Element]]:
        """Decoded path and properties of every response; none if there is no such folder."""
        what = f"listing {folder or '/'!r}"
        properties = "".join(f"<{name}/>" for name in names)
        body = f'<?xml version="1.0"?><propfind xmlns="DAV:"><prop>{properties}</prop></propfind>'
        headers = {"Depth": depth, "Content-Type": "application/xml"}
        url = self._origin + self._file_target(folder)
        answer = await self._control.ask(what, "PROPFIND", url, headers=headers, content=body.encode())
        if answer.status in _GONE:
            return []
        if answer.status != 207:
            refuse(what, answer.status, answer.body)
        found: list[tuple[str, ET.Element]] = []
        for response in _parse_xml(answer.body, what).iter(f"{_DAV}response"):
            for propstat in response.iter(f"{_DAV}propstat"):
                properties_found = propstat.find(f"{_DAV}prop")
                status = propstat.findtext(f"{_DAV}status", " 200 ")
                if properties_found is not None and " 200" in status:
                    href = unquote(urlsplit(response.findtext(f"{_DAV}href", "").strip()).path)
                    found.append((href, properties_found))
        return found

    # --- Tape REST ----------------------------------------------------------------------------------------------------

    async def _archiveinfo(self, paths: Sequence[str]) -> dict[str, Locality]:
        found: dict[str, Locality] = {}
        for start in range(0, len(paths), _ARCHIVEINFO_BATCH):
            batch = paths[start : start + _ARCHIVEINFO_BATCH]
            what = f"asking where {len(batch)} files are"
            body = {"paths": [_absolute(path) for path in batch]}
            answer = await self._control.ask(what, "POST", await self._tape("/archiveinfo"), body=body)
            if not answer.ok:
                refuse(what, answer.status, answer.body)
            found |= _localities(_json(answer.body, what), batch)
        return found

    def _on_tape_only(self, path: str) -> bool:
        """The same question for one file, from a thread."""
        what = f"asking where {path!r} is"
        uri = self._tape_uri
        if uri is None:
            answer = self._bulk(self._pool, what, "GET", _DISCOVERY, self._auth)
            uri = self._tape_uri = self._discovered(answer.status, answer.body)
        parts = urlsplit(uri)
        elsewhere = f"{parts.scheme}://{parts.netloc}" != self._origin
        pool = ConnectionPool(uri, **self._pool_options) if elsewhere else self._pool
        try:
            body = compact({"paths": [_absolute(path)]})
            headers = {**self._auth, "Content-Type": "application/json"}
            answer = self._bulk(pool, what, "POST", f"{parts.path}/archiveinfo", headers, body=memoryview(body))
        finally:
            if elsewhere:
                pool.close()
        if not answer.ok:
            refuse(what, answer.status, answer.body)
        return _localities(_json(answer.body, what), [path]).get(path) is Locality.TAPE

    async def _tape(self, resource: str) -> str:
        if self._tape_uri is None:
            answer = await self._control.ask("looking for the tape API", "GET", self._origin + _DISCOVERY)
            self._tape_uri = self._discovered(answer.status, answer.body)
        return self._tape_uri + resource

    def _discovered(self, status: int, body: bytes) -> str:
        what = "looking for the tape API"
        if status in _GONE:
            raise Misconfigured(f"{what}: {self._origin}{_DISCOVERY} does not exist")
        if status != 200:
            refuse(what, status, body)
        for endpoint in _mappings(_mapping(_json(body, what)).get("endpoints")):
            if endpoint.get("version") == "v1":
                uri = urljoin(self._origin, str(endpoint.get("uri", ""))).rstrip("/")
                if urlsplit(uri).hostname != urlsplit(self._origin).hostname:
                    raise Misconfigured(
                        f"{what}: discovery names another host ({urlsplit(uri).hostname}); "
                        "the token is not sent there unless that address is set explicitly"
                    )
                return uri
        raise Misconfigured(f"{what}: the store offers no version v1")

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _upload_url(self, upload_id: str) -> str:
        if not upload_id.startswith("/") or upload_id.startswith("//"):
            raise UploadGone("the upload id is not one of this store's")
        return self._origin + upload_id

    def _file_target(self, path: str) -> str:
        return f"{self._files}/{quote(path, safe='/~')}"

    async def _size(self, path: str) -> int | None:
        what = f"looking at {path!r}"
        answer = await self._control.ask(what, "HEAD", self._origin + self._file_target(path))
        if answer.status in _GONE:
            return None
        if not answer.ok:
            refuse(what, answer.status, b"")
        return _count(answer.headers.get("content-length"), what)

    def _bulk(
        self,
        pool: ConnectionPool,
        what: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: memoryview | None = None,
        into: memoryview | None = None,
    ) -> Answer:
        try:
            return pool.request(method, target, headers, body=body, into=into, repeatable=True)
        except TransferFailed as error:
            raise TapeUnavailable(f"{what}: {error}") from error


def refuse(what: str, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> NoReturn:
    """Raise what a status means that no caller has to tell apart."""
    said = f"{what}: the store answered {status}{_detail(body)}"
    retry_after = (headers or {}).get("retry-after", "")
    kind: type[InfrastructureError] = TapeUnavailable
    if status in (401, 403):
        kind = Misconfigured
    elif status == 413:
        kind = TooLarge
    elif status == 507:
        kind = NoSpace
    elif status == 429 or (status == 503 and retry_after):
        kind = Busy
    error = kind(said)
    error.retry_after_s = _seconds(retry_after)
    raise error


def _seconds(retry_after: str) -> float:
    """`Retry-After` (RFC 9110): seconds or a date; nothing where it makes no sense, and a day at most."""
    try:
        if retry_after.isdigit():
            wanted = float(retry_after)
        else:
            wanted = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0
    return min(max(wanted, 0), 24 * 3600)


def _mind_write_once(what: str, answer: Answer) -> None:
    """Tell a store that keeps what it has from one that refuses the token: a 403 may be either."""
    detail = _detail(answer.body)
    if answer.status in _KEPT or (answer.status == 403 and _KEPT_BY_ITS_WORDS.search(detail)):
        raise WriteOnce(f"{what}: the store keeps what it has{detail}")


def _detail(body: bytes) -> str:
    """The sentence of an RFC 7807 problem, cut short."""
    try:
        problem = _mapping(json.loads(body))
    except ValueError:
        return ""
    text = str(problem.get("detail") or problem.get("title") or "")
    return f": {text[:200]}" if text else ""


def _absolute(path: str) -> str:
    return "/" + path.lstrip("/")


def _duration(span: timedelta) -> str:
    """ISO 8601, whole seconds."""
    return f"PT{max(1, round(span.total_seconds()))}S"


def _count(text: str | None, what: str) -> int:
    if text is None or not text.strip().isdigit():
        raise TapeUnavailable(f"{what}: the answer lacks a number")
    return int(text)


def _json(body: bytes, what: str) -> object:
    try:
        return json.loads(body)
    except ValueError as error:
        raise TapeUnavailable(f"{what}: the answer is not JSON") from error


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _mappings(value: object) -> list[dict[str, Any]]:
    return [_mapping(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _by_path(items: Iterable[dict[str, Any]], paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Match what the server calls its files to the paths asked for: by name, else by a common end that is unique.

    Servers with a root of their own have echoed paths with that root cut off (dCache#7585).
    """
    asked = {_absolute(path): path for path in paths}
    found: dict[str, dict[str, Any]] = {}
    others: list[tuple[str, dict[str, Any]]] = []
    for item in items:
        name = _absolute(str(item.get("path", "")))
        if name in asked:
            found[asked[name]] = item
        else:
            others.append((name, item))
    if not others:
        return found
    missing = {name: path for name, path in asked.items() if path not in found}
    for name, item in others:
        alike = [path for full, path in missing.items() if full.endswith(name) or name.endswith(full)]
        if len(alike) == 1:
            found[alike[0]] = item
    return found


def _localities(answer: object, paths: Sequence[str]) -> dict[str, Locality]:
    """Those that have a locality; a word that is not known says only that the file cannot be had."""
    found: dict[str, Locality] = {}
    for path, item in _by_path(_mappings(answer), paths).items():
        word = item.get("locality")
        if word:
            found[path] = Locality(word) if word in Locality.__members__ else Locality.UNAVAILABLE
    return found


def _recalled(path: str, item: Mapping[str, Any]) -> Recalled:
    """Servers give either `state` or `onDisk`; with the latter, an error is all that tells a failure from a wait."""
    error = str(item.get("error") or "") or None
    state = item.get("state")
    if state is not None:
        return Recalled(path, _STATES.get(str(state), RecallState.WAITING), error)
    if item.get("onDisk") is True:
        return Recalled(path, RecallState.ONLINE)
    return Recalled(path, RecallState.FAILED if error else RecallState.WAITING, error)


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse the document: without a doctype there are no entities to expand or to fetch."""
        raise ET.ParseError("document types are refused")


def _parse_xml(body: bytes, what: str) -> ET.Element:
    parser = ET.XMLParser(target=_NoDoctype())  # noqa: S314 (the target refuses what makes XML dangerous)
    try:
        parser.feed(body)
        return parser.close()
    except ET.ParseError as error:
        raise TapeUnavailable(f"{what}: the answer is not acceptable XML") from error
