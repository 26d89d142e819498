"""What the Schedules do: expiry, the sweep of uploads, and the consistency report with `scopemarchiver orphans`."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import ScheduleOverlapPolicy
from temporalio.testing import ActivityEnvironment
from typer.testing import CliRunner

from activities.consistency import CheckPage, CloseReport, ConsistencyActivities, Source
from activities.expiring import ExpirePage, ExpiringActivities, SweepUploads, SweptUploads
from cli import schedules
from cli.__main__ import app
from clients.lts.http import HttpLongTermStore
from clients.scicat import Catalogue
from clients.state import Retrieved, State
from domain import names
from domain.consistency import Inconsistency, Report
from domain.retention import MARGIN
from settings import Settings
from tests.fakes.stage import dev_server
from tests.lab import Lab, eventually, some_bytes
from workflows import queues
from workflows.upkeep import ExpireRetrieved, Expiry, SweepRetrieved

BLOCK = {
    "size": 1,
    "packedSize": 1,
    "version": "0",
    "dataFileList": [{"path": "a", "size": 1, "time": "2026-01-02T03:04:05.000Z"}],
}
"""What SciCat wants to know of a datablock besides its name."""

FILES = {"a.bin": some_bytes(3_000, 1), "b.bin": some_bytes(5_000, 2)}


def retrieval(lab: Lab) -> str:
    return lab.stack.settings.s3_retrieval_bucket


def state(lab: Lab) -> State:
    return State(lab.objects, lab.stack.settings.s3_state_bucket)


async def lying(lab: Lab, pid: str) -> list[str]:
    """Keys of the dataset in the retrieval bucket."""
    prefix = f"{names.ALL_DATASETS}{pid}/"
    return [item.key async for item in lab.objects.list_objects(retrieval(lab), prefix)]


async def recorded(lab: Lab, pid: str) -> list[Retrieved]:
    """Records of the dataset's objects in the retrieval bucket."""
    found = [await state(lab).retrieved(key) for key in await state(lab).retrieved_keys("", 1_000_000)]
    return [record for record in found if record and record.pid == pid]


async def age(lab: Lab, pid: str, over_since: timedelta) -> None:
    """Let the time of all of the dataset's objects be over since so long."""
    for record in await recorded(lab, pid):
        keep_until = datetime.now(UTC) - over_since
        await state(lab).put_retrieved(record.model_copy(update={"keep_until": keep_until}))


async def expire(lab: Lab) -> Expiry:
    return await lab.temporal.execute_workflow(
        ExpireRetrieved.run, Expiry(), id=f"expire-{uuid4()}", task_queue=queues.CONTROL
    )


async def sweep(lab: Lab, older_than_s: float = 0) -> SweptUploads:
    order = SweepUploads(older_than_s=older_than_s)
    return await lab.temporal.execute_workflow(
        SweepRetrieved.run, order, id=f"sweep-{uuid4()}", task_queue=queues.CONTROL
    )


async def retrieved(lab: Lab, *pids: str) -> dict[str, Any]:
    job = await lab.ended(await lab.retrieve(*pids))
    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    return job


async def sent_by_lts(lab: Lab, pid: str) -> int:
    """Bytes that the LTS has sent of the dataset's datablocks."""
    paths = (await lab.lts("GET", "/admin/requests")).json()["paths"]
    prefix = names.datablocks_prefix(pid)
    return sum(counted["sent"] for path, counted in paths.items() if path.startswith(prefix))


async def delivered(lab: Lab, pid: str, key: str, over_since: timedelta) -> str:
    """Put an object and its record there, as a retrieval does it."""
    keep_until = datetime.now(UTC) - over_since
    digest = hashlib.sha256(b"").hexdigest()
    record = Retrieved(pid=pid, key=key, size=1, chunk_bytes=5 * 2**20, digest=digest, keep_until=keep_until)
    await state(lab).put_retrieved(record)
    await lab.objects.put(retrieval(lab), key, b"x")
    return key


# --- expiry -----------------------------------------------------------------------------------------------------------


async def test_what_is_due_is_removed_and_nothing_else(lab: Lab) -> None:
    pid = f"20.500.11935/{uuid4()}"
    due, early = MARGIN + timedelta(minutes=1), MARGIN - timedelta(minutes=1)
    await delivered(lab, pid, names.archive_id(pid, "due"), due)
    await delivered(lab, pid, names.restored_key(pid, "due.bin"), due)
    kept = [
        await delivered(lab, pid, names.archive_id(pid, "early"), early),
        await delivered(lab, pid, names.restored_key(pid, "early.bin"), early),
    ]
    alone = names.restored_key(pid, "nobody's.bin")
    await lab.objects.put(retrieval(lab), alone, b"without a record")

    done = await expire(lab)

    assert done.removed == 2
    assert done.looked >= 4
    assert await lying(lab, pid) == sorted([*kept, alone])
    assert [record.key for record in await recorded(lab, pid)] == kept
    assert (await expire(lab)).removed == 0
    await lab.objects.delete_objects(retrieval(lab), [alone])


async def test_asking_again_brings_back_or_keeps_what_is_there(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    whole = timedelta(days=lab.stack.settings.retrieval_retention_days) - MARGIN
    await retrieved(lab, pid)
    once = await sent_by_lts(lab, pid)

    # Within its time it is kept, for its whole time from the new link on.
    await age(lab, pid, timedelta(days=-2))
    await retrieved(lab, pid)
    assert await sent_by_lts(lab, pid) == once
    [record] = await recorded(lab, pid)
    assert record.keep_until > datetime.now(UTC) + whole

    # Past its time it is not relied on: between the look at it and the link, the sweep might remove it.
    await age(lab, pid, timedelta(minutes=1))
    await retrieved(lab, pid)
    assert await sent_by_lts(lab, pid) > once
    assert (await expire(lab)).removed == 0

    await age(lab, pid, MARGIN + timedelta(minutes=1))
    assert (await expire(lab)).removed == 1
    assert await lab.unpacked(pid) == FILES


@asynccontextmanager
async def half_retrieved(lab: Lab) -> AsyncGenerator[tuple[str, str, str]]:
    """A job of two datasets: one is delivered, the other's recall is stuck: (job, delivered, stuck)."""
    delivered, stuck = [await lab.archived(FILES) for _ in range(2)]
    [path] = await lab.on_lts(stuck)
    await retrieved(lab, delivered)
    await lab.lts("POST", "/admin/evict", json={})
    await lab.lts("POST", "/admin/faults", json={"kind": "recall_stuck", "path": path})
    try:
        job_id = await lab.retrieve(delivered, stuck)

        async def hangs() -> bool:
            answer = await lab.api("GET", f"/archiver/datasets/{stuck.replace('/', '%2F')}")
            return answer.is_success and answer.json()["phase"] == "recalling"

        await eventually(hangs)
        await lab.retrieving(delivered).result()
        yield job_id, delivered, stuck
    finally:
        await lab.lts("DELETE", "/admin/faults")


class Renewed(State):
    """A record that is renewed by somebody else between the first look at it and the second."""

    key = ""
    looks = 0

    async def retrieved(self, key: str) -> Retrieved | None:
        found = await super().retrieved(key)
        if key == self.key and found:
            self.looks += 1
            if self.looks == 1:
                later = datetime.now(UTC) + timedelta(days=1)
                await self.put_retrieved(found.model_copy(update={"keep_until": later}))
        return found


async def test_the_record_is_read_again_just_before_the_object_is_removed(lab: Lab) -> None:
    pid = f"20.500.11935/{uuid4()}"
    records = Renewed(lab.objects, lab.stack.settings.s3_state_bucket)
    records.key = await delivered(lab, pid, names.archive_id(pid, "block"), timedelta(days=1))
    steps = ExpiringActivities(objects=lab.objects, retrieval_bucket=retrieval(lab), state=records, client=lab.temporal)
    # A page of its own: other tests' records lie there too.
    page = await ActivityEnvironment().run(steps.expire_page, ExpirePage(after=records.key[:-1], limit=1))
    assert (page.after, page.looked, page.removed) == (records.key, 1, 0)
    assert records.looks == 2
    assert await lying(lab, pid) == [records.key]


async def test_what_running_retrievals_own_is_left_alone(lab: Lab) -> None:
    bucket = retrieval(lab)

    async def open_ones(*keys: str) -> set[str]:
        return {upload.key for upload in await lab.objects.open_uploads(bucket, "", keys)}

    async with half_retrieved(lab) as (job_id, delivered, stuck):
        left, filled = names.restored_key(delivered, "left"), names.restored_key(stuck, "filled")
        other = "something/else"
        ids = {key: await lab.objects.create_multipart(bucket, key) for key in (left, filled, other)}
        assert await sweep(lab, older_than_s=3600) == SweptUploads()
        assert await open_ones(*ids) == {left, filled, other}
        swept = await sweep(lab)
        assert (swept.aborted, swept.kept) == (1, 2)
        assert await open_ones(*ids) == {filled, other}
        # What a job has not given out yet stays, however long its other datasets take.
        await age(lab, delivered, timedelta(days=1))
        assert (await expire(lab)).removed == 0

    job = await lab.ended(job_id)
    [link] = [entry["url"] for entry in job["jobResultObject"]["result"] if entry["datasetId"] == delivered]
    assert (await lab.http.get(link)).is_success
    [record] = await recorded(lab, delivered)
    assert record.keep_until > datetime.now(UTC) + timedelta(days=1)
    assert (await expire(lab)).removed == 0

    await lab.retrieving(stuck).result()
    assert (await sweep(lab)).aborted == 1
    await lab.objects.abort_multipart(bucket, other, ids[other])
    assert await open_ones(*ids) == set()


# --- the consistency report -------------------------------------------------------------------------------------------


async def put_on_lts(lab: Lab, path: str, content: bytes) -> None:
    """As somebody does it who is not us."""
    settings = lab.stack.settings
    store = HttpLongTermStore(endpoint=settings.lts_endpoint, token=settings.lts_token.get_secret_value())
    try:
        await store.delete(path)
        upload = await store.open_write(path, len(content))
        await asyncio.to_thread(store.write, upload, 0, memoryview(content), hashlib.sha256(content).digest())
        await store.finish(upload, path, len(content))
    finally:
        await store.aclose()


async def removed_from_lts(lab: Lab, path: str) -> None:
    await lab.lts("DELETE", f"/files/{path}")


def orphans(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Run the command beside the stack: (exit code, stdout)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("S3_ENDPOINT", raising=False)
    if not Path(".local").exists():
        Path(".local").symlink_to(lab.stack.folder)
    result = CliRunner().invoke(app, ["orphans", *arguments])
    return result.exit_code, result.stdout


async def broken(lab: Lab) -> tuple[str, set[tuple[str, str]]]:
    """A dataset of five datablocks of which each is wrong in its own way: (pid, (kind, path) of what is)."""
    many = {f"{n:03}.txt": b"x" * (n + 1) for n in range(250)}
    pid = await lab.archived(many)
    bucket = lab.stack.settings.s3_state_bucket
    phantom, lost, mismatch, unread, unknown = sorted(await lab.on_lts(pid))
    index = await state(lab).index(pid)
    [plan] = index.plans
    await removed_from_lts(lab, phantom)
    await lab.lts("POST", "/admin/evict", json={})
    await lab.lts("POST", "/admin/faults", json={"kind": "lose_file", "path": lost})
    await put_on_lts(lab, mismatch, b"of another size")
    await lab.objects.delete_objects(bucket, [names.verified_key(pid, plan, names.stem_of(unread))])
    await lab.objects.delete_objects(bucket, [names.manifest_key(pid, plan, names.stem_of(unknown))])
    orphan = names.archive_id(pid, "nobody's")
    await put_on_lts(lab, orphan, b"an orphan")
    await lab.upload(pid, {"later.bin": b"after the archive"})
    stray = names.restored_key(pid, "nobody's.bin")
    await lab.objects.put(retrieval(lab), stray, b"without a record")
    return pid, {
        ("phantom", phantom),
        ("phantom", lost),
        ("mismatch", mismatch),
        ("unverified", unread),
        ("unverified", unknown),
        ("orphan", orphan),
        ("leftover", names.raw_prefix(pid)),
        ("stray", stray),
    }


async def cleared(lab: Lab, pid: str) -> None:
    await lab.objects.delete_objects(retrieval(lab), await lying(lab, pid))
    for path in await lab.on_lts(pid):
        await removed_from_lts(lab, path)
    await lab.as_service("DELETE", f"datasets/{pid.replace('/', '%2F')}/datablocks")


async def check_page_sizes(lab: Lab, found: set[tuple[Inconsistency, str]]) -> None:
    """Pages of any size come to the same report."""
    settings = lab.stack.settings
    catalogue = Catalogue(
        endpoint=settings.scicat_endpoint,
        username=settings.scicat_user.get_secret_value(),
        password=settings.scicat_password.get_secret_value(),
    )
    store = HttpLongTermStore(endpoint=settings.lts_endpoint, token=settings.lts_token.get_secret_value())
    steps = ConsistencyActivities(
        catalogue=catalogue,
        store=store,
        objects=lab.objects,
        landing_bucket=lab.landing,
        retrieval_bucket=retrieval(lab),
        state=state(lab),
        client=lab.temporal,
    )
    run = ActivityEnvironment().run

    async def report(name: str, limit: int) -> tuple[int, Report]:
        page, source, after = 0, Source.CATALOGUE, ""
        while source:
            order = CheckPage(report=name, page=page, source=source, after=after, limit=limit)
            checked = await run(steps.check_page, order)
            page, source, after = page + 1, checked.source, checked.after
        closed = await run(steps.close_report, CloseReport(report=name, started="now"))
        again = await run(steps.close_report, CloseReport(report=name, started="now"))
        assert again == closed
        assert not await state(lab).keys(names.report_pages_prefix(name))
        assert await state(lab).get_json(closed.key) == await state(lab).get_json(names.LATEST_REPORT)
        return page, Report.model_validate(await state(lab).get_json(closed.key))

    try:
        one, at_once = await report("20260101T000000Z", 1_000_000)
        several, piecemeal = await report("20260101T000001Z", 3)
    finally:
        await catalogue.aclose()
        await store.aclose()
    assert one == 4, "a page for each source, and one that finds that SciCat has no more"
    assert several > one
    assert {(f.kind, f.path) for f in piecemeal.findings} == {(f.kind, f.path) for f in at_once.findings}
    assert piecemeal.counts == at_once.counts
    assert (piecemeal.datasets, piecemeal.files) == (at_once.datasets, at_once.files)
    assert {(f.kind, f.path) for f in piecemeal.findings} == found


async def test_each_kind_of_inconsistency_is_found_and_nothing_else(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = await lab.archived(FILES)
    await retrieved(lab, whole)
    pid, expected = await broken(lab)
    alone = f"20.500.11935/{uuid4()}"
    # More files than fit on one of the small pages.
    lonely = [names.archive_id(alone, f"of no dataset, {n}") for n in range(4)]
    for path in lonely:
        await put_on_lts(lab, path, b"an orphan")
    astray = f"{names.ALL_DATASETS}astray-{uuid4()}"
    await put_on_lts(lab, astray, b"an orphan")
    hostile = f"../../{uuid4()}.tar"
    await lab.as_service("POST", f"datasets/{pid.replace('/', '%2F')}/datablocks", json=BLOCK | {"archiveId": hostile})
    expected.add(("phantom", hostile))
    before = (await lab.user.datablocks(pid), await lab.on_lts(pid), await lab.landed(pid), await lying(lab, pid))

    code, said = await asyncio.to_thread(orphans, lab, monkeypatch, tmp_path, "--fresh", "--json")

    report = Report.model_validate_json(said)
    found = [(finding.kind.value, finding.path) for finding in report.findings if finding.pid == pid]
    assert sorted(found) == sorted(expected)
    assert code == 1
    others = [(f.kind.value, f.pid) for f in report.findings if f.path in (*lonely, astray)]
    assert sorted(others) == [("orphan", ""), *[("orphan", alone)] * 4]
    assert whole not in {finding.pid for finding in report.findings}
    assert report.datasets >= 3
    after = (await lab.user.datablocks(pid), await lab.on_lts(pid), await lab.landed(pid), await lying(lab, pid))
    assert after == before

    code, said = await asyncio.to_thread(orphans, lab, monkeypatch, tmp_path)
    assert code == 1
    lines = [line.split()[:2] for line in said.splitlines()]
    assert all([kind, path] in lines for kind, path in expected if kind != "stray")

    await check_page_sizes(lab, {(finding.kind, finding.path) for finding in report.findings})
    await cleared(lab, pid)
    for path in (*lonely, astray):
        await removed_from_lts(lab, path)


async def test_without_a_report_or_a_store_the_command_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = lab.stack.settings
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "S3_ENDPOINT": settings.s3_endpoint,
        "S3_USER": settings.s3_user.get_secret_value(),
        "S3_PASSWORD": settings.s3_password.get_secret_value(),
        # A bucket in which there is no report.
        "S3_STATE_BUCKET": lab.landing,
        "S3_LANDINGZONE_BUCKET": "another",
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    for arguments, sentence in {
        (): "no consistency report yet",
        ("--fresh",): "check TEMPORAL_ADDRESS",
    }.items():
        result = await asyncio.to_thread(CliRunner().invoke, app, ["orphans", *arguments])
        assert (result.exit_code, sentence in result.stderr) == (3, True), result.stderr
    monkeypatch.setenv("S3_ENDPOINT", "http://127.0.0.1:1")
    result = await asyncio.to_thread(CliRunner().invoke, app, ["orphans"])
    assert (result.exit_code, "check S3_ENDPOINT" in result.stderr) == (3, True), result.stderr


async def test_what_an_archive_at_work_has_written_is_no_orphan(lab: Lab) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        pid = await lab.dataset(FILES)
        job_id = await lab.archive(pid)
        await lab.phase(pid, "waiting_tape")
        assert await lab.on_lts(pid)
        closed = await lab.temporal.execute_workflow(
            "ConsistencyReport", {}, id=f"report-{uuid4()}", task_queue=queues.CONTROL
        )
    finally:
        await lab.lts("DELETE", "/admin/faults")
    report = Report.model_validate(await state(lab).get_json(closed["key"]))
    assert pid not in {finding.pid for finding in report.findings}
    assert report.at_work >= 1
    await lab.ended(job_id)


# --- the Schedules ----------------------------------------------------------------------------------------------------


async def test_set_up_twice_makes_each_schedule_once_and_follows_the_settings() -> None:
    settings = Settings()
    async with await dev_server() as server:
        client = server.client

        async def interval() -> timedelta:
            described = await client.get_schedule_handle(schedules.EXPIRE).describe()
            assert described.schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
            return described.schedule.spec.intervals[0].every

        assert len(await schedules.prepare_schedules(client, settings)) == 4
        assert await schedules.prepare_schedules(client, settings) == []
        assert await interval() == timedelta(hours=1)
        await client.get_schedule_handle(schedules.EXPIRE).pause(note="the bucket is moved")

        older = settings.model_copy(update={"abandoned_upload_hours": 3})
        assert await schedules.prepare_schedules(client, older) == [f"Changed the schedule {schedules.SWEEP}."]
        slower = older.model_copy(update={"expiry_interval_hours": 2})
        assert len(await schedules.prepare_schedules(client, slower)) == 2
        assert await schedules.prepare_schedules(client, slower) == []
        assert await interval() == timedelta(hours=2)
        described = await client.get_schedule_handle(schedules.EXPIRE).describe()
        assert (described.schedule.state.paused, described.schedule.state.note) == (True, "the bucket is moved")

        async def listed() -> bool:
            found = {schedule.id async for schedule in await client.list_schedules()}
            return found == {schedules.EXPIRE, schedules.SWEEP, schedules.RECONCILE, schedules.REPORT}

        await eventually(listed)


async def test_a_schedule_of_the_stack_runs_what_it_says(lab: Lab) -> None:
    pid = f"20.500.11935/{uuid4()}"
    await delivered(lab, pid, names.archive_id(pid, "due"), MARGIN + timedelta(minutes=1))
    await lab.temporal.get_schedule_handle(schedules.EXPIRE).trigger()

    async def gone() -> bool:
        return not await lying(lab, pid) and not await recorded(lab, pid)

    await eventually(gone)
    latest = await state(lab).get_json(names.LATEST_REPORT)
    await lab.temporal.get_schedule_handle(schedules.REPORT).trigger()

    async def newer() -> bool:
        found = await state(lab).get_json(names.LATEST_REPORT)
        return found is not None and found != latest

    await eventually(newer)
