"""What README and docs name exists: links, make targets, commands, settings, modules, tests, Temporal's commands."""

import ast
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cli import ports
from cli.__main__ import app
from cli.minio_accounts import links_policy
from domain.lifecycle import Outcome, Phase
from mock_idp.config import Config as IdpConfig
from mock_lts.config import Config as LtsConfig
from mock_scicat.config import VARIABLES as SCICAT_VARIABLES
from settings import Settings
from tests.deploy import composed
from workflows import search_attributes
from workflows.dataset import DatasetWorkflow
from workflows.job import JobWorkflow
from workflows.landing_zone import LandingZone
from workflows.upload import Upload

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")

VARIABLES = {
    *(name.upper() for name in Settings.model_fields),
    *(ports.variable(name) for name in ports.Ports.__dataclass_fields__),
    *(f"MOCK_LTS_{name.upper()}" for name in LtsConfig.model_fields),
    *SCICAT_VARIABLES,
    *(f"MOCK_IDP_{name.upper()}" for name in IdpConfig.__dataclass_fields__),
    *("MINIO_BIN", "TEMPORAL_BIN", "TEMPORAL_TEST_SERVER_BIN", "WEED_BIN"),  # cli/binaries.py
    *("SECRETS_DIR", "SCOPEMARCHIVER_CONFIG"),  # settings/sources.py
    *("TEMPORAL_CONFIG_FILE", "TEMPORAL_PROFILE", "TEMPORAL_API_KEY", "TEMPORAL_GRPC_META"),  # settings/temporal.py
    *("TEMPORAL_TLS", "TEMPORAL_TLS_CLIENT_CERT_PATH", "TEMPORAL_TLS_CLIENT_KEY_PATH"),
    *("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "TEMPORAL_TLS_SERVER_NAME"),
    *("API_ENDPOINT", "SCICAT_TOKEN"),  # cli/client.py
    *composed.variables(".production.env", ".development.env"),
    "COMPOSE_ENV_FILES",  # Docker Compose
    *("TEMPORAL_DEBUG", "TEMPORAL_TLS_CLIENT_CERT_PATH", "TEMPORAL_TLS_CLIENT_KEY_PATH"),  # Temporal's own
    *("ADMIN_GROUPS", "DELETE_GROUPS", "UPDATE_DATASET_LIFECYCLE_GROUPS", "UPDATE_JOB_PRIVILEGED_GROUPS"),  # SciCat
    "ARCHIVER_BASIC",  # docs/how-to/install.md, of SciCat's
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),  # OpenTelemetry's own
    "TRACES_ENDPOINT",  # deploy/otel-collector/forward.yaml
    "XDG_CACHE_HOME",  # cli/binaries.py
    *("DOWNLOAD_FOLDER", "EXTRACTION_FOLDER"),  # domain/downloadscript.py
}
"""What may be set in the environment."""

OTHER_CAPITALS = {"CURRENT_USER", "LC_ALL", "MOCK_IDP", "MOCK_LTS", "MOCK_SCICAT", "USE_EXISTING"}

BUILT_IN_ATTRIBUTES = {"ExecutionStatus", "WorkflowType"}
VISIBLE = {
    "Phase": set(Phase),
    "Outcome": set(Outcome),
    "ExecutionStatus": {"Running", "Completed", "Failed", "Canceled", "Terminated"},
    "WorkflowType": {"ArchiveJob", "RetrieveJob", "ArchiveDataset", "RetrieveDataset", "Upload"},
}
TEMPORAL_COMMANDS = {"cancel", "count", "describe", "list", "metadata", "query", "result", "show", "signal"}
WORKFLOWS = {
    "job": JobWorkflow,
    "archive-dataset": DatasetWorkflow,
    "retrieve-dataset": DatasetWorkflow,
    "upload": Upload,
    "landing-zone": LandingZone,
}


def code_of(page: Path) -> str:
    """All code on a page: fenced shell blocks and words in backticks, a line each."""
    text = page.read_text()
    blocks = [block for language, block in FENCE.findall(text) if language == "sh"]
    return "\n".join([*blocks, *CODE.findall(FENCE.sub("", text))])


SHELL_WORDS = {"|", "||", "&&", "&", ";", ">", ">>", "<"}
"""Behind them another command begins, or a file stands."""


SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
VALUED = {"--env-file", "--profile", "--since", "--tail", "--scale"}
"""Options of docker compose whose value is the next word."""


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """Every call of a program on a page, as a shell would split it."""
    joined = code_of(page).replace("\\\n", " ")
    for line in joined.splitlines():
        for call in re.findall(rf"(?:^|\s|\$\()({program} [^\n)]*)", line):
            yield shlex.split(call, comments=True)


def command_names() -> set[str]:
    """All sub-commands, those of a group with the group's name before."""
    found: set[str] = set()
    for name, command in typer.main.get_group(app).commands.items():
        inner: dict[str, object] = getattr(command, "commands", {})
        found |= {f"{name} {sub}" for sub in inner} or {name}
    return found


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)), target


def test_the_index_lists_every_page() -> None:
    index = (PROJECT / "docs/README.md").read_text()
    listed = {(PROJECT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index)}
    assert set(PAGES) - listed == {PROJECT / "README.md", PROJECT / "docs/README.md"}


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(page, "make") if len(words) > 1}
    assert named <= targets


@each_page
def test_commands_exist(page: Path) -> None:
    known = command_names()
    for words in commands(page, "scopemarchiver"):
        assert {words[1], " ".join(words[1:3])} & known, words


@each_page
def test_options_exist(page: Path) -> None:
    for words in commands(page, "scopemarchiver"):
        command: Any = typer.main.get_group(app)
        arguments = list(itertools.takewhile(lambda word: word not in SHELL_WORDS, words[1:]))
        while arguments and (inner := getattr(command, "commands", {}).get(arguments[0])):
            command = inner
            arguments.pop(0)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in arguments if word.startswith("-") and word != "-"}
        assert given <= known | {"--help"}, words


@each_page
def test_compose_commands_name_services_and_profiles_that_exist(page: Path) -> None:
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    for words in commands(page, "docker"):
        if words[1] != "compose":
            continue
        arguments = list(itertools.takewhile(lambda word: word not in SHELL_WORDS, words[2:]))
        given = {name: value for name, value in itertools.pairwise([*arguments, ""]) if name in VALUED}
        values = {n + 1 for n, word in enumerate(arguments) if word in VALUED}
        command, *named = [w for n, w in enumerate(arguments) if not w.startswith("-") and n not in values] or ["up"]
        assert command in {"build", "up", "ps", "run", "exec", "logs", "stop", "rm", "restart"}, words
        assert set(named[:1] if command in ("run", "exec") else named) <= SERVICES.keys(), words
        assert given.get("--scale", "=").partition("=")[0] in {*SERVICES, ""}, words
        assert given.get("--profile", "config") in profiles, words
        assert (PROJECT / given.get("--env-file", ".")).exists(), words


def test_every_command_is_in_the_readme() -> None:
    named = {" ".join(words) for words in commands(PROJECT / "README.md", "scopemarchiver")}
    missing = {
        name for name in command_names() if not any(f"{call} ".startswith(f"scopemarchiver {name} ") for call in named)
    }
    assert not missing


@each_page
def test_settings_exist(page: Path) -> None:
    text = page.read_text().replace("_…", "")
    named = set(re.findall(r"(?<![\w$])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?!\w)", text))
    assert named - OTHER_CAPITALS <= VARIABLES


@each_page
def test_modules_and_tests_exist(page: Path) -> None:
    for path in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", page.read_text()):
        assert (PROJECT / path).is_file(), path
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert named <= names_of_tests()


def names_of_tests() -> set[str]:
    """Names of all tests."""
    found: set[str] = set()
    for file in (PROJECT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    return found


@each_page
def test_temporal_commands_can_be_understood(page: Path) -> None:
    for words in commands(page, "temporal"):
        if words[1] != "workflow" or len(words) == 3:
            continue
        command, options = words[2], words[3:]
        assert command in TEMPORAL_COMMANDS, words
        given = {name: value for name, value in zip(options, [*options[1:], ""], strict=True) if name.startswith("--")}
        if "--query" in given:
            check_query(given["--query"])
        if "--workflow-id" in given and "…" not in given["--workflow-id"]:
            kind = given["--workflow-id"].partition("/")[0]
            if command in ("query", "signal"):
                assert has_handler(WORKFLOWS[kind], command, given.get("--name") or given["--type"]), words


def check_query(query: str) -> None:
    """Every attribute is one of ours or Temporal's, every value one that it takes."""
    attributes = {key.name for key in search_attributes.ALL} | BUILT_IN_ATTRIBUTES
    for attribute, value in re.findall(r"(\w+) = [\"']([^\"']+)[\"']", query):
        assert attribute in attributes, query
        assert value in VISIBLE.get(attribute, {value}), query


def has_handler(workflow: type, kind: str, name: str) -> bool:
    """Whether the workflow's class has such a signal or query; read from its source, where the decorator stands."""
    source = Path(str(__import__(workflow.__module__, fromlist=["_"]).__file__)).read_text()
    [body] = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == workflow.__name__]
    handlers = {
        method.name
        for method in body.body
        if isinstance(method, ast.FunctionDef)
        and any(ast.unparse(decorator) == f"workflow.{kind}" for decorator in method.decorator_list)
    }
    return name in handlers


def test_the_links_account_on_the_page_is_the_one_that_is_tested() -> None:
    page = (PROJECT / "docs/explanations/security.md").read_text()
    [policy] = [json.loads(block) for language, block in FENCE.findall(page) if language == "json"]
    assert policy == links_policy("retrieval")


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    groups: dict[str, list[str | dict[str, str]]] = project["dependency-groups"]
    wanted: list[str] = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(entry for group in groups.values() for entry in group if isinstance(entry, str)),
    ]
    page = (PROJECT / "docs/explanations/decisions/0004-dependencies.md").read_text()
    missing = [name for entry in wanted if f"`{(name := re.split(r'[<>=]', entry)[0])}`" not in page]
    assert not missing
