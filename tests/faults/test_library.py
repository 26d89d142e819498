"""A tape library that is full, busy, slow, forgetful, broken: the archiver waits, asks again, or says what is gone."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest

from domain import names
from domain.orders import VerifyPolicy, Writing
from tests.faults.site import CHUNK, Site, is_read, is_write, reached
from tests.lab import eventually, some_bytes

pytestmark = pytest.mark.xdist_group("faults")

SMALL = {f"movie{n}.tif": some_bytes(50_000, n) for n in range(2)}
LARGE = {f"movie{n}.tif": some_bytes(6_000_000, n) for n in range(2)}


async def fault(site: Site, kind: str, **more: object) -> None:
    await site.lab.lts("POST", "/admin/faults", json={"kind": kind} | more)


async def lift(site: Site) -> None:
    await site.lab.lts("DELETE", "/admin/faults")


async def shown(site: Site, pid: str) -> dict[str, Any]:
    answer = await site.lab.api("GET", f"/archiver/datasets/{quote(pid)}")
    return answer.json() if answer.is_success else {"waiting_for": "", "states": {}}


async def says(site: Site, pid: str, text: str) -> dict[str, Any]:
    """Wait until this is what the dataset waits for."""

    async def so() -> dict[str, Any] | None:
        found = await shown(site, pid)
        return found if text in found["waiting_for"] else None

    return await eventually(so, within_s=20)


async def state(site: Site) -> dict[str, Any]:
    return (await site.lab.lts("GET", "/admin/state")).json()


async def pins(site: Site, pid: str) -> list[str]:
    return [pin["path"] for pin in (await state(site))["pins"] if names.datablocks_prefix(pid) in pin["path"]]


async def on_tape_only(site: Site, files: dict[str, bytes] = SMALL) -> tuple[str, list[str]]:
    """A dataset of one datablock for each file, archived and gone from the cache."""
    pid = await site.lab.dataset(files)
    await site.good(await site.archive(pid, target_files=1))
    await site.lab.lts("POST", "/admin/evict", json={})
    site.forget()
    return pid, sorted(await site.lab.on_lts(pid))


async def whole(site: Site, pid: str, files: dict[str, bytes]) -> None:
    """Exactly what was archived stands on the LTS, once; and it comes back."""
    paths = await site.lab.on_lts(pid)
    assert [block["archiveId"] for block in await site.lab.user.datablocks(pid)] == sorted(paths)
    assert await site.lab.uploads_on_lts(pid) == []
    counted = (await site.lab.lts("GET", "/admin/requests")).json()["paths"]
    assert all(counted[path]["kept"] == size for path, size in paths.items())
    assert await site.lab.unpacked(pid) == files
    assert await pins(site, pid) == []


# Writing.


@pytest.mark.fault("capacity full", "waits for space, says since when, and goes on when there is some")
async def test_full_tapes_are_waited_for(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "tapes_full")
    job = await site.archive(pid, writing=Writing(free_space_percentage=20))
    found = await says(site, pid, "space on the LTS since ")
    assert "less than the 20 % that are to stay free" in found["waiting_for"]
    assert found["phase"] == "writing"
    await lift(site)
    await site.good(job)
    await whole(site, pid, SMALL)


@pytest.mark.fault("cache full (507)", "waits for as long as it is told, or until somebody says that there is room")
async def test_a_full_cache_is_waited_for(site: Site) -> None:
    """The stand-in asks for a minute, and the first step that waits keeps to it."""
    pid = await site.lab.dataset(SMALL)
    await fault(site, "cache_full")
    job = await site.archive(pid)
    await says(site, pid, "asked to wait for 60 s")
    query = await site.lab.archiving(pid).query("progress")
    assert query["waiting_for"].startswith("space on the LTS since ")
    await lift(site)
    await site.lab.archiving(pid).signal("recall_ready")
    await site.good(job)
    await whole(site, pid, SMALL)


@pytest.mark.fault("429 with Retry-After", "the write waits for as long as it was told, then goes on")
async def test_a_busy_lts_is_left_alone_for_as_long_as_it_asks(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "status", status=429, method="POST", route="/uploads", retry_after_s=2, count=2)
    begun = time.monotonic()
    job = await site.archive(pid)
    await says(site, pid, "the LTS, which")
    await site.good(job)
    assert time.monotonic() - begun > 4
    await whole(site, pid, SMALL)


@pytest.mark.fault("507 in the midst of a write", "the upload stays as it is and is gone on with when there is room")
async def test_a_write_that_meets_a_full_lts_goes_on_where_it_stood(site: Site) -> None:
    pid = await site.lab.dataset(LARGE)
    with site.lts.hold(is_write, "in", CHUNK + 1) as hold:
        job = await site.archive(pid)
        await reached(hold)
        await fault(site, "status", status=507, method="PATCH", route="/uploads")
    await says(site, pid, "space on the LTS since ")
    assert len(await site.lab.uploads_on_lts(pid)) == 1
    await lift(site)
    await site.good(job)
    await whole(site, pid, LARGE)
    [size] = (await site.lab.on_lts(pid)).values()
    assert site.lts_written() <= size + 8 * CHUNK, "what was taken is not sent again"


@pytest.mark.fault("413: never room for a file so large", "is retried and parked like a failure, not waited for")
async def test_what_will_never_fit_is_not_waited_for(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "status", status=413, method="POST", route="/uploads", count=None)
    job = await site.archive(pid, retry_s=1.0)
    found = await site.lab.phase(pid, "parked")
    assert found["waiting_for"].startswith("TooLarge: ")
    await lift(site)
    await site.lab.archiving(pid).signal("retry")
    await site.good(job)
    await whole(site, pid, SMALL)


@pytest.mark.fault("503 without Retry-After", "retried")
async def test_an_lts_that_is_away_for_a_while_is_asked_again(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "status", status=503, count=3)
    await site.good(await site.archive(pid))
    await fault(site, "status", status=503, count=2, method="GET", route="/files")
    await whole(site, pid, SMALL)


@pytest.mark.fault("connection cut after n bytes", "the write or read goes on from the last whole unit")
async def test_a_cut_connection_costs_little(site: Site) -> None:
    pid = await site.lab.dataset(LARGE)
    await fault(site, "cut", direction="in", after_bytes=CHUNK // 2)
    await fault(site, "cut", direction="out", after_bytes=CHUNK // 2)
    await site.good(await site.archive(pid))
    await fault(site, "cut", direction="out", after_bytes=CHUNK // 2)
    await whole(site, pid, LARGE)


@pytest.mark.fault("slow", "takes longer, and shows how far it is")
async def test_a_slow_lts_shows_how_far_it_is(site: Site) -> None:
    pid = await site.lab.dataset(LARGE)
    await fault(site, "slow", direction="in", bytes_per_s=3e6)
    job = await site.archive(pid)

    async def under_way() -> bool:
        found = await shown(site, pid)
        return found["states"].get("writing") == 1 and 0 < found["bytes_done"] < found["bytes_total"]

    await eventually(under_way)
    await lift(site)
    await site.good(job)
    await whole(site, pid, LARGE)


@pytest.mark.fault("a datablock vanishes before it is on tape", "written anew under another name, once")
async def test_what_vanishes_before_it_is_on_tape_is_written_anew(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "hold_migration")
    job = await site.archive(pid)
    await site.lab.phase(pid, "waiting_tape")
    [first] = await site.lab.on_lts(pid)
    await site.lab.lts("DELETE", f"/files/{first}")

    async def again() -> list[str]:
        return list(await site.lab.on_lts(pid))

    [second] = await eventually(again)
    assert second != first
    await lift(site)
    await site.good(job)
    await whole(site, pid, SMALL)


@pytest.mark.fault("nothing is migrated", "waits for tape, and nothing is registered or freed before")
async def test_nothing_is_registered_before_it_is_on_tape(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await fault(site, "hold_migration")
    job = await site.archive(pid)
    found = await site.lab.phase(pid, "waiting_tape")
    assert found["safety"] == {"written": 1, "verified": 1, "on_tape": 0, "safe": 0}
    assert await site.lab.user.datablocks(pid) == []
    assert len(await site.lab.landed(pid)) == len(SMALL)
    await lift(site)
    await site.good(job)
    await whole(site, pid, SMALL)


@pytest.mark.fault("write-once (WORM)", "an undo leaves a listed orphan; the landing zone stays whole")
async def test_what_a_write_once_store_keeps_is_listed(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    await site.lab.lts("POST", "/admin/worm", json={"on": True})
    try:
        await fault(site, "hold_migration")
        job = await site.archive(pid)
        await site.lab.phase(pid, "waiting_tape")
        await site.lab.temporal.get_workflow_handle(names.job_workflow(job)).cancel()
        await site.lab.ended(job)
        [path] = await site.lab.on_lts(pid)

        async def listed() -> bool:
            bucket = site.lab.stack.settings.s3_state_bucket
            return await site.lab.objects.exists(bucket, names.orphan_key(path))

        await eventually(listed)
        assert len(await site.lab.landed(pid)) == len(SMALL)
    finally:
        await site.lab.lts("POST", "/admin/worm", json={"on": False})


@pytest.mark.fault("the site wants proof from tape", "tape-read-back: out of the cache, recalled, compared, released")
async def test_a_datablock_is_read_back_from_tape(site: Site) -> None:
    pid = await site.lab.dataset(SMALL)
    job = await site.archive(pid, writing=Writing(verify=VerifyPolicy.TAPE_READ_BACK))
    found = await says(site, pid, "read back from tape as soon as it has left the cache")
    assert found["safety"] == {"written": 1, "verified": 0, "on_tape": 1, "safe": 0}
    assert site.lts_read() == 0
    before = (await state(site))["counters"]["recalls"]
    await site.lab.lts("POST", "/admin/evict", json={})
    await site.good(job)
    assert (await state(site))["counters"]["recalls"] == before + 1
    [size] = (await site.lab.on_lts(pid)).values()
    assert site.lts_read() == size
    await whole(site, pid, SMALL)


# Recalling.


async def requests_of(site: Site, pid: str) -> list[str]:
    """The recalls that the retrieval has asked for, from its history."""
    history = await site.lab.retrieving(pid).fetch_history()
    results = [
        json.loads(payload.data)
        for event in history.events
        for payload in event.activity_task_completed_event_attributes.result.payloads
        if payload.data
    ]
    return [result["recall_id"] for result in results if isinstance(result, dict) and "recall_id" in result]


@pytest.mark.fault("recall stuck in STARTED", "the others are delivered meanwhile; it comes when the LTS brings it")
async def test_a_stuck_recall_holds_nobody_up(site: Site) -> None:
    pid, [stuck, _] = await on_tape_only(site)
    await fault(site, "recall_stuck", path=stuck)
    job = await site.retrieve(pid)

    async def one_is_there() -> bool:
        return (await shown(site, pid))["states"] == {"recalling": 1, "delivered": 1}

    await eventually(one_is_there)
    assert await pins(site, pid) == []
    await lift(site)
    await site.good(job)
    assert await pins(site, pid) == []


@pytest.mark.fault("recall that never comes", "partial at the deadline, with the archiveId; its request is withdrawn")
async def test_a_recall_that_never_comes_is_named_at_the_deadline(site: Site) -> None:
    pid, [stuck, other] = await on_tape_only(site)
    await fault(site, "recall_stuck", path=stuck)
    before = (await state(site))["stage_requests"]["known"]
    job = await site.lab.ended(await site.retrieve(pid, recall_deadline_s=3))
    assert job["jobStatusMessage"] == "finishedWithDatasetErrors"
    [told] = job["jobResultObject"]["datasets"]
    assert told["status"] == "partial"
    assert f"{stuck}: not recalled before the deadline" in told["message"]
    assert [entry["archiveId"] for entry in job["jobResultObject"]["result"]] == [other]
    assert await pins(site, pid) == []
    assert (await state(site))["stage_requests"]["known"] == before


@pytest.mark.fault("recall that fails once", "asked for again")
async def test_a_recall_that_fails_once_is_asked_for_again(site: Site) -> None:
    pid, [broken, _] = await on_tape_only(site)
    await fault(site, "recall_fails", path=broken)
    await site.good(await site.retrieve(pid))
    assert len(await requests_of(site, pid)) == 2
    assert await pins(site, pid) == []


@pytest.mark.fault("lost file", "asked for three times, then named; the others are delivered")
async def test_a_lost_file_is_named_and_the_others_come(site: Site) -> None:
    pid, [lost, other] = await on_tape_only(site)
    await fault(site, "lose_file", path=lost)
    job = await site.lab.ended(await site.retrieve(pid))
    [told] = job["jobResultObject"]["datasets"]
    assert told["status"] == "partial"
    assert f"{lost}: The file is lost" in told["message"]
    assert [entry["archiveId"] for entry in job["jobResultObject"]["result"]] == [other]
    assert len(await requests_of(site, pid)) == 3
    assert await pins(site, pid) == []


@pytest.mark.fault("tape offline (UNAVAILABLE)", "waited for")
async def test_a_tape_that_is_away_is_waited_for(site: Site) -> None:
    pid, paths = await on_tape_only(site)
    tapes = {file["tape"] for file in (await state(site))["files"] if file["path"] in paths}
    for tape in tapes:
        await fault(site, "tape_offline", tape=tape)
    job = await site.retrieve(pid)
    await says(site, pid, "2 datablocks are still on tape")
    await lift(site)
    await site.good(job)
    assert await pins(site, pid) == []


@pytest.mark.fault("drive offline", "one: the other does the work; all: waited for")
async def test_drives_that_are_away_are_waited_for(site: Site) -> None:
    pid, _ = await on_tape_only(site)
    for drive in (0, 1):
        await fault(site, "drive_offline", drive=drive)
    job = await site.retrieve(pid)
    await says(site, pid, "2 datablocks are still on tape")
    await lift(site)
    await fault(site, "drive_offline", drive=0)
    await site.good(job)
    assert await pins(site, pid) == []


@pytest.mark.fault("the LTS forgets a recall (404)", "asked for again")
async def test_a_forgotten_recall_is_asked_for_again(site: Site) -> None:
    pid, paths = await on_tape_only(site)
    for path in paths:
        await fault(site, "recall_stuck", path=path)
    job = await site.retrieve(pid)

    async def asked() -> list[str]:
        return await requests_of(site, pid)

    [first] = await eventually(asked)
    await site.lab.lts("DELETE", f"/api/v1/tape/stage/{first}")
    await lift(site)
    await site.good(job)
    assert len(await requests_of(site, pid)) == 2
    assert await pins(site, pid) == []


@pytest.mark.fault("milliseconds for seconds", "times are not believed")
@pytest.mark.fault("stripped path prefix", "paths are recognised by their end")
async def test_odd_answers_of_the_tape_api_are_understood(site: Site) -> None:
    await fault(site, "milliseconds")
    await fault(site, "strip_prefix", prefix="/openem-network")
    pid, _ = await on_tape_only(site)
    await site.good(await site.retrieve(pid))
    assert await pins(site, pid) == []


@pytest.mark.fault("429 on a recall", "asked again, not before it was told")
async def test_a_recall_that_is_refused_for_now_is_asked_for_again(site: Site) -> None:
    pid, _ = await on_tape_only(site)
    await fault(site, "status", status=429, method="POST", route="/api/v1/tape/stage", retry_after_s=2)
    begun = time.monotonic()
    await site.good(await site.retrieve(pid))
    assert time.monotonic() - begun > 2
    assert len(await requests_of(site, pid)) == 1


@asynccontextmanager
async def crowded(site: Site) -> AsyncGenerator[None]:
    """While this lasts everything is pushed out of the cache that nobody pins."""
    yield
    await site.lab.lts("POST", "/admin/evict", json={})


@pytest.mark.long
@pytest.mark.fault("the cache is wanted by others while a copy runs", "pins are renewed; nothing is recalled twice")
async def test_a_pin_outlasts_the_copy(site: Site) -> None:
    pid, [path] = await on_tape_only(site, {"movie.tif": some_bytes(9_000_000)})
    recalls = (await state(site))["counters"]["recalls"]
    with site.lts.hold(is_read, "out", 1_000_000) as hold:
        job = await site.retrieve(pid, pin_lifetime_s=2)
        await reached(hold)
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            async with crowded(site):
                assert await pins(site, pid), f"after {time.monotonic() - begun:.1f} s"
    await site.good(job)
    assert (await state(site))["counters"]["recalls"] == recalls + 1
    assert len(await requests_of(site, pid)) >= 4
    assert await pins(site, pid) == []
    assert path in await site.lab.on_lts(pid)


@pytest.mark.fault("a job is cancelled while it waits for a recall", "its request is deleted on the LTS")
async def test_a_cancelled_job_cancels_its_recall(site: Site) -> None:
    pid, paths = await on_tape_only(site)
    await fault(site, "recall_stuck", path=paths[0])
    before = (await state(site))["stage_requests"]
    job = await site.lab.retrieve(pid)

    async def one_is_there() -> bool:
        return (await shown(site, pid))["states"] == {"recalling": 1, "delivered": 1}

    await eventually(one_is_there)
    assert (await state(site))["stage_requests"]["open"] == before["open"] + 1
    await site.lab.temporal.get_workflow_handle(names.job_workflow(job)).cancel()
    await site.lab.ended(job)

    async def withdrawn() -> bool:
        return (await state(site))["stage_requests"] == before

    await eventually(withdrawn)
    assert await pins(site, pid) == []
