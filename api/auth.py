"""Who may call what: the Basic accounts of SciCat's job action and of operators, and the bearers of tokens."""

import secrets
from base64 import b64decode
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from api.dependencies import ServicesDep, SettingsDep
from domain.errors import TokenRefused
from settings import Settings


class _Basic(HTTPBasic):
    """Names and passwords in UTF-8, as SciCat sends them; FastAPI's own reads ASCII alone. None if there are none."""

    async def __call__(self, request: HTTPConnection) -> HTTPBasicCredentials | None:
        scheme, word = get_authorization_scheme_param(request.headers.get("Authorization"))
        try:
            username, colon, password = b64decode(word, validate=True).decode().partition(":")
        except ValueError:
            return None
        if scheme.lower() != "basic" or not colon:
            return None
        return HTTPBasicCredentials(username=username, password=password)


_basic = _Basic(scheme_name="BasicAuth")

Credentials = Annotated[HTTPBasicCredentials | None, Depends(_basic)]


def _matches(credentials: HTTPBasicCredentials, username: SecretStr, password: SecretStr) -> bool:
    """Compare in constant time; an account without name or password lets nobody in."""
    name, word = username.get_secret_value().encode(), password.get_secret_value().encode()
    same_name = secrets.compare_digest(credentials.username.encode(), name)
    same_word = secrets.compare_digest(credentials.password.encode(), word)
    return same_name & same_word & bool(name) & bool(word)


def _refuse() -> HTTPException:
    return HTTPException(401, "wrong or missing credentials", {"WWW-Authenticate": 'Basic realm="archiver"'})


def job_account(credentials: Credentials, settings: SettingsDep) -> None:
    """Let SciCat's account in."""
    if credentials is None or not _is_scicat(credentials, settings):
        raise _refuse()


def operator_account(credentials: Credentials, settings: SettingsDep) -> None:
    """Let SciCat's or the operators' account in."""
    if credentials is None or not (
        # No short cut: how long it takes says nothing about which account was meant.
        _is_scicat(credentials, settings) | _is_operator(credentials, settings)
    ):
        raise _refuse()


def operator_verbs(credentials: Credentials, settings: SettingsDep) -> None:
    """Let in who may pause or cancel other people's work: in production the operators' account alone.

    SciCat's password is known to SciCat, whose job action needs it for no more than telling of jobs.
    """
    operator_account(credentials, settings)
    assert credentials is not None  # noqa: S101 - the line above
    if settings.in_production and not _is_operator(credentials, settings):
        raise HTTPException(403, "operators' verbs need the account of OPERATOR_USERNAME and OPERATOR_PASSWORD")


def _is_scicat(credentials: HTTPBasicCredentials, settings: Settings) -> bool:
    return _matches(credentials, settings.job_endpoint_username, settings.job_endpoint_password)


def _is_operator(credentials: HTTPBasicCredentials, settings: Settings) -> bool:
    return _matches(credentials, settings.operator_username, settings.operator_password)


_bearer = HTTPBearer(scheme_name="BearerAuth", bearerFormat="JWT", auto_error=False)
_scicat = HTTPBearer(scheme_name="SciCatAuth", bearerFormat="JWT", auto_error=False)


async def uploader(
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)], services: ServicesDep
) -> None:
    """Let in who holds a token of the identity provider."""
    await services.identity.check(_token(bearer))


async def ingestor(
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_scicat)],
    services: ServicesDep,
    settings: SettingsDep,
) -> None:
    """Let in who holds a SciCat token of a group that may upload, or a token of the identity provider already."""
    token = _token(bearer)
    if await services.identity.issued(token):
        await services.identity.check(token)
    elif settings.ingestor_groups.isdisjoint(await services.catalogue.groups_of(token)):
        raise TokenRefused("its user belongs to no group that may upload")


def _token(bearer: HTTPAuthorizationCredentials | None) -> str:
    if bearer is None:
        raise TokenRefused("there is none")
    return bearer.credentials
