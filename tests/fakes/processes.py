"""A server as a process of its own, on a free port of 127.0.0.1, ended by its pid."""

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

START_TIMEOUT_S = 30.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """Started, stopped and killed at will; it comes back on the same port, with the state that it left."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        url: str,
        ready_path: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._argv, self._env, self._log = list(argv), {**os.environ, **(env or {})}, log
        self._ready_path, self._ca_file = ready_path, ca_file
        self._process: subprocess.Popen[bytes] | None = None
        self.url = url

    def start(self) -> None:
        """Start it and return when it answers."""
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._argv, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        trust = ssl.create_default_context(cafile=self._ca_file)
        with httpx.Client(verify=trust, trust_env=False, timeout=2) as http:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise RuntimeError(f"{self._argv[0]} ended at once: {self._log.read_text()[-2000:]}")
                try:
                    if http.get(self.url + self._ready_path).status_code < 500:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{self._argv[0]} does not answer: {self._log.read_text()[-2000:]}")

    def stop(self, *, kill: bool = False) -> None:
        """End it, politely or not; nothing to do if it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
