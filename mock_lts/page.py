"""A page for people: cartridges, drives, cache, queues, uploads, faults; refreshed each second from `/admin/state`."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_HTML = Path(__file__).with_name("page.html").read_text("utf-8")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


async def page(_: Request) -> Response:
    """The page; it holds no data itself."""
    return HTMLResponse(_HTML, headers={"Content-Security-Policy": _POLICY})
