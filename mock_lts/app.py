"""Puts the parts together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mock_lts.admin import Admin
from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.faults import Faults
from mock_lts.files import Files
from mock_lts.gate import Connections, Gate
from mock_lts.keeper import Clock, Keeper
from mock_lts.page import page
from mock_lts.problems import ConnectionCut, Problem
from mock_lts.put import Put
from mock_lts.tape_rest import TapeRest
from mock_lts.tus import Tus
from mock_lts.uploads import Uploads
from mock_lts.webdav import WebDav

EXPIRY_SWEEP_S = 30.0
log = logging.getLogger("uvicorn.error")


def create_app(config: Config, *, clock: Clock = time.time, connections: Connections | None = None) -> Starlette:
    """The whole server as an ASGI app; its lifespan runs the library.

    Args:
        config: See `Config`.
        clock: Epoch seconds; the library believes it for everything.
        connections: Filled by `server.protocol`; without it a cut raises `ConnectionCut` into the caller.

    Raises:
        RuntimeError: Another process uses the state folder.
    """
    faults, counters = Faults(), Counters()
    connections = connections or Connections()
    keeper = Keeper(config, clock=clock, faults=faults)
    threads = ThreadPoolExecutor(16, thread_name_prefix="bytes")
    uploads = Uploads(config, keeper, counters, threads)
    uploads.recover()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        tasks = [
            asyncio.create_task(keeper.run()),
            asyncio.create_task(_expire(uploads, min(EXPIRY_SWEEP_S, config.upload_expiry_s / 4))),
        ]
        for task in tasks:
            task.add_done_callback(_report)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            threads.shutdown()
            keeper.close()

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return Problem(error.status_code, error.detail, error.headers).response()
        return error.response() if isinstance(error, Problem) else Problem(500, "unexpected").response()

    async def cut(request: Request, _: Exception) -> Response:
        await connections.cut(request.scope, request.receive)
        return Response(status_code=400)  # to nobody

    return Starlette(
        routes=[
            *Tus(config, uploads).routes(),
            *Files(config, keeper, counters, connections, threads).routes(),
            *Put(uploads).routes(),
            *WebDav(keeper).routes(),
            *TapeRest(config, keeper).routes(),
            *Admin(config, keeper, uploads, counters).routes(),
            Route("/", page, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
        ],
        middleware=[Middleware(Gate, config=config, faults=faults, counters=counters)],
        exception_handlers={Problem: refused, HTTPException: refused, ConnectionCut: cut},
        lifespan=lifespan,
    )


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _expire(uploads: Uploads, every_s: float) -> None:
    while True:
        uploads.expire()
        await asyncio.sleep(every_s)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the library has stopped", exc_info=task.exception())
