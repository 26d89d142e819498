"""The pretend tape library keeps the promises of tus 1.0, RFC 9110 ranges, WebDAV and the WLCG Tape REST API v1."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from mock_lts.app import create_app
from mock_lts.config import Config
from mock_lts.desk import Desk
from mock_lts.faults import Faults
from mock_lts.library import Library, Rules
from mock_lts.model import Locality, StageRequest, StoredFile, Tape, Timing
from mock_lts.problems import ConnectionCut

ROOT = Path(__file__).resolve().parents[2]
TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {**TUS, "Content-Type": "application/offset+octet-stream"}
STAGE = "/api/v1/tape/stage"
DAY_S = 86_400.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def instant(state: Path, **changes: Any) -> Config:
    """A library without delays that migrates only when told to."""
    settings: dict[str, Any] = {"state": state, "time_factor": 0, "migrate_bytes": "inf", "migrate_age_s": "inf"}
    return Config.model_validate({**settings, **changes})


@asynccontextmanager
async def serving(config: Config, clock: Callable[[], float] = time.time) -> AsyncGenerator[httpx.AsyncClient, None]:
    app = create_app(config, clock=clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lts") as client,
    ):
        yield client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lts(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path), clock) as client:
        yield client


def metadata(path: str) -> dict[str, str]:
    return {"Upload-Metadata": f"path {base64.b64encode(path.encode()).decode()}"}


def checksum(data: bytes, algorithm: str = "sha256") -> dict[str, str]:
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"}


async def create(client: httpx.AsyncClient, path: str, length: int) -> str:
    answer = await client.post("/uploads", headers={**TUS, **metadata(path), "Upload-Length": str(length)})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


async def patch(
    client: httpx.AsyncClient, url: str, offset: int, data: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await client.patch(
        url, content=data, headers={**STREAM, "Upload-Offset": str(offset), **(headers or checksum(data))}
    )


async def offset_of(client: httpx.AsyncClient, url: str) -> int:
    answer = await client.head(url, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


async def put(client: httpx.AsyncClient, path: str, data: bytes) -> str:
    url = await create(client, path, len(data))
    if data:
        assert (await patch(client, url, 0, data)).status_code == 204
    return url


async def to_tape_only(client: httpx.AsyncClient, path: str, data: bytes) -> None:
    await put(client, path, data)
    await client.post("/admin/migrate")
    assert (await client.post("/admin/evict", json={"path": path})).json() == {"evicted": [path]}


async def stage(client: httpx.AsyncClient, *paths: str, lifetime: str | None = "PT1H") -> str:
    files = [{"path": path} if lifetime is None else {"path": path, "diskLifetime": lifetime} for path in paths]
    answer = await client.post(STAGE, json={"files": files})
    assert answer.status_code == 201, answer.text
    request_id = answer.json()["requestId"]
    assert answer.headers["Location"] == f"http://lts{STAGE}/{request_id}"
    return request_id


async def poll(client: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    answer = await client.get(f"{STAGE}/{request_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def locality(client: httpx.AsyncClient, path: str) -> str:
    (info,) = (await client.post("/api/v1/tape/archiveinfo", json={"paths": [path]})).json()
    assert info["path"] == path
    return info.get("locality") or info["error"]


async def inject(client: httpx.AsyncClient, **fault: Any) -> int:
    answer = await client.post("/admin/faults", json=fault)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["title"]


class TestUploads:
    async def test_options_say_what_there_is(self, lts: httpx.AsyncClient):
        answer = await lts.options("/uploads")
        assert answer.status_code == 204
        assert answer.headers["Tus-Version"] == "1.0.0"
        extensions = answer.headers["Tus-Extension"].split(",")
        assert set(extensions) == {"creation", "creation-with-upload", "checksum", "termination", "expiration"}
        assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
        assert int(answer.headers["Tus-Max-Size"]) > 0

    async def test_a_file_appears_with_its_last_byte(self, lts: httpx.AsyncClient):
        data = os.urandom(3_000_000)
        url = await create(lts, "a/b c%.tar", len(data))
        first = await patch(lts, url, 0, data[:1_000_000])
        assert (first.status_code, first.headers["Upload-Offset"]) == (204, "1000000")
        assert first.headers["Upload-Expires"].endswith("GMT")
        assert (await lts.get("/files/a/b%20c%25.tar")).status_code == 404
        assert (await patch(lts, url, 1_000_000, data[1_000_000:], checksum(data[1_000_000:], "sha1"))).is_success
        assert (await lts.get("/files/a/b%20c%25.tar")).content == data
        # A client whose last answer was lost learns that all is well.
        assert await offset_of(lts, url) == len(data)
        assert (await patch(lts, url, len(data), b"")).status_code == 204

    async def test_a_stale_offset_is_refused_and_told_the_true_one(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 10)
        await patch(lts, url, 0, b"12345")
        for wrong in (0, 4, 6):
            answer = await patch(lts, url, wrong, b"x")
            assert_problem(answer, 409)
            assert answer.headers["Upload-Offset"] == "5"
        assert await offset_of(lts, url) == 5

    async def test_of_two_patches_at_once_one_counts(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 8)
        answers = await asyncio.gather(patch(lts, url, 0, b"aaaa"), patch(lts, url, 0, b"bbbb"))
        assert sorted(answer.status_code for answer in answers) == [204, 409]
        assert await offset_of(lts, url) == 4

    async def test_a_wrong_checksum_counts_nothing(self, lts: httpx.AsyncClient):
        data = os.urandom(2_500_000)
        url = await create(lts, "f", len(data))
        assert_problem(await patch(lts, url, 0, data, checksum(b"other")), 460)
        assert await offset_of(lts, url) == 0
        assert (await patch(lts, url, 0, data)).status_code == 204
        assert (await lts.get("/files/f")).content == data

    async def test_bytes_damaged_on_the_way_are_noticed(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 5)
        await inject(lts, kind="corrupt_in_flight", direction="in", offset=2)
        assert (await patch(lts, url, 0, b"12345")).status_code == 460
        assert (await patch(lts, url, 0, b"12345")).status_code == 204

    async def test_without_checksum_what_arrived_before_the_break_counts(self, lts: httpx.AsyncClient):
        data = os.urandom(100_000)
        for headers, kept in (({"X-None": "1"}, 60_000), (checksum(data), 0)):
            url = await create(lts, f"f{kept}", len(data))
            await inject(lts, kind="cut", direction="in", after_bytes=60_000)
            with pytest.raises(ConnectionCut):
                await patch(lts, url, 0, data, headers)
            assert await offset_of(lts, url) == kept
            assert (await patch(lts, url, kept, data[kept:])).status_code == 204
            assert (await lts.get(f"/files/f{kept}")).content == data

    async def test_creation_with_upload_and_empty_files(self, lts: httpx.AsyncClient):
        headers = {**STREAM, **metadata("f"), "Upload-Length": "5"}
        answer = await lts.post("/uploads", content=b"12345", headers=headers)
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "5")
        assert (await lts.get("/files/f")).content == b"12345"
        await create(lts, "empty", 0)
        assert (await lts.get("/files/empty")).content == b""
        assert await locality(lts, "empty") == "NONE"

    async def test_termination_and_expiration_leave_a_410(self, lts: httpx.AsyncClient, clock: Clock):
        url = await create(lts, "f", 10)
        assert (await lts.delete(url, headers=TUS)).status_code == 204
        assert (await lts.head(url, headers=TUS)).status_code == 410
        assert_problem(await patch(lts, url, 0, b"x"), 410)
        idle = await create(lts, "g", 10)
        clock.now += 15 * DAY_S
        assert (await lts.head(idle, headers=TUS)).status_code == 410
        assert (await lts.head("/uploads/unknown", headers=TUS)).status_code == 404
        assert (await lts.get("/admin/state")).json()["cache"]["reserved_bytes"] == 0

    async def test_conformance_of_refusals(self, lts: httpx.AsyncClient):
        url = await create(lts, "f", 10)
        no_version = await lts.patch(url, content=b"x", headers={"Upload-Offset": "0"})
        assert_problem(no_version, 412)
        assert no_version.headers["Tus-Version"] == "1.0.0"
        plain = await lts.patch(url, content=b"x", headers={**TUS, "Upload-Offset": "0", "Content-Type": "text/plain"})
        assert_problem(plain, 415)
        assert plain.headers["Tus-Resumable"] == "1.0.0"
        assert_problem(await patch(lts, url, 0, b"x" * 11), 413)
        assert_problem(await patch(lts, url, 0, b"x", {"Upload-Checksum": "crc32 AAAA"}), 400)
        assert_problem(await lts.post("/uploads", headers={**TUS, **metadata("x")}), 400)
        assert_problem(await lts.post("/uploads", headers={**TUS, "Upload-Length": "1"}), 400)
        huge = {**TUS, **metadata("x"), "Upload-Length": str(10**15)}
        assert_problem(await lts.post("/uploads", headers=huge), 413)
        override = {**STREAM, "X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
        assert (await lts.post(url, content=b"12", headers=override)).headers["Upload-Offset"] == "2"

    @pytest.mark.parametrize(
        "path", ["/a", "a/../b", "..", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", "", "a" * 256, "b/" * 1100 + "b"]
    )
    async def test_paths_that_lead_elsewhere_are_refused(self, lts: httpx.AsyncClient, path: str):
        answer = await lts.post("/uploads", headers={**TUS, **metadata(path), "Upload-Length": "1"})
        assert_problem(answer, 400)

    async def test_reading_outside_is_refused(self, lts: httpx.AsyncClient):
        for url in ("/files/%2e%2e/mock_lts.sqlite", "/files/a%2F..%2Fb", "/files/%ff", "/files//etc/passwd"):
            assert_problem(await lts.get(url), 400)

    async def test_a_file_cannot_be_a_folder(self, lts: httpx.AsyncClient):
        await put(lts, "a/b", b"1")
        for path in ("a", "a/b/c"):
            headers = {**TUS, **metadata(path), "Upload-Length": "1"}
            assert_problem(await lts.post("/uploads", headers=headers), 409)

    async def test_overwriting_is_atomic(self, lts: httpx.AsyncClient):
        await put(lts, "f", b"old")
        old = (await lts.get("/files/f")).headers["ETag"]
        url = await create(lts, "f", 4)
        await patch(lts, url, 0, b"ne")
        assert (await lts.get("/files/f")).content == b"old"
        await patch(lts, url, 2, b"w!")
        answer = await lts.get("/files/f")
        assert answer.content == b"new!"
        assert answer.headers["ETag"] != old

    async def test_write_once(self, lts: httpx.AsyncClient):
        late = await create(lts, "f", 1)
        await put(lts, "f", b"old")
        assert (await lts.post("/admin/worm", json={"on": True})).json() == {"worm": True}
        assert_problem(await lts.post("/uploads", headers={**TUS, **metadata("f"), "Upload-Length": "1"}), 409)
        assert_problem(await patch(lts, late, 0, b"x"), 409)
        assert_problem(await lts.delete("/files/f"), 403)
        assert (await lts.get("/files/f")).content == b"old"

    async def test_a_full_cache_is_a_507(self, tmp_path: Path):
        async with serving(instant(tmp_path, cache_mb=0.001)) as lts:
            await put(lts, "a", b"x" * 600)
            headers = {**TUS, **metadata("b"), "Upload-Length": "600"}
            assert_problem(await lts.post("/uploads", headers=headers), 507)
            await lts.post("/admin/migrate")
            # Migrated and unpinned, the first file may go.
            assert (await lts.post("/uploads", headers=headers)).status_code == 201
            assert await locality(lts, "a") == "TAPE"


class TestReads:
    async def test_ranges(self, lts: httpx.AsyncClient):
        data = os.urandom(3_000_001)
        await put(lts, "f", data)
        whole = await lts.get("/files/f")
        assert whole.headers["Accept-Ranges"] == "bytes"
        assert whole.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
        for wanted, first, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=1000000-2999999", 1_000_000, 3_000_000),
            ("bytes=2999990-", 2_999_990, 3_000_001),
            ("bytes=-7", 2_999_994, 3_000_001),
            ("bytes=10-99999999", 10, 3_000_001),
        ):
            answer = await lts.get("/files/f", headers={"Range": wanted})
            assert answer.status_code == 206
            assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/3000001"
            assert answer.content == data[first:end]
        beyond = await lts.get("/files/f", headers={"Range": "bytes=3000001-"})
        assert_problem(beyond, 416)
        assert beyond.headers["Content-Range"] == "bytes */3000001"
        for ignored in ("bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,4-5"):
            assert (await lts.get("/files/f", headers={"Range": ignored})).status_code == 200

    async def test_head_conditions_and_deletion(self, lts: httpx.AsyncClient):
        await put(lts, "f", b"12345")
        head = await lts.head("/files/f")
        assert (head.headers["Content-Length"], head.content) == ("5", b"")
        tag = head.headers["ETag"]
        assert (await lts.get("/files/f", headers={"If-None-Match": tag})).status_code == 304
        assert_problem(await lts.get("/files/f", headers={"If-Match": '"other"'}), 412)
        stale = {"Range": "bytes=0-1", "If-Range": '"other"'}
        assert (await lts.get("/files/f", headers=stale)).status_code == 200
        assert (await lts.delete("/files/f")).status_code == 204
        for gone in (await lts.get("/files/f"), await lts.delete("/files/f")):
            assert_problem(gone, 404)

    async def test_a_nearline_file_is_refused_and_its_bytes_are_gone_from_the_cache(
        self, lts: httpx.AsyncClient, tmp_path: Path
    ):
        await to_tape_only(lts, "f", b"12345")
        answer = await lts.get("/files/f")
        assert_problem(answer, 503)
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await lts.head("/files/f")).headers["Content-Length"] == "5"
        assert list((tmp_path / "cache").iterdir()) == []
        assert [blob.read_bytes() for blob in (tmp_path / "tapes").glob("*/*")] == [b"12345"]

    async def test_damage_at_rest_and_on_the_way_out(self, lts: httpx.AsyncClient):
        await put(lts, "f", b"12345")
        await inject(lts, kind="corrupt_in_flight", direction="out", offset=3)
        assert (await lts.get("/files/f", headers={"Range": "bytes=3-"})).content == bytes([ord("4") ^ 0xFF]) + b"5"
        assert (await lts.get("/files/f")).content == b"12345"
        await lts.post("/admin/migrate")
        await inject(lts, kind="corrupt_at_rest", path="f", offset=0, where="tape")
        assert (await lts.get("/files/f")).content == b"12345"
        await lts.post("/admin/evict", json={})
        await stage(lts, "f")
        assert (await lts.get("/files/f")).content == bytes([ord("1") ^ 0xFF]) + b"2345"

    async def test_listing_and_space(self, lts: httpx.AsyncClient):
        await put(lts, "d/x & y", b"12345")
        await put(lts, "d/e/z", b"1")
        answer = await lts.request("PROPFIND", "/files/d", headers={"Depth": "1"})
        assert answer.status_code == 207
        found = {
            response.findtext("{DAV:}href"): response.findtext(".//{DAV:}getcontentlength")
            for response in ElementTree.fromstring(answer.content)  # noqa: S314 - our own server's answer
        }
        assert found == {"/files/d/": None, "/files/d/e/": None, "/files/d/x%20%26%20y": "5"}
        root = ElementTree.fromstring((await lts.request("PROPFIND", "/files/", headers={"Depth": "0"})).content)  # noqa: S314
        assert root.findtext(".//{DAV:}quota-used-bytes") == "6"
        assert int(root.findtext(".//{DAV:}quota-available-bytes") or 0) > 10**9
        assert_problem(await lts.request("PROPFIND", "/files/nowhere", headers={"Depth": "0"}), 404)
        assert_problem(await lts.request("PROPFIND", "/files/", headers={"Depth": "infinity"}), 403)


class TestTapeRest:
    async def test_discovery(self, lts: httpx.AsyncClient):
        answer = (await lts.get("/.well-known/wlcg-tape-rest-api")).json()
        assert answer["sitename"] == "mock-lts"
        assert answer["endpoints"] == [{"uri": "http://lts/api/v1/tape", "version": "v1", "metadata": {}}]

    async def test_stage_poll_read_release(self, tmp_path: Path, clock: Clock):
        async with serving(instant(tmp_path, evict_on_release=True), clock) as lts:
            await put(lts, "d/f", b"12345")
            assert await locality(lts, "d/f") == "DISK"
            await lts.post("/admin/migrate")
            assert await locality(lts, "d/f") == "TAPE"
            request_id = await stage(lts, "//d//f")
            answer = await poll(lts, request_id)
            at = int(clock.now)
            done = {"path": "//d//f", "state": "COMPLETED", "startedAt": at, "finishedAt": at}
            assert answer["files"] == [done]
            assert answer["createdAt"] == answer["startedAt"] == answer["completedAt"] == at
            assert await locality(lts, "d/f") == "DISK_AND_TAPE"
            assert (await lts.get("/files/d/f")).content == b"12345"
            released = await lts.post(f"/api/v1/tape/release/{request_id}/", json={"paths": ["/d/f"]})
            assert (released.status_code, released.content) == (200, b"")
            assert await locality(lts, "d/f") == "TAPE"

    async def test_pins_are_counted_and_end_with_their_lifetime(self, lts: httpx.AsyncClient, clock: Clock):
        await to_tape_only(lts, "f", b"12345")
        first, _second = await stage(lts, "f", lifetime="PT10M"), await stage(lts, "/f", lifetime="P1DT2H")
        for _ in range(2):  # releasing twice gives back one pin
            await lts.post(f"/api/v1/tape/release/{first}", json={"paths": ["f"]})
        assert (await lts.post("/admin/evict", json={})).json() == {"evicted": []}
        clock.now += 26 * 3600 - 1
        assert (await lts.post("/admin/evict", json={})).json() == {"evicted": []}
        clock.now += 2
        assert (await lts.post("/admin/evict", json={})).json() == {"evicted": ["f"]}

    async def test_cancel_touches_all_or_nothing(self, lts: httpx.AsyncClient):
        for path in ("a", "b"):
            await to_tape_only(lts, path, b"12345")
        await inject(lts, kind="recall_stuck")
        request_id = await stage(lts, "a", "b")
        assert {file["state"] for file in (await poll(lts, request_id))["files"]} == {"STARTED"}
        bad = await lts.post(f"{STAGE}/{request_id}/cancel", json={"paths": ["a", "elsewhere"]})
        assert_problem(bad, 400)
        assert {file["state"] for file in (await poll(lts, request_id))["files"]} == {"STARTED"}
        assert (await lts.post(f"{STAGE}/{request_id}/cancel", json={"paths": ["/a"]})).status_code == 200
        await lts.delete("/admin/faults")
        assert [f["state"] for f in (await poll(lts, request_id))["files"]] == ["CANCELLED", "COMPLETED"]
        assert await locality(lts, "a") == "TAPE"
        assert (await lts.delete(f"{STAGE}/{request_id}")).status_code == 200
        assert_problem(await lts.get(f"{STAGE}/{request_id}"), 404)
        assert (await lts.post("/admin/evict", json={})).json() == {"evicted": ["b"]}

    async def test_odd_files_fail_one_by_one_and_duplicates_collapse(self, lts: httpx.AsyncClient):
        await put(lts, "d/f", b"1")
        await put(lts, "empty", b"")
        body = {
            "files": [
                {"path": "d/f", "targetedMetadata": {"elsewhere": {"x": 1}}, "unknown": True},
                *({"path": path} for path in ("d/f", "d", "empty", "absent", "d/../f")),
            ]
        }
        answer = await lts.post(STAGE, json=body)
        files = (await poll(lts, answer.json()["requestId"]))["files"]
        assert {file["path"]: file["state"] for file in files} == {
            "d/f": "COMPLETED",
            "d": "FAILED",
            "empty": "FAILED",
            "absent": "FAILED",
            "d/../f": "FAILED",
        }
        assert all(("error" in file) == (file["state"] == "FAILED") for file in files)
        assert len(files) == 5

    async def test_limits_and_malformed_bodies(self, lts: httpx.AsyncClient):
        assert_problem(await lts.post(STAGE, json={"files": [{"path": str(n)} for n in range(501)]}), 413)
        for body in (
            '{"files": []}',
            "{}",
            "[",
            '{"files": [{"path": "f", "diskLifetime": "1h"}]}',
            '{"files": [{"path": 1}]}',
        ):
            assert_problem(await lts.post(STAGE, content=body), 400)
        paths = [str(n) for n in range(10_001)]
        assert len((await lts.post("/api/v1/tape/archiveinfo", json={"paths": paths})).json()) == 10_000
        placeholder = await lts.post("/api/v1/tape/release/gfal2-placeholder-id", json={"paths": ["f"]})
        assert placeholder.status_code == 200
        assert_problem(await lts.post(f"{STAGE}/unknown/cancel", json={"paths": []}), 404)

    async def test_deviations_that_can_be_played(self, lts: httpx.AsyncClient, clock: Clock):
        await to_tape_only(lts, "pre/f", b"1")
        await inject(lts, kind="milliseconds")
        await inject(lts, kind="strip_prefix", prefix="pre/")
        await inject(lts, kind="recall_fails", path="pre/f")
        answer = await poll(lts, await stage(lts, "pre/f"))
        assert answer["createdAt"] == int(clock.now * 1000)
        assert (answer["files"][0]["path"], answer["files"][0]["state"]) == ("f", "FAILED")
        await lts.delete("/admin/faults")
        assert (await poll(lts, await stage(lts, "pre/f")))["files"][0]["state"] == "COMPLETED"
        await lts.post("/admin/evict", json={})
        await inject(lts, kind="status", status=429, count=2, route="/api", retry_after_s=3)
        refusals = [
            await lts.get("/.well-known/wlcg-tape-rest-api"),
            await lts.get(f"{STAGE}/x"),
            await lts.get("/api/"),
        ]
        assert [refusal.status_code for refusal in refusals] == [200, 429, 429]
        assert refusals[1].headers["Retry-After"] == "3"

    async def test_lost_files_and_tapes_out_of_reach(self, lts: httpx.AsyncClient):
        for path in ("lost", "far"):
            await to_tape_only(lts, path, b"1")
        await inject(lts, kind="lose_file", path="lost")
        assert await locality(lts, "lost") == "LOST"
        assert (await poll(lts, await stage(lts, "lost")))["files"][0]["state"] == "FAILED"
        fault = await inject(lts, kind="tape_offline", tape="ML0001L9")
        assert await locality(lts, "far") == "UNAVAILABLE"
        request_id = await stage(lts, "far")
        assert (await poll(lts, request_id))["files"][0]["state"] == "SUBMITTED"
        await lts.delete(f"/admin/faults/{fault}")
        assert (await poll(lts, request_id))["files"][0]["state"] == "COMPLETED"


class TestAdmin:
    async def test_every_byte_is_counted(self, lts: httpx.AsyncClient):
        url = await put(lts, "f", b"12345")
        await patch(lts, url, 0, b"12345")
        await lts.get("/files/f", headers={"Range": "bytes=0-1"})
        counted = (await lts.get("/admin/requests")).json()
        assert counted["paths"] == {"f": {"received": 5, "kept": 5, "sent": 2}}
        assert counted["requests"]["PATCH /uploads/{id}"] == {"count": 2, "statuses": {"204": 1, "409": 1}}
        assert counted["requests"]["GET /files/{path}"] == {"count": 1, "statuses": {"206": 1}}

    async def test_state_and_page(self, lts: httpx.AsyncClient):
        await to_tape_only(lts, "<b>", b"12345")
        await stage(lts, "<b>")
        state = (await lts.get("/admin/state")).json()
        assert state["files"][0]["locality"] == "DISK_AND_TAPE"
        assert state["files"][0]["pins"] == 1
        assert state["tapes"][0]["used_bytes"] == 5
        assert state["counters"]["migrations"] == state["counters"]["recalls"] == 1
        assert "/state" in (await lts.get("/")).text

    async def test_a_token_is_demanded_when_there_is_one(self, tmp_path: Path):
        async with serving(instant(tmp_path, token="t0ken")) as lts:
            refused = await lts.get("/admin/state")
            assert_problem(refused, 401)
            assert "Bearer" in refused.headers["WWW-Authenticate"]
            assert_problem(await lts.get("/admin/state", headers={"Authorization": "Bearer other"}), 401)
            assert (await lts.get("/admin/state", headers={"Authorization": "Bearer t0ken"})).status_code == 200
            assert (await lts.get("/admin/state", auth=("anybody", "t0ken"))).status_code == 200
            assert (await lts.get("/health")).status_code == 200

    async def test_unknown_faults_and_routes_are_refused(self, lts: httpx.AsyncClient):
        assert_problem(await lts.post("/admin/faults", json={"kind": "gremlins"}), 400)
        assert_problem(await lts.get("/nowhere"), 404)
        assert_problem(await lts.put("/uploads"), 405)


LTO9 = 18_000_000_000_000


def library(seed: int = 0, tapes: int = 3, drives: int = 1, **changes: Any) -> tuple[Library, Desk]:
    rules: dict[str, Any] = {
        "cache_bytes": 10**12,
        "migrate_bytes": 10**11,
        "migrate_age_s": 3600.0,
        "dwell_s": 600.0,
        "timing": Timing(1.0),
        "seed": seed,
        **changes,
    }
    desk = Desk()
    names = [Tape(f"T{n}", LTO9) for n in range(tapes)]
    return Library(Rules(**rules), names, drives, desk=desk, mishaps=Faults()), desk


def add(shelf: Library, path: str, size: int) -> StoredFile:
    file = StoredFile(f"id-{path}", path, size, shelf.now, shelf.now)
    shelf.add(file)
    return file


class TestLibrary:
    def history(self, seed: int) -> list[tuple[float, str]]:
        shelf, _ = library(seed, drives=2)
        files = [add(shelf, f"f{n}", 10**10) for n in range(12)]
        shelf.advance(20_000)
        for file in files:
            assert shelf.evict(file)
        wanted = files[::3]
        shelf.stage("r", [(file.path, 3600.0) for file in wanted])
        seen: list[tuple[float, str]] = []
        while (at := shelf.next_event()) is not None and at < 30_000:
            shelf.advance(at)
            seen.append((at, " ".join(f"{d.phase}:{d.file.path if d.file else ''}" for d in shelf.drives)))
        assert all(file.on_disk for file in wanted)
        return seen

    def test_the_same_seed_tells_the_same_story(self):
        assert self.history(1) == self.history(1)
        assert self.history(1) != self.history(2)

    def test_migration_waits_for_bytes_or_age(self):
        shelf, _ = library()
        file = add(shelf, "f", 4 * 10**8)
        shelf.advance(3599)
        assert shelf.locality(file) is Locality.DISK
        assert {drive.phase for drive in shelf.drives} == {"empty"}
        # Robot 13 s, load 17 s, nothing to wind on a fresh tape, 1 s of writing.
        shelf.advance(3600 + 30.9)
        assert shelf.locality(file) is Locality.DISK
        shelf.advance(3600 + 31)
        assert shelf.locality(file) is Locality.DISK_AND_TAPE
        big = [add(shelf, f"big{n}", 5 * 10**10) for n in range(2)]
        shelf.advance(shelf.now + 400)
        assert [shelf.locality(f) for f in big] == [Locality.DISK_AND_TAPE] * 2

    def test_a_recall_takes_minutes_and_one_mount_serves_a_queue(self):
        shelf, desk = library()
        files = [add(shelf, f"f{n}", 4 * 10**9) for n in range(5)]
        shelf.flush()
        shelf.advance(1_000)
        mounts = shelf.tally.mounts
        for file in files:
            shelf.evict(file)
        request = shelf.stage("r", [(file.path, 3600.0) for file in reversed(files)])
        shelf.advance(1_599)
        assert request.started_at == request.created_at
        shelf.advance(1_000 + 600 + 13 + 17 + 4)
        assert request.completed_at is None
        shelf.advance(2_500)
        assert request.completed_at is not None
        assert shelf.tally.mounts == mounts + 1
        # Read in the order of the tape, not of the request.
        assert [entry.path for entry in sorted(request.entries, key=lambda e: e.finished_at or 0)] == [
            file.path for file in files
        ]
        assert all(desk.pinned(file.id) for file in files)
        shelf.advance(6_200)
        assert not any(desk.pinned(file.id) for file in files)

    def test_the_least_recently_used_copy_goes_and_pins_stay(self):
        shelf, _ = library(cache_bytes=30)
        a, b, c = (add(shelf, name, 10) for name in "abc")
        assert not shelf.reserve(1)
        shelf.flush()
        shelf.advance(500)
        shelf.stage("r", [("a", 1e6)])
        shelf.touch(c)
        assert shelf.reserve(10)
        assert [file.on_disk for file in (a, b, c)] == [True, False, True]
        assert not shelf.reserve(11)
        assert c.on_disk

    def test_a_recall_without_room_waits_for_it(self):
        shelf, _ = library(cache_bytes=30)
        a, b = add(shelf, "a", 20), add(shelf, "b", 10)
        shelf.flush()
        shelf.advance(500)
        shelf.stage("pin", [("b", 1e6)])
        assert shelf.evict(a)
        assert shelf.reserve(15)
        request = shelf.stage("r", [("a", 1e6)])
        shelf.advance(100_000)
        assert request.completed_at is None
        shelf.unreserve(15)
        shelf.advance(100_500)
        assert a.on_disk
        assert b.on_disk

    def test_a_drive_taken_away_gives_its_work_back(self):
        shelf, _ = library(drives=2)
        file = add(shelf, "a", 4 * 10**11)
        shelf.flush()
        shelf.advance(2_000)
        shelf.evict(file)
        request = shelf.stage("r", [("a", 3600.0)])
        shelf.advance(3_000)
        (reading,) = (drive.number for drive in shelf.drives if drive.phase == "reading")
        shelf.set_drive_offline(reading, offline=True)
        assert shelf.reserved_bytes == 0
        shelf.advance(6_000)
        assert request.completed_at is not None

    def test_tapes_are_filled_one_after_another(self):
        shelf, _ = library(migrate_bytes=1.0)
        files = [add(shelf, f"f{n}", 10**10 * 7 // 10) for n in range(4)]
        for tape in shelf.tapes.values():
            tape.capacity_bytes = 15 * 10**9
        shelf.advance(3_000)
        assert [file.volume for file in files] == ["T0", "T0", "T1", "T1"]
        assert [file.position for file in files] == [0, 7 * 10**9, 0, 7 * 10**9]


@pytest.mark.parametrize("seed", range(25))
def test_a_random_life_keeps_the_books(seed: int):
    """Whatever is asked: space adds up, no tape is in two drives, pinned files stay on disk, all work ends."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    steps = itertools.count()
    shelf, desk = library(
        seed,
        drives=chance.choice([1, 2, 3]),
        cache_bytes=100,
        migrate_bytes=chance.choice([1.0, 50.0, 1e9]),
        migrate_age_s=chance.choice([0.0, 600.0]),
        dwell_s=chance.choice([0.0, 60.0]),
        timing=Timing(chance.choice([0.0, 0.01, 1.0])),
        evict_after_s=chance.choice([None, 0.0, 100.0]),
        evict_on_release=chance.random() < 0.3,
        io_error_rate=0.1,
    )
    uploads: list[int] = []

    def upload() -> None:
        size = chance.randint(0, 40)
        if shelf.reserve(size):
            uploads.append(size)

    def publish() -> None:
        if uploads:
            size = uploads.pop()
            shelf.add(StoredFile(f"id{next(steps)}", f"p{chance.randint(0, 25)}", size, shelf.now, shelf.now))
            shelf.unreserve(size)

    def recall() -> None:
        paths = [f"p{chance.randint(0, 26)}" for _ in range(chance.randint(1, 6))]
        shelf.stage(f"r{next(steps)}", [(path, chance.choice([0.0, 10.0, 1000.0])) for path in paths])

    def some_request(act: Callable[[StageRequest, set[str]], None]) -> None:
        if desk.requests:
            request = chance.choice(list(desk.requests.values()))
            act(request, {entry.path for entry in request.entries if chance.random() < 0.7})

    def forget(request: StageRequest, _: set[str]) -> None:
        shelf.forget(request)

    def some_file(act: Callable[[StoredFile], object]) -> None:
        if shelf.by_path:
            act(chance.choice(list(shelf.by_path.values())))

    acts: list[Callable[[], object]] = [
        *[upload, publish, recall] * 3,
        lambda: some_request(shelf.release),
        lambda: some_request(shelf.cancel),
        lambda: some_request(forget),
        lambda: some_file(shelf.delete),
        lambda: some_file(shelf.evict),
        shelf.flush,
        lambda: shelf.set_drive_offline(chance.randrange(len(shelf.drives)), offline=chance.random() < 0.4),
        lambda: shelf.set_tape_offline(f"T{chance.randrange(3)}", offline=chance.random() < 0.4),
    ]
    for _ in range(200):
        shelf.advance(shelf.now + chance.expovariate(1 / chance.choice([0.01, 5, 200])))
        chance.choice(acts)()
        shelf.advance(shelf.now)
        files = shelf.files.values()
        assert shelf.used_bytes == sum(file.size for file in files if file.on_disk)
        reading = sum(drive.file.size for drive in shelf.drives if drive.file and drive.phase == "reading")
        assert shelf.reserved_bytes == sum(uploads) + reading
        assert shelf.free_bytes() >= 0
        assert all(file.on_disk or file.volume for file in files)
        assert all(file.on_disk for file in files if desk.pinned(file.id))
        mounted = [drive.tape.name for drive in shelf.drives if drive.tape]
        assert len(mounted) == len(set(mounted))
    for drive in range(len(shelf.drives)):
        shelf.set_drive_offline(drive, offline=False)
    for name in shelf.tapes:
        shelf.set_tape_offline(name, offline=False)
    for size in uploads:
        shelf.unreserve(size)
    for request in desk.requests.values():
        shelf.release(request, {entry.path for entry in request.entries})
    shelf.flush()
    shelf.advance(shelf.now + 1e6)
    assert not shelf.unmigrated
    assert all(request.completed_at is not None for request in desk.requests.values())


@contextmanager
def process(state: Path, port: int, **environ: str) -> Generator[subprocess.Popen[bytes], None, None]:
    settings = {"STATE": str(state), "PORT": str(port), "TIME_FACTOR": "0", "MIGRATE_AGE_S": "inf", **environ}
    env = {**os.environ, **{f"MOCK_LTS_{name}": value for name, value in settings.items()}}
    with subprocess.Popen([sys.executable, "-m", "mock_lts"], cwd=ROOT, env=env) as running:
        try:
            eventually(lambda: call(port, "GET", "/health")[0] == 200)
            yield running
        finally:
            running.terminate()


def eventually(check: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if check():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def call(
    port: int, method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, url.removeprefix(f"http://127.0.0.1:{port}"), body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path, port: int):
    data = os.urandom(3 << 20)
    half = len(data) // 2
    with process(tmp_path, port) as running:
        for path in ("staged", "cached"):
            headers = {**STREAM, **metadata(path), "Upload-Length": "5"}
            assert call(port, "POST", "/uploads", headers, b"12345")[0] == 201
        call(port, "POST", "/admin/migrate")
        call(port, "POST", "/admin/evict", body=b'{"path": "staged"}')
        call(port, "POST", "/admin/faults", body=b'{"kind": "tape_offline", "tape": "ML0001L9"}')
        location = call(port, "POST", STAGE, body=b'{"files": [{"path": "staged"}]}')[1]["Location"]
        pinned = call(port, "POST", STAGE, body=b'{"files": [{"path": "cached", "diskLifetime": "PT1H"}]}')[1][
            "Location"
        ]
        upload = call(port, "POST", "/uploads", {**TUS, **metadata("new"), "Upload-Length": str(len(data))})[1][
            "Location"
        ]
        first = {**STREAM, "Upload-Offset": "0", **checksum(data[:half])}
        assert call(port, "PATCH", upload, first, data[:half])[0] == 204
        assert call(port, "POST", "/admin/worm", body=b'{"on": true}')[0] == 200
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(tmp_path, port):
        assert call(port, "HEAD", upload, TUS)[1]["Upload-Offset"] == str(half)
        rest = {**STREAM, "Upload-Offset": str(half), **checksum(data[half:])}
        assert call(port, "PATCH", upload, rest, data[half:])[0] == 204
        assert call(port, "GET", "/files/new")[2] == data
        # The recall was queued when the process died; faults do not outlive it, queued work does.
        assert b'"COMPLETED"' in call(port, "GET", location)[2]
        assert b'"COMPLETED"' in call(port, "GET", pinned)[2]
        assert call(port, "GET", "/files/staged")[2] == b"12345"
        assert call(port, "POST", "/admin/evict", body=b"{}")[2] == b'{"evicted":[]}'
        assert call(port, "DELETE", "/files/cached")[0] == 403


def test_connections_are_cut_and_kept(tmp_path: Path, port: int):
    data = os.urandom(5 << 20)
    with process(tmp_path, port):
        upload = call(port, "POST", "/uploads", {**TUS, **metadata("f"), "Upload-Length": str(len(data))})[1][
            "Location"
        ]
        call(port, "POST", "/admin/faults", body=b'{"kind": "cut", "direction": "in", "after_bytes": 2000000}')
        with pytest.raises((OSError, http.client.HTTPException)):
            call(port, "PATCH", upload, {**STREAM, "Upload-Offset": "0"}, data)
        offset = int(call(port, "HEAD", upload, TUS)[1]["Upload-Offset"])
        assert offset == 2_000_000
        # A refused body does not spoil the connection for the next request.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for wanted, status in ((0, 409), (offset, 204)):
            path = upload.removeprefix(f"http://127.0.0.1:{port}")
            connection.request("PATCH", path, data[offset:], {**STREAM, "Upload-Offset": str(wanted)})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()
        call(port, "POST", "/admin/faults", body=b'{"kind": "cut", "direction": "out", "after_bytes": 3000000}')
        with pytest.raises(http.client.IncompleteRead) as cut:
            call(port, "GET", "/files/f")
        assert cut.value.partial == data[:3_000_000]
        assert call(port, "GET", "/files/f")[2] == data


def test_a_folder_in_use_is_refused(tmp_path: Path, port: int):
    with process(tmp_path, port):
        env = {**os.environ, "MOCK_LTS_STATE": str(tmp_path), "MOCK_LTS_PORT": str(port)}
        second = subprocess.run([sys.executable, "-m", "mock_lts"], cwd=ROOT, env=env, capture_output=True, check=False)
        assert second.returncode == 2
        assert b"another mock_lts" in second.stderr
