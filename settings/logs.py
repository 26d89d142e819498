"""What a process of ours writes to stderr: our own lines by LOG_LEVEL, those of libraries when something is wrong.

At debug level HTTP libraries write requests with their headers and signatures. So nobody's lines but ours follow the
setting, and whatever is written passes the redaction.
"""

import logging
import sys

from domain.redaction import redacted

OURS = ("activities", "api", "clients", "worker", "temporalio.activity", "temporalio.workflow")
"""Loggers that follow LOG_LEVEL; the last two carry what activities and workflows say."""


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # The whole line at the end: a secret may come with an argument or with a traceback.
        return redacted(super().format(record))


def configure(level: str) -> None:
    """Log to stderr, from now on and for the whole process.

    Args:
        level: LOG_LEVEL.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
