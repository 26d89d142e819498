"""pyscicat, unmodified, before the stand-in: what it writes and reads with SciCat goes with the stand-in too."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from typing import Any
from uuid import uuid4

import pytest
from pyscicat.client import ScicatClient, ScicatCommError, ScicatLoginError, from_credentials
from pyscicat.model import (
    Attachment,
    CreateDatasetOrigDatablockDto,
    Datablock,
    DataFile,
    DerivedDataset,
    Job,
    RawDataset,
)

from tests.fakes.processes import ServerProcess

FILE = DataFile(
    path="a b/ü +%20.tif", size=10, time="2026-01-02T03:04:05.123Z", perm="-rw-r--r--", uid="0", gid="users"
)
OWNED: dict[str, Any] = {
    "owner": "Alice",
    "contactEmail": "alice@example.org",
    "sourceFolder": "/data/run1",
    "creationTime": "2026-01-01T00:00:00Z",
    "ownerGroup": "group1",
}


class Block(Datablock, CreateDatasetOrigDatablockDto):
    """A datablock as SciCat wants it: pyscicat's model has neither files nor archiveId."""

    archiveId: str  # noqa: N815
    chkAlg: str | None = None  # noqa: N815  # pyright: ignore[reportIncompatibleVariableOverride]


class ArchiveJob(Job):
    """A job with a list of datasets; pyscicat's model has an object there."""

    datasetList: list[dict[str, Any]] = []  # noqa: N815  # pyright: ignore[reportIncompatibleVariableOverride]


@pytest.fixture
def url(scicat_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return f"{scicat_server.url}/api/v3"


@pytest.fixture
def alice(url: str) -> ScicatClient:
    return from_credentials(url, "alice", "alice")


def raw(**fields: Any) -> RawDataset:
    return RawDataset(
        **OWNED, creationLocation="/ETH/ScopeM", principalInvestigator="Alice", datasetName=str(uuid4()), **fields
    )


def test_logging_in(url: str) -> None:
    assert ScicatClient(url, username="alice", password="alice").datasets_find() is not None
    with pytest.raises(ScicatLoginError):
        ScicatClient(url, username="alice", password="wrong")
    with pytest.raises(ScicatCommError, match="Forbidden"):
        ScicatClient(url, token="expired").datasets_create(raw())


def test_a_dataset_is_created_changed_found_and_read(url: str, alice: ScicatClient) -> None:
    described = raw(scientificMetadata={"voltage": {"value": 300, "unit": "kV"}}, keywords=["cryo"], sampleId="s-1")
    pid = alice.datasets_create(described)
    found = alice.datasets_get_one(pid)
    assert found is not None
    assert found["pid"] == pid
    assert found["scientificMetadata"] == {"voltage": {"value": 300, "unit": "kV"}}
    assert (found["principalInvestigator"], found["sampleId"]) == ("Alice", "s-1")
    listed = [{name: value for name, value in found.items() if name != "history"}]
    assert alice.datasets_get_many({"datasetName": described.datasetName}) == listed
    assert (
        alice.datasets_get_many({"sampleId": "s-1", "datasetName": {"like": str(described.datasetName)[:20]}}) == listed
    )
    assert alice.datasets_find(query_fields={"text": described.datasetName}, limit=5) == listed
    bob = from_credentials(url, "bob", "bob")
    assert bob.datasets_get_many({"pid": pid}) == []
    with pytest.raises(ScicatCommError, match="Unauthorized access"):
        bob.datasets_get_one(pid)
    with pytest.raises(ScicatCommError, match="not found"):
        alice.datasets_get_one("20.500.11935/unknown")


def test_a_derived_dataset(alice: ScicatClient) -> None:
    pid = alice.datasets_create(raw())
    derived = DerivedDataset(**OWNED, investigator="Alice", inputDatasets=[pid], usedSoftware=["imod"])
    found = alice.datasets_get_one(alice.datasets_create(derived))
    assert found is not None
    assert (found["type"], found["inputDatasets"], found["investigator"]) == ("derived", [pid], "Alice")


def test_original_datablocks(alice: ScicatClient) -> None:
    pid = alice.datasets_create(raw())
    for n in range(12):
        block = CreateDatasetOrigDatablockDto(
            size=10, dataFileList=[FILE.model_copy(update={"path": f"{n} {FILE.path}"})]
        )
        assert alice.datasets_origdatablock_create(pid, block)["datasetId"] == pid
    blocks: Any = alice.datasets_origdatablocks_get_one(pid)
    assert [file["path"] for block in blocks for file in block["dataFileList"]] == [
        f"{n} {FILE.path}" for n in range(12)
    ]
    found = alice.datasets_get_one(pid)
    assert found is not None
    assert (found["size"], found["numberOfFiles"]) == (120, 12)


def test_a_picture_of_a_dataset(alice: ScicatClient) -> None:
    pid = alice.datasets_create(raw())
    picture = Attachment(ownerGroup="group1", thumbnail="data:image/png;base64,AAAA", caption="a grid", datasetId=pid)
    assert alice.datasets_attachment_create(picture)["datasetId"] == pid


def test_datablocks_and_jobs(url: str, alice: ScicatClient) -> None:
    service = from_credentials(url, "archiveManager", "aman")
    pid = alice.datasets_create(raw())
    block = Block(
        ownerGroup="group1",
        datasetId=pid,
        archiveId=f"{pid}/1.tar",
        size=10,
        packedSize=2048,
        version="bagit-tar-1",
        chkAlg="sha256",
        dataFileList=[FILE],
    )
    registered = service._call_endpoint("post", "Datablocks", block)
    assert registered is not None
    with pytest.raises(ScicatCommError, match="Internal server error"):
        service._call_endpoint("post", "Datablocks", block)
    found = alice.datasets_get_one(pid)
    assert found is not None
    assert (found["packedSize"], found["numberOfFilesArchived"]) == (2048, 1)

    order = ArchiveJob(
        type="archive", emailJobInitiator="alice@example.org", datasetList=[{"pid": pid, "files": []}], jobParams={}
    )
    posted = alice._call_endpoint("post", "Jobs", order)
    assert posted is not None
    assert (posted["jobStatusMessage"], posted["datasetList"]) == ("jobSubmitted", order.datasetList)
    done = Job.model_construct(jobStatusMessage="finishedSuccessful", jobResultObject={"result": []})
    assert service._call_endpoint("patch", f"Jobs/{posted['id']}", done)
    job = alice._call_endpoint("get", f"Jobs/{posted['id']}")
    assert job is not None
    assert (job["jobStatusMessage"], job["jobResultObject"]) == ("finishedSuccessful", {"result": []})
    with pytest.raises(ScicatCommError, match="Unauthorized to update this job"):
        alice._call_endpoint("patch", f"Jobs/{posted['id']}", done)
    with pytest.raises(ScicatCommError, match="Invalid job id"):
        alice._call_endpoint("get", "Jobs/unknown")


def test_only_who_may_deletes(url: str, alice: ScicatClient) -> None:
    pid = alice.datasets_create(raw())
    with pytest.raises(ScicatCommError, match="Forbidden"):
        alice.datasets_delete(pid)
    from_credentials(url, "archiveManager", "aman").datasets_delete(pid)
    with pytest.raises(ScicatCommError, match="not found"):
        alice.datasets_get_one(pid)
