"""The token end point: who may have a token, and what it says."""

import base64
import hmac
import time
import uuid
from collections.abc import Mapping

from .config import Config
from .keys import Document, Keys

_SCOPE = "email profile"


class Denied(Exception):
    """An answer other than 200, as RFC 6749 (5.2) has it."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status, self.body = status, {"error": error, "error_description": description}


class Grants:
    """Gives out tokens for the one account."""

    def __init__(self, config: Config, keys: Keys) -> None:
        self._config, self._keys = config, keys
        self.access_lifetime_s, self.refresh_lifetime_s = config.access_lifetime_s, config.refresh_lifetime_s

    def answer(self, form: Mapping[str, str], authorization: str, issuer: str) -> Document:
        """A token for what the form says.

        Args:
            form: grant_type and its fields; the client's id and secret unless they are in the header.
            authorization: the header, empty if there is none; Basic has the client's id and secret.
            issuer: address of the realm, as the caller knows it.

        Raises:
            Denied: the client, the account or the refresh token is not known, or the grant is of no known type.
        """
        self._check_client(form, authorization)
        match form.get("grant_type"):
            case "password":
                return self._by_password(form, issuer)
            case "refresh_token":
                return self._by_refresh_token(form, issuer)
            case None:
                raise Denied(400, "invalid_request", "Missing form parameter: grant_type")
            case _:
                raise Denied(400, "unsupported_grant_type", "Unsupported grant_type")

    def _check_client(self, form: Mapping[str, str], authorization: str) -> None:
        name, secret = form.get("client_id", ""), form.get("client_secret", "")
        scheme, _, word = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                name, _, secret = base64.b64decode(word, validate=True).decode().partition(":")
            except ValueError:
                name = ""
        if name != self._config.client_id or (secret and not _same(secret, self._config.client_secret)):
            raise Denied(401, "invalid_client", "Invalid client or Invalid client credentials")

    def _by_password(self, form: Mapping[str, str], issuer: str) -> Document:
        known = form.get("username") == self._config.username
        if not (_same(form.get("password", ""), self._config.password) and known):
            raise Denied(401, "invalid_grant", "Invalid user credentials")
        return self._issue(issuer, session=str(uuid.uuid4()))

    def _by_refresh_token(self, form: Mapping[str, str], issuer: str) -> Document:
        claims = self._keys.read_refresh(form.get("refresh_token", ""))
        if claims is None or claims["iss"] != issuer:
            raise Denied(400, "invalid_grant", "Invalid refresh token")
        if claims["exp"] <= time.time():
            raise Denied(400, "invalid_grant", "Token is not active")
        return self._issue(issuer, session=claims["sid"])

    def _issue(self, issuer: str, session: str) -> Document:
        now = int(time.time())
        audiences = self._config.audience.split(",")
        common = {"iat": now, "iss": issuer, "sub": _subject(self._config.username), "azp": self._config.client_id}
        common |= {"sid": session, "scope": _SCOPE}
        access = {
            "exp": now + self.access_lifetime_s,
            "jti": str(uuid.uuid4()),
            "aud": audiences if len(audiences) > 1 else audiences[0],
            "typ": "Bearer",
            "acr": "1",
            "preferred_username": self._config.username,
        }
        refresh = {"exp": now + self.refresh_lifetime_s, "jti": str(uuid.uuid4()), "aud": issuer, "typ": "Refresh"}
        return {
            "access_token": self._keys.sign(common | access),
            "expires_in": self.access_lifetime_s,
            "refresh_expires_in": self.refresh_lifetime_s,
            "refresh_token": self._keys.sign_refresh(common | refresh),
            "token_type": "Bearer",
            "not-before-policy": 0,
            "session_state": session,
            "scope": _SCOPE,
        }


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _subject(username: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, username))
