"""Killed at any moment, the pretend tape library comes back with everything that it had acknowledged."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mock_lts.admin import MAX_LISTED
from tests.fakes.mock_lts import STAGE, STREAM, TUS, call, checksum, metadata, process
from tests.fakes.processes import free_port

STEP = 200_000
FAULT = {"kind": "slow", "direction": "out", "path": "nobody's", "delay_s": 1.0}


def content(path: str, size: int) -> bytes:
    """The bytes that belong to a path."""
    return random.Random(path).randbytes(size)  # noqa: S311 - no secret


class Client(threading.Thread):
    """Works until the server dies, and notes only what was acknowledged."""

    def __init__(self, port: int, run: int, work: Callable[[Client, int], None]) -> None:
        super().__init__(daemon=True)
        self.port, self.run_number, self.work = port, run, work

    def run(self) -> None:
        """The thread."""
        n = 0
        try:
            while True:
                self.work(self, n)
                n += 1
        except (OSError, http.client.HTTPException):
            pass

    def ask(self, method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """An answer with 2xx; a JSON body is decoded."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        status, answered, text = call(self.port, method, url, headers, data)
        assert status < 300, (method, url, status, text)
        return answered if method in ("HEAD", "PATCH") or url == "/uploads" else json.loads(text or b"null")


class Acknowledged:
    """What the server has promised."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.offsets: dict[str, tuple[str, int, int]] = {}  # upload → path, length, offset
        self.requests: dict[str, list[str]] = {}  # stage request → paths
        self.completed: dict[str, str] = {}  # path → stage request that pins it
        self.released: set[str] = set()
        self.migrated: set[str] = set()
        self.deleted: set[str] = set()

    def upload(self, client: Client, n: int) -> None:
        """A file in steps by tus, now and then left half done."""
        path, length = f"tus/{client.run_number}/{n}", STEP * 4
        data = content(path, length)
        url = client.ask("POST", "/uploads", None, {**TUS, **metadata(path), "Upload-Length": str(length)})["Location"]
        self.offsets[url] = (path, length, 0)
        for at in range(0, length, STEP)[: 2 if n % 4 == 3 else 4]:
            piece = data[at : at + STEP]
            client.ask("PATCH", url, piece, {**STREAM, "Upload-Offset": str(at), **checksum(piece)})
            self.offsets[url] = (path, length, at + STEP)

    def put(self, client: Client, n: int) -> None:
        """A file by PUT; some are deleted again."""
        path = f"put/{client.run_number}/{n}"
        data = content(path, STEP + n)
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        client.ask("PUT", f"/files/{path}", data, {"Repr-Digest": f"sha-256=:{digest}:"})
        if n % 5 == 4:
            client.ask("DELETE", f"/files/{path}")
            self.deleted.add(path)
        else:
            self.files[path] = len(data)

    def recall(self, client: Client, n: int) -> None:
        """Recalls of what is on tape; every other pin is given back."""
        client.ask("POST", "/admin/migrate")
        client.ask("POST", "/admin/evict", {})
        for info in client.ask("POST", "/api/v1/tape/archiveinfo", {"paths": list(self.files)}):
            if info.get("locality") in ("TAPE", "DISK_AND_TAPE"):
                self.migrated.add(info["path"])
        paths = sorted(self.migrated & set(self.files))[-3:]
        if not paths:
            time.sleep(0.01)
            return
        request_id = client.ask("POST", STAGE, {"files": [{"path": p, "diskLifetime": "PT1H"} for p in paths]})[
            "requestId"
        ]
        self.requests[request_id] = paths
        for _ in range(50):
            if all(f["state"] == "COMPLETED" for f in client.ask("GET", f"{STAGE}/{request_id}")["files"]):
                break
            time.sleep(0.01)
        else:
            return
        if n % 2:
            client.ask("POST", f"/api/v1/tape/release/{request_id}", {"paths": paths})
            self.released.add(request_id)
        else:
            self.completed.update(dict.fromkeys(paths, str(request_id)))


def check(port: int, known: Acknowledged) -> None:
    """Everything that was promised is there."""
    client = Client(port, 0, lambda _, __: None)
    faults = client.ask("GET", "/admin/faults")
    assert [{key: fault[key] for key in FAULT} for fault in faults] == [FAULT]
    for url, (path, length, offset) in known.offsets.items():
        reached = int(client.ask("HEAD", url, None, TUS)["Upload-Offset"])
        assert reached >= offset, (path, reached, offset)  # an answer may have been lost, an acknowledgement not
        data = content(path, length)
        while reached < length:  # whatever the server says it has, the rest completes the file
            piece = data[reached : reached + STEP]
            client.ask("PATCH", url, piece, {**STREAM, "Upload-Offset": str(reached), **checksum(piece)})
            reached += len(piece)
        known.files[path] = length
    known.offsets.clear()
    for request_id in known.requests:
        assert client.ask("GET", f"{STAGE}/{request_id}")["id"] == request_id
    state = client.ask("GET", "/admin/state")
    pins = {(pin["request_id"], pin["path"]) for pin in state["pins"]}
    expected = {(request_id, path) for path, request_id in known.completed.items()}
    assert expected <= pins or len(pins) == MAX_LISTED
    assert not {pin for pin in pins if pin[0] in known.released}
    client.ask("POST", "/admin/evict", {})
    infos = client.ask("POST", "/api/v1/tape/archiveinfo", {"paths": list(known.files)})
    where = {info["path"]: info["locality"] for info in infos}
    assert set(where) == set(known.files)
    assert all(where[path] in ("TAPE", "DISK_AND_TAPE") for path in known.migrated & set(known.files))
    assert all(where[path] == "DISK_AND_TAPE" for path in known.completed)
    assert all(call(port, "HEAD", f"/files/{path}")[0] == 404 for path in known.deleted)
    on_tape = [path for path, locality in where.items() if locality == "TAPE"]
    sample = random.Random(len(where)).sample(on_tape, min(20, len(on_tape)))  # noqa: S311
    request_id = client.ask("POST", STAGE, {"files": [{"path": p} for p in sample or ["none"]]})["requestId"]
    deadline = time.monotonic() + 20
    while any(f["state"] in ("SUBMITTED", "STARTED") for f in client.ask("GET", f"{STAGE}/{request_id}")["files"]):
        assert time.monotonic() < deadline, "a recall did not end"
        time.sleep(0.01)
    for path in [*sample, *(path for path in where if where[path] != "TAPE")][-60:]:
        status, _, got = call(port, "GET", f"/files/{path}")
        assert (status, got == content(path, known.files[path])) == (200, True), path
    client.ask("DELETE", f"{STAGE}/{request_id}")


LONG = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("kills", "factor"),
    [(5, "0.0005"), pytest.param(40, "0.0005", marks=LONG), pytest.param(40, "0", marks=LONG)],
)
def test_nothing_acknowledged_is_lost(tmp_path: Path, kills: int, factor: str):
    known, chance = Acknowledged(), random.Random(kills)  # noqa: S311
    port = free_port()
    settings = {"TIME_FACTOR": factor, "MIGRATE_AGE_S": "1", "DWELL_S": "1", "DRIVES": "3"}
    for run in range(kills):
        with process(tmp_path, port, **settings) as running:
            if run:
                check(port, known)
            else:
                assert call(port, "POST", "/admin/faults", body=json.dumps(FAULT).encode())[0] == 201
            clients = [Client(port, run, work) for work in (known.upload, known.put, known.recall)]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.05, 0.6))
            running.kill()
            running.wait()
            for client in clients:
                client.join(20)
                assert not client.is_alive()
    with process(tmp_path, port, **settings):
        check(port, known)
    assert known.files
    assert known.migrated
    assert known.completed
