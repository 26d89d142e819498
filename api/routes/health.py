"""`/health/…`: whether the process lives, and whether what it needs answers."""

import asyncio
import ssl
from collections.abc import Awaitable

import httpx
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.dependencies import Services, ServicesDep, SettingsDep
from api.models import DependencyError, Healthy, NotReady, Ready
from settings import Settings

router = APIRouter(prefix="/health", tags=["health"])

_WITHIN_S = 4.0
_NOTED_WITHIN_S = 1.0
"""For what is only noted: whoever asks us has a time-out, too."""


@router.get("/livez")
async def livez() -> Healthy:
    """The process answers; no dependency is asked."""
    return Healthy()


@router.get("/readyz", responses={503: {"model": NotReady}}, response_model=Ready)
async def readyz(services: ServicesDep, settings: SettingsDep) -> Ready | JSONResponse:
    """Ask Temporal, SciCat and S3 at once, each with a time-out; the identity provider, too, which is only noted."""
    notes, *found = await asyncio.gather(
        _noted(services, settings),
        _ask("temporal", settings.temporal_address, services.gateway.healthy()),
        _ask("scicat", settings.scicat_endpoint, _scicat(settings)),
        _ask("s3", settings.s3_endpoint, services.objects.versioning(settings.s3_landingzone_bucket)),
    )
    errors = list(filter(None, found))
    if not errors:
        return Ready(notes=notes)
    summary = "; ".join(f"{error.dependency}: {error.message}" for error in errors)
    return JSONResponse(NotReady(error=summary, errors=errors, notes=notes).model_dump(), status_code=503)


async def _noted(services: Services, settings: Settings) -> list[DependencyError]:
    """What uploads alone need: without it archives and retrievals go on, so the service is ready all the same."""
    if not settings.ingestor_groups:
        return []
    missing = await _ask("identity provider", settings.idp_url, services.identity.answers(), _NOTED_WITHIN_S)
    return [missing] if missing else []


async def _scicat(settings: Settings) -> bool:
    """SciCat's health; it exists under v3 alone and says ok a while after its database died (4.27, observed)."""
    trust = ssl.create_default_context(cafile=settings.ca_file)
    async with httpx.AsyncClient(verify=trust, timeout=_WITHIN_S, trust_env=False) as client:
        return (await client.get(f"{settings.scicat_endpoint}/api/v3/health")).is_success


async def _ask(
    dependency: str, endpoint: str, answer: Awaitable[object], within_s: float = _WITHIN_S
) -> DependencyError | None:
    try:
        async with asyncio.timeout(within_s):
            if await answer:
                return None
            message = "answers, but not as it should"
    except TimeoutError:
        message = f"no answer within {within_s:.0f} s"
    except Exception as error:
        # Whatever it is, it makes the service unready and is told, by its class alone: texts may hold addresses.
        message = f"does not answer ({type(error).__name__})"
    return DependencyError(dependency=dependency, endpoint=endpoint, message=message)
