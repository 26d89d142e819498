"""Refusals as RFC 7807 problem documents."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse


class Problem(Exception):
    """A request is refused with this status.

    Attributes:
        status: HTTP status code.
        detail: What a person needs to know; must hold no secret.
        headers: Sent along, such as Retry-After.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer on the wire."""
        body = {"type": "about:blank", "status": self.status, "title": _title(self.status), "detail": self.detail}
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        # tus's own code for a checksum mismatch is in no registry; nor are some that a fault may ask for.
        return "Checksum Mismatch" if status == 460 else "Error"


class ConnectionCut(Exception):
    """A fault asks for the client's connection to be dropped; no answer is to be sent."""
