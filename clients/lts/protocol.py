"""What the archiver asks of a long-term store (LTS), whatever stands behind it.

Control calls are coroutines. The two calls that move bulk bytes, `write` and `read_range`, block: they are made from
threads, since a socket that fills or drains a buffer in a thread costs a third of the CPU of any asyncio client
(`docs/explanations/decisions/0002-data-plane.md`).

Errors, for every method: `TapeUnavailable` for whatever may pass (no answer, 5xx), `Busy` for 429 and for 503 with
`Retry-After`, `NoSpace` for 507, `TooLarge` for 413, `Misconfigured` for refused credentials; an error knows for how
long the store has asked to wait. Only those that a caller must tell apart are named at the method.
Every method may be called twice with the same arguments without harm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Locality(StrEnum):
    """Where a file's bytes are, in the words of the WLCG Tape REST API v1."""

    DISK = "DISK"
    TAPE = "TAPE"
    DISK_AND_TAPE = "DISK_AND_TAPE"
    LOST = "LOST"
    NONE = "NONE"
    UNAVAILABLE = "UNAVAILABLE"

    @property
    def on_tape(self) -> bool:
        """Whether a copy is on tape."""
        return self in (Locality.TAPE, Locality.DISK_AND_TAPE)

    @property
    def on_disk(self) -> bool:
        """Whether the bytes can be read now."""
        return self in (Locality.DISK, Locality.DISK_AND_TAPE)


@dataclass(frozen=True, slots=True)
class FileStat:
    """A complete file on the LTS; `locality` is None where the store has no tape."""

    size_bytes: int
    locality: Locality | None = None


class UploadGone(Exception):
    """The upload id is unknown to the store: expired, aborted, or finished and forgotten (tus 404, 410)."""


class OffsetMismatch(Exception):
    """The store stands at another offset than the write assumed (tus 409): ask `write_offset`."""


class ChunkRefused(Exception):
    """The store received other bytes than were sent (tus 460); nothing of them counts."""


class Nearline(Exception):
    """The bytes are on tape only; a recall has to bring them to disk first."""


class FileAbsent(Exception):
    """No complete file at that path."""


class WriteOnce(Exception):
    """The store does not delete (WORM), or has a file at that path already and does not overwrite."""


@runtime_checkable
class LongTermStore(Protocol):
    """Files that are written once, front to back, appear whole, and are read by range."""

    async def open_write(self, path: str, size_bytes: int) -> str:
        """Begin a file of exactly `size_bytes` and return the upload's id; nothing shows at `path` yet.

        Raises:
            WriteOnce: there is a file at `path`, and the store does not overwrite.
        """
        ...

    async def write_offset(self, upload_id: str, synced: int = 0) -> int:
        """Where the write goes on: bytes that need not be sent again; the size itself once the file is finished.

        Args:
            upload_id: from `open_write`.
            synced: bytes that are known to have been written when `sync` last returned. A store that cannot vouch for
                more, as a file system after a power cut, goes back to them; one that acknowledges only what is durable
                need not look at them.

        Raises:
            UploadGone: the store does not know the upload.
        """
        ...

    def write(self, upload_id: str, offset: int, data: memoryview, sha256: bytes) -> None:
        """Append `data` (at most 16 MiB) at `offset`. Blocks.

        The raw digest is for stores that can check a chunk on arrival; all of them are read back in the end. A store
        may take bytes again that it has already, since they are the same.

        Raises:
            UploadGone, OffsetMismatch, ChunkRefused.
            WriteOnce: only now the store says that it has a file at the path.
        """
        ...

    def sync(self, upload_id: str) -> None:
        """Make durable what `write` has taken, before the caller notes how far it is. Blocks.

        What a store cannot make durable yet, its `write_offset` must not count.

        Raises:
            UploadGone: the store does not know the upload.
        """
        ...

    async def finish(self, upload_id: str, path: str, size_bytes: int) -> None:
        """Make sure that the file stands at `path` with its full size, atomically and durably.

        Raises:
            TapeUnavailable: it does not.
            Damaged: it has another size.
        """
        ...

    async def abort(self, upload_id: str) -> None:
        """Forget an unfinished upload and its bytes; an unknown one is fine."""
        ...

    async def stat(self, path: str) -> FileStat | None:
        """Size and locality of the complete file at `path`, None if there is none."""
        ...

    def read_range(self, path: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on. Blocks.

        Raises:
            Nearline, FileAbsent.
            Damaged: the file is shorter.
        """
        ...

    async def delete(self, path: str) -> None:
        """Remove the file; an absent one is fine.

        Raises:
            WriteOnce: the store keeps what it has.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class RecallState(StrEnum):
    """How far one file of a recall has come."""

    WAITING = "waiting"
    ONLINE = "online"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Recalled:
    """One file of a recall; `error` is the store's own text."""

    path: str
    state: RecallState
    error: str | None = None


class RecallGone(Exception):
    """The store does not know the recall's id (any more)."""


@runtime_checkable
class NearlineStore(Protocol):
    """The powers of a store whose files may be on tape only."""

    async def localities(self, paths: Sequence[str]) -> dict[str, Locality]:
        """Where each file is now; absent files are left out."""
        ...

    async def request_recall(self, paths: Sequence[str], pin_lifetime: timedelta) -> str:
        """Ask for all `paths` (at most 200) to be brought to disk and pinned there; return the recall's id."""
        ...

    async def recall_state(self, recall_id: str, paths: Sequence[str] = ()) -> list[Recalled]:
        """The state of every file of a recall; with its `paths`, also of those that the answer leaves out.

        Without paths it is what the store has on record, which may be nothing.

        Raises:
            RecallGone: the store does not know the id.
        """
        ...

    async def release(self, recall_id: str, paths: Sequence[str]) -> None:
        """Give the pins of these paths back; unknown ids and paths are fine."""
        ...

    async def cancel(self, recall_id: str) -> None:
        """Withdraw a recall and its pins; an unknown one is fine."""
        ...


@runtime_checkable
class Listable(Protocol):
    """A store that can name its files."""

    async def list(self, prefix: str, *, after: str = "", limit: int | None = None) -> dict[str, int]:
        """Path → size in bytes of complete files below the folder `prefix`, in the order of their paths.

        Args:
            prefix: the folder.
            after: only files whose paths sort behind this one; folders that have none are not opened.
            limit: at most so many. Whoever wants all of a large store asks again, after the last one.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """Capacity in bytes, by RFC 4331's meaning."""

    available_bytes: int
    used_bytes: int


@runtime_checkable
class Space(Protocol):
    """A store that knows how much room it has."""

    async def space(self) -> SpaceReport:
        """Room left and used."""
        ...
