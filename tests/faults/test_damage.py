"""Bits that flip on the way to the LTS, on it, and on the way back: noticed, named, mended, never delivered."""

import pytest

from tests.faults.site import CHUNK, Site, is_read, is_source, reached
from tests.lab import Lab, eventually, some_bytes

pytestmark = pytest.mark.xdist_group("faults")

FILES = {f"movie{n}.tif": some_bytes(6_000_000, n) for n in range(5)}
FLIPPED = 21_000_000
"""In chunk 4, bytes 20971520 to 26214400, where movie3.tif ends and movie4.tif begins."""
NAMED = ("chunk 4 (bytes 20971520 to 26214400)", "movie3.tif, movie4.tif")


ENDS = (".verified", ".manifest.jsonl")


async def fault(lab: Lab, kind: str, **more: object) -> None:
    await lab.lts("POST", "/admin/faults", json={"kind": kind, "offset": FLIPPED} | more)


async def logged(lab: Lab, *words: str) -> None:
    """Wait for one line of the control worker's log that has all these words."""

    async def there() -> bool:
        log = lab.stack.log("worker-control").read_text()
        return any(all(word in line for word in words) for line in log.splitlines())

    await eventually(there)


async def only_generation(lab: Lab, pid: str, path_of_the_first: str) -> None:
    """One datablock under a new name, and nothing of the damaged one: not on the LTS, not in our records."""
    [path] = await lab.on_lts(pid)
    assert path != path_of_the_first
    assert [block["archiveId"] for block in await lab.user.datablocks(pid)] == [path]
    assert await lab.uploads_on_lts(pid) == []
    bucket = lab.stack.settings.s3_state_bucket
    keys = [item.key async for item in lab.objects.list_objects(bucket, f"datasets/{pid}/")]
    stems = {key.rpartition("/")[2].removesuffix(end) for key in keys for end in ENDS if key.endswith(end)}
    assert stems == {path.rpartition("/")[2].removesuffix(".tar")}


@pytest.mark.fault("a bit flips on the way to the LTS", "refused on arrival, the chunk is sent again")
async def test_a_bit_that_flips_on_the_way_to_the_lts_is_refused_and_the_chunk_sent_again(site: Site) -> None:
    pid = await site.lab.dataset(FILES)
    await fault(site.lab, "corrupt_in_flight", direction="in")

    await site.good(await site.archive(pid))

    [(path, tar_bytes)] = (await site.lab.on_lts(pid)).items()
    counted = (await site.lab.lts("GET", "/admin/requests")).json()["paths"][path]
    assert (counted["received"], counted["kept"]) == (tar_bytes + CHUNK, tar_bytes)
    assert site.lts_read() == tar_bytes


@pytest.mark.fault(
    "a bit flips on the LTS before it is read back", "named by chunk and file, written anew under another name"
)
async def test_a_datablock_damaged_on_the_lts_is_written_anew_under_another_name(site: Site) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    with site.lts.hold(is_read, "out", 0) as hold:
        job = await site.archive(pid)
        await reached(hold)
        [first] = await lab.on_lts(pid)
        await fault(lab, "corrupt_at_rest", where="disk", path=first)
    await site.good(job)

    await logged(lab, first, *NAMED, "it is written anew")
    await only_generation(lab, pid, first)
    assert await lab.unpacked(pid) == FILES


@pytest.mark.fault("a bit flips on the way back, twice", "parked with the damage by name; `retry` writes it anew")
async def test_a_datablock_that_is_read_back_wrong_twice_parks_until_somebody_says_retry(site: Site) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    await fault(lab, "corrupt_in_flight", direction="out", count=2)
    job = await site.archive(pid)

    shown = await lab.phase(pid, "parked")

    assert shown["waiting_for"].startswith("Damaged: ")
    assert all(name in shown["waiting_for"] for name in NAMED)
    files = await lab.on_lts(pid)
    assert len(files) == 2
    assert any(path in shown["waiting_for"] for path in files)
    assert len(await lab.landed(pid)) == len(FILES)
    await lab.archiving(pid).signal("retry")
    await site.good(job)
    [third] = await lab.on_lts(pid)
    assert third not in files
    await only_generation(lab, pid, "")
    assert await lab.landed(pid) == {}


@pytest.mark.fault(
    "a bit flips on the way back, and it is given up",
    "nothing is left on the LTS or in SciCat, the landing zone is whole",
)
async def test_a_damaged_datablock_that_is_given_up_leaves_nothing(site: Site) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    before = await lab.landed(pid)
    await fault(lab, "corrupt_in_flight", direction="out", count=2)
    job = await site.archive(pid)
    await lab.phase(pid, "parked")
    await lab.archiving(pid).signal("give_up")

    ended = await lab.ended(job)

    [outcome] = ended["jobResultObject"]["datasets"]
    assert (outcome["status"], outcome["class"]) == ("given_up", "Damaged")
    assert all(name in outcome["message"] for name in NAMED)
    assert await lab.on_lts(pid) == {}
    assert await lab.user.datablocks(pid) == []
    assert await lab.landed(pid) == before


@pytest.mark.fault(
    "a bit flips on the LTS after the archive, on tape",
    "never delivered; parked with the damage by name, no pin is kept",
)
async def test_a_datablock_damaged_on_tape_is_never_delivered(site: Site) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    await site.good(await site.archive(pid))
    [path] = await lab.on_lts(pid)
    await fault(lab, "corrupt_at_rest", path=path)
    await lab.lts("POST", "/admin/evict", json={"path": path})
    job = await site.retrieve(pid)

    async def parked() -> str:
        shown = await lab.retrieving(pid).query("progress")
        return shown["waiting_for"] if shown["phase"] == "parked" else ""

    why = await eventually(parked)

    assert why.startswith("Damaged: ")
    assert all(name in why for name in (path, "chunk 4 (bytes 20971520 to 26214400)"))
    assert await lab.objects.head(lab.stack.settings.s3_retrieval_bucket, path) is None
    assert (await lab.lts("GET", "/admin/state")).json()["pins"] == []
    await lab.retrieving(pid).signal("give_up")
    ended = await lab.ended(job)
    assert ended["jobStatusMessage"] == "finishedUnsuccessful"
    assert ended["jobResultObject"]["result"] == []
    [outcome] = ended["jobResultObject"]["datasets"]
    assert (outcome["status"], outcome["class"]) == ("given_up", "Damaged")
    assert (await lab.lifecycle(pid))["retrieveStatusMessage"] == "datasetRetrievalFailed"


async def test_an_object_overwritten_before_it_is_read_is_archived_as_planned_and_the_newer_one_stays(
    site: Site,
) -> None:
    lab = site.lab
    pid = await lab.dataset(FILES)
    with site.s3.hold(is_source, "out", 0) as hold:
        job_id = await site.archive(pid)
        await reached(hold)
        await lab.upload(pid, {"movie4.tif": b"a later measurement"})
    await site.good(job_id)

    [outcome] = (await lab.ended(job_id))["jobResultObject"]["datasets"]
    assert outcome["leftovers"] == ["movie4.tif"]
    assert {path: [v.size for v in versions] for path, versions in (await lab.landed(pid)).items()} == {
        "movie4.tif": [len(b"a later measurement")]
    }
    assert await lab.unpacked(pid) == FILES
