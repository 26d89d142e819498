"""The pretend tape library's tus, word by word, and before a client that is not ours."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.fakes.mock_lts import (
    DAY_S,
    STREAM,
    TUS,
    Clock,
    assert_problem,
    blobs,
    call,
    checksum,
    create,
    inject,
    instant,
    metadata,
    patch,
    process,
    serving,
)
from tests.fakes.processes import free_port

TOKEN = "t0ken"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lts(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path), clock) as client:
        yield client


class TestHeaders:
    async def test_every_answer_names_the_version(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 10)
        await inject(lts, kind="status", status=503, route="/uploads", method="HEAD")
        answers = {
            "refused by a fault": await lts.head(url, headers=TUS),
            "options": await lts.options(url),
            "head": await lts.head(url, headers=TUS),
            "unknown": await lts.head("/uploads/unknown", headers=TUS),
            "no such place": await lts.get("/uploads/a/b", headers=TUS),
            "wrong method": await lts.put(url, headers=TUS),
            "wrong version": await lts.head(url, headers={"Tus-Resumable": "0.2.2"}),
            "not understood": await lts.post("/uploads", headers=TUS),
        }
        seen = {
            what: (answer.status_code, answer.headers.get_list("Tus-Resumable")) for what, answer in answers.items()
        }
        assert seen == {
            "refused by a fault": (503, ["1.0.0"]),
            "options": (204, ["1.0.0"]),
            "head": (200, ["1.0.0"]),
            "unknown": (404, ["1.0.0"]),
            "no such place": (404, ["1.0.0"]),
            "wrong method": (405, ["1.0.0"]),
            "wrong version": (412, ["1.0.0"]),
            "not understood": (400, ["1.0.0"]),
        }
        assert answers["wrong version"].headers["Tus-Version"] == "1.0.0"
        assert answers["wrong method"].headers["Allow"] == "HEAD, PATCH, DELETE, OPTIONS"

    async def test_a_refused_visitor_is_told_the_version_too(self, tmp_path: Path):
        async with serving(instant(tmp_path, token=TOKEN)) as lts:
            answer = await lts.post("/uploads", headers=TUS)
            assert (answer.status_code, answer.headers["Tus-Resumable"]) == (401, "1.0.0")

    async def test_options_do_not_ask_for_the_version(self, lts: httpx.AsyncClient):
        for url in ("/uploads", "/uploads/", await create(lts, "f", 1)):
            headers = (await lts.options(url)).headers
            assert headers["Tus-Version"] == "1.0.0"
            assert int(headers["Tus-Max-Size"]) == 40_000_000_000
            assert headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
            assert headers["Tus-Extension"] == "creation,creation-with-upload,checksum,termination,expiration"

    async def test_another_version_changes_nothing(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 3)
        old = {"Tus-Resumable": "0.2.2"}
        for answer in (
            await lts.post("/uploads", headers={**old, **metadata("g"), "Upload-Length": "1"}),
            await patch(lts, url, 0, b"123", old),
            await lts.delete(url, headers=old),
        ):
            assert_problem(answer, 412)
        assert (await lts.head(url, headers=TUS)).headers["Upload-Offset"] == "0"
        assert len((await lts.get("/admin/state")).json()["uploads"]) == 1

    async def test_metadata_come_back_as_they_went(self, lts: httpx.AsyncClient, tmp_path: Path):
        said = f"owner {base64.b64encode(b'group').decode()},path {base64.b64encode(b'f').decode()},draft"
        answer = await lts.post("/uploads", headers={**TUS, "Upload-Metadata": said, "Upload-Length": "1"})
        head = await lts.head(answer.headers["Location"], headers=TUS)
        assert head.headers["Upload-Metadata"] == said
        for bad in (
            f"path {base64.b64encode(b'a').decode()},path {base64.b64encode(b'b').decode()}",
            "path !",
            "draft",
        ):
            refused = await lts.post("/uploads", headers={**TUS, "Upload-Metadata": bad, "Upload-Length": "1"})
            assert_problem(refused, 400)

    async def test_another_method_in_a_header(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 2)
        for sent, meant in (("POST", "PATCH"), ("GET", "HEAD"), ("PUT", "DELETE")):
            headers = {**STREAM, "X-HTTP-Method-Override": meant, "Upload-Offset": "0"}
            answer = await lts.request(sent, url, headers=headers, content=b"1" if meant == "PATCH" else None)
            assert answer.is_success, meant
        assert (await lts.head(url, headers=TUS)).status_code == 410
        headers = {**TUS, **metadata("g"), "Upload-Length": "0", "X-HTTP-Method-Override": "POST"}
        assert (await lts.put("/uploads", headers=headers)).status_code == 201

    async def test_an_upload_that_is_used_does_not_expire(self, lts: httpx.AsyncClient, clock: Clock):
        url = await create(lts, "f", 3)
        for at in range(3):
            clock.now += 13 * DAY_S
            answer = await patch(lts, url, at, b"x")
            assert parsedate_to_datetime(answer.headers["Upload-Expires"]).timestamp() == clock.now + 14 * DAY_S
        assert (await lts.get("/files/f")).content == b"xxx"

    async def test_checksums_that_cannot_be(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 5)
        for bad, status in (
            ("crc32 AAAA", 400),
            ("sha1", 460),
            ("sha1 !", 400),
            ("sha256 AAAA", 460),
            ("SHA1 AA==", 400),
        ):
            assert (await patch(lts, url, 0, b"12345", {"Upload-Checksum": bad})).status_code == status, bad
        assert (await patch(lts, url, 0, b"12345", checksum(b"12345", "sha1"))).status_code == 204

    async def test_a_creation_that_is_refused_leaves_nothing(self, lts: httpx.AsyncClient, tmp_path: Path):
        headers = {**STREAM, **metadata("f"), "Upload-Length": "5"}
        assert_problem(await lts.post("/uploads", content=b"12345", headers={**headers, **checksum(b"other")}), 460)
        assert_problem(await lts.post("/uploads", content=b"123456", headers=headers), 413)
        state = (await lts.get("/admin/state")).json()
        assert (state["uploads"], state["cache"]["reserved_bytes"]) == ([], 0)
        assert await blobs(tmp_path / "cache", 0)
        answer = await lts.post("/uploads", content=b"123", headers={**headers, **checksum(b"123")})
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "3")

    async def test_a_file_stays_when_its_upload_is_terminated(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 1)
        await patch(lts, url, 0, b"1")
        assert (await lts.delete(url, headers=TUS)).status_code == 204
        assert_problem(await lts.delete(url, headers=TUS), 410)
        assert (await lts.get("/files/f")).content == b"1"

    async def test_an_upload_terminated_while_bytes_come(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 10)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"12345"
            begun.set()
            await go_on.wait()
            yield b"67890"

        sending = asyncio.create_task(lts.patch(url, content=slowly(), headers={**STREAM, "Upload-Offset": "0"}))
        await begun.wait()
        assert (await lts.delete(url, headers=TUS)).status_code == 204
        go_on.set()
        assert_problem(await sending, 410)
        assert_problem(await lts.get("/files/f"), 404)
        assert (await lts.get("/admin/state")).json()["cache"]["reserved_bytes"] == 0


class TestTuspy:
    """tuspy knows nothing of this server but its address, its token and that a file needs a `path`."""

    def client(self, port: int) -> TusClient:
        return TusClient(f"http://127.0.0.1:{port}/uploads/", headers={"Authorization": f"Bearer {TOKEN}"})

    def uploader(self, port: int, data: bytes, **options: Any) -> Any:
        make = cast("Any", self.client(port)).uploader
        return make(file_stream=io.BytesIO(data), metadata={"path": "a/b c.tar", "note": "ü"}, **options)

    def test_it_uploads_stops_and_resumes(self, tmp_path: Path):
        port, data = free_port(), os.urandom(2_500_000)
        with process(tmp_path, port, TOKEN=TOKEN):
            first = self.uploader(port, data, chunk_size=400_000, upload_checksum=True)
            first.upload(stop_at=1_000_000)
            assert first.offset == 1_000_000
            # Another client, later, knows only the URL.
            second = self.uploader(port, data, url=first.url, chunk_size=700_000, upload_checksum=True)
            assert second.offset == 1_000_000
            second.upload()
            auth = {"Authorization": f"Bearer {TOKEN}"}
            assert call(port, "GET", "/files/a/b%20c.tar", auth)[2] == data

    def test_it_gets_over_a_broken_connection(self, tmp_path: Path):
        port, data = free_port(), os.urandom(3_000_000)
        auth = {"Authorization": f"Bearer {TOKEN}"}
        with process(tmp_path, port, TOKEN=TOKEN):
            fault = b'{"kind": "cut", "direction": "in", "after_bytes": 1000000, "count": 2}'
            assert call(port, "POST", "/admin/faults", auth, fault)[0] == 201
            self.uploader(port, data, retries=3, retry_delay=0).upload()
            assert call(port, "GET", "/files/a/b%20c.tar", auth)[2] == data
            received = call(port, "GET", "/admin/requests", auth)[2]
            assert b'"kept":3000000' in received

    def test_it_understands_that_an_upload_is_gone(self, tmp_path: Path):
        port = free_port()
        with process(tmp_path, port, TOKEN=TOKEN):
            first = self.uploader(port, b"1234567890", chunk_size=5)
            first.upload_chunk()
            path = str(first.url).removeprefix(f"http://127.0.0.1:{port}")
            assert call(port, "DELETE", path, {**TUS, "Authorization": f"Bearer {TOKEN}"})[0] == 204
            with pytest.raises(TusCommunicationError, match="410"):
                self.uploader(port, b"1234567890", url=first.url)
