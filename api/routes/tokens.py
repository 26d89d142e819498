"""`/token`: a SciCat token in, a renewable token of the service's account out: an upload outlives the former."""

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import ValidationError

from api.auth import ingestor
from api.dependencies import ServicesDep
from api.errors import RESPONSES
from api.models import IssuedToken
from domain.errors import IdentityProviderUnavailable

router = APIRouter(tags=["tokens"], dependencies=[Depends(ingestor)])

_DECLARED: dict[int | str, dict[str, Any]] = {code: RESPONSES[code] for code in (401, 500)}


@router.post("/token", status_code=201, responses=_DECLARED, response_model_exclude_none=True)
async def token(services: ServicesDep) -> IssuedToken:
    """Trade a SciCat token, or a service token, for a fresh service token; the provider renews it by itself."""
    said = await services.identity.service_token()
    try:
        return IssuedToken.model_validate(said)
    except ValidationError:
        # Its text quotes the tokens.
        raise IdentityProviderUnavailable("the identity provider's answer to a password grant is no token") from None
