"""Small reads against servers that answer too little, too much, or not at all."""

from collections.abc import AsyncIterator, Iterator

import pytest

from clients.s3_small import SmallObjects
from clients.s3_wire import Range
from domain.errors import ObjectStoreUnavailable
from tests.fakes.canned import Canned, CannedServer

DATA = bytes(range(256)) * 16


@pytest.fixture
def server() -> Iterator[CannedServer]:
    with CannedServer() as server:
        yield server


@pytest.fixture
async def small(server: CannedServer) -> AsyncIterator[SmallObjects]:
    async with SmallObjects.connect(
        endpoint=server.url, access_key="a", secret_key="b", region="c", timeout_s=1, ways=4
    ) as small:
        yield small


def wanted(key: str) -> Range:
    return Range(key, None, "etag", 0, memoryview(bytearray(len(DATA))))


async def test_each_range_fills_its_own_buffer_and_connections_are_kept(
    server: CannedServer, small: SmallObjects
) -> None:
    keys = [f"k{number}" for number in range(100)]
    for number, key in enumerate(keys):
        server.answers["GET", f"/bucket/{key}"] = [Canned(206, bytes([number]) * len(DATA))]
    ranges = [wanted(key) for key in keys]
    await small.read("bucket", ranges)
    assert [bytes(one.into) for one in ranges] == [bytes([number]) * len(DATA) for number in range(100)]
    assert server.connections <= 4


@pytest.mark.parametrize("body", [DATA[:-1], DATA + b"x", b""])
async def test_another_length_than_asked_for_is_no_answer(
    server: CannedServer, small: SmallObjects, body: bytes
) -> None:
    server.answers["GET", "/bucket/a"] = [Canned(206, body)]
    with pytest.raises(ObjectStoreUnavailable, match="'a' of bucket bucket"):
        await small.read("bucket", [wanted("a")])


async def test_a_cut_answer_is_no_answer(server: CannedServer, small: SmallObjects) -> None:
    server.answers["GET", "/bucket/a"] = [Canned(206, DATA, cut_after=100)]
    with pytest.raises(ObjectStoreUnavailable):
        await small.read("bucket", [wanted("a")])


async def test_one_that_fails_ends_all_and_leaves_the_reader_usable(server: CannedServer, small: SmallObjects) -> None:
    server.answers["GET", "/bucket/good"] = [Canned(206, DATA)]
    server.answers["GET", "/bucket/bad"] = [Canned(500, b"")]
    with pytest.raises(ObjectStoreUnavailable, match="500"):
        await small.read("bucket", [wanted("good"), wanted("bad"), *(wanted("good") for _ in range(50))])
    again = wanted("good")
    await small.read("bucket", [again])
    assert bytes(again.into) == DATA
