"""What each process cannot start without: settings that have no default, and that only some processes need."""

from enum import StrEnum

from settings.model import Settings


class Process(StrEnum):
    """A process that reads settings."""

    API = "api"
    WORKER = "worker"
    SETUP = "setup"


def needed(settings: Settings, process: Process) -> tuple[str, ...]:
    """Names of the settings that must not be empty, for `Settings.require`."""
    s3 = ("s3_user", "s3_password")
    match process:
        case Process.API:
            # Without groups `/token` gives nobody a token, and a facility may have no identity provider at all.
            uploads = ("idp_password",) if settings.in_production and settings.ingestor_groups else ()
            return ("job_endpoint_username", "job_endpoint_password", *s3, *uploads)
        case Process.WORKER:
            links = ("s3_link_user", "s3_link_password") if settings.in_production else ()
            return (*s3, "scicat_user", "scicat_password", *links)
        case Process.SETUP:
            return s3
