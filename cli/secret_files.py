"""Passwords and keys of a deployment, invented once and kept as files, one a setting."""

import base64
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from settings import Settings

NAMES = {
    "job_endpoint_username": "scicat",
    "operator_username": "operator",
    "s3_user": "archiver",
    "s3_link_user": "links",
}
"""Accounts that only the service's own parts know; a name is no secret, but lies beside its password."""

INVENTED = (
    "job_endpoint_password",
    "operator_password",
    "s3_password",
    "s3_link_password",
    "postgres_password",
    "grafana_admin_password",
)
GIVEN = {
    "scicat_user": "the service's account in SciCat",
    "scicat_password": "its password",
    "lts_token": "the bearer token for the LTS, where it asks for one",
    "idp_password": "the identity provider's account IDP_USERNAME, where SCICAT_INGESTOR_GROUPS lets anybody upload",
    "idp_client_secret": "the client IDP_CLIENT_ID there, unless it is a public one",
    "tls_certificate": "PEM, the whole chain; unless it is elsewhere (TLS_CERTIFICATE_FILE) or ACME_EMAIL is set",
    "tls_key": "its private key",
}
"""What others know as well, and the facility has from them."""

STAND_INS_ACCOUNT = "archiveManager"
"""In the pretend SciCat."""

WEB_PAGES = "ui_users"
"""Who may see the web pages behind the proxy, in htpasswd's form: the operators' account."""

FOLDER_MODE = 0o700
FILE_MODE = 0o644
"""The folder keeps everybody out. Docker gives a container the file itself, and each runs under a user of its own."""


@dataclass(frozen=True, slots=True)
class Made:
    """What has become of the files, by name."""

    written: list[str]
    kept: list[str]
    to_fill_in: dict[str, str]
    """Empty still, with what belongs there."""


def make(folder: Path, *, development: bool = False) -> Made:
    """Write every secret that is not there.

    Args:
        folder: Made with its parents if need be.
        development: Whether the stand-ins are to be told the same secrets, which are invented then.

    Raises:
        OSError: The folder or a file cannot be written.
    """
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    values: dict[str, str] = {
        **NAMES,
        **{name: secrets.token_urlsafe(24) for name in INVENTED},
        **dict.fromkeys(GIVEN, ""),
    }
    if development:
        settings = [name for name in GIVEN if name in Settings.model_fields]
        values |= {name: secrets.token_urlsafe(24) for name in settings} | {"scicat_user": STAND_INS_ACCOUNT}
    written = [name for name, value in values.items() if write_once(folder / name, value, mode=FILE_MODE)]
    account = ((folder / name).read_text().strip() for name in ("operator_username", "operator_password"))
    written += [WEB_PAGES] if write_once(folder / WEB_PAGES, _htpasswd(*account), mode=FILE_MODE) else []
    empty = {name for name in values if not (folder / name).stat().st_size}
    return Made(
        written=sorted(written),
        kept=sorted({*values, WEB_PAGES} - {*written} - empty),
        to_fill_in={name: what for name, what in GIVEN.items() if name in empty},
    )


def write_once(path: Path, value: str, *, mode: int) -> bool:
    """Write a file unless something stands in it already; return whether something was written."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(file, mode)  # whatever the shell's umask
    except FileExistsError:
        if not value or path.stat().st_size:
            return False
        file = os.open(path, os.O_WRONLY)
    with os.fdopen(file, "w") as secret:
        secret.write(value)
    return bool(value)


def _htpasswd(name: str, password: str) -> str:
    # Of a password that nobody could guess, a digest without salt tells nothing.
    digest = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return f"{name}:{{SHA}}{base64.b64encode(digest).decode()}\n"
