"""Typed configuration, read once at start-up, and only by the entry points (`api`, `worker`, `cli`)."""

from settings.model import Settings
from settings.sources import SettingsError, load_settings

__all__ = ["Settings", "SettingsError", "load_settings"]
