"""The composed system for one run of these tests, and what is said of it at the end."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from cli.go_build import MissingProgram
from tests.compose import standins
from tests.compose.engine import EngineError, engine
from tests.compose.system import System, running

REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Generator[System]:
    """Everything of the compose file that can be had here, healthy and set up; all of it is gone afterwards."""
    said = pytestconfig.stash.setdefault(REPORT, [])
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(engine())
            system = stack.enter_context(running(tmp_path_factory.mktemp("system"), said))
        except (MissingProgram, EngineError) as error:
            pytest.exit(str(error), returncode=1)
        said[:0] = _told(system)
        yield system


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small microscopy session, and names as people give them."""
    from cli.session import generate_session

    folder = tmp_path_factory.mktemp("data")
    generate_session(folder / "session", total_bytes=24 << 20)
    for name in ("a b+c%20d.txt", 'it\'s "quoted".txt', "ü/日本.mrc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


def _told(system: System) -> list[str]:
    """What really ran, by service, and what could not."""
    images = {service["image"] for service in system.services.values() if "build" not in service}
    versions = {image: standins.standin_version(image) for image in images}
    lines = [
        f"{name:<18} {service['image']}{f' ({versions[image]})' if (image := service['image']) in versions else ''}"
        for name, service in sorted(system.services.items())
    ]
    return [
        f"Ran, as containers of podman, {len(lines)} services of docker-compose.yml, and setup:",
        *(f"  {line}" for line in lines),
        "  (in brackets what a stand-in says that it is)",
        f"Could not run, since nothing stands in for their images: {', '.join(system.left_out)}.",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what ran, and for how long."""
    if lines := config.stash.get(REPORT, None):
        terminalreporter.section("the composed system")
        for line in lines:
            terminalreporter.write_line(line)
