"""What the API tells of its requests: how long each took, which trace it is of, and whose each line of the log is."""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients import telemetry
from domain import metrics

_present: ContextVar[Scope | None] = ContextVar("request", default=None)

_NO_ROUTE = "none"
"""Label of a path that is none of ours: strangers' paths would make labels without end."""


class Observing:
    """ASGI middleware around everything that answers; a health check belongs to no trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        _present.set(scope)
        try:
            if "/health/" in scope["path"]:
                await self._app(scope, receive, noting)
                return
            with telemetry.serving(scope["method"], _headers(scope)) as span:
                try:
                    await self._app(scope, receive, noting)
                finally:
                    if span:
                        span.update_name(f"{scope['method']} {_route(scope)}")
                        span.set_attribute("http.response.status_code", status)
        finally:
            seconds = time.perf_counter() - begun
            telemetry.observe(
                metrics.REQUEST_SECONDS,
                seconds,
                method=scope["method"],
                route=_route(scope),
                status=str(status),
            )


def _route(scope: Scope) -> str:
    """The path with its parameters' names, known once a request was routed."""
    return getattr(scope.get("route"), "path", _NO_ROUTE)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def is_about(*, job_id: str) -> None:
    """Say which job the present request is about, where its path does not."""
    if scope := _present.get():
        scope["path_params"] = {**scope.get("path_params", {}), "job_id": job_id}


def facts() -> Mapping[str, str | list[str]]:
    """Whose work is being done now, for a line of the log."""
    scope = _present.get() or {}
    named: dict[str, Any] = scope.get("path_params", {})
    job_id = named.get("job_id")
    return {
        "job_ids": [str(job_id)] if job_id else [],
        "pid": str(named.get("pid", "")),
        "trace_id": telemetry.trace_id(),
    }
