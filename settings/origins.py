"""Which source each setting has its value from."""

from pathlib import Path

from pydantic_settings import (
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
)

from settings.model import Settings
from settings.sources import ConfigFile

DEFAULT = "default"
ENVIRONMENT = "environment"


def origins() -> dict[str, str]:
    """Tell for every setting, by field name, where `load_settings` has it from: a file's path, or one of the above.

    Raises:
        SettingsError: A source cannot be read.
    """
    none = InitSettingsSource(Settings, init_kwargs={})
    sources = Settings.settings_customise_sources(Settings, none, EnvSettingsSource(Settings), none, none)
    found = dict.fromkeys(Settings.model_fields, DEFAULT)
    for source in reversed(sources):  # the first wins
        found |= {name: _origin(source, name) for name in source()}
    return found


def _origin(source: PydanticBaseSettingsSource, name: str) -> str:
    match source:
        case ConfigFile():
            return str(source.path)
        case SecretsSettingsSource():
            return str(Path(str(source.secrets_dir)) / name)
        case _:
            return ENVIRONMENT
