"""The application: one place where settings become clients, and clients become routes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api import errors
from api.collecting import Collector
from api.dependencies import Services
from api.frame import BodyLimit, Paths
from api.gateway import Gateway
from api.headers import SecurityHeaders
from api.observing import Observing
from api.routes import datasets, health, jobs, objects, tokens, uploads
from api.uploads import Uploads
from clients import telemetry
from clients.idp import IdentityProvider
from clients.landing_zone import LandingZone
from clients.s3 import ObjectStore
from clients.s3_wire import Wire
from clients.scicat import Catalogue
from clients.state import State
from clients.temporal import connect
from settings import Settings
from settings.needs import Process, needed


def create_app(settings: Settings) -> FastAPI:
    """Build the gateway.

    Raises:
        SettingsError: Names every account that is not set.
    """
    settings.require(*needed(settings, Process.API))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # Lazy: the API answers, and says what is missing, while Temporal is away.
        told = telemetry.start(**settings.telemetry, service="scopemarchiver-api")
        client = await connect(**settings.temporal_connection, **told, lazy=True)
        async with AsyncExitStack() as stack:
            stack.callback(telemetry.stop)
            store = await stack.enter_async_context(
                ObjectStore.connect(external_endpoint=settings.s3_external_endpoint, **settings.s3_connection)
            )
            catalogue, identity = Catalogue(**settings.scicat_connection), _identity(settings)
            stack.push_async_callback(catalogue.aclose)
            stack.push_async_callback(identity.aclose)
            gateway = Gateway(client)
            app.state.services = Services(
                gateway=gateway,
                objects=store,
                state=State(store, settings.s3_state_bucket),
                landing_zone=_landing_zone(settings, store),
                catalogue=catalogue,
                identity=identity,
                uploads=Uploads(client=client, gateway=gateway, objects=store, settings=settings),
            )
            if settings.metrics_address:
                untraced = await connect(**settings.temporal_connection, runtime=told["runtime"], lazy=True)
                collecting = asyncio.create_task(Collector(untraced, store, settings).run())
                stack.callback(collecting.cancel)
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
    app.add_middleware(BodyLimit)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allowed_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Observing)
    app.add_middleware(Paths)  # outermost: the others see the path that is routed
    app.include_router(health.router)
    app.include_router(tokens.router)
    app.include_router(objects.router)
    app.include_router(uploads.router)
    app.include_router(jobs.router)
    app.include_router(jobs.operators)
    app.include_router(jobs.verbs)
    app.include_router(datasets.router)
    app.include_router(datasets.verbs)
    return app


def _identity(settings: Settings) -> IdentityProvider:
    return IdentityProvider(
        url=settings.idp_url,
        realm=settings.idp_realm,
        audience=settings.idp_audience,
        algorithm=settings.idp_algorithm,
        client_id=settings.idp_client_id,
        client_secret=settings.idp_client_secret.get_secret_value(),
        username=settings.idp_username,
        password=settings.idp_password.get_secret_value(),
        ca_file=settings.ca_file,
    )


def _landing_zone(settings: Settings, store: ObjectStore) -> LandingZone:
    outside = Wire(
        endpoint=settings.s3_external_endpoint,
        access_key=settings.s3_user.get_secret_value(),
        secret_key=settings.s3_password.get_secret_value(),
        region=settings.s3_region,
    )
    return LandingZone(store, settings.s3_landingzone_bucket, outside, expires_s=settings.url_expiration_seconds)
