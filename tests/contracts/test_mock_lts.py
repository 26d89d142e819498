"""The pretend tape library keeps the promises of tus 1.0, RFC 9110 ranges, WebDAV and the WLCG Tape REST API v1."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from mock_lts.problems import ConnectionCut
from tests.fakes.mock_lts import (
    DAY_S,
    ROOT,
    STAGE,
    STREAM,
    TUS,
    Clock,
    assert_problem,
    call,
    checksum,
    create,
    inject,
    instant,
    locality,
    metadata,
    offset_of,
    patch,
    poll,
    process,
    put,
    serving,
    stage,
    to_tape_only,
)
from tests.fakes.processes import free_port


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lts(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path), clock) as client:
        yield client


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

    async def test_preconditions(self, lts: httpx.AsyncClient, clock: Clock):
        await put(lts, "f", b"12345")
        head = (await lts.head("/files/f", headers={"Range": "bytes=0-1"})).headers
        assert head["Content-Length"] == "5"  # only GET has ranges
        tag, date = head["ETag"], head["Last-Modified"]
        earlier, later = formatdate(clock.now - 10, usegmt=True), formatdate(clock.now + 10, usegmt=True)
        for headers, status in (
            ({"If-None-Match": f'"x", W/{tag}'}, 304),
            ({"If-None-Match": "*"}, 304),
            ({"If-None-Match": '"x"'}, 200),
            ({"If-Match": f'"x", {tag}'}, 200),
            ({"If-Match": "*"}, 200),
            ({"If-Match": f"W/{tag}"}, 412),
            ({"If-Modified-Since": date}, 304),
            ({"If-Modified-Since": earlier}, 200),
            ({"If-Modified-Since": "yesterday"}, 200),
            ({"If-Modified-Since": later, "If-None-Match": '"x"'}, 200),
            ({"If-Unmodified-Since": date}, 200),
            ({"If-Unmodified-Since": earlier}, 412),
            ({"If-Unmodified-Since": earlier, "If-Match": tag}, 200),
            ({"Range": "bytes=0-1", "If-Range": tag}, 206),
            ({"Range": "bytes=0-1", "If-Range": f"W/{tag}"}, 200),
            ({"Range": "bytes=0-1", "If-Range": date}, 206),
            ({"Range": "bytes=0-1", "If-Range": earlier}, 200),
            ({"Range": "bytes=9-", "If-Range": '"x"'}, 200),
            ({"Range": "BYTES=-0"}, 416),
            ({"Range": f"bytes={10**30}-"}, 416),
        ):
            answer = await lts.get("/files/f", headers=headers)
            assert answer.status_code == status, headers
            if status == 304:
                assert (answer.headers["ETag"], answer.content) == (tag, b"")
        assert_problem(await lts.delete("/files/f", headers={"If-Match": '"x"'}), 412)
        assert (await lts.delete("/files/f", headers={"If-Match": tag})).status_code == 204

    async def test_a_refused_read_recalls_only_where_that_is_wanted(self, tmp_path: Path, clock: Clock):
        for wanted in (False, True):
            config = instant(tmp_path / str(wanted), implicit_recall=wanted, evict_on_release=True)
            async with serving(config, clock) as lts:
                await put(lts, "f", b"12345")
                await lts.post("/admin/migrate")
                assert await locality(lts, "f") == "TAPE"
                assert_problem(await lts.get("/files/f"), 503)
                assert (await lts.get("/files/f")).status_code == (200 if wanted else 503)
                clock.now += 601
                assert await locality(lts, "f") == "TAPE"

    async def test_the_digest_of_a_whole_file_survives_a_restart_in_its_midst(self, tmp_path: Path, clock: Clock):
        config = instant(tmp_path, repr_digest=True)
        async with serving(config, clock) as lts:
            url = await create(lts, "f", 5)
            await patch(lts, url, 0, b"123")
        async with serving(config, clock) as lts:
            await patch(lts, url, 3, b"45", checksum(b"45", "sha1"))
            digest = base64.b64encode(hashlib.sha256(b"12345").digest()).decode()
            assert (await lts.get("/files/f")).headers["Repr-Digest"] == f"sha-256=:{digest}:"

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

    @pytest.mark.parametrize(("before", "between", "after"), [("/", "/", "/"), ("//", "//", ""), ("/", "///", "//")])
    async def test_slashes_too_many_mean_the_same(self, tmp_path: Path, before: str, between: str, after: str):
        async with serving(instant(tmp_path)) as lts:
            await lts.put("/files/d/f", content=b"1")

            async def ask(method: str, path: str, body: Any = None) -> httpx.Response:
                url = before + path.replace("/", between) + after
                return await lts.request(method, f"http://lts{url}", json=body)

            assert (await ask("GET", ".well-known/wlcg-tape-rest-api")).status_code == 200
            staged = await ask("POST", "api/v1/tape/stage", {"files": [{"path": "//d///f/"}]})
            assert staged.status_code == 201
            request = f"api/v1/tape/stage/{staged.json()['requestId']}"
            assert (await ask("GET", request)).json()["files"][0]["path"] == "//d///f/"
            assert (await ask("POST", f"{request}/cancel", {"paths": ["d//f"]})).status_code == 200
            assert (await ask("POST", request.replace("stage", "release"), {"paths": ["/d/f"]})).status_code == 200
            (info,) = (await ask("POST", "api/v1/tape/archiveinfo", {"paths": ["/d//f"]})).json()
            assert info == {"path": "/d//f", "locality": "DISK"}
            assert (await ask("DELETE", request)).status_code == 200

    async def test_finished_requests_are_forgotten_after_two_weeks(self, lts: httpx.AsyncClient, clock: Clock):
        await to_tape_only(lts, "f", b"1")
        done = await stage(lts, "f")
        await lts.post("/admin/evict", json={})
        clock.now += 13 * DAY_S
        assert (await poll(lts, done))["files"][0]["state"] == "COMPLETED"
        await lts.post("/admin/evict", json={})
        await inject(lts, kind="recall_stuck")
        stuck = await stage(lts, "f")
        clock.now += 1.1 * DAY_S
        for url in (f"{STAGE}/{done}", f"{STAGE}/{done}/cancel"):
            answer = await lts.request("POST" if url.endswith("cancel") else "GET", url, json={"paths": ["f"]})
            assert_problem(answer, 404)
        clock.now += 20 * DAY_S
        assert (await poll(lts, stuck))["files"][0]["state"] == "STARTED"

    async def test_what_is_on_disk_is_not_refused_and_folders_are(self, lts: httpx.AsyncClient):
        await put(lts, "d/fresh", b"1")
        request_id = await stage(lts, "d/fresh", "d/", "/")
        assert [f["state"] for f in (await poll(lts, request_id))["files"]] == ["COMPLETED", "FAILED", "FAILED"]
        assert [f.get("error") for f in (await poll(lts, request_id))["files"]] == [None, *["Is a directory"] * 2]

    async def test_cancel_ends_a_pin_and_a_later_release_does_nothing(self, lts: httpx.AsyncClient):
        await to_tape_only(lts, "f", b"1")
        request_id = await stage(lts, "f")
        assert (await lts.post(f"{STAGE}/{request_id}/cancel", json={"paths": ["f"]})).content == b""
        assert (await lts.get("/admin/state")).json()["pins"] == []
        released = await lts.post(f"/api/v1/tape/release/{request_id}", json={"paths": ["f", "elsewhere"]})
        assert released.status_code == 200
        assert (await poll(lts, request_id))["files"][0]["state"] == "COMPLETED"

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
        assert counted["requests"]["PATCH /uploads/{id}"] == {
            "count": 2,
            "statuses": {"204": 1, "409": 1},
            "most_at_once": 1,
        }
        assert counted["requests"]["GET /files/{path}"] == {"count": 1, "statuses": {"206": 1}, "most_at_once": 1}

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


@pytest.fixture
def port() -> int:
    return free_port()


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
        # The recall was queued when the process died. So is the fault that holds it still in force.
        assert b'"SUBMITTED"' in call(port, "GET", location)[2]
        assert call(port, "DELETE", "/admin/faults")[0] == 204
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
