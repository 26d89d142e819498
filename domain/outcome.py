"""How one dataset's part of a job ended: what the job's result, the API and the log say of it."""

from domain.lifecycle import Outcome
from domain.message import Message
from domain.redaction import redacted

MAX_TEXT = 2_000
"""Characters of a sentence that travels into histories and into SciCat."""


def bounded(text: str) -> str:
    """The text without secrets, cut so that no error can bloat a history."""
    text = redacted(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


class DatasetOutcome(Message):
    """The end of one dataset's archive or retrieval."""

    pid: str
    status: Outcome
    error_class: str = ""
    """Name in `domain.errors`, empty where all is well."""
    message: str = ""
    """A sentence for the scientist."""
    bytes: int = 0
    """Payload archived or tar bytes delivered."""
    leftovers: tuple[str, ...] = ()
    """Objects that stayed in the landing zone, the first twenty."""
    leftover_count: int = 0
    unlisted: tuple[str, ...] = ()
    """Files packed although nobody registered them, the first twenty."""
    blocks_key: str = ""
    """Retrieval: state key of the list of datablocks."""
    undelivered: tuple[int, ...] = ()
    """Retrieval: positions in that list that did not come."""
