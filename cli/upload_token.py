"""The token that lets an upload in: SciCat's is traded for it, and the identity provider renews it while files go up.

SciCat's token ──POST /token──► access token ──► (about to end) ──refresh grant──► access token ──► ...
      ▲                                                  │ the provider is out of reach, or refuses
      └──────────────────────────────────────────────────┘
"""

import asyncio
import base64
import json
import time
from typing import Any, cast

import httpx

from cli.catalogue import Document, OutOfReach, UserCatalogue

_MARGIN_S = 30.0
_MARGIN_SHARE = 0.25
"""A token is renewed so long before its end, or when this share of its life is left, whichever comes later."""

_UNKNOWN_LIFE_S = 60.0


class UploadToken:
    """One token for all calls of an upload; renewed when it is asked for shortly before its end.

    Args:
        api: the archiver's API.
        outside: asks the identity provider, which may be elsewhere.
        catalogue: SciCat, as the user who uploads.
    """

    def __init__(self, api: httpx.AsyncClient, outside: httpx.AsyncClient, catalogue: UserCatalogue) -> None:
        self._api, self._outside, self._catalogue = api, outside, catalogue
        self._access = self._refresh = ""
        self._good_until = 0.0
        self._renewing = asyncio.Lock()

    async def value(self, *, refused: str = "") -> str:
        """A token that can be used now; another one than `refused`, which somebody did not take.

        Raises:
            OutOfReach: nobody gives one, or the user may not upload.
            Refused: SciCat does not let the user in.
        """
        async with self._renewing:
            if not self._access or self._access == refused or time.monotonic() >= self._good_until:
                self._keep(await self._refreshed() or await self._traded())
            return self._access

    async def _refreshed(self) -> Document | None:
        """What the provider gives for the refresh token, as a client without a secret; None if it does not."""
        if not self._refresh:
            return None
        claims = _claims(self._access)
        issuer, client = str(claims.get("iss", "")), str(claims.get("azp", ""))
        form = {"grant_type": "refresh_token", "refresh_token": self._refresh, "client_id": client}
        try:
            answer = await self._outside.post(f"{issuer}/protocol/openid-connect/token", data=form)
            said: Any = answer.json() if answer.is_success else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        return cast(Document, said) if isinstance(said, dict) and "access_token" in said else None

    async def _traded(self) -> Document:
        for fresh in (False, True):
            token = await self._catalogue.token(fresh=fresh)
            try:
                answer = await self._api.post("token", headers={"Authorization": f"Bearer {token}"})
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                raise OutOfReach(f"the archiver's API at {self._api.base_url} does not answer: {reason}") from None
            if answer.status_code != 401:
                break
        else:
            raise OutOfReach(f"the archiver's API gives no token to upload with: {_said(answer, 'detail')}")
        if not answer.is_success:
            said = _said(answer, "message")
            raise OutOfReach(f"the archiver's API gives no token to upload with ({answer.status_code}): {said}")
        return cast(Document, answer.json())

    def _keep(self, said: Document) -> None:
        self._access, self._refresh = str(said["access_token"]), str(said.get("refresh_token", ""))
        life_s = float(said.get("expires_in", _UNKNOWN_LIFE_S))
        self._good_until = time.monotonic() + life_s - min(_MARGIN_S, _MARGIN_SHARE * life_s)


def _claims(token: str) -> Document:
    """What a token says of itself; it is not checked, for we only want to know whom to ask."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        said: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return cast(Document, said) if isinstance(said, dict) else {}


def _said(answer: httpx.Response, field: str) -> str:
    try:
        content: Any = answer.json()
    except ValueError:
        return "no reason is given"
    return str(cast(Document, content).get(field, "")) if isinstance(content, dict) else "no reason is given"
