"""What the archiver relies on SciCat for, asked of the stand-in through `Catalogue`; traps as in scicat-contract.md."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import pytest

from clients.scicat import BlockEntry, Catalogue, JobDataset
from domain.errors import (
    CatalogueUnavailable,
    JobRefused,
    Misconfigured,
    NoAccess,
    TokenRefused,
    UnknownDataset,
    UnknownJob,
)
from domain.files import RegisteredFile
from tests.contracts.conftest import scicat_process
from tests.fakes.canned import Canned, CannedServer
from tests.fakes.processes import ServerProcess

SERVICE: dict[str, Any] = {"username": "archiveManager", "password": "aman"}
ALICE: dict[str, Any] = {"username": "alice", "password": "alice"}
FILE: dict[str, Any] = {"path": "a b/ü.tif", "size": 10, "time": "2026-01-02T03:04:05.123456789+01:00"}
BLOCK: dict[str, Any] = {
    "size": 10,
    "packed_size": 2048,
    "version": "bagit-tar-1",
    "checksum_algorithm": "sha256",
    "files": [{**FILE, "chk": "AB" * 32, "perm": "-rw-r--r--", "uid": "0", "gid": "users"}],
}


FINISHED = ("finishedSuccessful", "finishedWithDatasetErrors", "finishedUnsuccessful")


class Users:
    """SciCat as others see it: they register datasets and post jobs, and order mishaps."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False)
        self._tokens: dict[str, str] = {}

    def close(self) -> None:
        self.http.close()

    def ask(self, method: str, path: str, body: Any = None, *, as_: dict[str, str] = ALICE) -> Any:
        name = as_["username"]
        if name not in self._tokens:
            self._tokens[name] = self.http.post("/api/v3/auth/login", json=as_).json()["access_token"]
        answer = self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {self._tokens[name]}"})
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def dataset(self) -> str:
        return self.ask(
            "POST",
            "/api/v3/datasets",
            {
                "type": "raw",
                "owner": "Alice",
                "contactEmail": "alice@example.org",
                "sourceFolder": "/data/run1",
                "creationTime": "2026-01-01T00:00:00Z",
                "ownerGroup": "group1",
                "principalInvestigator": "Alice",
                "creationLocation": "/ETH/ScopeM",
            },
        )["pid"]

    def originals(self, pid: str, *files: dict[str, Any], **more: Any) -> None:
        body = {"size": sum(file["size"] for file in files), "dataFileList": list(files), **more}
        self.ask("POST", f"/api/v3/datasets/{quote(pid, safe='')}/origdatablocks", body)

    def job(self, version: str, *datasets: dict[str, Any]) -> str:
        body: dict[str, Any] = {"type": "archive", "datasetList": list(datasets)}
        if version == "v4":
            body = {"type": "archive", "jobParams": {"datasetList": list(datasets)}}
            body |= {"ownerGroup": "group1", "ownerUser": "alice"}
        return self.ask("POST", f"/api/{version}/jobs", body)["id"]

    def fault(self, prefix: str, **details: Any) -> None:
        self.http.post("/mock/faults", json={"path_prefix": prefix, **details}).raise_for_status()

    def requests(self, prefix: str = "", method: str | None = None) -> list[tuple[str, int]]:
        asked: dict[str, str] = {"path_prefix": prefix} | ({"method": method} if method else {})
        found = self.http.get("/mock/requests", params=asked).json()["requests"]
        return [(seen["method"], seen["status"]) for seen in found]

    def forget(self) -> None:
        self.http.post("/mock/faults", json={}).raise_for_status()
        self.http.delete("/mock/requests").raise_for_status()


@pytest.fixture
def users(scicat_server: ServerProcess) -> Iterator[Users]:
    with closing(Users(scicat_server.url)) as users:
        users.forget()
        yield users
        users.forget()


Open = Callable[..., Catalogue]


@pytest.fixture
async def open_catalogue(scicat_server: ServerProcess) -> AsyncIterator[Open]:
    """Makes catalogues, by default the service's before the server that all tests share."""
    opened: list[Catalogue] = []

    def open_(**options: Any) -> Catalogue:
        given: dict[str, Any] = {"endpoint": scicat_server.url, **SERVICE, **options}
        opened.append(Catalogue(**given))
        return opened[-1]

    yield open_
    for catalogue in opened:
        await catalogue.aclose()


@pytest.fixture
def catalogue(open_catalogue: Open) -> Catalogue:
    return open_catalogue()


@pytest.fixture(params=["v3", "v4"])
def either(request: pytest.FixtureRequest, open_catalogue: Open) -> Catalogue:
    """By either version of the datasets' calls."""
    return open_catalogue(datasets_api_prefix=f"/api/{request.param}")


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["v3", "v4"])
@pytest.mark.parametrize("posted", ["v3", "v4"])
async def test_a_job_is_read_and_patched_in_either_version(
    open_catalogue: Open, users: Users, posted: str, reads: str
) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{reads}")
    pid, other = users.dataset(), users.dataset()
    users.originals(other, FILE)
    job_id = users.job(posted, {"pid": pid, "files": []}, {"pid": other, "files": [FILE["path"]]})
    job = await catalogue.job(job_id)
    assert (job.id, job.type, job.status) == (job_id, "archive", "jobSubmitted")
    assert job.datasets == (JobDataset(pid), JobDataset(other, (FILE["path"],)))
    if reads == "v4":
        assert (job.owner_user, job.owner_group) == ("alice", "group1")
    await catalogue.patch_job(job_id, "inProgress", "Under way.", {"result": [1]})
    await catalogue.patch_job(job_id, "finishedSuccessful", "Done.")
    job = await catalogue.job(job_id)
    assert job.status == "finishedSuccessful"
    assert job.result == {"result": [1]}


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_an_unknown_job(open_catalogue: Open, users: Users, version: str) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{version}")
    with pytest.raises(UnknownJob):
        await catalogue.job(str(uuid4()))
    with pytest.raises(JobRefused):
        await catalogue.patch_job(str(uuid4()), "inProgress", "")
    pid = users.dataset()
    job_id = users.job(version, {"pid": pid, "files": []})
    users.ask("DELETE", f"/api/v3/datasets/{quote(pid, safe='')}", as_=SERVICE)
    with pytest.raises(JobRefused):
        await catalogue.patch_job(job_id, "inProgress", "")


async def test_a_wrong_prefix_is_no_refusal(open_catalogue: Open, users: Users) -> None:
    job_id = users.job("v4", {"pid": users.dataset(), "files": []})
    misled = open_catalogue(api_prefix="/api/v3", jobs_api_prefix="/api/v9")
    with pytest.raises(Misconfigured):
        await misled.patch_job(job_id, "inProgress", "")
    misled = open_catalogue(api_prefix="/api/v4")
    with pytest.raises(Misconfigured):
        await misled.dataset("any")


async def test_a_job_that_the_account_may_not_read(open_catalogue: Open, users: Users) -> None:
    job_id = users.job("v4", {"pid": users.dataset(), "files": []})
    bob = open_catalogue(username="bob", password="bob")
    with pytest.raises(Misconfigured):
        await bob.job(job_id)
    with pytest.raises(Misconfigured):
        await bob.patch_job(job_id, "inProgress", "")


POSTED: dict[str, Any] = {"owner_user": "alice", "owner_group": "group1", "contact_email": "alice@example.org"}


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_one_archive_job_at_a_time(open_catalogue: Open, users: Users, version: str) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{version}")
    pid, other = users.dataset(), users.dataset()
    users.job(version, {"pid": other, "files": []})
    assert await catalogue.open_archive_jobs(pid) == []
    job_id, *again = await asyncio.gather(*(catalogue.create_archive_job(pid, **POSTED) for _ in range(3)))
    assert again == [job_id] * 2
    posted = users.ask("GET", f"/api/v4/jobs/{job_id}")
    assert (posted["ownerUser"], posted["ownerGroup"], posted["contactEmail"]) == tuple(POSTED.values())
    assert posted["jobParams"]["datasetList"] == [{"pid": pid, "files": []}]
    assert [job.id for job in await catalogue.open_archive_jobs(pid)] == [job_id]
    await catalogue.patch_job(job_id, "inProgress", "")
    assert await catalogue.create_archive_job(pid, **POSTED) == job_id
    await catalogue.patch_job(job_id, "finishedUnsuccessful", "")
    assert await catalogue.open_archive_jobs(pid) == []
    assert await catalogue.create_archive_job(pid, **POSTED) != job_id


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_an_archive_job_among_others_and_of_several_datasets(
    open_catalogue: Open, users: Users, version: str
) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{version}")
    pid, other = users.dataset(), users.dataset()
    await catalogue.patch_lifecycle(pid, {"retrievable": True})
    await catalogue.patch_lifecycle(other, {"retrievable": True})
    entries: list[dict[str, Any]] = [{"pid": other, "files": []}, {"pid": pid, "files": []}]
    users.ask("POST", "/api/v3/jobs", {"type": "retrieve", "datasetList": entries})
    job_id = users.job("v3", *entries)
    assert await catalogue.create_archive_job(pid, **POSTED) == job_id


@pytest.mark.parametrize("posted", ["v3", "v4"])
@pytest.mark.parametrize("reads", ["v3", "v4"])
async def test_jobs_that_have_not_finished(open_catalogue: Open, users: Users, posted: str, reads: str) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{reads}")
    before = {job.id for job in await catalogue.open_jobs()}
    pid = users.dataset()
    await catalogue.patch_lifecycle(pid, {"retrievable": True})
    entry: dict[str, str | list[str]] = {"pid": pid, "files": []}
    submitted, at_work, *ended = [users.job(posted, entry) for _ in range(5)]
    retrieve = users.ask("POST", "/api/v3/jobs", {"type": "retrieve", "datasetList": [entry]})["id"]
    await catalogue.patch_job(at_work, "inProgress", "")
    for job_id, status in zip(ended, FINISHED, strict=True):
        await catalogue.patch_job(job_id, status, "")
    found = [job for job in await catalogue.open_jobs() if job.id not in before]
    assert [(job.id, job.type, job.status) for job in found] == [
        (submitted, "archive", "jobSubmitted"),
        (at_work, "archive", "inProgress"),
        (retrieve, "retrieve", "jobSubmitted"),
    ]
    assert [job.datasets for job in found] == [(JobDataset(pid),)] * 3
    assert sorted(job.created for job in found) == [job.created for job in found]
    assert found[0].created > "2026"


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_a_job_that_scicat_never_takes(open_catalogue: Open, users: Users, version: str) -> None:
    catalogue = open_catalogue(jobs_api_prefix=f"/api/{version}")
    pid = users.dataset()
    await catalogue.patch_lifecycle(pid, {"archivable": False, "archiveStatusMessage": "filesNotYetAvailable"})
    with pytest.raises(JobRefused, match=r"400: Invalid request. Invalid value for 'datasetlifecycle.archivable'"):
        await catalogue.create_archive_job(pid, **POSTED)
    await catalogue.mark_archivable(pid)
    found = await catalogue.lifecycle(pid)
    assert (found.archivable, found.archive_status) == (True, "datasetCreated")
    assert await catalogue.create_archive_job(pid, **POSTED)
    with pytest.raises(JobRefused, match="do not exist"):
        await catalogue.create_archive_job("20.500.11935/unknown", **POSTED)
    with pytest.raises(Misconfigured, match="Unauthorized to create this job"):
        await open_catalogue(username="bob", password="bob", jobs_api_prefix=f"/api/{version}").create_archive_job(
            users.dataset(), "bob", "group2", "bob@example.org"
        )


@pytest.mark.parametrize("mishap", [{"status": 500}, {"cut": True}])
async def test_a_job_whose_answer_was_lost_is_looked_up(
    catalogue: Catalogue, users: Users, mishap: dict[str, Any]
) -> None:
    pid = users.dataset()
    users.fault("/api/v4/jobs", method="POST", after=True, **mishap)
    job_id = await catalogue.create_archive_job(pid, **POSTED)
    assert [job.id for job in await catalogue.open_archive_jobs(pid)] == [job_id]
    users.fault("/api/v4/jobs", method="POST", **mishap)
    with pytest.raises(CatalogueUnavailable):
        await catalogue.create_archive_job(users.dataset(), **POSTED)


async def test_a_job_of_which_scicat_cannot_tell_us_is_posted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_catalogue: Open
) -> None:
    archiver = CannedServer()
    monkeypatch.setenv("MOCK_SCICAT_JOB_URL", f"{archiver.url}/jobs")
    server = scicat_process(tmp_path)
    try:
        server.start()
        catalogue = open_catalogue(endpoint=server.url)
        with closing(Users(server.url)) as users:
            with archiver:
                for status in (401, 403, 500):
                    archiver.says("POST", "/jobs", Canned(status, b"no"))
                    await _posted_once(catalogue, users)
            await _posted_once(catalogue, users)  # and now nobody is there
            assert len(users.requests("/api/v3/auth/login")) == 2  # the service's and Alice's
    finally:
        server.stop()


async def _posted_once(catalogue: Catalogue, users: Users) -> None:
    pid, before = users.dataset(), len(users.requests("/api/v4/jobs", "POST"))
    job_id = await catalogue.create_archive_job(pid, **POSTED)
    where = {"filter": json.dumps({"where": {"jobParams.datasetList.pid": pid}})}
    assert [job["id"] for job in users.ask("GET", f"/api/v4/jobs?{urlencode(where)}")] == [job_id]
    assert len(users.requests("/api/v4/jobs", "POST")) == before + 1


# --- datasets ---------------------------------------------------------------------------------------------------------


async def test_a_dataset(either: Catalogue, users: Users) -> None:
    pid = users.dataset()
    users.originals(pid, FILE)
    found = await either.dataset(pid)
    assert (found.pid, found.owner_group, found.source_folder) == (pid, "group1", "/data/run1")
    assert (found.size, found.number_of_files, found.archivable) == (10, 1, True)


async def test_a_life_cycle_is_changed_where_it_is_told(either: Catalogue, users: Users) -> None:
    pid = users.dataset()
    await either.patch_lifecycle(pid, {"retrievable": True, "archiveStatusMessage": "started"})
    await either.patch_lifecycle(pid, {"archivable": False, "archiveReturnMessage": {"why": "as a test"}})
    found = await either.lifecycle(pid)
    assert (found.archivable, found.retrievable, found.is_on_central_disk) == (False, True, True)
    assert (found.archive_status, found.retrieve_status) == ("started", "")
    assert found.raw["archiveReturnMessage"] == {"why": "as a test"}


async def test_datasets_are_found_by_their_life_cycle(either: Catalogue, users: Users) -> None:
    status = {"archiveStatusMessage": f"begun {uuid4()}"}
    begun = sorted(users.dataset() for _ in range(3))
    for pid in begun:
        await either.patch_lifecycle(pid, status)
    first = await either.datasets_in(status, "", 2)
    assert first == begun[:2]
    assert await either.datasets_in(status, first[-1], 2) == begun[2:]
    assert await either.datasets_in(status, begun[-1], 2) == []


async def test_original_files_of_all_blocks(either: Catalogue, users: Users) -> None:
    pid = users.dataset()
    assert await either.original_files(pid) == []
    users.originals(pid, FILE | {"chk": "ABCDEF", "perm": "-rw-r--r--", "uid": "7", "gid": "users"}, chkAlg="sha1")
    users.originals(pid, FILE | {"path": "b"}, FILE | {"path": "c"})
    first, second, third = await either.original_files(pid)
    assert first == RegisteredFile(
        FILE["path"], 10, "2026-01-02T02:04:05.123Z", "-rw-r--r--", "7", "users", digest="abcdef", algorithm="sha1"
    )
    assert (second.path, second.digest, second.algorithm, third.path) == ("b", "", "", "c")


async def test_an_unknown_dataset(either: Catalogue) -> None:
    calls: list[Callable[[str], Awaitable[Any]]] = [
        either.dataset,
        either.lifecycle,
        either.original_files,
        either.datablocks,
        lambda pid: either.patch_lifecycle(pid, {"archivable": True}),
        lambda pid: either.add_datablock(pid, archive_id="x", **BLOCK),
    ]
    for call in calls:
        with pytest.raises(UnknownDataset):
            await call("20.500.11935/unknown ü+?")
    await either.delete_datablock("20.500.11935/unknown", "x")


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_a_dataset_that_the_account_may_not_read(open_catalogue: Open, users: Users, version: str) -> None:
    pid = users.dataset()
    users.originals(pid, FILE)
    bob = open_catalogue(username="bob", password="bob", datasets_api_prefix=f"/api/{version}")
    with pytest.raises(NoAccess, match="'bob'"):
        await bob.dataset(pid)
    with pytest.raises(NoAccess):
        await bob.patch_lifecycle(pid, {"archivable": False})
    with pytest.raises(NoAccess):
        await bob.original_files(pid)


async def test_files_that_are_left_out_are_not_taken_for_none(open_catalogue: Open) -> None:
    """An account of the life-cycle groups alone may read the dataset, but v4 leaves its blocks out."""
    with CannedServer() as server:
        catalogue = open_catalogue(endpoint=server.url, datasets_api_prefix="/api/v4")
        server.says("POST", "/api/v3/auth/login", Canned(201, b'{"access_token": "t", "expires_in": 3600}'))
        server.says("GET", "/api/v4/origdatablocks", Canned(200, b"[]"))
        server.says(
            "GET", "/api/v4/datasets/any", Canned(200, b'{"numberOfFiles": 3}'), Canned(200, b'{"numberOfFiles": 0}')
        )
        with pytest.raises(NoAccess):
            await catalogue.original_files("any")
        assert await catalogue.original_files("any") == []


async def test_more_original_datablocks_than_a_page(either: Catalogue, users: Users) -> None:
    pid = users.dataset()
    for n in range(12):
        users.originals(pid, FILE | {"path": str(n)})
    assert [file.path for file in await either.original_files(pid)] == [str(n) for n in range(12)]


# --- datablocks -------------------------------------------------------------------------------------------------------


async def test_a_datablock_is_registered_once(either: Catalogue, users: Users) -> None:
    pid, archive_id = users.dataset(), f"ids/{uuid4()}.tar"
    # Together, since a retried activity may overlap with the attempt before it.
    users.fault("/api/v3/datasets", method="POST", delay_s=0.3)
    await asyncio.gather(*(either.add_datablock(pid, archive_id=archive_id, **BLOCK) for _ in range(5)))
    [block] = await either.datablocks(pid)
    assert (block.archive_id, block.size, block.packed_size) == (archive_id, 10, 2048)
    assert (block.version, block.checksum_algorithm) == ("bagit-tar-1", "sha256")
    [file] = block.files
    assert (file.path, file.size, file.digest, file.algorithm) == (FILE["path"], 10, "ab" * 32, "sha256")
    assert users.requests(f"/api/v3/datasets/{pid}/datablocks").count(("POST", 201)) == 1
    for _ in range(2):
        await either.delete_datablock(pid, block.id)
    assert await either.datablocks(pid) == []


async def test_datablocks_are_found_over_all_datasets_without_their_files(catalogue: Catalogue, users: Users) -> None:
    pids = sorted(users.dataset() for _ in range(3))
    for n, pid in reversed([*enumerate(pids)]):
        for block in range(n):
            await catalogue.add_datablock(pid, archive_id=f"{pid}/{block}.tar", **BLOCK)
    found: list[str] = []
    while page := await catalogue.datasets_with_blocks(found[-1] if found else "", limit=1):
        found += page
    assert found == sorted(found)
    assert [pid for pid in found if pid in pids] == pids[1:]
    assert set(await catalogue.datasets_with_blocks("", limit=10_000)) == set(found)
    assert await catalogue.datasets_with_blocks(found[-1], limit=10) == []
    assert await catalogue.block_entries(pids[0]) == []
    assert await catalogue.block_entries(pids[2]) == [BlockEntry(f"{pids[2]}/{n}.tar", 2048) for n in range(2)]
    assert await catalogue.is_archive_id(f"{pids[2]}/1.tar")
    assert not await catalogue.is_archive_id(f"{pids[2]}/2.tar")


async def test_calls_of_one_dataset_come_one_after_another(catalogue: Catalogue, users: Users) -> None:
    pid = users.dataset()
    users.fault("/api/v3/datasets", method="POST", delay_s=0.3)
    await asyncio.gather(*(catalogue.add_datablock(pid, archive_id=str(uuid4()), **BLOCK) for _ in range(5)))
    assert (await catalogue.dataset(pid)).packed_size == 5 * 2048
    asked = users.requests(f"/api/v3/datasets/{pid}/datablocks")
    assert asked == [("POST", 201)] * 5


@pytest.mark.parametrize("mishap", [{"status": 500}, {"status": 504}, {"cut": True}])
async def test_a_lost_answer_is_looked_up(catalogue: Catalogue, users: Users, mishap: dict[str, Any]) -> None:
    pid = users.dataset()
    users.fault("/api/v3/datasets", method="POST", after=True, **mishap)
    await catalogue.add_datablock(pid, archive_id=str(uuid4()), **BLOCK)
    assert len(await catalogue.datablocks(pid)) == 1


async def test_an_archive_id_of_another_dataset_is_not_done(catalogue: Catalogue, users: Users) -> None:
    first, second, archive_id = users.dataset(), users.dataset(), str(uuid4())
    await catalogue.add_datablock(first, archive_id=archive_id, **BLOCK)
    with pytest.raises(CatalogueUnavailable, match="500"):
        await catalogue.add_datablock(second, archive_id=archive_id, **BLOCK)


async def test_what_the_catalogue_says_is_passed_on(catalogue: Catalogue, users: Users) -> None:
    pid = users.dataset()
    with pytest.raises(CatalogueUnavailable, match="noSuchField"):
        await catalogue.patch_lifecycle(pid, {"noSuchField": 1})


# --- the account and its token ----------------------------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once(catalogue: Catalogue, users: Users) -> None:
    pid = users.dataset()
    await catalogue.dataset(pid)
    users.http.delete("/mock/requests")
    for status in (403, 401):
        users.fault("/api/v3/datasets", status=status)
        assert (await catalogue.dataset(pid)).pid == pid
    logins = users.requests("/api/v3/auth/login")
    assert logins == [("POST", 201)] * 2
    users.fault("/api/v3/datasets", status=403, times=2)
    with pytest.raises(NoAccess):
        await catalogue.dataset(pid)
    users.fault("/api/v3/datasets", status=401, times=2)
    with pytest.raises(Misconfigured):
        await catalogue.dataset(pid)


async def test_many_refused_at_once_log_in_once(catalogue: Catalogue, users: Users) -> None:
    pids = [users.dataset() for _ in range(8)]
    await catalogue.dataset(pids[0])
    users.http.delete("/mock/requests")
    users.fault("/api/v3/datasets", status=403, times=8)
    await asyncio.gather(*(catalogue.dataset(pid) for pid in pids))
    assert users.requests("/api/v3/auth/login") == [("POST", 201)]


async def test_a_token_is_renewed_before_it_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_catalogue: Open
) -> None:
    monkeypatch.setenv("MOCK_SCICAT_TOKEN_TTL_S", "3")
    server = scicat_process(tmp_path)
    try:
        server.start()
        catalogue = open_catalogue(endpoint=server.url)
        with closing(Users(server.url)) as users:
            while len(users.requests("/api/v3/auth/login")) < 3:
                assert await catalogue.healthy()
                await asyncio.sleep(0.05)
            assert {status for _, status in users.requests()} == {200, 201}
    finally:
        server.stop()


async def test_the_groups_of_somebody_elses_token(open_catalogue: Open, users: Users) -> None:
    nobody = open_catalogue(username="", password="")
    logins = {
        name: users.http.post("/api/v3/auth/login", json={"username": name, "password": name}).json()["access_token"]
        for name in ("alice", "ingestor")
    }
    assert await nobody.groups_of(logins["alice"]) == {"group1"}
    assert await nobody.groups_of(logins["ingestor"]) == {"ingestor"}
    for token in ("", "nonsense", logins["alice"][:-2], "a b", "a\r\nX: y", "ü"):
        with pytest.raises(TokenRefused) as refused:
            await nobody.groups_of(token)
        assert not token or token not in str(refused.value)
    for status in (401, 403):
        users.fault("/api/v3/users/my/identity", status=status)
        with pytest.raises(TokenRefused):
            await nobody.groups_of(logins["alice"])
    for mishap in ({"status": 500}, {"status": 429}, {"cut": True, "times": 2}):
        users.fault("/api/v3/users/my/identity", **mishap)
        with pytest.raises(CatalogueUnavailable):
            await nobody.groups_of(logins["alice"])
    with pytest.raises(Misconfigured):
        await open_catalogue(api_prefix="/api/v4").groups_of(logins["alice"])


async def test_a_wrong_password_is_ours_to_mend_and_not_shown(open_catalogue: Open) -> None:
    catalogue = open_catalogue(username="archiveManager", password="wrong-password")
    with pytest.raises(Misconfigured) as caught:
        await catalogue.dataset("any")
    assert "wrong-password" not in str(caught.value)
    assert not await catalogue.healthy()


# --- a catalogue that is not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mishap", [{"status": 500}, {"status": 502}, {"status": 429}, {"cut": True, "times": 2}])
async def test_mishaps_that_may_pass(catalogue: Catalogue, users: Users, mishap: dict[str, Any]) -> None:
    pid = users.dataset()
    users.fault("/api/v3/datasets", **mishap)
    with pytest.raises(CatalogueUnavailable):
        await catalogue.dataset(pid)
    assert (await catalogue.dataset(pid)).pid == pid


async def test_one_cut_read_is_repeated(catalogue: Catalogue, users: Users) -> None:
    pid = users.dataset()
    users.fault("/api/v3/datasets", cut=True)
    assert (await catalogue.dataset(pid)).pid == pid
    users.fault("/api/v3/datasets", cut=True, method="PATCH")
    with pytest.raises(CatalogueUnavailable):
        await catalogue.patch_lifecycle(pid, {"archivable": False})


async def test_an_answer_that_does_not_come_in_time(open_catalogue: Open, users: Users) -> None:
    catalogue = open_catalogue(timeout_s=0.5)
    pid = users.dataset()
    await catalogue.dataset(pid)
    users.fault("/api/v3/datasets", delay_s=1.5)
    with pytest.raises(CatalogueUnavailable, match="SocketTimeoutError"):
        await catalogue.dataset(pid)


async def test_an_answer_that_trickles(open_catalogue: Open) -> None:
    left = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        catalogue = open_catalogue(endpoint=url, timeout_s=30, total_timeout_s=0.3)
        with pytest.raises(CatalogueUnavailable, match="TimeoutError"):
            await catalogue.groups_of("token")
        await left.wait()


async def test_a_server_that_is_down_may_come_back(own_scicat: ServerProcess, open_catalogue: Open) -> None:
    catalogue = open_catalogue(endpoint=own_scicat.url)
    with closing(Users(own_scicat.url)) as users:
        pid = users.dataset()
    assert await catalogue.healthy()
    own_scicat.stop()
    assert not await catalogue.healthy()
    with pytest.raises(CatalogueUnavailable):
        await catalogue.dataset(pid)
    with pytest.raises(CatalogueUnavailable):
        await catalogue.patch_lifecycle(pid, {"archivable": False})
    own_scicat.start()
    assert (await catalogue.dataset(pid)).pid == pid


async def test_answers_that_make_no_sense_are_no_answers(open_catalogue: Open) -> None:
    with CannedServer() as server:
        catalogue = open_catalogue(endpoint=server.url)
        server.says("POST", "/api/v3/auth/login", Canned(201, b"<html>"))
        with pytest.raises(CatalogueUnavailable):
            await catalogue.dataset("any")
        server.says("POST", "/api/v3/auth/login", Canned(201, b"{}"))
        with pytest.raises(CatalogueUnavailable):
            await catalogue.dataset("any")
        server.says("POST", "/api/v3/auth/login", Canned(201, b'{"access_token": "t", "expires_in": 3600}'))
        server.says("GET", "/api/v3/datasets/any", Canned(200, b"<html>"))
        with pytest.raises(CatalogueUnavailable):
            await catalogue.dataset("any")
        server.says("GET", "/api/v3/datasets/any", Canned(200, b"no gzip", {"Content-Encoding": "gzip"}))
        with pytest.raises(CatalogueUnavailable):
            await catalogue.dataset("any")
