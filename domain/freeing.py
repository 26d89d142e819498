"""Which versions of a landing-zone object may go once its dataset is archived: nothing newer is ever lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Version(Protocol):
    """One version of an object, or a delete marker."""

    @property
    def key(self) -> str:
        """Full key."""
        ...

    @property
    def version_id(self) -> str:
        """S3's version id, `null` in an unversioned bucket."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def etag(self) -> str:
        """Without quotes."""
        ...

    @property
    def delete_marker(self) -> bool:
        """Whether this is a delete marker."""
        ...


@dataclass(frozen=True, slots=True)
class Archived:
    """What was archived of an object."""

    size: int
    etag: str
    version_id: str | None
    """None where the landing zone keeps no versions."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one key: (key, version id) pairs to delete, first `older`, then `last`."""

    key: str
    older: tuple[tuple[str, str], ...] = ()
    last: tuple[tuple[str, str], ...] = ()
    bytes: int = 0
    """Archived bytes that are freed."""
    leftover: bool = False
    """Something stays: a newer version, or an object that was not archived."""
    etag: str = ""


def decide(key: str, versions: Sequence[Version], archived: Archived | None, *, by_content: bool = False) -> Decision:
    """Decide on one key; `versions` are all of it, the newest first, as S3 lists them.

    The archived version goes last, so that a crash in between leaves it whole; what is newer than it always stays. A
    delete marker goes only when no version is left.

    Args:
        key: the object.
        versions: its versions and delete markers.
        archived: what the plan archived of it, None for a key that stands in no plan.
        by_content: take every version with the archived size and ETag for the archived one, and touch no other.
    """
    contents = [v for v in versions if not v.delete_marker]
    markers = [v for v in versions if v.delete_marker]
    if archived is None:
        return Decision(key, leftover=bool(contents))
    if by_content:
        going = [v for v in contents if (v.size, v.etag) == (archived.size, archived.etag)]
    else:
        position = next((n for n, v in enumerate(contents) if _is(v, archived)), None)
        going = [] if position is None else contents[position:]
    staying = len(contents) - len(going)
    if not contents:
        return Decision(key, last=tuple((key, v.version_id) for v in markers))
    last = [v for v in going if _is(v, archived)] if not by_content else going
    older = [v for v in going if v not in last]
    ending = last + (markers if not staying else [])
    return Decision(
        key,
        older=tuple((key, v.version_id) for v in older),
        last=tuple((key, v.version_id) for v in ending),
        bytes=sum(v.size for v in last),
        leftover=bool(staying),
        etag=archived.etag,
    )


def _is(version: Version, archived: Archived) -> bool:
    if archived.version_id is None:
        return (version.size, version.etag) == (archived.size, archived.etag)
    return version.version_id == archived.version_id
