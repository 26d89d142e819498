"""Uploads by URL, asked of a real MinIO: what a client can do with a URL, and what becomes of the parts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import httpx
import pytest

from clients.landing_zone import LandingZone, Part
from clients.s3 import ObjectStore
from clients.s3_wire import Wire
from domain.errors import Misconfigured, UploadRefused
from tests.contracts.conftest import ACCESS_KEY, REGION, SECRET_KEY
from tests.contracts.test_s3_contract import AWKWARD
from tests.digests import composite_b64, sha256_b64
from tests.fakes.processes import ServerProcess

MIB = 2**20
PID = "20.500.11935/8c4e"
PREFIX = f"openem-network/datasets/{PID}/raw_files/"
ACCOUNT: dict[str, Any] = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": REGION}


class Site:
    """A landing zone, and a client that has nothing but URLs."""

    def __init__(self, zone: LandingZone, objects: ObjectStore, bucket: str, http: httpx.AsyncClient) -> None:
        self.zone, self.objects, self.bucket, self.http = zone, objects, bucket, http

    async def put(self, url: str, data: bytes, **headers: str) -> httpx.Response:
        """As the Go client does it."""
        sent = {"x-amz-checksum-sha256": sha256_b64(data), "Content-Type": "application/json", **headers}
        return await self.http.put(url, content=data, headers=sent)

    async def put_parts(self, urls: list[str], *parts: bytes) -> list[Part]:
        """All parts, at once."""
        answers = await asyncio.gather(*(self.put(url, part) for url, part in zip(urls, parts, strict=True)))
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        return [
            (number, answer.headers["ETag"].strip('"'), sha256_b64(part))
            for number, (answer, part) in enumerate(zip(answers, parts, strict=True), 1)
        ]

    async def content(self, key: str) -> bytes | None:
        """What there is."""
        return await self.objects.get(self.bucket, key)

    async def open(self) -> list[str]:
        """Keys of open uploads."""
        return [upload.key for upload in await self.objects.open_uploads(self.bucket, PREFIX)]


@asynccontextmanager
async def at(server: ServerProcess, **change: Any) -> AsyncGenerator[Site]:
    bucket = f"landing-{uuid4()}"
    settings: dict[str, Any] = {"endpoint": server.url, "expires_s": 60, **change}
    async with (
        ObjectStore.connect(endpoint=server.url, **ACCOUNT) as objects,
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
    ):
        await objects.ensure_bucket(bucket, versioned=True)
        wire = Wire(endpoint=settings["endpoint"], **ACCOUNT)
        yield Site(LandingZone(objects, bucket, wire, expires_s=settings["expires_s"]), objects, bucket, http)


@pytest.fixture
async def site(minio_server: ServerProcess) -> AsyncGenerator[Site]:
    async with at(minio_server) as site:
        yield site


@pytest.mark.parametrize("path", AWKWARD)
async def test_a_file_of_any_name_is_put_whole_and_completed_all_the_same(site: Site, path: str) -> None:
    key, data = PREFIX + path, path.encode()
    upload_id, [url] = await site.zone.begin(key, 1)
    assert upload_id == ""
    answer = await site.put(url, data)
    assert answer.status_code == 200, answer.text
    assert await site.content(key) == data
    part = (1, answer.headers["ETag"].strip('"'), sha256_b64(data))
    location = await site.zone.complete(key, "", [part], composite_b64(data))
    assert location == site.http.build_request("GET", url).url.copy_with(query=None)
    assert urlsplit(location).path == f"/{site.bucket}/{quote(key, safe='/~')}"


@pytest.mark.parametrize("path", AWKWARD)
async def test_a_file_of_any_name_is_put_in_parts(site: Site, path: str) -> None:
    key, parts = PREFIX + path, (b"a" * 5 * MIB, b"rest")
    upload_id, urls = await site.zone.begin(key, 2)
    sent = await site.put_parts(urls, *parts)
    assert (await site.zone.complete(key, upload_id, sent, composite_b64(*parts))).startswith("http")
    head = await site.objects.head(site.bucket, key)
    assert head is not None
    assert head.composite_sha256 == f"{composite_b64(*parts)}-2"
    assert await site.open() == []


async def test_a_url_is_for_one_thing_and_signs_no_header_but_the_host(site: Site) -> None:
    key = f"{PREFIX}a"
    upload_id, urls = await site.zone.begin(key, 2)
    _, [whole] = await site.zone.begin(key, 1)
    for url in (*urls, whole):
        assert parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"] == ["host"]
        assert not [name for name in parse_qs(urlsplit(url).query) if "checksum" in name.lower()]
    assert (await site.http.get(whole)).status_code == 403
    assert (await site.put(whole.replace("raw_files/a", "raw_files/b"), b"x")).status_code == 403
    assert (await site.put(urls[0].replace("partNumber=1", "partNumber=3"), b"x")).status_code == 403
    assert (await site.http.put(whole, content=b"without headers")).status_code == 200
    await site.zone.abort(key, upload_id)


async def test_a_url_expires(minio_server: ServerProcess) -> None:
    async with at(minio_server, expires_s=1) as site:
        _, [url] = await site.zone.begin(f"{PREFIX}a", 1)
        async with asyncio.timeout(30):
            while (answer := await site.put(url, b"x")).status_code == 200:  # noqa: ASYNC110 - S3 sends no word
                await asyncio.sleep(0.1)
        assert (answer.status_code, "Request has expired" in answer.text) == (403, True)


async def test_a_url_is_for_the_host_that_clients_dial(minio_server: ServerProcess) -> None:
    elsewhere = minio_server.url.replace("127.0.0.1", "localhost")
    async with at(minio_server, endpoint=elsewhere) as site:
        _, [url] = await site.zone.begin(f"{PREFIX}a", 1)
        assert url.startswith(elsewhere + "/")
        assert (await site.put(url, b"x")).status_code == 200
        assert (await site.put(url.replace("localhost", "127.0.0.1"), b"x")).status_code == 403


async def test_other_bytes_than_announced_are_refused_by_s3(site: Site) -> None:
    _, [url] = await site.zone.begin(f"{PREFIX}a", 1)
    answer = await site.put(url, b"x", **{"x-amz-checksum-sha256": sha256_b64(b"y")})
    assert (answer.status_code, "XAmzContentChecksumMismatch" in answer.text) == (400, True)


async def test_an_upload_can_be_completed_by_several_at_once_and_again(site: Site) -> None:
    key, parts = f"{PREFIX}a", (b"a" * 5 * MIB, b"rest")
    upload_id, urls = await site.zone.begin(key, 2)
    sent = await site.put_parts(urls, *parts)
    arguments = (key, upload_id, sent, composite_b64(*parts))
    await asyncio.gather(*(site.zone.complete(*arguments) for _ in range(5)))
    await site.zone.complete(*arguments)
    versions = [version async for version in site.objects.list_versions(site.bucket, key)]
    assert len(versions) == 1
    with pytest.raises(UploadRefused) as refused:
        await site.zone.complete(key, upload_id, sent[:1], composite_b64(parts[0]))
    assert refused.value.code == "NoSuchUpload"


async def test_what_does_not_match_is_refused_with_s3s_word_and_the_upload_stays_open(site: Site) -> None:
    key, parts = f"{PREFIX}a", (b"a" * 5 * MIB, b"rest")
    upload_id, urls = await site.zone.begin(key, 2)
    sent = await site.put_parts(urls, *parts)
    (_, etag, digest), second = sent
    good = composite_b64(*parts)
    for wrong, whole, code in [
        ([(1, etag, sha256_b64(b"other")), second], good, "InvalidPart"),
        ([(1, "0" * 32, digest), second], good, "InvalidPart"),
        ([*sent, (3, etag, digest)], good, "InvalidPart"),
        (sent, composite_b64(parts[1], parts[0]), "XAmzContentChecksumMismatch"),
        (sent, sha256_b64(b"".join(parts)), "XAmzContentChecksumMismatch"),
    ]:
        with pytest.raises(UploadRefused) as refused:
            await site.zone.complete(key, upload_id, wrong, whole)
        assert refused.value.code == code
        assert await site.open() == [key]
    assert await site.content(key) is None
    await site.zone.complete(key, upload_id, sent, good)


async def test_parts_that_are_too_small_are_refused(site: Site) -> None:
    upload_id, urls = await site.zone.begin(f"{PREFIX}a", 2)
    sent = await site.put_parts(urls, b"a", b"b")
    with pytest.raises(UploadRefused) as refused:
        await site.zone.complete(f"{PREFIX}a", upload_id, sent, composite_b64(b"a", b"b"))
    assert refused.value.code == "EntityTooSmall"


@pytest.mark.parametrize("digest", ["nonsense", "!!!", "~" * 100])
async def test_a_digest_that_is_none_is_refused(site: Site, digest: str) -> None:
    key, parts = f"{PREFIX}a", (b"a" * 5 * MIB, b"rest")
    upload_id, urls = await site.zone.begin(key, 2)
    sent = await site.put_parts(urls, *parts)
    with pytest.raises(UploadRefused):
        await site.zone.complete(key, upload_id, sent, digest)
    with pytest.raises(UploadRefused):
        await site.zone.complete(key, upload_id, [sent[0], (2, sent[1][1], digest)], composite_b64(*parts))


async def test_an_upload_is_given_up_for_good(site: Site) -> None:
    key = f"{PREFIX}a"
    upload_id, urls = await site.zone.begin(key, 2)
    sent = await site.put_parts(urls[:1], b"x")
    for given in (upload_id, upload_id, "", "unknown", "../../x", "a b&c=d?e#f%00"):
        await site.zone.abort(key, given)
    assert await site.open() == []
    with pytest.raises(UploadRefused) as refused:
        await site.zone.complete(key, upload_id, sent, composite_b64(b"x"))
    assert refused.value.code == "NoSuchUpload"


async def test_a_whole_object_is_compared_byte_by_digest(site: Site) -> None:
    key, data = f"{PREFIX}a", b"data"
    with pytest.raises(UploadRefused, match="no such object"):
        await site.zone.complete(key, "", [(1, "e", sha256_b64(data))], composite_b64(data))
    _, [url] = await site.zone.begin(key, 1)
    etag = (await site.put(url, data)).headers["ETag"].strip('"')
    for part, whole in [
        ((1, "0" * 32, sha256_b64(data)), composite_b64(data)),
        ((1, etag, sha256_b64(b"other")), composite_b64(b"other")),
        ((1, etag, sha256_b64(data)), sha256_b64(data)),
    ]:
        with pytest.raises(UploadRefused):
            await site.zone.complete(key, "", [part], whole)


async def test_a_bucket_that_is_missing_is_ours_to_mend(site: Site, minio_server: ServerProcess) -> None:
    wire = Wire(endpoint=minio_server.url, **ACCOUNT)
    zone = LandingZone(site.objects, "no-such-bucket", wire, expires_s=60)
    with pytest.raises(Misconfigured):
        await zone.begin(f"{PREFIX}a", 2)
