"""`python -m api`: the gateway under uvicorn."""

import sys

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.observing import facts
from settings import SettingsError, load_settings, logs


def application() -> FastAPI:
    """Make the application by the settings; for a server that starts it anew when the code changes."""
    return create_app(load_settings())


def main() -> int:
    """Serve until told to stop; 1 if the settings do not allow it."""
    try:
        settings = load_settings()
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logs.configure(settings.log_level, settings.log_format, facts)
    uvicorn.run(
        "api.__main__:application" if settings.uvicorn_reload else app,
        factory=settings.uvicorn_reload,
        reload=settings.uvicorn_reload,
        host=settings.uvicorn_host,
        port=settings.uvicorn_port,
        root_path=settings.uvicorn_root_path.rstrip("/"),
        log_level=settings.uvicorn_log_level,
        log_config=None,  # its lines come to our handler, and so through the redaction
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
