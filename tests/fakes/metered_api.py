"""`python -m tests.fakes.metered_api`: the API as it is, and `/lag` beside it: how late its event loop was."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from settings import load_settings

_EVERY_S = 0.005


def metered(app: FastAPI) -> FastAPI:
    """Sample the loop for as long as the application lives."""
    lags: list[float] = []
    inner = app.router.lifespan_context

    async def sample() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            lags.append(loop.time() - due)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with inner(app):
            sampling = asyncio.create_task(sample())
            yield
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling

    @app.get("/lag", include_in_schema=False)
    async def lag() -> list[float]:  # pyright: ignore[reportUnusedFunction]
        """All samples since the last call, in s, sorted."""
        taken = sorted(lags)
        lags.clear()
        return taken

    app.router.lifespan_context = lifespan
    return app


if __name__ == "__main__":
    settings = load_settings()
    uvicorn.run(
        metered(create_app(settings)), host=settings.uvicorn_host, port=settings.uvicorn_port, log_level="warning"
    )
