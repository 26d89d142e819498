"""The same asked for many times at once, by real processes: it is done once, and everybody hears of it."""

import asyncio
import uuid
from typing import Any
from urllib.parse import quote

from temporalio.client import WorkflowExecutionStatus

from domain import names
from domain.lifecycle import JobStatus
from tests.lab import Lab, eventually, some_bytes

FILES = {f"movie{n}.tif": some_bytes(20_000, n) for n in range(3)}


def entry_of(job: dict[str, Any]) -> tuple[str, str]:
    """(status, error class) of a job's only dataset."""
    [entry] = job["jobResultObject"]["datasets"]
    return entry["status"], entry.get("class", "")


async def runs(lab: Lab, workflow_id: str) -> int:
    """How often a workflow was started."""

    async def listed() -> int:
        return len([found async for found in lab.temporal.list_workflows(f'WorkflowId="{workflow_id}"')])

    return await eventually(listed)


async def written(lab: Lab, pid: str) -> dict[str, int]:
    """Bytes of the dataset that went to the LTS, by path."""
    paths = (await lab.lts("GET", "/admin/requests")).json()["paths"]
    return {path: counted["received"] for path, counted in paths.items() if pid in path}


async def asked(lab: Lab, what: str) -> int:
    """How often the LTS was asked for something."""
    requests = (await lab.lts("GET", "/admin/requests")).json()["requests"]
    return requests.get(what, {"count": 0})["count"]


async def test_a_job_that_is_posted_twenty_times_at_once_is_one_run(lab: Lab) -> None:
    """Of an id that nobody has heard of, so that all twenty race for the start; SciCat does not know it either."""
    body = {"id": str(uuid.uuid4()), "type": "archive"}
    answers = await asyncio.gather(*(lab.api("POST", "/archiver/jobs", json=body) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert await runs(lab, names.job_workflow(body["id"])) == 1


async def test_jobs_for_one_dataset_archive_it_once(lab: Lab) -> None:
    pid = await lab.dataset(FILES)
    jobs = await asyncio.gather(*(lab.archive(pid) for _ in range(6)))
    bodies = [{"id": job, "type": "archive"} for job in jobs]
    posted = await asyncio.gather(*(lab.api("POST", "/archiver/jobs", json=body) for body in bodies * 3))
    ended = await asyncio.gather(*map(lab.ended, jobs))

    assert {answer.status_code for answer in posted} == {201}
    assert {job["jobStatusMessage"] for job in ended} == {JobStatus.SUCCESSFUL}
    # Who comes when all is done finds it done.
    assert {entry_of(job) for job in ended} <= {("archived", ""), ("already_archived", "")}
    assert ("archived", "") in {entry_of(job) for job in ended}
    on_lts = await lab.on_lts(pid)
    assert await written(lab, pid) == on_lts
    assert {block["archiveId"] for block in await lab.user.datablocks(pid)} == set(on_lts)
    assert [await runs(lab, names.job_workflow(job)) for job in jobs] == [1] * len(jobs)
    assert await lab.unpacked(pid) == FILES


async def test_retrievals_of_one_dataset_by_many_jobs_are_one_recall(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    for path in await lab.on_lts(pid):
        await lab.lts("POST", "/admin/evict", json={"path": path})
    before = await asked(lab, "POST /api/v1/tape/stage")
    await lab.lts("POST", "/admin/faults", json={"kind": "recall_stuck"})
    try:
        jobs = await asyncio.gather(*(lab.retrieve(pid) for _ in range(10)))

        async def all_wait() -> bool:
            progress = (await lab.api("GET", f"/archiver/datasets/{quote(pid)}")).json()
            return progress["phase"] == "recalling" and len(progress["jobs"]) == 10

        await eventually(all_wait)
    finally:
        await lab.lts("DELETE", "/admin/faults")
    ended = await asyncio.gather(*map(lab.ended, jobs))

    assert {entry_of(job) for job in ended} == {("retrieved", "")}
    assert {len(job["jobResultObject"]["result"]) for job in ended} == {1}
    assert await asked(lab, "POST /api/v1/tape/stage") == before + 1
    assert await runs(lab, names.retrieve_workflow(pid)) == 1


async def test_an_archive_while_the_dataset_is_retrieved_disturbs_nothing(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    for path in await lab.on_lts(pid):
        await lab.lts("POST", "/admin/evict", json={"path": path})
    await lab.lts("POST", "/admin/faults", json={"kind": "recall_stuck"})
    try:
        retrieval = await lab.retrieve(pid)
        await lab.phase(pid, "recalling")
        await lab.user.set_lifecycle(pid, {"archivable": True})
        again = await lab.ended(await lab.archive(pid))
        assert entry_of(again) == ("already_archived", "")
        assert (await lab.retrieving(pid).describe()).status is WorkflowExecutionStatus.RUNNING
    finally:
        await lab.lts("DELETE", "/admin/faults")
    assert entry_of(await lab.ended(retrieval)) == ("retrieved", "")
    life = await lab.lifecycle(pid)
    assert (life["archiveStatusMessage"], life["retrievable"]) == ("datasetOnArchiveDisk", True)
    assert await lab.unpacked(pid) == FILES


async def test_an_archive_and_a_retrieval_that_race_never_give_half_a_dataset(lab: Lab) -> None:
    """Whichever comes first: the retrieval has all of it, or says why there is nothing."""
    pids = [await lab.dataset(FILES) for _ in range(2)]
    for pid in pids:
        await lab.user.set_lifecycle(pid, {"retrievable": True})
    archives, retrievals = await asyncio.gather(
        asyncio.gather(*map(lab.archive, pids)), asyncio.gather(*map(lab.retrieve, pids))
    )
    archived = await asyncio.gather(*map(lab.ended, archives))
    retrieved = await asyncio.gather(*map(lab.ended, retrievals))

    assert {entry_of(job) for job in archived} == {("archived", "")}
    told = {entry_of(job) for job in retrieved}
    assert told <= {("dataset_error", "BeingArchived"), ("dataset_error", "NotArchived"), ("retrieved", "")}
    for pid in pids:
        assert await lab.unpacked(pid) == FILES


async def test_what_the_datablocks_do_not_cover_is_not_called_retrieved(lab: Lab) -> None:
    pid = await lab.archived({"a": b"a"})
    await lab.user.add_files(pid, [{"path": "b", "size": 1, "time": "2026-01-02T03:04:05.000Z"}], algorithm="sha256")
    job = await lab.ended(await lab.retrieve(pid))

    assert entry_of(job) == ("dataset_error", "Incomplete")
    assert "'b'" in job["jobResultObject"]["datasets"][0]["message"]
    assert job["jobResultObject"]["result"] == []
