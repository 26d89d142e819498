"""Twenty datasets in one job, and four of them, each in its own way, cannot be archived: the others do not notice."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from api.orders import job_order
from clients.state import State
from domain import names
from domain.lifecycle import JobStatus, JobType
from domain.orders import DatasetOrder
from tests.integration.test_bad_input import entry, logged, nothing_was_left, scicat_fault, standing
from tests.lab import Lab, some_bytes


def begun(lab: Lab, pid: str, **timing: float) -> AbstractAsyncContextManager[None]:
    """A dataset with a patience of its own, for the job that is submitted meanwhile."""
    order = job_order(lab.stack.settings, "", JobType.ARCHIVE)
    own = DatasetOrder(
        pid=pid,
        timing=order.timing.model_copy(update=timing),
        packing=order.packing,
        writing=order.writing,
        limits=order.limits,
    )
    return lab.begun("ArchiveDataset", names.archive_workflow(pid), own)


async def planned(lab: Lab, *pids: str) -> list[list[str]]:
    """What the only datablock of each dataset is called, and what when written anew: known from a cancelled try."""
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        job = await lab.archive(*pids)
        for pid in pids:
            await lab.phase(pid, "waiting_tape")
        for pid in pids:
            await lab.archiving(pid).cancel()
        await lab.ended(job)
    finally:
        await lab.lts("DELETE", "/admin/faults")
    state = State(lab.objects, lab.stack.settings.s3_state_bucket)
    plans = [await state.plan(pid, min((await state.index(pid)).plans)) for pid in pids]
    return [[plan.blocks[0].regenerated(again).archive_id for again in (0, 1)] for plan in plans]


async def test_sixteen_of_twenty_datasets_are_archived_and_the_others_say_why_not(lab: Lab) -> None:
    good = [await lab.dataset({"movie.tif": some_bytes(5_000, n)}) for n in range(16)]
    passing = good[15]
    missing = await lab.dataset({"movie0.tif": b"0"}, register={"movie0.tif": 1, "movie1.tif": 1})
    hostile = await lab.dataset({"movie.tif": b"0"}, entries=[entry("../../movie.tif", 1)])
    withheld = await lab.dataset({"movie.tif": b"0"})
    staying = await lab.dataset({"movie.tif": some_bytes(5_000, 16)})
    [cut, _], wrong = await planned(lab, passing, staying)

    try:
        await lab.lts("POST", "/admin/faults", json={"kind": "cut", "direction": "in", "path": cut, "count": 3})
        for path in wrong:
            fault = {"kind": "corrupt_in_flight", "direction": "out", "offset": 600, "path": path, "count": None}
            await lab.lts("POST", "/admin/faults", json=fault)
        ours = f"{withheld.rpartition('/')[2]}/origdatablocks"
        async with scicat_fault(lab, path_prefix="/api/v3/datasets/", path_contains=ours, status=403):
            pids = [missing, *good[:5], hostile, *good[5:10], staying, withheld, *good[10:]]
            async with begun(lab, staying, park_s=0.5):
                job_id = await lab.archive(*pids)
            job = await lab.ended(job_id)
    finally:
        await lab.lts("DELETE", "/admin/faults")

    bad = {
        missing: ("dataset_error", "MissingFiles", "not in the landing zone as registered: movie1.tif (absent)"),
        hostile: ("dataset_error", "UnsafePath", "the file name '../../movie.tif' has an empty or climbing segment"),
        withheld: ("dataset_error", "NoAccess", "SciCat does not let the archiver do that"),
        staying: ("failed", "Damaged", "a failure of ours, not of the files, which are all still in the landing zone"),
    }
    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    listed: list[dict[str, Any]] = job["jobResultObject"]["datasets"]
    assert [told["pid"] for told in listed] == pids
    for told in listed:
        status, error, sentence = bad.get(told["pid"], ("archived", "", ""))
        assert (told["status"], told.get("class", "")) == (status, error), told
        assert sentence in told.get("message", "")
    for pid in good:
        assert await standing(lab, pid) == ("datasetOnArchiveDisk", False, True)
        assert await lab.landed(pid) == {}
    for pid, (status, error, _) in bad.items():
        moment = "missingFilesError" if status == "dataset_error" else "scheduleArchiveJobFailed"
        assert await standing(lab, pid) == (moment, True, False)
        assert len(await lab.landed(pid)) == 1
        await nothing_was_left(lab, pid)
        assert await logged(lab, pid, error)
