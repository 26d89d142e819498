"""The system of docker-compose.yml, run by podman: brought up, asked for its health, restarted, killed, taken down."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import secret_files
from cli.client import Connection
from cli.ports import HOST, Ports
from tests.compose import standins
from tests.compose.engine import EngineError, call, inspect, podman
from tests.deploy.composed import OVERLAYS, PROJECT, docker_compose, run

OVERRIDE = "tests/compose/override.yml"
FILES = ("-f", "docker-compose.yml", "-f", OVERRIDE)
PROFILES = ("development", "monitoring")
OVERLAY = "development"
NAME = "scopemarchiver-compose-tests"

HEALTHY_WITHIN_S = 240
"""Longer than any start may take: something hangs."""


@dataclass(frozen=True, slots=True)
class Container:
    """One container as it is now."""

    name: str
    service: str
    pid: int
    """On this host; 0 unless it runs."""
    started: str
    exit_code: int
    image: str
    checked: bool
    """Whether there is a command that asks for its health."""

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.pid > 0


class System:
    """The composed system, in a folder of its own for secrets and on free ports of this machine.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.secrets = folder / "secrets"
        secret_files.make(self.secrets, development=True)
        self._env_file = folder / "joined.env"
        # podman-compose takes one file only, of which the last one counts.
        self._env_file.write_text("\n".join((PROJECT / name).read_text() for name in OVERLAYS[OVERLAY]))
        ports = Ports.free()
        self.http, self.s3 = f"http://localhost:{ports.api}", f"http://localhost:{ports.minio}"
        self.temporal = f"{HOST}:{ports.temporal}"
        self.scicat, self.lts = f"http://{HOST}:{ports.scicat}", f"http://{HOST}:{ports.lts}"
        self._chosen = {
            "SECRETS_FOLDER": str(self.secrets),
            "TLS_CERTIFICATE_FILE": str(self.secrets / "tls_certificate"),
            "TLS_KEY_FILE": str(self.secrets / "tls_key"),
            "HTTP_PORT": str(ports.api),
            "HTTPS_PORT": str(ports.idp),
            "S3_PORT": str(ports.minio),
            "PUBLIC_URL": self.http,
            "S3_EXTERNAL_ENDPOINT": self.s3,
            "TEMPORAL_PUBLISH": self.temporal,
            "TEMPORAL_TLS_PORT": str(ports.temporal_ui),
            "MOCK_SCICAT_PORT": str(ports.scicat),
            "MOCK_LTS_PORT": str(ports.lts),
        }
        self.services: Mapping[str, Mapping[str, Any]] = services_of(FILES)
        self.left_out = sorted(set(services_of(("-f", "docker-compose.yml"))) - set(self.services))

    def secret(self, name: str) -> str:
        """A secret of the deployment."""
        return (self.secrets / name).read_text().strip()

    @property
    def user(self) -> Connection:
        """Alice, who owns datasets in the pretend SciCat, with an operator's account at the API; all by traefik."""
        return Connection(
            scicat_url=f"{self.scicat}/api/v3",
            scicat_user="alice",
            scicat_password="alice",
            s3_url=self.s3,
            s3_key=self.secret("s3_user"),
            s3_secret=self.secret("s3_password"),
            api_url=f"{self.http}/api/v1",
            api_user=self.secret("operator_username"),
            api_password=self.secret("operator_password"),
            lts_url=self.lts,
            lts_token=self.secret("lts_token"),
        )

    # Images

    def make_images(self) -> None:
        """Make the stand-ins, and build our own image by the compose file.

        Raises:
            MissingProgram, EngineError: what is missing, or went wrong.
        """
        ready = {service["image"] for service in self.services.values() if "build" not in service}
        below = {image for service in self.services.values() if "build" in service for image in _bases(service)}
        standins.make(ready | below)
        # The host's network, since that is known to lead to the package index. One service's image is all others'.
        self.compose("--podman-build-args=--network=host --pull=never", "build", "api", show=True)

    # Life

    def up(self) -> None:
        """Start everything, as the README says it is done."""
        self.compose("up", "--detach")

    def setup(self) -> str:
        """Run the one-shot set-up; return what it says."""
        return self.compose("--profile", "config", "run", "--rm", "setup")

    def down(self) -> None:
        """Stop and remove everything, volumes included."""
        self.compose("down", "--volumes")

    def compose(self, *arguments: str, show: bool = False) -> str:
        """Call podman-compose on the compose file, for development and monitoring; return what it printed.

        Raises:
            EngineError: it failed.
        """
        chosen = [part for name in PROFILES for part in ("--profile", name)]
        command = [str(Path(sys.executable).parent / "podman-compose"), "--project-name", NAME, "--no-ansi"]
        command += [
            "--podman-path",
            "tests/compose/podman.sh",
            "--env-file",
            str(self._env_file),
            *FILES,
            *chosen,
            *arguments,
        ]
        return call(command, show=show, more=self._chosen)

    def containers(self) -> dict[str, Container]:
        """All containers, by service."""
        names = podman("ps", "--all", "--format", "{{.Names}}").split()
        found = [_container(facts) for facts in inspect(*names)]
        return {container.service: container for container in found}

    def restart(self) -> None:
        """Stop every container that runs as `docker restart` does, and start it again."""
        podman("restart", *(container.name for container in self.containers().values() if container.running))

    def kill(self, *services: str) -> None:
        """Kill (-9) the first process of these containers from outside, so that the engine takes it for a crash."""
        for pid in [self.containers()[service].pid for service in services]:
            os.kill(pid, signal.SIGKILL)

    def wait_until_healthy(self, *services: str) -> None:
        """Wait until each server's own check says that it is well, and each one-shot has ended well.

        Args:
            *services: those that count; all if none is named.

        Raises:
            AssertionError: one is not, in the end; with the last lines of its log.
        """
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while ailing := self._ailing(services or tuple(self.services)):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(f"{name} {what}\n{self._log(name)}" for name, what in ailing.items()))
            time.sleep(0.5)

    def _ailing(self, services: tuple[str, ...]) -> dict[str, str]:
        """What is wrong with which service."""
        containers = self.containers()
        found = {name: self._wrong(name, containers.get(name)) for name in services}
        return {name: wrong for name, wrong in found.items() if wrong}

    def _wrong(self, service: str, container: Container | None) -> str:
        """What is wrong with a service; empty if nothing."""
        if container is None:
            return "has no container"
        if not container.running:
            one_shot = self.services[service].get("restart", "no") != "unless-stopped"
            return "" if one_shot and container.exit_code == 0 else f"ended with {container.exit_code}"
        if container.checked:
            try:
                podman("healthcheck", "run", container.name)
            except EngineError:
                return "is not healthy"
        return ""

    def _log(self, service: str) -> str:
        container = self.containers().get(service)
        return podman("logs", "--tail", "20", container.name) if container else ""


@contextlib.contextmanager
def running(folder: Path, report: list[str]) -> Generator[System]:
    """The system made, started and set up; gone with all its data afterwards.

    Args:
        folder: an empty one.
        report: how long each of these took is added to it.
    """
    system = System(folder)
    began = time.monotonic()

    def note(what: str) -> None:
        report.append(f"{time.monotonic() - began:4.0f} s: {what}")

    system.make_images()
    note("the images are made")
    try:
        system.up()
        note("all containers are started")
        # A new Temporal has no namespace for the workers, before the set-up makes it.
        system.wait_until_healthy("temporal", "minio")
        note("Temporal and S3 are healthy")
        system.setup()
        note("set up")
        system.wait_until_healthy()
        note("all services are healthy")
        yield system
    finally:
        system.down()
        note("all is taken down")


def services_of(files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What is to run, as Docker's own compose reads it."""
    said = run([*docker_compose(), *files], ("config", "--format", "json"), PROFILES, OVERLAYS[OVERLAY])
    services: dict[str, dict[str, Any]] = json.loads(said)["services"]
    return services


def _bases(service: Mapping[str, Any]) -> list[str]:
    """The images that a service's Dockerfile begins with."""
    build = service["build"]
    text = (Path(build["context"]) / build.get("dockerfile", "Dockerfile")).read_text()
    named = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    return [re.sub(r"\$\{(\w+)\}", lambda variable: build["args"][variable[1]], image) for image in named]


def _container(facts: Mapping[str, Any]) -> Container:
    state, config = facts["State"], facts["Config"]
    check: dict[str, Any] = config.get("Healthcheck") or {}
    return Container(
        name=facts["Name"],
        service=config["Labels"]["com.docker.compose.service"],
        pid=int(state["Pid"]) if state["Running"] else 0,
        started=state["StartedAt"],
        exit_code=int(state["ExitCode"]),
        image=facts["ImageName"],
        checked=check.get("Test", ["NONE"]) != ["NONE"],
    )
