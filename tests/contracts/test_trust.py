"""Whom our clients trust: nobody that the system does not know, unless CA_FILE names him; and whom they tell no lie.

The server only takes note of what it hears after the handshake; a client that does not trust it ends the handshake.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from cli import demo, ingest
from cli.catalogue import UserCatalogue
from cli.client import Connection
from cli.following import ArchiverApi
from clients.idp import IdentityProvider
from clients.lts.http import HttpLongTermStore
from clients.lts.http_put import HttpPutStore
from clients.s3 import ObjectStore
from clients.s3_bulk import BulkObjects
from clients.s3_small import SmallObjects
from clients.s3_wire import Range
from clients.scicat import Catalogue
from clients.temporal import connect
from settings import Settings, load_settings
from tests.fakes.certificate import certificate

ACCOUNT: dict[str, Any] = {"access_key": "a", "secret_key": "s", "region": "eu-west-1"}


@dataclass
class Listener:
    """A server with a certificate that no system knows."""

    ca_file: Path
    port: int = 0
    heard: list[bytes] = field(default_factory=list[bytes])
    """First bytes of every connection whose other side trusted us."""
    shown: list[object] = field(default_factory=list[object])
    """The certificates that they showed, None for none."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if first := await reader.read(3):
                self.heard.append(first)
                self.shown.append(writer.get_extra_info("peercert"))
        writer.close()


@asynccontextmanager
async def listening(ca_file: Path, *, mutual: bool = False) -> AsyncGenerator[Listener]:
    """Serve TLS; `mutual` demands the same certificate from the client."""
    listener = Listener(ca_file)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_file)
    tls.load_cert_chain(ca_file, ca_file.with_name("private.key"))
    tls.set_alpn_protocols(["h2", "http/1.1"])
    tls.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=tls)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()


Dial = Callable[[Listener, Path | None], Awaitable[object]]


async def scicat(there: Listener, ca_file: Path | None) -> None:
    async with aclosing(Catalogue(endpoint=there.url, username="u", password="p", ca_file=ca_file)) as client:
        await client.job("x")


async def identity_provider(there: Listener, ca_file: Path | None) -> None:
    client = IdentityProvider(url=there.url, realm="r", audience="a", algorithm="RS256", client_id="c", ca_file=ca_file)
    await client.service_token()


async def scicats_health(there: Listener, ca_file: Path | None) -> None:
    given: dict[str, Any] = {"job_endpoint_username": "u", "job_endpoint_password": "p", "s3_user": "u"}
    settings = Settings(**given, s3_password="p", scicat_endpoint=there.url, ca_file=ca_file)  # pyright: ignore[reportArgumentType]
    app = create_app(
        settings.model_copy(update={"temporal_address": "127.0.0.1:1", "s3_endpoint": "http://127.0.0.1:1"})
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http,
    ):
        await http.get("/health/readyz")


async def lts(there: Listener, ca_file: Path | None) -> None:
    async with aclosing(HttpLongTermStore(endpoint=there.url, token="t", ca_file=ca_file)) as store:
        await store.stat("x")


async def lts_bulk(there: Listener, ca_file: Path | None) -> None:
    store = HttpLongTermStore(endpoint=there.url, token="t", ca_file=ca_file, tape=False)
    await asyncio.to_thread(store.read_range, "x", 0, memoryview(bytearray(1)))


async def lts_put(there: Listener, ca_file: Path | None) -> None:
    async with aclosing(HttpPutStore(endpoint=there.url, token="t", ca_file=ca_file)) as store:
        upload = await store.open_write("x", 1)
        await asyncio.to_thread(store.write, upload, 0, memoryview(b"x"), b"")


async def s3(there: Listener, ca_file: Path | None) -> None:
    async with ObjectStore.connect(endpoint=there.url, ca_file=ca_file, **ACCOUNT) as store:
        await store.get("bucket", "x")


def _range() -> Range:
    return Range("x", None, "etag", 0, memoryview(bytearray(1)))


async def s3_bulk(there: Listener, ca_file: Path | None) -> None:
    store = BulkObjects(endpoint=there.url, ca_file=ca_file, **ACCOUNT)
    await asyncio.to_thread(store.read_range, "bucket", _range())


async def s3_small(there: Listener, ca_file: Path | None) -> None:
    async with SmallObjects.connect(endpoint=there.url, ca_file=ca_file, **ACCOUNT) as store:
        await store.read("bucket", [_range()])


async def temporal(there: Listener, ca_file: Path | None) -> None:
    settings = Settings(temporal_address=there.address, ca_file=ca_file).securing_temporal()
    await connect(**settings.temporal_connection)


async def user_of_scicat(there: Listener, _: Path | None) -> None:
    async with UserCatalogue(there.url, "u", "p") as user:
        await user.who_am_i()


async def user_of_the_api(there: Listener, _: Path | None) -> None:
    async with ArchiverApi(there.url, "u", "p") as api:
        await api.job("x")


async def user_of_s3(there: Listener, _: Path | None) -> None:
    zone = ingest.LandingZone(url=there.url, key="k", secret="s", region="eu-west-1", bucket="landingzone")
    async with ingest.open_zone(zone):
        pass


async def user_of_the_library(there: Listener, _: Path | None) -> None:
    await demo.localities(Connection(scicat_url="", s3_url="", api_url="", lts_url=there.url), ["x"])


DIALS: list[Dial] = [
    *(scicat, scicats_health, identity_provider, lts, lts_bulk, lts_put, s3, s3_bulk, s3_small, temporal),
    *(user_of_scicat, user_of_the_api, user_of_s3, user_of_the_library),
]


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ingest, "ATTEMPTS", 1)
    monkeypatch.setenv("TEMPORAL_TLS", "true")


@pytest.mark.parametrize("dial", DIALS, ids=lambda dial: dial.__name__)
async def test_a_server_is_spoken_to_only_if_it_is_trusted(
    dial: Dial, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(ca_file) as stranger:
        with suppress(Exception):
            await dial(stranger, None)
    assert stranger.heard == []
    monkeypatch.setenv("CA_FILE", str(ca_file))  # what commands go by
    async with listening(ca_file) as known:
        with suppress(Exception):
            await dial(known, ca_file)
    assert known.heard


async def test_temporal_is_shown_our_certificate_where_it_asks(ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(ca_file, mutual=True) as server:
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", str(ca_file))
        with suppress(RuntimeError):
            await connect(**load_settings().temporal_connection)
        assert server.heard == []
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", str(ca_file))
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", str(ca_file.with_name("private.key")))
        with suppress(RuntimeError):
            await connect(**load_settings().temporal_connection)
    assert server.heard
    assert all(server.shown)
