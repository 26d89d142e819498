"""The plain write side: HTTP `PUT` of `/files/<path>`, for clients that know no tus (RFC 9110, 9.3.4; RFC 4918).

A PUT cannot be resumed. The file appears, or replaces another, when its last byte is in; of a broken one nothing stays.
"""

from __future__ import annotations

import base64
import binascii
import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mock_lts.conditions import Conditions
from mock_lts.files import file_path
from mock_lts.problems import Problem
from mock_lts.uploads import Uploads

_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,;\s]+)")


class Put:
    """The route."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def routes(self) -> list[Route]:
        """For the app."""
        return [Route("/files/{path:path}", self._put, methods=["PUT"])]

    async def _put(self, request: Request) -> Response:
        path = file_path(request)
        if "content-range" in request.headers:
            raise Problem(400, "a part of a file cannot be put: use tus")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "the body must not be encoded")
        file_id, replaced = await self._uploads.put(
            path, _length(request), request.receive, _sha256(request), Conditions.of(request.headers)
        )
        return Response(status_code=204 if replaced else 201, headers={"ETag": f'"{file_id}"'})


def _length(request: Request) -> int | None:
    """What Content-Length says; None for a chunked body, which says nothing before its end."""
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        return None
    text = request.headers.get("content-length")
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Problem(411, "a PUT needs Content-Length or Transfer-Encoding: chunked")
    return int(text)


def _sha256(request: Request) -> bytes | None:
    """The sha-256 promised by `Repr-Digest` or `Content-Digest` (RFC 9530); without encoding both mean the body.

    Algorithms we do not know are ignored, as the RFC wants it.
    """
    found: set[bytes] = set()
    for header in ("repr-digest", "content-digest"):
        for value in _SHA256.findall(request.headers.get(header, "")):
            try:
                digest = base64.b64decode(value[1:-1], validate=True)
            except binascii.Error as error:
                raise Problem(400, f"{header}: sha-256 is not base64") from error
            if (value[0], value[-1], len(digest)) != (":", ":", 32):
                raise Problem(400, f"{header}: sha-256 must be :<base64 of 32 bytes>:")
            found.add(digest)
    if len(found) > 1:
        raise Problem(400, "the digests contradict each other")
    return found.pop() if found else None
