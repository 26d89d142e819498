"""`/s3` and `/token` in one process: who gets in, what is refused and how, what the clients are told."""

import base64
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from temporalio.service import RPCError, RPCStatusCode

from api.app import create_app
from api.frame import BODY_LIMIT_BYTES as LIMIT
from domain.errors import (
    AlreadyArchived,
    AlreadyFinalized,
    ArchiverError,
    BeingArchived,
    CatalogueUnavailable,
    IdentityProviderUnavailable,
    Misconfigured,
    ObjectStoreUnavailable,
    WorkflowUnanswered,
)
from tests.digests import composite_b64, sha256_b64
from tests.fakes.front import (
    BUCKET,
    JOB_ID,
    OUTSIDERS_TOKEN,
    SCICAT_TOKEN,
    SERVICE_TOKEN,
    Front,
    assert_is_server_error,
    assert_is_unprocessable,
    head,
    settings,
)

PID = "20.500.11935/8c4e"
PREFIX = f"openem-network/datasets/{PID}/raw_files/"
KEY = f"{PREFIX}grid 1/100%+é.tif"
UPLOAD = {"dataset_id": PID, "object_name": KEY}
DIGEST = sha256_b64(b"part")
COMPOSITE = composite_b64(b"part")
PART = {"part_number": 1, "etag": "etag", "checksum_sha256": DIGEST}
COMPLETE = UPLOAD | {"upload_id": "u", "parts": [PART], "checksum_sha256": COMPOSITE}
ABORT = {"dataset_id": "", "object_name": KEY, "upload_id": ""}
NOTHING: list[Any] = []
FINALIZE = {
    "dataset_id": PID,
    "create_archiving_job": True,
    "owner_group": "group1",
    "owner_user": "alice",
    "contact_email": "alice@example.org",
}
WHOLE = {
    "/s3/requestDatasetUpload": {"dataset_id": PID, "dataset_size_gib": 3},
    "/s3/finalizeDatasetUpload": FINALIZE,
    "/s3/abortDatasetUpload": {"dataset_id": PID},
}
"""Of whole datasets."""
BODIES = {
    "/s3/presignedUrls": UPLOAD | {"parts": 1},
    "/s3/completeUpload": COMPLETE,
    "/s3/abortMultipartUpload": ABORT,
}


@pytest.fixture
def front() -> Front:
    return Front()


@pytest.fixture
def app(front: Front) -> FastAPI:
    app = create_app(settings(scicat_ingestor_groups="ingestor; group1"))
    app.state.services = front.services()
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {SERVICE_TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client


def decoded(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 201, answer.text
    return [base64.b64decode(url, validate=True).decode() for url in answer.json()["urls"]]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Who gets in

HEADERS = [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic c2NpY2F0OnBhc3M=", SERVICE_TOKEN, "Bearer \xff"]


@pytest.mark.parametrize("path", [*BODIES, *WHOLE, "/token"])
@pytest.mark.parametrize("header", HEADERS)
async def test_whoever_has_no_token_is_refused_by_the_schemes_name_alone(
    app: FastAPI, front: Front, path: str, header: str | None
) -> None:
    headers: dict[str, Any] = {} if header is None else {"Authorization": header.encode("latin-1")}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        answer = await http.post(path, json=(BODIES | WHOLE).get(path), headers=headers)
        unread = [
            await http.post(path, content=body, headers=headers | {"Content-Type": "application/json"})
            for body in (b"", b"{}", b"{", b"\xff", bytes(LIMIT + 1))
        ]
    for refused in (answer, *unread):
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert refused.json().keys() == {"detail"}
        assert isinstance(refused.json()["detail"], str)
    assert front.uploads.asked == []


async def test_a_missing_key_is_our_failure_and_not_the_bearers(http: httpx.AsyncClient, front: Front) -> None:
    front.identity.failure = IdentityProviderUnavailable("reading the identity provider's keys: no answer")
    for path, body in (BODIES | WHOLE).items():
        assert_is_server_error(await http.post(path, json=body), "IdentityProviderUnavailable")


# URLs


async def test_one_part_is_put_whole(http: httpx.AsyncClient, front: Front) -> None:
    answer = await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 1, "unknown": "ignored"})
    [url] = decoded(answer)
    assert answer.json().keys() == {"upload_id", "urls"}
    assert answer.json()["upload_id"] == ""
    address = urlsplit(url)
    query = parse_qs(address.query)
    assert (address.scheme, address.netloc) == ("https", "s3.example.org")
    assert unquote(address.path) == f"/{BUCKET}/{KEY}"
    assert query["X-Amz-SignedHeaders"] == ["host"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["3600"]
    assert {name.lower() for name in query} == {
        f"x-amz-{name}" for name in ("algorithm", "credential", "date", "expires", "signature", "signedheaders")
    }
    assert front.s3.open == {}
    assert front.uploads.asked == [PID]


async def test_many_parts_have_their_urls_in_order(http: httpx.AsyncClient, front: Front) -> None:
    answer = await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 10_000})
    queries = [parse_qs(urlsplit(url).query) for url in decoded(answer)]
    assert front.s3.open == {answer.json()["upload_id"]: KEY}
    assert [query["partNumber"] for query in queries] == [[str(number)] for number in range(1, 10_001)]
    assert {query["uploadId"][0] for query in queries} == {answer.json()["upload_id"]}
    assert {query["X-Amz-SignedHeaders"][0] for query in queries} == {"host"}


async def test_no_url_is_given_where_the_dataset_is_closed(http: httpx.AsyncClient, front: Front) -> None:
    front.uploads.failure = BeingArchived("an archive of the dataset is under way")
    answer = await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 2})
    body = assert_is_server_error(answer, "BeingArchived")
    assert "under way" in body["message"]
    assert front.s3.open == {}


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"dataset_id": ""}, "dataset_id"),
        ({"dataset_id": "a/../b"}, "dataset_id"),
        ({"dataset_id": 5}, "dataset_id"),
        ({"dataset_id": None}, "dataset_id"),
        ({"dataset_id": "20.500.11935/8c4"}, "object_name"),
        ({"object_name": ""}, "object_name"),
        ({"object_name": 5}, "object_name"),
        ({"object_name": f"{PREFIX}../a"}, "object_name"),
        ({"object_name": f"{PREFIX}a\\b"}, "object_name"),
        ({"object_name": f"{PREFIX}{'a/' * 600}b"}, "object_name"),
        ({"object_name": f"openem-network/datasets/{PID}/datablocks/a"}, "object_name"),
        ({"parts": 0}, "parts"),
        ({"parts": -1}, "parts"),
        ({"parts": 10_001}, "parts"),
        ({"parts": "5"}, "parts"),
        ({"parts": True}, "parts"),
        ({"parts": 1.5}, "parts"),
        ({"parts": None}, "parts"),
    ],
)
async def test_what_is_at_fault_in_a_request_for_urls_is_named(
    http: httpx.AsyncClient, front: Front, change: dict[str, Any], location: str
) -> None:
    reasons = assert_is_unprocessable(await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 1} | change))
    assert ["body", location] in [reason["loc"] for reason in reasons]
    assert (front.s3.open, front.uploads.asked) == ({}, [])


# Completion


async def test_an_upload_is_completed_once_and_a_repeat_says_the_same(http: httpx.AsyncClient, front: Front) -> None:
    begun = await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 2})
    upload_id = begun.json()["upload_id"]
    digests = [sha256_b64(b"one"), sha256_b64(b"two")]
    front.s3.parts[upload_id] = {1: ("e1", digests[0]), 2: ("e2", digests[1])}
    parts = [
        {"part_number": 2, "etag": '"e2"', "checksum_sha256": digests[1]},
        {"part_number": 1, "etag": "e1", "checksum_sha256": digests[0]},
    ]
    body = UPLOAD | {"upload_id": upload_id, "parts": parts, "checksum_sha256": "composite"}
    first = await http.post("/s3/completeUpload", json=body)
    again = await http.post("/s3/completeUpload", json=body)
    assert (first.status_code, first.json()) == (201, {"location": f"http://inside/{BUCKET}/{KEY}", "key": KEY})
    assert again.status_code == 201
    assert again.json()["key"] == KEY
    assert unquote(again.json()["location"]) == f"https://s3.example.org/{BUCKET}/{KEY}"
    assert front.s3.objects[KEY].composite_sha256 == "composite-2"
    other = await http.post("/s3/completeUpload", json=body | {"parts": parts[:1]})
    assert_is_server_error(other, "NoSuchUpload")


async def test_what_a_client_is_told_of_its_own_upload_is_no_error_of_ours(
    http: httpx.AsyncClient, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that goes on asks for each of a hundred thousand files whether it is there."""
    caplog.set_level("INFO", "api")
    await http.post("/s3/completeUpload", json=COMPLETE | {"upload_id": ""})
    for front.uploads.failure in (AlreadyFinalized("finalized"), Misconfigured("no bucket")):
        await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 1})
    assert [(record.levelname, record.getMessage().split()[2]) for record in caplog.records] == [
        ("INFO", "UploadRefused:"),
        ("WARNING", "AlreadyFinalized:"),
        ("ERROR", "Misconfigured:"),
    ]


async def test_parts_that_s3_does_not_have_leave_the_upload_open(http: httpx.AsyncClient, front: Front) -> None:
    upload_id = (await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 2})).json()["upload_id"]
    answer = await http.post("/s3/completeUpload", json=COMPLETE | {"upload_id": upload_id})
    assert_is_server_error(answer, "InvalidPart")
    assert upload_id in front.s3.open


async def test_an_object_that_was_put_whole_is_compared(http: httpx.AsyncClient, front: Front) -> None:
    whole = COMPLETE | {"upload_id": ""}
    assert_is_server_error(await http.post("/s3/completeUpload", json=whole), "NoSuchKey")
    front.s3.objects[KEY] = head(DIGEST)
    for _ in range(2):
        answer = await http.post("/s3/completeUpload", json=whole)
        assert (answer.status_code, answer.json()["key"]) == (201, KEY)
    for wrong, code in [
        ({"checksum_sha256": DIGEST}, "XAmzContentChecksumMismatch"),
        ({"parts": [PART | {"etag": "other"}]}, "InvalidPart"),
        ({"parts": [PART | {"checksum_sha256": COMPOSITE}]}, "InvalidPart"),
        ({"parts": [PART, PART | {"part_number": 2}]}, "InvalidPart"),
    ]:
        body = assert_is_server_error(await http.post("/s3/completeUpload", json=whole | wrong), code)
        assert body["details"]


async def test_a_whole_object_without_a_digest_is_not_believed(http: httpx.AsyncClient, front: Front) -> None:
    front.s3.objects[KEY] = head("")
    assert_is_server_error(await http.post("/s3/completeUpload", json=COMPLETE | {"upload_id": ""}), "InvalidPart")


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"parts": NOTHING}, ["parts"]),
        ({"parts": None}, ["parts"]),
        ({"parts": {"1": PART}}, ["parts"]),
        ({"parts": [PART, PART]}, ["parts"]),
        ({"parts": [PART | {"part_number": 0}]}, ["parts", 0, "part_number"]),
        ({"parts": [PART | {"part_number": 10_001}]}, ["parts", 0, "part_number"]),
        ({"parts": [PART | {"part_number": "1"}]}, ["parts", 0, "part_number"]),
        ({"parts": [PART | {"part_number": True}]}, ["parts", 0, "part_number"]),
        ({"parts": [PART | {"etag": ""}]}, ["parts", 0, "etag"]),
        ({"parts": [PART | {"checksum_sha256": ""}]}, ["parts", 0, "checksum_sha256"]),
        ({"parts": [{"part_number": 1}]}, ["parts", 0, "etag"]),
        ({"checksum_sha256": ""}, ["checksum_sha256"]),
        ({"upload_id": None}, ["upload_id"]),
        ({"upload_id": "\n"}, ["upload_id"]),
        ({"dataset_id": ""}, ["dataset_id"]),
        ({"object_name": f"{PREFIX}../a"}, ["object_name"]),
    ],
)
async def test_what_is_at_fault_in_a_completion_is_named(
    http: httpx.AsyncClient, change: dict[str, Any], location: list[str | int]
) -> None:
    reasons = assert_is_unprocessable(await http.post("/s3/completeUpload", json=COMPLETE | change))
    assert ["body", *location] in [reason["loc"] for reason in reasons]


# Giving up


async def test_an_upload_is_given_up_once_or_twice_or_without_having_begun(
    http: httpx.AsyncClient, front: Front
) -> None:
    upload_id = (await http.post("/s3/presignedUrls", json=UPLOAD | {"parts": 2})).json()["upload_id"]
    for body in (ABORT | {"upload_id": upload_id},) * 2 + (ABORT, ABORT | {"upload_id": "unknown", "dataset_id": "x"}):
        answer = await http.post("/s3/abortMultipartUpload", json=body)
        assert answer.status_code == 201
        assert answer.json().keys() == {"message", "upload_id", "object_name"}
        assert (answer.json()["upload_id"], answer.json()["object_name"]) == (body["upload_id"], KEY)
    assert front.s3.open == {}


@pytest.mark.parametrize("name", ["", "a", f"{PREFIX}../a", f"openem-network/datasets/{PID}/datablocks/a", 5, None])
async def test_nothing_but_a_raw_file_is_given_up(http: httpx.AsyncClient, name: object) -> None:
    reasons = assert_is_unprocessable(await http.post("/s3/abortMultipartUpload", json=ABORT | {"object_name": name}))
    assert reasons[0]["loc"] == ["body", "object_name"]


# The frame


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b'{"a": "\xff"}', b"\xff\xfe", b"[" * 10**5, b"9" * 5000, b"x" * (LIMIT + 1)],
    ids=["empty", "null", "list", "cut", "latin-1", "utf-16", "deep", "digits", "large"],
)  # fmt: skip
async def test_a_body_that_cannot_be_read_is_refused_by_a_list(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert assert_is_unprocessable(answer)[0]["loc"][0] == "body"


@pytest.mark.parametrize("path", BODIES)
async def test_an_absent_body_is_refused_by_a_list(http: httpx.AsyncClient, path: str) -> None:
    assert_is_unprocessable(await http.post(path))


async def test_a_large_body_without_a_length_is_read_to_its_end_and_refused(http: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncGenerator[bytes]:
        nonlocal sent
        for _ in range(10):
            sent += 1
            yield b" " * 2**20

    answer = await http.post("/s3/presignedUrls", content=chunks(), headers={"Content-Type": "application/json"})
    assert "longer than" in assert_is_unprocessable(answer)[0]["msg"]
    assert sent == 10


async def test_the_longest_completion_is_within_the_limit(http: httpx.AsyncClient) -> None:
    parts = [{"part_number": number, "etag": "e" * 32, "checksum_sha256": DIGEST} for number in range(10_000, 0, -1)]
    assert_is_server_error(await http.post("/s3/completeUpload", json=COMPLETE | {"parts": parts}), "NoSuchUpload")


@pytest.mark.parametrize("root", ["", "/archiver/api/v1"])
@pytest.mark.parametrize("prefix_left_in", [False, True])
async def test_a_trailing_slash_and_a_root_path_lead_to_the_same_place(
    app: FastAPI, root: str, prefix_left_in: bool
) -> None:
    """A server puts the root path before the path that it is asked for, as the ASGI specification has it."""
    asked = root * (1 + prefix_left_in)
    transport = httpx.ASGITransport(app, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=bearer(SERVICE_TOKEN)) as http:
        for path, body in (BODIES | {"/token": None}).items():
            if path == "/s3/completeUpload":
                continue
            for slash in ("", "/"):
                answer = await http.post(asked + path + slash, json=body)
                assert answer.status_code == 201, (path, slash, answer.text)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ObjectStoreUnavailable("S3 does not answer"), "ObjectStoreUnavailable"),
        (Misconfigured("S3 answered NoSuchBucket"), "Misconfigured"),
        (RPCError("too slow", RPCStatusCode.DEADLINE_EXCEEDED, b""), "TemporalUnavailable"),
        (ZeroDivisionError("secret of the implementation"), "InternalError"),
    ],
)
async def test_a_failure_of_a_store_is_a_500_with_all_its_fields(
    http: httpx.AsyncClient, front: Front, failure: Exception, code: str
) -> None:
    front.s3.failure = failure
    bodies = BODIES | {
        "/s3/presignedUrls": UPLOAD | {"parts": 2},
        "/s3/abortMultipartUpload": ABORT | {"upload_id": "u"},
    }
    for path, body in bodies.items():
        said = assert_is_server_error(await http.post(path, json=body), code)
        assert said["details"]
        assert "secret" not in str(said)


async def test_only_listed_pages_may_call_from_a_browser() -> None:
    asked = {"Origin": "https://ui.example.org", "Access-Control-Request-Method": "POST"}
    for listed, allowed in (
        ("", None),
        ("https://other.example.org; https://ui.example.org", "https://ui.example.org"),
    ):
        app = create_app(settings(cors_origins=listed))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:
            answer = await http.options("/s3/presignedUrls", headers=asked)
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


# Tokens


@pytest.mark.parametrize("token", [SCICAT_TOKEN, SERVICE_TOKEN])
async def test_a_token_is_traded_for_one_of_the_service(http: httpx.AsyncClient, front: Front, token: str) -> None:
    answer = await http.post("/token", headers=bearer(token))
    assert answer.status_code == 201
    assert answer.json() == {name: value for name, value in front.identity.answer.items() if name != "id_token"}
    assert answer.headers["Cache-Control"] == "no-store"


async def test_what_the_provider_leaves_out_is_left_out(http: httpx.AsyncClient, front: Front) -> None:
    least = {"access_token": "a", "refresh_token": "r", "expires_in": 5}
    front.identity.answer = least
    assert (await http.post("/token", headers=bearer(SCICAT_TOKEN))).json() == least


@pytest.mark.parametrize("missing", ["access_token", "refresh_token", "expires_in"])
async def test_an_answer_that_clients_cannot_use_is_not_passed_on(
    http: httpx.AsyncClient, front: Front, missing: str
) -> None:
    front.identity.answer = {name: value for name, value in front.identity.answer.items() if name != missing}
    answer = await http.post("/token", headers=bearer(SCICAT_TOKEN))
    body = assert_is_server_error(answer, "IdentityProviderUnavailable")
    assert SERVICE_TOKEN not in str(body)


@pytest.mark.parametrize("token", [OUTSIDERS_TOKEN, "unknown", f"{SERVICE_TOKEN}-expired"])
async def test_an_outsider_gets_no_token(http: httpx.AsyncClient, token: str) -> None:
    answer = await http.post("/token", headers=bearer(token))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_no_groups_means_nobody(app: FastAPI, http: httpx.AsyncClient) -> None:
    app.state.settings = settings(scicat_ingestor_groups=" ; ")
    assert (await http.post("/token", headers=bearer(SCICAT_TOKEN))).status_code == 401


@pytest.mark.parametrize(
    "failure",
    [IdentityProviderUnavailable("no answer"), Misconfigured("the account is refused")],
)
async def test_a_provider_that_gives_none_is_a_500(
    http: httpx.AsyncClient, front: Front, failure: ArchiverError
) -> None:
    front.identity.grant_failure = failure
    assert_is_server_error(await http.post("/token", headers=bearer(SCICAT_TOKEN)), type(failure).__name__)


async def test_a_catalogue_that_is_away_is_a_500(http: httpx.AsyncClient, front: Front) -> None:
    front.catalogue.failure = CatalogueUnavailable("no answer")
    assert_is_server_error(await http.post("/token", headers=bearer(SCICAT_TOKEN)), "CatalogueUnavailable")


async def test_keys_that_cannot_be_read_do_not_matter_for_scicats_tokens(http: httpx.AsyncClient, front: Front) -> None:
    front.identity.failure = IdentityProviderUnavailable("no answer")
    assert (await http.post("/token", headers=bearer(SCICAT_TOKEN))).status_code == 201


# Whole datasets


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_dataset_that_fits_is_admitted_and_one_that_does_not_is_told_so_in_full(
    http: httpx.AsyncClient, front: Front, slash: str
) -> None:
    path = f"/s3/requestDatasetUpload{slash}"
    admitted = await http.post(path, json={"dataset_id": PID, "dataset_size_gib": 10})
    assert (admitted.status_code, admitted.json().keys()) == (201, {"message"})
    full = await http.post(path, json={"dataset_id": PID, "dataset_size_gib": 11})
    assert full.status_code == 507
    assert full.json() == {
        "message": f"there is no room for dataset {PID} now; ask again later",
        "dataset_id": PID,
        "requested_size_gib": 11,
    }
    assert front.uploads.asked == [PID, PID]


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_finalized_dataset_is_archived_if_that_is_wished_for(
    http: httpx.AsyncClient, front: Front, slash: str
) -> None:
    for wanted in (True, False):
        answer = await http.post(
            f"/s3/finalizeDatasetUpload{slash}", json=FINALIZE | {"create_archiving_job": wanted, "more": 1}
        )
        assert (answer.status_code, answer.json().keys()) == (201, {"dataset_id", "message"})
        assert answer.json()["dataset_id"] == PID
        assert (JOB_ID in answer.json()["message"]) is wanted
    first, second = front.uploads.wishes
    assert first.model_dump() == {
        "create_job": True,
        "owner_group": "group1",
        "owner_user": "alice",
        "contact_email": "alice@example.org",
    }
    assert second.create_job is False


@pytest.mark.parametrize("slash", ["", "/"])
async def test_an_aborted_dataset(http: httpx.AsyncClient, front: Front, slash: str) -> None:
    answer = await http.post(f"/s3/abortDatasetUpload{slash}", json={"dataset_id": PID})
    assert (answer.status_code, answer.json().keys()) == (201, {"dataset_id", "message"})
    assert front.uploads.asked == [PID]


WRONG: list[tuple[str, dict[str, Any]]] = [
    *((path, {"dataset_id": pid}) for path in WHOLE for pid in ("", "..", "a//b", "a\\b", "x" * 201, 5, None)),
    *(("/s3/requestDatasetUpload", {"dataset_size_gib": size}) for size in (-1, "5", True, 1.5, None)),
    *(("/s3/finalizeDatasetUpload", {"create_archiving_job": word}) for word in ("true", 1, None)),
    *(("/s3/finalizeDatasetUpload", {"contact_email": mail}) for mail in ("", "alice", "@example.org", "a b@c", 5)),
    ("/s3/finalizeDatasetUpload", {"owner_user": None}),
]


@pytest.mark.parametrize(("path", "wrong"), WRONG, ids=str)
async def test_what_is_wrong_with_a_request_for_a_dataset_is_said_and_nothing_done(
    http: httpx.AsyncClient, front: Front, path: str, wrong: dict[str, Any]
) -> None:
    [reason] = assert_is_unprocessable(await http.post(path, json=WHOLE[path] | wrong))
    assert reason["loc"] == ["body", *wrong]
    assert front.uploads.asked == []


@pytest.mark.parametrize("path", WHOLE)
@pytest.mark.parametrize("missing", [{}, {"json": {}}])
async def test_an_empty_body_is_unprocessable(http: httpx.AsyncClient, path: str, missing: dict[str, Any]) -> None:
    assert_is_unprocessable(await http.post(path, **missing))


@pytest.mark.parametrize("path", WHOLE)
@pytest.mark.parametrize(
    "failure",
    [
        BeingArchived("dataset is being archived"),
        AlreadyFinalized("kept"),
        AlreadyArchived("archived"),
        CatalogueUnavailable("posting an archive job: the catalogue answered 502: Bad Gateway"),
        ObjectStoreUnavailable("no answer"),
        Misconfigured("the bucket does not exist"),
        WorkflowUnanswered("no worker has answered"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_every_conflict_and_outage_is_a_500_that_says_what_and_why(
    http: httpx.AsyncClient, front: Front, path: str, failure: ArchiverError
) -> None:
    front.uploads.failure = failure
    body = assert_is_server_error(await http.post(path, json=WHOLE[path]), type(failure).__name__)
    assert str(failure) in body["details"]


async def test_the_codes_of_whole_datasets_are_declared(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for path in WHOLE:
        full = {"507"} if "request" in path else set[str]()
        assert set(paths[path]["post"]["responses"]) == {"201", "401", "422", "500"} | full
        assert paths[path]["post"]["security"] == [{"BearerAuth": []}]
