"""Errors become JSON here and nowhere else, in the shapes that the known clients decode."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from temporalio.exceptions import TemporalError
from temporalio.service import RPCError

from api import headers
from api.models import Detail, ServerError, Unprocessable
from domain.errors import ArchiverError, DatasetError, TokenRefused, UploadRefused
from domain.outcome import bounded

_log = logging.getLogger("api")

RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": Detail, "description": "Missing or wrong credentials"},
    422: {"model": Unprocessable, "description": "The request cannot be understood or is not allowed"},
    500: {"model": ServerError, "description": "Something that the service needs failed"},
}
"""Declared for every route that can answer them."""

_LEVELS: dict[type[ArchiverError], int] = {UploadRefused: logging.INFO, DatasetError: logging.WARNING}
"""Errors that are no failures of ours. A client that goes on with an upload asks for each file whether it is there."""

UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": Detail, "description": "Nothing is known of it"}}
VERB_RESPONSES: dict[int | str, dict[str, Any]] = {
    **RESPONSES,
    **UNKNOWN,
    403: {"model": Detail, "description": "In production only the operators' account may do this"},
    409: {"model": Detail, "description": "Without effect: already ended, too late, or not parked"},
}


class Refused(Exception):
    """The request is at fault: a 422 with one reason."""

    def __init__(self, message: str, *location: str, kind: str = "value_error") -> None:
        super().__init__(message)
        self.detail: list[dict[str, Any]] = [{"loc": list(location), "msg": message, "type": kind}]


def server_error(code: str, message: str, details: str = "") -> JSONResponse:
    """A 500 with all its fields."""
    body = ServerError(code=code, message=message, details=details)
    # Unexpected errors are answered outside all middleware, so the headers are put in here.
    return JSONResponse(body.model_dump(), status_code=500, headers=headers.DATA)


def install(app: FastAPI) -> None:
    """Register every handler."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        reasons = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
        return JSONResponse({"detail": reasons}, status_code=422)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"detail": error.detail}, status_code=422)

    @app.exception_handler(RPCError)
    @app.exception_handler(TemporalError)
    async def temporal(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        _log.error("%s %s: Temporal: %s", request.method, request.url.path, error)
        return server_error(
            "TemporalUnavailable",
            "the workflow service does not answer; ask again later, nothing is done twice",
            bounded(str(error)),
        )

    @app.exception_handler(TokenRefused)
    async def no_token(request: Request, error: TokenRefused) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        detail = f"a bearer token is needed: {bounded(str(error))}"
        return JSONResponse({"detail": detail}, status_code=401, headers={"WWW-Authenticate": "Bearer"})

    @app.exception_handler(ArchiverError)
    async def ours(request: Request, error: ArchiverError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        level = next((level for kind, level in _LEVELS.items() if isinstance(error, kind)), logging.ERROR)
        _log.log(level, "%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
        code = error.code if isinstance(error, UploadRefused) else type(error).__name__
        text = bounded(str(error))
        return server_error(code, text, f"{type(error).__name__}: {text}")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        _log.exception("%s %s", request.method, request.url.path, exc_info=error)
        return server_error("InternalError", "an unexpected error; the service's log says more", type(error).__name__)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        if error.status_code == 400:  # a body that cannot be read, by FastAPI or `api/frame.py`
            return await refused(request, Refused(str(error.detail), "body", kind="unreadable"))
        given: Mapping[str, str] | None = error.headers
        if error.status_code == 405:
            given = {**(given or {}), **_allowed(request)}
        return JSONResponse({"detail": str(error.detail)}, status_code=error.status_code, headers=given)


def _allowed(request: Request) -> dict[str, str]:
    """All methods of a path; the router's own header has those of the first route alone."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    asked = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    templates = [template for template in paths if re.fullmatch(re.sub(r"\{.+?\}", ".+", template), asked)]
    # A pid has slashes, so a template may match what a longer one means.
    operations = paths.get(asked) or paths.get(max(templates, key=len, default=""), {})
    return {"Allow": ", ".join(method.upper() for method in operations)} if operations else {}
