"""The client's commands against one small server that plays SciCat, S3 and the archiver's API, and the demo's parts."""

import base64
import getpass
import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from cli import client, demo, following, ingest, steering
from cli.catalogue import OutOfReach, Refused, UserCatalogue
from cli.client import Connection, connect
from cli.demo import PhaseClock, Report, compare, demo_overrides
from cli.following import ArchiverApi, Display, Look
from cli.ingest import Inventory, scan
from cli.session import generate_session
from domain.lifecycle import Phase
from domain.progress import DatasetProgress, JobProgress

PID = "20.500.11935/0d4c"
JOB = "5a3c8a52-9e0f-4a0c-b7a5-0f6f4c1f8c11"


@dataclass
class World:
    """What the server was told, and what it answers."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    calls: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    """(method and path, JSON body) of every SciCat call but logins, in order."""
    logins: int = 0
    tokens: set[str] = field(default_factory=set[str])
    statuses: list[str] = field(default_factory=lambda: ["jobSubmitted", "inProgress", "finishedSuccessful"])
    """The job's statuses, one per look; the last one stays."""
    result: dict[str, Any] = field(default_factory=dict[str, Any])
    archiver: dict[str, Any] = field(default_factory=dict[str, Any])
    """Answers of the archiver's API by decoded path below /archiver/; a list is answered call by call."""
    told: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    """(method if it is POST, path, body or query) of every call of the archiver's API."""
    s3_status: int = 200


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    world = World()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/archiver/"):
                self._archiver("", unquote(path), urlsplit(self.path).query)
            else:
                self._scicat("GET", path, None)

        def do_HEAD(self) -> None:
            self._bytes(world.s3_status, b"")

        def do_PUT(self) -> None:
            body = self._body()
            if world.s3_status == 200:
                key = unquote(urlsplit(self.path).path).removeprefix("/landingzone/")
                world.objects[key] = body
                sent = self.headers["x-amz-checksum-sha256"]
                assert sent == base64.b64encode(hashlib.sha256(body).digest()).decode()
            self._bytes(world.s3_status, b"")

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/archiver/"):
                self._archiver("POST ", path, json.loads(self._body() or "null"))
            else:
                self._scicat("POST", urlsplit(self.path).path, json.loads(self._body()))

        def do_PATCH(self) -> None:
            self._scicat("PATCH", urlsplit(self.path).path, json.loads(self._body()))

        def _archiver(self, method: str, path: str, sent: Any) -> None:
            name = method + path.removeprefix("/archiver/")
            world.told.append((name, sent))
            answers = world.archiver.get(name, (404, {"detail": "?"}))
            if isinstance(answers, list):  # one answer per call; the last one stays
                several = cast("list[Any]", answers)
                answers = several.pop(0) if len(several) > 1 else several[0]
            status, body = cast("tuple[int, Any]", answers if isinstance(answers, tuple) else (200, answers))
            self._json(status, body)

        def _scicat(self, method: str, path: str, body: Any) -> None:
            path = path.removeprefix("/api/v3/")
            if path == "auth/login":
                if body != {"username": "alice", "password": "secret"}:
                    return self._json(401, {"message": "Unauthorized", "statusCode": 401})
                world.logins += 1
                world.tokens.add(token := f"token-{world.logins}")
                return self._json(201, {"access_token": token, "expires_in": 3600})
            if self.headers["Authorization"].removeprefix("Bearer ") not in world.tokens:
                return self._json(403, {"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403})
            world.calls.append((f"{method} {path}", body))
            if path == "users/my/identity":
                return self._json(200, {"profile": {"email": "alice@host.org", "accessGroups": ["group1", "group9"]}})
            if path == "datasets":
                return self._json(201, {"pid": PID})
            if path == "jobs":
                return self._json(201, {"id": JOB, "jobStatusMessage": "jobSubmitted"})
            if path == f"jobs/{JOB}":
                status = world.statuses.pop(0) if len(world.statuses) > 1 else world.statuses[0]
                return self._json(200, {"id": JOB, "jobStatusMessage": status, "jobResultObject": world.result})
            if path.startswith("datasets/20.500.11935%2F0d4c/"):
                return self._json(201, {})
            return self._json(404, {"message": f"Cannot {method} {path}", "statusCode": 404})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _json(self, status: int, body: Any) -> None:
            self._bytes(status, json.dumps(body).encode())

        def _bytes(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    world.url = f"http://127.0.0.1:{httpd.server_port}"
    for name, value in environment(world.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield world
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def environment(url: str) -> dict[str, str]:
    return {
        "SCICAT_ENDPOINT": url,
        "SCICAT_USER": "alice",
        "SCICAT_PASSWORD": "secret",
        "S3_ENDPOINT": url,
        "S3_USER": "key",
        "S3_PASSWORD": "secret",
        "API_ENDPOINT": url,
        "JOB_ENDPOINT_USERNAME": "scicat",
        "JOB_ENDPOINT_PASSWORD": "secret",
    }


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    client.register(app)
    steering.register(app)
    demo.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "movies").mkdir(parents=True)
    (folder / "movies" / "ü+%20 'a'.tiff").write_bytes(b"frames" * 1000)
    (folder / "empty").touch()
    return folder


# --- looking at a folder --------------------------------------------------------------------------------------------


def test_scan_finds_regular_files_and_explains_the_rest(folder: Path) -> None:
    (folder / "link").symlink_to("empty")
    (folder / "folder link").symlink_to("movies")
    os.mkfifo(folder / "pipe")
    (folder / "nothing inside").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may only have some 100 bytes
        listener.bind("socket")
        os.chdir(here)
    Path(os.fsdecode(os.fsencode(folder) + b"/latin-\xfc")).touch()

    found = scan(folder)

    assert [(file.path, file.size) for file in found.files] == [("empty", 0), ("movies/ü+%20 'a'.tiff", 6000)]
    assert found.refused == []
    reasons = {remark.path: remark.reason for remark in found.skipped}
    assert "symbolic link" in reasons["link"]
    assert "symbolic link" in reasons["folder link"]
    assert "named pipe" in reasons["pipe"]
    assert "socket" in reasons["socket"]
    assert "empty folder" in reasons["nothing inside/"]
    assert "UTF-8" in reasons["latin-\\udcfc"]


def test_scan_refuses_what_the_archiver_would(tmp_path: Path) -> None:
    (tmp_path / "new\nline").touch()
    (tmp_path / "e\u0301").touch()
    (tmp_path / "\u00e9").touch()
    deep = tmp_path.joinpath(*["d" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / "f").touch()

    refused = {remark.path: remark.reason for remark in scan(tmp_path).refused}

    assert "control characters" in refused["new\\nline"]
    assert "Unicode form" in refused["\u00e9"]
    assert any("940" in reason for reason in refused.values())
    assert len(refused) == 3


def test_scan_leaves_folders_out_and_puts_a_prefix_before(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x").touch()

    found = scan(folder, prefix="p/", leave_out=frozenset({"__pycache__"}))

    assert [file.path for file in found.files] == ["p/empty", "p/movies/ü+%20 'a'.tiff"]


# --- whom to talk to ------------------------------------------------------------------------------------------------

STACK = Connection(
    scicat_url="http://127.0.0.1:1/api/v3",
    scicat_user="local",
    scicat_password="local",
    s3_url="http://127.0.0.1:2",
    s3_key="local",
    s3_secret="local",
    api_url="http://127.0.0.1:3",
    api_user="local",
    api_password="local",
    temporal_ui_url="http://127.0.0.1:4",
)


def test_the_local_stack_is_used_where_the_environment_says_nothing() -> None:
    assert connect({}, STACK) == STACK


def test_a_foreign_service_never_gets_the_local_credentials() -> None:
    found = connect(
        {"SCICAT_ENDPOINT": "scicat.host.org", "S3_ENDPOINT": "https://s3.host.org/", "S3_USER": "me"}, STACK
    )

    assert found.scicat_url == "https://scicat.host.org/api/v3"
    assert (found.scicat_user, found.scicat_password) == ("", "")
    assert (found.s3_url, found.s3_key, found.s3_secret) == ("https://s3.host.org", "me", "")
    assert found.api_password == "local"


def test_a_service_that_nobody_names_is_out_of_reach() -> None:
    with pytest.raises(OutOfReach, match="API_ENDPOINT"):
        connect({"SCICAT_ENDPOINT": "x", "S3_ENDPOINT": "x"}, None)


def test_secrets_do_not_print() -> None:
    assert "secret" not in repr(connect(environment("http://h"), None))


def test_a_workflows_page_has_its_id_in_one_segment() -> None:
    assert STACK.workflow_url("archive-dataset/a/b").endswith("/workflows/archive-dataset%2Fa%2Fb")


# --- ingest ---------------------------------------------------------------------------------------------------------


def test_ingest_uploads_registers_and_only_then_allows_archiving(world: World, folder: Path) -> None:
    result = run("ingest", folder)

    assert result.exit_code == 0, result.output
    assert result.stdout == f"{PID}\n"
    prefix = f"openem-network/datasets/{PID}/raw_files/"
    assert world.objects == {prefix + "empty": b"", prefix + "movies/ü+%20 'a'.tiff": b"frames" * 1000}
    names = [name for name, _ in world.calls]
    block = "POST datasets/20.500.11935%2F0d4c/origdatablocks"
    lifecycle = "PATCH datasets/20.500.11935%2F0d4c/datasetlifecycle"
    assert names == ["GET users/my/identity", "POST datasets", block, lifecycle]
    bodies = dict(world.calls)
    assert bodies["POST datasets"]["datasetlifecycle"]["archivable"] is False
    assert bodies["POST datasets"]["ownerGroup"] == "group1"
    assert bodies["POST datasets"]["sourceFolder"] == str(folder)
    assert bodies[lifecycle] == {"archivable": True, "archiveStatusMessage": "datasetCreated"}
    assert bodies[block]["size"] == 6000
    assert bodies[block]["chkAlg"] == "sha256"
    entry = bodies[block]["dataFileList"][1]
    assert entry["path"] == "movies/ü+%20 'a'.tiff"
    assert entry["chk"] == hashlib.sha256(b"frames" * 1000).hexdigest()
    assert entry["perm"].startswith("-rw")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z", entry["time"])


def test_ingest_as_json_names_what_stayed_behind(world: World, folder: Path) -> None:
    (folder / "link").symlink_to("empty")

    result = run("ingest", folder, "--json", "--name", "n", "--owner-group", "group9")

    told = json.loads(result.stdout)
    assert told["pid"] == PID
    assert (told["files"], told["bytes"]) == (2, 6000)
    assert told["skipped"][0]["path"] == "link"
    assert "left out: link" in result.stderr
    assert dict(world.calls)["POST datasets"]["ownerGroup"] == "group9"


def test_ingest_registers_in_blocks(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "FILES_PER_BLOCK", 2)
    for number in range(3):
        (folder / str(number)).touch()

    assert run("ingest", folder).exit_code == 0

    blocks = [len(body["dataFileList"]) for name, body in world.calls if name.endswith("origdatablocks")]
    assert blocks == [2, 2, 1]


def test_ingest_names_bad_names_before_anything_happens(world: World, folder: Path) -> None:
    (folder / "bell\a").touch()

    result = run("ingest", folder)

    assert result.exit_code == 2
    assert "bell\\x07" in result.stderr
    assert world.calls == []
    assert world.objects == {}


def test_ingest_of_an_empty_folder_is_wrong_usage(world: World, tmp_path: Path) -> None:
    (tmp_path / "void" / "inner").mkdir(parents=True)

    result = run("ingest", tmp_path / "void")

    assert result.exit_code == 2
    assert "no regular file" in result.stderr
    assert world.calls == []


def test_ingest_without_s3_registers_nothing(world: World, folder: Path) -> None:
    world.s3_status = 403

    result = run("ingest", folder)

    assert result.exit_code == 3
    assert [name for name, _ in world.calls] == ["GET users/my/identity"]


async def test_a_file_that_changes_during_the_upload_is_refused(world: World, folder: Path) -> None:
    inventory = scan(folder)
    (folder / "empty").write_bytes(b"no more")

    with pytest.raises(Refused, match="empty changed"):
        await client.upload(connect(os.environ, None), inventory, name="n", source="s")

    assert not any("lifecycle" in name for name, _ in world.calls)


def test_a_wrong_password_is_exit_code_3(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCICAT_PASSWORD", "wrong")

    result = run("ingest", folder)

    assert result.exit_code == 3
    assert "does not know the user 'alice'" in result.stderr
    assert "wrong" not in result.stderr


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_archive_posts_a_job_to_scicat(world: World) -> None:
    result = run("archive", PID, "other/pid")

    assert result.exit_code == 0, result.output
    assert result.stdout == f"{JOB}\n"
    assert dict(world.calls)["POST jobs"] == {
        "type": "archive",
        "jobParams": {},
        "datasetList": [{"pid": PID, "files": []}, {"pid": "other/pid", "files": []}],
        "emailJobInitiator": "alice@host.org",
    }


def progress(phase: Phase, **fields: Any) -> DatasetProgress:
    return DatasetProgress(pid=PID, kind="archive", phase=phase, **fields)


def test_archive_waits_and_shows_progress_in_lines(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.01)
    job = JobProgress.model_validate({"id": JOB, "type": "archive", "phase": "writing", "datasets": [{"pid": PID}]})
    world.archiver[f"jobs/{JOB}"] = job.model_dump(mode="json")
    world.archiver[f"datasets/{PID}"] = progress(
        Phase.WRITING, bytes_done=5 << 20, bytes_total=9 << 20, states={"writing": 2, "on_tape": 1}
    ).model_dump(mode="json")
    world.result = {"datasets": [{"pid": PID, "status": "archived", "message": ""}]}

    result = run("archive", PID, "--wait", "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["job"], told["status"]) == (JOB, "finishedSuccessful")
    assert told["result"] == world.result
    assert f"{PID}: writing, 5 of 9 MiB, 2 writing, 1 on tape" in result.stderr


def test_a_failed_job_is_exit_code_1_with_its_reasons(world: World) -> None:
    world.statuses = ["finishedWithDatasetErrors"]
    world.result = {"datasets": [{"pid": PID, "status": "dataset_error", "message": "a file is missing"}]}

    result = run("archive", PID, "--wait")

    assert result.exit_code == 1
    assert f"{PID}: dataset_error: a file is missing" in result.stderr


def test_retrieve_writes_the_script_for_its_owner_only(world: World, tmp_path: Path) -> None:
    world.statuses = ["finishedSuccessful"]
    world.result = {"downloadScript": base64.b64encode(b"echo hi\n").decode()}

    result = run("retrieve", PID, "--wait", "--script", tmp_path / "get.sh")

    assert result.exit_code == 0, result.output
    assert (tmp_path / "get.sh").read_text() == "echo hi\n"
    assert (tmp_path / "get.sh").stat().st_mode & 0o777 == 0o600


def test_retrieve_without_a_script_to_write_fails(world: World, tmp_path: Path) -> None:
    world.statuses = ["finishedSuccessful"]

    assert run("retrieve", PID, "--wait", "--script", tmp_path / "get.sh").exit_code == 1
    assert run("retrieve", PID, "--script", tmp_path / "get.sh").exit_code == 2


def test_waiting_goes_on_without_the_archivers_api(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.01)

    result = run("archive", PID, "--wait")

    assert result.exit_code == 0, result.output
    assert "the archiver does not know it" in result.stderr


async def test_a_token_that_ran_out_is_renewed_once(world: World) -> None:
    async with UserCatalogue(f"{world.url}/api/v3", "alice", "secret") as catalogue:
        await catalogue.who_am_i()
        world.tokens.clear()

        assert await catalogue.create_job("archive", [PID]) == JOB

        world.tokens.clear()
        with pytest.raises(Refused, match="404"):
            await catalogue.job("unknown")
        assert world.logins == 3


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_of_a_dataset_with_a_slash(world: World) -> None:
    answer = progress(
        Phase.WAITING_TAPE,
        waiting_for=f"openem-network/datasets/{PID}/datablocks/x.tar is DISK",
        bytes_done=1 << 20,
        bytes_total=2 << 20,
        note="no worker polls archival",
    ).model_dump(mode="json")
    poll = {"name": "await_tape", "state": "waiting", "next_attempt": "2026-01-02T12:05:00"}
    world.archiver[f"datasets/{PID}"] = answer | {
        "new field": 1,
        "waiting_since": "2026-01-02T12:00:00",
        "steps": [poll],
    }

    result = run("status", PID)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"archive of {PID}: waiting_tape (x.tar is DISK)",
        "  1.0 of 2.0 MiB",
        "  since 2026-01-02T12:00:00",
        "  next look at 2026-01-02T12:05:00",
        "  no worker polls archival",
    ]
    assert json.loads(run("status", PID, "--json").stdout) == world.archiver[f"datasets/{PID}"]


@pytest.mark.parametrize(
    ("status", "code"), [("inProgress", 0), ("finishedSuccessful", 0), ("finishedUnsuccessful", 1)]
)
def test_status_of_a_job(world: World, status: str, code: int) -> None:
    world.archiver[f"jobs/{JOB}"] = {
        "id": JOB, "type": "archive", "phase": "done", "status": status, "datasets_total": 3,
        "datasets": [{"pid": PID, "status": "failed", "message": "why"}],
    }  # fmt: skip

    result = run("status", JOB)

    assert result.exit_code == code
    assert result.stdout.splitlines() == [f"archive job {JOB}: {status}", f"  {PID}: failed: why", "  and 2 more"]


def test_status_of_something_unknown_or_new(world: World) -> None:
    assert run("status", JOB).exit_code == 1
    world.archiver[f"datasets/{JOB}"] = {"pid": JOB, "phase": "levitating"}

    result = run("status", JOB)

    assert result.exit_code == 0
    assert "levitating" in result.stdout


def test_status_of_a_failed_dataset_is_exit_code_1(world: World) -> None:
    world.archiver["datasets/p"] = progress(Phase.DONE, outcome="failed").model_dump(mode="json")

    assert run("status", "p").exit_code == 1


def test_nobody_there_is_exit_code_3(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("API_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

        result = run("status", PID)

    assert result.exit_code == 3
    assert "does not answer" in result.stderr


STEERING = ["jobs", "pause", "resume", "retry", "give-up", "cancel"]


@pytest.mark.parametrize("command", ["ingest", "archive", "retrieve", "status", "demo", *STEERING])
def test_help_has_examples_and_exit_codes(command: str) -> None:
    said = run(command, "--help").output

    assert "Examples:" in said
    assert f"scopemarchiver {command}" in said
    assert "Exit codes" in said


def test_status_watches_to_the_end_in_lines(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.01)
    failing = {"name": "write_block", "attempt": 2, "last_error": "Busy: later", "next_attempt": "12:00"}
    world.archiver[f"datasets/{PID}"] = [
        progress(Phase.WRITING, bytes_total=2 << 20).model_dump(mode="json") | {"steps": [failing]},
        (500, {"code": "TemporalUnavailable"}),
        progress(Phase.DONE, outcome="archived", bytes_done=2 << 20, bytes_total=2 << 20).model_dump(mode="json"),
    ]

    result = run("status", PID, "--watch")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"{PID}: writing, 0 of 2 MiB, write_block, attempt 2: Busy: later (again at 12:00)" in lines
    assert any("answered" in line and "500" in line for line in lines), "it goes on while the API is away"
    assert lines[-2:] == [f"archive of {PID}: archived", "  2.0 of 2.0 MiB"]


def test_status_watches_a_job_in_json_line_by_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.01)
    moving = {"id": JOB, "type": "archive", "phase": "writing", "status": "inProgress", "datasets": [{"pid": PID}]}
    ended = moving | {"phase": "done", "status": "finishedUnsuccessful", "datasets": []}
    world.archiver[f"jobs/{JOB}"] = [moving, moving, ended]

    result = run("status", JOB, "--watch", "--json")

    assert result.exit_code == 1
    assert [json.loads(line) for line in result.stdout.splitlines()] == [moving, ended]


def test_watching_something_unknown_ends_at_once(world: World) -> None:
    assert run("status", PID, "--watch").exit_code == 1


def test_watching_ends_when_the_api_stays_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(following, "PATIENCE_S", 0.05)
    world.archiver[f"datasets/{PID}"] = [progress(Phase.WRITING).model_dump(mode="json"), (500, {})]

    assert run("status", PID, "--watch").exit_code == 3


# --- steering -------------------------------------------------------------------------------------------------------


def steered(verb: str, acted: str, **more: Any) -> dict[str, Any]:
    return {"verb": verb, "acted": [acted], **more}


@pytest.mark.parametrize("verb", STEERING[1:])
def test_a_verb_for_a_dataset_goes_to_the_api(world: World, verb: str) -> None:
    shown = progress(Phase.WRITING).model_dump(mode="json") | {"workflow_id": f"archive-dataset/{PID}"}
    world.archiver[f"POST datasets/{verb}"] = steered(
        verb,
        f"archive-dataset/{PID}",
        datasets=[shown],
        left_alone={f"retrieve-dataset/{PID}": "already ended: retrieved"},
    )

    result = run(verb, PID)

    assert result.exit_code == 0, result.output
    assert result.stdout == f"{verb}: archive-dataset/{PID} is now writing\n"
    assert result.stderr == f"retrieve-dataset/{PID} was left alone: already ended: retrieved\n"
    assert world.told == [(f"POST datasets/{verb}", {"pid": PID, "by": getpass.getuser()})]


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
def test_a_verb_for_a_job_is_told_by_the_form_of_the_id(world: World, verb: str) -> None:
    job = {"id": JOB, "type": "archive", "phase": "paused", "workflow_id": f"job/{JOB}"}
    answer = steered(verb, f"job/{JOB}", job=job)
    world.archiver[f"POST jobs/{JOB}/{verb}"] = answer

    assert run(verb, JOB).stdout == f"{verb}: job/{JOB} is now paused\n"
    assert json.loads(run(verb, JOB, "--json").stdout) == answer


def test_a_dataset_whose_id_looks_like_a_jobs_is_found_too(world: World) -> None:
    world.archiver["POST datasets/pause"] = steered("pause", f"archive-dataset/{JOB}")

    assert run("pause", JOB, "--by", "nadia").exit_code == 0
    assert [name for name, _ in world.told] == [f"POST jobs/{JOB}/pause", "POST datasets/pause"]
    assert world.told[-1] == ("POST datasets/pause", {"pid": JOB, "by": "nadia"})


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (409, {"detail": "cancel: archive-dataset/x: too late, already archived"}, 1, "too late, already archived"),
        (422, {"detail": [{"loc": ["body"], "msg": "the dataset id climbs", "type": "v"}]}, 1, "the dataset id climbs"),
        (404, {"detail": "no workflow is known"}, 1, "does not know it"),
        (401, {"detail": "wrong"}, 3, "OPERATOR_USERNAME"),
        (500, {"code": "TemporalUnavailable"}, 3, "500"),
    ],
)
def test_why_a_verb_was_refused_is_said_and_is_the_exit_code(
    world: World, status: int, body: dict[str, Any], code: int, said: str
) -> None:
    world.archiver["POST datasets/cancel"] = (status, body)

    result = run("cancel", PID)

    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_an_operator_needs_no_account_but_the_apis(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCICAT_ENDPOINT", "S3_ENDPOINT"):
        monkeypatch.delenv(name)
    world.archiver["POST datasets/pause"] = steered("pause", f"archive-dataset/{PID}")

    assert run("pause", PID).exit_code == 0
    operator = {"API_ENDPOINT": "x", "OPERATOR_USERNAME": "o", "OPERATOR_PASSWORD": "p", "JOB_ENDPOINT_USERNAME": "s"}
    found = connect(operator, None, services=["API_ENDPOINT"])
    assert (found.api_user, found.api_password) == ("o", "p")


def test_beside_the_service_its_own_api_is_asked_as_its_operator(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in its container: settings by the environment, secrets in files."""
    world.archiver["jobs"] = {"jobs": [], "next_page": ""}
    for name in ("API_ENDPOINT", "JOB_ENDPOINT_USERNAME", "JOB_ENDPOINT_PASSWORD", "S3_PASSWORD", "SCICAT_PASSWORD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UVICORN_PORT", str(urlsplit(world.url).port))
    assert run("jobs").exit_code == 3

    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "operator_username").write_text("nadia")
    (secrets / "operator_password").write_text("a good one")
    monkeypatch.setenv("SECRETS_DIR", str(secrets))
    assert (run("jobs").exit_code, [path for path, _ in world.told]) == (0, ["jobs"])
    found = client.connected("API_ENDPOINT")
    assert (found.api_user, found.api_password) == ("nadia", "a good one")


def test_jobs_are_listed_in_lines_page_by_page(world: World) -> None:
    def job(number: int, **more: Any) -> dict[str, Any]:
        named = {"id": f"id-{number}", "type": "archive", "phase": "parked", "started": "2026-01-02"}
        return {**named, "workflow_id": f"job/id-{number}", "run_id": "r", **more}

    ended = job(2, phase="done", outcome="finishedUnsuccessful", owner_group="group1")
    world.archiver["jobs"] = [{"jobs": [job(1)], "next_page": "more"}, {"jobs": [ended], "next_page": ""}]

    result = run("jobs", "--phase", "parked", "--owner", "group1", "--outcome", "inProgress", "--running")

    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["id-1", "archive", "parked", "-", "2026-01-02"],
        ["id-2", "archive", "finishedUnsuccessful", "group1", "2026-01-02"],
    ]
    [first, second] = [dict(parse_qsl(query)) for _, query in world.told]
    filters = {"phase": "parked", "owner": "group1", "outcome": "inProgress", "running": "true"}
    assert (first, second) == (filters | {"limit": "50"}, filters | {"limit": "49", "page": "more"})
    assert json.loads(run("jobs", "--json").stdout)["jobs"][0]["outcome"] == "finishedUnsuccessful"
    assert run("jobs", "--phase", "levitating").exit_code == 2


# --- showing --------------------------------------------------------------------------------------------------------


def look(at_s: float, dataset: DatasetProgress) -> Look:
    return Look(at_s, "inProgress", None, (dataset,))


def test_a_pipe_gets_a_line_only_for_something_new() -> None:
    told = io.StringIO()
    display = Display(Console(file=told, force_terminal=False), "archive")

    for at_s, done in enumerate([0, 1, 2, 50, 51]):
        display.show(look(at_s, progress(Phase.WRITING, bytes_done=done << 20, bytes_total=100 << 20)))
    display.show(look(9, progress(Phase.VERIFYING, bytes_done=0, bytes_total=100 << 20)))

    assert told.getvalue().splitlines() == [
        "archive: inProgress",
        f"{PID}: writing, 0 of 100 MiB",
        f"{PID}: writing, 50 of 100 MiB, 17 MiB/s",
        f"{PID}: verifying, 0 of 100 MiB",
    ]


def test_a_terminal_gets_a_table() -> None:
    told = io.StringIO()
    job = JobProgress.model_validate({"id": JOB, "type": "archive", "phase": "writing", "datasets_total": 12})

    with Display(Console(file=told, force_terminal=True, width=120), "archive [bold]") as display:
        display.show(Look(0, "inProgress", job, (progress(Phase.RECALLING, waiting_for="tape"),), "a note"))

    assert "archive [bold]" in told.getvalue()
    assert "recalling (tape)" in told.getvalue()
    assert "a note" in told.getvalue()


# --- the demo's parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [3, 4, 5, 6, 7, 100, 5000, 100_000])
def test_the_demo_makes_at_least_three_datablocks(files: int) -> None:
    per_block = int(demo_overrides(files)["ARCHIVER_TARGET_FILES"])

    assert per_block >= 1
    assert -(-files // per_block) >= 3


@pytest.mark.parametrize("files", [1, 2])
def test_the_demo_takes_fewer_files_too(files: int) -> None:
    assert demo_overrides(files)["ARCHIVER_TARGET_FILES"] == "1"


def test_compare_names_every_difference(folder: Path, tmp_path: Path) -> None:
    inventory = scan(folder)
    back = tmp_path / "back"
    (back / "movies").mkdir(parents=True)
    (back / "movies" / "ü+%20 'a'.tiff").write_bytes(b"frames" * 999 + b"Frames")
    (back / "more").touch()

    assert compare(inventory, back) == [
        "missing: empty",
        "not in the original: more",
        "differs: movies/ü+%20 'a'.tiff",
    ]
    assert compare(inventory, folder) == []
    assert len(compare(inventory, tmp_path / "nowhere")) == 2


def test_the_session_is_the_same_each_time_and_ready_to_archive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_session(tmp_path / name, total_bytes=9 << 20)

    inventory = scan(tmp_path / "a")
    assert compare(inventory, tmp_path / "b") == []
    assert inventory.refused == inventory.skipped == []
    assert 8 << 20 < inventory.size_bytes < 11 << 20
    assert any(file.size == 0 for file in inventory.files)
    header = next(file for file in inventory.files if file.path.endswith("_fractions.mrc")).source.read_bytes()[:1024]
    assert header[208:212] == b"MAP "


def test_phases_are_timed_from_looks() -> None:
    clock = PhaseClock()

    for at_s, phase in [(0, Phase.WRITING), (1, Phase.WRITING), (2, Phase.WAITING_TAPE)]:
        clock.look(look(at_s, progress(phase)))
    clock.look(look(5, progress(Phase.DONE)))
    clock.look(Look(6, "finishedSuccessful"))

    assert list(clock.steps(7)) == [("  writing", 2, 7), ("  waiting tape", 3, 0)]


def test_the_report_ends_with_a_table_links_and_problems() -> None:
    report = Report(links=[("archive job", "http://ui")])
    with report.step("archive", 1 << 20):
        report.steps.append(("  writing", 2.0, 1 << 20))
    report.check(False, "all is well", "something is [not] well")
    told = io.StringIO()

    demo.show(report, Console(file=told, width=100))

    assert [step[0] for step in report.steps] == ["archive", "  writing"]
    assert "0.5" not in report.problems
    assert "archive job: http://ui" in told.getvalue()
    assert "something is [not] well" in told.getvalue()
    assert "as it was" not in told.getvalue()


def test_the_demo_starts_nothing_for_a_folder_that_cannot_be_archived(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()

    assert run("demo", tmp_path / "d", "--stack", tmp_path / "stack").exit_code == 2

    (tmp_path / "d" / "bell\a").touch()
    assert run("demo", tmp_path / "d", "--stack", tmp_path / "stack").exit_code == 2
    assert not (tmp_path / "stack").exists()


@pytest.mark.parametrize(("script", "good"), [('test -n "$EXTRACTION_FOLDER"', True), ("exit 3", False), ("", False)])
async def test_a_download_scripts_exit_code_counts(
    tmp_path: Path, script: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "said").open("w") as said:
        monkeypatch.setattr("sys.stderr", said)  # a real file, as bash needs one

        assert await demo.run_script(script, tmp_path, tmp_path / "extracted") is good


async def test_localities_are_read_by_the_tape_rest_api(world: World) -> None:
    connection = Connection(scicat_url="", s3_url="", api_url="", lts_url=world.url)

    with pytest.raises(OutOfReach, match="tape library"):
        await demo.localities(connection, ["x"])


async def test_the_api_client_tells_unknown_from_unreachable(world: World) -> None:
    async with ArchiverApi(world.url, "u", "p") as api:
        with pytest.raises(Refused, match="does not know"):
            await api.dataset("no/such")


def test_an_inventory_counts_its_bytes(folder: Path) -> None:
    assert scan(folder).size_bytes == 6000
    assert Inventory().size_bytes == 0
