"""Files as the catalogue registers them, as the landing zone holds them, and as a datablock packs them."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from domain.errors import UnsafePath

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_YEAR = datetime(1, 1, 1, tzinfo=UTC)
_LAST_YEAR_END = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_NANOSECONDS = 1_000_000_000

MAX_SEGMENT_BYTES = 255
DEFAULT_MODE = 0o644


@dataclass(frozen=True, slots=True)
class RegisteredFile:
    """An entry of an original datablock's `dataFileList`, still with the path as registered."""

    path: str
    size: int
    time: str = ""
    perm: str = ""
    uid: str = ""
    gid: str = ""
    digest: str = ""
    """Hex in either case, empty if the entry has none."""
    algorithm: str = ""
    """The original datablock's `chkAlg`, as written there."""

    @property
    def regular(self) -> bool:
        """Whether the entry is a file with content of its own, by the permission text that Go prints.

        Go's `fs.FileMode` puts letters for the type first: d folder, L link, D device, p pipe, S socket, c char device.
        """
        return not any(letter in "dLDpSc" for letter in self.perm.strip()[:-9])


@dataclass(frozen=True, slots=True)
class LandedObject:
    """One object version below a dataset's prefix in the landing zone."""

    path: str
    """Relative to `raw_files/`."""
    size: int
    etag: str
    """Without quotes."""
    last_modified: datetime
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a datablock: everything that decides its bytes in the tar, and where they come from."""

    path: str
    size: int
    etag: str
    mtime_ns: int
    """Nanoseconds since 1970-01-01 UTC."""
    mode: int = DEFAULT_MODE
    uid: str = ""
    gid: str = ""
    """As registered: a number, a name, or empty."""
    version_id: str | None = None
    """The landing zone's version that is read; not part of the block digest."""
    expected_digest: str = ""
    expected_algorithm: str = ""
    """What the original datablock announces, empty if nothing or an algorithm that hashlib does not know."""


def check_path(path: str) -> str:
    """Return the path if it is relative and tame.

    Raises:
        UnsafePath: absolute, empty, climbing, with control characters, or with a segment of more than 255 bytes.
    """
    shown = repr(path if len(path) <= 200 else path[:200] + "…")
    if not path or path.startswith("/"):
        raise UnsafePath(f"the file name {shown} is empty or absolute; names are relative to the dataset's folder")
    # Printable text has neither and is known to be so much faster.
    if not path.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        raise UnsafePath(f"the file name {shown} has control characters; rename the file")
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            raise UnsafePath(
                f"the file name {shown} has an empty or climbing segment; it has to lie within the dataset's folder"
            )
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise UnsafePath(f"the file name {shown} has a segment of more than {MAX_SEGMENT_BYTES} bytes; rename it")
    return path


def parse_mode(perm: str) -> int:
    """The nine permission bits of a text such as `-rw-r--r--` or `0644`; 0644 for what cannot be read.

    Set-user-id, set-group-id and sticky fall away: a catalogue entry is no reason to restore them.
    """
    text = perm.strip().removeprefix("0o")
    if re.fullmatch("[0-7]{3,6}", text):
        return int(text, 8) & 0o777
    letters = re.fullmatch("[A-Za-z?-]*((?:[r-][w-][xsStT-]){3})", text)
    if letters is None:
        return DEFAULT_MODE
    return sum(1 << (8 - position) for position, letter in enumerate(letters[1]) if letter in "rwxst")


def parse_time(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 text, to the microsecond, UTC if it names no zone.

    None for what cannot be read or lies outside the years 1 to 9999 in UTC, in which it could not be written.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not _FIRST_YEAR <= moment <= _LAST_YEAR_END:
        return None
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def whole_seconds(moment: datetime) -> int:
    """Nanoseconds since 1970 of a time that names its zone, cut to the second: S3's Last-Modified as mtime."""
    return (moment - _EPOCH) // timedelta(seconds=1) * _NANOSECONDS


def format_time(mtime_ns: int) -> str:
    """RFC 3339 in UTC, with as many digits after the second as are needed."""
    seconds, fraction = divmod(mtime_ns, _NANOSECONDS)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{(_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()}{digits}Z"
