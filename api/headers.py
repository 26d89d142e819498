"""Headers that every answer carries, so that no browser or cache does more with it than is meant."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = {
    # Answers hold upload URLs, tokens, and who archives what.
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

DATA = _ALWAYS | {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
"""Of JSON."""

PAGE = _ALWAYS | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; connect-src 'self'; worker-src blob:; "
    "script-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "style-src https://cdn.jsdelivr.net https://fonts.googleapis.com 'unsafe-inline'; "
    "font-src https://fonts.gstatic.com; img-src data: https://fastapi.tiangolo.com https://cdn.redoc.ly"
}
"""Of the documentation. Its pages are FastAPI's, which load their scripts from there."""


class SecurityHeaders:
    """Adds the headers to every answer, errors included; a header that a route has set itself stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                page = headers.get("Content-Type", "").startswith("text/html")
                for name, value in (PAGE if page else DATA).items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, add)
