"""The local stack: all servers, stand-ins and our own processes on this machine, for people and for tests.

    async with Stack(tmp_path, Ports.free(), services=("temporal", "minio")) as stack:
        settings = stack.settings
        await stack.kill("minio")
        await stack.restart("minio")

Everything that a stack is lies in its folder: `data/` of the servers, `secrets/`, `logs/<name>.log`, `env/<name>.env`
(what our processes and the stand-ins are told, left out or not), `stack.json` (who runs, on which ports) and `lock`
(held by the process that supervises it).
"""

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO, cast

from cli import binaries, stack_environment
from cli.ports import HOST, Ports, is_free, variable
from cli.processes import Child, ProcessId, StackError, end
from settings import Settings

SERVERS = ("temporal", "minio", "lts", "scicat", "idp")
WORKERS = {"worker-control": "control", "worker-archival": "archival", "worker-retrieval": "retrieval"}
OURS = ("api", *WORKERS)
ALL_SERVICES = (*SERVERS, *OURS)
"""Every process of the stack by name; the order is the one in which they are shown."""

TEMPORAL_FEATURES = {
    # Off by default. Groups take turns within each partition of a queue.
    "matching.enableFairness": "true",
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
    # By default ten at a time for each workflow.
    "history.maxInFlightUpdates": "200",
}
"""How the server has to work, production's too (`deploy/temporal/dynamic.yaml`)."""

TEMPORAL_PACE = {
    # The default is 20 looks a second at each shard's queue, and the dev server has a single shard: after a short burst
    # every step waits for the next 50 ms (server 1.32, measured: 10 steps in 0.55 s instead of 0.10 s).
    "history.transferProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxPollRPS": "1000",
    # By default a timer or a retry comes up to a second late (server 1.32, measured: ten retries after 20 to 50 ms each
    # and five sleeps of 50 ms took 15 s, and now take one).
    "history.timerProcessorMaxTimeShift": '"10ms"',
}
"""What lets a dev server, which has one shard and one clock, do everything when it is due."""

START_TIMEOUT_S = 90.0
_ASK_EVERY_S = 0.05
_LISTENERS = {
    "temporal": ("temporal", "temporal_ui"),
    "minio": ("minio", "minio_console"),
    "lts": ("lts",),
    "scicat": ("scicat",),
    "idp": ("idp",),
    "api": ("api",),
}


@dataclass(frozen=True, slots=True)
class StackState:
    """What `stack.json` says about a running stack."""

    ready: bool
    supervisor: ProcessId
    children: Mapping[str, ProcessId]
    ports: Ports

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read a folder's record; None when no stack was left running there."""
        try:
            record = cast("dict[str, Any]", json.loads((folder / "stack.json").read_text()))
        except FileNotFoundError:
            return None
        return cls(
            ready=record["ready"],
            supervisor=ProcessId(**record["supervisor"]),
            children={name: ProcessId(**process) for name, process in record["children"].items()},
            ports=Ports(**record["ports"]),
        )

    def write(self, folder: Path) -> None:
        """Replace the folder's record at once."""
        draft = folder / "stack.json.new"
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.replace(folder / "stack.json")


class Stack:
    """A local stack, from its start to its end; it ends with the process that started it."""

    def __init__(
        self,
        folder: Path,
        ports: Ports,
        overrides: Mapping[str, str] | None = None,
        services: Collection[str] = ALL_SERVICES,
        own: Mapping[str, Mapping[str, str]] | None = None,
        scale: Mapping[str, int] | None = None,
    ) -> None:
        """Describe a stack; nothing happens yet.

        Args:
            folder: Where it keeps everything; a stack started there again finds its data.
            ports: Where it listens.
            overrides: Variables for every process: settings of ours, `MOCK_*` of the stand-ins.
            services: The names out of `ALL_SERVICES` that are to run.
            own: Variables for single processes of ours, by name; none that another process must know.
            scale: How many processes of a worker, where not one; the second is called `worker-archival-2`, for
                example.

        Raises:
            StackError: A service has no such name.
        """
        check_names(services)
        self.folder = folder.absolute()
        self.ports = ports
        self._overrides = dict(overrides or {})
        self._own = dict(own or {})
        self.workers = {
            name if n == 1 else f"{name}-{n}": queue
            for name, queue in WORKERS.items()
            if name in services
            for n in range(1, (scale or {}).get(name, 1) + 1)
        }
        """The worker processes by name, and the queue that each works on."""
        self.services = [*(name for name in ALL_SERVICES if name in services and name not in WORKERS), *self.workers]
        self._children: dict[str, Child] = {}
        self._questions: dict[str, Callable[[], Awaitable[bool]]] = {}
        self._lock: TextIO | None = None
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings that the stack's own processes see, secrets included; known once the stack was started.

        Raises:
            StackError: It was not.
        """
        if self._settings is None:
            raise StackError("The stack was not started.")
        return self._settings

    async def start(self) -> None:
        """Start everything and wait until all of it answers: first the servers, then set-up, then our own processes.

        Raises:
            StackError: Another stack runs in this folder, a port is in use, or a process died or did not answer; then
                nothing is left running.
            MissingProgram: A server's program is not there.
            SetupError: Set-up failed.
        """
        self._take_folder()
        try:
            self._describe()
            self._check_ports()
            await self._launch([name for name in self.services if name in SERVERS])
            await self._set_up()
            await self._launch([name for name in self.services if name not in SERVERS])
            self._record(ready=True)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything politely, our own processes before the servers that they need; twice does no harm."""
        grace_s = 5 + (self._settings.graceful_shutdown_s if self._settings else 0)
        for servers in (False, True):
            await asyncio.gather(
                *(child.stop(grace_s=grace_s) for name, child in self._children.items() if (name in SERVERS) is servers)
            )
        self._children.clear()
        if self._lock is not None:
            (self.folder / "stack.json").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    async def wait(self) -> None:
        """Wait until a process ends that nobody told to.

        Raises:
            StackError: That happened; names it and shows the end of its log.
        """
        while True:
            self.check()
            await asyncio.sleep(0.2)

    def check(self) -> None:
        """Do nothing while all is well.

        Raises:
            StackError: A process ended that nobody told to; names it and shows the end of its log.
        """
        for child in self._children.values():
            child.check()

    async def kill(self, name: str) -> None:
        """End one process as a crash would (SIGKILL); it stays down until `restart`."""
        await self._child(name).kill()

    async def restart(self, name: str) -> None:
        """End one process politely if it runs, start it again and wait until it answers.

        Raises:
            StackError: It died or did not answer.
        """
        child = self._child(name)
        await child.stop(grace_s=5 + self.settings.graceful_shutdown_s)
        await self._launch([name])
        self._record(ready=True)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one process, for instance SIGSTOP to make it hang and SIGCONT to let it go on."""
        self._child(name).send(number)

    def kill_all(self) -> None:
        """Send SIGKILL to everything, without waiting: for a second Ctrl-C. `stop` must follow."""
        for child in self._children.values():
            child.send(signal.SIGKILL)

    def pid(self, name: str) -> int:
        """Tell the process number of a running service."""
        return self._child(name).pid

    def log(self, name: str) -> Path:
        """Tell where a service's output goes."""
        return self.folder / "logs" / f"{name}.log"

    async def __aenter__(self) -> Self:
        """Start the stack."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the stack."""
        await self.stop()

    def _take_folder(self) -> None:
        for part in ("", "logs", "data"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StackError(f"A stack is running in {self.folder} already: stop it first (`make down`).") from None
        self._lock = lock
        # Where the kernel does not end children with their supervisor, a killed one leaves them behind.
        if leftover := StackState.read(self.folder):
            end(leftover.children.values(), grace_s=10)

    def _describe(self) -> None:
        """Work out every process's command, environment and sign of life."""
        # Temporal's client takes long to load, and who only asks a stack where it is needs none; so with the set-up.
        from cli import readiness

        ports, overrides, data = self.ports, self._overrides, self.folder / "data"
        accounts = stack_environment.keep_secrets(self.folder / "secrets")
        self._settings = stack_environment.settings_for(ports, accounts, overrides)
        namespace = self._settings.temporal_namespace
        ours = stack_environment.for_ours(ports, self.folder / "secrets", overrides)
        environments = {
            "lts": stack_environment.for_lts(ports, accounts, data / "lts", overrides),
            "scicat": stack_environment.for_scicat(ports, accounts, data / "scicat.sqlite", overrides),
            "idp": stack_environment.for_idp(ports, self._settings, data / "idp.json", overrides),
            **{name: {**ours, **self._own.get(name, {})} for name in ("api", *(WORKERS | self.workers))},
        }
        for name, environment in environments.items():
            stack_environment.keep_environment(self.folder / "env" / f"{name}.env", environment)
        if "temporal" in self.services:
            plain = stack_environment.for_everyone(overrides)
            self._add("temporal", _temporal_command(ports, data / "temporal.sqlite"), plain)
            self._questions["temporal"] = readiness.temporal_answers(ports.temporal, namespace)
        if "minio" in self.services:
            environment = stack_environment.for_minio(accounts, self._settings.s3_region, overrides)
            self._add("minio", _minio_command(ports, data / "minio"), environment)
            self._questions["minio"] = readiness.http_answers(ports.minio, "/minio/health/ready")
        for name, (module, port, path) in {
            "lts": ("mock_lts", ports.lts, "/.well-known/wlcg-tape-rest-api"),
            "scicat": ("mock_scicat", ports.scicat, "/api/v3/health"),
            "idp": ("mock_idp", ports.idp, "/mock/requests"),
            "api": ("api", ports.api, "/health/livez"),
        }.items():
            if name in self.services:
                self._add(name, _module(module), environments[name])
                self._questions[name] = readiness.http_answers(port, path)
        for name, queue in self.workers.items():
            child = self._add(name, _module("worker", "--queue", queue), environments[name])
            self._questions[name] = readiness.worker_polls(
                ports.temporal, namespace, queue, lambda child=child: child.started_at
            )

    def _add(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        self.log(name).write_bytes(b"")
        child = Child(name, command, environment, self.folder, self.log(name))
        self._children[name] = child
        return child

    def _check_ports(self) -> None:
        for service in self.services:
            for listener in _LISTENERS.get(service, ()):
                port = cast("int", getattr(self.ports, listener))
                if not is_free(port):
                    raise StackError(
                        f"Port {port}, which {service} is to listen on, is in use: "
                        f"free it, or choose another by {variable(listener)} or --port-base."
                    )

    async def _launch(self, names: Sequence[str]) -> None:
        """Start processes together and wait until each answers."""
        for name in names:
            self._children[name].start()
        self._record(ready=False)
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(self._answer(name))
        except ExceptionGroup as several:  # one is enough to act on
            raise several.exceptions[0] from None

    async def _answer(self, name: str) -> None:
        child = self._children[name]
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._questions[name]():
            self.check()
            if time.monotonic() > deadline:
                raise child.failure(f"did not answer within {START_TIMEOUT_S:.0f} s")
            await asyncio.sleep(_ASK_EVERY_S)

    async def _set_up(self) -> None:
        from cli import minio_accounts, setup

        if "minio" in self.services:
            await asyncio.gather(setup.prepare_buckets(self.settings), minio_accounts.prepare(self.settings))
        if "temporal" in self.services:
            await setup.prepare_temporal(self.settings)

    def _record(self, *, ready: bool) -> None:
        supervisor = ProcessId.of(os.getpid())
        assert supervisor is not None  # noqa: S101 - this process runs
        children = {name: child.identity for name, child in self._children.items() if child.identity is not None}
        StackState(ready=ready, supervisor=supervisor, children=children, ports=self.ports).write(self.folder)

    def _child(self, name: str) -> Child:
        if name not in self._children:
            raise StackError(f"{name} is not in this stack, or the stack is not running.")
        return self._children[name]


def check_names(services: Collection[str]) -> None:
    """Do nothing if these are all processes of a stack.

    Raises:
        StackError: Names those that are not.
    """
    if unknown := set(services) - set(ALL_SERVICES):
        raise StackError(f"{', '.join(sorted(unknown))}: the stack's processes are {', '.join(ALL_SERVICES)}.")


def settings_of(folder: Path) -> Settings:
    """Build the settings of the stack that runs in a folder, to make clients with.

    Raises:
        StackError: None runs there.
    """
    state = StackState.read(folder)
    if state is None or not state.supervisor.alive:
        raise StackError(f"No local stack runs in {folder}: start one (`make up`).")
    return stack_environment.settings_for(state.ports, stack_environment.keep_secrets(folder / "secrets"), {})


def bring_down(folder: Path, *, grace_s: float = 40) -> bool:
    """Stop the stack in a folder from outside, whatever state it is in; tell whether there was anything to stop.

    The supervisor is asked first, since it stops its children in order; what is left then is ended one by one. Only
    processes that this stack started are touched, never a later holder of their number.
    """
    state = StackState.read(folder)
    if state is None:
        return False
    processes = [state.supervisor, *state.children.values()]
    was_running = any(process.alive for process in processes)
    end([state.supervisor], grace_s=grace_s)
    end(state.children.values(), grace_s=10)
    (folder / "stack.json").unlink(missing_ok=True)
    return was_running


def temporal_settings(settings: Mapping[str, str]) -> list[str]:
    """Arguments of `temporal server start-dev` that set dynamic configuration."""
    return [argument for key, value in settings.items() for argument in ("--dynamic-config-value", f"{key}={value}")]


def _temporal_command(ports: Ports, database: Path) -> list[str]:
    # WAL without sync: three times the pace; a power cut may cost the file, a `kill -9` does not.
    return [
        *(str(binaries.temporal()), "server", "start-dev"),
        *("--ip", HOST, "--port", str(ports.temporal), "--ui-port", str(ports.temporal_ui)),
        *("--ui-disable-news-fetch", "--namespace", "default", "--db-filename", str(database)),
        *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=OFF"),
        *temporal_settings(TEMPORAL_FEATURES | TEMPORAL_PACE),
        *("--log-level", "warn"),
    ]


def _minio_command(ports: Ports, data: Path) -> list[str]:
    return [
        *(str(binaries.minio()), "server", "--quiet"),
        *("--address", f"{HOST}:{ports.minio}", "--console-address", f"{HOST}:{ports.minio_console}"),
        str(data),
    ]


def _module(name: str, *arguments: str) -> list[str]:
    # -P: a folder of that name where the stack is started must not stand in for our package.
    return [sys.executable, "-P", "-m", name, *arguments]
