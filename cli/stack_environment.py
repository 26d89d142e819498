"""What each process of the local stack is told: our settings, our secrets, and the stand-ins' own variables."""

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from cli.ports import HOST, Ports
from cli.secret_files import write_once
from settings import Settings
from settings.sources import CONFIG_VARIABLE, SECRETS_VARIABLE, config_path

# What a shell may hold for other purposes and would bend a process of the stack.
_FOREIGN_PREFIXES = ("TEMPORAL_", "MINIO_", "AWS_")
_SECRET_SETTINGS = frozenset(
    name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr
)


def keep_secrets(folder: Path) -> dict[str, str]:
    """Return the stack's accounts by setting name, invented once and kept in files that only this user can read.

    They lie as the service expects secrets: one file per setting in one folder (`SECRETS_DIR`).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    accounts = {
        "JOB_ENDPOINT_USERNAME": "scicat",
        "JOB_ENDPOINT_PASSWORD": secrets.token_urlsafe(24),
        "OPERATOR_USERNAME": "operator",
        "OPERATOR_PASSWORD": secrets.token_urlsafe(24),
        # The stand-in's built-in service account.
        "SCICAT_USER": "archiveManager",
        "SCICAT_PASSWORD": "aman",
        "S3_USER": "archiver",
        "S3_PASSWORD": secrets.token_urlsafe(24),
        "S3_LINK_USER": "links",
        "S3_LINK_PASSWORD": secrets.token_urlsafe(24),
        "LTS_TOKEN": secrets.token_urlsafe(24),
        "IDP_CLIENT_SECRET": secrets.token_urlsafe(24),
        "IDP_PASSWORD": secrets.token_urlsafe(24),
    }
    for name, value in accounts.items():
        path = folder / name.lower()
        if not write_once(path, value, mode=0o600):
            accounts[name] = path.read_text().strip()
    return accounts


def addresses(ports: Ports) -> dict[str, str]:
    """Tell where the stack's servers are, by setting name, and that all of it is for one machine."""
    return {
        "ENVIRONMENT": "development",
        "UVICORN_HOST": HOST,
        "UVICORN_PORT": str(ports.api),
        "UVICORN_ROOT_PATH": "/",
        "SCICAT_ENDPOINT": f"http://{HOST}:{ports.scicat}",
        "S3_ENDPOINT": f"http://{HOST}:{ports.minio}",
        "S3_EXTERNAL_ENDPOINT": f"http://{HOST}:{ports.minio}",
        "LTS_DRIVER": "http",
        "LTS_ENDPOINT": f"http://{HOST}:{ports.lts}",
        "IDP_URL": f"http://{HOST}:{ports.idp}",
        # The groups of the pretend SciCat's own users.
        "SCICAT_INGESTOR_GROUPS": "ingestor;group1;group2",
        "TEMPORAL_ADDRESS": f"{HOST}:{ports.temporal}",
        "TEMPORAL_NAMESPACE": "default",
    }


def for_everyone(overrides: Mapping[str, str]) -> dict[str, str]:
    """Take this process's environment, less what is meant for other servers and accounts, plus the overrides."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN_PREFIXES) and name.upper() not in _SECRET_SETTINGS
    }
    # A proxy of the site must not be asked for what is on this machine.
    no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST, "localhost")))
    return inherited | {"NO_PROXY": no_proxy, "no_proxy": no_proxy, "PYTHONUNBUFFERED": "1"} | dict(overrides)


def keep_environment(path: Path, environment: Mapping[str, str]) -> None:
    """Write down what a process of the stack is told beyond what any shell holds, for one that is started by hand.

    A debugger reads it, or a shell by `set -a; . FILE`. Only this user can read it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = {
        name: value
        for name, value in sorted(environment.items())
        if os.environ.get(name) != value or name.lower() in Settings.model_fields or name.startswith("MOCK_")
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{name}={shlex.quote(value)}\n" for name, value in told.items())


def for_ours(ports: Ports, secrets_folder: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of the API and the workers; overrides may change any setting."""
    config = config_path()
    named = {CONFIG_VARIABLE: str(config.absolute())} if config else {}
    return (
        for_everyone(overrides)
        | named
        | {name: value for name, value in addresses(ports).items() if name not in overrides}
        | {SECRETS_VARIABLE: str(secrets_folder)}
    )


def for_minio(accounts: Mapping[str, str], region: str, overrides: Mapping[str, str]) -> dict[str, str]:
    """Make MinIO's environment: the service's own account is its root."""
    return for_everyone(overrides) | {
        "MINIO_ROOT_USER": accounts["S3_USER"],
        "MINIO_ROOT_PASSWORD": accounts["S3_PASSWORD"],
        "MINIO_SITE_REGION": region,
        "MINIO_UPDATE": "off",
    }


def for_lts(ports: Ports, accounts: Mapping[str, str], state: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Make the pretend tape library's environment; its pace and size can be overridden."""
    return for_everyone(overrides) | {
        "MOCK_LTS_HOST": HOST,
        "MOCK_LTS_PORT": str(ports.lts),
        "MOCK_LTS_STATE": str(state),
        "MOCK_LTS_TOKEN": accounts["LTS_TOKEN"],
    }


def for_scicat(ports: Ports, accounts: Mapping[str, str], state: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Make the pretend SciCat's environment: its jobs call our API as SciCat's job configuration would."""
    return for_everyone(overrides) | {
        "MOCK_SCICAT_HOST": HOST,
        "MOCK_SCICAT_PORT": str(ports.scicat),
        "MOCK_SCICAT_STATE": str(state),
        "MOCK_SCICAT_JOB_URL": f"http://{HOST}:{ports.api}/archiver/jobs",
        "MOCK_SCICAT_JOB_USERNAME": accounts["JOB_ENDPOINT_USERNAME"],
        "MOCK_SCICAT_JOB_PASSWORD": accounts["JOB_ENDPOINT_PASSWORD"],
    }


def for_idp(ports: Ports, settings: Settings, state: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Make the pretend identity provider's environment: it knows the realm, client and account of our settings."""
    return for_everyone(overrides) | {
        "MOCK_IDP_HOST": HOST,
        "MOCK_IDP_PORT": str(ports.idp),
        "MOCK_IDP_STATE": str(state),
        "MOCK_IDP_REALM": settings.idp_realm,
        "MOCK_IDP_CLIENT_ID": settings.idp_client_id,
        "MOCK_IDP_CLIENT_SECRET": settings.idp_client_secret.get_secret_value(),
        "MOCK_IDP_USERNAME": settings.idp_username,
        "MOCK_IDP_PASSWORD": settings.idp_password.get_secret_value(),
        "MOCK_IDP_AUDIENCE": settings.idp_audience,
    }


def settings_for(ports: Ports, accounts: Mapping[str, str], overrides: Mapping[str, str]) -> Settings:
    """Build the settings that the stack's own processes see, to make clients with."""
    told = addresses(ports) | dict(accounts) | dict(overrides)
    given: dict[str, Any] = {
        name.lower(): value for name, value in told.items() if name.lower() in Settings.model_fields
    }
    return Settings(**given)
