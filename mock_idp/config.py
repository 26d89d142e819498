"""What the stand-in is told at start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings; each can be given as `MOCK_IDP_<NAME>`."""

    host: str = "127.0.0.1"
    port: int = 8080
    state: Path | None = None
    """The file of the keys, so that tokens outlive a restart; None keeps them in memory."""
    realm: str = "facility"
    client_id: str = "archiver-service-api"
    client_secret: str = field(default="", repr=False)
    """A client that gives a secret must give this one; it may give none, as a public client does."""
    username: str = "archiver-service"
    password: str = field(default="archiver", repr=False)
    audience: str = "account"
    """Several are separated by commas, and then come as a list."""
    access_lifetime_s: int = 300
    refresh_lifetime_s: int = 1800

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Read the settings; a variable that is unset or empty leaves the default.

        Raises:
            ValueError: a number cannot be read.
        """
        given: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            if value := environment.get(f"MOCK_IDP_{name.upper()}", "").strip():
                given[name] = int(value) if name in _NUMBERS else Path(value) if name == "state" else value
        return cls(**given)


_NUMBERS = frozenset({"port", "access_lifetime_s", "refresh_lifetime_s"})
