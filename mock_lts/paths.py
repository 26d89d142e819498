"""Names of files: what is accepted, and when two spellings mean the same file."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

MAX_PATH_BYTES = 2048
MAX_SEGMENT_BYTES = 255


class BadPath(ValueError):
    """The path cannot name a file here; the message says why."""


def checked(path: str) -> str:
    """A relative, normal path, returned as it came.

    Raises:
        BadPath: It is empty, absolute, too long, has an empty, `.` or `..` segment, a backslash or a control character.
    """
    if not path:
        raise BadPath("the path is empty")
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char == "\\" for char in path):
        raise BadPath("the path has a control character or a backslash")
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise BadPath("the path is not valid Unicode") from error
    if len(encoded) > MAX_PATH_BYTES:
        raise BadPath(f"the path is longer than {MAX_PATH_BYTES} bytes")
    for segment in encoded.split(b"/"):
        if segment in (b"", b".", b".."):
            raise BadPath("the path is absolute or has an empty, '.' or '..' segment")
        if len(segment) > MAX_SEGMENT_BYTES:
            raise BadPath(f"a segment is longer than {MAX_SEGMENT_BYTES} bytes")
    return path


def collapsed(path: str) -> str:
    """The same name without double, leading and trailing slashes (Tape REST v1: servers must collapse them)."""
    return re.sub(r"/{2,}", "/", path).strip("/")


def from_url(raw_path: bytes, prefix: str) -> str:
    """The file's name behind `prefix` in a URL, percent-decoded strictly.

    Raises:
        BadPath: It is not UTF-8 or not an acceptable name.
    """
    try:
        decoded = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPath("the path is not UTF-8") from error
    return checked(decoded.removeprefix(prefix))
