"""The identity provider, OpenID Connect as Keycloak speaks it: whether a token is genuine, and a token of our account.

Its keys are kept. They are read again when a token names a key that is not among them, and from time to time, so that
a rotation needs no restart and a withdrawn key ceases to count; while the provider is away, the keys at hand count.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpx
import jwt

from clients import telemetry
from domain.errors import IdentityProviderUnavailable, Misconfigured, TokenRefused

_READ_AGAIN_AFTER_S = 600.0
"""Age at which keys are read again though nobody missed one."""

_BETWEEN_READS_S = 1.0
"""No two reads follow one another faster, whatever tokens say."""

_MISSING_FOR_S = 10.0
"""A key that a read did not show is not looked for again so soon."""

_MISSING_AT_MOST = 1000

_LEEWAY_S = 10
"""How far the provider's clock may be from ours, when a token begins and ends."""


class IdentityProvider:
    """One realm of the provider, and the service's account in it."""

    def __init__(
        self,
        *,
        url: str,
        realm: str,
        audience: str,
        algorithm: str,
        client_id: str,
        client_secret: str = "",
        username: str = "",
        password: str = "",
        ca_file: Path | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: address of the provider, without the realm.
            realm: issues the tokens, together with the address.
            audience: for whom tokens must be made out.
            algorithm: that tokens must be signed with, an asymmetric one.
            client_id: of this service.
            client_secret: empty for a public client.
            username: the account whose tokens are given out.
            password: its password.
            ca_file: certificates to trust instead of the system's.
            timeout_s: longest wait for an answer.
        """
        self._issuer = f"{url.rstrip('/')}/realms/{realm}"
        self._audience, self._algorithm = audience, algorithm
        self._client = {"client_id": client_id} | ({"client_secret": client_secret} if client_secret else {})
        self._account = {"username": username, "password": password}
        self._http = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=ca_file), timeout=timeout_s, trust_env=False
        )
        self._keys: dict[str, jwt.PyJWK] = {}
        self._missing: dict[str, float] = {}
        self._read_at, self._answered = float("-inf"), False
        self._reading = asyncio.Lock()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def check(self, token: str) -> None:
        """Believe a token: signature, issuer, audience, times.

        Raises:
            TokenRefused: it is not genuine, not for us, or not valid now.
            IdentityProviderUnavailable: no key is known, and the provider does not answer.
        """
        key = await self._key_of(token)
        if key is None:
            raise TokenRefused("it is not signed by a key of the identity provider")
        try:
            jwt.decode(
                token,
                key,
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(_REASONS.get(type(error), "it is not valid")) from None

    async def issued(self, token: str) -> bool:
        """Whether a token names a key of the provider; that it is genuine, `check` alone says.

        Raises:
            IdentityProviderUnavailable: it may be one, no key is known, and the provider does not answer.
        """
        return await self._key_of(token) is not None

    async def service_token(self) -> Mapping[str, Any]:
        """A fresh token of the service's account, as the provider answers it (RFC 6749, 5.1).

        Raises:
            IdentityProviderUnavailable: the provider does not answer, or not as it should.
            Misconfigured: it refuses the service's client or account.
        """
        what = "asking the identity provider for a token"
        form = {"grant_type": "password", **self._client, **self._account}
        answer = await self._ask(what, "POST", "token", data=form)
        if answer.status_code in (400, 401, 403):
            raise Misconfigured(
                f"{what}: it refuses the service's account with {answer.status_code}; see IDP_USERNAME, IDP_CLIENT_ID"
            )
        return self._said(answer, what)

    async def answers(self) -> bool:
        """Whether the provider is there and knows the realm.

        Raises:
            httpx.HTTPError: nobody answers.
        """
        return (await self._http.get(f"{self._issuer}/.well-known/openid-configuration")).is_success

    async def _key_of(self, token: str) -> jwt.PyJWK | None:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return None
        kid = header.get("kid")
        # SciCat's own tokens are of another algorithm; the provider is not asked about them.
        if header.get("alg") != self._algorithm or not isinstance(kid, str):
            return None
        asked = time.monotonic()
        if kid not in self._keys and asked - self._missing.get(kid, float("-inf")) < _MISSING_FOR_S:
            return None
        if kid not in self._keys or asked - self._read_at > _READ_AGAIN_AFTER_S:
            await self._read_keys(asked)
        if kid not in self._keys and self._answered:
            if len(self._missing) >= _MISSING_AT_MOST:
                self._missing.clear()
            self._missing[kid] = time.monotonic()
        return self._keys.get(kid)

    async def _read_keys(self, asked: float) -> None:
        """Read the keys, once for all who wait for it and at a limited rate; keep those at hand if that fails."""
        what = "reading the identity provider's keys"
        async with self._reading:
            if self._read_at <= asked:
                await asyncio.sleep(max(0.0, self._read_at + _BETWEEN_READS_S - time.monotonic()))
                self._read_at, self._answered = time.monotonic(), False
                with suppress(IdentityProviderUnavailable):
                    keys = self._usable(self._said(await self._ask(what, "GET", "certs"), what))
                    self._keys, self._answered = keys or self._keys, bool(keys)
            if not self._keys:
                raise IdentityProviderUnavailable(f"{what}: it gives none for {self._algorithm}")

    def _usable(self, said: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
        """The keys that sign with our algorithm; others (for encryption, of other kinds) stand beside them."""
        found: dict[str, jwt.PyJWK] = {}
        listed: Any = said.get("keys")
        for key in cast("list[Any]", listed) if isinstance(listed, list) else ():
            try:
                if key.get("use", "sig") == "sig" and key.get("alg", self._algorithm) == self._algorithm:
                    found[str(key["kid"])] = jwt.PyJWK(key, algorithm=self._algorithm)
            except (jwt.PyJWTError, AttributeError, KeyError):
                continue
        return found

    async def _ask(self, what: str, method: str, name: str, **arguments: Any) -> httpx.Response:
        try:
            with telemetry.calling("idp", method) as call:
                answer = await self._http.request(
                    method,
                    f"{self._issuer}/protocol/openid-connect/{name}",
                    headers={"Accept": "application/json"},
                    **arguments,
                )
                call.status = answer.status_code
            return answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise IdentityProviderUnavailable(f"{what}: no answer ({type(error).__name__})") from error

    def _said(self, answer: httpx.Response, what: str) -> Mapping[str, Any]:
        if not answer.is_success:
            raise IdentityProviderUnavailable(f"{what}: it answered {answer.status_code}")
        try:
            said: Any = answer.json()
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise IdentityProviderUnavailable(f"{what}: the answer is no JSON object")
        return cast("dict[str, Any]", said)


_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is made out for somebody else",
    jwt.InvalidIssuerError: "it comes from another issuer",
    jwt.MissingRequiredClaimError: "it lacks a claim",
    jwt.InvalidSignatureError: "its signature is wrong",
}
