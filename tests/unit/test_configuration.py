"""`secrets init`, `config show`, `config check`: what is written, what is shown of it, and what is found wrong."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from cli.__main__ import app
from settings import Settings

PROJECT = Path(__file__).parents[2]
SECRETS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
GIVEN = {
    "scicat_user",
    "scicat_password",
    "lts_token",
    "idp_password",
    "idp_client_secret",
    "tls_certificate",
    "tls_key",
}

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in a folder of its own, with nothing in the environment but what is told."""
    for name in (*Settings.model_fields, "scopemarchiver_config", "secrets_dir"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> Result:
        result = CliRunner().invoke(app, arguments, env=environment)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def told(result: Result) -> Any:
    return json.loads(result.stdout)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# Secrets


def test_every_secret_has_a_file_and_what_can_be_invented_is(run: Run, tmp_path: Path) -> None:
    made = told(run("secrets", "init", "--json"))
    secrets = contents(tmp_path / "secrets")
    assert secrets.keys() == yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["secrets"].keys()
    assert secrets.keys() > SECRETS
    assert {name for name, value in secrets.items() if not value} == set(made["to_fill_in"]) == GIVEN
    assert {*made["written"]} == secrets.keys() - GIVEN
    invented = [value for name, value in secrets.items() if name.endswith(("_password", "_token", "_secret")) and value]
    assert len(set(invented)) == len(invented) == 6
    assert all(len(value) >= 32 for value in invented)


def test_no_two_deployments_have_a_password_in_common(run: Run, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        run("secrets", "init", folder, "--development")
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    same = {name for name in here if here[name] == there[name] and here[name]}
    assert same == {name for name in SECRETS if name.endswith(("_user", "_username"))}


def test_the_folder_keeps_others_out_and_each_file_can_be_given_to_a_container(run: Run, tmp_path: Path) -> None:
    assert not told(run("secrets", "init", "--json"))["open_to_others"]
    folder = tmp_path / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    folder.chmod(0o755)
    assert told(run("secrets", "init", "--json"))["open_to_others"]
    assert "chmod 700 secrets" in run("secrets", "init").stdout


def test_what_is_there_is_kept_and_only_what_is_missing_is_made(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    run("secrets", "init")
    before = contents(folder)
    (folder / "s3_password").write_text("of our own S3\n")
    (folder / "scicat_user").write_text("archiver")
    (folder / "postgres_password").unlink()
    again = told(run("secrets", "init", "--json"))
    assert again["written"] == ["postgres_password"]
    assert "scicat_user" not in again["to_fill_in"]
    after = contents(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"s3_password", "scicat_user", "postgres_password"}
    assert (after["s3_password"], after["scicat_user"]) == ("of our own S3\n", "archiver")


def test_no_secret_is_printed(run: Run, tmp_path: Path) -> None:
    said = run("secrets", "init", "--development").stdout + run("secrets", "init", "--json").stdout
    words = [value for name, value in contents(tmp_path / "secrets").items() if len(value) >= 32 or name == "ui_users"]
    assert len(words) == 11
    assert not [word for word in words if word.strip() in said]


def test_the_web_pages_open_to_the_operators_account(run: Run, tmp_path: Path) -> None:
    run("secrets", "init")
    secrets = contents(tmp_path / "secrets")
    name, _, digest = secrets["ui_users"].strip().partition(":")
    assert name == secrets["operator_username"]
    expected = hashlib.sha1(secrets["operator_password"].encode(), usedforsecurity=False).digest()
    assert digest == "{SHA}" + base64.b64encode(expected).decode()


def test_a_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("a file")
    result = run("secrets", "init")
    assert result.exit_code == 1
    assert re.search(r"secrets\S* cannot be written: File exists", result.stderr)


# Settings


def scene(tmp_path: Path) -> None:
    """What the page on configuration shows."""
    (tmp_path / "config.toml").write_text(
        'SCICAT_INGESTOR_GROUPS = "microscopy;tomography"\nSCICAT_ENDPOINT = "scicat.example.org"\nARCHIVAL_SLOTS = 4\n'
        'S3_REGION = "eu-west-9"\n'
    )
    (tmp_path / "secrets").mkdir()
    for name in ("scicat_user", "scicat_password", "s3_user"):
        (tmp_path / "secrets" / name).write_text(f"{name[::-1]} hidden\n")
    (tmp_path / "secrets" / "s3_password").write_text("changeme")


def captures(page: Path) -> list[tuple[str, str]]:
    """Commands and what they print, of the page's text blocks."""
    blocks = re.findall(r"^```text\n\$ ([^\n]+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    return blocks


def test_the_page_shows_what_the_commands_print(run: Run, tmp_path: Path) -> None:
    scene(tmp_path)
    for command, printed in captures(PROJECT / "docs/how-to/configure.md"):
        words = command.split()
        environment = dict(word.split("=", 1) for word in words if "=" in word)
        assert words[len(environment)] == "scopemarchiver"
        assert run(*words[len(environment) + 1 :], **environment).stdout == printed


def test_every_setting_is_shown_with_its_origin_and_no_secret(run: Run, tmp_path: Path) -> None:
    scene(tmp_path)
    result = run("config", "show", "--json", SECRETS_DIR="secrets", S3_REGION="eu-central-1")
    shown = {setting["name"]: (setting["value"], setting["origin"]) for setting in told(result)["settings"]}
    assert [*shown] == [name.upper() for name in Settings.model_fields]
    assert shown["S3_REGION"] == ("eu-central-1", "environment")
    assert shown["SCICAT_ENDPOINT"] == ("https://scicat.example.org", "config.toml")
    assert shown["S3_USER"][1] == "secrets/s3_user"
    assert shown["S3_EXTERNAL_ENDPOINT"] == (shown["S3_ENDPOINT"][0], "default")
    assert (shown["CA_FILE"], shown["LTS_TOKEN"]) == ((None, "default"), ("", "default"))
    assert (told(result)["config_file"], told(result)["secrets_folder"]) == ("config.toml", "secrets")
    table = run("config", "show", SECRETS_DIR="secrets")
    assert len(table.stdout.splitlines()) == len(Settings.model_fields) + 1
    for word in ("hidden", "changeme"):
        assert word not in result.stdout + table.stdout


def test_an_empty_variable_and_a_name_in_lower_case_have_their_origin_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('s3_region = "x"\nJOB_WINDOW = 5\n')
    shown = run("config", "show", "--given", S3_REGION="", JOB_WINDOW="7").stdout.splitlines()
    assert [line.split() for line in shown[1:]] == [
        ["S3_REGION", "x", "config.toml"],
        ["JOB_WINDOW", "7", "environment"],
    ]


def test_settings_that_cannot_be_are_not_shown_but_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('JOB_WINDOW = 0\nS3_PASWORD = "hidden"\n')
    for command in ("show", "check"):
        result = run("config", command)
        assert result.exit_code == 1
        said = sorted((result.stdout + result.stderr).splitlines())
        assert said == ["JOB_WINDOW should be greater than or equal to 1.", "S3_PASWORD is not the name of a setting."]


def test_each_process_needs_what_it_does_not_start_without(run: Run, tmp_path: Path) -> None:
    nothing = told(run("config", "check", "--json"))
    assert not nothing["well"]
    needed = {sentence.split()[0]: sentence.partition("Needed by: ")[2] for sentence in nothing["problems"]}
    assert needed == {
        "JOB_ENDPOINT_USERNAME": "api.",
        "JOB_ENDPOINT_PASSWORD": "api.",
        "S3_USER": "api, worker, setup.",
        "S3_PASSWORD": "api, worker, setup.",
        "SCICAT_USER": "worker.",
        "SCICAT_PASSWORD": "worker.",
        "S3_LINK_USER": "worker.",
        "S3_LINK_PASSWORD": "worker.",
    }
    api = told(run("config", "check", "--for", "api", "--json", SCICAT_INGESTOR_GROUPS="g"))
    assert api["processes"] == ["api"]
    assert [problem.split()[0] for problem in api["problems"]][-1] == "IDP_PASSWORD"
    assert len(api["problems"]) == 5
    elsewhere = told(run("config", "check", "--json", ENVIRONMENT="development", SCICAT_INGESTOR_GROUPS="g"))
    assert {problem.split()[0] for problem in elsewhere["problems"]} == needed.keys() - {
        "S3_LINK_USER",
        "S3_LINK_PASSWORD",
    }


def test_fresh_secrets_are_good_for_production_once_those_are_filled_in_that_others_give(
    run: Run, tmp_path: Path
) -> None:
    given = {"SECRETS_DIR": "secrets", "SCICAT_INGESTOR_GROUPS": "g"}
    run("secrets", "init")
    missing = run("config", "check", **given)
    assert missing.exit_code == 1
    assert {line.split()[0] for line in missing.stdout.splitlines()} == {
        "SCICAT_USER",
        "SCICAT_PASSWORD",
        "IDP_PASSWORD",
    }
    run("secrets", "init", "--development")
    well = run("config", "check", **given)
    assert (well.exit_code, well.stdout) == (0, "All is well for api, worker, setup in production.\n")


def test_passwords_that_everybody_knows_are_found_in_production_alone(run: Run) -> None:
    known = {"S3_USER": "u", "S3_PASSWORD": "minioadmin"}
    found = run("config", "check", "--for", "setup", **known)
    assert found.exit_code == 1
    assert re.fullmatch(r"S3_PASSWORD is a default or a placeholder that everybody knows: [^\n]+\n", found.stdout)
    assert run("config", "show", **known).exit_code == 0
    assert run("config", "check", "--for", "setup", ENVIRONMENT="development", **known).exit_code == 0
