"""The archive of a dataset, from the user's press of the button to the free landing zone."""

import asyncio
import io
import tarfile

import pytest

from domain import names
from tests.lab import Lab, eventually, some_bytes

FILES = {
    "movies/a movie.tif": some_bytes(7_000_000, 1),
    "movies/b+c%20é.tif": some_bytes(7_000_000, 2),
    "gain.mrc": some_bytes(3_000_000, 3),
    "empty.txt": b"",
    "session.xml": b"<session/>",
}


async def test_a_dataset_is_archived_and_only_then_freed(lab: Lab) -> None:
    pid = await lab.dataset(FILES)
    job = await lab.ended(await lab.archive(pid))

    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    assert [(d["pid"], d["status"]) for d in job["jobResultObject"]["datasets"]] == [(pid, "archived")]
    assert await lab.landed(pid) == {}
    life = await lab.lifecycle(pid)
    assert (life["archiveStatusMessage"], life["archivable"], life["retrievable"], life["isOnCentralDisk"]) == (
        "datasetOnArchiveDisk",
        False,
        True,
        False,
    )
    blocks = await lab.user.datablocks(pid)
    assert {block["archiveId"]: block["packedSize"] for block in blocks} == await lab.on_lts(pid)
    assert len(blocks) >= 2
    listed = {entry["path"]: entry["size"] for block in blocks for entry in block["dataFileList"]}
    assert listed == {path: len(content) for path, content in FILES.items()}


async def test_what_is_on_the_lts_unpacks_to_the_same_bytes(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    found: dict[str, bytes] = {}
    job = await lab.ended(await lab.retrieve(pid))
    assert job["jobStatusMessage"] == "finishedSuccessful"
    for entry in job["jobResultObject"]["result"]:
        answer = await lab.http.get(entry["url"])
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            for member in tar:
                top, _, rest = member.name.partition("/")
                assert top == entry["name"].removesuffix(".tar")
                if rest.startswith("data/"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found[rest.removeprefix("data/")] = content.read()
    assert found == FILES


async def test_a_second_job_finds_it_archived_and_touches_nothing(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    before = (await lab.user.datablocks(pid), await lab.on_lts(pid))
    await lab.user.set_lifecycle(pid, {"archivable": True})

    job = await lab.ended(await lab.archive(pid))

    assert job["jobStatusMessage"] == "finishedSuccessful"
    assert [d["status"] for d in job["jobResultObject"]["datasets"]] == ["already_archived"]
    assert (await lab.user.datablocks(pid), await lab.on_lts(pid)) == before


async def test_an_overwrite_between_verify_and_free_survives(lab: Lab) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        pid = await lab.dataset(FILES)
        job_id = await lab.archive(pid)
        await lab.phase(pid, "waiting_tape")
        await lab.upload(pid, {"gain.mrc": b"a later measurement"})
    finally:
        await lab.lts("DELETE", "/admin/faults")
    job = await lab.ended(job_id)

    assert job["jobStatusMessage"] == "finishedSuccessful"
    left = await lab.landed(pid)
    assert list(left) == ["gain.mrc"]
    assert await lab.objects.get(lab.landing, names.raw_key(pid, "gain.mrc")) == b"a later measurement"
    [outcome] = job["jobResultObject"]["datasets"]
    assert outcome["leftovers"] == ["gain.mrc"]


async def test_the_same_job_posted_twice_is_one_run(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    job_id = await lab.archive(pid)
    body = {"id": job_id, "type": "archive"}

    answers = await asyncio.gather(*(lab.api("POST", "/archiver/jobs", json=body) for _ in range(5)))
    await lab.ended(job_id)
    answers.append(await lab.api("POST", "/archiver/jobs/", json=body))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.long
async def test_a_killed_worker_loses_at_most_a_chunk(lab: Lab) -> None:
    """kill -9 in the middle of a copy, a new worker, identical bytes."""
    files = {f"part{n}.bin": some_bytes(11_000_000, n) for n in range(4)}
    await lab.lts("POST", "/admin/faults", json={"kind": "slow", "direction": "in", "bytes_per_s": 8e6})
    try:
        pid = await lab.dataset(files)
        job_id = await lab.archive(pid)

        async def some_received() -> bool:
            paths = (await lab.lts("GET", "/admin/requests")).json()["paths"]
            prefix = names.datablocks_prefix(pid)
            return any(counted["received"] > 6_000_000 for path, counted in paths.items() if path.startswith(prefix))

        await eventually(some_received)
        await lab.stack.kill("worker-archival")
    finally:
        await lab.lts("DELETE", "/admin/faults")
    await lab.stack.restart("worker-archival")
    job = await lab.ended(job_id, within_s=90)

    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    retrieved = await lab.ended(await lab.retrieve(pid))
    found: dict[str, bytes] = {}
    for entry in retrieved["jobResultObject"]["result"]:
        answer = await lab.http.get(entry["url"])
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            for member in tar:
                if "/data/" in member.name:
                    content = tar.extractfile(member)
                    assert content is not None
                    found[member.name.partition("/data/")[2]] = content.read()
    assert found == files
    assert await lab.landed(pid) == {}
