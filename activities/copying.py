"""Bulk bytes on their way, in threads: landing zone → tar → LTS, LTS → digest, LTS → parts of an object.

Everything here blocks and knows neither Temporal nor asyncio. Memory is bounded by construction: a copy owns a fixed
number of buffers of one unit (16 MiB) each, and a unit that has no buffer is not read.
"""

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from activities.progress import Bookmark
from activities.reading import RangeReader
from clients import telemetry
from clients.lts.protocol import LongTermStore
from clients.s3_bulk import BulkObjects, PartRefused
from clients.s3_wire import ObjectChanged, Range
from clients.telemetry import Threads
from domain import names
from domain.checksum import b64
from domain.datablock import UNIT_BYTES
from domain.errors import ChangedWhileArchiving, Damaged
from domain.manifest import Manifest, ManifestMember
from domain.metrics import Flow
from domain.packing import Packer, Unit, units

USEFUL_BUFFERS = 4
"""One being sent, one being digested, two being filled. More gains nothing."""

RANGES = 3
"""Ranges of one datablock that are read from the LTS at a time. More gains nothing."""


def buffers_per_copy(budget_bytes: int, copies: int) -> int:
    """Buffers that each of so many copies at a time may own, so that all of them stay within the budget."""
    return max(1, min(USEFUL_BUFFERS, budget_bytes // UNIT_BYTES // max(copies, 1)))


class Buffers:
    """All the memory that one copy moves its bytes through: a fixed number of buffers of one unit."""

    def __init__(self, count: int, tar_bytes: int) -> None:
        """Make the buffers; a small tar has small ones, and none that it would not fill."""
        self.count = count = max(1, min(count, -(-tar_bytes // UNIT_BYTES)))
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(bytearray(min(UNIT_BYTES, tar_bytes)))

    def take(self) -> bytearray:
        """Wait for a free buffer."""
        return self._free.get()

    def give(self, buffer: bytearray) -> None:
        """Return a buffer."""
        self._free.put(buffer)

    @contextmanager
    def lend(self) -> Generator[bytearray]:
        """A buffer for the length of a block."""
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give(buffer)


@dataclass(slots=True)
class _Reading:
    unit: Unit
    buffer: bytearray
    reads: list[Future[None]]


@dataclass(slots=True)
class _Sending:
    reading: _Reading
    digest: bytes
    write: Future[None] | None = None


class TarWriter:
    """Writes one datablock: reads ahead, digests in order, sends, and reports finished chunks."""

    def __init__(
        self,
        packer: Packer,
        *,
        source: RangeReader,
        store: LongTermStore,
        upload_id: str,
        acknowledged: int,
        buffers: Buffers,
        bookmark: Bookmark,
        checkpoint: Callable[[int], None],
    ) -> None:
        """Prepare to write what is not there yet.

        Args:
            packer: where the digests stand, from the journal.
            source: the landing zone.
            store: the LTS.
            upload_id: the opened upload.
            buffers: as many units are read ahead as there are buffers left over from the one being sent.
            acknowledged: bytes that stand on the LTS already; read again for their digests, not sent again.
            bookmark: counts bytes and says when to stop.
            checkpoint: called with the number of leading chunks that are digested and acknowledged.
        """
        self._packer, self._source, self._store = packer, source, store
        self._upload_id, self._acknowledged = upload_id, acknowledged
        self._bookmark, self._checkpoint = bookmark, checkpoint
        self._buffers = buffers

    def run(self) -> None:
        """Write the datablock to its end.

        Raises:
            Stopped: told so by the bookmark.
            ChangedWhileArchiving: a planned version is gone.
            DigestMismatch: a member is not what its original datablock announces.
            UploadGone, OffsetMismatch, ChunkRefused: of the store.
        """
        self._absorb_head()
        layout = self._packer.layout
        self._bookmark.moved(self._packer.resume_offset)
        coming = units(layout.tar_bytes, layout.chunk_bytes, len(self._packer.chunks))
        reading: deque[_Reading] = deque()
        sending: _Sending | None = None
        with Threads(1, thread_name_prefix="lts-write") as sender:
            try:
                while True:
                    free = self._buffers.count - len(reading) - bool(sending)
                    reading.extend(self._read(unit) for unit in islice(coming, free))
                    if not reading:
                        if sending is None:
                            return
                        done, sending = sending, None
                        self._sent(done)
                        continue
                    self._demand(reading[0].reads)
                    current = reading.popleft()
                    # Digested while its predecessor is on its way; written in order, one after another.
                    view = memoryview(current.buffer)[: current.unit.length]
                    following = _Sending(current, self._packer.seal(current.unit, view))
                    if sending:
                        done, sending = sending, following
                        self._sent(done)
                    sending = following
                    sending.write = sender.submit(self._send, sending)
            finally:
                for abandoned in reading:
                    self._release(abandoned)
                if sending:
                    self._release(sending.reading, sending.write)

    def _sent(self, sending: _Sending) -> None:
        """Wait until a unit is acknowledged, give its buffer back, and count it."""
        try:
            if sending.write:
                sending.write.result()
        finally:
            self._release(sending.reading, sending.write)
        unit = sending.reading.unit
        if unit.last_of_chunk:
            self._checkpoint(unit.chunk + 1)
        self._bookmark.moved(unit.length)

    def _release(self, reading: _Reading, write: Future[None] | None = None) -> None:
        for read in reading.reads:
            read.cancel()
        wait([*reading.reads, *([write] if write else [])])
        self._buffers.give(reading.buffer)

    def _send(self, sending: _Sending) -> None:
        unit, digest = sending.reading.unit, sending.digest
        view = memoryview(sending.reading.buffer)[: unit.length]
        known = self._acknowledged - unit.offset
        if known >= unit.length:
            return
        if known > 0:
            view = view[known:]
            digest = hashlib.sha256(view).digest()
        with telemetry.moving(Flow.LTS_WRITTEN, len(view)):
            self._store.write(self._upload_id, unit.offset + max(known, 0), view, digest)

    def _read(self, unit: Unit) -> _Reading:
        """Start reading every member's run of a unit into one buffer."""
        buffer = self._buffers.take()
        view = memoryview(buffer)
        layout = self._packer.layout
        reads = self._source.start(
            self._range(piece.member, piece.start, view[begin : begin + piece.length])
            for piece in layout.reads(unit.offset, unit.length)
            for begin in (piece.offset - unit.offset,)
        )
        return _Reading(unit, buffer, reads)

    def _range(self, index: int, start: int, into: memoryview) -> Range:
        plan = self._packer.layout.plan
        member = plan.members[index]
        return Range(names.raw_key(plan.pid, member.path), member.version_id, member.etag, start, into)

    def _demand(self, reads: Iterable[Future[None]]) -> None:
        """Wait until these reads have ended well."""
        try:
            for read in reads:
                read.result()
        except ObjectChanged as changed:
            path = changed.key.removeprefix(names.raw_prefix(self._packer.layout.plan.pid))
            raise ChangedWhileArchiving(
                f"{path!r} was changed or deleted while it was archived; the planned version is gone. "
                "Nothing was freed; submit the archive job again"
            ) from None

    def _absorb_head(self) -> None:
        """Read again what the current member had before the journal's end, for its digest alone."""
        index, length = self._packer.unread_head
        with self._buffers.lend() as buffer:
            view = memoryview(buffer)
            for start in range(0, length, UNIT_BYTES):
                run = view[: min(UNIT_BYTES, length - start)]
                self._demand(self._source.start([self._range(index, start, run)]))
                self._packer.absorb(run)
                self._bookmark.check()


@dataclass(frozen=True, slots=True)
class DamagedChunk:
    """A chunk whose bytes on the LTS are not those that were written."""

    chunk: int
    offset: int
    length: int


def verify_tar(
    store: LongTermStore,
    path: str,
    tar_bytes: int,
    chunk_bytes: int,
    digests: Sequence[bytes],
    buffers: Buffers,
    bookmark: Bookmark,
    first: int = 0,
) -> list[DamagedChunk]:
    """Read every byte back, several ranges at a time, and compare chunk by chunk; return what does not match.

    The chunks before `first` have matched already.

    Raises:
        Nearline, FileAbsent: of the store.
        Stopped: told so by the bookmark.
    """
    damaged: list[DamagedChunk] = []

    def check(chunk: int, buffer: bytearray) -> None:
        digest = hashlib.sha256()
        for unit in _chunk_units(chunk, tar_bytes, chunk_bytes):
            view = memoryview(buffer)[: unit.length]
            _read(store, path, unit.offset, view)
            digest.update(view)
            if unit.last_of_chunk:
                judge(chunk, digest.digest())
            bookmark.moved(unit.length)

    def judge(chunk: int, digest: bytes) -> None:
        if digest == digests[chunk]:
            bookmark.finished(chunk)
        else:
            offset = chunk * chunk_bytes
            damaged.append(DamagedChunk(chunk, offset, min(chunk_bytes, tar_bytes - offset)))

    _side_by_side(range(first, len(digests)), check, buffers, bookmark)
    return sorted(damaged, key=lambda found: found.chunk)


def digest_tar(
    store: LongTermStore, path: str, tar_bytes: int, chunk_bytes: int, buffers: Buffers, bookmark: Bookmark
) -> list[bytes]:
    """The chunk digests of a file on the LTS that no manifest describes; it is read once.

    Raises:
        Nearline, FileAbsent: of the store.
        Stopped: told so by the bookmark.
    """
    found: dict[int, bytes] = {}

    def digest(chunk: int, buffer: bytearray) -> None:
        running = hashlib.sha256()
        for unit in _chunk_units(chunk, tar_bytes, chunk_bytes):
            view = memoryview(buffer)[: unit.length]
            _read(store, path, unit.offset, view)
            running.update(view)
            bookmark.moved(unit.length)
        found[chunk] = running.digest()

    _side_by_side(range(-(-tar_bytes // chunk_bytes)), digest, buffers, bookmark)
    return [found[chunk] for chunk in sorted(found)]


def read_through(
    store: LongTermStore,
    path: str,
    size: int,
    take: Callable[[memoryview], None],
    buffers: Buffers,
    bookmark: Bookmark,
) -> None:
    """Read a file from the LTS front to back, reading ahead, and hand it over run by run.

    Raises:
        Nearline, FileAbsent: of the store.
        Stopped: told so by the bookmark.
    """
    coming = iter(range(0, size, UNIT_BYTES))
    reading: deque[tuple[bytearray, memoryview, Future[None]]] = deque()
    with Threads(buffers.count, thread_name_prefix="lts-read") as pool:
        try:
            while True:
                while len(reading) < buffers.count and (offset := next(coming, None)) is not None:
                    buffer = buffers.take()
                    view = memoryview(buffer)[: min(UNIT_BYTES, size - offset)]
                    reading.append((buffer, view, pool.submit(_read, store, path, offset, view)))
                if not reading:
                    return
                buffer, view, read = reading.popleft()
                try:
                    read.result()
                    take(view)
                finally:
                    buffers.give(buffer)
                bookmark.moved(len(view))
        finally:
            for buffer, _, read in reading:
                read.cancel()
                wait([read])
                buffers.give(buffer)


@dataclass(frozen=True, slots=True)
class Part:
    """A delivered part."""

    number: int
    etag: str
    sha256: bytes


def deliver_tar(
    store: LongTermStore,
    path: str,
    tar_bytes: int,
    chunk_bytes: int,
    digests: Sequence[bytes],
    *,
    missing: Sequence[int],
    objects: BulkObjects,
    bucket: str,
    upload_id: str,
    buffers: Buffers,
    bookmark: Bookmark,
) -> list[Part]:
    """Copy the chunks `missing` from the LTS into parts of an open multipart upload; S3 checks each part's digest.

    Raises:
        Nearline, FileAbsent: of the store.
        Damaged: the bytes are not those of the digest.
        UploadVanished: the multipart upload is gone.
        Stopped: told so by the bookmark.
    """
    parts: list[Part] = []

    def deliver(chunk: int, buffer: bytearray) -> None:
        def body() -> Iterator[memoryview]:
            for unit in _chunk_units(chunk, tar_bytes, chunk_bytes):
                view = memoryview(buffer)[: unit.length]
                _read(store, path, unit.offset, view)
                yield view

        offset = chunk * chunk_bytes
        size = min(chunk_bytes, tar_bytes - offset)
        try:
            with telemetry.moving(Flow.S3_WRITTEN, size):
                etag = objects.upload_part(bucket, path, upload_id, chunk + 1, size, body(), b64(digests[chunk]))
        except PartRefused:
            raise Damaged(
                f"{path}: chunk {chunk} (bytes {offset} to {offset + size}) came back from the LTS otherwise than it "
                "was archived; it was not delivered"
            ) from None
        parts.append(Part(chunk + 1, etag, digests[chunk]))
        bookmark.moved(size)

    _side_by_side(missing, deliver, buffers, bookmark)
    return parts


def copy_member(
    store: LongTermStore,
    manifest: Manifest,
    member: ManifestMember,
    chunk_bytes: int,
    *,
    objects: BulkObjects,
    bucket: str,
    key: str,
    upload_id: str,
    buffers: Buffers,
    bookmark: Bookmark,
) -> list[Part]:
    """Copy one file out of a datablock into parts of an open multipart upload, comparing it with its digest.

    A part larger than a unit is read twice, since S3 wants its digest first.

    Raises:
        Damaged: the bytes are not those that were archived.
        Nearline, FileAbsent: of the store.
        PartRefused, UploadVanished: of the object store.
        Stopped: told so by the bookmark.
    """
    whole = hashlib.new(manifest.algorithm)
    parts: list[Part] = []
    with buffers.lend() as buffer:

        def read(start: int, stop: int) -> Iterator[memoryview]:
            for offset in range(start, stop, UNIT_BYTES):
                view = memoryview(buffer)[: min(UNIT_BYTES, stop - offset)]
                _read(store, manifest.archive_id, member.offset + offset, view)
                yield view

        for number, start in enumerate(range(0, member.size, chunk_bytes), start=1):
            stop = min(start + chunk_bytes, member.size)
            part = hashlib.sha256()
            for view in read(start, stop):
                whole.update(view)
                part.update(view)
            body = [memoryview(buffer)[: stop - start]] if stop - start <= UNIT_BYTES else read(start, stop)
            with telemetry.moving(Flow.S3_WRITTEN, stop - start):
                etag = objects.upload_part(bucket, key, upload_id, number, stop - start, body, b64(part.digest()))
            parts.append(Part(number, etag, part.digest()))
            bookmark.moved(stop - start)
    if whole.hexdigest() != member.digest:
        raise Damaged(
            f"{member.path!r} in {manifest.archive_id} (bytes {member.offset} to {member.offset + member.size}) is not "
            "what was archived"
        )
    return parts


def _read(store: LongTermStore, path: str, offset: int, into: memoryview) -> None:
    """Fill a buffer from the LTS; whoever reads bulk bytes from there does so here."""
    with telemetry.moving(Flow.LTS_READ, len(into)):
        store.read_range(path, offset, into)


def _chunk_units(chunk: int, tar_bytes: int, chunk_bytes: int) -> Iterator[Unit]:
    return units(min(tar_bytes, (chunk + 1) * chunk_bytes), chunk_bytes, chunk)


def _side_by_side(
    chunks: Sequence[int], work: Callable[[int, bytearray], None], buffers: Buffers, bookmark: Bookmark
) -> None:
    """Do `work` on every chunk, one thread to a buffer; the first error ends all of them."""
    coming = iter(chunks)
    lock = threading.Lock()
    failed = threading.Event()

    def loop() -> None:
        with buffers.lend() as buffer:
            while not failed.is_set():
                with lock:
                    chunk = next(coming, None)
                if chunk is None:
                    return
                try:
                    bookmark.check()
                    work(chunk, buffer)
                except BaseException:
                    failed.set()
                    raise

    count = min(buffers.count, RANGES, len(chunks))
    if not count:
        return
    with Threads(count, thread_name_prefix="lts-read") as pool:
        for done in [pool.submit(loop) for _ in range(count)]:
            done.result()
