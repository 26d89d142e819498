"""Every fault that the pretend tape library can be given does what its name says, until it is lifted."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from mock_lts.config import Config
from mock_lts.faults import AtOnce, Lasting
from mock_lts.problems import ConnectionCut
from tests.fakes.mock_lts import (
    STAGE,
    TUS,
    Clock,
    assert_problem,
    checksum,
    create,
    inject,
    instant,
    locality,
    metadata,
    patch,
    poll,
    put,
    serving,
    stage,
    to_tape_only,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "mock-lts.md"
KINDS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in (*get_args(Lasting), *get_args(AtOnce))}
TAPE = "ML0001L9"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lts(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path, tapes=2, drives=1), clock) as client:
        yield client


async def states(lts: httpx.AsyncClient, request_id: str) -> list[str]:
    return [file["state"] for file in (await poll(lts, request_id))["files"]]


async def slow(lts: httpx.AsyncClient) -> None:
    await lts.put("/files/f", content=b"x" * 1000)
    fault = await inject(lts, kind="slow", direction="out", bytes_per_s=10_000, delay_s=0.1)
    begun = time.monotonic()
    await lts.get("/files/f")
    assert time.monotonic() - begun > 0.19
    await lts.delete(f"/admin/faults/{fault}")
    begun = time.monotonic()
    await lts.get("/files/f")
    assert time.monotonic() - begun < 0.19


async def cut(lts: httpx.AsyncClient) -> None:
    url = await create(lts, "f", 10)
    await inject(lts, kind="cut", direction="in", after_bytes=4)
    with pytest.raises(ConnectionCut):
        await patch(lts, url, 0, b"1234567890", {"X-No": "checksum"})
    assert (await lts.head(url, headers=TUS)).headers["Upload-Offset"] == "4"
    assert (await patch(lts, url, 4, b"567890")).status_code == 204
    await inject(lts, kind="cut", direction="out", after_bytes=4)
    with pytest.raises((ConnectionCut, RuntimeError)):  # Starlette's, for an answer that had begun
        await lts.get("/files/f")
    assert (await lts.get("/files/f")).content == b"1234567890"


async def corrupt_in_flight(lts: httpx.AsyncClient) -> None:
    await inject(lts, kind="corrupt_in_flight", direction="in", offset=1)
    url = await create(lts, "f", 3)
    assert (await patch(lts, url, 0, b"abc", checksum(b"abc"))).status_code == 460
    assert (await patch(lts, url, 0, b"abc", checksum(b"abc"))).status_code == 204
    await inject(lts, kind="corrupt_in_flight", direction="out", offset=1)
    assert (await lts.get("/files/f")).content == b"a\x9dc"
    assert (await lts.get("/files/f")).content == b"abc"


async def corrupt_at_rest(lts: httpx.AsyncClient) -> None:
    await put(lts, "f", b"abc")
    await lts.post("/admin/migrate")
    await inject(lts, kind="corrupt_at_rest", path="f", offset=1, where="disk")
    assert (await lts.get("/files/f")).content == b"a\x9dc"
    await lts.post("/admin/evict", json={})
    await stage(lts, "f")
    assert (await lts.get("/files/f")).content == b"abc"
    assert_problem(await lts.post("/admin/faults", json={"kind": "corrupt_at_rest", "path": "f", "offset": 3}), 400)


async def status(lts: httpx.AsyncClient) -> None:
    await put(lts, "f", b"1")
    for code in (413, 429, 503, 599):
        await inject(lts, kind="status", status=code, path="f", retry_after_s=7)
        answer = await lts.get("/files/f")
        assert_problem(answer, code)
        assert answer.headers["Retry-After"] == "7"
    await inject(lts, kind="status", status=503, method="POST", route="/api/v1/tape/stage", count=2)
    for expected in (503, 503, 400):
        assert (await lts.post(STAGE, json={"files": []})).status_code == expected
    assert (await lts.get("/admin/faults")).json() == []


async def recall_stuck(lts: httpx.AsyncClient) -> None:
    for path in ("a", "b"):
        await to_tape_only(lts, path, b"1")
    await inject(lts, kind="recall_stuck", path="a", count=1)
    request_id = await stage(lts, "a", "b")
    assert await states(lts, request_id) == ["STARTED", "COMPLETED"]
    # The fault is used up, but the recall stays as it is until somebody asks anew, or lifts everything.
    await lts.delete(f"{STAGE}/{request_id}")
    assert await states(lts, await stage(lts, "a")) == ["COMPLETED"]


async def recall_fails(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    await inject(lts, kind="recall_fails", error="drive on fire")
    (file,) = (await poll(lts, await stage(lts, "f")))["files"]
    assert (file["state"], file["error"]) == ("FAILED", "drive on fire")
    assert await states(lts, await stage(lts, "f")) == ["COMPLETED"]


async def unavailable(lts: httpx.AsyncClient) -> None:
    for path in ("disk", "tape", "other"):
        await to_tape_only(lts, path, b"1")
    await stage(lts, "disk")
    fault = await inject(lts, kind="unavailable")
    assert [await locality(lts, path) for path in ("disk", "tape")] == ["UNAVAILABLE"] * 2
    refused = await lts.get("/files/disk")
    assert_problem(refused, 503)
    assert "Retry-After" in refused.headers
    request_id = await stage(lts, "tape")
    assert await states(lts, request_id) == ["SUBMITTED"]
    await inject(lts, kind="unavailable", path="other")
    await lts.delete(f"/admin/faults/{fault}")
    assert await states(lts, request_id) == ["COMPLETED"]
    assert await locality(lts, "other") == "UNAVAILABLE"
    assert (await lts.get("/files/disk")).status_code == 200


async def dialect(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    await inject(lts, kind="recall_stuck")
    request_id = await stage(lts, "f", "none")
    await lts.post(f"{STAGE}/{request_id}/cancel", json={"paths": ["f"]})
    assert await states(lts, request_id) == ["CANCELLED", "FAILED"]
    await inject(lts, kind="dialect", canceled=True, strict=True, more_versions=True)
    assert await states(lts, request_id) == ["CANCELED", "FAILED"]
    assert_problem(await lts.post(STAGE, json={"files": [{"path": "f"}], "extra": 1}), 400)
    endpoints = (await lts.get("/.well-known/wlcg-tape-rest-api")).json()["endpoints"]
    assert [endpoint["version"] for endpoint in endpoints] == ["v1.1", "v1"]
    await lts.delete("/admin/faults")
    await inject(lts, kind="dialect", on_disk=True)
    first, second = (await poll(lts, request_id))["files"]
    assert first == {"path": "f", "onDisk": False}
    assert (second["onDisk"], "state" in second, bool(second["error"])) == (False, False, True)
    assert (await poll(lts, await stage(lts, "f")))["files"] == [{"path": "f", "onDisk": True}]


async def worm(lts: httpx.AsyncClient) -> None:
    await put(lts, "f", b"1")
    fault = await inject(lts, kind="worm")
    assert (await lts.get("/admin/state")).json()["worm"] is True
    assert_problem(await lts.delete("/files/f"), 403)
    assert_problem(await lts.put("/files/f", content=b"2"), 409)
    await lts.delete(f"/admin/faults/{fault}")
    assert (await lts.delete("/files/f")).status_code == 204


async def strip_prefix(lts: httpx.AsyncClient) -> None:
    await put(lts, "pre/f", b"1")
    await inject(lts, kind="strip_prefix", prefix="/pre")
    assert (await poll(lts, await stage(lts, "/pre/f")))["files"][0]["path"] == "/f"
    (info,) = (await lts.post("/api/v1/tape/archiveinfo", json={"paths": ["/pre/f"]})).json()
    assert info == {"path": "/f", "locality": "DISK"}


async def milliseconds(lts: httpx.AsyncClient) -> None:
    await put(lts, "f", b"1")
    request_id = await stage(lts, "f")
    before = (await poll(lts, request_id))["createdAt"]
    await inject(lts, kind="milliseconds")
    assert (await poll(lts, request_id))["createdAt"] == before * 1000


async def cache_full(lts: httpx.AsyncClient) -> None:
    url = await create(lts, "f", 1)
    await inject(lts, kind="cache_full")
    refused = await patch(lts, url, 0, b"1")
    assert_problem(refused, 507)
    assert "Retry-After" in refused.headers
    assert_problem(await lts.post("/uploads", headers={**TUS, **metadata("g"), "Upload-Length": "1"}), 507)
    await lts.delete("/admin/faults")
    assert (await patch(lts, url, 0, b"1")).status_code == 204


async def tapes_full(lts: httpx.AsyncClient) -> None:
    await put(lts, "f", b"1")
    await inject(lts, kind="tapes_full")
    assert_problem(await lts.post("/uploads", headers={**TUS, **metadata("g"), "Upload-Length": "1"}), 507)
    quota = await lts.request("PROPFIND", "/files/", headers={"Depth": "0"})
    assert "<D:quota-available-bytes>0<" in quota.text
    await lts.post("/admin/migrate")
    assert await locality(lts, "f") == "DISK"
    await lts.delete("/admin/faults")
    assert await locality(lts, "f") == "DISK_AND_TAPE"


async def hold_migration(lts: httpx.AsyncClient) -> None:
    fault = await inject(lts, kind="hold_migration")
    await put(lts, "f", b"1")
    await lts.post("/admin/migrate")
    assert await locality(lts, "f") == "DISK"
    await lts.delete(f"/admin/faults/{fault}")
    assert await locality(lts, "f") == "DISK_AND_TAPE"


async def drive_offline(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    faults = [await inject(lts, kind="drive_offline", drive=0) for _ in range(2)]
    request_id = await stage(lts, "f")
    await lts.delete(f"/admin/faults/{faults[0]}")
    assert await states(lts, request_id) == ["SUBMITTED"]
    assert (await lts.get("/admin/state")).json()["drives"][0]["phase"] == "offline"
    await lts.delete(f"/admin/faults/{faults[1]}")
    assert await states(lts, request_id) == ["COMPLETED"]
    assert_problem(await lts.post("/admin/faults", json={"kind": "drive_offline", "drive": 1}), 404)


async def tape_offline(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    await inject(lts, kind="tape_offline", tape=TAPE)
    assert await locality(lts, "f") == "UNAVAILABLE"
    request_id = await stage(lts, "f")
    assert await states(lts, request_id) == ["SUBMITTED"]
    await lts.delete("/admin/faults")
    assert await states(lts, request_id) == ["COMPLETED"]
    assert_problem(await lts.post("/admin/faults", json={"kind": "tape_offline", "tape": "none"}), 404)


async def lose_file(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    await inject(lts, kind="lose_file", path="f")
    assert await locality(lts, "f") == "LOST"
    assert await states(lts, await stage(lts, "f")) == ["FAILED"]
    assert_problem(await lts.get("/files/f"), 503)
    assert_problem(await lts.post("/admin/faults", json={"kind": "lose_file", "path": "none"}), 404)


async def forget_requests(lts: httpx.AsyncClient) -> None:
    await to_tape_only(lts, "f", b"1")
    first, second = await stage(lts, "f"), await stage(lts, "f")
    await inject(lts, kind="forget_requests", request_id=first)
    assert_problem(await lts.get(f"{STAGE}/{first}"), 404)
    assert (await lts.post("/admin/evict", json={})).json() == {"evicted": []}
    await inject(lts, kind="forget_requests")
    assert_problem(await lts.get(f"{STAGE}/{second}"), 404)
    assert (await lts.post("/admin/evict", json={})).json() == {"evicted": ["f"]}
    answer = await lts.post("/admin/faults", json={"kind": "forget_requests", "request_id": first})
    assert_problem(answer, 404)


CHECKS: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = [
    *(slow, cut, corrupt_in_flight, corrupt_at_rest, status, recall_stuck, recall_fails, unavailable, dialect, worm),
    *(strip_prefix, milliseconds, cache_full, tapes_full, hold_migration, drive_offline, tape_offline, lose_file),
    forget_requests,
]

EXAMPLES: dict[str, dict[str, Any]] = {
    "cut": {"direction": "out"},
    "corrupt_in_flight": {"direction": "in"},
    "status": {"status": 503},
    "strip_prefix": {"prefix": "/x"},
    "drive_offline": {"drive": 0},
    "tape_offline": {"tape": TAPE},
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_fault_strikes_and_can_be_lifted(
    lts: httpx.AsyncClient, check: Callable[[httpx.AsyncClient], Awaitable[None]]
):
    await check(lts)


def test_every_fault_has_a_test_and_a_place_in_the_reference():
    assert {getattr(check, "__name__", "") for check in CHECKS} == set(KINDS)
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    for kind, model in KINDS.items():
        (row,) = (row for row in rows if row.startswith(f"| `{kind}` |"))
        fields = set(model.model_fields) - {"kind", "id", "count", "path"}
        assert all(f"`{field}`" in row for field in fields), kind


def test_the_reference_names_every_setting():
    text = DOCS.read_text()
    assert [name for name in Config.model_fields if f"`MOCK_LTS_{name.upper()}`" not in text] == []


async def test_one_way_to_set_list_and_clear(lts: httpx.AsyncClient):
    wanted = [{"kind": kind, **EXAMPLES.get(kind, {})} for kind in KINDS if issubclass(KINDS[kind], get_args(Lasting))]
    ids = [await inject(lts, **fault) for fault in wanted]
    listed = (await lts.get("/admin/faults")).json()
    assert [fault["id"] for fault in listed] == ids == list(range(1, len(ids) + 1))
    assert [fault["kind"] for fault in listed] == [fault["kind"] for fault in wanted]
    assert (await lts.get("/admin/state")).json()["faults"] == listed
    assert (await lts.delete(f"/admin/faults/{ids[3]}")).status_code == 204
    assert_problem(await lts.delete(f"/admin/faults/{ids[3]}"), 404)
    assert len((await lts.get("/admin/faults")).json()) == len(ids) - 1
    assert (await lts.delete("/admin/faults")).status_code == 204
    assert (await lts.get("/admin/faults")).json() == []
    for bad in ({"kind": "slow", "typo": 1}, {"kind": "cut"}, {"kind": "cut", "direction": "in", "count": 0}):
        assert_problem(await lts.post("/admin/faults", json=bad), 400)


async def test_faults_outlive_the_process(tmp_path: Path, clock: Clock):
    config = instant(tmp_path, tapes=2, drives=1)
    async with serving(config, clock) as lts:
        for path in ("a", "b", "c"):
            await to_tape_only(lts, path, os.urandom(10))
        for kind in KINDS:
            if issubclass(KINDS[kind], get_args(Lasting)) and kind not in ("status", "recall_fails", "unavailable"):
                await inject(lts, kind=kind, **EXAMPLES.get(kind, {}))
        await inject(lts, kind="status", status=503, count=3, route="/api/v1/tape/stage")
        for _ in range(2):
            assert (await lts.post(STAGE)).status_code == 503
        await inject(lts, kind="lose_file", path="c")
        before = (await lts.get("/admin/faults")).json()
    async with serving(config, clock) as lts:
        assert (await lts.get("/admin/faults")).json() == before
        assert before[-1]["count"] == 1
        assert (await lts.post(STAGE, json={})).status_code == 503
        assert (await lts.post(STAGE, json={})).status_code == 400
        state = (await lts.get("/admin/state")).json()
        assert (state["drives"][0]["phase"], state["tapes"][0]["offline"], state["worm"]) == ("offline", True, True)
        assert await locality(lts, "c") == "LOST"
        await lts.delete("/admin/faults")
        assert await locality(lts, "a") == "TAPE"


async def test_a_stuck_recall_is_stuck_after_a_restart_too(tmp_path: Path, clock: Clock):
    config = instant(tmp_path)
    async with serving(config, clock) as lts:
        await to_tape_only(lts, "f", b"1")
        await inject(lts, kind="recall_stuck", count=1)
        request_id = await stage(lts, "f")
    async with serving(config, clock) as lts:
        assert (await lts.get("/admin/faults")).json() == []
        assert await states(lts, request_id) == ["STARTED"]
        await lts.delete("/admin/faults")
        assert await states(lts, request_id) == ["COMPLETED"]
