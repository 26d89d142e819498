"""`python -m api`: the gateway under uvicorn."""

import logging
import sys

import uvicorn

from api.app import create_app
from settings import SettingsError, load_settings


def main() -> int:
    """Serve until told to stop; 1 if the settings do not allow it."""
    try:
        settings = load_settings()
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(
        app,
        host=settings.uvicorn_host,
        port=settings.uvicorn_port,
        root_path=settings.uvicorn_root_path.rstrip("/"),
        log_level=settings.uvicorn_log_level,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
