"""What the LTS and SciCat alone give back: the state bucket is lost, or never knew the datablock."""

import asyncio
import hashlib
import io
import tarfile
from pathlib import Path

from clients.lts.http import HttpLongTermStore
from domain import names
from tests.lab import Lab, download, some_bytes

FILES = {
    "movies/a movie+1%20é.tif": some_bytes(7_000_000, 1),
    "movies/b.tif": some_bytes(13_000_000, 2),
    "gain.mrc": some_bytes(3_000_000, 3),
    "empty.txt": b"",
}


async def _lose_state(lab: Lab, pid: str) -> None:
    bucket = lab.stack.settings.s3_state_bucket
    keys = [item.key async for item in lab.objects.list_objects(bucket, names.state_prefix(pid))]
    assert keys
    await lab.objects.delete_objects(bucket, keys)


async def test_a_dataset_comes_back_without_any_of_our_records(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    await _lose_state(lab, pid)

    assert await lab.unpacked(pid) == FILES


async def test_a_single_file_comes_back_without_any_of_our_records(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    await _lose_state(lab, pid)

    job = await lab.ended(await lab.user.create_job("retrieve", [pid], files={pid: ["gain.mrc"]}))

    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    [entry] = job["jobResultObject"]["result"]
    assert (await lab.http.get(entry["url"])).content == FILES["gain.mrc"]


async def test_without_manifests_a_second_archive_job_frees_nothing(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    await _lose_state(lab, pid)
    await lab.upload(pid, FILES)
    await lab.user.set_lifecycle(pid, {"archivable": True})

    job = await lab.ended(await lab.archive(pid))

    assert [d["status"] for d in job["jobResultObject"]["datasets"]] == ["already_archived"]
    assert set(await lab.landed(pid)) == set(FILES)


async def test_a_tar_of_the_original_system_is_checked_and_retrieved(lab: Lab, tmp_path: Path) -> None:
    files = {"movies/old movie.tif": some_bytes(6_000_000, 7), "old.xml": b"<old/>"}
    pid = await _archived_by_the_original(lab, files, files)

    job = await lab.ended(await lab.retrieve(pid))

    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    unpacked = await download(job, tmp_path)
    for path, content in files.items():
        assert (unpacked / path).read_bytes() == content


async def test_a_datablock_that_lies_elsewhere_on_the_lts_is_not_delivered(lab: Lab) -> None:
    """Who may register datablocks may not fetch other people's data with them."""
    files = {"a": b"of others"}
    pid = await _archived_by_the_original(lab, files, files, folder="other-project/")

    job = await lab.ended(await lab.retrieve(pid))

    [outcome] = job["jobResultObject"]["datasets"]
    assert (outcome["status"], outcome["class"]) == ("dataset_error", "UnsafePath")
    assert "other-project/" in outcome["message"]
    assert job["jobResultObject"]["result"] == []


async def _archived_by_the_original(
    lab: Lab, files: dict[str, bytes], packed: dict[str, bytes], folder: str = ""
) -> str:
    """A dataset with one plain tar of relative paths, as the original archiver leaves it, or in some other folder."""
    pid = await lab.dataset(files, upload=False)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in packed.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = stream.getvalue()
    folder = folder or f"openem-network/datasets/{pid}/datablocks/"
    archive_id = f"{folder}{pid.replace('/', '-')}_0.tar"
    settings = lab.stack.settings
    store = HttpLongTermStore(endpoint=settings.lts_endpoint, token=settings.lts_token.get_secret_value())
    try:
        await _put(store, archive_id, content)
    finally:
        await store.aclose()
    await lab.as_service(
        "POST",
        f"datasets/{pid.replace('/', '%2F')}/datablocks",
        json={
            "archiveId": archive_id,
            "size": sum(map(len, files.values())),
            "packedSize": len(content),
            "version": "0",
            "dataFileList": [
                {"path": path, "size": len(data), "time": "2024-01-01T00:00:00.000Z"} for path, data in files.items()
            ],
        },
    )
    await lab.user.set_lifecycle(pid, {"archivable": False, "retrievable": True})
    return pid


async def _put(store: HttpLongTermStore, path: str, content: bytes) -> None:
    """Write a file to the LTS as any tus client would."""

    upload = await store.open_write(path, len(content))
    digest = hashlib.sha256(content).digest()
    await asyncio.to_thread(store.write, upload, 0, memoryview(content), digest)
    await store.finish(upload, path, len(content))
