"""Where the bytes of a file on a share in front of tape are: what the tape system shows in the file's own attributes.

Two signs are read. A mark says that a copy is on tape: the sticky bit, or an extended attribute such as StoRM's
`user.storm.migrated`. Too few blocks for the size say that the bytes are not on disk: what is left is a stub.
"""

import errno
import os
import stat
from collections.abc import Callable

from clients.lts.protocol import Locality

Residency = Callable[[int, os.stat_result], Locality]
"""From an open file (also one opened with `O_PATH`) and its attributes to its locality; raises `OSError` only."""

_BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's own block is (POSIX `<sys/stat.h>`, Linux `stat(2)`)."""


def residency(rule: str) -> Residency:
    """The residency test of a name: `sticky`, `blocks` or `xattr:<attribute>`."""
    kind, _, attribute = rule.partition(":")
    if kind == "xattr" and attribute:
        return marked_by_attribute(attribute)
    return {"sticky": by_sticky_bit, "blocks": by_blocks}[rule]


def by_sticky_bit(_: int, found: os.stat_result) -> Locality:
    """The sticky bit is set as long as the copy on tape is good."""
    return _locality(on_tape=bool(found.st_mode & stat.S_ISVTX), on_disk=_is_whole(found))


def by_blocks(_: int, found: os.stat_result) -> Locality:
    """Nothing marks a file on tape but that its bytes are gone: one that is on both counts as on disk only."""
    on_disk = _is_whole(found)
    return _locality(on_tape=not on_disk, on_disk=on_disk)


def marked_by_attribute(name: str) -> Residency:
    """The extended attribute exists as long as the copy on tape is good."""

    def by_attribute(file: int, found: os.stat_result) -> Locality:
        try:
            # By this name also a file that is opened with O_PATH has attributes.
            os.getxattr(f"/proc/self/fd/{file}", name)
            marked = True
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            marked = False
        return _locality(on_tape=marked, on_disk=_is_whole(found))

    return by_attribute


def _is_whole(found: os.stat_result) -> bool:
    return found.st_blocks * _BLOCK_BYTES >= found.st_size


def _locality(*, on_tape: bool, on_disk: bool) -> Locality:
    if on_disk:
        return Locality.DISK_AND_TAPE if on_tape else Locality.DISK
    # Not on disk and not marked: bytes are missing, and nobody says that they are elsewhere.
    return Locality.TAPE if on_tape else Locality.UNAVAILABLE
