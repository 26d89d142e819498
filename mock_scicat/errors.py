"""SciCat's error bodies, of which it has five kinds (contract, "Error bodies")."""

import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

_NAMES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    412: "Precondition Failed",
}


class ScicatError(Exception):
    """An answer other than 2xx; carries the status and the body exactly as they go out."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


def refusal(status: int, message: str | list[str]) -> ScicatError:
    """Nest's usual form; with a list of messages it is what most validation answers."""
    return ScicatError(status, {"message": message, "error": _NAMES[status], "statusCode": status})


def forbidden(message: str = "Forbidden resource") -> ScicatError:
    """403, also for an expired, bad or missing token."""
    return refusal(403, message)


def not_found(message: str) -> ScicatError:
    """404 with SciCat's sentence."""
    return refusal(404, message)


def unauthenticated() -> ScicatError:
    """401, which only `users/my/*` answers."""
    return refusal(401, "Unauthenticated")


def dataset_violations(violations: list[dict[str, Any]]) -> ScicatError:
    """What v3 POST and PATCH datasets answer: the list of violations as a JSON string."""
    return ScicatError(400, {"status": 400, "message": json.dumps(violations, separators=(",", ":"))})


def job_refusal(message: str, *, status: int = 400, error: str | None = None) -> ScicatError:
    """The form of the jobs' own rules: no `statusCode`, rarely an `error`."""
    body: dict[str, Any] = {"status": status, "message": message}
    return ScicatError(status, body if error is None else body | {"error": error})


def unhandled() -> ScicatError:
    """What SciCat answers when it stumbles: 500 with a bare JSON string."""
    return ScicatError(500, "Internal server error")


async def answer_scicat_error(_request: Request, error: Exception) -> JSONResponse:
    """Exception handler for `ScicatError`."""
    assert isinstance(error, ScicatError)  # noqa: S101 registered for this type only
    return JSONResponse(error.body, status_code=error.status)


async def answer_unhandled(_request: Request, _error: Exception) -> JSONResponse:
    """Exception handler for our own mistakes: the answer SciCat would give for its own."""
    return JSONResponse("Internal server error", status_code=500)


async def answer_unknown_route(request: Request, _error: Exception) -> JSONResponse:
    """Express knows no 405: a wrong method, like a raw slash in a pid, is 404 "Cannot GET ..."."""
    raw_path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    target = (raw_path + (b"?" + query if query else b"")).decode("latin-1")
    body = {"message": f"Cannot {request.method} {target}", "error": "Not Found", "statusCode": 404}
    return JSONResponse(body, status_code=404)
