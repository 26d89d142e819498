"""What a process of ours writes to stderr: our own lines by LOG_LEVEL, those of libraries when something is wrong.

At debug level HTTP libraries write requests with their headers and signatures. So nobody's lines but ours follow the
setting, and whatever is written passes the redaction.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

from domain.redaction import redacted

OURS = ("activities", "api", "clients", "worker", "temporalio.activity", "temporalio.workflow")
"""Loggers that follow LOG_LEVEL; the last two carry what activities and workflows say."""

Facts = Callable[[], Mapping[str, str | list[str]]]
"""Asked as a line is written: what the present work belongs to."""


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # The whole line at the end: a secret may come with an argument or with a traceback.
        return redacted(super().format(record))


class _Json(logging.Formatter):
    """One object a line, redacted text by text: the line as a whole has quotation marks that a secret ends at."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str | list[str]] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **{name: fact for name, fact in self._facts().items() if fact},
        }
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def _nothing() -> Mapping[str, str | list[str]]:
    return {}


def configure(level: str, form: Literal["text", "json"] = "text", facts: Facts = _nothing) -> None:
    """Log to stderr, from now on and for the whole process.

    Args:
        level: LOG_LEVEL.
        form: LOG_FORMAT.
        facts: what to add to each line of JSON.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = _Redacting("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_Json(facts) if form == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
