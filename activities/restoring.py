"""Restoring single files: range reads from a datablock, without reading the rest of it."""

from datetime import timedelta
from typing import Any

from temporalio import activity

from activities.copying import Buffers, copy_member
from activities.manifests import Manifests
from activities.progress import Bookmark, in_thread
from activities.retrieval import CopiedBlock, CopyBlock
from activities.retrieval_bucket import RetrievalBucket
from clients import telemetry
from clients.lts.protocol import FileAbsent, LongTermStore, Nearline
from clients.s3 import ObjectStore
from clients.s3_bulk import BulkObjects, PartRefused, UploadVanished
from clients.state import State
from domain import metrics, names
from domain.checksum import b64, composite
from domain.datablock import chunk_bytes_for
from domain.errors import Damaged, Incomplete, ObjectStoreUnavailable
from domain.manifest import Manifest, ManifestMember


class RestoringActivities:
    """Holds the LTS, the retrieval bucket and the state bucket."""

    def __init__(
        self,
        *,
        store: LongTermStore,
        objects: ObjectStore,
        bulk: BulkObjects,
        retrieval_bucket: str,
        retention: timedelta,
        state: State,
        manifests: Manifests,
        buffers: int,
    ) -> None:
        self._store, self._objects, self._bulk, self._state = store, objects, bulk, state
        self._bucket, self._manifests, self._buffers = retrieval_bucket, manifests, buffers
        self._delivered = RetrievalBucket(objects=objects, bucket=retrieval_bucket, state=state, retention=retention)

    @activity.defn
    async def restore_files(self, order: CopyBlock) -> CopiedBlock:
        """Copy the files that a job names out of one datablock; each is compared with its digest."""
        entry: dict[str, Any] = (await self._state.get_list(order.blocks_key))[order.position]
        archive_id = str(entry["archive_id"])
        total = sum(int(file["size"]) for file in entry["files"])
        bookmark = Bookmark(order.position + 1, total)
        try:
            manifest = await self._manifests.of(entry, order.position + 1)
            held = {member.path: member for member in manifest.members}
            for file in entry["files"]:
                member = held.get(str(file["path"]))
                if member is None:
                    raise Incomplete(f"{file['path']!r} is not in {archive_id}, although SciCat says so")
                await self._restore(entry["pid"], manifest, member, bookmark)
        except Nearline:
            return CopiedBlock(nearline=True)
        except FileAbsent:
            raise Damaged(f"{archive_id} is not on the LTS") from None
        telemetry.count(metrics.DATABLOCKS, outcome="restored")
        return CopiedBlock(bytes=total)

    async def _restore(self, pid: str, manifest: Manifest, member: ManifestMember, bookmark: Bookmark) -> None:
        key = names.restored_key(pid, member.path)
        chunk_bytes = chunk_bytes_for(member.size)
        digests: list[bytes] = []
        if member.size:
            # One that a killed worker left is filled anew, part by part: its digests are not known before it is read.
            upload_id, _ = await self._delivered.upload(key)
            try:
                buffers = Buffers(1, member.size)
                parts = await in_thread(
                    lambda: copy_member(
                        self._store,
                        manifest,
                        member,
                        chunk_bytes,
                        objects=self._bulk,
                        bucket=self._bucket,
                        key=key,
                        upload_id=upload_id,
                        buffers=buffers,
                        bookmark=bookmark,
                    ),
                    bookmark,
                )
                digests = [part.sha256 for part in parts]
                await self._delivered.expect(pid, key, member.size, chunk_bytes, digests)
                await self._objects.complete_multipart(
                    self._bucket,
                    key,
                    upload_id,
                    [(part.number, part.etag, b64(part.sha256)) for part in parts],
                    b64(composite(digests)),
                )
            except PartRefused as error:
                raise Damaged(f"{key}: other bytes arrived in the retrieval bucket than were sent ({error})") from error
            except UploadVanished as error:
                raise ObjectStoreUnavailable(f"the upload of {key} vanished and is begun again ({error})") from error
            finally:
                # A completed upload is unknown by then; any other is of no use, since the file is read anew.
                await self._objects.abort_multipart(self._bucket, key, upload_id)
        else:
            await self._delivered.expect(pid, key, 0, chunk_bytes, [])
            await self._objects.put(self._bucket, key, b"")
