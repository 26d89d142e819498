"""What `.vscode/` names exists: modules and their arguments, files, tasks, make targets, commands."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from cli.processes import StackError
from cli.stack import ALL_SERVICES, OURS, WORKERS, check_names
from cli.stack_environment import keep_environment
from tests.fakes.debugger import PROJECT, configurations, jsonc
from workflows import queues

MODULES = {
    "lts": "mock_lts",
    "scicat": "mock_scicat",
    "idp": "mock_idp",
    "api": "api",
    **dict.fromkeys(WORKERS, "worker"),
}
LAUNCHED = [configuration for configuration in configurations().values() if "envFile" in configuration]
TASKS: dict[str, dict[str, Any]] = {task["label"]: task for task in jsonc(PROJECT / ".vscode/tasks.json")["tasks"]}


@pytest.mark.parametrize("configuration", LAUNCHED, ids=lambda configuration: configuration["name"])
def test_a_process_is_launched_as_the_stack_does_it_and_the_stack_does_not(configuration: dict[str, Any]) -> None:
    service = Path(configuration["envFile"]).stem
    assert configuration["envFile"] == f"${{workspaceFolder}}/.local/env/{service}.env"
    assert configuration["module"] == MODULES[service]
    assert configuration.get("args", []) == (["--queue", WORKERS[service]] if service in WORKERS else [])
    assert WORKERS.get(service, queues.CONTROL) in queues.ALL
    task = TASKS[configuration["preLaunchTask"]]
    assert task["command"] == "${workspaceFolder}/.venv/bin/scopemarchiver"
    assert task["args"] == ["up", "--detach", "--without", service]
    assert task["dependsOn"] == ["stop the stack"]


def test_every_process_of_ours_and_every_stand_in_can_be_launched() -> None:
    assert {Path(configuration["envFile"]).stem for configuration in LAUNCHED} == {*OURS, "lts", "scicat", "idp"}
    others = [c for c in configurations().values() if c not in LAUNCHED and c["request"] == "launch"]
    assert [configuration["module"] for configuration in others] == ["pytest"]
    assert all(importlib.util.find_spec(c["module"]) for c in (*LAUNCHED, *others))


def test_tasks_call_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    called = {task["command"].removeprefix("make ") for task in TASKS.values() if task["type"] == "shell"}
    assert called == {"check", "test", "down"} <= targets


def test_settings_and_recommendations_can_be_read() -> None:
    settings = jsonc(PROJECT / ".vscode/settings.json")
    assert settings["python.testing.pytestArgs"][0] == "tests"
    assert "ms-python.debugpy" in jsonc(PROJECT / ".vscode/extensions.json")["recommendations"]


def test_a_name_that_no_process_has_is_refused() -> None:
    check_names(ALL_SERVICES)
    with pytest.raises(StackError, match="worker-tape: the stack's processes are temporal"):
        check_names(["lts", "worker-tape"])


def test_what_a_process_is_told_is_kept_for_this_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/nadia")
    monkeypatch.setenv("LTS_POLL_S", "3")
    file = tmp_path / "env" / "lts.env"
    keep_environment(file, {"HOME": "/home/nadia", "LTS_POLL_S": "3", "MOCK_LTS_STATE": "a b"})
    assert file.read_text() == "LTS_POLL_S=3\nMOCK_LTS_STATE='a b'\n"
    assert file.stat().st_mode & 0o777 == 0o600
