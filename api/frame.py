"""What is settled before a request meets a route: the path's form, the body's size, and who may send one."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT_BYTES = 4 * 2**20
"""The longest that is meant to come completes 10,000 parts, in a third of this."""


class Paths:
    """ASGI middleware: a POST with a trailing slash is answered too, or with a root path that the proxy has left in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the path that the routes know."""
        if scope["type"] == "http":
            root: str = scope.get("root_path", "")
            path: str = scope["path"]
            if root and path.startswith(f"{root}{root}/"):
                path = path.removeprefix(root)
            if scope["method"] == "POST" and path.removeprefix(root) != "/":
                path = path.removesuffix("/")
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class BodyLimit:
    """ASGI middleware: a body that is too long is read to its end, so that the answer arrives, and is kept nowhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; whoever reads the body is told by an `HTTPException` (400)."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_LIMIT_BYTES:
                while message.get("more_body", False):
                    message = await receive()
                raise HTTPException(400, f"the body is longer than {BODY_LIMIT_BYTES} bytes")
            return message

        await self._app(scope, limited, send)


class Guarded(APIRoute):
    """A route that asks for credentials first, though FastAPI reads the body before anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Whoever sends what cannot be read hears of that only if he may send something."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, HTTPException) as error:
                if _is_of_the_body(error):
                    with suppress(RequestValidationError):  # let in; the body is missing now
                        await handle(Request(request.scope, _nothing))
                raise

        return guarded


def _is_of_the_body(error: RequestValidationError | HTTPException) -> bool:
    if isinstance(error, HTTPException):
        return error.status_code == 400
    return any(each["type"] == "json_invalid" for each in error.errors())


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
