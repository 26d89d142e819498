"""Steps of a retrieval: what is missing, recall it, copy it into the retrieval bucket, give the pins back."""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client

from activities.copying import Buffers, Part, deliver_tar
from activities.manifests import Manifests
from activities.progress import Bookmark, in_thread, not_yet
from activities.retrieval_bucket import RetrievalBucket
from activities.running import is_running
from clients import telemetry
from clients.lts.protocol import FileAbsent, LongTermStore, Nearline, NearlineStore, RecallGone, RecallState
from clients.s3 import ObjectStore
from clients.s3_bulk import BulkObjects, PartRefused, UploadVanished
from clients.scicat import Catalogue, Datablock, Dataset
from clients.state import State, StateIndex
from domain import metrics, names
from domain.bitmap import Bitmap
from domain.checksum import b64, composite
from domain.datablock import FORMAT
from domain.errors import BeingArchived, Damaged, Incomplete, NotArchived, ObjectStoreUnavailable
from domain.files import check_path
from domain.message import Message
from domain.names import stem_of
from domain.orders import FilesOf
from domain.pid import check_pid
from domain.planning import regular_files, relative_path, uncovered

RECALL_BATCH = 200
"""Paths of one recall request, as FTS does it; dCache refuses more than 500."""

FAILURES_TOLD = 100
"""Datablocks of which one poll says why they do not come; the next one tells of others."""


class LookRetrieval(Message):
    """Look at a dataset before its retrieval."""

    pid: str
    files_of: FilesOf | None = None
    """Only the files that this job names."""


class LookedRetrieval(Message):
    """The datablocks to deliver."""

    owner_group: str
    blocks_key: str
    """State key of the list of datablocks."""
    blocks: int
    total_bytes: int
    missing: Bitmap
    """Positions in that list that are not in the retrieval bucket intact."""


class RequestRecall(Message):
    """Ask the LTS for datablocks, at most `RECALL_BATCH`."""

    blocks_key: str
    positions: Bitmap
    pin_lifetime_s: float


class RequestedRecall(Message):
    """The recall's id; empty where the store has no tape."""

    recall_id: str = ""


class AwaitRecall(Message):
    """Wait until at least one of the datablocks can be read, or will not come."""

    blocks_key: str
    recalls: dict[str, Bitmap]
    """Recall id → positions still waited for."""
    poll_initial_s: float
    poll_longest_s: float


class Arrived(Message):
    """News of a recall."""

    online: Bitmap = Bitmap()
    failed: dict[int, str] = {}
    """Position → what the LTS says."""
    forgotten: tuple[str, ...] = ()
    """Recall ids that the LTS does not know any more."""


class CopyBlock(Message):
    """Copy one datablock into the retrieval bucket."""

    blocks_key: str
    position: int


class CopiedBlock(Message):
    """How a copy ended."""

    nearline: bool = False
    """Its pin ran out before it was read: recall it again."""
    bytes: int = 0


class ReleaseRecall(Message):
    """Give pins back."""

    blocks_key: str
    recall_id: str
    positions: Bitmap
    withdraw: bool = False
    """The recall is over: what has not come yet is not wanted any more."""


class NameBlocks(Message):
    """Name datablocks, a few."""

    blocks_key: str
    positions: tuple[int, ...]


class BlockNames(Message):
    """What people know datablocks by."""

    archive_ids: tuple[str, ...]


class RetrievalActivities:
    """Holds catalogue, LTS, retrieval bucket and the Temporal client."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        store: LongTermStore,
        objects: ObjectStore,
        bulk: BulkObjects,
        retrieval_bucket: str,
        retention: timedelta,
        state: State,
        client: Client,
        manifests: Manifests,
        buffers: int,
    ) -> None:
        self._catalogue, self._store, self._objects, self._bulk = catalogue, store, objects, bulk
        self._bucket, self._state, self._client = retrieval_bucket, state, client
        self._delivered = RetrievalBucket(objects=objects, bucket=retrieval_bucket, state=state, retention=retention)
        self._manifests, self._buffers = manifests, buffers

    @activity.defn
    async def look_retrieval(self, order: LookRetrieval) -> LookedRetrieval:
        """Tell which datablocks have to be fetched; intact ones in the retrieval bucket are kept for longer.

        Raises:
            BeingArchived, NotArchived, Incomplete, UnsafePath, UnknownDataset, NoAccess.
        """
        check_pid(order.pid)
        dataset = await self._catalogue.dataset(order.pid)
        life = dataset.lifecycle
        blocks = await self._catalogue.datablocks(order.pid)
        index = await self._state.index(order.pid)
        plans = {index.manifests.get(stem_of(block.archive_id), "") for block in blocks}
        if not plans & index.committed and await is_running(self._client, names.archive_workflow(order.pid)):
            raise BeingArchived(f"dataset {order.pid} is being archived; retrieve it when that has finished")
        if not life.retrievable or not blocks:
            raise NotArchived(f"dataset {order.pid} is not marked retrievable or has no datablocks")
        for block in blocks:
            names.check_archive_id(order.pid, block.archive_id)
        registered = await self._catalogue.original_files(order.pid)
        expected = regular_files(registered, dataset.source_folder).values()
        absent = uncovered(expected, (entry for block in blocks for entry in block.files))
        if absent:
            raise Incomplete(
                f"{len(absent)} registered files of dataset {order.pid} are in no datablock, e.g. {absent[0]!r}; "
                "nothing was recalled"
            )
        blocks.sort(key=lambda block: block.archive_id)
        if order.files_of:
            return await self._look_for_files(order, order.files_of, dataset, blocks, index)
        listed = [self._entry(order.pid, block, index) for block in blocks]
        key = names.datablocks_key(order.pid)
        await self._state.put_json(key, listed)
        intact = await asyncio.gather(*(self._delivered.intact(entry["archive_id"]) for entry in listed))
        return LookedRetrieval(
            owner_group=dataset.owner_group,
            blocks_key=key,
            blocks=len(blocks),
            total_bytes=sum(block.packed_size for block in blocks),
            missing=Bitmap.of(position for position, there in enumerate(intact) if not there),
        )

    async def _look_for_files(
        self, order: LookRetrieval, files_of: FilesOf, dataset: Dataset, blocks: list[Datablock], index: StateIndex
    ) -> LookedRetrieval:
        """Which datablocks hold the files that a job names."""
        listed = (await self._state.get_list(names.job_datasets_key(files_of.job_id)))[files_of.n]
        wanted = {check_path(relative_path(str(path), dataset.source_folder)) for path in listed["files"]}
        entries: list[dict[str, Any]] = []
        total = 0
        for block in blocks:
            held = [file for file in block.files if file.path in wanted]
            if held:
                files = [{"path": file.path, "size": file.size} for file in held]
                entries.append(self._entry(order.pid, block, index) | {"files": files})
                total += sum(file.size for file in held)
                wanted -= {file.path for file in held}
        if wanted:
            raise Incomplete(f"{len(wanted)} of the files asked for are in no datablock, e.g. {min(wanted)!r}")
        key = names.restore_list_key(files_of.job_id, files_of.n)
        await self._state.put_json(key, entries)
        return LookedRetrieval(
            owner_group=dataset.owner_group,
            blocks_key=key,
            blocks=len(entries),
            total_bytes=total,
            missing=Bitmap.of(range(len(entries))),
        )

    @staticmethod
    def _entry(pid: str, block: Datablock, index: StateIndex) -> dict[str, Any]:
        return {
            "pid": pid,
            "archive_id": block.archive_id,
            "packed_size": block.packed_size,
            "plan_digest": index.manifests.get(stem_of(block.archive_id), ""),
            "bagged": block.version == FORMAT,
        }

    @activity.defn
    async def request_recall(self, order: RequestRecall) -> RequestedRecall:
        """Ask for many at once, so that the library can fetch them in tape order; what is on disk is pinned at once.

        Running twice leaves a request that nobody polls; its pins end with their lifetime.
        """
        if not isinstance(self._store, NearlineStore):
            return RequestedRecall()
        paths = await self._paths(order.blocks_key, order.positions)
        recall_id = await self._store.request_recall(list(paths.values()), timedelta(seconds=order.pin_lifetime_s))
        return RequestedRecall(recall_id=recall_id)

    async def _paths(self, blocks_key: str, positions: Bitmap) -> dict[int, str]:
        listed = await self._state.get_list(blocks_key)
        return {position: str(listed[position]["archive_id"]) for position in positions.numbers}

    @activity.defn
    async def await_recall(self, order: AwaitRecall) -> Arrived:
        """Return the next datablocks that came or failed; while there are none, `NotYet`."""
        assert isinstance(self._store, NearlineStore)  # noqa: S101 - only such a store has recalls
        online: list[int] = []
        failed: dict[int, str] = {}
        forgotten: list[str] = []
        for recall_id, positions in order.recalls.items():
            try:
                # As long as nothing has moved nobody needs the list, which a thousand waits would read all the time.
                at_once = await self._store.recall_state(recall_id)
                if at_once and all(found.state is RecallState.WAITING for found in at_once):
                    continue
                paths = await self._paths(order.blocks_key, positions)
                states = {found.path: found for found in await self._store.recall_state(recall_id, [*paths.values()])}
            except RecallGone:
                forgotten.append(recall_id)
                continue
            for position, path in paths.items():
                found = states.get(path)
                if found is None or found.state is RecallState.WAITING:
                    continue
                if found.state is RecallState.ONLINE:
                    online.append(position)
                elif len(failed) < FAILURES_TOLD:
                    failed[position] = (found.error or f"the LTS says {found.state.value}")[:200]
        if not online and not failed and not forgotten:
            raise not_yet(
                f"{sum(map(len, order.recalls.values()))} datablocks are still on tape",
                initial_s=order.poll_initial_s,
                longest_s=order.poll_longest_s,
            )
        return Arrived(online=Bitmap.of(online), failed=failed, forgotten=tuple(forgotten))

    @activity.defn
    async def name_blocks(self, order: NameBlocks) -> BlockNames:
        """Look up what the datablocks at these positions are called."""
        paths = await self._paths(order.blocks_key, Bitmap.of(order.positions))
        return BlockNames(archive_ids=tuple(paths[position] for position in order.positions))

    @activity.defn
    async def copy_block(self, order: CopyBlock) -> CopiedBlock:
        """Copy a datablock part by part; what an earlier attempt delivered stays, and S3 checks every digest."""
        entry: dict[str, Any] = (await self._state.get_list(order.blocks_key))[order.position]
        archive_id = str(entry["archive_id"])
        try:
            known = await self._manifests.digests(entry, order.position + 1)
            size, chunk_bytes, digests = known.tar_bytes, known.chunk_bytes, list(known.chunks)
            # Asked before the record is written anew, which would hide that its time was over.
            there = await self._delivered.intact(archive_id)
            await self._delivered.expect(entry["pid"], archive_id, size, chunk_bytes, digests, bagged=entry["bagged"])
            if not (there and await self._delivered.intact(archive_id)):
                await self._deliver(archive_id, order.position, size, chunk_bytes, digests)
        except Nearline:
            return CopiedBlock(nearline=True)
        except FileAbsent:
            raise Damaged(f"{archive_id} is not on the LTS") from None
        except PartRefused as error:
            raise Damaged(f"{archive_id}: what came from the LTS is not what was archived ({error})") from error
        except UploadVanished as error:
            raise ObjectStoreUnavailable(f"the upload of {archive_id} vanished and is begun again ({error})") from error
        if not await self._delivered.intact(archive_id):
            raise Damaged(f"{archive_id} lies in the retrieval bucket with another digest than it was archived with")
        telemetry.count(metrics.DATABLOCKS, outcome="delivered")
        return CopiedBlock(bytes=size)

    async def _deliver(self, archive_id: str, position: int, size: int, chunk_bytes: int, digests: list[bytes]) -> None:
        upload_id, there = await self._delivered.upload(archive_id)
        kept = [
            Part(number, part.etag, digests[number - 1])
            for number, part in there.items()
            if number <= len(digests) and part.sha256_b64 == b64(digests[number - 1])
        ]
        held = {part.number for part in kept}
        missing = [chunk for chunk in range(len(digests)) if chunk + 1 not in held]
        bookmark = Bookmark(position + 1, size)
        bookmark.moved(size - sum(min(chunk_bytes, size - chunk * chunk_bytes) for chunk in missing))
        buffers = Buffers(self._buffers, size)
        sent = await in_thread(
            lambda: deliver_tar(
                self._store,
                archive_id,
                size,
                chunk_bytes,
                digests,
                missing=missing,
                objects=self._bulk,
                bucket=self._bucket,
                upload_id=upload_id,
                buffers=buffers,
                bookmark=bookmark,
            ),
            bookmark,
        )
        parts = sorted([*kept, *sent], key=lambda part: part.number)
        await self._objects.complete_multipart(
            self._bucket,
            archive_id,
            upload_id,
            [(part.number, part.etag, b64(part.sha256)) for part in parts],
            b64(composite(digests)),
        )

    @activity.defn
    async def release_recall(self, order: ReleaseRecall) -> None:
        """Give pins back; unknown ids and paths are fine.

        Deleting a request need not free what it has brought already (Tape REST v1 leaves it open), releasing does.
        """
        if not isinstance(self._store, NearlineStore):
            return
        paths = await self._paths(order.blocks_key, order.positions)
        if paths:
            await self._store.release(order.recall_id, list(paths.values()))
        if order.withdraw:
            await self._store.cancel(order.recall_id)
