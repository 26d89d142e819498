"""What traefik itself makes of our rules: each address is asked, and the servers behind it tell what has come."""

import base64
import hashlib
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client
from temporalio.service import TLSConfig
from temporalio.testing import WorkflowEnvironment

from cli import binaries
from tests.deploy.composed import PROFILES, PROJECT, composed
from tests.fakes.certificate import certificate
from tests.fakes.processes import START_TIMEOUT_S, ServerProcess, free_port

pytestmark = pytest.mark.xdist_group("proxy")

TRAEFIK = str(Path(sys.executable).parent / "traefik")
UPSTREAMS = ("api:8000", "temporal-ui:8080", "minio:9001", "minio:9000", "grafana:3000", "login:4180")
ACCOUNT = ("operator", "a word that the proxy knows")
NOBODY = "https://127.0.0.1:1/directory"
SIGNATURE = "0123456789abcdef"


@dataclass(frozen=True)
class Arrived:
    """A request as the server behind the proxy saw it."""

    at: str
    method: str
    path: str
    headers: dict[str, str]
    body: str


class Upstream(ThreadingHTTPServer):
    """Answers with what it was asked, and as which server."""

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.name = name
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Echo(BaseHTTPRequestHandler):
    """The path is the raw one, and the Host as it came."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert isinstance(self.server, Upstream)
        refused = self.server.name == "login:4180" and headers.get("cookie") != "let=in"
        told = json.dumps([self.server.name, self.command, self.path, headers, body.decode()]).encode()
        self.send_response(401 if refused else 200)
        self.send_header("Content-Length", str(len(told)))
        self.send_header("X-Auth-Request-User", "somebody")
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_PUT = do_POST = answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Says nothing."""


class Proxy:
    """Traefik, with the command and the environment that compose gives it, on ports of this machine."""

    def __init__(self, overlay: str, folder: Path, upstreams: dict[str, Upstream], **environment: str) -> None:
        service = composed(PROFILES, overlay)["services"]["traefik"]
        self.ports = {name: free_port() for name in ("web", "websecure", "s3", "temporal", "internal")}
        self.log = folder / "traefik.log"
        rules = (PROJECT / "deploy/traefik/dynamic.yml").read_text()
        for name, upstream in upstreams.items():
            rules = rules.replace(f"http://{name}", f"http://127.0.0.1:{upstream.server_port}")
        assert all(f"http://{name}" not in rules for name in UPSTREAMS)
        self.temporal = f"127.0.0.1:{free_port()}"
        rules = rules.replace("temporal:7233", self.temporal).replace("/etc/traefik", str(folder))
        (folder / "dynamic.yml").write_text(rules.replace("/run/secrets", str(folder)))
        command = [
            option.replace("/etc/traefik", str(folder)).replace("/var/lib/acme", str(folder))
            for option in service["command"]
            # The authority for certificates is nobody.
            if "caserver" not in option
        ]
        command.append(f"--certificatesresolvers.acme.acme.caserver={NOBODY}")
        for name, port in self.ports.items():
            ours = [n for n, option in enumerate(command) if option.startswith(f"--entrypoints.{name}.address=:")]
            command[ours[0]] = f"--entrypoints.{name}.address=127.0.0.1:{port}"
        self.folder = folder
        trust = certificate(folder).rename(folder / "tls_certificate")
        (folder / "private.key").rename(folder / "tls_key")
        certificate(folder / "worker")
        (folder / "temporal_client_ca.pem").write_bytes((folder / "worker/public.crt").read_bytes())
        digest = base64.b64encode(hashlib.sha1(ACCOUNT[1].encode()).digest()).decode()  # noqa: S324 - as htpasswd does
        (folder / "ui_users").write_text(f"{ACCOUNT[0]}:{{SHA}}{digest}\n")
        self.process = ServerProcess(
            [TRAEFIK, *command],
            url=f"http://127.0.0.1:{self.ports['internal']}",
            ready_path="/ping",
            log=self.log,
            env=service["environment"] | environment,
        )
        self.process.start()
        # Where no authority for certificates answers, traefik shows one of its own making.
        verify = ssl.create_default_context(cafile=trust) if "ACME_EMAIL" not in environment else False
        self._http = httpx.Client(trust_env=False, timeout=10, verify=verify)

    def wait(self, entry: str) -> None:
        """It says that it is there before it has read its rules; return when it has."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if self.ask(entry, "/temporal-ui/").status_code != 404:
                    return
            time.sleep(0.02)
        raise TimeoutError(self.log.read_text())

    def ask(self, entry: str, path: str, *, method: str = "GET", scheme: str = "", **more: Any) -> httpx.Response:
        """Ask at an entry point; the path goes out as it is written here."""
        scheme = scheme or ("http" if entry == "web" else "https")
        url = httpx.URL(f"{scheme}://127.0.0.1:{self.ports[entry]}").copy_with(raw_path=path.encode())
        return self._http.request(method, url, **more)

    def stop(self) -> None:
        """End it."""
        self._http.close()
        self.process.stop()


@pytest.fixture(scope="module")
def upstreams() -> Generator[dict[str, Upstream]]:
    servers = {name: Upstream(name) for name in UPSTREAMS}
    yield servers
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def proxies(
    upstreams: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Proxy, Proxy, Proxy]]:
    """For development; for production; and for production as a site has it that uses all it can."""
    authority = {"TEMPORAL_CLIENT_CA_FILE": "/somewhere/authority.pem"}
    own = authority | {
        "S3_HOST": "s3.example.org",
        "ACME_EMAIL": "somebody@example.org",
        "FORWARD_AUTH_URL": f"http://127.0.0.1:{upstreams['login:4180'].server_port}/auth",
    }
    with ExitStack() as stack:
        started: list[Proxy] = []
        for overlay, environment in (("development", {}), ("production", authority), ("production", own)):
            started.append(Proxy(overlay, tmp_path_factory.mktemp("proxy"), upstreams, **environment))
            stack.callback(started[-1].stop)
            started[-1].wait("web" if overlay == "development" else "websecure")
        yield started[0], started[1], started[2]


def arrived(answer: httpx.Response) -> Arrived:
    """What the server behind the proxy saw; the proxy itself must not have answered."""
    assert answer.status_code == 200, answer.text
    return Arrived(*answer.json())


@pytest.mark.parametrize(
    ("asked", "at", "path"),
    [
        ("/api/v1/docs", "api:8000", "/docs"),
        ("/archiver/api/v1/docs", "api:8000", "/docs"),
        (
            "/archiver/api/v1/archiver/datasets/20.500%2Fa%20b?x=%2F",
            "api:8000",
            "/archiver/datasets/20.500%2Fa%20b?x=%2F",
        ),
        ("/temporal-ui/namespaces/default", "temporal-ui:8080", "/temporal-ui/namespaces/default"),
        ("/minio/login", "minio:9001", "/login"),
        ("/grafana/d/bytes", "grafana:3000", "/grafana/d/bytes"),
    ],
)
def test_each_address_reaches_its_server(proxies: tuple[Proxy, Proxy, Proxy], asked: str, at: str, path: str) -> None:
    development, production, _ = proxies
    for seen in (
        arrived(development.ask("web", asked)),
        arrived(production.ask("websecure", asked, auth=None if at == "api:8000" else ACCOUNT)),
    ):
        assert (seen.at, seen.path) == (at, path)


def test_the_dashboard_is_the_proxys_own_and_knows_of_no_mistake(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    allowed: list[dict[str, Any]] = [{}, {"auth": ACCOUNT}, {"headers": {"Cookie": "let=in"}}]
    for proxy, entry, more in zip(proxies, ("web", "websecure", "websecure"), allowed, strict=True):
        assert "<title>Traefik" in proxy.ask(entry, "/traefik/dashboard/", **more).text
        known = proxy.ask(entry, "/traefik/api/rawdata", **more).json()
        for kind in ("routers", "middlewares", "services"):
            for name, found in known[kind].items():
                assert (found["status"], found.get("error")) == ("enabled", None), name


def test_its_health_is_asked_as_compose_asks(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    port = proxies[0].ports["internal"]
    _, *command = composed(PROFILES, "production")["services"]["traefik"]["healthcheck"]["test"]
    asking = [part.replace(":8082", f"127.0.0.1:{port}") for part in command]
    assert subprocess.run([TRAEFIK, *asking[1:]], check=False, timeout=30).returncode == 0
    asking = [part.replace(":8082", f"127.0.0.1:{free_port()}") for part in command]
    assert subprocess.run([TRAEFIK, *asking[1:]], check=False, timeout=30).returncode != 0


@pytest.mark.parametrize("page", ["/temporal-ui", "/minio", "/grafana", "/traefik/dashboard"])
def test_a_page_is_found_without_its_last_slash(proxies: tuple[Proxy, Proxy, Proxy], page: str) -> None:
    answer = proxies[0].ask("web", f"{page}?a=b")
    assert answer.status_code in (301, 302, 307, 308)
    assert answer.headers["Location"].endswith(f"{page}/?a=b")


@pytest.mark.parametrize("path", ["/", "/api/v10/docs", "/temporal-uix/", "/api/rawdata", "/dashboard/"])
def test_nothing_else_is_there(proxies: tuple[Proxy, Proxy, Proxy], path: str) -> None:
    assert proxies[0].ask("web", path).status_code == 404
    assert proxies[1].ask("websecure", path, auth=ACCOUNT).status_code == 404


# ---- S3 ----


@pytest.mark.parametrize(("which", "scheme"), [(0, "http"), (1, "https")])
def test_s3_gets_what_was_signed_less_the_storage_class(
    proxies: tuple[Proxy, Proxy, Proxy], which: int, scheme: str
) -> None:
    path = f"/landingzone/a%2Fb//c%20d%25/e;f%3Bg+h/%C3%A9?uploadId=%2F&X-Amz-Signature={SIGNATURE}"
    answer = proxies[which].ask(
        "s3",
        path,
        scheme=scheme,
        method="PUT",
        content=b"bytes",
        headers={
            "Host": "archiver.example.org:9000",
            "X-Amz-Storage-Class": "GLACIER",
            "x-amz-checksum-sha256": "kept",
            "Authorization": "AWS4-HMAC-SHA256 kept",
        },
    )
    seen = arrived(answer)
    assert (seen.at, seen.method, seen.path, seen.body) == ("minio:9000", "PUT", path, "bytes")
    assert seen.headers["host"] == "archiver.example.org:9000"
    assert "x-amz-storage-class" not in seen.headers
    assert seen.headers["x-amz-checksum-sha256"] == "kept"
    assert seen.headers["authorization"] == "AWS4-HMAC-SHA256 kept"


def test_s3s_own_affairs_are_closed_to_the_outside(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    for path in ("/minio/admin/v3/info", "/minio/v2/metrics/cluster", "/minio/health/live"):
        assert proxies[0].ask("s3", path, scheme="http").status_code == 404
        assert proxies[1].ask("s3", path).status_code == 404


def test_s3_has_a_host_of_its_own_where_a_site_wants_one(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    *_, own = proxies
    seen = arrived(own.ask("websecure", "/api/v1/docs", headers={"Host": "s3.example.org", "X-Amz-Storage-Class": "x"}))
    assert (seen.at, seen.path, seen.headers["host"]) == ("minio:9000", "/api/v1/docs", "s3.example.org")
    assert "x-amz-storage-class" not in seen.headers


def test_no_signature_is_written_down(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    for proxy, scheme in zip(proxies[:2], ("http", "https"), strict=True):
        proxy.ask("s3", f"/retrieval/x?X-Amz-Signature={SIGNATURE}", scheme=scheme)
        assert SIGNATURE not in proxy.log.read_text()


# ---- Production ----


@pytest.mark.parametrize("path", ["/api/v1/docs", "/temporal-ui/", "/anything?a=b"])
def test_plain_http_only_says_where_to_go(proxies: tuple[Proxy, Proxy, Proxy], path: str) -> None:
    answer = proxies[1].ask("web", path, headers={"Host": "archiver.example.org"})
    assert answer.status_code in (301, 302, 307, 308)
    assert answer.headers["Location"] == f"https://archiver.example.org{path}"


def test_s3_is_not_to_be_had_in_the_clear(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    assert proxies[1].ask("s3", "/retrieval/x", scheme="http").status_code in (400, 404)


def test_a_certificate_is_asked_for_where_a_site_has_an_authority(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    _, production, own = proxies
    deadline = time.monotonic() + START_TIMEOUT_S
    while f"get directory at '{NOBODY}'" not in own.log.read_text():
        assert time.monotonic() < deadline, own.log.read_text()
        time.sleep(0.02)
    assert '"domains":["archiver.example.org","s3.example.org"]' in own.log.read_text()
    assert NOBODY not in production.log.read_text()


PAGES = ("/temporal-ui/", "/minio/", "/grafana/", "/traefik/dashboard/", "/traefik/api/rawdata")


@pytest.mark.parametrize("page", PAGES)
def test_pages_want_a_password_and_keep_it_to_themselves(proxies: tuple[Proxy, Proxy, Proxy], page: str) -> None:
    production = proxies[1]
    assert production.ask("websecure", page).status_code == 401
    assert production.ask("websecure", page, auth=(ACCOUNT[0], "wrong")).status_code == 401
    answer = production.ask("websecure", page, auth=ACCOUNT)
    assert answer.status_code == 200
    if not page.startswith("/traefik/"):
        assert "authorization" not in arrived(answer).headers


def test_the_api_has_its_own_accounts(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    seen = arrived(proxies[1].ask("websecure", "/api/v1/archiver/jobs", auth=("scicat", "of the api's")))
    assert seen.headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("page", PAGES)
def test_or_ask_an_openid_connect_proxy(proxies: tuple[Proxy, Proxy, Proxy], page: str) -> None:
    *_, own = proxies
    assert own.ask("websecure", page).status_code == 401
    forged = {"X-Auth-Request-User": "root", "X_Auth_Request_User": "root"}
    answer = own.ask("websecure", page, headers={"Cookie": "let=in", **forged})
    assert answer.status_code == 200
    if not page.startswith("/traefik/"):
        seen = arrived(answer).headers
        assert {value for name, value in seen.items() if "auth" in name} == {"somebody"}


def test_its_own_pages_are_open_to_whoever_must_log_in(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    *_, own = proxies
    answer = own.ask("websecure", "/oauth2/start?rd=%2F")
    assert answer.status_code == 401
    assert answer.json()[:3] == ["login:4180", "GET", "/oauth2/start?rd=%2F"]
    assert proxies[1].ask("websecure", "/oauth2/start").status_code == 404


# ---- Workers on other hosts ----


async def test_a_worker_elsewhere_reaches_temporal_by_its_certificate_alone(
    proxies: tuple[Proxy, Proxy, Proxy], tmp_path: Path
) -> None:
    production = proxies[1]
    ours, others = production.folder / "worker", certificate(tmp_path).parent
    there = f"127.0.0.1:{production.ports['temporal']}"
    trust = (production.folder / "tls_certificate").read_bytes()

    async def connect(shown: Path | None) -> Client:
        certificates = (
            ((shown / "public.crt").read_bytes(), (shown / "private.key").read_bytes()) if shown else (None,) * 2
        )
        tls = TLSConfig(trust, client_cert=certificates[0], client_private_key=certificates[1])
        return await Client.connect(there, tls=tls)

    async with await WorkflowEnvironment.start_local(  # pyright: ignore[reportUnknownMemberType] - typed so by the SDK
        port=int(production.temporal.rpartition(":")[2]), dev_server_existing_path=str(binaries.temporal())
    ):
        for shown in (None, others):
            with pytest.raises(RuntimeError):
                await connect(shown)
        assert await (await connect(ours)).count_workflows() is not None
        with pytest.raises(RuntimeError):
            await Client.connect(there)


async def test_nobody_does_where_no_authority_is_named(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    development = proxies[0]
    with pytest.raises(RuntimeError):
        await Client.connect(f"127.0.0.1:{development.ports['temporal']}")
