"""scitacean, unmodified, before the stand-in: what it writes and reads with SciCat goes with the stand-in too."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import pydantic
import pytest
from scitacean import PID, Attachment, Client, Dataset, File, RemotePath, ScicatCommError, Thumbnail, model
from scitacean.error import AuthError
from scitacean.transfer.copy import CopyFileTransfer

from domain.lifecycle import ArchiveMoment, FoundLifecycle, RetrieveMoment, archive_fields, retrieve_fields
from tests.fakes.processes import ServerProcess


class Body(pydantic.BaseModel):
    """Any body for scitacean's `call_endpoint`, which has no methods for jobs and life cycles."""

    model_config = pydantic.ConfigDict(extra="allow")


@pytest.fixture
def url(scicat_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return f"{scicat_server.url}/api/v3"


def client(url: str, name: str, password: str = "") -> Client:
    return Client.from_credentials(
        url=url, username=name, password=password or name, file_transfer=CopyFileTransfer(), allow_http=True
    )


@pytest.fixture
def alice(url: str) -> Client:
    return client(url, "alice")


@pytest.fixture
def service(url: str) -> Client:
    return client(url, "archiveManager", "aman")


def described(source_folder: Path | str = "/data/run1", **fields: Any) -> Dataset:
    given: dict[str, Any] = {
        "type": "raw",
        "name": str(uuid4()),
        "owner": "Alice",
        "owner_group": "group1",
        "contact_email": "alice@example.org",
        "principal_investigators": ["Alice", "Bob"],
        "creation_location": "/ETH/ScopeM",
        "creation_time": datetime(2026, 1, 1, tzinfo=UTC),
        "source_folder": RemotePath(str(source_folder)),
        "meta": {"voltage": {"value": 300, "unit": "kV"}},
        "keywords": ["cryo"],
    }
    return Dataset(**given | fields)


def path_of(pid: PID | None) -> str:
    return f"datasets/{quote_plus(str(pid))}"


def test_logging_in(url: str) -> None:
    with pytest.raises(AuthError):
        client(url, "alice", "wrong")
    expired = Client.from_token(url=url, token="no-token", allow_http=True)
    with pytest.raises(ScicatCommError, match="403"):
        expired.upload_new_dataset_now(described())


def test_a_dataset_with_its_files_goes_up_and_comes_back(tmp_path: Path, alice: Client) -> None:
    names = ["a b ü.tif", "empty", "z+%20.txt"]
    for name in names:
        local = tmp_path / "local" / name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(b"" if name == "empty" else name.encode())
    dataset = described(tmp_path / "source")
    dataset.add_files(*(File.from_local(tmp_path / "local" / name, remote_path=name) for name in names))
    uploaded = alice.upload_new_dataset_now(dataset)

    found = alice.get_dataset(str(uploaded.pid), strict_validation=True)
    assert (found.pid, found.name, found.source_folder) == (uploaded.pid, dataset.name, dataset.source_folder)
    assert (found.owner_group, found.created_by, found.principal_investigators) == ("group1", "alice", ["Alice", "Bob"])
    assert (found.meta, found.keywords) == ({"voltage": {"value": 300, "unit": "kV"}}, ["cryo"])
    assert sorted(file.remote_path.posix for file in found.files) == names
    assert (found.number_of_files, found.size) == (3, sum(len(n.encode()) for n in names if n != "empty"))
    down = alice.download_files(found, target=tmp_path / "down", select=True)
    assert sorted(file.local_path.read_bytes() for file in down.files if file.local_path) == [
        b"",
        *sorted(name.encode() for name in names if name != "empty"),
    ]


def test_datasets_are_found(url: str, alice: Client) -> None:
    datasets = [alice.upload_new_dataset_now(described(proposal_ids=["p-1"])) for _ in range(2)]
    for dataset in datasets:
        found = alice.scicat.query_datasets(
            {"datasetName": dataset.name, "proposalIds": ["p-1"]}, strict_validation=True
        )
        assert [one.pid for one in found] == [dataset.pid]
    newest = alice.scicat.query_datasets({"proposalIds": ["p-1"]}, limit=1, order="createdAt:desc")
    assert [one.pid for one in newest] == [datasets[1].pid]
    bob = client(url, "bob")
    assert bob.scicat.query_datasets({"datasetName": datasets[0].name}) == []
    with pytest.raises(ScicatCommError, match="Unauthorized access"):
        bob.get_dataset(str(datasets[0].pid))
    with pytest.raises(ScicatCommError, match="not found"):
        alice.get_dataset("20.500.11935/unknown")


def test_what_is_published_is_for_everybody(url: str, alice: Client) -> None:
    anybody = Client.without_login(url=url, allow_http=True)
    hidden = alice.upload_new_dataset_now(described())
    shown = alice.upload_new_dataset_now(described(is_published=True))
    assert anybody.get_dataset(str(shown.pid), strict_validation=True).name == shown.name
    with pytest.raises(ScicatCommError, match="404"):
        anybody.get_dataset(str(hidden.pid))


def test_what_scicat_refuses(alice: Client) -> None:
    with pytest.raises(ValueError, match="validation"):
        alice.scicat.validate_dataset_model(described(type="nonsense").make_upload_model())
    with pytest.raises(ScicatCommError, match="403"):
        alice.upload_new_dataset_now(described(owner_group="group2"))


def test_a_picture_of_a_dataset(alice: Client) -> None:
    dataset = described()
    dataset.attachments = [
        Attachment(caption="a grid", owner_group="group1", thumbnail=Thumbnail(mime="image/png", data=b"png"))
    ]
    uploaded = alice.upload_new_dataset_now(dataset)
    found = alice.get_dataset(str(uploaded.pid), strict_validation=True, attachments=True)
    assert found.attachments is not None
    [picture] = found.attachments
    assert picture.thumbnail is not None
    assert (picture.caption, picture.thumbnail.decoded_data()) == ("a grid", b"png")


def test_datablocks(alice: Client, service: Client) -> None:
    pid = alice.upload_new_dataset_now(described()).pid
    files = [model.UploadDataFile(path="a", size=10, time=datetime(2026, 1, 1, tzinfo=UTC), chk="ab" * 32)]
    block = model.UploadDatablock(
        archiveId=f"{pid}/1.tar", size=10, packedSize=2048, version="bagit-tar-1", chkAlg="sha256", dataFileList=files
    )
    ask = service.scicat.call_endpoint
    ask(cmd="post", url=f"{path_of(pid)}/datablocks", data=block, operation="registering")
    [found] = ask(cmd="get", url=f"{path_of(pid)}/datablocks", operation="reading")
    registered = model.construct(model.DownloadDatablock, **found)
    assert (registered.archiveId, registered.packedSize, registered.datasetId) == (block.archiveId, 2048, pid)
    with pytest.raises(ScicatCommError, match="500"):
        ask(cmd="post", url=f"{path_of(pid)}/datablocks", data=block, operation="registering")
    assert pid is not None
    seen = alice.scicat.get_dataset_model(pid, strict_validation=True)
    assert (seen.packedSize, seen.numberOfFilesArchived) == (2048, 1)


def test_jobs(alice: Client, service: Client) -> None:
    pid = str(alice.upload_new_dataset_now(described()).pid)
    order = Body.model_validate(
        {"type": "archive", "ownerGroup": "group1", "jobParams": {"datasetList": [{"pid": pid, "files": []}]}}
    )
    posted = alice.scicat.call_endpoint(cmd="post", url="jobs", version="v4", data=order, operation="posting")
    url = f"jobs/{posted['id']}"
    done = Body.model_validate({"statusCode": "finishedSuccessful", "statusMessage": "Done."})
    with pytest.raises(ScicatCommError, match="Unauthorized to update this job"):
        alice.scicat.call_endpoint(cmd="patch", url=url, version="v4", data=done, operation="patching")
    service.scicat.call_endpoint(cmd="patch", url=url, version="v4", data=done, operation="patching")
    assert (
        alice.scicat.call_endpoint(cmd="get", url=url, operation="reading")["jobStatusMessage"] == "finishedSuccessful"
    )
    query = {"filter": json.dumps({"where": {"jobParams.datasetList.pid": pid}})}
    for version in ("v3", "v4"):
        found = alice.scicat.call_endpoint(cmd="get", url="jobs", version=version, params=query, operation="looking")
        assert [job["id"] for job in found] == [posted["id"]]


@pytest.mark.parametrize(
    "fields",
    [
        *(archive_fields(moment, FoundLifecycle(), "as a test") for moment in ArchiveMoment),
        *(retrieve_fields(moment, "as a test") for moment in RetrieveMoment),
    ],
)
def test_what_the_archiver_writes_is_read_without_complaint(
    alice: Client, service: Client, fields: dict[str, object]
) -> None:
    pid = alice.upload_new_dataset_now(described()).pid
    service.scicat.call_endpoint(
        cmd="patch", url=f"{path_of(pid)}/datasetlifecycle", data=Body.model_validate(fields), operation="patching"
    )
    found = alice.get_dataset(str(pid), strict_validation=True)
    assert found.lifecycle is not None
