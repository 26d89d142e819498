"""The last net under logs, histories and answers: what is caught in it, and what goes through."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from clients.temporal import DATA_CONVERTER
from domain.outcome import bounded
from domain.redaction import REDACTED, redacted
from settings import logs

SECRET = "s3cr3tW0rd-of_32.characters+long"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.s3cr3tW0rd_x"

LEAKS = [
    f"GET http://s3/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={SECRET}&X-Amz-Expires=5",
    f"https://s3/b/k?x-amz-credential={SECRET}",
    f"https%3A//s3/b/k%3FX-Amz-Signature%3D{SECRET}",
    f"X-Amz-Security-Token: {SECRET}",
    f"{{'Authorization': 'Bearer {SECRET}'}}",
    f"authorization: Basic {SECRET}==",
    f"AWS4-HMAC-SHA256 Credential={SECRET}/20260101/eu-west-1/s3/aws4_request, Signature={SECRET}",
    f'{{"access_token": "{SECRET}", "expires_in": 300}}',
    f"client_secret={SECRET}&grant_type=password",
    f"{{'password': '{SECRET}'}}",
    f"http://root:{SECRET}@minio:9000/",
    f"the token {JWT} has run out",
]

HARMLESS = [
    "S3 at http://127.0.0.1:9000: no answer; check S3_ENDPOINT, S3_USER and S3_PASSWORD.",
    "the bearer of this is told, on a basic level, that the password has run out",
    "20.500.11935/0d4c is archived: 3 datablocks, sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f0",
    "http://127.0.0.1:3000/api/v3/datasets/20.500.11935%2F0d4c?filter=%7B%22limit%22%3A1%7D",
]


@pytest.mark.parametrize("text", LEAKS)
def test_secrets_of_a_known_shape_are_taken_out(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "s3cr3t" not in redacted(text)
    assert REDACTED in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_everything_else_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_text_is_redacted_before_it_is_cut() -> None:
    text = "x" * 1950 + f" Bearer {SECRET * 4}"
    assert "s3cr3t" not in bounded(text)


async def test_failures_reach_histories_without_secrets() -> None:
    def fail() -> None:
        try:
            raise OSError(LEAKS[0])
        except OSError as error:
            raise ApplicationError(f"no answer: {LEAKS[4]}") from error

    failure = Failure()
    try:
        fail()
    except ApplicationError as error:
        await DATA_CONVERTER.encode_failure(error, failure)
    assert failure.message.startswith("no answer: ")
    assert failure.cause.message.startswith("GET http://s3/b/k?X-Amz-Algorithm")
    assert SECRET.encode() not in failure.SerializeToString()


@pytest.fixture
def configure() -> Iterator[Callable[..., None]]:
    """What a process of ours does at its start, with a bare root logger as in a new process; put back in the end."""
    root = logging.getLogger()
    level, levels = root.level, {name: logging.getLogger(name).level for name in logs.OURS}
    pytests = list[logging.Handler]()

    def at_start(*settings: Any) -> None:
        pytests[:], root.handlers = root.handlers, []
        logs.configure(*settings)

    yield at_start
    root.handlers = pytests
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_no_line_of_the_log_shows_a_secret(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug")
    logging.getLogger("worker").debug("fetching %s", LEAKS[0])
    try:
        raise OSError(LEAKS[4])
    except OSError:
        logging.getLogger("api").exception("POST /token")
    said = capsys.readouterr().err
    assert "fetching GET http://s3/b/k" in said
    assert "OSError" in said
    assert SECRET not in said


def test_libraries_keep_their_requests_to_themselves(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("debug")
    for name in ("botocore.auth", "httpx", "httpcore.http11", "aiobotocore", "temporalio.worker"):
        logging.getLogger(name).info("canonical request: an account in every header")
        logging.getLogger(name).warning("it goes wrong")
    said = capsys.readouterr().err
    assert "canonical" not in said
    assert said.count("it goes wrong") == 5


def test_our_lines_follow_the_setting(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning")
    logging.getLogger("worker").info("working")
    logging.getLogger("activities").warning("in vain")
    said = capsys.readouterr().err
    assert "working" not in said
    assert "in vain" in said


def test_a_line_of_json_says_whose_it_is_and_shows_no_secret(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json", lambda: {"pid": "20.500/a", "job_ids": ["7"], "run_id": ""})
    logging.getLogger("worker").info("fetching %s é", LEAKS[0])
    try:
        raise OSError(LEAKS[7])
    except OSError:
        logging.getLogger("api").exception("POST /token")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "worker",
        "message": f"fetching {redacted(LEAKS[0])} é",
        "pid": "20.500/a",
        "job_ids": ["7"],
    }
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith(redacted(LEAKS[7]))
    assert SECRET not in f"{first}{second}"
