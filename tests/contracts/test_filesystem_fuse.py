"""The share driver on a file system that is one, with stubs that the kernel refuses to read or waits for (FUSE)."""

import asyncio
import ctypes
import importlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from clients.lts.filesystem import UPLOADS, FilesystemStore
from clients.lts.protocol import FileStat, Locality, Nearline, RecallState
from clients.lts.residency import Residency, residency
from domain.errors import TapeUnavailable

CONTENT = bytes(range(256)) * 4096
DETACH = 2
RECALL_S = 0.3
"""As `tests/fakes/fuse_hsm.py` has it, which only runs where there is libfuse."""
ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """What this machine lacks to mount a file system of its own."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse that we may use"
    try:
        importlib.import_module("mfusepy")
    except OSError:
        return "libfuse is not installed (Debian: libfuse3-3)"
    return None


@contextmanager
def mounted(folder: Path, manner: str) -> Generator[Path]:
    backing, mountpoint = folder / "backing", folder / "mnt"
    (backing / UPLOADS).mkdir(parents=True)
    mountpoint.mkdir()
    command = [sys.executable, "-m", "tests.fakes.fuse_hsm", str(backing), str(mountpoint), manner]
    with (folder / "fuse.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not mountpoint.is_mount():
            if process.poll() is not None:
                pytest.skip(f"nothing can be mounted here: {(folder / 'fuse.log').read_text()[-200:].strip()}")
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield mountpoint
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            ctypes.CDLL(None).umount2(os.fsencode(mountpoint), DETACH)
            process.kill()
            process.wait()


def store_on(share: Path, rule: Residency) -> FilesystemStore:
    return FilesystemStore(root=share, residency=rule, upload_lifetime=timedelta(days=1))


@pytest.fixture(params=["refuses", "waits"])
def manner(request: pytest.FixtureRequest) -> str:
    """What the kernel does with a reader of what is on tape only."""
    return str(request.param)


@pytest.fixture
async def share(manner: str, tmp_path: Path) -> AsyncIterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    with mounted(tmp_path, manner) as mountpoint:
        yield mountpoint


async def put(store: FilesystemStore, path: str) -> None:
    upload_id = await store.open_write(path, len(CONTENT))
    half = len(CONTENT) // 2
    await asyncio.to_thread(store.write, upload_id, 0, memoryview(CONTENT)[:half], b"")
    await asyncio.to_thread(store.sync, upload_id)
    assert await store.write_offset(upload_id, half) == half
    await asyncio.to_thread(store.write, upload_id, half, memoryview(CONTENT)[half:], b"")
    await store.finish(upload_id, path, len(CONTENT))


async def read(store: FilesystemStore, path: str) -> bytes:
    into = bytearray(len(CONTENT))
    await asyncio.to_thread(store.read_range, path, 0, memoryview(into))
    return bytes(into)


async def test_a_file_is_written_goes_to_tape_and_comes_back(share: Path) -> None:
    store, path = store_on(share, residency("sticky")), "d/a.tar"
    await put(store, path)
    assert await store.list("") == {path: len(CONTENT)}
    assert await store.stat(path) == FileStat(len(CONTENT), Locality.DISK)
    assert await read(store, path) == CONTENT
    await asyncio.to_thread((share / path).chmod, 0o1644)
    assert await store.stat(path) == FileStat(len(CONTENT), Locality.TAPE)
    with pytest.raises(Nearline):
        await read(store, path)

    recall_id = await store.request_recall([path], timedelta(hours=1))
    states: list[RecallState] = []
    while RecallState.ONLINE not in states:
        assert len(states) < 1000
        [found] = await store.recall_state(recall_id, [path])
        states.append(found.state)
        await asyncio.sleep(0.01)
    assert set(states) == {RecallState.WAITING, RecallState.ONLINE}
    assert await read(store, path) == CONTENT
    await store.delete(path)
    assert await store.list("") == {}
    await store.aclose()


async def test_a_stub_that_does_not_show_is_read_in_the_end(share: Path, manner: str) -> None:
    """Nothing in its attributes says so: the kernel lets the reader wait, or refuses and brings the bytes meanwhile."""
    store = store_on(share, lambda file, found: Locality.DISK_AND_TAPE)
    await put(store, "a.tar")
    await asyncio.to_thread((share / "a.tar").chmod, 0o1644)
    if manner == "refuses":
        with pytest.raises(TapeUnavailable, match="asked for again"):
            await read(store, "a.tar")
        await asyncio.sleep(2 * RECALL_S)
    assert await read(store, "a.tar") == CONTENT
    await store.aclose()
