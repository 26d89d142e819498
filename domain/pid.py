"""The catalogue's identifier of a dataset, e.g. `20.500.11935/0d4c…`."""

import unicodedata

from domain.errors import UnsafePath

MAX_PID_BYTES = 200
"""A pid stands in object keys (1,024 bytes) and in workflow ids (1,000); this leaves room for the rest."""

_RESERVED = frozenset({"raw_files", "datablocks", "restored"})
"""Folder names below a dataset's prefix: a pid with such a segment would lie inside another dataset."""


def check_pid(pid: str) -> str:
    """Return the pid if it can stand in object keys, file names and workflow ids.

    Raises:
        UnsafePath: empty, too long, with control characters, backslashes, segments that climb or vanish,
            or one that is the name of a folder below a dataset.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs") or c == "\\" for c in pid[: MAX_PID_BYTES + 1]):
        raise UnsafePath(f"the dataset id {pid[:60]!r} has control characters or backslashes")
    if not pid or len(pid.encode(errors="replace")) > MAX_PID_BYTES:
        raise UnsafePath(f"the dataset id {pid[:60]!r} is empty or longer than {MAX_PID_BYTES} bytes")
    if any(segment in ("", ".", "..") for segment in pid.split("/")):
        raise UnsafePath(f"the dataset id {pid!r} has an empty or climbing segment")
    if not _RESERVED.isdisjoint(pid.split("/")):
        raise UnsafePath(f"the dataset id {pid!r} has one of the segments {', '.join(sorted(_RESERVED))}")
    return pid


def flat(pid: str) -> str:
    """The pid as one file name segment: `/` becomes `-`."""
    return pid.replace("/", "-")
