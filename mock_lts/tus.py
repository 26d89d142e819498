"""The write side: tus 1.0.0 (https://tus.io/protocols/resumable-upload) under `/uploads`.

Core protocol with creation, creation-with-upload, checksum, termination and expiration.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mock_lts.config import Config
from mock_lts.gate import base_url
from mock_lts.paths import BadPath, checked
from mock_lts.problems import Problem
from mock_lts.uploads import ALGORITHMS, Upload, Uploads

VERSION = "1.0.0"
OFFSET_STREAM = "application/offset+octet-stream"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
Handler = Callable[[Request], Awaitable[Response]]
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"


class Tus:
    """The routes."""

    def __init__(self, config: Config, uploads: Uploads) -> None:
        self._config = config
        self._uploads = uploads

    def routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/uploads", self._collection, methods=METHODS),
            Route("/uploads/", self._collection, methods=METHODS),
            Route("/uploads/{upload_id}", self._one, methods=METHODS),
        ]

    async def _collection(self, request: Request) -> Response:
        return await self._answer(request, {"POST": self._create})

    async def _one(self, request: Request) -> Response:
        return await self._answer(request, {"HEAD": self._head, "PATCH": self._patch, "DELETE": self._terminate})

    async def _answer(self, request: Request, handlers: Mapping[str, Handler]) -> Response:
        """Let the right handler answer a client that speaks our version. The gate adds ours to every answer."""
        # Some networks let only GET and POST pass; the protocol obliges servers to honour this header.
        method = request.headers.get("x-http-method-override", request.method).upper()
        if method == "OPTIONS":
            return self._options()
        if method not in handlers:
            raise Problem(405, f"not {method} here", {"Allow": ", ".join([*handlers, "OPTIONS"])})
        if request.headers.get("tus-resumable") != VERSION:
            raise Problem(412, f"Tus-Resumable must be {VERSION}", {"Tus-Version": VERSION})
        return await handlers[method](request)

    def _options(self) -> Response:
        return Response(
            status_code=204,
            headers={
                "Tus-Version": VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
                "Tus-Max-Size": str(self._config.max_upload_bytes),
            },
        )

    async def _create(self, request: Request) -> Response:
        with_body = _is_stream(request)
        length = _number(request, "upload-length")
        metadata = request.headers.get("upload-metadata", "")
        path = _path(metadata)
        checksum = _checksum(request) if with_body else None
        if with_body and _number(request, "content-length", default=0) > length:
            raise Problem(413, "the body reaches beyond Upload-Length")
        upload = self._uploads.create(path, length, metadata)
        async with upload.lock:
            try:
                if with_body:
                    await self._uploads.take_body(upload, request.receive, checksum)
                elif length == 0:
                    await self._uploads.finish(upload)
            except BaseException:
                self._uploads.drop(upload)  # a client that is refused never learns where its upload is
                raise
        location = f"{base_url(request, self._config)}/uploads/{upload.row.id}"
        headers = {"Location": location, **_expires(upload)}
        if with_body:
            headers["Upload-Offset"] = str(upload.row.offset)
        return Response(status_code=201, headers=headers)

    async def _head(self, request: Request) -> Response:
        upload = self._uploads.get(request.path_params["upload_id"])
        if upload.finishing:
            async with upload.lock:  # the offset must not promise a file that is about to appear
                upload = self._uploads.get(upload.row.id)
        row = upload.row
        headers = {
            "Upload-Offset": str(row.offset),
            "Upload-Length": str(row.length),
            "Upload-Metadata": row.metadata or f"path {base64.b64encode(row.path.encode()).decode()}",
            "Cache-Control": "no-store",
            **_expires(upload),
        }
        return Response(headers=headers)

    async def _patch(self, request: Request) -> Response:
        upload = self._uploads.get(request.path_params["upload_id"])
        if not _is_stream(request):
            raise Problem(415, f"Content-Type must be {OFFSET_STREAM}")
        offset = _number(request, "upload-offset")
        checksum = _checksum(request)
        self._uploads.demand_space()
        async with upload.lock:
            upload = self._uploads.get(upload.row.id)
            row = upload.row
            if offset != row.offset:
                raise Problem(409, f"Upload-Offset must be {row.offset}", {"Upload-Offset": str(row.offset)})
            if offset + _number(request, "content-length", default=0) > row.length:
                raise Problem(413, "the body reaches beyond Upload-Length")
            if row.phase == "open":
                await self._uploads.take_body(upload, request.receive, checksum)
        return Response(status_code=204, headers={"Upload-Offset": str(row.offset), **_expires(upload)})

    async def _terminate(self, request: Request) -> Response:
        await self._uploads.terminate(self._uploads.get(request.path_params["upload_id"]))
        return Response(status_code=204)


def _is_stream(request: Request) -> bool:
    return request.headers.get("content-type", "").lower() == OFFSET_STREAM


def _expires(upload: Upload) -> dict[str, str]:
    return {"Upload-Expires": formatdate(upload.row.expires_at, usegmt=True)}


def _number(request: Request, header: str, *, default: int | None = None) -> int:
    text = request.headers.get(header)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Problem(400, f"{header} must be a number of bytes")
    return int(text)


def _path(metadata: str) -> str:
    """The destination out of `Upload-Metadata: path <base64 of UTF-8>`, other keys ignored."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in metadata.split(","))):
        key, _, value = pair.partition(" ")
        if not key.isascii():
            raise Problem(400, "a key of Upload-Metadata is not ASCII")
        if key in found:
            raise Problem(400, f"Upload-Metadata has {key!r} twice")
        found[key] = value
    if "path" not in found:
        raise Problem(400, "Upload-Metadata must have a path")
    try:
        return checked(base64.b64decode(found["path"], validate=True).decode("utf-8"))
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Problem(400, "the path in Upload-Metadata is not base64 of UTF-8") from error
    except BadPath as error:
        raise Problem(400, str(error)) from error


def _checksum(request: Request) -> tuple[str, bytes] | None:
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    if algorithm not in ALGORITHMS:
        raise Problem(400, f"Upload-Checksum must use one of {', '.join(ALGORITHMS)}")
    try:
        return algorithm, base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise Problem(400, "Upload-Checksum is not base64") from error
