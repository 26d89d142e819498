"""The compose file as Docker's own program reads it, for any choice of profiles and environment files."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
PROFILES = ("config", "development", "production", "monitoring")
OVERLAYS = {"production": (".production.env",), "development": (".production.env", ".development.env")}
"""Environment files in the order in which they are named on the command line; a later one wins."""

_BESIDE_US = Path(sys.executable).parent
"""Where the packages of this environment have their programs."""


def docker_compose() -> list[str]:
    """The command that is Docker's compose of today: the package's, else what is installed."""
    packaged = _BESIDE_US / "docker-compose"
    return [str(packaged)] if packaged.exists() else ["docker", "compose"]


def debians_compose() -> list[str] | None:
    """Debian's docker-compose, the last that was written in Python; None where it is not installed."""
    elsewhere = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != _BESIDE_US)
    found = shutil.which("docker-compose", path=elsewhere)
    if found is None:
        return None
    version = subprocess.run([found, "version", "--short"], capture_output=True, text=True, check=True).stdout
    return [found] if version.startswith("1.") else None


def run(
    command: Sequence[str], arguments: Sequence[str], profiles: Sequence[str], env_files: Sequence[str | Path]
) -> str:
    """What compose prints, without any variable of whoever runs the tests; it must have nothing to complain of."""
    chosen = [part for name in profiles for part in ("--profile", name)]
    files = [part for file in env_files for part in ("--env-file", str(file))]
    done = subprocess.run(
        [*command, *chosen, *files, *arguments],
        cwd=PROJECT,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{chosen} {files}: {done.stderr}"
    return done.stdout


@cache
def composed(profiles: tuple[str, ...], overlay: str) -> dict[str, Any]:
    """The whole configuration, every variable filled in; no profile chosen means those of the environment files."""
    return json.loads(run(docker_compose(), ("config", "--format", "json"), profiles, OVERLAYS[overlay]))


def joined(overlay: str) -> Path:
    """The environment files of an overlay as one, for programs that take only one."""
    with tempfile.NamedTemporaryFile("w", suffix=".env", delete=False) as file:
        file.writelines((PROJECT / name).read_text() for name in OVERLAYS[overlay])
    return Path(file.name)


def variables(*names: str) -> dict[str, str]:
    """What environment files set, the later winning."""
    lines = [line for name in names for line in (PROJECT / name).read_text().splitlines()]
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
