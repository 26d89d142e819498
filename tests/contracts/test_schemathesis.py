"""The API keeps to its own document, asked by schemathesis: all checks, each operation alone and several in a row."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.processes import ServerProcess, free_port

PROJECT = Path(__file__).parents[2]
PHASES = ("Examples", "Coverage", "Fuzzing", "Stateful")


@pytest.fixture
def front(tmp_path: Path) -> Iterator[ServerProcess]:
    port = free_port()
    server = ServerProcess(
        [sys.executable, "-m", "tests.fakes.front_server", str(port)],
        url=f"http://127.0.0.1:{port}",
        ready_path="/health/livez",
        log=tmp_path / "front.log",
        env={"PYTHONPATH": str(PROJECT)},
    )
    server.start()
    yield server
    server.stop()


def test_the_api_keeps_to_its_document(front: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "tests/schemathesis/schemathesis.toml"]
    command += ["run", f"{front.url}/openapi.json", "--checks", "all", "--no-color"]
    asked = subprocess.run(
        command,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = re.sub(r"(.{500}).*", r"\1…", asked.stdout)
    assert asked.returncode == 0, said + asked.stderr
    for phase in PHASES:
        assert re.search(rf"✅ {phase}\b", said), said
    operations = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", said)
    assert operations, said
    assert len(set(operations.groups())) == 1, said
