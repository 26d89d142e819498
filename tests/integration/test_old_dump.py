"""A workflow out of an old copy of Temporal's database: it does not know what has been done since."""

from typing import Any
from urllib.parse import quote

from temporalio.client import WorkflowHandle

from activities.catalogue import Looked, Standing
from activities.landing_zone import PlannedDataset
from clients.state import State
from domain import names
from domain.lifecycle import FoundLifecycle
from domain.orders import Timing
from tests.lab import Lab, some_bytes
from workflows import queues
from workflows.carried import ArchiveOrder, ArchiveState

FILES = {"a.tif": some_bytes(7_000_000, 1), "b.tif": some_bytes(8_000_000, 2)}


async def from_old_copy(lab: Lab, pid: str) -> WorkflowHandle[Any, Any]:
    """The archive of a dataset as it was when it had just been planned, held at once."""
    state = State(lab.objects, lab.stack.settings.s3_state_bucket)
    [digest] = (await state.index(pid)).plans
    plan = await state.plan(pid, digest)
    order = ArchiveOrder(
        pid=pid,
        timing=Timing(second_look_s=0.2),
        state=ArchiveState(
            looked=Looked(owner_group="group1", found=FoundLifecycle(), standing=Standing.NONE),
            planned=PlannedDataset(plan_digest=digest, blocks=len(plan.blocks), files=len(FILES), payload_bytes=1),
        ),
    )
    return await lab.temporal.start_workflow(
        "ArchiveDataset", order, id=names.archive_workflow(pid), task_queue=queues.CONTROL, start_signal="pause"
    )


async def registered(lab: Lab, pid: str) -> list[str]:
    """Ids of the dataset's datablocks in SciCat."""
    answer = await lab.as_service("GET", f"datasets/{quote(pid, safe='')}/datablocks")
    return [block["id"] for block in answer.json()]


async def test_what_is_archived_is_not_taken_back_by_a_workflow_that_does_not_know_it(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    before = await lab.on_lts(pid)
    handle = await from_old_copy(lab, pid)
    await lab.phase(pid, "paused")

    await handle.cancel()

    assert (await handle.result())["status"] == "archived"
    assert await lab.on_lts(pid) == before
    life = await lab.lifecycle(pid)
    assert (life["archiveStatusMessage"], life["retrievable"]) == ("datasetOnArchiveDisk", True)
    await lab.user.set_lifecycle(pid, {"archivable": True})
    again = await lab.ended(await lab.archive(pid))
    assert [dataset["status"] for dataset in again["jobResultObject"]["datasets"]] == ["already_archived"]
    assert await lab.unpacked(pid) == FILES


async def test_nor_is_it_when_a_registration_has_been_lost_since(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    before = await lab.on_lts(pid)
    lost, *kept = await registered(lab, pid)
    assert kept
    await lab.as_service("DELETE", f"datasets/{quote(pid, safe='')}/datablocks/{lost}")
    handle = await from_old_copy(lab, pid)
    await lab.phase(pid, "paused")

    await handle.cancel()

    assert (await handle.result())["status"] == "cancelled"
    assert await lab.on_lts(pid) == before
    assert await registered(lab, pid) == kept


async def test_it_goes_on_to_the_end_that_it_has_come_to_before(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    before = await lab.on_lts(pid)
    handle = await from_old_copy(lab, pid)
    await handle.signal("resume")

    assert (await handle.result())["status"] == "archived"
    assert await lab.on_lts(pid) == before
    assert await lab.unpacked(pid) == FILES


async def test_a_mark_of_an_archive_that_somebody_has_deleted_protects_nothing(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    for path in await lab.on_lts(pid):
        await lab.lts("DELETE", f"/files/{path}")
    await lab.as_service("DELETE", f"datasets/{quote(pid, safe='')}/datablocks")
    await lab.user.set_lifecycle(pid, {"archivable": True, "archiveStatusMessage": "datasetCreated"})
    await lab.upload(pid, FILES)
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        job = await lab.archive(pid)
        await lab.phase(pid, "waiting_tape")
        await lab.archiving(pid).cancel()
        assert (await lab.ended(job))["jobStatusMessage"] == "finishedUnsuccessful"
    finally:
        await lab.lts("DELETE", "/admin/faults")
    assert await lab.on_lts(pid) == {}
    assert set(await lab.landed(pid)) == set(FILES)
