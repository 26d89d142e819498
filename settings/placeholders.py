"""Passwords that everybody knows: servers' defaults, the words of examples, those of the local stack.

A network is full of programs that try exactly these.
"""

import re
from typing import TYPE_CHECKING

from pydantic import SecretStr

if TYPE_CHECKING:
    from settings.model import Settings

SHORTEST = 8
"""Characters; S3 takes no shorter secret key either."""

_NAMES = ("_user", "_username")
"""How settings end that name an account: names are no secrets."""

_KNOWN = frozenset(
    {"12345678", "123456789", "1234567890", "archivemanager", "archiver", "keycloak", "minio123", "miniosecret"}
    | {"operator", "passw0rd", "password1", "password123", "scopemarchiver", "supersecret", "temporal", "topsecret"}
)
_MARKS = ("changeme", "example", "minioadmin", "password", "placeholder", "replaceme", "yoursecret", "yourtoken")
"""What no word may contain, however it is written: `<CHANGE_ME>`, `minioadmin1`."""


def known_to_everybody(settings: "Settings") -> list[str]:
    """A sentence for each password, key or token of the settings that anybody could guess; none is shown."""
    secrets = {
        name: value.get_secret_value()
        for name in type(settings).model_fields
        if _is_secret(value := getattr(settings, name))
    }
    return [
        f"{name.upper()} {wrong}: give the account a secret of its own, or set ENVIRONMENT to development on a machine "
        "without real data."
        for name, word in secrets.items()
        if word and not name.endswith(_NAMES) and (wrong := _wrong(word, _account(settings, name)))
    ]


def _is_secret(value: object) -> bool:
    return isinstance(value, SecretStr)


def _account(settings: "Settings", name: str) -> str:
    """The name of the account whose password it is; empty for a token."""
    stem = name.removesuffix("_password")
    named = next((getattr(settings, stem + end) for end in _NAMES if hasattr(settings, stem + end)), "")
    return named.get_secret_value() if isinstance(named, SecretStr) else str(named)


def _wrong(word: str, account: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    if plain in _KNOWN or any(mark in plain for mark in _MARKS):
        return "is a default or a placeholder that everybody knows"
    if account and word.lower() == account.lower():
        return "is the name of its account"
    if len(word) < SHORTEST:
        return f"is shorter than {SHORTEST} characters"
    return ""
