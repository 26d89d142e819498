"""Where settings come from, first match wins: environment, secrets files, Temporal's file, `config.toml`, defaults.

Secrets files lie in `SECRETS_DIR` (/run/secrets), one per setting, named by the setting in lower case; container
runtimes mount them so. Temporal's file is the one that `TEMPORAL_CONFIG_FILE` names; it tells where Temporal is
(`settings/temporal.py`). `config.toml` is the one named by `SCOPEMARCHIVER_CONFIG`, else ./config.toml where it exists.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SecretsSettingsSource
from pydantic_settings import SettingsError as UnreadableSource

from settings import temporal

if TYPE_CHECKING:
    from settings.model import Settings

CONFIG_VARIABLE = "SCOPEMARCHIVER_CONFIG"
SECRETS_VARIABLE = "SECRETS_DIR"
DEFAULT_CONFIG = Path("config.toml")
DEFAULT_SECRETS = Path("/run/secrets")


class SettingsError(Exception):
    """The configuration cannot be used; the text is one sentence a line, each naming a setting and what is wrong."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)


def load_settings() -> "Settings":
    """Read and check the configuration of this process.

    Raises:
        SettingsError: Says of every wrong setting what is wrong with it, never its value.
    """
    from settings.placeholders import known_to_everybody

    settings = read_settings()
    if settings.in_production and (sentences := known_to_everybody(settings)):
        raise SettingsError(sentences)
    return settings


def read_settings() -> "Settings":
    """Read the configuration for somebody to look at: no process starts by it, so a placeholder may stand in it.

    Raises:
        SettingsError: As `load_settings`, for all else.
    """
    from settings.model import Settings

    try:
        return Settings().securing_temporal()
    except ValidationError as error:
        # `from None`: pydantic's own text quotes the values, which may be secrets.
        raise SettingsError([_sentence(detail) for detail in error.errors(include_input=False)]) from None
    except UnreadableSource as error:
        reason = error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise SettingsError([f"{reason.filename} cannot be read: {reason.strerror}."]) from None


def config_path() -> Path | None:
    """Tell which `config.toml` counts; None where there is none.

    Raises:
        SettingsError: `SCOPEMARCHIVER_CONFIG` names a file that is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise SettingsError([f"{CONFIG_VARIABLE} names {named}, which is not a file."])
        return Path(named)
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


class ConfigFile(InitSettingsSource):
    """The settings that stand in one file."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path, content: Mapping[str, object]) -> None:
        super().__init__(settings_cls, init_kwargs=dict(content))
        self.path = path


def config_file(settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
    """Build the source that reads `config.toml`; setting names count in either case."""
    path = config_path()
    if path is None:
        return InitSettingsSource(settings_cls, init_kwargs={})
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path} cannot be read: {error}."]) from error
    return ConfigFile(settings_cls, path, {name.lower(): value for name, value in content.items()})


def temporal_file(settings_cls: type[BaseSettings]) -> PydanticBaseSettingsSource:
    """Build the source that reads where Temporal is from the file of its own configuration, where one is named.

    Raises:
        SettingsError: That file cannot be used.
    """
    path = temporal.config_file()
    if path is None:
        return InitSettingsSource(settings_cls, init_kwargs={})
    try:
        return ConfigFile(settings_cls, path, temporal.address())
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def secrets_folder() -> Path | None:
    """Tell where secrets files are read from; None where there is no /run/secrets, as on a laptop.

    Raises:
        SettingsError: `SECRETS_DIR` names a folder that is not there.
    """
    named = os.environ.get(SECRETS_VARIABLE)
    folder = Path(named) if named else DEFAULT_SECRETS
    if named and not folder.is_dir():
        raise SettingsError([f"{SECRETS_VARIABLE} names {named}, which is not a folder."])
    return folder if folder.is_dir() else None


def secrets_files(settings_cls: type[BaseSettings]) -> tuple[PydanticBaseSettingsSource, ...]:
    """Build the source that reads secrets files, if there is a folder of them."""
    folder = secrets_folder()
    return (SecretsSettingsSource(settings_cls, secrets_dir=folder),) if folder else ()


def _sentence(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"]).upper()
    if detail["type"] == "extra_forbidden":
        return f"{name} is not the name of a setting."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name} {message}." if name else f"{message}."
