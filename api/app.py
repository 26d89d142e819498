"""The application: one place where settings become clients, and clients become routes."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import errors
from api.dependencies import Services
from api.gateway import Gateway
from api.headers import SecurityHeaders
from api.routes import datasets, health, jobs
from clients.s3 import ObjectStore
from clients.state import State
from clients.temporal import connect
from settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Build the gateway.

    Raises:
        SettingsError: the job endpoint's credentials or the S3 account are not set.
    """
    settings.require_job_endpoint_credentials()
    settings.require("s3_user", "s3_password")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # Lazy: the API answers, and says what is missing, while Temporal is away.
        client = await connect(**settings.temporal_connection, lazy=True)
        async with ObjectStore.connect(
            external_endpoint=settings.s3_external_endpoint, **settings.s3_connection
        ) as objects:
            app.state.services = Services(Gateway(client), objects, State(objects, settings.s3_state_bucket))
            yield

    app = FastAPI(
        title="ScopeMArchiver",
        description="Moves datasets between the landing zone and tape.",
        version="1",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.add_middleware(SecurityHeaders)
    errors.install(app)
    app.include_router(health.router)
    app.include_router(jobs.router)
    app.include_router(jobs.operators)
    app.include_router(jobs.verbs)
    app.include_router(datasets.router)
    app.include_router(datasets.verbs)
    return app
