"""Single files out of archived datasets: a retrieve job that names them reads just their bytes."""

from pathlib import Path

from domain import names
from tests.lab import Lab, download, some_bytes

FILES = {
    "movies/a movie+1%20é.tif": some_bytes(7_000_000, 1),
    "movies/b.tif": some_bytes(11_000_000, 2),
    "gain.mrc": some_bytes(3_000_000, 3),
    "empty.txt": b"",
    "sub/session.xml": b"<session/>",
}

WANTED = ["movies/a movie+1%20é.tif", "empty.txt", "sub/session.xml"]


async def test_named_files_come_back_without_the_rest(lab: Lab, tmp_path: Path) -> None:
    pid = await lab.archived(FILES)
    before = await _sent(lab, pid)

    job = await lab.ended(await lab.user.create_job("retrieve", [pid], files={pid: WANTED}))

    assert job["jobStatusMessage"] == "finishedSuccessful", job["jobResultObject"]
    got = {entry["name"]: (await lab.http.get(entry["url"])).content for entry in job["jobResultObject"]["result"]}
    assert got == {path: FILES[path] for path in WANTED}
    assert await _sent(lab, pid) - before == sum(len(FILES[path]) for path in WANTED)

    unpacked = await download(job, tmp_path)
    for path in WANTED:
        assert (unpacked / path).read_bytes() == FILES[path]


async def test_two_jobs_that_name_different_files_do_not_disturb_one_another(lab: Lab) -> None:
    pid = await lab.archived(FILES)
    first = await lab.user.create_job("retrieve", [pid], files={pid: ["gain.mrc"]})
    second = await lab.user.create_job("retrieve", [pid], files={pid: ["empty.txt"]})
    whole = await lab.retrieve(pid)

    results = [(await lab.ended(job))["jobResultObject"]["result"] for job in (first, second, whole)]

    assert [[entry["name"] for entry in result] for result in results[:2]] == [["gain.mrc"], ["empty.txt"]]
    assert {entry["archiveId"] for entry in results[2]} == set(await lab.on_lts(pid))


async def test_an_archive_job_that_names_files_is_refused(lab: Lab) -> None:
    pid = await lab.dataset(FILES)

    job = await lab.ended(await lab.user.create_job("archive", [pid], files={pid: ["gain.mrc"]}))

    assert job["jobStatusMessage"] == "finishedWithDatasetErrors"
    assert job["jobResultObject"]["datasets"][0]["class"] == "PartialArchive"
    assert set(await lab.landed(pid)) == set(FILES)


async def _sent(lab: Lab, pid: str) -> int:
    """Bytes that the LTS has sent of the dataset's datablocks."""
    paths = (await lab.lts("GET", "/admin/requests")).json()["paths"]
    prefix = names.datablocks_prefix(pid)
    return sum(counted["sent"] for path, counted in paths.items() if path.startswith(prefix))
