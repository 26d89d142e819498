"""The local stack: what starts together ends together, and what goes wrong is said."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import aioboto3
import httpx
import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from cli import setup
from cli.ports import Ports
from cli.processes import Child, ProcessId, StackError
from cli.stack import Stack, StackState, bring_down, settings_of

SERVERS = ("temporal", "minio")


def eventually(condition: Callable[[], bool], *, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Supervisor:
    """A stack that a process of its own supervises, as `up --detach` makes it."""

    def __init__(self, folder: Path, services: tuple[str, ...]) -> None:
        self.folder = folder
        self.ports = Ports.free()
        description = {"folder": str(folder), "ports": asdict(self.ports), "services": services}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.local", json.dumps(description)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: self.process.poll() is not None or (self.state is not None and self.state.ready))

    @property
    def state(self) -> StackState | None:
        return StackState.read(self.folder)

    def children(self) -> list[ProcessId]:
        assert self.state is not None
        return list(self.state.children.values())


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    started = Supervisor(tmp_path / "stack", ("minio",))
    yield started
    started.process.kill()
    started.process.communicate()
    bring_down(started.folder)


async def test_a_stack_serves_is_set_up_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ports = Ports.free()
    async with Stack(tmp_path, ports, services=SERVERS) as stack:
        assert settings_of(tmp_path) == stack.settings
        await assert_set_up(stack)
        assert await setup.prepare(stack.settings, minio=True) == []  # a second time there is nothing to do

        # A crash that was asked for is not an alarm; the server comes back with its data.
        await stack.kill("minio")
        stack.check()
        await stack.restart("minio")
        await stack.restart("temporal")
        await assert_set_up(stack)

        pids = [stack.pid(name) for name in SERVERS]
    assert not any(ProcessId.of(pid) for pid in pids)
    assert not any(is_listening(port) for port in asdict(ports).values())
    with pytest.raises(StackError, match="No local stack runs in"):
        settings_of(tmp_path)


async def assert_set_up(stack: Stack) -> None:
    settings = stack.settings
    session = aioboto3.Session()
    async with session.client(  # pyright: ignore[reportUnknownMemberType] - only S3's stubs are installed
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_user.get_secret_value(),
        aws_secret_access_key=settings.s3_password.get_secret_value(),
    ) as s3:
        listed = await s3.list_buckets()
        buckets = {bucket.get("Name") for bucket in listed.get("Buckets", [])}
        assert buckets == {"landingzone", "retrieval", "archiver-state"}
        assert (await s3.get_bucket_versioning(Bucket="landingzone")).get("Status") == "Enabled"
        assert "Status" not in await s3.get_bucket_versioning(Bucket="retrieval")
    async with httpx.AsyncClient() as anybody:
        assert (await anybody.get(f"{settings.s3_endpoint}/landingzone")).status_code == 403
    temporal = await Client.connect(settings.temporal_address)
    listing = await temporal.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace="default"))
    assert {"DatasetPid", "OwnerGroup", "Phase", "Outcome", "ScicatJobId", "TotalBytes"} <= set(
        listing.custom_attributes
    )
    described = await temporal.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
    assert described.config.workflow_execution_retention_ttl.ToTimedelta() == setup.RETENTION


def test_secrets_are_kept_and_can_be_read_by_this_user_only(tmp_path: Path, supervisor: Supervisor) -> None:
    first = settings_of(supervisor.folder)
    assert bring_down(supervisor.folder)
    supervisor.process.communicate()
    for secret in (supervisor.folder / "secrets").iterdir():
        assert secret.stat().st_mode & 0o777 == 0o600
    again = Supervisor(supervisor.folder, ("minio",))
    try:
        assert settings_of(again.folder).s3_password == first.s3_password
    finally:
        bring_down(again.folder)
        output, errors = again.process.communicate()
    assert first.s3_password.get_secret_value() not in output + errors


def test_down_leaves_no_process(supervisor: Supervisor) -> None:
    processes = [*supervisor.children(), ProcessId.of(supervisor.process.pid)]
    assert bring_down(supervisor.folder)
    assert supervisor.process.wait(timeout=10) == 0
    assert not any(process is not None and process.alive for process in processes)
    assert not bring_down(supervisor.folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not end them; `down` does")
def test_children_die_with_a_killed_supervisor(supervisor: Supervisor) -> None:
    children = supervisor.children()
    assert all(child.alive for child in children)
    supervisor.process.kill()
    eventually(lambda: not any(child.alive for child in children))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_stack(supervisor: Supervisor, number: signal.Signals) -> None:
    children = supervisor.children()
    supervisor.process.send_signal(number)
    assert supervisor.process.wait(timeout=30) == 0
    assert not any(child.alive for child in children)


def test_a_dead_child_is_reported_with_the_end_of_its_log_and_all_goes_down(supervisor: Supervisor) -> None:
    (child,) = supervisor.children()
    log = supervisor.folder / "logs" / "minio.log"
    log.write_text("the last words\n")
    os.kill(child.pid, signal.SIGKILL)
    _, errors = supervisor.process.communicate(timeout=30)
    assert supervisor.process.returncode == 1
    assert errors == "minio was killed by SIGKILL; its log ends:\nthe last words\n"
    assert supervisor.state is None


async def test_a_child_that_dies_while_starting_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "temporal.sqlite").write_text("this is no database")
    with pytest.raises(StackError, match=re.compile(r"^temporal ended with exit code \d+; its log ends:\n.+", re.S)):
        await Stack(tmp_path, Ports.free(), services=SERVERS).start()
    assert StackState.read(tmp_path) is None


async def test_a_port_in_use_is_named_with_its_service_and_setting(tmp_path: Path) -> None:
    ports = Ports.free()
    with socket.create_server(("127.0.0.1", ports.minio_console)), pytest.raises(StackError) as caught:
        await Stack(tmp_path, ports, services=SERVERS).start()
    assert str(caught.value) == (
        f"Port {ports.minio_console}, which minio is to listen on, is in use: "
        "free it, or choose another by LOCAL_MINIO_CONSOLE_PORT or --port-base."
    )


def test_two_stacks_do_not_share_a_folder(supervisor: Supervisor) -> None:
    second = Supervisor(supervisor.folder, ("minio",))
    _, errors = second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert errors == f"A stack is running in {supervisor.folder} already: stop it first (`make down`).\n"
    assert all(child.alive for child in supervisor.children())


def test_down_spares_a_later_holder_of_the_number(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        number = ProcessId(bystander.pid, "another start time")
        StackState(ready=True, supervisor=number, children={"minio": number}, ports=Ports()).write(tmp_path)
        assert not bring_down(tmp_path)
        assert bystander.poll() is None
        bystander.kill()


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    log = tmp_path / "log"
    child = Child("deaf", [sys.executable, "-c", program], dict(os.environ), tmp_path, log)
    child.start()
    await asyncio.to_thread(eventually, lambda: log.read_text() == "deaf\n")
    await child.stop(grace_s=0.2)
    assert not child.running
    child.check()


def test_ports_come_from_a_base_and_single_variables() -> None:
    assert Ports.chosen({}) == Ports()
    chosen = Ports.chosen({"LOCAL_API_PORT": "8080"}, 21000)
    assert (chosen.temporal, chosen.temporal_ui, chosen.api) == (21000, 21001, 8080)
    with pytest.raises(StackError, match=r"^LOCAL_API_PORT is 'x', which is not a port\.$"):
        Ports.chosen({"LOCAL_API_PORT": "x"})
