"""What the archiver relies on S3 for, asked of real servers through `ObjectStore` and `BulkObjects`.

Where one of them is otherwise, its own row says how: the page `docs/reference/s3.md` is about the same differences.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from clients.s3 import ObjectStore, ObjectVersion, Part
from clients.s3_bulk import BulkObjects, PartRefused, UploadVanished
from clients.s3_small import SmallObjects
from clients.s3_wire import ObjectChanged, Range
from domain.errors import Misconfigured, ObjectStoreUnavailable
from tests.contracts.conftest import ACCESS_KEY, REGION, SECRET_KEY, minio_process, running, seaweedfs_process
from tests.digests import composite_b64, sha256_b64
from tests.fakes.certificate import certificate
from tests.fakes.processes import ServerProcess
from tests.lab import eventually

CREDENTIALS: dict[str, Any] = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": REGION}
MIB = 1 << 20
PART = 5 * MIB

AWKWARD = [
    "with space.tif",
    "plus+plus",
    "100%",
    "percent%41encoded",
    "quote'double\"",
    "amp&less<more>",
    "ünïcödé/試料.mrc",
    "e\u0301 decomposed",
    "tilde~star*(paren)!",
    "hash#question?equals=semi;colon:at@comma,",
    "back`tick^caret|pipe{brace}[bracket]",
    "a/b/" + "long" * 60,
]


PROCESSES: dict[str, Callable[[Path, Path | None], ServerProcess]] = {
    "minio": minio_process,
    "seaweedfs": seaweedfs_process,
}
TELLS_DIGESTS_OF_PARTS = {"minio"}
"""When it lists an open upload's parts. Elsewhere a retrieval that was interrupted begins the datablock anew."""
TELLS_MISSING_BUCKETS = {"minio"}
"""Whatever it is asked. Elsewhere one looks to HEAD and to a ranged read as if only the object were missing."""
FORGETS_OPEN_UPLOADS = {"minio"}
"""When it is started again, unless it is asked for their very keys."""


class Readers:
    """Reads a range in both ways that there are and demands the same of them."""

    def __init__(self, url: str, small: SmallObjects, **options: Any) -> None:
        self.small = small
        self.bulk = BulkObjects(endpoint=url, **options)

    async def read(self, bucket: str, version: ObjectVersion, offset: int, size: int) -> bytes:
        """The bytes."""
        return await self.get(bucket, version.key, version.version_id, version.etag, offset, size)

    async def get(self, bucket: str, key: str, version_id: str | None, etag: str, offset: int, size: int) -> bytes:
        """The bytes, or what both say."""
        buffers = bytearray(size), bytearray(size)
        ranges = [Range(key, version_id, etag, offset, memoryview(buffer)) for buffer in buffers]
        said = await asyncio.gather(
            asyncio.to_thread(self.bulk.read_range, bucket, ranges[0]),
            self.small.read(bucket, [ranges[1]]),
            return_exceptions=True,
        )
        first, second = said
        assert type(first) is type(second), said
        if isinstance(first, BaseException):
            raise first
        assert buffers[0] == buffers[1]
        return bytes(buffers[0])


def range_of(version: ObjectVersion, size: int) -> Range:
    return Range(version.key, version.version_id, version.etag, 0, memoryview(bytearray(size)))


@asynccontextmanager
async def readers_of(url: str, **options: Any) -> AsyncGenerator[Readers]:
    async with SmallObjects.connect(endpoint=url, **options) as small:
        readers = Readers(url, small, **options)
        yield readers
        readers.bulk.close()


EACH = ["minio", pytest.param("seaweedfs", marks=pytest.mark.long)]


@pytest.fixture(params=EACH)
def s3(request: pytest.FixtureRequest) -> str:
    """One S3 after the other."""
    return request.param


@pytest.fixture
def s3_server(request: pytest.FixtureRequest, s3: str) -> ServerProcess:
    """Its server, shared by all tests."""
    return request.getfixturevalue(f"{s3}_server")


@pytest.fixture
def own_s3(s3: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that a test may stop."""
    with running(PROCESSES[s3](tmp_path, None)) as server:
        yield server


@pytest.fixture
async def store(s3_server: ServerProcess) -> AsyncIterator[ObjectStore]:
    async with ObjectStore.connect(endpoint=s3_server.url, **CREDENTIALS) as store:
        yield store


@pytest.fixture
def bulk(s3_server: ServerProcess) -> Iterator[BulkObjects]:
    bulk = BulkObjects(endpoint=s3_server.url, **CREDENTIALS)
    yield bulk
    bulk.close()


@pytest.fixture
async def readers(s3_server: ServerProcess) -> AsyncIterator[Readers]:
    async with readers_of(s3_server.url, **CREDENTIALS) as readers:
        yield readers


@pytest.fixture
async def bucket(store: ObjectStore) -> str:
    name = f"plain-{uuid4()}"
    await store.ensure_bucket(name, versioned=False)
    return name


@pytest.fixture
async def versioned(store: ObjectStore) -> str:
    name = f"versioned-{uuid4()}"
    await store.ensure_bucket(name, versioned=True)
    return name


async def versions(store: ObjectStore, bucket: str, prefix: str = "") -> list[ObjectVersion]:
    return [version async for version in store.list_versions(bucket, prefix)]


def send(bulk: BulkObjects, bucket: str, key: str, upload_id: str, number: int, data: bytes) -> tuple[int, str, str]:
    etag = bulk.upload_part(bucket, key, upload_id, number, len(data), [memoryview(data)], sha256_b64(data))
    return number, etag, sha256_b64(data)


# --- small objects ----------------------------------------------------------------------------------------------------


async def test_a_small_object_comes_back_as_it_was_written(store: ObjectStore, bucket: str) -> None:
    assert await store.put(bucket, "a/b", b"content")
    assert await store.get(bucket, "a/b") == b"content"
    assert await store.exists(bucket, "a/b")


async def test_an_absent_object_is_none(store: ObjectStore, bucket: str) -> None:
    assert await store.get(bucket, "nothing") is None
    assert await store.head(bucket, "nothing") is None
    assert not await store.exists(bucket, "nothing")


async def test_what_is_known_is_not_read_again(store: ObjectStore, bucket: str) -> None:
    assert await store.get_unless(bucket, "a", "") == (None, "")
    await store.put(bucket, "a", b"one")
    content, etag = await store.get_unless(bucket, "a", "")
    assert (content, bool(etag)) == (b"one", True)
    assert await store.get_unless(bucket, "a", etag) == (None, etag)
    await store.put(bucket, "a", b"two")
    assert (await store.get_unless(bucket, "a", etag))[0] == b"two"


async def test_put_only_if_absent_leaves_what_is_there(store: ObjectStore, bucket: str) -> None:
    assert await store.put(bucket, "journal", b"first", only_if_absent=True)
    assert not await store.put(bucket, "journal", b"second", only_if_absent=True)
    assert await store.get(bucket, "journal") == b"first"


async def test_a_small_object_is_replaced_only_by_who_knows_it(store: ObjectStore, bucket: str) -> None:
    first = await store.replace(bucket, "a", b"first", None)
    assert first
    assert await store.replace(bucket, "a", b"again", None) is None
    second = await store.replace(bucket, "a", b"second", first)
    assert second
    assert second != first
    assert await store.replace(bucket, "a", b"third", first) is None
    assert await store.get(bucket, "a") == b"second"
    assert await store.replace(bucket, "absent", b"x", first) is None
    assert await store.get(bucket, "absent") is None
    [listed] = [item async for item in store.list_objects(bucket, "")]
    assert (listed.etag, listed.size) == (second, 6)
    empty = await store.replace(bucket, "a", b"", second)
    assert empty
    assert [(item.etag, item.size) async for item in store.list_objects(bucket, "")] == [(empty, 0)]


async def test_of_many_who_replace_the_same_object_at_once_one_does(store: ObjectStore, bucket: str) -> None:
    known: str | None = None
    for round_ in range(5):
        tried = await asyncio.gather(*(store.replace(bucket, "a", f"{round_} {n}".encode(), known) for n in range(8)))
        [(winner, known)] = [(n, etag) for n, etag in enumerate(tried) if etag is not None]
        assert await store.get(bucket, "a") == f"{round_} {winner}".encode()


@pytest.mark.parametrize("key", AWKWARD)
async def test_awkward_keys(store: ObjectStore, readers: Readers, versioned: str, key: str) -> None:
    await store.put(versioned, key, b"0123456789")
    [listed] = [item async for item in store.list_objects(versioned, key)]
    [version] = await versions(store, versioned, key)
    assert (listed.key, listed.size) == (version.key, version.size) == (key, 10)
    assert await readers.read(versioned, version, 3, 4) == b"3456"
    await store.delete_versions(versioned, [(key, version.version_id)])
    assert await versions(store, versioned) == []


# --- listings ---------------------------------------------------------------------------------------------------------


async def test_listings_page(store: ObjectStore, versioned: str) -> None:
    keys = [f"p/{n:04d} +%" for n in range(1003)]
    slots = asyncio.Semaphore(16)

    async def put(key: str) -> None:
        async with slots:
            await store.put(versioned, key, b"x")

    await asyncio.gather(*(put(key) for key in [*keys, "q/other"]))
    assert [item.key async for item in store.list_objects(versioned, "p/")] == keys
    listed = await versions(store, versioned, "p/")
    assert [version.key for version in listed] == keys
    await store.delete_versions(versioned, [(version.key, version.version_id) for version in listed])
    assert [item.key async for item in store.list_objects(versioned, "")] == ["q/other"]


async def test_versions_come_newest_first_and_delete_markers_among_them(store: ObjectStore, versioned: str) -> None:
    await store.put(versioned, "a", b"1")
    await store.put(versioned, "a", b"22")
    await store.delete_objects(versioned, ["a"])
    await store.put(versioned, "b", b"333")
    found = await versions(store, versioned)
    assert [(v.key, v.size, v.is_latest, v.delete_marker) for v in found] == [
        ("a", 0, True, True),
        ("a", 2, False, False),
        ("a", 1, False, False),
        ("b", 3, True, False),
    ]
    assert await store.head(versioned, "a", found[0].version_id) is None
    old = await store.head(versioned, "a", found[2].version_id)
    assert old is not None
    assert (old.size, old.etag, old.version_id) == (1, found[2].etag, found[2].version_id)


async def test_without_versioning_the_version_is_called_null(store: ObjectStore, bucket: str) -> None:
    await store.put(bucket, "a", b"1")
    [version] = await versions(store, bucket)
    assert version.version_id == "null"
    await store.delete_versions(bucket, [("a", "null")])
    assert not await store.exists(bucket, "a")


async def test_deleting_twice_is_fine(store: ObjectStore, bucket: str, versioned: str) -> None:
    await store.delete_objects(bucket, ["never there"])
    await store.put(versioned, "a", b"1")
    [version] = await versions(store, versioned)
    for _ in range(2):
        await store.delete_versions(versioned, [("a", version.version_id)])
    await store.delete_versions(versioned, [])
    assert await versions(store, versioned) == []


# --- ranged reads -----------------------------------------------------------------------------------------------------


async def test_a_range_is_read_of_the_pinned_version(store: ObjectStore, readers: Readers, versioned: str) -> None:
    data = bytes(range(256)) * 4096
    await store.put(versioned, "a", data)
    [pinned] = await versions(store, versioned)
    await store.put(versioned, "a", b"newer")
    assert await readers.read(versioned, pinned, 0, MIB // 2) == data[: MIB // 2]
    assert await readers.read(versioned, pinned, MIB // 2, MIB // 2) == data[MIB // 2 :]
    assert await readers.read(versioned, pinned, 7, 0) == b""


async def test_another_object_than_the_pinned_one_is_told(
    store: ObjectStore, readers: Readers, bucket: str, versioned: str
) -> None:
    await store.put(bucket, "a", b"before")
    before = await store.head(bucket, "a")
    assert before is not None
    assert await readers.get(bucket, "a", None, before.etag, 0, 6) == b"before"
    await store.put(bucket, "a", b"after!")
    cases = [
        (bucket, "a", None, before.etag, 0),
        (bucket, "absent", None, before.etag, 0),
        (bucket, "a", str(uuid4()), before.etag, 0),
    ]
    await store.put(versioned, "gone", b"before")
    [gone] = await versions(store, versioned)
    await store.delete_versions(versioned, [("gone", gone.version_id)])
    cases.append((versioned, "gone", gone.version_id, gone.etag, 0))
    await store.put(versioned, "short", b"abc")
    [short] = await versions(store, versioned, "short")
    cases.append((versioned, "short", short.version_id, short.etag, 3))
    for where, key, version_id, etag, offset in cases:
        with pytest.raises(ObjectChanged) as caught:
            await readers.get(where, key, version_id, etag, offset, 6)
        assert caught.value.key == key


# --- multipart --------------------------------------------------------------------------------------------------------


async def test_an_upload_in_parts_has_the_composite_of_its_parts(
    store: ObjectStore, bulk: BulkObjects, bucket: str
) -> None:
    key, first, second = "dir/ü +%.tar", b"a" * PART, b"b" * 1000
    upload_id = await store.create_multipart(bucket, key)
    sent = [send(bulk, bucket, key, upload_id, 1, first), send(bulk, bucket, key, upload_id, 2, second)]
    await store.complete_multipart(bucket, key, upload_id, sent, composite_b64(first, second))
    head = await store.head(bucket, key)
    assert head is not None
    assert (head.size, head.composite_sha256) == (PART + 1000, f"{composite_b64(first, second)}-2")
    assert await store.list_parts(bucket, key, upload_id) is None


async def test_an_open_upload_tells_its_parts(store: ObjectStore, bulk: BulkObjects, bucket: str, s3: str) -> None:
    upload_id = await store.create_multipart(bucket, "a")
    assert await store.list_parts(bucket, "a", upload_id) == ({} if s3 in TELLS_DIGESTS_OF_PARTS else None)
    number, etag, digest = send(bulk, bucket, "a", upload_id, 3, b"xyz")
    parts = await store.list_parts(bucket, "a", upload_id)
    assert parts == ({number: Part(3, etag, digest)} if s3 in TELLS_DIGESTS_OF_PARTS else None)


async def test_an_upload_of_one_part_is_composite_too(store: ObjectStore, bulk: BulkObjects, bucket: str) -> None:
    upload_id = await store.create_multipart(bucket, "a")
    await store.complete_multipart(
        bucket, "a", upload_id, [send(bulk, bucket, "a", upload_id, 1, b"x")], composite_b64(b"x")
    )
    head = await store.head(bucket, "a")
    assert head is not None
    assert head.composite_sha256 == f"{composite_b64(b'x')}-1"


async def test_a_damaged_part_is_refused(store: ObjectStore, bulk: BulkObjects, bucket: str, s3: str) -> None:
    upload_id = await store.create_multipart(bucket, "a")
    with pytest.raises(PartRefused):
        bulk.upload_part(bucket, "a", upload_id, 1, 4, [memoryview(b"ab"), memoryview(b"cd")], sha256_b64(b"abce"))
    if s3 in TELLS_DIGESTS_OF_PARTS:
        assert await store.list_parts(bucket, "a", upload_id) == {}


async def test_other_parts_or_another_composite_are_refused(store: ObjectStore, bulk: BulkObjects, bucket: str) -> None:
    upload_id = await store.create_multipart(bucket, "a")
    number, etag, digest = send(bulk, bucket, "a", upload_id, 1, b"x")
    with pytest.raises(PartRefused):
        await store.complete_multipart(bucket, "a", upload_id, [(number, etag, digest)], composite_b64(b"y"))
    with pytest.raises(PartRefused):
        await store.complete_multipart(bucket, "a", upload_id, [(number, etag, sha256_b64(b"y"))], composite_b64(b"y"))
    with pytest.raises(PartRefused):
        await store.complete_multipart(bucket, "a", upload_id, [(7, etag, digest)], composite_b64(b"x"))
    await store.complete_multipart(bucket, "a", upload_id, [(number, etag, digest)], composite_b64(b"x"))


async def test_an_unknown_upload_has_vanished(store: ObjectStore, bulk: BulkObjects, bucket: str) -> None:
    upload_id = await store.create_multipart(bucket, "a")
    sent = send(bulk, bucket, "a", upload_id, 1, b"x")
    for _ in range(2):
        await store.abort_multipart(bucket, "a", upload_id)
    assert await store.list_parts(bucket, "a", upload_id) is None
    with pytest.raises(UploadVanished):
        send(bulk, bucket, "a", upload_id, 1, b"x")
    with pytest.raises(UploadVanished):
        await store.complete_multipart(bucket, "a", upload_id, [sent], composite_b64(b"x"))


async def test_open_uploads_are_found_below_a_prefix(store: ObjectStore, bucket: str) -> None:
    inside = await store.create_multipart(bucket, "abc/ü +%")
    await store.create_multipart(bucket, "abcd/b")
    found = await store.open_uploads(bucket, "abc/")
    assert [(upload.key, upload.upload_id) for upload in found] == [("abc/ü +%", inside)]


async def test_open_uploads_from_before_a_restart_are_found_by_key(own_s3: ServerProcess, s3: str) -> None:
    async with ObjectStore.connect(endpoint=own_s3.url, **CREDENTIALS) as store:
        await store.ensure_bucket("bucket", versioned=True)
        upload_id = await store.create_multipart("bucket", "abc/a")
        own_s3.stop(kill=True)
        own_s3.start()
        # The reason for `keys`; should MinIO ever list them all, `keys` can go.
        listed = await store.open_uploads("bucket", "abc/")
        assert [upload.upload_id for upload in listed] == ([] if s3 in FORGETS_OPEN_UPLOADS else [upload_id])
        [found] = await store.open_uploads("bucket", "abc/", keys=["abc/a", "abc/b"])
        assert found.upload_id == upload_id


# --- buckets, links ---------------------------------------------------------------------------------------------------


async def test_buckets_are_made_once(store: ObjectStore) -> None:
    name = f"made-{uuid4()}"
    assert await store.versioning(name) is None
    await store.ensure_bucket(name, versioned=False)
    assert await store.versioning(name) == "Off"
    for _ in range(2):
        await store.ensure_bucket(name, versioned=True)
    assert await store.versioning(name) == "Enabled"
    await store.ensure_bucket(name, versioned=False)
    assert await store.versioning(name) == "Enabled"


async def test_a_link_is_for_the_users_side_of_the_network(store: ObjectStore, bucket: str, bulk: BulkObjects) -> None:
    async with ObjectStore.connect(
        endpoint="http://internal.invalid:9000", external_endpoint="https://files.example.org", **CREDENTIALS
    ) as split:
        link = await split.presign_get(bucket, "a b", 60)
    assert link.startswith(f"https://files.example.org/{bucket}/a%20b?")
    await store.put(bucket, "a b", b"content")
    link = await store.presign_get(bucket, "a b", 60, download_name='schöne "Probe".tar')
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(link)
    assert answer.content == b"content"
    expected = "attachment; filename*=UTF-8''sch%C3%B6ne%20%22Probe%22.tar"
    assert answer.headers["content-disposition"] == expected


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_missing_bucket_is_ours_to_mend(store: ObjectStore, readers: Readers, s3: str) -> None:
    with pytest.raises(Misconfigured):
        await store.put("no-such-bucket", "a", b"")
    with pytest.raises(Misconfigured):
        await store.get("no-such-bucket", "a")
    if s3 in TELLS_MISSING_BUCKETS:
        with pytest.raises(Misconfigured):
            await store.head("no-such-bucket", "a")
    else:
        assert await store.head("no-such-bucket", "a") is None
    with pytest.raises(Misconfigured):
        await versions(store, "no-such-bucket")
    with pytest.raises(Misconfigured):
        await store.delete_objects("no-such-bucket", ["a"])
    with pytest.raises(Misconfigured if s3 in TELLS_MISSING_BUCKETS else ObjectChanged):
        await readers.get("no-such-bucket", "a", None, "x", 0, 1)


@pytest.mark.parametrize("wrong", [{"access_key": "nobody"}, {"secret_key": "wrong-secret"}])
async def test_refused_credentials_are_ours_to_mend(
    s3_server: ServerProcess, bucket: str, wrong: dict[str, Any]
) -> None:
    async with ObjectStore.connect(endpoint=s3_server.url, **{**CREDENTIALS, **wrong}) as store:
        for call in (store.get(bucket, "a"), store.head(bucket, "a"), store.versioning(bucket)):
            with pytest.raises(Misconfigured) as caught:
                await call
            assert "secret" not in str(caught.value)
    async with readers_of(s3_server.url, **{**CREDENTIALS, **wrong}) as readers:
        with pytest.raises(Misconfigured) as caught:
            await readers.get(bucket, "a", None, "x", 0, 1)
    assert "secret" not in str(caught.value)


async def content(store: ObjectStore, key: str) -> bytes | None:
    """Of an object, once there is one: SeaweedFS answers before it has its volumes."""
    with suppress(ObjectStoreUnavailable):
        return await store.get("bucket", key)
    return None


async def test_a_server_that_is_down_may_come_back(own_s3: ServerProcess) -> None:
    async with (
        ObjectStore.connect(endpoint=own_s3.url, **CREDENTIALS) as store,
        readers_of(own_s3.url, **CREDENTIALS) as readers,
    ):
        await store.ensure_bucket("bucket", versioned=True)
        await store.put("bucket", "a", b"x")
        [version] = await versions(store, "bucket")
        upload_id = await store.create_multipart("bucket", "b")
        assert await readers.read("bucket", version, 0, 1) == b"x"
        own_s3.stop(kill=True)
        with pytest.raises(ObjectStoreUnavailable):
            await store.get("bucket", "a")
        with pytest.raises(ObjectStoreUnavailable):
            await readers.read("bucket", version, 0, 1)
        own_s3.start()
        # Nothing has to be opened anew; connections that died meanwhile are noticed.
        assert await eventually(lambda: content(store, "a")) == b"x"
        assert await readers.read("bucket", version, 0, 1) == b"x"
        send(readers.bulk, "bucket", "b", upload_id, 1, b"x")
        own_s3.stop(kill=True)
        own_s3.start()
        assert await eventually(lambda: content(store, "a")) == b"x"
        send(readers.bulk, "bucket", "b", upload_id, 1, b"x")


@pytest.fixture
def tls_s3(s3: str, tmp_path: Path) -> Iterator[tuple[ServerProcess, Path]]:
    """A server behind TLS, and the certificate that it must be trusted by."""
    made = certificate(tmp_path / "certificates")
    with running(PROCESSES[s3](tmp_path, made.parent)) as server:
        yield server, made


async def test_tls_with_a_certificate_of_ones_own(tls_s3: tuple[ServerProcess, Path]) -> None:
    server, made = tls_s3
    data = b"z" * PART
    trusting: dict[str, Any] = {**CREDENTIALS, "ca_file": made}
    async with (
        ObjectStore.connect(endpoint=server.url, **trusting) as store,
        readers_of(server.url, **trusting) as readers,
    ):
        await store.ensure_bucket("bucket", versioned=True)
        upload_id = await store.create_multipart("bucket", "a")
        sent = send(readers.bulk, "bucket", "a", upload_id, 1, data)
        await store.complete_multipart("bucket", "a", upload_id, [sent], composite_b64(data))
        [version] = await versions(store, "bucket")
        assert await readers.read("bucket", version, 0, PART) == data
    async with readers_of(server.url, **CREDENTIALS) as distrustful:
        for reading in (
            asyncio.to_thread(distrustful.bulk.read_range, "bucket", range_of(version, 1)),
            distrustful.small.read("bucket", [range_of(version, 1)]),
        ):
            with pytest.raises(ObjectStoreUnavailable, match="certificate"):
                await reading
    async with ObjectStore.connect(endpoint=server.url, **CREDENTIALS) as store:
        with pytest.raises(ObjectStoreUnavailable):
            await store.get("bucket", "a")
