"""The one way in which we write JSON lines: UTF-8, no white space, keys in the order given, a newline behind each."""

import json
from collections.abc import Iterator

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump_line(value: object) -> bytes:
    """One value as one line, newline included."""
    return _compact(value).encode() + b"\n"


def split_lines(data: bytes) -> Iterator[bytes]:
    """The lines one after another, without newlines; not all at once, as 100,000 of them take memory."""
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start)
        stop = len(data) if stop < 0 else stop
        yield data[start:stop]
        start = stop + 1
