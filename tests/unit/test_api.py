"""The HTTP API in one process, with a pretend workflow service: what is accepted, refused, declared; in which shape."""

import asyncio
import re
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from temporalio.service import RPCError, RPCStatusCode

from api.app import create_app
from api.gateway import OutOfReach
from api.routes import health, jobs
from domain.errors import ObjectStoreUnavailable
from domain.steering import Verb
from settings import SettingsError
from tests.fakes.front import (
    JOB_ID,
    OPERATOR,
    SCICAT,
    Front,
    PretendGateway,
    PretendStore,
    assert_is_server_error,
    assert_is_unprocessable,
    settings,
)

GOOD = {"id": JOB_ID, "type": "archive"}


@pytest.fixture
def front() -> Front:
    return Front()


@pytest.fixture
def gateway(front: Front) -> PretendGateway:
    return front.gateway


@pytest.fixture
def store(front: Front) -> PretendStore:
    return front.store


@pytest.fixture
def app(front: Front) -> FastAPI:
    app = create_app(settings())
    app.state.services = front.services()
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", auth=SCICAT) as client:
        yield client


# Bodies


@pytest.mark.parametrize("path", ["/archiver/jobs", "/archiver/jobs/"])
@pytest.mark.parametrize("kind", ["archive", "retrieve"])
async def test_a_job_is_started_with_or_without_a_trailing_slash(
    http: httpx.AsyncClient, gateway: PretendGateway, path: str, kind: str
) -> None:
    answer = await http.post(path, json={"id": JOB_ID, "type": kind, "executionTime": 5, "nested": {"unknown": []}})
    assert answer.status_code == 201
    assert answer.json() == {"uuid": gateway.started[JOB_ID][1], "name": f"job/{JOB_ID}"}
    assert [(order.job_id, order.type) for order in gateway.orders] == [(JOB_ID, kind)]


async def test_a_repeat_is_answered_alike_and_another_type_is_refused(http: httpx.AsyncClient) -> None:
    first = await http.post("/archiver/jobs", json=GOOD)
    again = await http.post("/archiver/jobs", json=GOOD | {"id": JOB_ID.upper()})
    assert (again.status_code, again.json()) == (201, first.json())

    [reason] = assert_is_unprocessable(await http.post("/archiver/jobs", json=GOOD | {"type": "retrieve"}))
    assert reason["loc"] == ["body", "type"]
    assert "started as archive" in reason["msg"]


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (b"", ["body"]),
        (b"null", ["body"]),
        (b"[]", ["body"]),
        (b'"text"', ["body"]),
        (b"{", ["body"]),
        (b"\xff\xfe", ["body"]),
        (b"{}", ["body", "id"]),
        (b'{"type": "archive"}', ["body", "id"]),
        (b'{"id": null, "type": "archive"}', ["body", "id"]),
        (b'{"id": 5, "type": "archive"}', ["body", "id"]),
        (b'{"id": "", "type": "archive"}', ["body", "id"]),
        (b'{"id": "../../x", "type": "archive"}', ["body", "id"]),
        (b'{"id": ["%s"], "type": "archive"}' % JOB_ID.encode(), ["body", "id"]),
        (b'{"id": "%s"}' % JOB_ID.encode(), ["body", "type"]),
        (b'{"id": "%s", "type": "publish"}' % JOB_ID.encode(), ["body", "type"]),
        (b'{"id": "%s", "type": "Archive"}' % JOB_ID.encode(), ["body", "type"]),
        (b'{"id": "%s", "type": true}' % JOB_ID.encode(), ["body", "type"]),
    ],
)
async def test_a_body_that_is_none_is_refused_by_a_list_of_reasons(
    http: httpx.AsyncClient, gateway: PretendGateway, body: bytes, location: list[str]
) -> None:
    answer = await http.post("/archiver/jobs", content=body, headers={"Content-Type": "application/json"})
    reasons = assert_is_unprocessable(answer)
    assert reasons[0]["loc"][: len(location)] == location
    assert gateway.orders == []


async def test_an_absent_body_is_refused_too(http: httpx.AsyncClient) -> None:
    assert_is_unprocessable(await http.post("/archiver/jobs"))


async def test_ids_in_paths_are_checked(http: httpx.AsyncClient) -> None:
    assert_is_unprocessable(await http.get("/archiver/jobs/nonsense"))
    assert "climbing" in assert_is_unprocessable(await http.get("/archiver/datasets/x/%2e%2e/y"))[0]["msg"]


async def test_what_nobody_knows_is_a_404_with_a_sentence(http: httpx.AsyncClient) -> None:
    job = await http.get(f"/archiver/jobs/{JOB_ID}")
    assert (job.status_code, job.json()) == (404, {"detail": f"no job {JOB_ID} is known"})
    dataset = await http.get("/archiver/datasets/20.500/unknown")
    assert (dataset.status_code, dataset.json()) == (404, {"detail": "no workflow of dataset 20.500/unknown is known"})
    assert (await http.get("/archiver/datasets/20.500/known")).json()["phase"] == "writing"
    assert (await http.get("/archiver/datasets/20.500%2Fknown")).json()["phase"] == "writing"


async def test_a_job_shows_the_reason_of_each_dataset_that_it_names(http: httpx.AsyncClient) -> None:
    """Of a large job only some datasets are named: their outcomes are found by their position, not by their number."""
    await http.post("/archiver/jobs", json=GOOD)
    shown = (await http.get(f"/archiver/jobs/{JOB_ID}")).json()["datasets"]
    assert [(d["n"], d["pid"], d["status"], d["error_class"], d["message"]) for d in shown] == [
        (250, "p/250", "dataset_error", "MissingFiles", "1 of 2"),
        (7, "p/7", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ObjectStoreUnavailable("S3 at x does not answer"), "S3 at x does not answer"),
        (TimeoutError(), "no answer in time"),
    ],
)
async def test_a_job_is_shown_without_the_state_bucket_too_and_what_is_missing_is_said(
    http: httpx.AsyncClient, store: PretendStore, failure: Exception, words: str
) -> None:
    await http.post("/archiver/jobs", json=GOOD)
    store.failure = failure
    answer = await http.get(f"/archiver/jobs/{JOB_ID}")
    assert (answer.status_code, len(answer.json()["datasets"])) == (200, 2)
    assert words in answer.json()["note"]


# Operators


async def test_jobs_are_listed_by_filters_a_page_at_a_time(http: httpx.AsyncClient, gateway: PretendGateway) -> None:
    asked = {"phase": "parked", "outcome": "inProgress", "owner": "group1", "running": "true", "limit": 7, "page": "x"}
    answer = await http.get("/archiver/jobs", params=asked)
    assert (answer.status_code, answer.json()["next_page"]) == (200, "more")
    assert [(job["id"], job["phase"]) for job in answer.json()["jobs"]] == [(JOB_ID, "parked")]
    await http.get("/archiver/jobs")
    told = {
        "phase": "parked",
        "outcome": "inProgress",
        "owner_group": "group1",
        "running": True,
        "limit": 7,
        "page": "x",
    }
    none = {"phase": "", "outcome": "", "owner_group": "", "running": None, "limit": 50, "page": ""}
    assert gateway.asked == [told, none]


@pytest.mark.parametrize(
    "wrong", [{"phase": "levitating"}, {"outcome": "archived"}, {"limit": 0}, {"limit": 201}, {"page": "none of ours"}]
)
async def test_a_list_that_cannot_be_made_is_refused(http: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    [reason] = assert_is_unprocessable(await http.get("/archiver/jobs", params=wrong))
    assert reason["loc"] == ["query", *wrong]


async def test_a_verb_says_whom_it_reached(http: httpx.AsyncClient, gateway: PretendGateway) -> None:
    await http.post("/archiver/jobs", json=GOOD)
    job = await http.post(f"/archiver/jobs/{JOB_ID}/pause")
    dataset = await http.post("/archiver/datasets/pause", json={"pid": "20.500/known", "by": "nadia"}, auth=OPERATOR)
    assert (job.status_code, job.json()["acted"]) == (200, [f"job/{JOB_ID}"])
    assert (dataset.status_code, dataset.json()["acted"]) == (200, ["archive-dataset/20.500/known"])
    assert dataset.json()["left_alone"] == {"retrieve-dataset/20.500/known": "already ended: retrieved"}
    assert gateway.told == [(JOB_ID, Verb.PAUSE, ""), ("20.500/known", Verb.PAUSE, "nadia")]


@pytest.mark.parametrize("verb", ["resume", "retry", "give-up", "cancel"])
async def test_a_verb_without_effect_is_a_409_that_says_why(
    http: httpx.AsyncClient, gateway: PretendGateway, verb: str
) -> None:
    answer = await http.post(f"/archiver/datasets/{verb}", json={"pid": "20.500/known"})
    reasons = "archive-dataset/20.500/known: too late; retrieve-dataset/20.500/known: already ended: retrieved"
    assert (answer.status_code, answer.json()) == (409, {"detail": f"{verb}: {reasons}"})
    assert [told for _, told, _ in gateway.told] == [Verb(verb)]


async def test_a_job_that_cannot_be_cancelled_any_more_is_a_409(http: httpx.AsyncClient) -> None:
    await http.post("/archiver/jobs", json=GOOD)
    answer = await http.post(f"/archiver/jobs/{JOB_ID}/cancel")
    assert (answer.status_code, answer.json()) == (409, {"detail": f"cancel job {JOB_ID}: too late"})


async def test_a_verb_for_something_unknown_or_unsafe_reaches_nobody(
    http: httpx.AsyncClient, gateway: PretendGateway
) -> None:
    assert (await http.post(f"/archiver/jobs/{JOB_ID}/pause")).status_code == 404
    assert (await http.post(f"/archiver/jobs/{JOB_ID}/retry")).status_code == 404, "no such route"
    assert (await http.post("/archiver/datasets/pause", json={"pid": "20.500/unknown"})).status_code == 404
    for body in ({}, {"pid": 5}, {"pid": "a/../b"}, {"pid": "20.500/known", "by": "x" * 201}):
        assert_is_unprocessable(await http.post("/archiver/datasets/pause", json=body))
    assert gateway.told == []


# Credentials


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic OnA=",  # no name
        "Basic c2NpY2F0Og==",  # no password
        "Basic c2NpY2F0",  # no colon
        "Bearer abc",
        httpx._auth.BasicAuth(SCICAT[0], "wrong")._auth_header,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        httpx._auth.BasicAuth(*SCICAT[::-1])._auth_header,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/archiver/jobs"),
        ("POST", "/archiver/jobs/"),
        ("GET", f"/archiver/jobs/{JOB_ID}"),
        ("GET", "/archiver/datasets/20.500/known"),
        ("GET", "/archiver/jobs"),
        ("POST", f"/archiver/jobs/{JOB_ID}/pause"),
        ("POST", f"/archiver/jobs/{JOB_ID}/resume"),
        ("POST", f"/archiver/jobs/{JOB_ID}/cancel"),
        ("POST", "/archiver/datasets/pause"),
        ("POST", "/archiver/datasets/resume"),
        ("POST", "/archiver/datasets/retry"),
        ("POST", "/archiver/datasets/give-up"),
        ("POST", "/archiver/datasets/cancel"),
    ],
)
async def test_wrong_or_missing_credentials_are_a_401_that_names_the_scheme(
    app: FastAPI, gateway: PretendGateway, method: str, path: str, header: str | None
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:
        headers = {} if header is None else {"Authorization": header}
        answer = await http.request(method, path, headers=headers, json=GOOD if method == "POST" else None)
    assert answer.status_code == 401
    assert re.match(r"Basic\b", answer.headers["WWW-Authenticate"])
    assert isinstance(answer.json()["detail"], str)
    assert gateway.orders == []


async def test_the_operators_account_may_look_but_not_play_scicat(http: httpx.AsyncClient) -> None:
    assert (await http.get("/archiver/datasets/20.500/known", auth=OPERATOR)).status_code == 200
    assert (await http.post("/archiver/jobs", json=GOOD, auth=OPERATOR)).status_code == 401


async def test_no_operators_account_means_that_its_empty_name_lets_nobody_in() -> None:
    app = create_app(settings(operator_username="", operator_password=""))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:
        assert (await http.get("/archiver/datasets/x/y", auth=("", ""))).status_code == 401


@pytest.mark.parametrize(
    ("account", "allowed"),
    [({}, True), ({"operator_username": "", "operator_password": ""}, False)],
    ids=["with an operators' account", "without"],
)
async def test_in_production_verbs_take_the_operators_account_alone(account: dict[str, str], allowed: bool) -> None:
    app = create_app(settings(environment="production", **account))
    front = Front()
    gateway = front.gateway
    app.state.services = front.services()
    verbs = [("/archiver/datasets/pause", {"pid": "20.500/known"}), (f"/archiver/jobs/{JOB_ID}/pause", None)]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:
        assert (await http.post("/archiver/jobs", json=GOOD, auth=SCICAT)).status_code == 201
        for path, body in verbs:
            refused = await http.post(path, json=body, auth=SCICAT)
            assert (refused.status_code, "OPERATOR_USERNAME" in refused.json()["detail"]) == (403, True)
            assert (await http.post(path, json=body, auth=("nobody", "knows"))).status_code == 401
            assert gateway.told == []
        for path, body in verbs:
            assert (await http.post(path, json=body, auth=OPERATOR)).status_code == (200 if allowed else 401)
        assert (await http.get("/archiver/datasets/20.500/known", auth=SCICAT)).status_code == 200


@pytest.mark.parametrize("missing", ["job_endpoint_username", "job_endpoint_password", "s3_user", "s3_password"])
def test_an_application_without_credentials_is_not_made(missing: str) -> None:
    with pytest.raises(SettingsError, match=missing.upper()):
        create_app(settings(**{missing: ""}))


def test_in_production_uploads_need_the_account_that_uploaders_are_given_tokens_of() -> None:
    uploads = {"environment": "production", "scicat_ingestor_groups": "group1"}
    with pytest.raises(SettingsError, match=r"^IDP_PASSWORD must be set and not be empty\.$"):
        create_app(settings(**uploads))
    for served in (uploads | {"idp_password": "p"}, uploads | {"scicat_ingestor_groups": ""}):
        create_app(settings(**served))


# Failures of ours


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b""), "TemporalUnavailable"),
        (RPCError("too slow", RPCStatusCode.DEADLINE_EXCEEDED, b""), "TemporalUnavailable"),
        (OutOfReach("Failed client connect: connection refused"), "TemporalUnavailable"),
        (ObjectStoreUnavailable("S3 does not answer"), "ObjectStoreUnavailable"),
        (ZeroDivisionError("secret of the implementation"), "InternalError"),
    ],
)
async def test_a_failure_of_ours_is_a_500_with_all_its_fields(
    http: httpx.AsyncClient, gateway: PretendGateway, failure: Exception, code: str
) -> None:
    gateway.failure = failure
    body = assert_is_server_error(await http.post("/archiver/jobs", json=GOOD), code)
    assert "secret" not in str(body)
    assert_is_server_error(await http.get(f"/archiver/jobs/{JOB_ID}"), code)


async def test_a_temporal_that_is_not_there_is_a_500_within_seconds() -> None:
    """The real gateway against a port that nobody listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        app = create_app(
            settings(temporal_address=address, scicat_endpoint=f"http://{address}", s3_endpoint=f"http://{address}")
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://api", auth=SCICAT) as http,
        ):
            assert (await http.get("/health/livez")).json()["status"] == "healthy"
            body = assert_is_server_error(await http.post("/archiver/jobs", json=GOOD), "TemporalUnavailable")
            ready = await http.get("/health/readyz")
    assert "ask again later" in body["message"]
    assert ready.status_code == 503
    assert ready.json().keys() == {"status", "error", "errors", "notes"}
    assert ready.json()["status"] == "not ready"
    assert [error["dependency"] for error in ready.json()["errors"]] == ["temporal", "scicat", "s3"]
    for error in ready.json()["errors"]:
        assert error["dependency"] in ready.json()["error"]
        assert (error["endpoint"].endswith(address), bool(error["message"])) == (True, True)


async def test_a_temporal_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine that is switched off: nothing is refused, and nothing comes."""
    monkeypatch.setattr(jobs, "_STARTED_WITHIN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = create_app(settings(temporal_address=f"127.0.0.1:{silent.getsockname()[1]}"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://api", auth=SCICAT) as http,
            asyncio.timeout(30),
        ):
            body = assert_is_server_error(await http.post("/archiver/jobs", json=GOOD), "TemporalUnavailable")
    assert body["details"] == "no answer within 0.1 s"


@pytest.mark.parametrize(
    ("groups", "failure", "notes"),
    [
        ("group1", httpx.ConnectError("secret address"), ["does not answer (ConnectError)"]),
        ("group1", None, []),
        ("", httpx.ConnectError("secret address"), []),
    ],
    ids=["away", "there", "not needed"],
)
async def test_an_identity_provider_that_is_away_is_noted_and_the_service_ready(
    monkeypatch: pytest.MonkeyPatch, front: Front, groups: str, failure: Exception | None, notes: list[str]
) -> None:
    async def scicat(_: object) -> bool:
        return True

    monkeypatch.setattr(health, "_scicat", scicat)
    front.identity.failure = failure
    app = create_app(settings(scicat_ingestor_groups=groups, idp_url="https://idp.host.org"))
    app.state.services = front.services()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:
        ready = await http.get("/health/readyz")
        front.gateway.failure = OutOfReach("no answer")
        not_ready = await http.get("/health/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert [note["message"] for note in ready.json()["notes"]] == notes
    assert {note["endpoint"] for note in ready.json()["notes"]} <= {"https://idp.host.org"}
    assert (not_ready.status_code, not_ready.json()["notes"]) == (503, ready.json()["notes"])
    assert [error["dependency"] for error in not_ready.json()["errors"]] == ["temporal"]


# What browsers and caches are told


async def test_every_answer_says_what_browsers_may_do_with_it(http: httpx.AsyncClient, gateway: PretendGateway) -> None:
    answers = [
        await http.get("/health/livez"),
        await http.post("/archiver/jobs", json=GOOD),
        await http.post("/archiver/jobs", json=GOOD, auth=("nobody", "")),
        await http.post("/archiver/jobs", json={}),
        await http.get("/nowhere"),
        await http.get("/docs"),
        await http.get("/openapi.json"),
    ]
    for failure in (ObjectStoreUnavailable("S3 does not answer"), ZeroDivisionError()):
        gateway.failure = failure
        answers.append(await http.post("/archiver/jobs", json=GOOD))
    assert [answer.status_code for answer in answers] == [200, 201, 401, 422, 404, 200, 200, 500, 500]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert len(answer.headers.get_list("Cache-Control")) == 1


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_documentation_may_load_what_it_needs_and_nothing_else(http: httpx.AsyncClient, page: str) -> None:
    answer = await http.get(page)
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    wanted = {
        "script-src": re.findall(r"<script src=\"([^\"]+)", answer.text),
        "style-src": re.findall(r"<link href=\"([^\"]+)\" rel=\"stylesheet", answer.text)
        + re.findall(r"rel=\"stylesheet\" href=\"([^\"]+)", answer.text),
        "img-src": re.findall(r"rel=\"shortcut icon\" href=\"([^\"]+)", answer.text),
    }
    assert wanted["script-src"]
    for kind, urls in wanted.items():
        for url in urls:
            assert "/".join(url.split("/")[:3]) in rules[kind].split(), url
    if "<script>" in answer.text:
        assert "'unsafe-inline'" in rules["script-src"]


# The document


def test_every_code_that_is_answered_is_declared(app: FastAPI) -> None:
    document = app.openapi()
    declared = {
        (method.upper(), path): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert declared[("POST", "/archiver/jobs")] == {"201", "401", "422", "500"}
    assert declared[("GET", "/archiver/jobs/{job_id}")] == {"200", "401", "404", "422", "500"}
    assert declared[("GET", "/archiver/datasets/{pid}")] == {"200", "401", "404", "422", "500"}
    assert declared[("GET", "/archiver/jobs")] == {"200", "401", "422", "500"}
    verbs = [f"/archiver/jobs/{{job_id}}/{verb}" for verb in ("pause", "resume", "cancel")]
    verbs += [f"/archiver/datasets/{verb.value}" for verb in Verb]
    for verb in verbs:
        assert declared[("POST", verb)] == {"200", "401", "403", "404", "409", "422", "500"}
    assert declared[("GET", "/health/livez")] >= {"200"}
    assert declared[("GET", "/health/readyz")] == {"200", "503"}
    assert not any(path.endswith("/") for _, path in declared)


def test_the_document_describes_the_shapes_that_are_answered(app: FastAPI) -> None:
    document = app.openapi()
    create = document["paths"]["/archiver/jobs"]["post"]
    assert create["security"] == [{"BasicAuth": []}]
    assert document["components"]["securitySchemes"]["BasicAuth"] == {"type": "http", "scheme": "basic"}
    schemas = document["components"]["schemas"]

    def shape(code: str) -> dict[str, Any]:
        reference: str = create["responses"][code]["content"]["application/json"]["schema"]["$ref"]
        return schemas[reference.rpartition("/")[2]]

    assert set(shape("201")["required"]) == {"uuid", "name"}
    assert shape("401")["properties"]["detail"]["type"] == "string"
    assert shape("422")["properties"]["detail"]["type"] == "array"
    assert set(shape("500")["required"]) >= {"code", "message", "details"}
    assert set(schemas["CreateJob"]["required"]) == {"id", "type"}
    assert schemas["CreateJob"]["properties"]["type"]["enum"] == ["archive", "retrieve"]


async def test_docs_and_document_work_behind_a_proxy_that_strips_the_path() -> None:
    transport = httpx.ASGITransport(create_app(settings()), root_path="/archiver/api/v1")
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/archiver/api/v1"}]
        assert "/archiver/api/v1/openapi.json" in (await http.get("/docs")).text
