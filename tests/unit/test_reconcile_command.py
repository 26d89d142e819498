"""`reconcile` at the command line: what it prints, and its exit codes; what it does is told by an integration test."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import reconcile
from cli.__main__ import app
from cli.catalogue import OutOfReach
from cli.losses import Found, Kind, Loss
from domain.lifecycle import JobType

JOB = Loss(kind=Kind.JOB, id="5a3c", detail="archive of 1 dataset", job_type=JobType.ARCHIVE)
UPLOAD = Loss(kind=Kind.UPLOAD, id="20.500/x\x1b[2J", detail="in the landing zone")

Say = Any


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Makes the command find these, and have that trouble with them."""
    for name in ("S3_USER", "S3_PASSWORD", "SCICAT_USER", "SCICAT_PASSWORD"):
        monkeypatch.setenv(name, "service")
    for name in ("JOB_ENDPOINT_USERNAME", "JOB_ENDPOINT_PASSWORD"):
        monkeypatch.setenv(name, "scicat")
    monkeypatch.setenv("S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("ENVIRONMENT", "development")

    def say(*losses: Loss, troubles: dict[str, str] | None = None, asked: list[Any] | None = None) -> None:
        async def answer(_: object, since: str, *, apply: bool) -> tuple[Found, dict[str, str]]:
            if asked is not None:
                asked.append((since, apply))
            return Found(jobs=3, running=2, losses=losses), troubles or {}

        monkeypatch.setattr(reconcile, "_reconcile", answer)

    return say


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reconcile", *arguments])


def test_what_could_be_done_is_shown_with_what_is_left_to_people(found: Say) -> None:
    found(JOB, UPLOAD)
    result = run()
    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        [
            "job         5a3c  (archive of 1 dataset): start it again",
            "upload      20.500/x\\x1b[2J  (in the landing zone)",
            "3 jobs have not finished in SciCat, 2 of them run; lost: 1 job, 1 upload",
            "nothing was changed: --apply does it",
        ],
    )


def test_what_is_left_to_people_is_no_failure(found: Say) -> None:
    found(UPLOAD)
    result = run()
    assert (result.exit_code, "--apply" in result.stdout) == (0, False)


def test_what_was_done_is_a_success_and_what_was_not_is_named(found: Say) -> None:
    asked: list[Any] = []
    found(JOB, asked=asked)
    assert run("--apply", "--since", "2026-11-01").exit_code == 0
    assert asked == [("2026-11-01T00:00:00+00:00", True)]
    found(JOB, troubles={"5a3c": "was started as another type"})
    result = run("--apply")
    assert (result.exit_code, result.stderr) == (1, "5a3c: not done: was started as another type\n")


def test_programs_are_told_everything(found: Say) -> None:
    found(*(UPLOAD.model_copy(update={"id": str(n)}) for n in range(30)), JOB, troubles={"5a3c": "why"})
    told = json.loads(run("--json", "--apply").stdout)
    assert (told["applied"], told["jobs"], told["running"], len(told["losses"])) == (True, 3, 2, 31)
    assert told["losses"][-1] == {
        "kind": "job",
        "id": "5a3c",
        "detail": "archive of 1 dataset",
        "job_type": "archive",
        "remedy": "start it again",
        "trouble": "why",
    }
    assert "upload      and 10 more" in run().stdout


def test_whoever_does_not_answer_is_named(found: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    found()

    async def away(*_: object, **__: object) -> None:
        raise OutOfReach("Temporal does not answer at x: check TEMPORAL_ADDRESS; nothing was changed")

    monkeypatch.setattr(reconcile, "_reconcile", away)
    result = run()
    assert (result.exit_code, "check TEMPORAL_ADDRESS; nothing was changed" in result.stderr) == (3, True)
    monkeypatch.delenv("JOB_ENDPOINT_PASSWORD")
    result = run()
    assert (result.exit_code, result.stderr) == (1, "JOB_ENDPOINT_PASSWORD must be set and not be empty.\n")
