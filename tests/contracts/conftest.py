"""Real servers for the contract suites: each is one process per test session, in a temporary folder."""

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import binaries
from tests.fakes.processes import ServerProcess, free_port

REGION = "eu-west-1"
ACCESS_KEY, SECRET_KEY = "root-of-tests", "secret-of-tests"


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """MinIO with no buckets."""
    with running(minio_process(tmp_path_factory.mktemp("minio"))) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """SeaweedFS with no buckets."""
    with running(seaweedfs_process(tmp_path_factory.mktemp("seaweedfs"))) as server:
        yield server


@pytest.fixture(scope="session")
def lts_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A tape library whose library time stands still at zero: files are on tape as soon as somebody looks."""
    with running(lts_process(tmp_path_factory.mktemp("lts"))) as server:
        yield server


@pytest.fixture(scope="session")
def scicat_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """SciCat with its local accounts."""
    with running(scicat_process(tmp_path_factory.mktemp("scicat"))) as server:
        yield server


@pytest.fixture(scope="session")
def idp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The identity provider with its one account."""
    with running(idp_process(tmp_path_factory.mktemp("idp"))) as server:
        yield server


@pytest.fixture
def own_idp(tmp_path: Path) -> Iterator[ServerProcess]:
    """An identity provider that a test may stop."""
    with running(idp_process(tmp_path)) as server:
        yield server


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[ServerProcess]:
    """MinIO that a test may stop."""
    with running(minio_process(tmp_path)) as server:
        yield server


@pytest.fixture
def own_lts(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a tape library with settings (names without `MOCK_LTS_`) that a test may stop."""
    started: list[ServerProcess] = []

    def start(**settings: str) -> ServerProcess:
        server = lts_process(tmp_path, **settings)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def own_scicat(tmp_path: Path) -> Iterator[ServerProcess]:
    """SciCat that a test may stop."""
    with running(scicat_process(tmp_path)) as server:
        yield server


def minio_process(folder: Path, certificates: Path | None = None) -> ServerProcess:
    """MinIO over a folder, not started."""
    port = free_port()
    argv = [str(binaries.minio()), "server", "--quiet", "--address", f"127.0.0.1:{port}"]
    argv += ["--console-address", "127.0.0.1:0"]
    argv += ["--certs-dir", str(certificates or folder / "no-certificates"), str(folder / "data")]
    return ServerProcess(
        argv,
        url=f"{'https' if certificates else 'http'}://127.0.0.1:{port}",
        ready_path="/minio/health/ready",
        log=folder / "minio.log",
        env={
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        },
        ca_file=certificates / "public.crt" if certificates else None,
    )


def seaweedfs_process(folder: Path, certificates: Path | None = None) -> ServerProcess:
    """SeaweedFS over a folder, all of its parts in one process, not started."""
    port, web = free_port(), free_port()
    account = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [account]}))
    (folder / "data").mkdir(exist_ok=True)
    argv = [str(binaries.seaweedfs()), "server", "-s3", f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}"]
    argv += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.autoCreateBucket=false"]
    # Each bucket has volumes of its own, seven at first.
    argv += [
        "-volume.preStopSeconds=0",
        "-volume.max=10000",
        "-master.volumePreallocate=false",
        "-master.volumeSizeLimitMB=64",
    ]
    for part in ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"):
        argv.append(f"-{part}={free_port()}")
    argv += [f"-s3.port.grpc={free_port()}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    if certificates:
        argv += [f"-s3.port={web}", f"-s3.port.https={port}"]
        argv += [f"-s3.cert.file={certificates / 'public.crt'}", f"-s3.key.file={certificates / 'private.key'}"]
    else:
        argv.append(f"-s3.port={port}")
    return ServerProcess(
        argv,
        url=f"{'https' if certificates else 'http'}://127.0.0.1:{port}",
        ready_path="/healthz",
        log=folder / "seaweedfs.log",
        ca_file=certificates / "public.crt" if certificates else None,
    )


def lts_process(folder: Path, **settings: str) -> ServerProcess:
    """The stand-in for a tape library, not started."""
    port = free_port()
    env = {"PORT": str(port), "STATE": str(folder / "lts"), "TOKEN": "token-of-tests", "TIME_FACTOR": "0", **settings}
    return ServerProcess(
        [sys.executable, "-m", "mock_lts"],
        url=f"http://127.0.0.1:{port}",
        ready_path="/.well-known/wlcg-tape-rest-api",
        log=folder / "lts.log",
        env={f"MOCK_LTS_{name}": value for name, value in env.items()},
    )


def scicat_process(folder: Path) -> ServerProcess:
    """The stand-in for SciCat, not started."""
    port = free_port()
    return ServerProcess(
        [sys.executable, "-m", "mock_scicat"],
        url=f"http://127.0.0.1:{port}",
        ready_path="/api/v3/health",
        log=folder / "scicat.log",
        env={"MOCK_SCICAT_PORT": str(port), "MOCK_SCICAT_STATE": str(folder / "scicat.sqlite")},
    )


def idp_process(folder: Path) -> ServerProcess:
    """The stand-in for an identity provider, not started."""
    port = free_port()
    env = {"PORT": str(port), "STATE": str(folder / "idp.json"), "CLIENT_SECRET": "secret", "PASSWORD": "password"}
    return ServerProcess(
        [sys.executable, "-m", "mock_idp"],
        url=f"http://127.0.0.1:{port}",
        ready_path="/mock/requests",
        log=folder / "idp.log",
        env={f"MOCK_IDP_{name}": value for name, value in env.items()},
    )


@contextmanager
def running(server: ServerProcess) -> Generator[ServerProcess]:
    """Started, and stopped at the end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
