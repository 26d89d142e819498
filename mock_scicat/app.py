"""The composition root: a `Config` becomes an ASGI application."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from . import attachments, blocks, datasets, faults, jobs, lifecycle, page, users
from .accounts import Accounts
from .config import Config
from .context import World
from .errors import ScicatError, answer_scicat_error, answer_unhandled, answer_unknown_route
from .job_actions import UrlAction
from .rights import Rights
from .routing import ScicatPaths
from .store import Store


def create_app(config: Config, *, job_transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Make the stand-in.

    The store is open when this returns and is closed when the application's lifespan ends; who does not run the
    lifespan closes `app.state.world.store`.

    Args:
        config: all settings.
        job_transport: takes the place of the network for the `url` job action, for tests.
    """
    app = FastAPI(
        title="SciCat stand-in", openapi_url="/explorer-json", docs_url=None, redoc_url=None, redirect_slashes=False,
        lifespan=_close_store_at_end,
    )  # fmt: skip
    app.state.world = _build_world(config, job_transport)
    app.state.hooks = faults.Hooks()
    for router in (datasets.public, attachments.attachments):  # before datasets/{pid}
        app.include_router(router, prefix="/api/v4")
    for version in ("v3", "v4"):
        for router in (lifecycle.router, datasets.router, blocks.origdatablocks, jobs.router):
            app.include_router(router, prefix=f"/api/{version}")
    for router in (blocks.of_dataset, blocks.datablocks, attachments.of_dataset, users.router):
        app.include_router(router, prefix="/api/v3")
    app.include_router(faults.router)
    app.include_router(page.router)
    app.add_exception_handler(ScicatError, answer_scicat_error)
    app.add_exception_handler(404, answer_unknown_route)
    app.add_exception_handler(405, answer_unknown_route)
    app.add_exception_handler(Exception, answer_unhandled)
    app.add_middleware(faults.FaultInjector, hooks=app.state.hooks)
    app.add_middleware(ScicatPaths)  # outermost: the others see the routed path
    return app


def _build_world(config: Config, job_transport: httpx.AsyncBaseTransport | None) -> World:
    store = Store(config.state)
    url_action = None
    if config.job_url:
        url_action = UrlAction(
            config.job_url, username=config.job_username, password=config.job_password, transport=job_transport
        )
    return World(
        config=config,
        store=store,
        accounts=Accounts(config.accounts, secret=config.jwt_secret or store.secret(), ttl_s=config.token_ttl_s),
        rights=Rights(config),
        url_action=url_action,
    )


@asynccontextmanager
async def _close_store_at_end(app: FastAPI) -> AsyncGenerator[None]:
    yield
    app.state.world.store.close()
