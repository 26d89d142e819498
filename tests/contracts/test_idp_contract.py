"""Which tokens are believed, and when the provider's keys are read, with the pretend provider as a process."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from clients import idp
from clients.idp import IdentityProvider
from domain.errors import IdentityProviderUnavailable, Misconfigured, TokenRefused
from tests.fakes.canned import Canned, CannedServer
from tests.fakes.processes import ServerProcess

ACCOUNT: dict[str, Any] = {
    "realm": "facility",
    "audience": "account",
    "algorithm": "RS256",
    "client_id": "archiver-service-api",
    "client_secret": "secret",
    "username": "archiver-service",
    "password": "password",
}
OURS = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@asynccontextmanager
async def provider(url: str, **change: Any) -> AsyncGenerator[IdentityProvider]:
    identity = IdentityProvider(url=url, **{**ACCOUNT, **change})
    yield identity
    await identity.aclose()


@pytest.fixture
async def identity(idp_server: ServerProcess) -> AsyncIterator[IdentityProvider]:
    async with provider(idp_server.url) as identity:
        yield identity


@pytest.fixture
async def admin(idp_server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=idp_server.url, trust_env=False) as http:
        yield http
        await http.delete("/mock/faults")
        await http.post("/mock/lifetimes", json={"access_s": 300})


async def token_of(identity: IdentityProvider) -> str:
    return str((await identity.service_token())["access_token"])


async def reads(admin: httpx.AsyncClient) -> int:
    return (await admin.get("/mock/requests", params={"path_contains": "certs"})).json()["count"]


def signed(claims: dict[str, Any], kid: str, **arguments: Any) -> str:
    return jwt.encode(claims, arguments.pop("key", OURS), arguments.pop("algorithm", "RS256"), {"kid": kid})


async def test_a_token_that_was_given_out_is_believed(identity: IdentityProvider) -> None:
    token = await token_of(identity)
    assert await identity.issued(token)
    await identity.check(token)


async def test_the_keys_are_read_once_for_all(idp_server: ServerProcess, admin: httpx.AsyncClient) -> None:
    before = await reads(admin)
    async with provider(idp_server.url) as identity:
        token = await token_of(identity)
        await asyncio.gather(*(identity.check(token) for _ in range(50)))
        await identity.check(token)
    assert await reads(admin) == before + 1


async def test_a_rotation_needs_no_restart_and_old_tokens_stay_good(
    identity: IdentityProvider, admin: httpx.AsyncClient
) -> None:
    old = await token_of(identity)
    await identity.check(old)
    for _ in range(2):
        await admin.post("/mock/keys", json={})
        before = await reads(admin)
        new = await token_of(identity)
        await asyncio.gather(*(identity.check(token) for token in (new, old) * 20))
        assert await reads(admin) == before + 1


async def test_a_withdrawn_key_ceases_to_count_with_the_next_read(
    identity: IdentityProvider, admin: httpx.AsyncClient
) -> None:
    old = await token_of(identity)
    await identity.check(old)
    await admin.post("/mock/keys", json={"forget": True})
    await identity.check(await token_of(identity))
    with pytest.raises(TokenRefused):
        await identity.check(old)


async def test_keys_grow_old(
    identity: IdentityProvider, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await token_of(identity)
    await identity.check(token)
    await admin.post("/mock/keys", json={"forget": True})
    await identity.check(token)
    monkeypatch.setattr(idp, "_READ_AGAIN_AFTER_S", 0.0)
    with pytest.raises(TokenRefused):
        await identity.check(token)


async def test_unknown_keys_do_not_make_a_read_each(identity: IdentityProvider, admin: httpx.AsyncClient) -> None:
    real = await token_of(identity)
    await identity.check(real)
    before = await reads(admin)
    forged = [signed({"exp": time.time() + 60}, kid=f"unknown-{n}") for n in range(30)]
    answers = await asyncio.gather(*(identity.check(token) for token in forged), return_exceptions=True)
    assert {type(answer) for answer in answers} == {TokenRefused}
    for token in forged:
        with pytest.raises(TokenRefused):
            await identity.check(token)
    assert await reads(admin) - before == 1
    # And all the while a rotation is noticed.
    await admin.post("/mock/keys", json={})
    await identity.check(await token_of(identity))


async def test_what_is_forged_is_refused(identity: IdentityProvider, idp_server: ServerProcess) -> None:
    genuine = await token_of(identity)
    await identity.check(genuine)
    kid = jwt.get_unverified_header(genuine)["kid"]
    claims = jwt.decode(genuine, options={"verify_signature": False})
    head, body, signature = genuine.split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": kid}).encode()).rstrip(b"=").decode()
    later = base64.urlsafe_b64encode(json.dumps(claims | {"exp": claims["exp"] + 9}).encode()).rstrip(b"=").decode()
    forged = {
        "by another key": signed(claims, kid),
        "with the public key as a password": signed(claims, kid, key="public" * 10, algorithm="HS256"),
        "without a signature": f"{none}.{body}.",
        "with the signature cut": f"{head}.{body}.",
        "with other claims": f"{head}.{later}.{signature}",
        "without a key id": jwt.encode(claims, OURS, "RS256"),
        "a refresh token": str((await identity.service_token())["refresh_token"]),
        "no token": "nonsense",
        "empty": "",
        "bytes": "\xff.\xff.\xff",
    }
    for how, token in forged.items():
        with pytest.raises(TokenRefused):
            await identity.check(token)
        assert await identity.issued(token) is (
            how in ("by another key", "with the signature cut", "with other claims")
        )


async def test_what_is_made_out_for_others_is_refused(idp_server: ServerProcess, identity: IdentityProvider) -> None:
    token = await token_of(identity)
    elsewhere = idp_server.url.replace("127.0.0.1", "localhost")
    for change, why in (({"audience": "other"}, "somebody else"), ({"url": elsewhere}, "another issuer")):
        async with provider(**{"url": idp_server.url, **change}) as other:
            with pytest.raises(TokenRefused, match=why):
                await other.check(token)
    async with provider(idp_server.url, algorithm="RS512") as other:
        with pytest.raises(TokenRefused):
            await other.check(token)


async def test_what_has_expired_is_refused(identity: IdentityProvider, admin: httpx.AsyncClient) -> None:
    await admin.post("/mock/lifetimes", json={"access_s": -60})
    with pytest.raises(TokenRefused, match="expired"):
        await identity.check(await token_of(identity))
    await admin.post("/mock/lifetimes", json={"access_s": 0})
    await identity.check(await token_of(identity))  # its clock may be a little behind ours


async def test_what_is_not_valid_yet_is_refused_unless_the_clocks_differ_by_as_much() -> None:
    with CannedServer() as server:
        server.says("GET", CERTS, listed({"kid": "k"}))
        claims = {"exp": time.time() + 600, "aud": "account", "iss": f"{server.url}/realms/facility"}
        async with provider(server.url) as identity:
            for claim in ("nbf", "iat"):
                await identity.check(signed(claims | {claim: time.time() + 5}, "k"))
                with pytest.raises(TokenRefused, match="not valid yet"):
                    await identity.check(signed(claims | {claim: time.time() + 60}, "k"))


async def test_keys_at_hand_count_while_the_provider_is_away(own_idp: ServerProcess) -> None:
    async with provider(own_idp.url) as identity:
        token = await token_of(identity)
        await identity.check(token)
        own_idp.stop(kill=True)
        await identity.check(token)
        with pytest.raises(TokenRefused):
            await identity.check(signed({"exp": time.time() + 60}, kid="unknown"))
        await identity.check(token)
        with pytest.raises(IdentityProviderUnavailable):
            await identity.service_token()
        own_idp.start()
        await identity.check(await token_of(identity))


async def test_a_rotation_during_an_outage_counts_as_soon_as_that_ends(
    identity: IdentityProvider, admin: httpx.AsyncClient
) -> None:
    old = await token_of(identity)
    await identity.check(old)
    await admin.post("/mock/faults", json={"path_contains": "certs", "status": 503})
    await admin.post("/mock/keys", json={})
    new = await token_of(identity)
    with pytest.raises(TokenRefused):
        await identity.check(new)
    await identity.check(old)
    await identity.check(new)


CERTS = "/realms/facility/protocol/openid-connect/certs"


def listed(*keys: dict[str, str]) -> Canned:
    public: dict[str, Any] = RSAAlgorithm.to_jwk(OURS.public_key(), as_dict=True)
    return Canned(body=json.dumps({"keys": [{**public, **key} for key in keys]}).encode())


async def test_a_provider_that_lists_no_key_takes_away_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idp, "_READ_AGAIN_AFTER_S", 0.0)
    with CannedServer() as server:
        answers = [listed({"kid": "k"}), listed(), Canned(body=b'{"keys": "none"}'), Canned(body=b"[]")]
        server.says("GET", CERTS, *answers)
        claims = {"exp": time.time() + 60, "aud": ["other", "account"], "iss": f"{server.url}/realms/facility"}
        async with provider(server.url) as identity:
            for _ in range(len(answers)):
                await identity.check(signed(claims, "k"))
        assert len(server.seen) == len(answers)


async def test_a_key_for_encryption_signs_nothing() -> None:
    with CannedServer() as server:
        server.says("GET", CERTS, listed({"kid": "e", "use": "enc"}, {"kid": "k", "use": "sig"}))
        claims = {"exp": time.time() + 60, "aud": "account", "iss": f"{server.url}/realms/facility"}
        async with provider(server.url) as identity:
            await identity.check(signed(claims, "k"))
            with pytest.raises(TokenRefused):
                await identity.check(signed(claims, "e"))


async def test_without_any_key_nothing_is_known(own_idp: ServerProcess) -> None:
    async with provider(own_idp.url) as giver, provider(own_idp.url, timeout_s=0.5) as identity:
        token = await token_of(giver)
        async with httpx.AsyncClient(base_url=own_idp.url, trust_env=False) as admin:
            await admin.post("/mock/faults", json={"path_contains": "certs", "status": 503})
            await admin.post("/mock/faults", json={"path_contains": "certs", "delay_s": 5})
        for _ in range(2):
            answers = await asyncio.gather(*(identity.check(token) for _ in range(5)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {IdentityProviderUnavailable}, "whoever waited, too"
        assert not await identity.issued(jwt.encode({}, "scicat" * 10, "HS256", {"kid": "k"})), "SciCat's own"
        await identity.check(token)


async def test_an_account_that_is_refused_is_ours_to_mend(idp_server: ServerProcess) -> None:
    for change in ({"password": "wrong"}, {"client_secret": "wrong"}, {"client_id": "other"}):
        async with provider(idp_server.url, **change) as identity:
            with pytest.raises(Misconfigured, match="IDP_USERNAME") as refused:
                await identity.service_token()
            assert "wrong" not in str(refused.value)


async def test_a_slow_provider_is_not_waited_for(idp_server: ServerProcess, admin: httpx.AsyncClient) -> None:
    await admin.post("/mock/faults", json={"path_contains": "token", "delay_s": 5})
    async with provider(idp_server.url, timeout_s=0.2) as identity:
        with pytest.raises(IdentityProviderUnavailable, match="no answer"):
            await identity.service_token()


async def test_what_is_no_answer_is_said(idp_server: ServerProcess) -> None:
    async with provider(idp_server.url, realm="other") as identity:
        assert not await identity.answers()
        with pytest.raises(IdentityProviderUnavailable, match="404"):
            await identity.service_token()


async def test_whether_it_answers_can_be_asked(own_idp: ServerProcess) -> None:
    async with provider(own_idp.url) as identity:
        assert await identity.answers()
        own_idp.stop(kill=True)
        with pytest.raises(httpx.ConnectError):
            await identity.answers()
