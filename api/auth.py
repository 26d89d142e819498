"""Who may call what: the Basic accounts of SciCat's job action and of operators."""

import secrets
from base64 import b64decode
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from api.dependencies import SettingsDep


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
    if credentials is None or not _matches(credentials, settings.job_endpoint_username, settings.job_endpoint_password):
        raise _refuse()


def operator_account(credentials: Credentials, settings: SettingsDep) -> None:
    """Let SciCat's or the operators' account in."""
    accounts = [
        (settings.job_endpoint_username, settings.job_endpoint_password),
        (settings.operator_username, settings.operator_password),
    ]
    # No short cut: how long it takes says nothing about which account was meant.
    if credentials is None or not any([_matches(credentials, *account) for account in accounts]):  # noqa: C419
        raise _refuse()
