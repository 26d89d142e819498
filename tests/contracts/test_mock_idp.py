"""The pretend identity provider, as clients of a Keycloak meet it; its tokens are read by a library that it lacks."""

import base64
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import jwt
import pytest

from tests.fakes.processes import ServerProcess

REALM = "/realms/facility"
TOKEN = f"{REALM}/protocol/openid-connect/token"
CERTS = f"{REALM}/protocol/openid-connect/certs"
CLIENT = {"client_id": "archiver-service-api"}
PASSWORD = {"grant_type": "password", "username": "archiver-service", "password": "password"}


@pytest.fixture
async def http(idp_server: ServerProcess) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=idp_server.url, trust_env=False) as client:
        yield client
        await client.post("/mock/lifetimes", json={"access_s": 300, "refresh_s": 1800})


async def granted(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.post(TOKEN, data=CLIENT | PASSWORD | {"client_secret": "secret"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def claims(http: httpx.AsyncClient, token: str) -> dict[str, Any]:
    kid = jwt.get_unverified_header(token)["kid"]
    published = (await http.get(CERTS)).json()["keys"]
    [key] = [jwt.PyJWK(key) for key in published if key["kid"] == kid]
    issuer = str(http.base_url).rstrip("/") + REALM
    return jwt.decode(token, key, algorithms=["RS256"], audience="account", issuer=issuer)


async def test_discovery_names_what_is_there(http: httpx.AsyncClient) -> None:
    found = (await http.get(f"{REALM}/.well-known/openid-configuration")).json()
    origin = str(http.base_url).rstrip("/")
    assert found["issuer"] == origin + REALM
    assert (found["token_endpoint"], found["jwks_uri"]) == (origin + TOKEN, origin + CERTS)
    for path in ("/realms/other/.well-known/openid-configuration", "/realms/other/protocol/openid-connect/certs"):
        assert (await http.get(path)).status_code == 404


async def test_a_password_gives_a_token_for_the_audience(http: httpx.AsyncClient) -> None:
    answer = await granted(http)
    assert answer.keys() == {
        *("access_token", "refresh_token", "expires_in", "refresh_expires_in"),
        *("token_type", "not-before-policy", "session_state", "scope"),
    }
    said = await claims(http, answer["access_token"])
    assert (said["typ"], said["azp"]) == ("Bearer", "archiver-service-api")
    assert said["exp"] - said["iat"] == answer["expires_in"] == 300


async def test_keys_for_other_uses_stand_beside_those_that_sign(http: httpx.AsyncClient) -> None:
    keys = (await http.get(CERTS)).json()["keys"]
    assert {"sig", "enc"} == {key["use"] for key in keys}
    assert not any("d" in key for key in keys)


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"password": "wrong"}, 401, "invalid_grant"),
        ({"username": "somebody"}, 401, "invalid_grant"),
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "a.b.c"}, 400, "invalid_grant"),
    ],
)
async def test_what_is_wrong_is_said_as_oauth_has_it(
    http: httpx.AsyncClient, change: dict[str, str], status: int, error: str
) -> None:
    answer = await http.post(TOKEN, data=CLIENT | PASSWORD | change)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"]


async def test_a_refresh_needs_the_clients_name_alone_by_header_or_form(http: httpx.AsyncClient) -> None:
    refresh = {"grant_type": "refresh_token", "refresh_token": (await granted(http))["refresh_token"]}
    by_header = {"Authorization": f"Basic {base64.b64encode(b'archiver-service-api:').decode()}"}
    for headers, form in ((by_header, refresh), ({}, refresh | CLIENT)):
        answer = await http.post(TOKEN, data=form, headers=headers)
        assert answer.status_code == 200, answer.text
        assert (await claims(http, answer.json()["access_token"]))["typ"] == "Bearer"
        assert answer.json()["refresh_token"]
    assert (await http.post(TOKEN, data=refresh)).status_code == 401


async def test_an_access_token_is_no_refresh_token(http: httpx.AsyncClient) -> None:
    form = CLIENT | {"grant_type": "refresh_token", "refresh_token": (await granted(http))["access_token"]}
    assert (await http.post(TOKEN, data=form)).json()["error"] == "invalid_grant"


async def test_lifetimes_can_be_set(http: httpx.AsyncClient) -> None:
    await http.post("/mock/lifetimes", json={"access_s": -1, "refresh_s": -1})
    answer = await granted(http)
    with pytest.raises(jwt.ExpiredSignatureError):
        await claims(http, answer["access_token"])
    form = CLIENT | {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"]}
    assert (await http.post(TOKEN, data=form)).json()["error_description"] == "Token is not active"


async def test_keys_rotate_with_the_old_one_left_or_withdrawn(http: httpx.AsyncClient) -> None:
    old = (await granted(http))["access_token"]
    new = (await http.post("/mock/keys", json={})).json()["kid"]
    after = (await granted(http))["access_token"]
    assert jwt.get_unverified_header(after)["kid"] == new != jwt.get_unverified_header(old)["kid"]
    await claims(http, old)
    await http.post("/mock/keys", json={"forget": True})
    kids = {key["kid"] for key in (await http.get(CERTS)).json()["keys"]}
    assert not kids & {new, jwt.get_unverified_header(old)["kid"]}


async def test_it_can_be_down_and_slow(http: httpx.AsyncClient) -> None:
    await http.post("/mock/faults", json={"path_contains": "certs", "status": 503})
    await http.post("/mock/faults", json={"path_contains": "certs", "delay_s": 5})
    assert (await http.get(CERTS)).status_code == 503
    with pytest.raises(httpx.ReadTimeout):
        await http.get(CERTS, timeout=0.2)
    assert (await http.get(CERTS)).status_code == 200


async def test_tokens_outlive_a_restart(own_idp: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=own_idp.url, trust_env=False) as http:
        answer = await granted(http)
    own_idp.stop()
    own_idp.start()
    async with httpx.AsyncClient(base_url=own_idp.url, trust_env=False) as http:
        await claims(http, answer["access_token"])
        form = CLIENT | {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"]}
        assert (await http.post(TOKEN, data=form)).status_code == 200
