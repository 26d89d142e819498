"""The ports of the local stack, all on the loopback interface."""

import dataclasses
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cli.processes import StackError

HOST = "127.0.0.1"

# Below the range from which kernels hand out ports to outgoing connections, so that none is taken by accident between
# being chosen and being listened on.
_FREE_FROM = range(20_000, 32_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """One port per listener; the defaults are those that the programs' own documentation uses."""

    temporal: int = 7233
    temporal_ui: int = 8233
    minio: int = 9000
    minio_console: int = 9001
    lts: int = 8020
    scicat: int = 3000
    api: int = 8000
    idp: int = 8080

    @classmethod
    def chosen(cls, environment: Mapping[str, str], base: int | None = None) -> Self:
        """Take the defaults, or consecutive ports from `base`; `LOCAL_<NAME>_PORT` overrides a single one.

        Raises:
            StackError: Names the port that is none.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        ports = {} if base is None else {name: base + offset for offset, name in enumerate(names)}
        for name in names:
            if given := environment.get(variable(name)):
                if not given.isdecimal():
                    raise StackError(f"{variable(name)} is {given!r}, which is not a port.")
                ports[name] = int(given)
        for name, port in ports.items():
            if not 0 < port < 2**16:
                raise StackError(
                    f"{port}, for {name}, is not a port: {variable(name)} or --port-base is off the range."
                )
        return cls(**ports)

    @classmethod
    def free(cls) -> Self:
        """Choose ports that nobody listens on now, for a stack of a test's own."""
        candidates = iter(random.sample(_FREE_FROM, len(_FREE_FROM)))
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: next(port for port in candidates if is_free(port)) for name in names})


def variable(name: str) -> str:
    """Name the environment variable that overrides a port."""
    return f"LOCAL_{name.upper()}_PORT"


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port."""
    with socket.socket() as probe:
        # Without this, connections of a stack just stopped would keep the port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
