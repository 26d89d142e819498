"""Uploads and their admission, on real servers with pretended steps: who gets room, who keeps it, what is swept."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.contrib.pydantic import pydantic_data_converter

from api import uploads
from cli.ports import Ports
from cli.stack import Stack
from domain import names
from domain.errors import (
    AlreadyArchived,
    AlreadyFinalized,
    BeingArchived,
    CatalogueUnavailable,
    NothingUploaded,
)
from domain.reservations import GIB, TB, Claim
from domain.uploads import FinalizedUpload, FinalizeUpload, UploadEnd, UploadPhase
from tests.fakes.stage import dev_server, namespace, skipping
from tests.fakes.uploads import front
from tests.lab import eventually
from workflows import queues
from workflows.upkeep import ReconcileLandingZone

WITH_JOB = FinalizeUpload(create_job=True, owner_group="g", owner_user="u", contact_email="u@example.org")
ROOM_FOR_20 = {"s3_total_landing_space_tb": 20 * GIB / TB, "free_space_factor": 1}
"""Of 1 GiB each."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    """A server that was told nothing: it takes 10 updates at a time for each workflow."""
    async with namespace() as client:
        yield client


# Admission


async def test_of_fifty_at_once_exactly_as_many_get_room_as_there_is(client: Client) -> None:
    pids = [f"20.500/{n}" for n in range(50)]
    async with front(client, *pids, **ROOM_FOR_20) as here:
        api = here.api()
        answers = await asyncio.gather(*(api.request(pid, 0) for pid in pids))
        assert answers.count(True) == 20
        room = await here.room()
        assert (room.taken_bytes, room.datasets) == (20 * GIB, 20)
        assert room.reserved == {pid: GIB for pid, granted in zip(pids, answers, strict=True) if granted}

        # Who has room keeps it, who has none gets none; whoever gives some back makes room for one.
        again = await asyncio.gather(*(api.request(pid, 0) for pid in pids))
        assert again == answers
        first = pids[answers.index(True)]
        await api.abort(first)
        refused = [pid for pid, granted in zip(pids, answers, strict=True) if not granted]

        async def released() -> bool:
            return (await here.room()).datasets == 19

        await eventually(released)
        late = await asyncio.gather(*(api.request(pid, 0) for pid in refused))
        assert late.count(True) == 1


async def test_processes_that_share_what_the_server_takes_at_a_time_have_no_errors(
    client: Client,
) -> None:
    pids = [f"20.500/{n}" for n in range(60)]
    async with front(client, **ROOM_FOR_20) as here:
        assert await here.api().request(pids[0], 0)
        processes = [here.api() for _ in range(8)]
        answers = await asyncio.gather(*(processes[n % 8].request(pid, 0) for n, pid in enumerate(pids)))
        assert answers.count(True) == 20
        assert (await here.room()).taken_bytes == 20 * GIB


async def test_admission_goes_on_in_a_fresh_run_and_loses_no_request() -> None:
    pids = [f"20.500/{n}" for n in range(40)]
    async with (
        await dev_server({"limit.historyCount.suggestContinueAsNew": "30"}) as server,
        front(server.client, **ROOM_FOR_20) as here,
    ):
        api = here.api()
        answers = await asyncio.gather(*(api.request(pid, 0) for pid in pids))
        assert answers.count(True) == 20
        assert (await here.room()).datasets == 20
        described = await here.admission.describe()
        assert described.raw_description.workflow_execution_info.first_run_id != described.run_id


async def test_an_update_of_the_same_id_is_the_same_one(client: Client) -> None:
    async with front(client, "a") as here:
        api = here.api()
        assert await api.request("a", 3)
        before = await here.room()
        ticket = (await here.admission.fetch_history()).events
        [accepted] = [e for e in ticket if e.HasField("workflow_execution_update_accepted_event_attributes")]
        told = accepted.workflow_execution_update_accepted_event_attributes.accepted_request
        again = here.admission.get_update_handle(told.meta.update_id)
        assert (await again.result())["granted"] is True
        assert await here.room() == before


async def test_promises_outlive_worker_and_server(tmp_path: Any) -> None:
    stack = Stack(tmp_path, Ports.free(), {}, services=("temporal",))
    await stack.start()
    try:
        client = await Client.connect(stack.settings.temporal_address, data_converter=pydantic_data_converter)
        async with front(client, "a", "b", **ROOM_FOR_20) as here:
            assert await here.api().request("a", 11)
            await stack.kill("temporal")
            await stack.restart("temporal")

            async def refused() -> bool:
                return not await here.api().request("b", 11)

            await eventually(refused)
        async with here.worker():
            assert await here.api().request("b", 0)
    finally:
        await stack.stop()


async def test_what_is_counted_later_takes_room_and_what_nobody_claims_does_not(client: Client) -> None:
    async with front(client, "a", "b", **ROOM_FOR_20) as here:
        api = here.api()
        assert await api.request("a", 0)
        here.yard.lying = {"a": 15 * GIB, "stray": 4 * GIB}
        here.yard.claims = {"a": Claim(granted=GIB, found=15 * GIB)}
        await client.execute_workflow(ReconcileLandingZone.run, id="reconcile-landing-zone", task_queue=queues.CONTROL)
        assert not await api.request("b", 1)
        assert await api.request("b", 0)
        room = await here.room()
        assert (room.taken_bytes, room.others_bytes) == (20 * GIB, 4 * GIB)


async def test_an_admission_that_was_lost_comes_back_with_what_was_promised(client: Client) -> None:
    async with front(client, "a", "b", **ROOM_FOR_20) as here:
        api = here.api()
        assert await api.request("a", 9)
        await here.admission.terminate()
        here.yard.lying = {"stray": 9 * GIB}
        here.yard.claims = {"a": Claim(granted=10 * GIB)}
        here.yard.gates["count_landing_zone"] = asyncio.Event()
        asked = asyncio.create_task(api.request("b", 1))

        async def waits() -> bool:
            described = await here.admission.describe()
            return described.status is WorkflowExecutionStatus.RUNNING and not (await here.room()).counted

        await eventually(waits)
        assert not asked.done()
        here.yard.gates["count_landing_zone"].set()
        assert not await asked
        assert await api.request("b", 0)
        assert (await here.room()).taken_bytes == 20 * GIB


# One upload, from the request to its end


async def test_a_finalized_upload_is_kept_until_it_is_freed(client: Client) -> None:
    async with front(client, "a", "b") as here:
        api = here.api()
        assert await api.request("a", 1)
        await api.admit_urls("a")
        here.yard.lying["a"] = GIB
        assert await api.finalize("a", WITH_JOB) == FinalizedUpload(job_id="job-of-a")
        assert here.jobs.started == ["job-of-a"]
        # Once more, as a client does that has not heard the answer: no second job, and SciCat is not told again.
        assert await api.finalize("a", WITH_JOB) == FinalizedUpload(job_id="job-of-a")
        assert here.yard.archivable == ["a"]

        for closed in (api.request("a", 1), api.admit_urls("a"), api.abort("a")):
            with pytest.raises(AlreadyFinalized):
                await closed
        assert here.yard.lying == {"a": GIB}
        standing = await here.standing("a")
        assert (standing.phase, standing.expires) == (UploadPhase.FINALIZED, "")
        assert (await here.room()).reserved == {"a": 2 * GIB}

        await here.upload("a").signal("freed")
        assert (await here.upload("a").result()).outcome is UploadEnd.FREED
        assert (await here.room()).datasets == 0
        for closed in (api.request("a", 1), api.admit_urls("a")):
            with pytest.raises(AlreadyArchived):
                await closed
        here.yard.archived.add("b")
        assert (await api.finalize("b", WITH_JOB)).archived
        with pytest.raises(AlreadyArchived):
            await api.abort("b")


async def test_an_operator_may_let_the_owner_mend_what_was_finalized(client: Client) -> None:
    async with front(client, "a") as here:
        api = here.api()
        assert await api.request("a", 1)
        here.yard.lying["a"] = GIB
        await api.finalize("a", FinalizeUpload(create_job=False))
        await here.upload("a").signal("reopen")

        async def reopened() -> bool:
            return (await here.standing("a")).phase is UploadPhase.UPLOADING

        await eventually(reopened)
        assert await api.request("a", 2)
        await api.admit_urls("a")
        assert here.yard.lying == {"a": GIB}, "a renewal throws nothing away"
        assert (await here.standing("a")).phase is UploadPhase.UPLOADING
        await api.abort("a")


async def test_a_finalize_that_fails_says_why_and_can_be_repeated(client: Client) -> None:
    async with front(client, "a", "unknown") as here:
        api = here.api()
        with pytest.raises(NothingUploaded):
            await api.finalize("unknown", WITH_JOB)
        assert (await here.upload("unknown").result()).outcome is UploadEnd.REFUSED

        assert await api.request("a", 0)
        with pytest.raises(NothingUploaded):
            await api.finalize("a", WITH_JOB)
        assert (await here.standing("a")).phase is UploadPhase.UPLOADING
        here.yard.lying["a"] = 1
        here.yard.failures["submit_archive"] = [
            CatalogueUnavailable(f"SciCat answered 502, time {n}") for n in (1, 2, 3)
        ]
        with pytest.raises(CatalogueUnavailable, match="502, time 3"):
            await api.finalize("a", WITH_JOB)
        # SciCat calls it archivable by now: it is kept.
        assert (await here.standing("a")).phase is UploadPhase.FINALIZED
        assert (await api.finalize("a", WITH_JOB)).job_id == "job-of-a"


async def test_a_new_upload_begins_with_nothing_and_one_that_goes_on_with_what_there_is(
    client: Client,
) -> None:
    async with front(client, "a", "b", "c") as here:
        api = here.api()
        here.yard.lying = {"a": 5, "b": 5, "c": 5}
        here.yard.archiving.add("b")
        here.yard.archived.add("c")
        assert await api.request("a", 0)
        here.yard.lying["a"] = 7
        assert await api.request("a", 1)
        with pytest.raises(BeingArchived):
            await api.request("b", 0)
        with pytest.raises(AlreadyArchived):
            await api.request("c", 0)
        assert here.yard.lying == {"a": 7, "b": 5, "c": 5}
        assert (await here.room()).reserved == {"a": 2 * GIB}
        assert (await here.upload("b").result()).outcome is UploadEnd.REFUSED


async def test_an_abort_gives_room_back_at_once_and_may_be_repeated(client: Client) -> None:
    async with front(client, "a", "b") as here:
        api = here.api()
        await api.abort("unknown")
        assert await api.request("a", 0)
        here.yard.lying["a"] = 7
        here.yard.archiving.add("a")
        with pytest.raises(BeingArchived):
            await api.abort("a")
        assert (await here.room()).datasets == 1
        here.yard.archiving.clear()
        await api.abort("a")
        assert here.yard.lying == {}
        assert (await here.room()).datasets == 0
        # No URL was given out, so nothing can come any more.
        assert (await here.upload("a").result()).outcome is UploadEnd.ABORTED
        await api.abort("a")
        assert await api.request("a", 0)


async def test_urls_are_given_to_whoever_asks_and_noted_once_in_a_while(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with front(client, "a") as here:
        api = here.api()
        for _ in range(30):
            await api.admit_urls("a")
        events = (await here.upload("a").fetch_history()).events
        assert sum(e.HasField("workflow_execution_signaled_event_attributes") for e in events) == 1
        standing = await here.standing("a")
        assert (standing.reserved_bytes, bool(standing.urls_until)) == (0, True)
        monkeypatch.setattr(uploads, "_NOTED_EVERY_S", 0)
        await here.api().admit_urls("a")
        assert (await here.standing("a")).urls_until <= standing.urls_until
        await here.upload("a").terminate()


async def test_an_upload_goes_on_in_fresh_runs_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_NOTED_EVERY_S", 0)
    async with (
        await dev_server({"limit.historyCount.suggestContinueAsNew": "30"}) as server,
        front(server.client, "a") as here,
    ):
        api = here.api()
        assert await api.request("a", 0)
        first = (await here.upload("a").describe()).run_id
        for _ in range(15):
            await api.admit_urls("a")

        async def fresh() -> bool:
            return (await here.upload("a").describe()).run_id != first

        await eventually(fresh)
        standing = await here.standing("a")
        assert (standing.reserved_bytes, bool(standing.urls_until)) == (GIB, True)
        second = (await here.upload("a").describe()).run_id
        await api.abort("a")
        assert (await here.room()).datasets == 0
        for _ in range(15):
            await api.admit_urls("a")

        async def fresh_again() -> bool:
            return (await here.upload("a").describe()).run_id != second

        await eventually(fresh_again)
        assert (await here.standing("a")).phase is UploadPhase.ABORTED
        here.yard.lying["a"] = 7
        assert await api.request("a", 1)
        assert here.yard.lying == {}
        here.yard.lying["a"] = 7
        await api.finalize("a", FinalizeUpload(create_job=False))
        await here.upload("a").signal("freed")
        assert (await here.upload("a").result()).outcome is UploadEnd.FREED
        assert (await here.room()).datasets == 0


async def test_no_url_while_the_dataset_is_being_archived(client: Client) -> None:
    async with front(client, "a") as here:
        api = here.api()
        assert await api.request("a", 0)
        # Only that it runs matters, so anything will do.
        archive = await client.start_workflow("Anything", id=names.archive_workflow("a"), task_queue="nobody's")
        for closed in (api.admit_urls("a"), api.request("a", 0)):
            with pytest.raises(BeingArchived):
                await closed
        await archive.terminate()
        await api.admit_urls("a")


async def test_time_that_is_up_while_an_upload_is_being_finalized_drops_nothing(client: Client) -> None:
    async with front(client, "a", upload_reservation_hours=0.5 / 3600) as here:
        api = here.api()
        here.yard.gates["close_upload"] = asyncio.Event()
        assert await api.request("a", 0)
        here.yard.lying["a"] = 7
        finalizing = asyncio.create_task(api.finalize("a", FinalizeUpload(create_job=False)))

        async def is_up() -> bool:
            events = (await here.upload("a").fetch_history()).events
            return any(event.HasField("timer_fired_event_attributes") for event in events)

        await eventually(is_up)
        here.yard.gates["close_upload"].set()
        await finalizing
        assert (await here.standing("a")).phase is UploadPhase.FINALIZED
        assert here.yard.lying == {"a": 7}


# What time does: a server that skips it


async def test_an_upload_that_nobody_goes_on_with_is_dropped() -> None:
    async with skipping() as server, front(server.client, "a") as here:
        api = here.api()
        assert await api.request("a", 0)
        here.yard.lying["a"] = 7
        await server.sleep(timedelta(hours=23))
        assert here.yard.lying == {"a": 7}
        assert await api.request("a", 0)
        await server.sleep(timedelta(hours=23))
        assert (await here.standing("a")).reserved_bytes == GIB
        await server.sleep(timedelta(hours=2))
        assert (await here.upload("a").result()).outcome is UploadEnd.EXPIRED
        assert here.yard.lying == {}
        assert (await here.room()).datasets == 0


async def test_what_comes_in_after_an_abort_is_swept_when_the_time_is_up() -> None:
    async with skipping() as server, front(server.client, "a") as here:
        api = here.api()
        assert await api.request("a", 0)
        await api.admit_urls("a")
        await api.abort("a")
        here.yard.lying["a"] = 7
        await server.sleep(timedelta(hours=23))
        standing = await here.standing("a")
        assert (standing.phase, standing.reserved_bytes, here.yard.lying) == (UploadPhase.ABORTED, 0, {"a": 7})
        assert (await here.room()).datasets == 0
        await server.sleep(timedelta(hours=2))
        assert (await here.upload("a").result()).outcome is UploadEnd.ABORTED
        assert here.yard.lying == {}


async def test_time_drops_nothing_of_what_is_finalized_or_about_to_be_archived_or_was_never_promised_anything() -> None:
    async with skipping() as server, front(server.client, "a", "b", "c", "d") as here:
        api = here.api()
        for pid in "abd":
            assert await api.request(pid, 0)
        await api.admit_urls("c")
        here.yard.lying = dict.fromkeys("abcd", 7)
        await api.finalize("a", FinalizeUpload(create_job=False))
        here.yard.archiving.add("b")
        here.yard.archived.add("d")
        await server.sleep(timedelta(hours=25))
        assert here.yard.lying == dict.fromkeys("abcd", 7)
        # The archive of `d` was not heard of; that of `b` is looked for again when its time is up again.
        assert (await here.upload("d").result()).outcome is UploadEnd.FREED
        assert (await here.upload("c").result()).outcome is UploadEnd.EXPIRED
        assert "BeingArchived" in (await here.standing("b")).note
        assert (await here.room()).reserved.keys() == {"a", "b"}
        here.yard.archiving.clear()
        await server.sleep(timedelta(hours=25))
        assert here.yard.lying == dict.fromkeys("acd", 7)
        described = await here.upload("a").describe()
        assert described.status is WorkflowExecutionStatus.RUNNING
