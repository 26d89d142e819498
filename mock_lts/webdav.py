"""Listing and space: WebDAV `PROPFIND` on `/files/<prefix>`, depth 0 and 1, with quota (RFC 4918, RFC 4331).

Whatever a client asks for, it gets every property there is; folders exist because files lie in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from urllib.parse import quote
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mock_lts.files import file_path
from mock_lts.keeper import Keeper
from mock_lts.model import StoredFile
from mock_lts.problems import Problem


class WebDav:
    """The routes."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/files", self._propfind, methods=["PROPFIND"]),
            Route("/files/{path:path}", self._propfind, methods=["PROPFIND"]),
        ]

    async def _propfind(self, request: Request) -> Response:
        depth = request.headers.get("depth", "infinity")
        if depth not in ("0", "1"):
            raise Problem(403, "Depth must be 0 or 1")
        if request.url.path.endswith("/") and request.url.path != "/files/":
            request.scope["raw_path"] = request.scope.get("raw_path", request.url.path.encode()).rstrip(b"/")
        path = "" if request.url.path in ("/files", "/files/") else file_path(request)
        with self._keeper.acting() as library:
            file = library.by_path.get(path)
            if file is None and path and not library.is_folder(path):
                raise Problem(404, "no such file or folder")
            parts = [self._folder(path) if file is None else _file(file)]
            if depth == "1" and file is None:
                parts += self._children(path)
        xml = '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">' + "".join(parts)
        return Response(xml + "</D:multistatus>", 207, media_type="application/xml; charset=utf-8")

    def _children(self, path: str) -> Iterator[str]:
        prefix = path + "/" if path else ""
        folders: set[str] = set()
        for other, file in sorted(self._keeper.library.by_path.items()):
            if not other.startswith(prefix):
                continue
            name, slash, _ = other[len(prefix) :].partition("/")
            if not slash:
                yield _file(file)
            elif name not in folders:
                folders.add(name)
                yield self._folder(prefix + name)

    def _folder(self, path: str) -> str:
        properties = "<D:resourcetype><D:collection/></D:resourcetype>"
        if not path:
            properties += f"<D:quota-available-bytes>{self._available()}</D:quota-available-bytes>"
            properties += f"<D:quota-used-bytes>{self._keeper.library.stored_bytes}</D:quota-used-bytes>"
        return _response(f"{path}/" if path else "", properties)

    def _available(self) -> int:
        """What the cartridges can still take, less what already waits for them."""
        if self._keeper.faults.tapes_full():
            return 0
        library = self._keeper.library
        free = sum(t.capacity_bytes - t.used_bytes for t in library.tapes.values() if not t.offline)
        return max(0, free - sum(file.size for file in library.unmigrated()))


def _file(file: StoredFile) -> str:
    return _response(
        file.path,
        "<D:resourcetype/>"
        f"<D:getcontentlength>{file.size}</D:getcontentlength>"
        f"<D:getetag>&quot;{file.id}&quot;</D:getetag>"
        f"<D:getlastmodified>{formatdate(file.created_at, usegmt=True)}</D:getlastmodified>",
    )


def _response(path: str, properties: str) -> str:
    name = escape(path.rstrip("/").rpartition("/")[2])
    return (
        f"<D:response><D:href>/files/{quote(path)}</D:href><D:propstat><D:prop>"
        f"<D:displayname>{name}</D:displayname>{properties}"
        "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )
