"""`python -m mock_lts`: run the pretend tape library until a signal ends it."""

from __future__ import annotations

import os
import resource
import sys

from mock_lts.app import create_app
from mock_lts.config import Config
from mock_lts.gate import Connections
from mock_lts.server import server


def main() -> int:
    """Read the environment and serve; 2 when that is not possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each connection takes one, and each body another
    config = Config.from_env(os.environ)
    connections = Connections()
    try:
        app = create_app(config, connections=connections)
    except RuntimeError as error:
        sys.stderr.write(f"mock_lts: {error}\n")
        return 2
    server(app, config, connections).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
