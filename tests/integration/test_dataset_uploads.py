"""Whole uploads through the API on a whole stack: SciCat calls us back, the archive frees, an abort sweeps."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from domain import names
from domain.progress import UploadProgress
from domain.reservations import GIB, Counted
from domain.uploads import UploadOrder, UploadPhase, UploadState
from tests.ingestor import Ingestor
from tests.lab import DATASET, Lab, eventually, some_bytes
from workflows import queues, search_attributes

FILES = {"movie 1.tif": some_bytes(70_000), "sub/é+%20.txt": b"text"}


class Uploader(Ingestor):
    """One that looks into the stores, too."""

    lab: Lab

    async def dataset(self, files: Mapping[str, bytes]) -> str:
        """Register a dataset whose files are still to come."""
        pid = await self.lab.user.create_dataset(
            DATASET | {"datasetlifecycle": {"archivable": False, "archiveStatusMessage": "filesNotYetAvailable"}}
        )
        entries = [
            {"path": path, "size": len(content), "time": "2026-01-02T03:04:05.000Z", "perm": "-rw-r--r--"}
            for path, content in files.items()
        ]
        await self.lab.user.add_files(pid, entries, algorithm="sha256")
        return pid

    async def uploaded(self, files: Mapping[str, bytes]) -> str:
        """A dataset that is uploaded and not finalized."""
        pid = await self.dataset(files)
        answer = await self.post("requestDatasetUpload", dataset_id=pid, dataset_size_gib=0)
        assert answer.status_code == 201, answer.text
        for path, content in files.items():
            await self.upload(pid, path, content)
        return pid

    async def jobs(self, pid: str) -> list[dict[str, Any]]:
        """SciCat's jobs with the dataset."""
        jobs = (await self.lab.as_service("GET", "jobs")).json()
        return [job for job in jobs if pid in [entry["pid"] for entry in job["datasetList"]]]

    async def reserved(self, pid: str) -> int:
        """What is kept for a dataset."""
        return (await self.lab.room()).reserved.get(pid, 0)

    async def released(self, pid: str) -> None:
        """Wait until nothing is kept for a dataset."""

        async def gone() -> bool:
            return not await self.reserved(pid)

        await eventually(gone)


@pytest.fixture
async def uploader(lab: Lab) -> Uploader:
    uploader = await Uploader.alice(lab)
    uploader.lab = lab
    return uploader


async def test_a_finalized_dataset_is_archived_by_a_job_that_scicat_tells_us_of_while_we_wait_for_it(
    uploader: Uploader, lab: Lab
) -> None:
    pid = await uploader.uploaded(FILES)
    assert await uploader.reserved(pid) == GIB
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        answers = await asyncio.gather(*(uploader.finalize(pid) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [201] * 3, [answer.text for answer in answers]
        await lab.phase(pid, "waiting_tape")
        [job] = await uploader.jobs(pid)
        for path, body in (
            ("requestDatasetUpload", {"dataset_size_gib": 0}),
            ("presignedUrls", {"object_name": names.raw_key(pid, "more"), "parts": 1}),
            ("abortDatasetUpload", {}),
        ):
            refused = await uploader.post(path, dataset_id=pid, **body)
            assert (refused.status_code, refused.json()["code"]) in (
                (500, "BeingArchived"),
                (500, "AlreadyFinalized"),
            ), refused.text
        assert (await uploader.finalize(pid)).status_code == 201
        life = await lab.lifecycle(pid)
        assert (life["archiveStatusMessage"], life["archivable"]) == ("started", False), "as the archive has set it"
        assert (await lab.landed(pid)).keys() == FILES.keys()
        assert await uploader.reserved(pid) == GIB
    finally:
        await lab.lts("DELETE", "/admin/faults")
    assert (await lab.ended(job["id"]))["jobStatusMessage"] == "finishedSuccessful"
    await uploader.released(pid)
    upload = lab.temporal.get_workflow_handle(names.upload_workflow(pid), result_type=UploadProgress)
    assert (await upload.result()).outcome == "freed"
    assert await lab.landed(pid) == {}

    # Long after: a repeat is no failure and makes no job; nothing more can be uploaded.
    assert (await uploader.finalize(pid)).status_code == 201
    assert len(await uploader.jobs(pid)) == 1
    late = await uploader.post("requestDatasetUpload", dataset_id=pid, dataset_size_gib=0)
    assert (late.status_code, late.json()["code"]) == (500, "AlreadyArchived")
    assert await lab.unpacked(pid) == FILES


async def test_an_upload_that_is_not_complete_cannot_be_finalized(uploader: Uploader, lab: Lab) -> None:
    pid = await uploader.dataset(FILES)
    empty = await uploader.finalize(pid)
    assert (empty.status_code, empty.json()["code"]) == (500, "NothingUploaded")
    pid = await uploader.uploaded(FILES)
    key = names.raw_key(pid, "large.tif")
    begun = await uploader.post("presignedUrls", dataset_id=pid, object_name=key, parts=2)
    unfinished = await uploader.finalize(pid)
    assert (unfinished.status_code, unfinished.json()["code"]) == (500, "UploadUnfinished")
    assert "'large.tif'" in unfinished.json()["details"]
    assert (await lab.lifecycle(pid))["archiveStatusMessage"] == "filesNotYetAvailable"
    assert await uploader.jobs(pid) == []
    await uploader.post("abortMultipartUpload", dataset_id="", object_name=key, upload_id=begun.json()["upload_id"])
    assert (await uploader.finalize(pid, archive=False)).status_code == 201
    life = await lab.lifecycle(pid)
    assert (life["archiveStatusMessage"], life["archivable"]) == ("datasetCreated", True)
    assert await uploader.jobs(pid) == []
    kept = await uploader.post("abortDatasetUpload", dataset_id=pid)
    assert (kept.status_code, kept.json()["code"]) == (500, "AlreadyFinalized")
    assert (await lab.landed(pid)).keys() == FILES.keys()
    assert (await uploader.finalize(pid)).status_code == 201
    [job] = await uploader.jobs(pid)
    assert (await lab.ended(job["id"]))["jobStatusMessage"] == "finishedSuccessful"
    await uploader.released(pid)


async def test_an_abort_leaves_no_version_and_no_open_upload_of_the_dataset_and_touches_no_other(
    uploader: Uploader, lab: Lab
) -> None:
    pid = await uploader.uploaded(FILES)
    await uploader.upload(pid, "movie 1.tif", b"another version")
    await uploader.post("presignedUrls", dataset_id=pid, object_name=names.raw_key(pid, "large.tif"), parts=2)
    sibling = names.raw_key(f"{pid}d", "file")
    await lab.objects.put(lab.landing, sibling, b"of another dataset")
    assert len((await lab.landed(pid))["movie 1.tif"]) == 2

    for _ in range(2):
        answer = await uploader.post("abortDatasetUpload", dataset_id=pid)
        assert answer.status_code == 201, answer.text
        assert answer.json().keys() == {"dataset_id", "message"}
    assert await lab.landed(pid) == {}
    assert await lab.objects.open_uploads(lab.landing, names.raw_prefix(pid)) == []
    assert await lab.objects.exists(lab.landing, sibling)
    await uploader.released(pid)
    assert (await uploader.post("abortDatasetUpload", dataset_id="20.500/unknown")).status_code == 201


async def test_a_new_request_clears_what_nobody_has_finalized_and_a_waiting_job_keeps_it(
    uploader: Uploader, lab: Lab
) -> None:
    left = await lab.dataset(FILES)
    waiting = await lab.dataset(FILES, register={"missing.tif": 5})
    job = await lab.archive(waiting)
    await lab.ended(job)
    # As one stands there of which SciCat could not tell us: nobody works on it.
    await lab.as_service("PATCH", f"jobs/{job}", json={"jobStatusMessage": "jobSubmitted"})
    assert (await uploader.post("requestDatasetUpload", dataset_id=left, dataset_size_gib=1)).status_code == 201
    for path, body in (("requestDatasetUpload", {"dataset_size_gib": 1}), ("abortDatasetUpload", {})):
        answer = await uploader.post(path, dataset_id=waiting, **body)
        assert (answer.status_code, answer.json()["code"]) == (500, "BeingArchived"), answer.text
        assert job in answer.json()["details"]
    assert await lab.landed(left) == {}
    assert (await lab.landed(waiting)).keys() == FILES.keys()
    assert await uploader.reserved(waiting) == 0
    await uploader.post("abortDatasetUpload", dataset_id=left)


async def test_a_dataset_that_is_larger_than_the_landing_zone_is_refused(uploader: Uploader) -> None:
    answer = await uploader.post("requestDatasetUpload", dataset_id="20.500/large", dataset_size_gib=10**6)
    assert answer.status_code == 507
    assert answer.json().keys() == {"message", "dataset_id", "requested_size_gib"}
    assert await uploader.reserved("20.500/large") == 0


async def test_a_count_finds_what_nobody_was_promised_and_what_was(uploader: Uploader, lab: Lab) -> None:
    pid = await uploader.uploaded(FILES)
    stray = names.raw_key("20.500/stray", "file")

    async def others() -> int:
        await lab.temporal.get_schedule_handle("reconcile-landing-zone").trigger()
        return (await lab.room()).others_bytes

    before = -1

    async def settled() -> bool:
        nonlocal before
        last, before = before, await others()
        return last == before

    await eventually(settled, every_s=0.5)
    await lab.objects.put(lab.landing, stray, bytes(5_000))
    try:

        async def is_seen() -> bool:
            return await others() == before + 5_000

        await eventually(is_seen, every_s=0.5)
        assert await uploader.reserved(pid) == GIB
    finally:
        await lab.objects.delete_versions(
            lab.landing, [(stray, v.version_id) async for v in lab.objects.list_versions(lab.landing, stray)]
        )
    await uploader.post("abortDatasetUpload", dataset_id=pid)


async def test_an_upload_that_has_not_heard_of_the_end_of_its_archive_hears_of_it_with_the_next_count(
    uploader: Uploader, lab: Lab
) -> None:
    archived, waiting = await lab.archived(FILES), await uploader.uploaded(FILES)
    assert (await uploader.finalize(waiting, archive=False)).status_code == 201
    state = UploadState(phase=UploadPhase.FINALIZED, granted=GIB, ticket="t")
    unheard = await lab.temporal.start_workflow(
        "Upload",
        UploadOrder(pid=archived, reservation_s=3600, state=state),
        id=names.upload_workflow(archived),
        task_queue=queues.CONTROL,
        search_attributes=TypedSearchAttributes(
            [
                SearchAttributePair(search_attributes.DATASET_PID, archived),
                SearchAttributePair(search_attributes.PHASE, state.phase.value),
                SearchAttributePair(search_attributes.TOTAL_BYTES, GIB),
            ]
        ),
        result_type=UploadProgress,
    )

    async def count() -> Counted:
        return await lab.temporal.execute_workflow(
            "ReconcileLandingZone", id="count", task_queue=queues.CONTROL, result_type=Counted
        )

    # Something is left there, or may still be freed: then nobody is told.
    left = names.raw_key(archived, "left")
    await lab.objects.put(lab.landing, left, b"left")
    assert (await count()).claims[archived].found == 4
    await lab.objects.delete_versions(
        lab.landing, [(left, version.version_id) for version in (await lab.landed(archived))["left"]]
    )
    archive = await lab.temporal.start_workflow("At work", id=names.archive_workflow(archived), task_queue="nobody's")
    assert archived in (await count()).claims
    await archive.terminate()

    counted = await count()
    assert archived not in counted.claims
    assert (await asyncio.wait_for(unheard.result(), timeout=30)).outcome == "freed"
    assert counted.claims[waiting].found == sum(map(len, FILES.values()))
    assert await uploader.reserved(waiting) == GIB
    landed = await lab.landed(waiting)
    assert landed.keys() == FILES.keys()
    await uploader.released(archived)

    # Lost, but not archived: its owner may have to upload it again.
    gone = [(version.key, version.version_id) for versions in landed.values() for version in versions]
    await lab.objects.delete_versions(lab.landing, gone)
    assert (await count()).claims[waiting].found == 0
    assert await uploader.reserved(waiting) == GIB
