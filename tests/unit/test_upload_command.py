"""`upload` against an archiver, an S3, a SciCat and an identity provider of a few dictionaries, behind httpx."""

import base64
import hashlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from cli import upload, upload_api, upload_files
from cli.catalogue import Refused
from cli.upload_journal import FileUpload, Journal, unfinished
from domain.checksum import b64, composite
from tests.digests import sha256_b64

PID = "20.500.11935/0d4c"
PREFIX = f"openem-network/datasets/{PID}/raw_files/"
ISSUER = "https://idp.host.org/realms/facility"
SOME_PART = 1000


@dataclass
class World:
    """All services; what they have, and what goes wrong."""

    objects: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """ETag and composite SHA-256 by path."""
    contents: dict[str, bytes] = field(default_factory=dict[str, bytes])
    open: dict[str, dict[int, bytes]] = field(default_factory=dict[str, dict[int, bytes]])
    """Parts of open uploads, by upload id."""
    puts: list[str] = field(default_factory=list[str])
    """Path and part of each PUT that came, in order."""
    calls: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    """Name and body of each call of the API below /s3/."""
    registered: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tokens: list[str] = field(default_factory=list[str])
    """How each token was got: `traded` or `refreshed`."""
    token_life_s: int = 300
    provider_answers: bool = True
    may_upload: bool = True
    failures: dict[str, list[httpx.Response]] = field(default_factory=dict[str, list[httpx.Response]])
    """What the next calls of the API, or PUTs of a path's part, are answered."""
    finalized: bool = False

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer as the host that is asked."""
        host, path = request.url.host, request.url.path
        if host == "idp.host.org":
            form = dict(parse_qsl(request.content.decode()))
            assert form["grant_type"] == "refresh_token"
            assert form["client_id"] == "archiver-service-api"
            assert "client_secret" not in form
            if not self.provider_answers:
                raise httpx.ConnectError("refused")
            return httpx.Response(200, json=self._token("refreshed"))
        if host == "s3.host.org":
            return self._put(request, path.removeprefix(f"/landingzone/{PREFIX}"))
        if host == "scicat.host.org":
            return self._scicat(request, path.removeprefix("/api/v3/"))
        name = path.removeprefix("/").removeprefix("s3/")
        if name == "token":
            assert request.headers["Authorization"] == "Bearer of-scicat"
            if not self.may_upload:
                return httpx.Response(401, json={"detail": "a bearer token is needed: no group that may upload"})
            return httpx.Response(201, json=self._token("traded"))
        given = [f"Bearer {self._access(number)}" for number in range(1, len(self.tokens) + 1)]
        if request.headers["Authorization"] not in given:
            return httpx.Response(401, json={"detail": "a bearer token is needed: it has expired"})
        body = json.loads(request.content)
        self.calls.append((name, body))
        if self.failures.get(name):
            return self.failures[name].pop(0)
        return getattr(self, f"_{name}")(body)

    def named(self, name: str) -> list[Any]:
        """Bodies of all calls of a name."""
        return [body for called, body in self.calls if called == name]

    def _access(self, number: int) -> str:
        claims = {"iss": ISSUER, "azp": "archiver-service-api", "n": number}
        return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"

    def _token(self, how: str) -> dict[str, Any]:
        self.tokens.append(how)
        return {"access_token": self._access(len(self.tokens)), "refresh_token": "r", "expires_in": self.token_life_s}

    def _scicat(self, request: httpx.Request, path: str) -> httpx.Response:
        match request.method, path:
            case "POST", "auth/login":
                return httpx.Response(201, json={"access_token": "of-scicat"})
            case "GET", "users/my/identity":
                profile = {"username": "alice", "email": "alice@host.org", "accessGroups": ["group1"]}
                return httpx.Response(200, json={"profile": profile})
            case "POST", "datasets":
                return httpx.Response(201, json={"pid": PID})
            case "GET", _ if path == f"datasets/{PID}":
                return httpx.Response(200, json={"pid": PID, "ownerGroup": "group1"})
            case "GET", _ if path.endswith("/origdatablocks"):
                return httpx.Response(200, json=[{"dataFileList": self.registered}])
            case "POST", _ if path.endswith("/origdatablocks"):
                self.registered += json.loads(request.content)["dataFileList"]
                return httpx.Response(201, json={})
            case _:
                raise AssertionError(path)

    def _put(self, request: httpx.Request, path: str) -> httpx.Response:
        query = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        number, upload_id = int(query.get("partNumber", 1)), query.get("uploadId", "")
        self.puts.append(f"{path}:{number}")
        if failures := self.failures.get(f"{path}:{number}"):
            return failures.pop(0)
        if float(query["X-Amz-Date-Unix"]) + int(query["X-Amz-Expires"]) < time.time():
            return _s3_error(403, "AccessDenied")
        assert "Transfer-Encoding" not in request.headers
        content = request.content
        if request.headers["x-amz-checksum-sha256"] != sha256_b64(content):
            return _s3_error(400, "XAmzContentChecksumMismatch")
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if not upload_id:
            self.contents[path] = content
            self.objects[path] = etag, sha256_b64(content)
        elif upload_id in self.open:
            self.open[upload_id][number] = content
        else:
            return _s3_error(404, "NoSuchUpload")
        return httpx.Response(200, headers={"ETag": f'"{etag}"'})

    def _requestDatasetUpload(self, body: Any) -> httpx.Response:  # noqa: N802 - the call's name
        return httpx.Response(201, json={"message": "there is room"})

    def _presignedUrls(self, body: Any) -> httpx.Response:  # noqa: N802
        upload_id = f"upload-{len(self.calls)}" if body["parts"] > 1 else ""
        if upload_id:
            self.open[upload_id] = {}
        began = time.time()
        signed = f"X-Amz-Date={datetime.fromtimestamp(began, UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600"
        urls = [
            f"https://s3.host.org/landingzone/{quote(body['object_name'])}?{signed}&X-Amz-Date-Unix={began}"
            + (f"&partNumber={number}&uploadId={upload_id}" if upload_id else "")
            for number in range(1, body["parts"] + 1)
        ]
        return httpx.Response(201, json={"upload_id": upload_id, "urls": [b64(url.encode()) for url in urls]})

    def _completeUpload(self, body: Any) -> httpx.Response:  # noqa: N802
        path = body["object_name"].removeprefix(PREFIX)
        parts, upload_id = body["parts"], body["upload_id"]
        digests = [base64.b64decode(part["checksum_sha256"]) for part in parts]
        assert body["checksum_sha256"] == b64(composite(digests))
        if upload_id in self.open:
            lying = self.open.pop(upload_id)
            assert [hashlib.sha256(lying[number]).digest() for number in sorted(lying)] == digests
            self.contents[path] = b"".join(lying[number] for number in sorted(lying))
            self.objects[path] = "", f"{body['checksum_sha256']}-{len(parts)}"
        there = self.objects.get(path)
        if upload_id:
            good = there is not None and there[1] == f"{body['checksum_sha256']}-{len(parts)}"
        else:
            good = there == (parts[0]["etag"], parts[0]["checksum_sha256"])
        if not good:
            return httpx.Response(500, json={"code": "NoSuchKey", "message": "?", "details": "?"})
        return httpx.Response(201, json={"location": "?", "key": body["object_name"]})

    def _abortMultipartUpload(self, body: Any) -> httpx.Response:  # noqa: N802
        self.open.pop(body["upload_id"], None)
        return httpx.Response(201, json={})

    def _abortDatasetUpload(self, body: Any) -> httpx.Response:  # noqa: N802
        self.open, self.objects, self.contents = {}, {}, {}
        return httpx.Response(201, json={})

    def _finalizeDatasetUpload(self, body: Any) -> httpx.Response:  # noqa: N802
        if self.open or not self.objects:
            code = "UploadUnfinished" if self.open else "NothingUploaded"
            return httpx.Response(500, json={"code": code, "message": f"{code}!", "details": "?"})
        self.finalized = True
        return httpx.Response(201, json={"dataset_id": PID, "message": "the upload is finalized; no archive job"})


def _s3_error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, text=f"<Error><Code>{code}</Code></Error>")


def trouble(code: str, status: int = 500) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": f"that is {code}", "details": "?"})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    world = World()
    network = httpx.MockTransport(world.handle)

    async def through(_: object, request: httpx.Request) -> httpx.Response:
        return await network.handle_async_request(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", through)
    monkeypatch.setattr(upload_api, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(upload, "ROOM_EVERY_S", 0.001)
    monkeypatch.setattr(upload_files, "PART_BYTES", SOME_PART)
    monkeypatch.setattr(upload_files, "_READ_BYTES", 300)
    for name, value in {
        "SCICAT_ENDPOINT": "scicat.host.org",
        "SCICAT_USER": "alice",
        "SCICAT_PASSWORD": "secret",
        "API_ENDPOINT": "api.host.org",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield world
    assert all("secret" not in str(call) for call in world.calls)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "large (1)").write_bytes(bytes(range(250)) * 14)  # 3,500: four parts
    (folder / "sub" / "ü+%20 'a'").write_bytes(b"small")
    (folder / "sub" / "empty").touch()
    return folder


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    upload.register(app)
    app.command("other")(lambda: None)  # or `upload` would be no sub-command
    return CliRunner().invoke(app, ["upload", *map(str, arguments)])


def records(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("cache/**/*.jsonl"))


def test_a_folder_goes_up_and_nothing_is_left_to_remember(world: World, folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--json", "--archive")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "pid": PID,
        "files": 3,
        "bytes": 3505,
        "sent_bytes": 3505,
        "message": "the upload is finalized; no archive job",
        "skipped": [],
    }
    assert world.contents == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert {entry["path"]: entry["chk"] for entry in world.registered} == {
        path: hashlib.sha256(content).hexdigest() for path, content in world.contents.items()
    }
    [request], [end] = world.named("requestDatasetUpload"), world.named("finalizeDatasetUpload")
    assert request == {"dataset_id": PID, "dataset_size_gib": 0}
    assert end == {
        "dataset_id": PID,
        "create_archiving_job": True,
        "owner_group": "group1",
        "owner_user": "alice",
        "contact_email": "alice@host.org",
    }
    assert "3 of 3 files" in result.stderr
    assert records(tmp_path) == []


# --- what an interruption leaves, and the next run --------------------------------------------------------------


def interrupted(world: World, folder: Path) -> Result:
    """A run that S3 ends at the third part of the large file; all else is there."""
    world.failures["large (1):3"] = [_s3_error(400, "Broken")]
    return run(folder, "--connections", "1")


def test_a_next_run_sends_only_what_is_missing(world: World, folder: Path, tmp_path: Path) -> None:
    first = interrupted(world, folder)
    assert first.exit_code == 1
    assert f"--pid {PID}" in first.stderr
    assert len(world.open) == 1
    assert records(tmp_path)[0].stat().st_mode & 0o077 == 0
    (folder / "sub" / "new").write_bytes(b"came later")
    missing = {"sub/empty", "sub/ü+%20 'a'", "sub/new"} - world.contents.keys()
    world.puts.clear()

    result = run(folder)

    assert result.exit_code == 0, result.output
    assert f"going on with {PID}" in result.stderr
    assert sorted(world.puts) == sorted(["large (1):3", "large (1):4", *(f"{path}:1" for path in missing)])
    assert world.contents["large (1)"] == (folder / "large (1)").read_bytes()
    assert len(world.registered) == 4
    assert world.finalized


def test_ctrl_c_says_how_to_go_on(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> httpx.Response:
        signal.raise_signal(signal.SIGINT)
        return _s3_error(503, "SlowDown")

    # A process that runs tests for another one may be deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(world, "_put", interrupted)
            result = run(folder, "--connections", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert f"go on with: scopemarchiver upload {folder} --pid {PID}" in result.stderr
    assert run(folder).exit_code == 0
    assert len(world.contents) == 3


def test_links_that_have_ended_and_uploads_that_s3_forgot_begin_anew(world: World, folder: Path) -> None:
    for forgotten in (False, True):
        interrupted(world, folder)
        [upload_id] = world.open
        if forgotten:
            world.open.clear()
        else:
            expire_links()
        world.puts.clear()
        result = run(folder)
        assert result.exit_code == 0, result.output
        assert [put for put in world.puts if put.startswith("large")].count("large (1):1") == 1
        assert upload_id not in world.open
        assert world.finalized
        world.objects, world.finalized, world.registered = {}, False, []


def expire_links() -> None:
    for record in records(Path.cwd()):
        record.write_text(record.read_text().replace("X-Amz-Expires=3600", "X-Amz-Expires=10"))


def test_what_the_service_has_thrown_away_meanwhile_is_sent_again(world: World, folder: Path) -> None:
    interrupted(world, folder)
    world.objects, world.contents, world.open = {}, {}, {}

    assert run(folder).exit_code == 0
    assert len(world.contents) == 3


def test_a_file_that_has_changed_is_sent_again_and_its_old_upload_aborted(world: World, folder: Path) -> None:
    interrupted(world, folder)
    [upload_id] = world.open
    (folder / "large (1)").write_bytes(b"other" * 700)

    assert run(folder).exit_code == 0
    assert [body["upload_id"] for body in world.named("abortMultipartUpload")] == [upload_id]
    assert world.contents["large (1)"] == b"other" * 700


def test_what_is_there_is_not_sent_though_the_record_is_lost(world: World, folder: Path, tmp_path: Path) -> None:
    world.failures["finalizeDatasetUpload"] = [trouble("NothingRegistered")]
    assert run(folder).exit_code == 1
    [record] = records(tmp_path)
    record.unlink()
    world.puts.clear()

    result = run(folder, "--pid", PID, "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sent_bytes"] == 0
    assert world.puts == []


def test_a_run_that_ended_before_the_end_only_finalizes(world: World, folder: Path) -> None:
    world.failures["finalizeDatasetUpload"] = [trouble("NothingRegistered")]
    run(folder)
    world.calls.clear()

    assert run(folder).exit_code == 0
    assert [name for name, _ in world.calls] == ["finalizeDatasetUpload"]


def test_a_file_that_went_up_and_is_gone_is_told_of(world: World, folder: Path) -> None:
    interrupted(world, folder)
    (folder / "large (1)").unlink()

    result = run(folder)

    assert result.exit_code == 1
    assert "large (1)" in result.stderr
    assert not world.finalized


def test_abort_throws_away_and_forgets(world: World, folder: Path, tmp_path: Path) -> None:
    interrupted(world, folder)
    assert world.named("abortDatasetUpload") == []

    result = run(folder, "--abort", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"pid": PID, "aborted": True}
    assert (world.objects, world.open, records(tmp_path)) == ({}, {}, [])
    assert run(folder, "--abort").exit_code == 2


# --- refusals ---------------------------------------------------------------------------------------------------


def full(**headers: str) -> httpx.Response:
    return httpx.Response(507, json={"message": "there is no room now"}, headers=headers)


def test_a_full_landing_zone_is_waited_for(world: World, folder: Path) -> None:
    world.failures["requestDatasetUpload"] = [full(), full()]

    result = run(folder)

    assert result.exit_code == 0, result.output
    assert result.stderr.count("there is no room now: asking again in") == 2
    assert len(world.named("requestDatasetUpload")) == 3


def test_without_patience_a_full_landing_zone_is_exit_code_4(world: World, folder: Path) -> None:
    world.failures["requestDatasetUpload"] = [full(**{"Retry-After": "60"})]

    result = run(folder, "--no-wait")

    assert result.exit_code == 4
    assert "there is no room now" in result.stderr
    assert f"--pid {PID}" in result.stderr
    assert world.puts == []


def test_who_may_not_upload_registers_nothing(world: World, folder: Path) -> None:
    world.may_upload = False

    result = run(folder)

    assert result.exit_code == 3
    assert "no group that may upload" in result.stderr
    assert world.calls == []


def test_a_dataset_that_is_being_archived_is_told_of_at_once(world: World, folder: Path) -> None:
    world.failures["requestDatasetUpload"] = [trouble("BeingArchived")]

    result = run(folder, "--pid", PID)

    assert result.exit_code == 1
    assert "that is BeingArchived" in result.stderr
    assert len(world.named("requestDatasetUpload")) == 1


def test_what_may_pass_is_tried_again_but_a_beginning_is_not(world: World, folder: Path) -> None:
    world.failures["requestDatasetUpload"] = [trouble("TemporalUnavailable"), httpx.Response(502, text="proxy")]
    world.failures["sub/ü+%20 'a':1"] = [_s3_error(503, "SlowDown")]
    assert run(folder).exit_code == 0
    assert world.puts.count("sub/ü+%20 'a':1") == 2

    (folder / "sub" / "empty").unlink()
    (folder / "sub" / "ü+%20 'a'").unlink()
    world.calls.clear()
    world.failures["presignedUrls"] = [trouble("ObjectStoreUnavailable")]
    result = run(folder, "--new")
    assert result.exit_code == 3
    assert "ObjectStoreUnavailable" in result.stderr
    assert len(world.named("presignedUrls")) == 1, "of a second upload nobody would know"


def test_sizes_that_scicat_has_otherwise_are_told_of(world: World, folder: Path) -> None:
    world.registered = [
        {"path": "sub", "size": 4096, "perm": "drwxr-xr-x"},
        {"path": "sub/empty", "size": 7, "perm": "-rw-r--r--"},
    ]

    result = run(folder, "--pid", PID)

    assert result.exit_code == 1
    assert "sub/empty" in result.stderr
    assert not world.finalized

    world.registered[1]["size"] = 0
    world.registered.append({"path": "elsewhere", "size": 1, "perm": "-rw-r--r--"})
    result = run(folder, "--pid", PID)
    assert result.exit_code == 0, result.output
    assert "files of this dataset that the folder has not: elsewhere\n" in result.stderr, "folders are no files"


def test_a_file_that_changes_while_it_is_sent_is_refused(world: World, folder: Path) -> None:
    world.failures["sub/empty:1"] = [_s3_error(400, "XAmzContentChecksumMismatch")]

    result = run(folder)

    assert result.exit_code == 1
    assert "sub/empty changed while it was being uploaded" in result.stderr
    assert "X-Amz" not in result.output


# --- tokens -----------------------------------------------------------------------------------------------------


def test_a_token_is_renewed_by_the_provider_before_it_ends(world: World, folder: Path) -> None:
    world.token_life_s = 0

    assert run(folder).exit_code == 0
    assert world.tokens[0] == "traded"
    assert set(world.tokens[1:]) == {"refreshed"}
    assert len(world.tokens) > 3


def test_where_the_provider_is_out_of_reach_scicats_token_is_traded_again(world: World, folder: Path) -> None:
    world.token_life_s, world.provider_answers = 0, False

    assert run(folder).exit_code == 0
    assert set(world.tokens) == {"traded"}
    assert len(world.tokens) > 3


def test_a_token_that_is_refused_is_renewed_once(world: World, folder: Path) -> None:
    world.failures["requestDatasetUpload"] = [httpx.Response(401, json={"detail": "it was withdrawn"})]
    assert run(folder).exit_code == 0
    assert world.tokens == ["traded", "refreshed"]

    world.failures["requestDatasetUpload"] = [httpx.Response(401, json={"detail": "it was withdrawn"})] * 2
    result = run(folder, "--new")
    assert result.exit_code == 3
    assert "it was withdrawn" in result.stderr


def test_scicats_token_alone_is_enough(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCICAT_USER")
    monkeypatch.delenv("SCICAT_PASSWORD")
    assert "SCICAT_TOKEN" in run(folder).stderr
    monkeypatch.setenv("SCICAT_TOKEN", "of-scicat")

    assert run(folder).exit_code == 0


# --- the record -------------------------------------------------------------------------------------------------


def file_upload(**fields: Any) -> FileUpload:
    return FileUpload(path="a", size=3, mtime_ns=1, sha256="00", part_bytes=2, digests=["x", "y"], **fields)


def test_a_record_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    where: dict[str, Any] = {"api_url": "https://api", "pid": PID, "folder": "/data"}
    with Journal.open(tmp_path, **where, new=True) as journal:
        journal.begun(file_upload(upload_id="u", urls=["https://s3/?q"]))
        journal.part(journal.files["a"], 2, "etag")
    [record] = tmp_path.glob("*.jsonl")
    with record.open("a") as file:
        file.write('{"part": ["a", 1, "et')

    with Journal.open(tmp_path, **where) as journal:
        assert journal.from_start
        assert journal.files["a"].etags == {2: "etag"}
        journal.part(journal.files["a"], 1, "first")
        with pytest.raises(Refused, match="another process"), Journal.open(tmp_path, **where):
            pass
    with Journal.open(tmp_path, **where) as journal:
        assert journal.files["a"].parts == [("first", "x"), ("etag", "y")]
    assert unfinished(tmp_path, api_url="https://api", folder="/data") == [PID]
    assert unfinished(tmp_path, api_url="https://other", folder="/data") == []


def test_parts_are_as_small_as_their_number_allows() -> None:
    for size in (0, 1, 16 << 20, 5 << 40):
        part = upload_files.part_bytes_of(size)
        assert -(-size // part) <= upload_files.MAX_PARTS
        assert part >= upload_files.PART_BYTES
