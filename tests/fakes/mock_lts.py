"""The pretend tape library, in this process or in one of its own, and short ways to ask it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from mock_lts.app import create_app
from mock_lts.config import Config

ROOT = Path(__file__).resolve().parents[2]
TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {**TUS, "Content-Type": "application/offset+octet-stream"}
STAGE = "/api/v1/tape/stage"
DAY_S = 86_400.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def instant(state: Path, **changes: Any) -> Config:
    """A library without delays that migrates only when told to."""
    settings: dict[str, Any] = {"state": state, "time_factor": 0, "migrate_bytes": "inf", "migrate_age_s": "inf"}
    return Config.model_validate({**settings, **changes})


@asynccontextmanager
async def serving(config: Config, clock: Callable[[], float] = time.time) -> AsyncGenerator[httpx.AsyncClient, None]:
    app = create_app(config, clock=clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lts") as client,
    ):
        yield client


def metadata(path: str) -> dict[str, str]:
    return {"Upload-Metadata": f"path {base64.b64encode(path.encode()).decode()}"}


def checksum(data: bytes, algorithm: str = "sha256") -> dict[str, str]:
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"}


async def create(client: httpx.AsyncClient, path: str, length: int) -> str:
    answer = await client.post("/uploads", headers={**TUS, **metadata(path), "Upload-Length": str(length)})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


async def patch(
    client: httpx.AsyncClient, url: str, offset: int, data: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await client.patch(
        url, content=data, headers={**STREAM, "Upload-Offset": str(offset), **(headers or checksum(data))}
    )


async def offset_of(client: httpx.AsyncClient, url: str) -> int:
    answer = await client.head(url, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    return int(answer.headers["Upload-Offset"])


async def put(client: httpx.AsyncClient, path: str, data: bytes) -> str:
    url = await create(client, path, len(data))
    if data:
        assert (await patch(client, url, 0, data)).status_code == 204
    return url


async def to_tape_only(client: httpx.AsyncClient, path: str, data: bytes) -> None:
    await put(client, path, data)
    await client.post("/admin/migrate")
    assert (await client.post("/admin/evict", json={"path": path})).json() == {"evicted": [path]}


async def stage(client: httpx.AsyncClient, *paths: str, lifetime: str | None = "PT1H") -> str:
    files = [{"path": path} if lifetime is None else {"path": path, "diskLifetime": lifetime} for path in paths]
    answer = await client.post(STAGE, json={"files": files})
    assert answer.status_code == 201, answer.text
    request_id = answer.json()["requestId"]
    assert answer.headers["Location"] == f"http://lts{STAGE}/{request_id}"
    return request_id


async def poll(client: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    answer = await client.get(f"{STAGE}/{request_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def locality(client: httpx.AsyncClient, path: str) -> str:
    (info,) = (await client.post("/api/v1/tape/archiveinfo", json={"paths": [path]})).json()
    assert info["path"] == path
    return info.get("locality") or info["error"]


async def inject(client: httpx.AsyncClient, **fault: Any) -> int:
    answer = await client.post("/admin/faults", json=fault)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def blobs(folder: Path, expected: int) -> bool:
    """The folder comes to hold this many blobs; they are unlinked in the background."""

    def there() -> bool:
        return len(list(folder.iterdir())) == expected

    for _ in range(200):
        if there():
            return True
        await asyncio.sleep(0.01)
    return False


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["title"]


@contextmanager
def process(state: Path, port: int, **environ: str) -> Generator[subprocess.Popen[bytes], None, None]:
    settings = {"STATE": str(state), "PORT": str(port), "TIME_FACTOR": "0", "MIGRATE_AGE_S": "inf", **environ}
    env = {**os.environ, **{f"MOCK_LTS_{name}": value for name, value in settings.items()}}
    with subprocess.Popen([sys.executable, "-m", "mock_lts"], cwd=ROOT, env=env) as running:
        try:
            eventually(lambda: call(port, "GET", "/health")[0] == 200)
            yield running
        finally:
            running.terminate()


def eventually(check: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if check():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def call(
    port: int, method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, url.removeprefix(f"http://127.0.0.1:{port}"), body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()
