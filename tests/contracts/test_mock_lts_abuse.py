"""The pretend tape library among bad and clumsy clients: refused or survived, in bounded time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.mock_lts import (
    STAGE,
    STREAM,
    TUS,
    assert_problem,
    call,
    create,
    eventually,
    instant,
    metadata,
    patch,
    poll,
    process,
    put,
    serving,
    stage,
)
from tests.fakes.processes import free_port

IDLE_S = 1.0


@pytest.fixture
async def lts(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path / "state")) as client:
        yield client


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            *("..", "../secret", "a/../../secret", "a/..", ".", "a/./b", "/secret", "//secret", "a//b", "a/", ""),
            *("..\\secret", "a\\b", "a\0b", "a\nb", "\x7f", "a\x85b", "x" * 256, "é" * 128, "b/" * 1100 + "b"),
        ],
    )
    async def test_names_that_lead_elsewhere_lead_nowhere(self, lts: httpx.AsyncClient, tmp_path: Path, path: str):
        (tmp_path / "secret").write_bytes(b"secret")
        quoted = "".join(f"%{byte:02x}" for byte in path.encode())
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = await lts.request(method, f"/files/{quoted}", content=b"1" if method == "PUT" else None)
            assert answer.status_code in (400, 404), method
        refused = await lts.post("/uploads", headers={**TUS, **metadata(path), "Upload-Length": "1"})
        assert_problem(refused, 400)
        (info,) = (await lts.post("/api/v1/tape/archiveinfo", json={"paths": [path]})).json()
        assert info["path"] == path
        assert "error" in info
        (file,) = (await poll(lts, await stage(lts, path)))["files"]
        assert (file["path"], file["state"]) == (path, "FAILED")
        assert set(os.listdir(tmp_path)) == {"secret", "state"}  # noqa: PTH208 - iterdir is refused here, ASYNC240

    async def test_percent_codes_are_undone_once(self, lts: httpx.AsyncClient):
        assert (await lts.put("/files/a%252e%252e", content=b"1")).status_code == 201
        assert (await lts.get("/admin/state")).json()["files"][0]["path"] == "a%2e%2e"
        assert_problem(await lts.get("/files/%2e%2e%2fa"), 400)
        assert_problem(await lts.get("/files/%c0%ae%c0%ae/a"), 400)

    async def test_a_link_in_the_state_folder_is_not_followed(self, lts: httpx.AsyncClient, tmp_path: Path):
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        await put(lts, "f", b"123456")
        upload = await create(lts, "g", 6)
        for blob in (tmp_path / "state" / "cache").iterdir():
            blob.unlink()
            blob.symlink_to(secret)
        read = await lts.get("/files/f")
        assert_problem(read, 500)
        assert b"secret" not in read.content
        assert_problem(await patch(lts, upload, 0, b"abcdef"), 500)
        assert secret.read_bytes() == b"secret"

    async def test_a_stray_link_is_swept_away_and_what_it_names_stays(self, tmp_path: Path):
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        async with serving(instant(tmp_path / "state")) as lts:
            await lts.put("/files/f", content=b"1")
        stray = tmp_path / "state" / "cache" / "stray"
        stray.symlink_to(secret)
        (stray.parent / "folder").mkdir()
        async with serving(instant(tmp_path / "state")) as lts:
            assert (await lts.get("/files/f")).content == b"1"
        assert not stray.is_symlink()
        assert secret.read_bytes() == b"secret"


class TestBodies:
    async def test_what_is_too_large_is_refused(self, lts: httpx.AsyncClient):
        big = {"files": [{"path": "x" * 100_000} for _ in range(50)]}
        assert_problem(await lts.post(STAGE, json=big), 413)
        assert_problem(await lts.post("/admin/faults", content=b" " * (5 << 20)), 413)
        paths = {"paths": [f"{'long' * 500}{n}" for n in range(20_000)]}
        assert len((await lts.post("/api/v1/tape/archiveinfo", json=paths)).json()) == 10_000

    @pytest.mark.parametrize(
        "body",
        [b"[" * 100_000, b'{"files":' * 50_000, b"\xff\xfe", b'{"files":[{"path":"\\ud800"}]}', b"null", b"1e999"],
    )
    async def test_what_is_no_request_is_refused(self, lts: httpx.AsyncClient, body: bytes):
        for url in (STAGE, "/api/v1/tape/archiveinfo", "/admin/faults"):
            assert_problem(await lts.post(url, content=body), 400)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Port and process id; it loses its patience soon."""
    port = free_port()
    with process(tmp_path, port, IDLE_LIMIT_S=str(IDLE_S), MIGRATE_AGE_S="0") as running:
        yield port, running.pid


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def until_closed(client: socket.socket) -> bytes:
    """Everything the server says before it hangs up."""
    heard = b""
    try:
        while more := client.recv(65_536):
            heard += more
    except ConnectionResetError:
        pass
    return heard


class TestSlowness:
    def test_headers_that_do_not_end(self, server: tuple[int, int]):
        port, _ = server
        with connect(port) as silent, connect(port) as dripping, connect(port) as endless, connect(port) as second:
            dripping.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
            second.sendall(b"GET /health HTTP/1.1\r\nHost: lts\r\n\r\n")
            assert second.recv(65_536).startswith(b"HTTP/1.1 200")
            second.sendall(b"GET /health HTTP/1.1\r\nX-")  # after one that was well made
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                endless.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
                for _ in range(64):
                    endless.sendall(b"a" * 65_536)
                    time.sleep(0.001)
                pytest.fail("four megabytes of headers were taken")
            begun = time.monotonic()
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while time.monotonic() < begun + 10 * IDLE_S:  # a byte now and then does not help
                    dripping.sendall(b"a")
                    time.sleep(0.1)
            assert time.monotonic() - begun < 5 * IDLE_S
            for client in (silent, second):
                assert b"HTTP/1.1 408" in until_closed(client)
        assert call(port, "GET", "/health")[0] == 200

    def test_many_bodies_and_readers_that_stand_still(self, server: tuple[int, int]):
        port, pid = server
        data = os.urandom(32 << 20)
        assert call(port, "PUT", "/files/big", body=data)[0] == 201
        before, open_before = memory(pid), descriptors(pid)
        idle = [connect(port) for _ in range(300)]
        for n, client in enumerate(idle):
            match n % 3:
                case 0:
                    client.sendall(b"PUT /files/slow%d HTTP/1.1\r\nHost: lts\r\nContent-Length: 9\r\n\r\n1" % n)
                case 1:
                    client.sendall(f"POST {STAGE} HTTP/1.1\r\nHost: lts\r\nContent-Length: 9\r\n\r\n".encode() + b"{")
                case _:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.sendall(b"GET /files/big HTTP/1.1\r\nHost: lts\r\n\r\n")
        begun = time.monotonic()
        assert call(port, "GET", "/files/big")[2] == data
        assert time.monotonic() - begun < 10
        assert memory(pid) - before < 1e9  # some MiB for each, but nobody's file is held in memory whole
        for client in (client for n, client in enumerate(idle) if n % 3 < 2):
            assert until_closed(client).startswith(b"HTTP/1.1 408")
        # The readers still stand there, but nothing is kept for them any more.
        eventually(lambda: descriptors(pid) <= open_before + 2)
        for client in idle:
            client.close()
        eventually(lambda: json.loads(call(port, "GET", "/admin/state")[2])["uploads"] == [])

    def test_an_oversize_body_is_refused_before_it_is_sent(self, server: tuple[int, int]):
        port, _ = server
        head = "Host: lts\r\nContent-Length: 999999999999999\r\nExpect: 100-continue\r\n"
        upload = call(port, "POST", "/uploads", {**TUS, **metadata("g"), "Upload-Length": "9"})[1]["Location"]
        tus = "".join(f"{name}: {value}\r\n" for name, value in {**STREAM, "Upload-Offset": "0"}.items())
        for line, more in (("PUT /files/f", ""), (f"PATCH /uploads/{upload.rpartition('/')[2]}", tus)):
            with connect(port) as client:
                client.sendall(f"{line} HTTP/1.1\r\n{head}{more}\r\n".encode())
                assert client.recv(65_536).startswith(b"HTTP/1.1 413")


def test_ten_thousand_stage_requests_at_once(tmp_path: Path):
    """They come over as many connections as the machine gives us; dCache's 5,000 are taken, the others told to wait."""
    port = free_port()

    async def ask(n: int, gate: asyncio.Semaphore) -> bytes:
        body = b'{"files": [{"path": "f%d"}]}' % (n % 20)
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {STAGE} HTTP/1.1\r\nHost: lts\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
        return answer[9:12]

    async def flood() -> Counter[bytes]:
        gate = asyncio.Semaphore(4000)
        return Counter(await asyncio.gather(*(ask(n, gate) for n in range(10_000))))

    with process(tmp_path, port) as running:
        for n in range(20):
            assert call(port, "PUT", f"/files/f{n}", body=b"12345")[0] == 201
        call(port, "POST", "/admin/migrate")
        call(port, "POST", "/admin/evict", body=b"{}")
        call(port, "POST", "/admin/faults", body=b'{"kind": "tape_offline", "tape": "ML0001L9"}')
        begun = time.monotonic()
        assert asyncio.run(flood()) == {b"201": 5_000, b"429": 5_000}
        assert time.monotonic() - begun < 60
        assert memory(running.pid) < 500e6
        assert call(port, "GET", "/health")[0] == 200
        call(port, "DELETE", "/admin/faults")
        eventually(lambda: json.loads(call(port, "GET", "/admin/state")[2])["stage_requests"]["open"] == 0)


def descriptors(pid: int) -> int:
    """How many files and connections a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int) -> int:
    """The most that a process has ever held, bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
