"""Steps on the LTS for an archive: open, write, verify, wait until it is on tape, and undo."""

import asyncio
import time
from concurrent.futures import Executor
from contextlib import suppress
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.copying import Buffers, TarWriter, verify_tar
from activities.progress import Bookmark, Stopped, in_thread, moved_before, not_yet
from activities.reading import RangeReader
from clients import telemetry
from clients.lts.protocol import (
    ChunkRefused,
    FileAbsent,
    Locality,
    LongTermStore,
    Nearline,
    NearlineStore,
    OffsetMismatch,
    RecallGone,
    RecallState,
    Space,
    UploadGone,
    WriteOnce,
)
from clients.s3_bulk import BulkObjects
from clients.s3_small import SmallObjects
from clients.state import State
from domain import metrics, names
from domain.bitmap import Bitmap
from domain.errors import Busy, Damaged, InfrastructureError, NoSpace, TapeUnavailable, TooLarge
from domain.manifest import Journal, Manifest, dump_manifest, dump_segment
from domain.message import Message
from domain.outcome import bounded
from domain.packing import Packer
from domain.tarstream import Layout

JOURNAL_CHUNKS = 32
JOURNAL_S = 30.0


class BlockRef(Message):
    """Names one datablock of a plan."""

    pid: str
    plan_digest: str
    index: int
    generation: int = 0


class Patience(BlockRef):
    """A step that writes to the LTS, which may take nothing for now."""

    refused_since: str = ""
    """RFC 3339: when the LTS began to refuse; the step then waits until it takes something. Empty: it only tells."""
    told_s: float = 0
    """The LTS has asked to wait so long before it is asked again."""
    poll_initial_s: float = 1
    poll_longest_s: float = 300


class Refusal(Message):
    """The LTS takes nothing for now."""

    no_space: bool
    """Otherwise it is busy."""
    reason: str
    told_s: float = 0

    def since(self, when: str) -> str:
        """What is waited for, for people."""
        return f"{'space on the LTS' if self.no_space else 'the LTS, which is busy,'} since {when} ({self.reason})"


class OpenBlock(Patience):
    """Open a datablock for writing."""

    free_space_percentage: float = 0
    """What has to be free of the LTS before a datablock is begun."""
    afresh: bool = False
    """Nobody has begun to write it yet."""


class OpenedBlock(Message):
    """A datablock that can be written, or that stands on the LTS already, or that is refused for now."""

    archive_id: str
    tar_bytes: int
    upload_id: str = ""
    """Empty: the file is there with its full size."""
    verified: bool = False
    """Read back and matched by an earlier run."""
    refused: Refusal | None = None


class WriteBlock(Patience):
    """Write a datablock into an opened upload, or rebuild the manifest of one that is there."""

    upload_id: str = ""


class WrittenBlock(Message):
    """How a write ended: finished, or its upload was gone and it has to be opened again."""

    finished: bool
    refused: Refusal | None = None
    """What was written so far stands."""


class VerifyBlock(BlockRef):
    """Read a datablock back."""

    archive_id: str = ""
    """What it is called, where that is known already."""


class VerifiedBlock(Message):
    """What reading back found."""

    nearline: bool = False
    """The bytes are on tape only: recall them, then verify."""
    damage: str = ""
    """A sentence naming datablock, chunks, byte ranges and members; empty if all bytes match."""
    on_tape: bool = False
    """It is on tape as well, so that nobody has to wait for that."""


class AwaitTape(Message):
    """Wait until the LTS says that at least one of the datablocks is on tape, or lost."""

    pid: str
    plan_digest: str
    indices: Bitmap
    generations: dict[int, int] = {}
    poll_initial_s: float
    poll_longest_s: float


class Taped(Message):
    """News of a migration."""

    on_tape: Bitmap = Bitmap()
    lost: Bitmap = Bitmap()
    """Gone from the cache before they were on tape."""


class AwaitEvicted(BlockRef):
    """Wait until a datablock that is on tape is nowhere else."""

    poll_initial_s: float
    poll_longest_s: float


class RecallBlock(BlockRef):
    """Bring a datablock back to the LTS's disk, for verification."""

    pin_lifetime_s: float


class RecalledBlock(Message):
    """A recall of one datablock."""

    archive_id: str
    recall_id: str


class AwaitRecalled(RecalledBlock):
    """Wait until the recalled datablock can be read."""

    poll_initial_s: float
    poll_longest_s: float


class UndoBlocks(Message):
    """Take datablocks of a plan off the LTS: abort their uploads, delete their files."""

    pid: str
    plan_digest: str
    indices: tuple[int, ...]
    generations: dict[int, int] = {}
    uploads: tuple[str, ...] = ()


class RemoveFiles(Message):
    """Remove the files that a list in the state bucket names."""

    pid: str
    key: str


class TapeActivities:
    """Holds the LTS, the landing zone's bulk readers and the state bucket."""

    def __init__(
        self,
        *,
        store: LongTermStore,
        objects: BulkObjects,
        small: SmallObjects,
        landing_bucket: str,
        state: State,
        readers: Executor,
        buffers: int,
    ) -> None:
        self._store, self._objects, self._small, self._bucket = store, objects, small, landing_bucket
        self._state, self._readers, self._buffers = state, readers, buffers

    @activity.defn
    async def open_block(self, order: OpenBlock) -> OpenedBlock:
        """Open an upload for a datablock; one that is on the LTS with its full size is taken as it is.

        Running twice leaves an upload that nobody uses; it ends by the LTS's expiry.
        """
        _mind_what_was_told(order)
        try:
            return await self._open(order)
        except InfrastructureError as error:
            return OpenedBlock(archive_id="", tar_bytes=0, refused=_refusal(order, error))

    async def _open(self, order: OpenBlock) -> OpenedBlock:
        block = await self._state.block(order.pid, order.plan_digest, order.index, order.generation)
        layout = await asyncio.to_thread(Layout, block)
        there = await self._store.stat(block.archive_id)
        if there and there.size_bytes == layout.tar_bytes:
            verified = await self._state.is_verified(order.pid, order.plan_digest, block.stem)
            return OpenedBlock(archive_id=block.archive_id, tar_bytes=layout.tar_bytes, verified=verified)
        await self._mind_free_space(order.free_space_percentage)
        try:
            upload_id = await self._store.open_write(block.archive_id, layout.tar_bytes)
        except WriteOnce:
            raise TapeUnavailable(
                f"{block.archive_id} stands on the LTS with another size than the plan's {layout.tar_bytes}, and the "
                "LTS does not overwrite; take that file away, or give the archive up"
            ) from None
        if not order.afresh:
            await self._state.drop_journal(order.pid, order.plan_digest, block.stem)
        return OpenedBlock(archive_id=block.archive_id, tar_bytes=layout.tar_bytes, upload_id=upload_id)

    async def _mind_free_space(self, percentage: float) -> None:
        """Leave some room on the LTS to others; a store that does not say how much there is decides for itself."""
        if not percentage or not isinstance(self._store, Space):
            return
        try:
            space = await self._store.space()
        except TapeUnavailable as error:
            activity.logger.warning("the free space of the LTS is unknown: %s", error)
            return
        free = 100 * space.available_bytes / max(1, space.available_bytes + space.used_bytes)
        if free < percentage:
            raise NoSpace(f"{free:.1f} % of the LTS is free, less than the {percentage:g} % that are to stay free")

    @activity.defn
    async def write_block(self, order: WriteBlock) -> WrittenBlock:
        """Stream one datablock to the LTS, going on where the LTS and the journal say that it stands."""
        _mind_what_was_told(order)
        try:
            return await self._write(order)
        except InfrastructureError as error:
            return WrittenBlock(finished=False, refused=_refusal(order, error))

    async def _write(self, order: WriteBlock) -> WrittenBlock:
        block = await self._state.block(order.pid, order.plan_digest, order.index, order.generation, pinned=True)
        layout = await asyncio.to_thread(Layout, block)
        known = await self._state.journal(order.pid, order.plan_digest, block.stem)
        synced = min(len(known.chunks) * layout.chunk_bytes, layout.tar_bytes)
        acknowledged = await self._acknowledged(order.upload_id, block.archive_id, layout.tar_bytes, synced)
        if acknowledged is None:
            return WrittenBlock(finished=False)
        if acknowledged == layout.tar_bytes and await self._state.manifest(order.pid, order.plan_digest, block.stem):
            if order.upload_id:
                # The manifest may be an earlier write's, and this one's file not in its place yet.
                await self._store.finish(order.upload_id, block.archive_id, layout.tar_bytes)
            return WrittenBlock(finished=True)
        bookmark = Bookmark(order.index, layout.tar_bytes)
        packer = await self._resume(order, layout, known, acknowledged)
        journal = _JournalKeeper(self._state, self._store, order, packer, asyncio.get_running_loop())
        writer = TarWriter(
            packer,
            source=RangeReader(
                self._bucket,
                large=self._objects,
                small=self._small,
                threads=self._readers,
                loop=asyncio.get_running_loop(),
            ),
            store=self._store,
            upload_id=order.upload_id,
            acknowledged=acknowledged,
            buffers=Buffers(self._buffers, layout.tar_bytes),
            bookmark=bookmark,
            checkpoint=journal.checkpoint,
        )

        def write() -> None:
            try:
                writer.run()
            except (Stopped, InfrastructureError):
                # Whoever goes on from here need not read again what was digested and acknowledged.
                with suppress(InfrastructureError):
                    journal.flush()
                raise

        try:
            await in_thread(write, bookmark)
        except UploadGone:
            return WrittenBlock(finished=False)
        except WriteOnce:
            raise TapeUnavailable(
                f"{block.archive_id} appeared on the LTS while it was written; it is looked at anew"
            ) from None
        except (OffsetMismatch, ChunkRefused) as error:
            raise TapeUnavailable(
                f"the LTS did not take a chunk of {block.archive_id} ({type(error).__name__}); the write goes on from "
                "the last one that it acknowledged"
            ) from error
        if order.upload_id:
            await self._store.finish(order.upload_id, block.archive_id, layout.tar_bytes)
        data = await asyncio.to_thread(dump_manifest, layout, packer.chunks, packer.members)
        await self._state.put_manifest(order.pid, order.plan_digest, block.stem, data)
        if known.chunks or journal.put:
            await self._state.drop_journal(order.pid, order.plan_digest, block.stem)
        telemetry.count(metrics.DATABLOCKS, outcome="written")
        return WrittenBlock(finished=True)

    async def _resume(self, order: WriteBlock, layout: Layout, journal: Journal, acknowledged: int) -> Packer:
        """The digests as far as the journal and the LTS agree; what the LTS has not acknowledged does not count."""
        stem = layout.plan.stem
        whole = len(journal.chunks) if acknowledged == layout.tar_bytes else acknowledged // layout.chunk_bytes
        chunks = journal.chunks[:whole]
        members = journal.members[: _ended(layout, len(chunks))]
        if len(chunks) < len(journal.chunks):
            # The LTS went back behind its word; segments would not follow on one another any more.
            await self._state.drop_journal(order.pid, order.plan_digest, stem)
            segment = dump_segment(0, chunks, 0, members)
            await self._state.put_segment(order.pid, order.plan_digest, stem, 0, segment)
        return Packer(layout, chunks, members)

    async def _acknowledged(self, upload_id: str, archive_id: str, tar_bytes: int, synced: int) -> int | None:
        """Bytes that stand on the LTS, None if neither the upload nor the file is there."""
        if upload_id:
            try:
                return await self._store.write_offset(upload_id, synced)
            except UploadGone:
                pass
        there = await self._store.stat(archive_id)
        return tar_bytes if there and there.size_bytes == tar_bytes else None

    @activity.defn
    async def verify_block(self, order: VerifyBlock) -> VerifiedBlock:
        """Read every byte back from the LTS, compare with the manifest, and mark what matches."""
        archive_id = order.archive_id or await self._state.archive_id(
            order.pid, order.plan_digest, order.index, order.generation
        )
        manifest = await self._state.manifest(order.pid, order.plan_digest, names.stem_of(archive_id))
        if manifest is None:
            raise TapeUnavailable(f"the manifest of {archive_id} is gone; the datablock has to be read anew")
        bookmark = Bookmark(order.index, manifest.tar_bytes)
        # What has matched need not be read again when a worker had to leave in the midst of it.
        first = moved_before().chunks
        bookmark.resume(first, min(first * manifest.chunk_bytes, manifest.tar_bytes))
        buffers = Buffers(self._buffers, manifest.tar_bytes)
        try:
            damaged = await in_thread(
                lambda: verify_tar(
                    self._store,
                    manifest.archive_id,
                    manifest.tar_bytes,
                    manifest.chunk_bytes,
                    manifest.chunks,
                    buffers,
                    bookmark,
                    first,
                ),
                bookmark,
            )
        except Nearline:
            return VerifiedBlock(nearline=True)
        except FileAbsent:
            telemetry.count(metrics.VERIFICATION_FAILURES, step="verify_block")
            return VerifiedBlock(damage=f"{archive_id} is not on the LTS any more")
        if damaged:
            telemetry.count(metrics.VERIFICATION_FAILURES, step="verify_block")
            return VerifiedBlock(damage=_describe(manifest, [(found.offset, found.length) for found in damaged]))
        await self._state.mark_verified(order.pid, order.plan_digest, names.stem_of(archive_id))
        telemetry.count(metrics.DATABLOCKS, outcome="verified")
        return VerifiedBlock(on_tape=await self._is_on_tape(archive_id))

    async def _is_on_tape(self, archive_id: str) -> bool:
        """A first look, which small datablocks need not be asked about again after; nothing hangs on its answer."""
        if not isinstance(self._store, NearlineStore):
            return True
        try:
            locality = (await self._store.localities([archive_id])).get(archive_id, Locality.LOST)
        except InfrastructureError as error:
            activity.logger.info("where %s lies is asked for later: %s", archive_id, error)
            return False
        return locality.on_tape

    @activity.defn
    async def await_tape(self, order: AwaitTape) -> Taped:
        """Return the datablocks that are on tape, or lost; while there are none, fail with `NotYet`, holding nothing.

        Those of which the LTS knows nothing are lost.
        """
        if not isinstance(self._store, NearlineStore):
            return Taped(on_tape=order.indices)
        plan = await self._state.plan(order.pid, order.plan_digest)
        paths = {index: plan.archive_id(index, order.generations.get(index, 0)) for index in order.indices.numbers}
        localities = await self._store.localities(list(paths.values()))
        found = {index: localities.get(path, Locality.LOST) for index, path in paths.items()}
        on_tape = [index for index, locality in found.items() if locality.on_tape]
        lost = [index for index, locality in found.items() if locality is Locality.LOST]
        if on_tape or lost:
            return Taped(on_tape=Bitmap.of(on_tape), lost=Bitmap.of(lost))
        index, locality = next(iter(found.items()))
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise not_yet(
            f"{paths[index]} is {locality.value}, not on tape yet{more}",
            initial_s=order.poll_initial_s,
            longest_s=order.poll_longest_s,
        )

    @activity.defn
    async def loosen_block(self, order: BlockRef) -> None:
        """Tell the LTS that nobody needs the copy in its cache; it decides when that goes.

        The Tape REST API has no word for it but a release, and only what was asked for can be released.
        """
        if not isinstance(self._store, NearlineStore):
            return
        archive_id = await self._state.archive_id(order.pid, order.plan_digest, order.index, order.generation)
        recall_id = await self._store.request_recall([archive_id], timedelta(seconds=1))
        await self._store.release(recall_id, [archive_id])
        await self._store.cancel(recall_id)

    @activity.defn
    async def await_evicted(self, order: AwaitEvicted) -> None:
        """Return once the datablock is on tape only; until then fail with `NotYet`, holding nothing."""
        if not isinstance(self._store, NearlineStore):
            return
        archive_id = await self._state.archive_id(order.pid, order.plan_digest, order.index, order.generation)
        locality = (await self._store.localities([archive_id])).get(archive_id, Locality.LOST)
        if locality is Locality.LOST:
            raise ApplicationError(f"the LTS has lost {archive_id}", type=Damaged.__name__, non_retryable=True)
        if locality is not Locality.TAPE:
            raise not_yet(
                f"{archive_id} is {locality.value}: it is read back from tape as soon as it has left the cache",
                initial_s=order.poll_initial_s,
                longest_s=order.poll_longest_s,
            )

    @activity.defn
    async def recall_block(self, order: RecallBlock) -> RecalledBlock:
        """Request one datablock; running twice leaves a request whose pin ends with its lifetime."""
        archive_id = await self._state.archive_id(order.pid, order.plan_digest, order.index, order.generation)
        store = self._nearline()
        recall_id = await store.request_recall([archive_id], timedelta(seconds=order.pin_lifetime_s))
        return RecalledBlock(archive_id=archive_id, recall_id=recall_id)

    @activity.defn
    async def await_recalled(self, order: AwaitRecalled) -> None:
        """Return once the datablock can be read; until then fail with `NotYet`, holding nothing."""
        there = await self._store.stat(order.archive_id)
        if there is None:
            raise ApplicationError(f"{order.archive_id} is not on the LTS", type=Damaged.__name__, non_retryable=True)
        if there.locality is None or there.locality.on_disk:
            return
        try:
            states = await self._nearline().recall_state(order.recall_id, [order.archive_id])
        except RecallGone:
            states = []
        if any(found.state is RecallState.ONLINE for found in states):
            # It came after the first look.
            return
        if not any(found.state is RecallState.WAITING for found in states):
            text = "; ".join(found.error or found.state.value for found in states) or "the LTS forgot the request"
            raise ApplicationError(
                f"the recall of {order.archive_id} failed: {text}", type=TapeUnavailable.__name__, non_retryable=True
            )
        raise not_yet(
            f"{order.archive_id} is still on tape", initial_s=order.poll_initial_s, longest_s=order.poll_longest_s
        )

    @activity.defn
    async def release_block(self, order: RecalledBlock) -> None:
        """Give the pin back; an unknown one is fine."""
        store = self._nearline()
        await store.release(order.recall_id, [order.archive_id])
        await store.cancel(order.recall_id)

    def _nearline(self) -> NearlineStore:
        assert isinstance(self._store, NearlineStore)  # noqa: S101 - only such a store has nearline files
        return self._store

    @activity.defn
    async def undo_blocks(self, order: UndoBlocks) -> None:
        """Leave nothing of these datablocks on the LTS; what a write-once store keeps is listed under `orphans/`."""
        for upload_id in order.uploads:
            await self._store.abort(upload_id)
        final = None
        if await self._state.is_committed(order.pid, order.plan_digest):
            final = await self._state.committed_generations(order.pid, order.plan_digest)
        plan = await self._state.plan(order.pid, order.plan_digest)
        for index in order.indices:
            for generation in range(order.generations.get(index, 0) + 1):
                archive_id = plan.archive_id(index, generation)
                if final is not None and generation == final.get(index, 0):
                    # A mark that means nothing was withdrawn when the dataset was planned.
                    activity.logger.warning("dataset %s is archived: %s stays on the LTS", order.pid, archive_id)
                elif await self._remove(order.pid, archive_id):
                    await self._state.forget_block(order.pid, order.plan_digest, names.stem_of(archive_id))

    @activity.defn
    async def remove_files(self, order: RemoveFiles) -> None:
        """Take superseded datablocks off the LTS."""
        for archive_id in await self._state.get_list(order.key):
            await self._remove(order.pid, str(archive_id))

    async def _remove(self, pid: str, archive_id: str) -> bool:
        try:
            await self._store.delete(archive_id)
        except WriteOnce:
            await self._state.put_json(names.orphan_key(archive_id), {"pid": pid, "archive_id": archive_id})
            return False
        return True


def _mind_what_was_told(order: Patience) -> None:
    """Begin a wait as the LTS has told us to: by not asking.

    Raises:
        ApplicationError: of type `NotYet`.
    """
    if order.refused_since and order.told_s and activity.info().attempt == 1:
        raise not_yet(
            f"asked to wait for {order.told_s:g} s by the LTS, which refuses since {order.refused_since}",
            initial_s=order.told_s,
            longest_s=order.told_s,
            told_s=order.told_s,
        )


def _refusal(order: Patience, error: InfrastructureError) -> Refusal:
    """What a step that does not wait tells of an LTS that has no room or is busy; one that waits goes on waiting.

    Raises:
        ApplicationError: `NotYet` in a step that waits; final when something else is wrong, which is not to be waited
            for without end.
        InfrastructureError: something else is wrong in a step that does not wait.
    """
    if isinstance(error, NoSpace | Busy) and not isinstance(error, TooLarge):
        refusal = Refusal(
            no_space=isinstance(error, NoSpace), reason=bounded(str(error))[:500], told_s=error.retry_after_s
        )
        if not order.refused_since:
            return refusal
        raise not_yet(
            refusal.since(order.refused_since),
            initial_s=order.poll_initial_s,
            longest_s=order.poll_longest_s,
            told_s=refusal.told_s,
        ) from error
    if order.refused_since:
        raise ApplicationError(bounded(str(error)), type=type(error).__name__, non_retryable=True) from error
    raise error


class _JournalKeeper:
    """Puts a journal segment every 32 chunks, every 30 s, and when the copy stops; called from the copy's thread."""

    def __init__(
        self, state: State, store: LongTermStore, ref: WriteBlock, packer: Packer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._state, self._store, self._ref, self._packer, self._loop = state, store, ref, packer, loop
        self._chunks: int = len(packer.chunks)
        self._written = self._chunks
        self._members = len(packer.members)
        self._last = time.monotonic()
        self.put = False
        """Whether there is a segment of this write."""

    def checkpoint(self, written: int) -> None:
        """Put a segment if one is due; `written` leading chunks are digested and acknowledged."""
        self._written = written
        fresh = written - self._chunks
        if fresh >= JOURNAL_CHUNKS or (fresh and time.monotonic() - self._last >= JOURNAL_S):
            self.flush()

    def flush(self) -> None:
        """Put a segment with what is new; members that end behind the last written chunk come with a later one."""
        if self._written == self._chunks:
            return
        packer, first = self._packer, self._chunks
        if self._ref.upload_id:
            # A journal must never be ahead of what a power cut leaves.
            self._store.sync(self._ref.upload_id)
        ended = min(_ended(packer.layout, self._written), len(packer.members))
        data = dump_segment(
            first, packer.chunks[first : self._written], self._members, packer.members[self._members : ended]
        )
        put = self._state.put_segment(self._ref.pid, self._ref.plan_digest, packer.layout.plan.stem, first, data)
        self.put = True
        asyncio.run_coroutine_threadsafe(put, self._loop).result()
        self._chunks, self._members, self._last = self._written, ended, time.monotonic()


def _ended(layout: Layout, chunks: int) -> int:
    """How many leading members have all their content within the first `chunks` chunks."""
    return layout.members_before(chunks * layout.chunk_bytes)


def _describe(manifest: Manifest, ranges: list[tuple[int, int]]) -> str:
    """Name the damaged ranges of a datablock and the members that they hit."""
    shown = ", ".join(
        f"chunk {offset // manifest.chunk_bytes} (bytes {offset} to {offset + size})" for offset, size in ranges[:5]
    )
    hit = [
        member.path
        for member in manifest.members
        if any(member.offset < offset + size and offset < member.offset + member.size for offset, size in ranges)
    ]
    more = f" and {len(hit) - 5} more" if len(hit) > 5 else ""
    return (
        f"{manifest.archive_id}: {len(ranges)} chunks read back differ from what was written: {shown}; "
        f"files hit: {', '.join(hit[:5])}{more}"
    )
