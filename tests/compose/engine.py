"""Podman with a storage of its own: nothing here meets the images, containers and networks that a machine has already.

Stand-ins bear the names of real images, and must not be found under them by anybody else. So storage, networks and
podman's records lie in the per-user cache, named by two files of settings that every call is given. All containers in
there are of the tests, and what a killed run left behind is removed by the next one.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from cli.binaries import cache_folder
from cli.go_build import MissingProgram

FOLDER = cache_folder() / "compose"
RUN = Path("/run/scopemarchiver-compose")
"""What does not outlive the machine's next start: podman tells by its absence that no container runs."""

PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
}
"""Program → Debian's package."""

STORAGE = f"""[storage]
driver = "overlay"
graphroot = "{FOLDER}/storage"
runroot = "{RUN}/storage"
"""

# Limits: podman's own are higher than what a machine without systemd may hand on.
ENGINE = f"""[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
events_logger = "file"
cgroup_manager = "cgroupfs"
static_dir = "{FOLDER}/storage/libpod"
volume_path = "{FOLDER}/storage/volumes"
tmp_dir = "{RUN}/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{FOLDER}/networks"
"""


class EngineError(Exception):
    """Podman refused; the text is what was asked of it and what it said."""


def missing() -> str:
    """What this machine lacks, in a sentence with the remedy; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "The composed system is run by podman as root of a Linux machine: run `make test-compose` there."
    paths = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    absent = [
        package
        for program, package in PROGRAMS.items()
        if not any(Path(folder, program).is_file() for folder in (["/"] if program.startswith("/") else paths))
    ]
    return f"Programs are missing: run `apt-get install --no-install-recommends {' '.join(absent)}`." if absent else ""


def environment() -> dict[str, str]:
    """The environment by which podman, and whatever calls it, keeps to our storage."""
    return os.environ | {
        "CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"),
        "CONTAINERS_CONF": str(FOLDER / "containers.conf"),
        # Podman would leave health checks to systemd's timers; here whoever waits asks for them.
        "DISABLE_HC_SYSTEMD": "true",
        "BUILDAH_FORMAT": "docker",  # OCI images know no health checks
    }


@contextlib.contextmanager
def engine() -> Generator[None]:
    """Podman for this process alone, with nothing of an earlier run in it but images; nothing else is left either.

    Raises:
        MissingProgram: says what to install.
        EngineError: another run goes on.
    """
    if lack := missing():
        raise MissingProgram(lack)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "storage.conf").write_text(STORAGE)
    (FOLDER / "containers.conf").write_text(ENGINE)
    with (FOLDER / "lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise EngineError(f"another run of these tests goes on (it holds {lock.name})") from None
        clear()
        try:
            yield
        finally:
            clear()


def clear() -> None:
    """Remove all containers, their volumes and networks, and old layers. There are none but ours in this storage."""
    # One that crashes and is started again meanwhile is in the way of those that it depends on: once more.
    with contextlib.suppress(EngineError):
        podman("rm", "--all", "--force", "--time", "0", "--volumes")
    podman("rm", "--all", "--force", "--time", "0", "--volumes")
    podman("volume", "prune", "--force")
    podman("network", "prune", "--force")
    # Layers of late are what the next build goes on from.
    podman("image", "prune", "--force", "--filter", "until=168h")


def podman(*arguments: str, stdin: str = "", show: bool = False) -> str:
    """Call podman; return what it printed.

    Args:
        *arguments: its command line.
        stdin: what it reads.
        show: pass on what it says, on our stderr, as it comes.

    Raises:
        EngineError: it failed.
    """
    return call(["podman", *arguments], stdin=stdin, show=show)


def call(command: Sequence[str], *, stdin: str = "", show: bool = False, more: Mapping[str, str] | None = None) -> str:
    """Call podman, or a program that calls it; return what it printed.

    Args:
        command: the command line.
        stdin: what it reads.
        show: pass on what it says, on our stderr, as it comes.
        more: variables on top of the environment.

    Raises:
        EngineError: it failed.
    """
    done = subprocess.run(
        command,
        env=environment() | dict(more or {}),
        input=stdin,
        stdout=sys.stderr if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = "see above" if show else f"{done.stdout}\n{done.stderr}".strip()
        raise EngineError(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout or ""


def inspect(*names: str) -> list[dict[str, Any]]:
    """What podman knows of containers, images or networks."""
    found: list[dict[str, Any]] = json.loads(podman("inspect", *names)) if names else []
    return found
