"""The pretend tape library takes files by plain HTTP PUT: whole or not at all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mock_lts.problems import ConnectionCut
from tests.fakes.mock_lts import assert_problem, blobs, call, inject, instant, locality, process, serving
from tests.fakes.processes import free_port


@pytest.fixture
async def lts(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path)) as client:
        yield client


def digest(data: bytes, header: str = "Repr-Digest") -> dict[str, str]:
    return {header: f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


async def nothing_left(lts: httpx.AsyncClient, state: Path) -> bool:
    seen = (await lts.get("/admin/state")).json()
    cache = seen["cache"]
    kept = sum(file["locality"] != "TAPE" for file in seen["files"])
    return seen["uploads"] == [] and cache["reserved_bytes"] == 0 and await blobs(state / "cache", kept)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


class TestPut:
    async def test_a_file_is_made_and_replaced(self, lts: httpx.AsyncClient, tmp_path: Path):
        data = os.urandom(3_000_001)
        made = await lts.put("/files/a/b%20c%25.tar", content=data)
        assert made.status_code == 201
        answer = await lts.get("/files/a/b%20c%25.tar")
        assert (answer.content, answer.headers["ETag"]) == (data, made.headers["ETag"])
        again = await lts.put("/files/a/b%20c%25.tar", content=b"new")
        assert again.status_code == 204
        assert again.headers["ETag"] != made.headers["ETag"]
        assert (await lts.get("/files/a/b%20c%25.tar")).content == b"new"
        assert (await lts.put("/files/empty", content=b"")).status_code == 201
        assert await locality(lts, "empty") == "NONE"
        counted = (await lts.get("/admin/requests")).json()["paths"]
        assert (counted["a/b c%.tar"]["received"], counted["a/b c%.tar"]["kept"]) == (3_000_004, 3_000_004)
        assert await nothing_left(lts, tmp_path)

    async def test_a_chunked_body_needs_no_length(self, lts: httpx.AsyncClient, tmp_path: Path):
        data = os.urandom(2_500_000)
        answer = await lts.put("/files/f", content=pieces(data[:7], data[7:1_000_000], data[1_000_000:]))
        assert answer.status_code == 201
        assert (await lts.get("/files/f")).content == data
        assert (await lts.get("/admin/state")).json()["cache"]["used_bytes"] == len(data)
        assert await nothing_left(lts, tmp_path)

    async def test_nothing_is_seen_before_the_last_byte(self, lts: httpx.AsyncClient):
        await lts.put("/files/f", content=b"old")
        half = asyncio.Event()
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"ne"
            half.set()
            await go_on.wait()
            yield b"w!"

        putting = asyncio.create_task(lts.put("/files/f", content=slowly()))
        await half.wait()
        assert (await lts.get("/files/f")).content == b"old"
        assert [row["path"] for row in (await lts.get("/admin/state")).json()["uploads"]] == ["f"]
        go_on.set()
        assert (await putting).status_code == 204
        assert (await lts.get("/files/f")).content == b"new!"

    @pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
    async def test_a_digest_is_checked_and_shown(self, lts: httpx.AsyncClient, tmp_path: Path, header: str):
        data = os.urandom(100_000)
        assert_problem(await lts.put("/files/f", content=data, headers=digest(b"other", header)), 400)
        assert_problem(await lts.get("/files/f"), 404)
        several = {header: f"unknown=:AAAA:, {digest(data)['Repr-Digest']}"}
        assert (await lts.put("/files/f", content=data, headers=several)).status_code == 201
        assert (await lts.get("/files/f")).headers["Repr-Digest"] == digest(data)["Repr-Digest"]
        for bad in ("sha-256=:AAAA:", "sha-256=:!:", "sha-256=abc", "sha-256=::"):
            assert_problem(await lts.put("/files/g", content=data, headers={header: bad}), 400)
        both = {**digest(data), **digest(b"other", "Content-Digest")}
        assert_problem(await lts.put("/files/g", content=data, headers=both), 400)
        assert await nothing_left(lts, tmp_path)

    async def test_preconditions(self, lts: httpx.AsyncClient):
        absent = {"If-None-Match": "*"}
        first = await lts.put("/files/f", content=b"1", headers=absent)
        assert first.status_code == 201
        assert_problem(await lts.put("/files/f", content=b"2", headers=absent), 412)
        assert_problem(await lts.put("/files/f", content=b"2", headers={"If-Match": '"other"'}), 412)
        assert_problem(await lts.put("/files/g", content=b"2", headers={"If-Match": "*"}), 412)
        known = {"If-Match": first.headers["ETag"]}
        assert (await lts.put("/files/f", content=b"2", headers=known)).status_code == 204
        assert_problem(await lts.put("/files/f", content=b"3", headers=known), 412)
        assert (await lts.get("/files/f")).content == b"2"

    async def test_of_two_that_want_to_be_first_one_is(self, lts: httpx.AsyncClient, tmp_path: Path):
        begun = asyncio.Event()

        async def late() -> AsyncIterator[bytes]:
            yield b"a"
            begun.set()
            await asyncio.sleep(0.05)
            yield b"a"

        absent = {"If-None-Match": "*"}
        slow = asyncio.create_task(lts.put("/files/f", content=late(), headers=absent))
        await begun.wait()
        assert (await lts.put("/files/f", content=b"bb", headers=absent)).status_code == 201
        assert_problem(await slow, 412)
        assert (await lts.get("/files/f")).content == b"bb"
        assert await nothing_left(lts, tmp_path)

    async def test_write_once_and_impossible_paths(self, lts: httpx.AsyncClient, tmp_path: Path):
        await lts.put("/files/a/b", content=b"1")
        for path in ("a", "a/b/c"):
            assert_problem(await lts.put(f"/files/{path}", content=b"1"), 409)
        for path in ("a/%2e%2e/b", "%2e%2e/x", "a%2F..%2Fb", "/etc/passwd", "a%00b", "a%5Cb", "a/", "x" * 256):
            assert_problem(await lts.put(f"/files/{path}", content=b"1"), 400)
        await lts.post("/admin/worm", json={"on": True})
        assert_problem(await lts.put("/files/a/b", content=b"2"), 409)
        assert (await lts.put("/files/a/c", content=b"2")).status_code == 201
        assert (await lts.get("/files/a/b")).content == b"1"
        assert await nothing_left(lts, tmp_path)

    async def test_what_cannot_be_put(self, lts: httpx.AsyncClient):
        assert_problem(await lts.put("/files/f", content=b"1", headers={"Content-Range": "bytes 0-0/2"}), 400)
        assert_problem(await lts.put("/files/f", content=b"1", headers={"Content-Encoding": "gzip"}), 415)
        assert_problem(await lts.put("/files/f", content=b"1", headers={"Content-Length": "2"}), 400)
        assert_problem(await lts.get("/files/f"), 404)

    async def test_too_long_and_no_room(self, tmp_path: Path):
        async with serving(instant(tmp_path, cache_mb=0.001)) as lts:
            for body in (b"x" * 1001, pieces(b"x" * 900, b"x" * 101)):
                assert_problem(await lts.put("/files/f", content=body), 413)
            await lts.put("/files/a", content=b"x" * 600)
            for body in (b"x" * 600, pieces(b"x" * 300, b"x" * 300)):
                refused = await lts.put("/files/b", content=body)
                assert_problem(refused, 507)
                assert "Retry-After" in refused.headers
            assert await nothing_left(lts, tmp_path)
            await lts.post("/admin/migrate")
            assert (await lts.put("/files/b", content=pieces(b"x" * 300, b"x" * 300))).status_code == 201
            assert await locality(lts, "a") == "TAPE"

    async def test_faults_strike_it_too(self, lts: httpx.AsyncClient, tmp_path: Path):
        await inject(lts, kind="cut", direction="in", after_bytes=3)
        with pytest.raises(ConnectionCut):
            await lts.put("/files/f", content=b"12345")
        assert await nothing_left(lts, tmp_path)
        await inject(lts, kind="corrupt_in_flight", direction="in", offset=2)
        assert_problem(await lts.put("/files/f", content=b"12345", headers=digest(b"12345")), 400)
        for kind in ("cache_full", "tapes_full"):
            await inject(lts, kind=kind)
            assert_problem(await lts.put("/files/f", content=b"12345"), 507)
            await lts.delete("/admin/faults")
        assert (await lts.put("/files/f", content=b"12345")).status_code == 201

    async def test_what_was_put_goes_to_tape(self, lts: httpx.AsyncClient):
        await lts.put("/files/f", content=b"12345")
        assert await locality(lts, "f") == "DISK"
        await lts.post("/admin/migrate")
        await lts.post("/admin/evict", json={})
        assert await locality(lts, "f") == "TAPE"
        assert_problem(await lts.get("/files/f"), 503)


def test_a_put_that_breaks_off_leaves_nothing(tmp_path: Path):
    port = free_port()
    with process(tmp_path, port) as running:
        head = b"PUT /files/f HTTP/1.1\r\nHost: lts\r\n"
        for length, body in ((b"Content-Length: 9", b"1234"), (b"Transfer-Encoding: chunked", b"4\r\n1234\r\n")):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(head + length + b"\r\n\r\n" + body)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + b"Content-Length: 9\r\n\r\n1234")
            assert call(port, "PUT", "/files/whole", body=b"12345")[0] == 201
            running.kill()
            running.wait()
    with process(tmp_path, port):
        assert call(port, "GET", "/files/f")[0] == 404
        assert call(port, "GET", "/files/whole")[2] == b"12345"
        assert len(list((tmp_path / "cache").iterdir())) == 1
