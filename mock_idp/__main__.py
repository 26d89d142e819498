"""`python -m mock_idp`: serve until SIGTERM or SIGINT."""

import logging
import os
import signal
import sys

import uvicorn

from .app import create_app
from .config import Config

SHUTDOWN_TIMEOUT_S = 5


def main() -> int:
    """Serve the stand-in as the environment says; 0 after a polite stop, 2 if the environment makes no sense."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = Config.from_environment(os.environ)
    except ValueError as error:
        sys.stderr.write(f"mock_idp: {error}\n")
        return 2
    # uvicorn raises the signal once more when it has shut down; a stop that was asked for is no failure.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda _signal, _frame: sys.exit(0))
    settings = uvicorn.Config(
        create_app(config),
        host=config.host,
        port=config.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    uvicorn.Server(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
