"""The stand-in behaves as scicat-contract.md says, traps first; each test names what was observed of SciCat 4.27."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from mock_scicat.app import create_app
from mock_scicat.config import Account, Config

JSON = dict[str, Any]

ACCOUNTS = tuple(
    Account(username=name, password=name, groups=groups, email=f"{name}@example.org")
    for name, groups in (
        ("archiveManager", ("archivemanager",)),
        ("ingestor", ("ingestor",)),
        ("root", ("admin",)),
        ("alice", ("group1",)),
        ("bob", ("group2",)),
        ("service", ("archivemanager", "admin")),
    )
)
OBSERVED = Config(
    accounts=ACCOUNTS, update_job_privileged_groups="", job_update_auth="archiveManager", jwt_secret="test secret"
)
"""The group settings of the run that the contract was observed in."""

FORBIDDEN = {"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403}
FILE: JSON = {"path": "a b/ü.tif", "size": 10, "time": "2026-01-02T03:04:05.123456789+01:00"}
RAW: JSON = {
    "type": "raw",
    "owner": "Alice",
    "contactEmail": "alice@example.org",
    "sourceFolder": "/data/run1/",
    "creationTime": "2026-01-01T00:00:00Z",
    "ownerGroup": "group1",
    "principalInvestigator": "Alice",
    "creationLocation": "/ETH/ScopeM",
}
RAW_V4 = {name: value for name, value in RAW.items() if name != "principalInvestigator"}


class Scicat:
    """A stand-in in this process, and calls to it under anybody's name."""

    def __init__(self, config: Config = OBSERVED, job_transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.app: FastAPI = create_app(config, job_transport=job_transport)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://scicat")

    def token(self, username: str) -> str:
        accounts = self.app.state.world.accounts
        return accounts.token(accounts.find(username))

    async def call(self, who: str | None, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        headers: dict[str, str] = {"authorization": f"Bearer {self.token(who)}"} if who else {}
        headers |= more.pop("headers", {})
        if body is not None:
            more["content"] = json.dumps(body)
            headers.setdefault("content-type", "application/json")
        return await self.client.request(method, f"/api/{path}", headers=headers, **more)

    async def made(self, who: str, path: str, body: JSON) -> JSON:
        response = await self.call(who, "POST", path, body)
        assert response.status_code == 201, response.text
        return response.json()

    async def dataset(self, **fields: Any) -> str:
        """A dataset of group1, percent-encoded as paths want it."""
        return quote((await self.made("ingestor", "v3/datasets", RAW | fields))["pid"], safe="")

    async def job(self, who: str = "alice", kind: str = "archive", *, pid: str) -> JSON:
        body: JSON = {"type": kind, "datasetList": [{"pid": pid.replace("%2F", "/"), "files": []}]}
        return await self.made(who, "v3/jobs", body)

    async def close(self) -> None:
        await self.client.aclose()
        self.app.state.world.store.close()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Scicat]]:
    made: list[Scicat] = []

    def _make(config: Config = OBSERVED, job_transport: httpx.AsyncBaseTransport | None = None) -> Scicat:
        made.append(Scicat(config, job_transport))
        return made[-1]

    yield _make
    for scicat in made:
        await scicat.close()


@pytest.fixture
def scicat(make: Callable[..., Scicat]) -> Scicat:
    return make()


def datablock(archive_id: str, **fields: Any) -> JSON:
    block: JSON = {"archiveId": archive_id, "size": 10, "packedSize": 12, "version": "1", "dataFileList": [FILE]}
    return block | fields


# -- trap 1: tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "v3/datasets"),
        ("GET", "v4/datasets/{pid}"),
        ("PATCH", "v3/datasets/{pid}/datasetlifecycle"),
        ("GET", "v3/datasets/{pid}/origdatablocks"),
        ("POST", "v3/datasets/{pid}/datablocks"),
        ("GET", "v4/jobs/x"),
        ("POST", "v3/jobs"),
    ],
)
@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "expired", "raw"])
async def test_a_bad_token_is_403(
    make: Callable[..., Scicat], scicat: Scicat, method: str, path: str, authorization: str
) -> None:
    pid = await scicat.dataset()
    if authorization == "expired":
        authorization = f"Bearer {make(replace(OBSERVED, token_ttl_s=-1)).token('root')}"
    elif authorization == "raw":
        authorization = scicat.token("root")
    response = await scicat.call(
        None, method, path.format(pid=pid), {"type": "archive"}, headers={"authorization": authorization}
    )
    assert (response.status_code, response.json()["error"]) == (403, "Forbidden")
    assert response.json()["message"] in ("Forbidden resource", "Unauthorized access")


@pytest.mark.parametrize("end", ["self", "identity"])
async def test_only_users_my_answers_401(scicat: Scicat, end: str) -> None:
    response = await scicat.call(None, "GET", f"v3/users/my/{end}")
    assert response.status_code == 401
    assert response.json() == {"message": "Unauthenticated", "error": "Unauthorized", "statusCode": 401}


async def test_login_by_json_and_by_form(scicat: Scicat) -> None:
    credentials = {"username": "alice", "password": "alice"}
    for answer in (
        await scicat.client.post("/api/v3/auth/login", json=credentials),
        await scicat.client.post("/api/v3/auth/login", data=credentials),
    ):
        assert answer.status_code == 201
        body = answer.json()
        assert body["id"] == body["access_token"]
        assert body["expires_in"] == body["ttl"] == 3600
        assert body["user"].keys() == {"username", "email", "authStrategy", "_id", "id", "__v"}
        claims = json.loads(base64.urlsafe_b64decode(body["access_token"].split(".")[1] + "=="))
        assert claims.keys() == {"username", "email", "authStrategy", "_id", "id", "iat", "exp"}
        bearer = {"authorization": f"Bearer {body['access_token']}"}
        whoami = await scicat.client.get("/api/v3/auth/whoami", headers=bearer)
        assert whoami.json()["currentGroups"] == ["group1"]
    wrong = await scicat.client.post("/api/v3/auth/login", json=credentials | {"password": "x"})
    assert (wrong.status_code, wrong.json()) == (401, {"message": "Unauthorized", "statusCode": 401})
    assert (await scicat.client.post("/api/v4/auth/login", json=credentials)).status_code == 404


async def test_who_am_i_and_health(scicat: Scicat) -> None:
    me = (await scicat.call("alice", "GET", "v3/users/my/self")).json()
    assert me.keys() == {"username", "email", "authStrategy", "_id", "__v", "id"}
    identity = (await scicat.call("alice", "GET", "v3/users/my/identity")).json()
    assert identity["profile"]["accessGroups"] == ["group1"]
    same = await scicat.call("alice", "GET", f"v3/Users/{me['id']}/userIdentity")
    assert same.json() == identity
    policies = await scicat.call(
        "alice", "GET", "v3/Policies", params={"filter": '{"where": {"ownerGroup": "group1"}}'}
    )
    assert (policies.status_code, policies.json()) == (200, [])
    assert (await scicat.call(None, "GET", "v3/health")).json()["status"] == "ok"
    assert (await scicat.call(None, "GET", "v4/health")).status_code == 404
    assert (await scicat.client.get("/explorer-json")).json()["openapi"]


# -- paths -------------------------------------------------------------------------------------------------------


async def test_a_raw_slash_in_a_pid_is_an_unknown_route(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    for encoded in (pid, pid.replace("%2F", "%2f")):
        assert (await scicat.call("alice", "GET", f"v3/datasets/{encoded}")).status_code == 200
    raw = pid.replace("%2F", "/")
    response = await scicat.call("alice", "GET", f"v3/datasets/{raw}")
    assert (response.status_code, response.json()["message"]) == (404, f"Cannot GET /api/v3/datasets/{raw}")
    wrong_method = await scicat.call("alice", "PUT", f"v3/datasets/{pid}/datasetlifecycle", {})
    assert (wrong_method.status_code, wrong_method.json()["statusCode"]) == (404, 404)


@pytest.mark.parametrize("pid", ["p/a b", "p/a+b", "p/x/y", "p/what?", "p/é", "p/100%25"])
@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_odd_pids_round_trip(scicat: Scicat, pid: str, version: str) -> None:
    encoded = await scicat.dataset(pid=pid)
    assert (await scicat.call("alice", "GET", f"{version}/Datasets/{encoded}")).json()["pid"] == pid
    patched = await scicat.call(
        "alice", "PATCH", f"{version}/datasets/{encoded}/datasetLifecycle", {"archivable": False}
    )
    assert patched.status_code == 200


# -- trap 2: the life cycle --------------------------------------------------------------------------------------

MERGE = {"content-type": "application/merge-patch+json"}


@pytest.mark.parametrize(
    ("path", "headers", "kept"),
    [
        ("v3/datasets/{pid}", {}, False),
        ("v3/datasets/{pid}", MERGE, False),
        ("v4/datasets/{pid}", {}, False),
        ("v4/datasets/{pid}", MERGE, True),
        ("v3/datasets/{pid}/datasetlifecycle", {}, True),
        ("v4/datasets/{pid}/datasetlifecycle", {}, True),
    ],
)
async def test_which_patch_resets_the_lifecycle(scicat: Scicat, path: str, headers: JSON, kept: bool) -> None:
    pid = await scicat.dataset(datasetlifecycle={"archivable": False, "archiveStatusMessage": "started"})
    body: JSON = {"retrieveStatusMessage": "hello"}
    if not path.endswith("lifecycle"):
        body = {"datasetlifecycle": body}
    assert (await scicat.call("alice", "PATCH", path.format(pid=pid), body, headers=headers)).status_code == 200
    lifecycle = (await scicat.call("alice", "GET", f"v3/datasets/{pid}/datasetlifecycle")).json()
    assert lifecycle["retrieveStatusMessage"] == "hello"
    expected = (False, "started") if kept else (True, "datasetCreated")
    assert (lifecycle["archivable"], lifecycle["archiveStatusMessage"]) == expected


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_lifecycle_errors(scicat: Scicat, version: str) -> None:
    path = f"{version}/datasets/{await scicat.dataset()}/datasetlifecycle"
    refusals: list[tuple[JSON, Any]] = [
        ({}, "dataset lifecycle DTO must not be empty"),
        ({"nonsense": 1}, ["property nonsense should not exist"]),
        ({"archivable": "yes"}, ["archivable must be a boolean value"]),
    ]
    for body, message in refusals:
        response = await scicat.call("archiveManager", "PATCH", path, body)
        assert (response.status_code, response.json()["message"]) == (400, message)
    unknown = await scicat.call(
        "archiveManager", "PATCH", f"{version}/datasets/X/datasetlifecycle", {"archivable": True}
    )
    assert (unknown.status_code, unknown.json()["message"]) == (404, "dataset with pid X not found")
    text = await scicat.call(
        "archiveManager", "PATCH", path, {"archivable": True}, headers={"content-type": "text/plain"}
    )
    assert (text.status_code, text.json()) == (500, "Internal server error")
    null = await scicat.call("archiveManager", "PATCH", path, {"archiveStatusMessage": None, "archivable": False})
    assert null.json()["archiveStatusMessage"] == (None if version == "v3" else "datasetCreated")


@pytest.mark.parametrize(
    ("who", "status"), [("root", 200), ("alice", 200), ("archiveManager", 200), ("bob", 403), ("ingestor", 403)]
)
async def test_who_changes_a_lifecycle(scicat: Scicat, who: str, status: int) -> None:
    pid = await scicat.dataset()
    messages = {"v3": "Unauthorized to update this dataset", "v4": "Unauthorized access"}
    for version, message in messages.items():
        response = await scicat.call(who, "PATCH", f"{version}/datasets/{pid}/datasetlifecycle", {"retrievable": True})
        assert response.status_code == status
        assert status == 200 or response.json()["message"] == message


async def test_group_settings_are_compared_as_substrings(make: Callable[..., Scicat]) -> None:
    scicat = make(replace(OBSERVED, update_dataset_lifecycle_groups="archivemanager,group22"))
    pid = await scicat.dataset()
    response = await scicat.call("bob", "PATCH", f"v3/datasets/{pid}/datasetlifecycle", {"retrievable": True})
    assert response.status_code == 200  # bob is in group2 only


# -- datasets ----------------------------------------------------------------------------------------------------


async def test_a_new_dataset(scicat: Scicat) -> None:
    v3 = await scicat.made("alice", "v3/datasets", RAW)
    assert v3["pid"] == v3["_id"]
    assert re.fullmatch(r"20\.500\.11935/[0-9a-f-]{36}", v3["pid"])
    assert [v3[n] for n in ("size", "packedSize", "numberOfFiles", "numberOfFilesArchived")] == [0, 0, 0, 0]
    assert (v3["principalInvestigator"], v3["version"], v3["createdBy"]) == ("Alice", "3", "alice")
    assert v3["datasetlifecycle"]["archivable"] is True
    v4 = await scicat.made("alice", "v4/datasets", RAW_V4 | {"principalInvestigators": ["Alice", "Bob"]})
    assert "principalInvestigator" not in v4
    assert v4["principalInvestigators"] == ["Alice", "Bob"]


async def test_dataset_violations_are_a_string_in_v3_and_a_list_in_v4(scicat: Scicat) -> None:
    bad = {n: v for n, v in RAW.items() if n != "owner"} | {"nonsense": 1}
    v3 = await scicat.call("alice", "POST", "v3/datasets", bad)
    assert v3.json().keys() == {"status", "message"}
    assert json.loads(v3.json()["message"]) == [
        {"property": "nonsense", "constraints": {"whitelistValidation": "property nonsense should not exist"}},
        {"property": "owner", "constraints": {"isString": "owner must be a string"}},
    ]
    v4 = await scicat.call("alice", "POST", "v4/datasets", RAW)
    assert (v4.status_code, v4.json()["message"]) == (400, ["property principalInvestigator should not exist"])
    assert (await scicat.call("alice", "POST", "v3/datasets/isValid", RAW)).json() == {"valid": True}
    assert (await scicat.call("alice", "POST", "v3/datasets/isValid", bad)).json()["valid"] is False
    malformed = await scicat.call(
        "alice", "POST", "v3/datasets", content=b'{"a":', headers={"content-type": "application/json"}
    )
    assert malformed.status_code == 400
    assert isinstance(malformed.json()["message"], str)


async def test_who_creates_datasets(scicat: Scicat) -> None:
    assert (await scicat.call(None, "POST", "v3/datasets", RAW)).json() == FORBIDDEN
    assert (await scicat.call("bob", "POST", "v3/datasets", RAW)).status_code == 403
    assert (await scicat.call("alice", "POST", "v3/datasets", RAW | {"pid": "mine"})).status_code == 403
    assert (await scicat.made("ingestor", "v3/datasets", RAW | {"pid": "theirs"}))["pid"] == "theirs"
    again = await scicat.call("root", "POST", "v3/datasets", RAW | {"pid": "theirs"})
    assert (again.status_code, again.json()["message"]) == (409, "A dataset with pid theirs already exists!")


async def test_reading_datasets(scicat: Scicat) -> None:
    mine = await scicat.dataset(datasetName="mine")
    await scicat.dataset(datasetName="shown", isPublished=True)
    assert (await scicat.call("bob", "GET", f"v3/datasets/{mine}")).status_code == 403
    for version, name in (("v3", "X"), ("v4", "null")):
        unknown = await scicat.call("bob", "GET", f"{version}/datasets/X")
        assert (unknown.status_code, unknown.json()["message"]) == (404, f"dataset: {name} not found")
        names = [d["datasetName"] for d in (await scicat.call(None, "GET", f"{version}/datasets")).json()]
        assert names == ["shown"]
    where = {"where": {"datasetName": {"inq": ["mine", "x"]}, "datasetlifecycle.archivable": True}}
    found = await scicat.call("alice", "GET", "v3/datasets", params={"filter": json.dumps(where)})
    assert [d["datasetName"] for d in found.json()] == ["mine"]
    limits = {"limits": {"limit": 1, "skip": 0, "order": "datasetName:desc"}, "fields": ["datasetName"]}
    found = await scicat.call("alice", "GET", "v4/datasets", params={"filter": json.dumps(limits)})
    assert found.json() == [{"datasetName": "shown"}]
    query = {"fields": json.dumps({"ownerGroup": ["group1"], "text": "MINE"}), "limits": json.dumps({"limit": 5})}
    found = await scicat.call("alice", "GET", "v3/datasets/fullquery", params=query)
    assert [d["datasetName"] for d in found.json()] == ["mine"]


async def test_what_is_published_needs_no_token_in_v4(scicat: Scicat) -> None:
    hidden, shown = await scicat.dataset(), await scicat.dataset(datasetName="shown", isPublished=True)
    await scicat.made("bob", f"v3/datasets/{shown}/origdatablocks", {"size": 1, "dataFileList": [FILE]})
    listed = await scicat.call(None, "GET", "v4/datasets/public")
    assert [d["datasetName"] for d in listed.json()] == ["shown"]
    one = await scicat.call(None, "GET", f"v4/datasets/public/{shown}", params={"include": ["origdatablocks"]})
    assert [len(block["dataFileList"]) for block in one.json()["origdatablocks"]] == [1]
    for path in (f"v4/datasets/public/{hidden}", "v4/datasets/public/X", f"v3/datasets/public/{shown}"):
        assert (await scicat.call(None, "GET", path)).status_code == 404


async def test_lists_have_limits_of_their_own(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    own = {"datasetId": pid.replace("%2F", "/")}
    for n in range(12):
        await scicat.made("bob", f"v3/datasets/{pid}/origdatablocks", {"size": n, "dataFileList": [FILE]})
        await scicat.dataset(datasetName=str(n))

    async def sizes(version: str, **limits: Any) -> list[int]:
        query = {"filter": json.dumps({"where": own, "limits": limits})}
        return [
            block["size"]
            for block in (await scicat.call("alice", "GET", f"{version}/origdatablocks", params=query)).json()
        ]

    assert await sizes("v3") == [*range(12)]
    assert await sizes("v4", sort={"size": "asc"}, limit=50) == [*range(12)]
    assert len(await sizes("v4")) == 10
    assert set(await sizes("v4", limit=5, sort={"size": "desc"})) == {7, 8, 9, 10, 11}
    assert len((await scicat.call("alice", "GET", "v4/datasets")).json()) == 10
    assert len((await scicat.call("alice", "GET", "v3/datasets")).json()) == 13


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_facets_and_counts(scicat: Scicat, version: str) -> None:
    first = await scicat.dataset(keywords=["a", "b"])
    await scicat.dataset(keywords=["a"], datasetlifecycle={"archivable": False})
    await scicat.dataset(ownerGroup="group2")
    await scicat.job(pid=first)
    query = {"fields": json.dumps({"ownerGroup": ["group1"]}), "facets": json.dumps(["keywords", "type"])}
    [facets] = (await scicat.call("root", "GET", f"{version}/datasets/fullfacet", params=query)).json()
    assert facets == {
        "all": [{"totalSets": 2}],
        "keywords": [{"_id": "a", "count": 2}, {"_id": "b", "count": 1}],
        "type": [{"_id": "raw", "count": 2}],
    }
    status = "jobStatusMessage" if version == "v3" else "statusCode"
    query = {"fields": json.dumps({status: "jobSubmitted"}), "facets": json.dumps(["type"])}
    for who, number in {"alice": 1, "bob": 0}.items():
        [facets] = (await scicat.call(who, "GET", f"{version}/jobs/fullfacet", params=query)).json()
        assert (len(facets["all"]), len(facets["type"])) == (number, number)
    where = {"filter": json.dumps({"where": {"datasetlifecycle.archivable": True}})}
    for who, number in {"root": 2, "alice": 1}.items():
        count = await scicat.call(who, "GET", f"{version}/datasets/count", params=where)
        assert count.json() == {"count": number}


async def test_who_changes_and_deletes_datasets(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    for who, status in {"archiveManager": 403, "ingestor": 403, "bob": 403, "alice": 200, "root": 200}.items():
        response = await scicat.call(who, "PATCH", f"v3/datasets/{pid}", {"description": who})
        assert response.status_code == status, who
    assert (await scicat.call("alice", "PATCH", f"v3/datasets/{pid}", {"pid": "x"})).status_code == 400
    for date, status in {"Mon, 01 Jan 2024 00:00:00 GMT": 412, "Mon, 01 Jan 2125 00:00:00 GMT": 200}.items():
        late = await scicat.call(
            "alice", "PATCH", f"v4/datasets/{pid}", {"comment": "c"}, headers={"if-unmodified-since": date}
        )
        assert late.status_code == status
    for who, status in {"alice": 403, "root": 403, "ingestor": 403, "archiveManager": 200}.items():
        assert (await scicat.call(who, "DELETE", f"v3/datasets/{pid}")).status_code == status, who


# -- the Go Ingestor ---------------------------------------------------------------------------------------------


async def test_the_ingestors_calls_in_its_order(scicat: Scicat) -> None:
    me = (await scicat.call("alice", "GET", "v3/users/my/self")).json()
    identity = await scicat.call("alice", "GET", f"v3/users/{me['id']}/userIdentity")
    [group] = identity.json()["profile"]["accessGroups"]
    lifecycle = {"archivable": False, "archiveStatusMessage": "filesNotYetAvailable", "storageLocation": "landingzone"}
    body = RAW | {"ownerGroup": group, "datasetlifecycle": lifecycle, "scientificMetadata": {"a": 1}}
    assert (await scicat.call("alice", "POST", "v3/datasets/isValid", body)).json() == {"valid": True}
    assert (await scicat.call("alice", "GET", 'v3/Policies?filter={"where":{"ownerGroup":"group1"}}')).json() == []
    pid = (await scicat.made("alice", "v3/datasets", body))["pid"]
    folder = {"path": "a b", "size": 4096, "time": "2026-01-02T03:04:05.123456789+01:00", "perm": "drwxr-xr-x"}
    file = FILE | {"perm": "-rw-r--r--", "uid": "alice", "gid": "users"}
    block: JSON = {
        "size": 4106,
        "dataFileList": [folder, file],
        "datasetId": pid,
        "ownerGroup": group,
        "accessGroups": [],
    }
    await scicat.made("alice", "v3/origdatablocks", block)
    found = (await scicat.call("alice", "GET", f"v3/datasets/{quote(pid, safe='')}")).json()
    assert (found["size"], found["numberOfFiles"]) == (4106, 2)
    assert found["datasetlifecycle"].items() >= lifecycle.items()
    assert found["datasetlifecycle"]["retrievable"] is False


# -- traps 3, 4, 11: datablocks ----------------------------------------------------------------------------------


async def test_an_archive_id_is_unique_over_all_datasets(scicat: Scicat) -> None:
    first, second = await scicat.dataset(), await scicat.dataset()
    await scicat.made("archiveManager", f"v3/datasets/{first}/datablocks", datablock("tar-1"))
    again = await scicat.call("archiveManager", "POST", f"v3/datasets/{second}/datablocks", datablock("tar-1"))
    assert (again.status_code, again.json()) == (500, "Internal server error")
    assert (await scicat.call("alice", "GET", f"v3/datasets/{second}")).json()["packedSize"] == 0


@pytest.mark.parametrize("name", ["rawDatasetId", "datasetId", "ownerGroup", "id"])
async def test_extra_properties_of_a_datablock_are_refused(scicat: Scicat, name: str) -> None:
    path = f"v3/datasets/{await scicat.dataset()}/datablocks"
    response = await scicat.call("archiveManager", "POST", path, datablock("tar", **{name: "x"}))
    assert response.json() == {
        "message": [f"property {name} should not exist"],
        "error": "Bad Request",
        "statusCode": 400,
    }


async def test_a_body_over_16_mb_is_a_bare_500(scicat: Scicat) -> None:
    path = f"v3/datasets/{await scicat.dataset()}/datablocks"
    room = 16 * 1024 * 1024 - len(json.dumps(datablock("tar", chkAlg="")))
    too_large = await scicat.call("archiveManager", "POST", path, datablock("tar", chkAlg="x" * (room + 1)))
    assert (too_large.status_code, too_large.json()) == (500, "Internal server error")
    await scicat.made("archiveManager", path, datablock("tar", chkAlg="x" * room))


async def test_blocks_and_counters(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    path = f"v3/datasets/{pid}"
    assert (await scicat.call("alice", "GET", f"{path}/origdatablocks")).json() == []
    await scicat.made("ingestor", f"{path}/origdatablocks", {"size": 10, "dataFileList": [FILE]})
    orig = await scicat.made(
        "ingestor", "v3/OrigDatablocks", {"datasetId": pid.replace("%2F", "/"), "size": 5, "dataFileList": [FILE]}
    )
    assert orig["ownerGroup"] == "group1"
    assert orig["dataFileList"][0]["time"] == "2026-01-02T02:04:05.123Z"
    blocks = [await scicat.made("service", f"{path}/datablocks", datablock(f"tar-{n}")) for n in range(3)]
    dataset = (await scicat.call("alice", "GET", path)).json()
    counters = ("size", "numberOfFiles", "packedSize", "numberOfFilesArchived")
    assert [dataset[n] for n in counters] == [15, 2, 36, 3]
    assert (await scicat.call("alice", "GET", f"{path}/datablocks/count")).json() == {"count": 3}

    one = f"{path}/datablocks/{blocks[0]['id']}"
    assert (await scicat.call("alice", "GET", one)).status_code == 404
    empty = await scicat.call("alice", "PATCH", one, {"packedSize": 20})
    assert (empty.status_code, empty.json()["message"]) == (400, ["dataFileList should not be empty"])
    await scicat.call("alice", "PATCH", one, {"packedSize": 20, "dataFileList": [FILE, FILE]})
    dataset = (await scicat.call("alice", "GET", path)).json()
    assert [dataset[n] for n in counters] == [15, 2, 44, 4]
    gone = await scicat.call("service", "DELETE", one)
    assert (gone.status_code, gone.content) == (200, b"")
    again = await scicat.call("service", "DELETE", one)
    assert (again.status_code, again.json()["message"]) == (404, f"datablock: {blocks[0]['id']} not found")
    assert (await scicat.call("service", "DELETE", f"{path}/datablocks")).json() == {"count": 2}
    dataset = (await scicat.call("alice", "GET", path)).json()
    assert [dataset[n] for n in counters] == [15, 2, 0, 0]


async def test_files_of_a_block_are_checked(scicat: Scicat) -> None:
    path = f"v3/datasets/{await scicat.dataset()}/origdatablocks"
    body: JSON = {"size": 1, "dataFileList": [FILE | {"perm": 420}]}
    response = await scicat.call("ingestor", "POST", path, body)
    assert response.json()["message"] == ["dataFileList.0.perm must be a string"]
    empty = await scicat.call("ingestor", "POST", path, {"size": 1.5, "dataFileList": []})
    assert empty.json()["message"] == ["size must be an integer number", "dataFileList should not be empty"]


@pytest.mark.parametrize(
    ("who", "read", "delete", "top_level"),
    [
        ("root", 200, 403, 200),
        ("alice", 200, 403, 200),
        ("bob", 403, 403, 403),
        ("ingestor", 403, 403, 403),
        ("archiveManager", 403, 200, 200),
        ("service", 200, 200, 200),
    ],
)
async def test_who_reads_and_deletes_blocks(scicat: Scicat, who: str, read: int, delete: int, top_level: int) -> None:
    pid = await scicat.dataset()
    path = f"v3/datasets/{pid}"
    # Anybody who is logged in may add, to any dataset.
    await scicat.made("bob", f"{path}/origdatablocks", {"size": 1, "dataFileList": [FILE]})
    block = await scicat.made("bob", f"{path}/datablocks", datablock("tar"))
    for kind in ("origdatablocks", "datablocks"):
        assert (await scicat.call(who, "GET", f"{path}/{kind}")).status_code == read
    where = json.dumps({"where": {"datasetId": pid.replace("%2F", "/")}})
    listed = await scicat.call(who, "GET", "v4/origdatablocks", params={"filter": where})
    assert len(listed.json()) == (1 if read == 200 else 0)
    assert (await scicat.call(who, "GET", f"v3/datablocks/{block['id']}")).status_code == top_level
    assert (await scicat.call(who, "DELETE", f"{path}/datablocks/{block['id']}")).status_code == delete


async def test_a_lifecycle_account_reads_blocks_by_inclusion(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    await scicat.made("bob", f"v3/datasets/{pid}/origdatablocks", {"size": 1, "dataFileList": [FILE]})
    include = {"include": [{"relation": "origdatablocks"}, {"relation": "datablocks"}]}
    dataset = await scicat.call("archiveManager", "GET", f"v3/datasets/{pid}", params={"filter": json.dumps(include)})
    assert len(dataset.json()["origdatablocks"]) == 1
    assert dataset.json()["datablocks"] == []


# -- traps 5 to 9: jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_an_unknown_job_is_400(scicat: Scicat, version: str) -> None:
    unknown = {"status": 400, "message": "Invalid job id."}
    got = await scicat.call("root", "GET", f"{version}/jobs/x")
    assert (got.status_code, got.json()) == (400, unknown)
    patched = await scicat.call("root", "PATCH", f"{version}/jobs/x", {"statusCode": "a", "statusMessage": "b"})
    assert (patched.status_code, patched.json()) == (400, unknown)
    deleted = await scicat.call("archiveManager", "DELETE", f"{version}/jobs/x")
    assert (deleted.status_code, deleted.json()["message"]) == (400, "Job id x doesn't exist.")


async def test_the_two_forms_of_a_job(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    job = await scicat.job(pid=pid)
    assert job["jobStatusMessage"] == "jobSubmitted"
    assert job["jobParams"] == {"username": "alice"}
    assert job["datasetList"] == [{"pid": pid.replace("%2F", "/"), "files": []}]
    assert job["emailJobInitiator"] == "alice@example.org"
    v4 = (await scicat.call("alice", "GET", f"v4/jobs/{job['id']}")).json()
    assert (v4["statusCode"], v4["statusMessage"]) == ("jobSubmitted", "Job submitted.")
    assert (v4["ownerUser"], v4["ownerGroup"]) == ("alice", "group1")
    assert v4["jobParams"] == {"datasetList": job["datasetList"]}

    body = {"type": "archive", "ownerGroup": "group1", "jobParams": {"datasetList": job["datasetList"], "copies": 2}}
    made = await scicat.made("alice", "v4/jobs", body)  # trap 7: a second archive job is accepted
    v3 = (await scicat.call("alice", "GET", f"v3/jobs/{made['id']}")).json()
    assert v3["jobParams"] == {"username": "alice", "copies": 2}
    details = await scicat.call("alice", "GET", "v3/jobs/datasetDetails", params={"jobId": made["id"]})
    assert [d["pid"] for d in details.json()] == [pid.replace("%2F", "/")]


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_finding_jobs(scicat: Scicat, version: str) -> None:
    pid = await scicat.dataset()
    job = await scicat.job(pid=pid)
    await scicat.job(pid=await scicat.dataset())
    names = {
        "v3": ("jobStatusMessage", "emailJobInitiator", "creationTime"),
        "v4": ("statusCode", "contactEmail", "createdAt"),
    }
    status, email, created = names[version]

    async def found(**query: Any) -> list[JSON]:
        return (await scicat.call("alice", "GET", f"{version}/jobs", params={"filter": json.dumps(query)})).json()

    stored = {"jobParams.datasetList.pid": pid.replace("%2F", "/")}
    assert [one["id"] for one in await found(where=stored | {"type": "archive", status: "jobSubmitted"})] == [job["id"]]
    assert await found(where={"datasetList.pid": pid.replace("%2F", "/")}) == []
    assert len(await found(where={email: "alice@example.org"}, limits={"limit": 1})) == 1
    assert (await found(where={"id": job["id"]}, fields=["id", status])) == [{"id": job["id"], status: "jobSubmitted"}]
    newest = await found(limits={"order": f"{created}:asc"})
    assert [one[created] for one in newest] == sorted(one[created] for one in newest)
    query = {"fields": json.dumps({status: ["jobSubmitted"]} | stored)}
    queried = await scicat.call("alice", "GET", f"{version}/jobs/fullquery", params=query)
    assert [one["id"] for one in queried.json()] == [job["id"]]


async def test_patching_jobs(scicat: Scicat) -> None:
    job = await scicat.job(pid=await scicat.dataset())
    v3, v4 = f"v3/jobs/{job['id']}", f"v4/jobs/{job['id']}"

    async def patched(path: str, body: JSON, **more: Any) -> JSON:
        response = await scicat.call("archiveManager", "PATCH", path, body, **more)
        assert response.status_code == 200, response.text
        return (await scicat.call("alice", "GET", v4)).json()

    now = await patched(v3, {"jobStatusMessage": "inProgress", "jobResultObject": {"a": 1, "b": {"c": 1}}})
    assert (now["statusCode"], now["statusMessage"]) == ("inProgress", "inProgress")
    # trap 9: the other version's body is dropped in silence by v3, refused by v4
    assert (await patched(v3, {"statusCode": "x", "statusMessage": "y"}))["statusCode"] == "inProgress"
    refused = await scicat.call("archiveManager", "PATCH", v4, {"jobStatusMessage": "x"})
    assert refused.json()["message"] == [
        "property jobStatusMessage should not exist",
        "statusCode must be a string",
        "statusMessage must be a string",
    ]
    now = await patched(v4, {"statusCode": "finishedSuccessful", "statusMessage": ""})
    assert (now["statusMessage"], now["jobResultObject"]) == ("", {"a": 1, "b": {"c": 1}})
    now = await patched(v3, {"jobResultObject": {"b": {"d": 2}}}, headers=MERGE)
    assert now["jobResultObject"] == {"a": 1, "b": {"c": 1, "d": 2}}
    assert (await patched(v3, {}))["jobResultObject"] == now["jobResultObject"]
    assert (await patched(v3, {"jobResultObject": {"z": 0}}))["jobResultObject"] == {"z": 0}
    now = await patched(v3, {"executionTime": "2026-01-01T00:00:00Z"})
    assert now["jobResultObject"] == {}
    assert now["jobParams"]["executionTime"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_a_job_whose_dataset_is_gone_cannot_be_patched(scicat: Scicat, version: str) -> None:
    pid = await scicat.dataset()
    job = await scicat.job(pid=pid)
    await scicat.call("archiveManager", "DELETE", f"v3/datasets/{pid}")
    body = {"jobStatusMessage": "x"} if version == "v3" else {"statusCode": "x", "statusMessage": "x"}
    response = await scicat.call("archiveManager", "PATCH", f"{version}/jobs/{job['id']}", body)
    assert response.status_code == 404
    assert response.json()["message"] == f'Unable to get a dataset. (["{pid.replace("%2F", "/")}"])'


@pytest.mark.parametrize(
    ("who", "get", "patch", "delete"),
    [
        (None, 403, 403, 403),
        ("root", 200, 200, 403),
        ("alice", 200, 403, 403),
        ("bob", 403, 403, 403),
        ("archiveManager", 403, 200, 200),  # update.auth names him: may PATCH what he may not GET
    ],
)
async def test_job_authorisation(scicat: Scicat, who: str | None, get: int, patch: int, delete: int) -> None:
    job = await scicat.job(pid=await scicat.dataset())
    body = {"statusCode": "x", "statusMessage": "x"}
    for version in ("v3", "v4"):
        path = f"{version}/jobs/{job['id']}"
        got = await scicat.call(who, "GET", path)
        assert got.status_code == get
        if who and get == 403:
            assert got.json()["message"] == "Unauthorized to get this job."
        patched = await scicat.call(who, "PATCH", path, body)
        assert patched.status_code == patch
        if who and patch == 403:
            assert patched.json()["message"] == "Unauthorized to update this job."
        if who:
            assert len((await scicat.call(who, "GET", f"{version}/jobs")).json()) == (1 if get == 200 else 0)
            query = {"fields": json.dumps({"type": "archive"})}
            found = await scicat.call(who, "GET", f"{version}/jobs/fullquery", params=query)
            assert len(found.json()) == (1 if get == 200 else 0)
    assert (await scicat.call(who, "DELETE", f"v3/jobs/{job['id']}")).status_code == delete


@pytest.mark.parametrize(
    ("auth", "who", "status"),
    [
        ("@group2", "bob", 200),
        ("#jobOwnerUser", "alice", 200),
        ("#jobOwnerUser", "bob", 403),
        ("#jobOwnerGroup", "alice", 200),
        ("#all", "bob", 200),
        ("archiveManager", "alice", 403),
    ],
)
async def test_update_auth(make: Callable[..., Scicat], auth: str, who: str, status: int) -> None:
    scicat = make(replace(OBSERVED, job_update_auth=auth))
    job = await scicat.job(pid=await scicat.dataset())
    response = await scicat.call(who, "PATCH", f"v3/jobs/{job['id']}", {"jobStatusMessage": "x"})
    assert response.status_code == status


async def test_a_privileged_group_reads_and_patches_every_job(make: Callable[..., Scicat]) -> None:
    scicat = make(replace(OBSERVED, update_job_privileged_groups="archivemanager,group22"))
    job = await scicat.job(pid=await scicat.dataset())
    for who in ("archiveManager", "bob"):  # bob by the substring group2
        assert (await scicat.call(who, "GET", f"v3/jobs/{job['id']}")).status_code == 200
        assert (await scicat.call(who, "PATCH", f"v3/jobs/{job['id']}", {})).status_code == 200


async def test_refused_jobs(scicat: Scicat) -> None:
    encoded = await scicat.dataset()
    pid = encoded.replace("%2F", "/")
    mine: JSON = {"type": "archive", "ownerGroup": "group1", "jobParams": {"datasetList": [{"pid": pid, "files": []}]}}

    async def refused(status: int, message: str, who: str = "alice", **changes: Any) -> None:
        response = await scicat.call(who, "POST", "v4/jobs", mine | changes)
        assert (response.status_code, response.json()["message"]) == (status, message)
        assert ("statusCode" in response.json()) == (status == 403)

    def naming(*entries: Any) -> JSON:
        return {"datasetList": list(entries)}

    await refused(400, "Invalid job type: burn", type="burn")
    await refused(400, "List of passed datasets is empty.", jobParams=naming())
    await refused(400, "Datasets with pid X do not exist.", jobParams=naming({"pid": "X", "files": []}))
    await refused(
        400, "In datasetList each 'files' field should be an array.", jobParams=naming({"pid": pid, "files": "all"})
    )
    await refused(
        400, "At least one requested file could not be found.", jobParams=naming({"pid": pid, "files": ["nope"]})
    )
    await refused(400, "Invalid new job. Owner group should be specified.", ownerGroup=None)
    await refused(400, "Invalid new job. User owning the job should match user logged in.", ownerUser="bob")
    await refused(400, "Invalid new job. User needs to belong to job owner group.", ownerGroup="group2")
    await refused(403, "Unauthorized to create this job.", who="bob", ownerGroup="group2")
    twice = naming({"pid": pid, "files": []}, {"pid": pid, "files": []})
    await refused(403, "Unauthorized to create this job.", jobParams=twice)
    await refused(400, "Invalid request. Invalid value for 'datasetlifecycle.retrievable'", type="retrieve")
    await scicat.call("alice", "PATCH", f"v3/datasets/{encoded}/datasetlifecycle", {"archivable": False})
    await refused(400, "Invalid request. Invalid value for 'datasetlifecycle.archivable'")
    unknown = await scicat.call("alice", "POST", "v4/jobs", mine | {"datasetList": []})
    assert unknown.json()["message"] == ["property datasetList should not exist"]
    assert (await scicat.call(None, "POST", "v4/jobs", mine)).json() == FORBIDDEN
    assert (await scicat.call("root", "GET", "v4/jobs")).json() == []


async def test_named_files_are_looked_up_in_the_original_datablocks(scicat: Scicat) -> None:
    encoded = await scicat.dataset(datasetlifecycle={"retrievable": True})
    await scicat.made("bob", f"v3/datasets/{encoded}/origdatablocks", {"size": 1, "dataFileList": [FILE]})
    entry = {"pid": encoded.replace("%2F", "/"), "files": [FILE["path"], "nope"]}
    body: JSON = {"type": "retrieve", "datasetList": [entry]}
    lacking = (await scicat.call("alice", "POST", "v3/jobs", body)).json()
    assert json.loads(lacking["error"]) == [{"pid": entry["pid"], "nonExistFiles": ["nope"]}]
    entry["files"] = [FILE["path"]]
    assert (await scicat.made("alice", "v3/jobs", body))["datasetList"] == [entry]


# -- trap 6: the url action --------------------------------------------------------------------------------------

WITH_ACTION = replace(
    OBSERVED, job_url="http://archiver/archiver/jobs", job_username="scicat", job_password="scicat-secret"
)


@pytest.mark.parametrize("status", [500, 503, 401, 422, 409, 302])
async def test_the_targets_status_becomes_the_callers(make: Callable[..., Scicat], status: int) -> None:
    scicat = make(WITH_ACTION, httpx.MockTransport(lambda _request: httpx.Response(status, text="no <way>")))
    pid = await scicat.dataset()
    body: JSON = {"type": "archive", "datasetList": [{"pid": pid.replace("%2F", "/"), "files": []}]}
    response = await scicat.call("alice", "POST", "v3/jobs", body)
    assert response.status_code == status
    message = "A remote URL call failed with response: no <way>"
    assert response.json() == {"status": status, "message": message}
    (job,) = (await scicat.call("alice", "GET", "v4/jobs")).json()
    assert job["statusCode"] == "jobSubmitted"


async def test_a_target_that_is_down_is_400_and_the_job_stays(make: Callable[..., Scicat]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    scicat = make(WITH_ACTION, httpx.MockTransport(refuse))
    pid = await scicat.dataset()
    body: JSON = {"type": "archive", "datasetList": [{"pid": pid.replace("%2F", "/"), "files": []}]}
    response = await scicat.call("alice", "POST", "v3/jobs", body)
    message = "Invalid job input. Job 'archive' unable to perform action 'url' due to TypeError: fetch failed"
    assert (response.status_code, response.json()) == (400, {"status": 400, "message": message})
    assert len((await scicat.call("alice", "GET", "v3/jobs")).json()) == 1


@pytest.mark.parametrize("ignored", [True, False])
async def test_errors_of_the_action_may_be_ignored(make: Callable[..., Scicat], ignored: bool) -> None:
    config = replace(WITH_ACTION, job_ignore_errors=ignored)
    scicat = make(config, httpx.MockTransport(lambda _request: httpx.Response(500)))
    pid = await scicat.dataset()
    body: JSON = {"type": "archive", "datasetList": [{"pid": pid.replace("%2F", "/"), "files": []}]}
    assert (await scicat.call("alice", "POST", "v3/jobs", body)).status_code == (201 if ignored else 500)


async def test_the_target_works_on_the_job_while_the_post_waits(make: Callable[..., Scicat]) -> None:
    seen: list[str] = []

    async def start_work(request: httpx.Request) -> httpx.Response:
        job_id = json.loads(request.content)["id"]
        seen.append((await scicat.call("root", "GET", f"v3/jobs/{job_id}")).json()["jobStatusMessage"])
        patched = await scicat.call("root", "PATCH", f"v3/jobs/{job_id}", {"jobStatusMessage": "inProgress"})
        return httpx.Response(201 if patched.status_code == 200 else 500)

    scicat = make(WITH_ACTION, httpx.MockTransport(start_work))
    job = await scicat.job(pid=await scicat.dataset())
    assert seen == ["jobSubmitted"]
    assert (await scicat.call("alice", "GET", f"v3/jobs/{job['id']}")).json()["jobStatusMessage"] == "inProgress"


async def test_what_the_action_sends_over_the_wire(make: Callable[..., Scicat]) -> None:
    received: list[bytes] = []

    async def archiver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None
        received.append(head + await reader.readexactly(int(length[1])))
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(archiver, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        scicat = make(replace(WITH_ACTION, job_url=f"http://127.0.0.1:{port}/archiver/jobs"))
        job = await scicat.job(pid=await scicat.dataset())
    (request,) = received
    head, _, body = request.decode().partition("\r\n\r\n")
    lines = [line.lower() for line in head.split("\r\n")]
    assert lines[0] == "post /archiver/jobs http/1.1"
    assert "Authorization: Basic c2NpY2F0OnNjaWNhdC1zZWNyZXQ=".lower() in lines
    assert {"accept: application/json", "content-type: application/json", "user-agent: node"} <= set(lines)
    assert "content-length: 65" in lines
    assert body == f'{{"id": "{job["id"]}", "type": "archive"}}'


# -- hooks, page, configuration ----------------------------------------------------------------------------------


async def test_faults_and_the_request_log(scicat: Scicat) -> None:
    pid = await scicat.dataset()
    path = f"/api/v3/datasets/{pid}/datablocks"

    async def fault(**fields: Any) -> None:
        assert (await scicat.client.post("/mock/faults", json=fields)).status_code == 201

    async def posted() -> int:
        return (await scicat.call("alice", "POST", path.removeprefix("/api/"), datablock("tar"))).status_code

    await fault(path_prefix="/api/v3/datasets/", path_contains="/datablocks", method="POST", status=503, times=2)
    assert (await scicat.call("alice", "GET", f"v3/datasets/{pid}/datablocks")).json() == []
    assert [await posted(), await posted()] == [503, 503]
    await fault(path_prefix=path, status=504, after=True)
    assert [await posted(), await posted()] == [504, 500]  # the lost answer's datablock is there
    await fault(path_prefix=path.replace("%2F", "/"), status=500)
    await fault()  # clears
    assert (await scicat.call("alice", "GET", f"v3/datasets/{pid}/datablocks/count")).json() == {"count": 1}
    log = await scicat.client.get("/mock/requests", params={"path_prefix": path, "method": "POST"})
    assert log.json()["count"] == 4
    assert [entry["status"] for entry in log.json()["requests"]] == [503, 503, 504, 500]
    assert (await scicat.client.delete("/mock/requests")).status_code == 204
    assert (await scicat.client.get("/mock/requests")).json() == {"count": 0, "requests": []}


async def test_a_delay_lets_others_pass(scicat: Scicat) -> None:
    await scicat.client.post("/mock/faults", json={"path_prefix": "/api/v3/health", "delay_s": 0.2})
    finished: list[str] = []

    async def get(name: str) -> None:
        assert (await scicat.call(None, "GET", "v3/health")).status_code == 200
        finished.append(name)

    await asyncio.gather(get("delayed"), get("free"))
    assert finished == ["free", "delayed"]


async def test_the_page_escapes_what_it_shows(scicat: Scicat) -> None:
    pid = await scicat.dataset(
        pid="p/<script>", datasetName="run <i>", datasetlifecycle={"archiveStatusMessage": "<b>started"}
    )
    job = await scicat.job(pid=pid.replace("%3C", "<").replace("%3E", ">"))
    page = (await scicat.client.get("/")).text
    assert page.count("<code>p/&lt;script&gt;</code>") == 2  # the dataset's and the job's
    assert "run &lt;i&gt;" in page
    assert "<script>" not in page
    assert "&lt;b&gt;started" in page
    assert job["id"] in page
    assert 'http-equiv="refresh" content="2"' in page


def test_configuration_from_the_environment(tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.json"
    accounts.write_text('[{"username": "eve", "password": "hidden", "groups": ["g"]}]')
    config = Config.from_environment(
        {"MOCK_SCICAT_ACCOUNTS": str(accounts), "MOCK_SCICAT_PORT": "3001", "DELETE_GROUPS": "a, b", "ADMIN_GROUPS": ""}
    )
    assert (config.port, config.delete_groups, config.admin_groups) == (3001, ("a", "b"), ())
    assert config.accounts[0].groups == ("g",)
    assert "hidden" not in repr(config)
    accounts.write_text('[{"password": "hidden"}]')
    with pytest.raises(ValueError, match="MOCK_SCICAT_ACCOUNTS") as caught:
        Config.from_environment({"MOCK_SCICAT_ACCOUNTS": str(accounts)})
    assert "hidden" not in str(caught.value)
    served = Config.from_environment({"MOCK_SCICAT_SERVICE_PASSWORD": "hidden"})
    assert [(account.username, account.password) for account in served.accounts[:2]] == [
        ("archiveManager", "hidden"),
        ("ingestor", "ingestor"),
    ]
    defaults = Config.from_environment({})
    assert (defaults.host, defaults.port, defaults.token_ttl_s) == ("127.0.0.1", 3000, 3600)
    assert not defaults.job_ignore_errors
    assert Config.from_environment({"MOCK_SCICAT_JOB_IGNORE_ERRORS": "true"}).job_ignore_errors


# -- the process -------------------------------------------------------------------------------------------------


@contextmanager
def running(state: Path) -> Generator[tuple["subprocess.Popen[str]", str]]:
    """A stand-in on a port of its own choice, and its address; killed at the end if it still runs."""
    environment = os.environ | {"MOCK_SCICAT_STATE": str(state), "MOCK_SCICAT_PORT": "0", "MOCK_SCICAT_JOB_URL": ""}
    command = [sys.executable, "-m", "mock_scicat"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process, _address(process.stderr)
    finally:
        process.kill()
        process.communicate()


def _address(lines: Iterator[str]) -> str:
    for line in lines:
        if found := re.search(r"Uvicorn running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the stand-in did not start")


def test_state_survives_kill_9_and_a_stop_is_graceful(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state.sqlite"
    with running(state) as (process, url), httpx.Client(base_url=url) as client:
        login = client.post("/api/v3/auth/login", json={"username": "alice", "password": "alice"}).json()
        bearer = {"authorization": f"Bearer {login['access_token']}"}
        dataset = client.post("/api/v3/datasets", json=RAW, headers=bearer).json()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with running(state) as (process, url), httpx.Client(base_url=url) as client:
        # The pid by its %2F over a real server, and the old token still good.
        path = f"/api/v3/datasets/{quote(dataset['pid'], safe='')}"
        assert client.get(path, headers=bearer).json()["pid"] == dataset["pid"]
        client.post("/mock/faults", json={"path_prefix": path, "cut": True})
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(path, headers=bearer)
        assert client.get("/mock/requests", params={"path_prefix": path}).json()["requests"][-1]["status"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
