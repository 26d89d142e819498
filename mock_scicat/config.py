"""What the stand-in is told at start: SciCat's own group settings, and a few of ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

EVERYBODY = "#all"
"""SciCat's name for "any user who is logged in" in its group settings."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """A local account, as in SciCat's functionalAccounts.json."""

    username: str
    password: str = field(repr=False)
    groups: tuple[str, ...]
    email: str


LOCAL_ACCOUNTS = tuple(
    Account(username=name, password=password, groups=groups, email=f"{name.lower()}@localhost.localdomain")
    for name, password, groups in (
        ("archiveManager", "aman", ("archivemanager", "admin")),
        ("ingestor", "ingestor", ("ingestor",)),
        ("alice", "alice", ("group1",)),
        ("bob", "bob", ("group2",)),
    )
)
"""For a laptop only: the service account has both roles that "What the service account needs" asks for."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings; the group settings keep SciCat's names and meaning.

    The four settings held as plain strings are compared by substring, as SciCat 4.27 does (observed): with
    "group22" in the setting, members of "group2" get in.
    """

    host: str = "127.0.0.1"
    port: int = 3000
    state: Path | None = None
    """The SQLite file; None keeps everything in memory."""
    accounts: tuple[Account, ...] = LOCAL_ACCOUNTS
    token_ttl_s: int = 3600
    jwt_secret: str = field(default="", repr=False)
    """Empty: a random one, kept in the state, so that tokens outlive a restart."""
    pid_prefix: str = "20.500.11935"

    job_url: str = ""
    """The target of the `url` action of every job type; empty: no action."""
    job_username: str = "scicat"
    job_password: str = field(default="", repr=False)
    job_ignore_errors: bool = False
    """The action's `ignoreErrors`: its failures are only logged."""
    job_create_auth: str = "#datasetOwner"
    job_update_auth: str = "archiveManager"

    admin_groups: tuple[str, ...] = ("admin",)
    delete_groups: tuple[str, ...] = ("archivemanager",)
    create_dataset_groups: tuple[str, ...] = (EVERYBODY,)
    create_dataset_with_pid_groups: tuple[str, ...] = ()
    create_dataset_privileged_groups: tuple[str, ...] = ("ingestor",)
    update_dataset_lifecycle_groups: str = "archivemanager"
    create_job_privileged_groups: str = ""
    update_job_privileged_groups: str = "archivemanager"
    delete_job_groups: str = "archivemanager"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Read the settings; a variable that is unset or (where that has no meaning) empty leaves the default.

        Raises:
            ValueError: a number or the accounts file cannot be read.
        """
        given: dict[str, Any] = {}
        for name, variable in _TEXTS.items():
            if variable in environment:
                given[name] = environment[variable].strip()
        for name, variable in _NUMBERS.items():
            if environment.get(variable):
                given[name] = int(environment[variable])
        for name, variable in _LISTS.items():
            if variable in environment:
                given[name] = tuple(group.strip() for group in environment[variable].split(",") if group.strip())
        given["job_ignore_errors"] = environment.get("MOCK_SCICAT_JOB_IGNORE_ERRORS", "").lower() in (
            "1",
            "true",
            "yes",
        )
        state = environment.get("MOCK_SCICAT_STATE", ".local/mock_scicat.sqlite")
        given["state"] = None if state in ("", ":memory:") else Path(state)
        if accounts_file := environment.get("MOCK_SCICAT_ACCOUNTS"):
            given["accounts"] = read_accounts(Path(accounts_file))
        elif password := environment.get("MOCK_SCICAT_SERVICE_PASSWORD"):
            service, *others = LOCAL_ACCOUNTS
            given["accounts"] = (replace(service, password=password), *others)
        return cls(**given)


_TEXTS = {
    "host": "MOCK_SCICAT_HOST",
    "jwt_secret": "MOCK_SCICAT_JWT_SECRET",
    "pid_prefix": "MOCK_SCICAT_PID_PREFIX",
    "job_url": "MOCK_SCICAT_JOB_URL",
    "job_username": "MOCK_SCICAT_JOB_USERNAME",
    "job_password": "MOCK_SCICAT_JOB_PASSWORD",
    "job_create_auth": "MOCK_SCICAT_JOB_CREATE_AUTH",
    "job_update_auth": "MOCK_SCICAT_JOB_UPDATE_AUTH",
    "update_dataset_lifecycle_groups": "UPDATE_DATASET_LIFECYCLE_GROUPS",
    "create_job_privileged_groups": "CREATE_JOB_PRIVILEGED_GROUPS",
    "update_job_privileged_groups": "UPDATE_JOB_PRIVILEGED_GROUPS",
    "delete_job_groups": "DELETE_JOB_GROUPS",
}
_NUMBERS = {"port": "MOCK_SCICAT_PORT", "token_ttl_s": "MOCK_SCICAT_TOKEN_TTL_S"}
_LISTS = {
    "admin_groups": "ADMIN_GROUPS",
    "delete_groups": "DELETE_GROUPS",
    "create_dataset_groups": "CREATE_DATASET_GROUPS",
    "create_dataset_with_pid_groups": "CREATE_DATASET_WITH_PID_GROUPS",
    "create_dataset_privileged_groups": "CREATE_DATASET_PRIVILEGED_GROUPS",
}
_OTHERS = (
    "MOCK_SCICAT_STATE",
    "MOCK_SCICAT_ACCOUNTS",
    "MOCK_SCICAT_SERVICE_PASSWORD",
    "MOCK_SCICAT_JOB_IGNORE_ERRORS",
)

VARIABLES = frozenset({*_TEXTS.values(), *_NUMBERS.values(), *_LISTS.values(), *_OTHERS})
"""Everything that is read from the environment."""


def read_accounts(path: Path) -> tuple[Account, ...]:
    """Read `[{"username", "password", "groups": [...], "email"?}, ...]`.

    Raises:
        ValueError: the file is not of that form.
    """
    try:
        entries = cast("list[dict[str, Any]]", json.loads(path.read_text()))
        return tuple(
            Account(
                username=str(entry["username"]),
                password=str(entry["password"]),
                groups=tuple(str(group) for group in entry.get("groups", ())),
                email=str(entry.get("email") or f"{entry['username']}@localhost.localdomain"),
            )
            for entry in entries
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        # The cause may show a password, so only the kind of mistake is named.
        message = f"MOCK_SCICAT_ACCOUNTS: cannot read accounts from {path} ({type(error).__name__})"
        raise ValueError(message) from None
