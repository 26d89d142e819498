"""What users get wrong, and what is withheld from us: told apart, told clearly, and nothing is lost by it."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from domain import names
from domain.lifecycle import JobStatus
from tests.lab import DATASET, Lab, eventually, some_bytes, troubles

Versions = dict[str, list[tuple[str, int]]]
Job = dict[str, Any]

# Six datablocks of a file each; four are written at a time.
SIX_BLOCKS = {f"movie{n}.tif": some_bytes(7_000_000, n) for n in range(6)}


def entry(path: str, size: int, **more: str) -> dict[str, Any]:
    return {"path": path, "size": size, "time": "2026-01-02T03:04:05.000Z", "perm": "-rw-r--r--"} | more


def of_dataset(job: Job, pid: str) -> dict[str, Any]:
    [outcome] = [d for d in job["jobResultObject"]["datasets"] if d["pid"] == pid]
    return outcome


async def versions(lab: Lab, pid: str) -> Versions:
    return {path: [(v.version_id, v.size) for v in found] for path, found in (await lab.landed(pid)).items()}


async def standing(lab: Lab, pid: str) -> tuple[str, bool, bool]:
    life = await lab.lifecycle(pid)
    return life["archiveStatusMessage"], life["archivable"], life["retrievable"]


async def nothing_was_left(lab: Lab, pid: str) -> None:
    """No datablock in SciCat, none on the LTS, not even half of one."""
    assert await lab.user.datablocks(pid) == []
    assert await lab.on_lts(pid) == {}
    assert await lab.uploads_on_lts(pid) == []


async def logged(lab: Lab, *words: str, process: str = "worker-control") -> bool:
    """Whether one line of the log has all these words; it may come a moment after the fact."""

    async def there() -> bool | None:
        return any(all(word in line for word in words) for line in lab.stack.log(process).read_text().splitlines())

    return bool(await eventually(there, within_s=5))


@asynccontextmanager
async def slow_lts(lab: Lab, bytes_per_s: float = 8e6) -> AsyncGenerator[None]:
    await lab.lts("POST", "/admin/faults", json={"kind": "slow", "direction": "in", "bytes_per_s": bytes_per_s})
    try:
        yield
    finally:
        await lab.lts("DELETE", "/admin/faults")


@asynccontextmanager
async def scicat_fault(lab: Lab, **fault: Any) -> AsyncGenerator[None]:
    await lab.scicat("POST", "/mock/faults", json={"times": 10_000} | fault)
    try:
        yield
    finally:
        await lab.scicat("POST", "/mock/faults", json={})


# Mistakes that the plan finds


@dataclass(frozen=True)
class Mistake:
    """A dataset that cannot be archived as it is."""

    error: str
    sentence: tuple[str, ...]
    """What the reason must name."""
    registered: list[dict[str, Any]]
    landed: Mapping[str, bytes] = field(default_factory=lambda: {"a": b"aaaa"})


MISTAKES = {
    "nothing registered": Mistake("NothingRegistered", ("regular file",), []),
    "only folders registered": Mistake(
        "NothingRegistered", ("regular file",), [entry("sub", 4096, perm="drwxr-xr-x"), entry("/data/session/", 0)]
    ),
    "a file missing": Mistake("MissingFiles", ("1 of 2", "b (absent)"), [entry("a", 4), entry("b", 1)]),
    "nothing uploaded": Mistake("MissingFiles", ("1 of 1", "a (absent)"), [entry("a", 4)], {}),
    "another size": Mistake("MissingFiles", ("a (4 bytes instead of 5)",), [entry("a", 5)]),
    "many missing": Mistake(
        "MissingFiles",
        ("30 of 31", "f19 (absent) and 10 more"),
        [entry("a", 4), *(entry(f"f{n:02}", 1) for n in range(30))],
    ),
    "a path that climbs": Mistake("UnsafePath", ("'../a'", "climbing"), [entry("../a", 4)]),
    "a path that climbs out of the source folder": Mistake(
        "UnsafePath", ("climbing",), [entry("/data/session/../../etc/passwd", 4)]
    ),
    "an absolute path elsewhere": Mistake("UnsafePath", ("'/etc/passwd'", "absolute"), [entry("/etc/passwd", 4)]),
    "control characters": Mistake("UnsafePath", (r"'a\nb\x1b[31m'", "control"), [entry("a\nb\x1b[31m", 4)]),
    "a NUL": Mistake("UnsafePath", (r"'a\x00b'", "control"), [entry("a\0b", 4)]),
    "a segment too long": Mistake("UnsafePath", ("255 bytes",), [entry("n" * 256, 4)]),
    "an object key with control characters": Mistake(
        "UnsafePath", (r"'b\x1b[31m'", "control"), [entry("a", 4)], {"a": b"aaaa", "b\x1b[31m": b"b"}
    ),
    "one path with two sizes": Mistake(
        "ConflictingEntries", ("'a'", "4 bytes and 5 bytes"), [entry("a", 4), entry("a", 5)]
    ),
    "one name in two spellings of Unicode": Mistake(
        "ConflictingEntries",
        ("compose Unicode",),
        [entry("\u00e9", 4), entry("e\u0301", 4)],
        {"\u00e9": b"aaaa", "e\u0301": b"aaaa"},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_named_and_touches_nothing(lab: Lab, mistake: Mistake) -> None:
    pid = await lab.dataset(mistake.landed, entries=mistake.registered or None, register={})
    before = await versions(lab, pid)
    job_id = await lab.archive(pid)
    job = await lab.ended(job_id)

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    outcome = of_dataset(job, pid)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", mistake.error)
    for words in mistake.sentence:
        assert words in outcome["message"]
    assert await standing(lab, pid) == ("missingFilesError", True, False)
    assert (await lab.lifecycle(pid))["archiveReturnMessage"] == {"message": f"{mistake.error}: {outcome['message']}"}
    assert await versions(lab, pid) == before
    await nothing_was_left(lab, pid)
    [shown] = (await lab.api("GET", f"/archiver/jobs/{job_id}")).json()["datasets"]
    assert (shown["pid"], shown["error_class"], shown["message"]) == (pid, mistake.error, outcome["message"])
    assert await logged(lab, pid, mistake.error)


async def test_a_mended_dataset_is_archived_by_the_next_job(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"aaaa"}, register={"a": 4, "b": 1})
    await lab.user.set_lifecycle(pid, {"retrievable": True})
    await lab.ended(await lab.archive(pid))
    assert await standing(lab, pid) == ("missingFilesError", True, True), "retrievable stays as it was read"

    await lab.upload(pid, {"b": b"b"})
    job = await lab.ended(await lab.archive(pid))

    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL
    assert await standing(lab, pid) == ("datasetOnArchiveDisk", False, True)
    assert await lab.unpacked(pid) == {"a": b"aaaa", "b": b"b"}


async def test_an_unfinished_multipart_upload_holds_the_archive_back(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    key = names.raw_key(pid, "big.tif")
    upload_id = await lab.objects.create_multipart(lab.landing, key)
    job = await lab.ended(await lab.archive(pid))
    await lab.objects.abort_multipart(lab.landing, key, upload_id)

    outcome = of_dataset(job, pid)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "UploadUnfinished")
    assert "big.tif" in outcome["message"]
    assert list(await lab.landed(pid)) == ["a"]
    assert (await lab.ended(await lab.archive(pid)))["jobStatusMessage"] == JobStatus.SUCCESSFUL


async def test_objects_that_nobody_registered_are_packed_and_named(lab: Lab) -> None:
    files = {"a": b"a", "left behind.log": b"log"}
    pid = await lab.dataset(files, register={"a": 1})
    job = await lab.ended(await lab.archive(pid))

    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL
    assert of_dataset(job, pid)["unlisted"] == ["left behind.log"]
    assert await lab.landed(pid) == {}
    assert await lab.unpacked(pid) == files


async def test_hostile_names_that_are_legal_are_archived_as_they_are(lab: Lab) -> None:
    files = {
        path: path.encode()
        for path in (
            "-rf",
            "$(touch owned)",
            "`id`; rm *",
            "\"quoted\" and 'quoted'",
            "..hidden/...",
            "~root",
            "%2e%2e/%00",
            "a?b#c&d=e",
            "<b>&amp;",
            " leading and trailing ",
        )
    }
    pid = await lab.dataset(files)
    job = await lab.ended(await lab.archive(pid))
    assert job["jobStatusMessage"] == JobStatus.SUCCESSFUL, job["jobResultObject"]
    assert await lab.unpacked(pid) == files


@pytest.mark.parametrize(
    ("hostile", "word"), [("..", "climbing"), ("x/raw_files/y", "raw_files"), ("a\\b", "backslashes")]
)
async def test_a_hostile_dataset_id_starts_nothing(lab: Lab, hostile: str, word: str) -> None:
    """A pid is part of keys and paths; such a one would climb, or lie inside another dataset."""
    named = DATASET | {"pid": f"20.500.11935/{uuid.uuid4()}/{hostile}"}
    pid = (await lab.as_service("POST", "datasets", json=named)).json()["pid"]
    job = await lab.ended(await lab.archive(pid))

    assert (job["jobStatusMessage"], of_dataset(job, pid)["class"]) == (JobStatus.WITH_DATASET_ERRORS, "UnsafePath")
    assert word in of_dataset(job, pid)["message"]
    with pytest.raises(RPCError, match="not found"):
        await lab.archiving(pid).describe()
    asked = await lab.api("GET", f"/archiver/datasets/{quote(pid, safe='')}")
    assert (asked.status_code, word in asked.json()["detail"][0]["msg"]) == (422, True)


# Jobs of several datasets


async def test_bad_datasets_do_not_sink_the_good_ones_of_their_job(lab: Lab) -> None:
    good = [await lab.dataset({"a": b"good", "b": bytes([n])}) for n in range(2)]
    absent = await lab.dataset({"a": b"a"}, register={"a": 1, "b": 1})
    climbing = await lab.dataset({"a": b"a"}, entries=[entry("../a", 1)])
    empty = await lab.dataset({}, register={})
    job_id = await lab.archive(absent, good[0], climbing, empty, good[1])
    job = await lab.ended(job_id)

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    assert job["jobResultObject"]["result"] == []
    outcomes = {
        d["pid"]: (d["status"], d.get("class"), bool(d.get("message"))) for d in job["jobResultObject"]["datasets"]
    }
    assert outcomes == {
        absent: ("dataset_error", "MissingFiles", True),
        good[0]: ("archived", None, False),
        climbing: ("dataset_error", "UnsafePath", True),
        empty: ("dataset_error", "NothingRegistered", True),
        good[1]: ("archived", None, False),
    }
    for pid in good:
        assert await lab.landed(pid) == {}
        assert await standing(lab, pid) == ("datasetOnArchiveDisk", False, True)
    progress = (await lab.api("GET", f"/archiver/jobs/{job_id}")).json()
    assert (progress["phase"], progress["status"]) == ("done", JobStatus.WITH_DATASET_ERRORS)
    assert progress["outcomes"] == {"archived": 2, "dataset_error": 3}
    assert {d["pid"]: d["error_class"] for d in progress["datasets"]}[empty] == "NothingRegistered"


async def test_a_job_that_names_single_files_archives_none_of_them(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a", "b": b"b"})
    body: Job = {
        "type": "archive",
        "jobParams": {},
        "datasetList": [{"pid": pid, "files": ["a"]}],
        "emailJobInitiator": "alice@example.org",
    }
    posted = await lab.as_service("POST", "jobs", json=body)
    job = await lab.ended(posted.json()["id"])

    assert (job["jobStatusMessage"], of_dataset(job, pid)["class"]) == (JobStatus.WITH_DATASET_ERRORS, "PartialArchive")
    assert await standing(lab, pid) == ("datasetCreated", True, False)
    assert sorted(await lab.landed(pid)) == ["a", "b"]
    assert await logged(lab, job["id"], pid, "PartialArchive")


# What vanishes


async def done(lab: Lab, job_id: str) -> dict[str, Any]:
    """Wait until our API says that the job is done: SciCat takes no word about some."""

    async def there() -> dict[str, Any] | None:
        progress = (await lab.api("GET", f"/archiver/jobs/{job_id}")).json()
        return progress if progress["phase"] == "done" else None

    return await eventually(there)


@pytest.mark.parametrize("kind", ["archive", "retrieve"])
async def test_a_dataset_deleted_after_the_post_does_not_sink_its_job(lab: Lab, kind: str) -> None:
    """SciCat takes no more word about such a job; our API and the log tell how it ended."""
    good, gone = await lab.dataset({"a": b"a"}), await lab.dataset({"a": b"a"})
    outcome, before = "archived", ["a"]
    if kind == "retrieve":
        await lab.ended(await lab.archive(good, gone))
        outcome, before = "retrieved", []
    async with scicat_fault(lab, path_prefix="/api/v3/jobs/", method="GET", status=503):
        job_id = await lab.user.create_job(kind, [good, gone])
        await lab.as_service("DELETE", f"datasets/{quote(gone, safe='')}/datablocks")
        await lab.as_service("DELETE", f"datasets/{quote(gone, safe='')}")

    progress = await done(lab, job_id)
    told = {d["pid"]: (d["status"], d["error_class"]) for d in progress["datasets"]}
    assert told == {good: (outcome, ""), gone: ("dataset_error", "UnknownDataset")}
    assert "Unable to get a dataset" in progress["note"]
    assert await logged(lab, gone, "UnknownDataset")
    assert await logged(lab, job_id, "Unable to get a dataset")
    ended = await lab.temporal.get_workflow_handle(names.job_workflow(job_id)).describe()
    assert ended.status is WorkflowExecutionStatus.COMPLETED
    kept = [await lab.objects.get(lab.stack.settings.s3_state_bucket, names.outcome_key(job_id, n)) for n in range(2)]
    assert [json.loads(record or b"{}")["status"] for record in kept] == [outcome, "dataset_error"]
    assert await standing(lab, good) == ("datasetOnArchiveDisk", False, True)
    assert await lab.landed(good) == {}
    assert list(await lab.landed(gone)) == before


async def test_a_dataset_deleted_while_it_is_written_leaves_no_orphan(lab: Lab) -> None:
    pid = await lab.dataset(SIX_BLOCKS)
    before = await versions(lab, pid)
    async with slow_lts(lab):
        await lab.archive(pid)
        await lab.phase(pid, "writing")
        await lab.as_service("DELETE", f"datasets/{quote(pid, safe='')}")
    ended = await lab.phase(pid, "done")

    assert (ended["outcome"], ended["error_class"]) == ("dataset_error", "UnknownDataset")
    assert await versions(lab, pid) == before
    assert await lab.on_lts(pid) == {}
    assert await lab.uploads_on_lts(pid) == []
    listed = await lab.as_service("GET", "datablocks", params={"filter": f'{{"where":{{"datasetId":"{pid}"}}}}'})
    assert listed.json() == []


async def test_an_unknown_job_is_told_by_the_api_and_the_log(lab: Lab) -> None:
    job_id = str(uuid.uuid4())
    answer = await lab.api("POST", "/archiver/jobs", json={"id": job_id, "type": "archive"})
    assert answer.status_code == 201
    progress = await done(lab, job_id)
    assert progress["status"] == JobStatus.UNSUCCESSFUL
    assert "does not know the job" in progress["message"]
    assert "Invalid job id." in progress["note"]
    assert await logged(lab, job_id, "UnknownJob")


async def test_files_changed_after_planning_undo_the_archive(lab: Lab) -> None:
    """The planned version is what counts: gone for good is the user's error, hidden by a delete marker is none."""
    changed, hidden = await lab.dataset(SIX_BLOCKS), await lab.dataset(SIX_BLOCKS)
    before = await lab.landed(changed)
    async with slow_lts(lab):
        job_id = await lab.archive(changed, hidden)
        await asyncio.gather(lab.phase(changed, "writing"), lab.phase(hidden, "writing"))
        last = before["movie5.tif"][0]
        await lab.objects.delete_versions(lab.landing, [(last.key, last.version_id)])
        await lab.objects.delete_objects(lab.landing, [names.raw_key(hidden, "movie5.tif")])
    job = await lab.ended(job_id)

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    outcome = of_dataset(job, changed)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "ChangedWhileArchiving")
    assert "'movie5.tif'" in outcome["message"]
    assert await standing(lab, changed) == ("missingFilesError", True, False)
    del before["movie5.tif"]
    assert await lab.landed(changed) == before
    await nothing_was_left(lab, changed)
    assert of_dataset(job, hidden)["status"] == "archived"
    assert await lab.landed(hidden) == {}


# Digests that the user announced


async def test_announced_digests_are_checked_on_the_way(lab: Lab) -> None:
    right, wrong = await lab.dataset(SIX_BLOCKS, register={}), await lab.dataset(SIX_BLOCKS, register={})
    for pid in (right, wrong):
        entries = [
            entry(path, len(content), chk=hashlib.md5(content, usedforsecurity=False).hexdigest())
            for path, content in SIX_BLOCKS.items()
        ]
        if pid == wrong:
            entries[3]["chk"] = "0" * 32
        await lab.user.add_files(pid, entries, algorithm="md5")
    before = await versions(lab, wrong)
    job = await lab.ended(await lab.archive(right, wrong))

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    assert of_dataset(job, right)["status"] == "archived"
    outcome = of_dataset(job, wrong)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "DigestMismatch")
    assert "movie3.tif" in outcome["message"]
    assert await standing(lab, wrong) == ("missingFilesError", True, False)
    assert await versions(lab, wrong) == before
    await nothing_was_left(lab, wrong)


# What stands already


async def test_datablocks_of_others_are_left_alone(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    foreign = {
        "archiveId": f"/old/archive/{pid}.tar",
        "size": 1,
        "packedSize": 1,
        "version": "1.0",
        "dataFileList": [entry("a", 1)],
    }
    await lab.as_service("POST", f"datasets/{quote(pid, safe='')}/datablocks", json=foreign)
    blocks, life = await lab.user.datablocks(pid), await lab.lifecycle(pid)
    job = await lab.ended(await lab.archive(pid))

    outcome = of_dataset(job, pid)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "ForeignDatablocks")
    assert foreign["archiveId"] in outcome["message"]
    assert await lab.user.datablocks(pid) == blocks
    assert await lab.lifecycle(pid) == life
    assert list(await lab.landed(pid)) == ["a"]
    assert await lab.on_lts(pid) == {}


async def test_datablocks_of_an_attempt_that_left_no_other_trace_are_taken_out(lab: Lab) -> None:
    files = {"a": b"a"}
    pid = await lab.dataset(files)
    earlier = {
        "archiveId": names.archive_id(pid, names.datablock_stem(pid, 1, "0a1b2c3d" * 8)),
        "size": 1,
        "packedSize": 1,
        "version": "bagit-tar-1",
        "dataFileList": [entry("a", 1)],
    }
    await lab.as_service("POST", f"datasets/{quote(pid, safe='')}/datablocks", json=earlier)

    assert of_dataset(await lab.ended(await lab.archive(pid)), pid)["status"] == "archived"

    [block] = await lab.user.datablocks(pid)
    assert block["archiveId"] != earlier["archiveId"]
    assert await lab.unpacked(pid) == files


async def test_an_archive_of_other_files_is_left_alone(lab: Lab) -> None:
    pid = await lab.archived({"a": b"a"})
    await lab.user.add_files(pid, [entry("b", 1)], algorithm="sha256")
    await lab.upload(pid, {"b": b"b"})
    await lab.user.set_lifecycle(pid, {"archivable": True})
    before = await lab.user.datablocks(pid), await lab.on_lts(pid), await lab.lifecycle(pid)
    job = await lab.ended(await lab.archive(pid))

    outcome = of_dataset(job, pid)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "ArchivedOtherwise")
    assert "'b'" in outcome["message"]
    assert (await lab.user.datablocks(pid), await lab.on_lts(pid), await lab.lifecycle(pid)) == before
    assert list(await lab.landed(pid)) == ["b"]


async def test_a_dataset_that_is_not_archived_cannot_be_retrieved(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    await lab.user.set_lifecycle(pid, {"retrievable": True})
    job = await lab.ended(await lab.retrieve(pid))

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    outcome = of_dataset(job, pid)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "NotArchived")
    assert job["jobResultObject"]["result"] == []
    life = await lab.lifecycle(pid)
    assert (life["retrieveStatusMessage"], life["archivable"], life["retrievable"]) == (
        "datasetRetrievalFailed",
        True,
        True,
    )
    assert life["retrieveReturnMessage"] == {"message": f"NotArchived: {outcome['message']}"}


async def test_a_dataset_that_is_being_archived_cannot_be_retrieved_yet(lab: Lab) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        pid = await lab.dataset({"a": b"a"})
        archive = await lab.archive(pid)
        await lab.phase(pid, "waiting_tape")
        await lab.user.set_lifecycle(pid, {"retrievable": True})
        job = await lab.ended(await lab.retrieve(pid))
    finally:
        await lab.lts("DELETE", "/admin/faults")

    assert of_dataset(job, pid)["class"] == "BeingArchived"
    assert (await lab.ended(archive))["jobStatusMessage"] == JobStatus.SUCCESSFUL
    assert await lab.unpacked(pid) == {"a": b"a"}


# What is withheld from the service


async def test_a_dataset_that_scicat_refuses_the_service_is_named(lab: Lab) -> None:
    refused, good = await lab.dataset({"a": b"a"}), await lab.dataset({"a": b"a"})
    uuid_of = refused.rpartition("/")[2]
    async with scicat_fault(lab, path_prefix="/api/v3/datasets/", path_contains=uuid_of, status=403):
        job = await lab.ended(await lab.archive(refused, good))

    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS
    outcome = of_dataset(job, refused)
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "NoAccess")
    assert "archiveManager" in outcome["message"]
    assert of_dataset(job, good)["status"] == "archived"
    assert list(await lab.landed(refused)) == ["a"]
    assert await logged(lab, refused, "NoAccess")


async def noted(lab: Lab, pid: str, *words: str) -> bool:
    """Wait until the API says what the dataset's archive fails with."""

    async def said() -> bool:
        progress = (await lab.api("GET", f"/archiver/datasets/{quote(pid)}")).json()
        return all(word in troubles(progress) for word in words)

    return await eventually(said)


async def test_refused_credentials_are_shown_and_retried(lab: Lab) -> None:
    """Whoever set them up wrongly sees it; once they are right, the job goes on by itself."""
    at_scicat, at_lts = await lab.dataset({"a": b"a"}), await lab.dataset({"a": b"a"})
    refusal = {"kind": "status", "status": 401, "route": "/uploads", "count": None}
    await lab.lts("POST", "/admin/faults", json=refusal)
    try:
        uuid_of = at_scicat.rpartition("/")[2]
        async with scicat_fault(lab, path_prefix="/api/v3/datasets/", path_contains=uuid_of, status=401):
            job_id = await lab.archive(at_scicat, at_lts)
            assert await noted(lab, at_scicat, "look", "refuses the account 'archiveManager'")
            assert await noted(lab, at_lts, "open_block", "401")
            assert await logged(lab, at_scicat, "Misconfigured")
            assert await logged(lab, at_lts, "Misconfigured")
    finally:
        await lab.lts("DELETE", "/admin/faults")
    assert (await lab.ended(job_id))["jobStatusMessage"] == JobStatus.SUCCESSFUL


# Failures of ours, and cancelling: the rest of the status table


async def test_a_failure_of_ours_is_told_apart_from_a_users_mistake(lab: Lab) -> None:
    """Read back wrong twice, parked, given up by an operator."""
    given_up, fine = await lab.dataset({"a": b"aaaa"}), await lab.dataset({"a": b"aaaa"})
    await lab.user.set_lifecycle(given_up, {"retrievable": True})
    before = await versions(lab, given_up)
    await lab.ended(await lab.archive(fine))
    await lab.lts(
        "POST", "/admin/faults", json={"kind": "corrupt_in_flight", "direction": "out", "offset": 600, "count": None}
    )
    try:
        await lab.user.set_lifecycle(fine, {"archivable": True})
        job_id = await lab.archive(given_up, fine)
        parked = await lab.phase(given_up, "parked")
        await lab.archiving(given_up).signal("give_up")
        job = await lab.ended(job_id)
    finally:
        await lab.lts("DELETE", "/admin/faults")

    assert "Damaged" in parked["waiting_for"]
    outcome = of_dataset(job, given_up)
    assert (outcome["status"], outcome["class"]) == ("given_up", "Damaged")
    assert of_dataset(job, fine)["status"] == "already_archived"
    assert job["jobStatusMessage"] == JobStatus.WITH_DATASET_ERRORS, "some are good"
    assert await standing(lab, given_up) == ("scheduleArchiveJobFailed", True, True)
    assert await versions(lab, given_up) == before
    await nothing_was_left(lab, given_up)


async def test_a_cancelled_archive_leaves_the_life_cycle_as_it_was_found(lab: Lab) -> None:
    pid = await lab.dataset({"a": b"a"})
    await lab.user.set_lifecycle(pid, {"archiveStatusMessage": "scheduleArchiveJobFailed", "retrievable": True})
    before = await versions(lab, pid)
    await lab.lts("POST", "/admin/faults", json={"kind": "hold_migration"})
    try:
        job_id = await lab.archive(pid)
        await lab.phase(pid, "waiting_tape")
        await lab.archiving(pid).cancel()
        job = await lab.ended(job_id)
    finally:
        await lab.lts("DELETE", "/admin/faults")

    assert (job["jobStatusMessage"], of_dataset(job, pid)["status"]) == (JobStatus.UNSUCCESSFUL, "cancelled")
    assert await standing(lab, pid) == ("scheduleArchiveJobFailed", True, True)
    assert await versions(lab, pid) == before
    await nothing_was_left(lab, pid)
