"""The retrieval bucket: what is kept on record of its objects, and uploads that an earlier attempt left there."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from clients.s3 import ObjectStore, Part
from clients.state import Retrieved, State
from domain.checksum import composite
from domain.retention import is_worth_renewing, may_be_renewed


class RetrievalBucket:
    """One bucket and its records in the state bucket."""

    def __init__(self, *, objects: ObjectStore, bucket: str, state: State, retention: timedelta) -> None:
        self._objects, self._bucket, self._state, self._retention = objects, bucket, state, retention

    async def expect(
        self, pid: str, key: str, size: int, chunk_bytes: int, digests: Sequence[bytes], *, bagged: bool = True
    ) -> None:
        """Put on record what an object has to be, before it is completed.

        Args:
            pid: its dataset.
            key: its key.
            size: in bytes.
            chunk_bytes: size of its parts but for the last.
            digests: raw sha256 of its parts.
            bagged: whether it is a bag of ours, or a single file.
        """
        await self._state.put_retrieved(
            Retrieved(
                pid=pid,
                key=key,
                size=size,
                chunk_bytes=chunk_bytes,
                digest=composite(digests).hex(),
                bagged=bagged,
                keep_until=datetime.now(UTC) + self._retention,
            )
        )

    async def intact(self, key: str) -> bool:
        """Whether the object lies there with the digest that is on record for it; if so it is kept for longer.

        One whose time is over does not count: the sweep may be about to remove it.
        """
        record = await self._state.retrieved(key)
        now = datetime.now(UTC)
        if record is None or not may_be_renewed(record.keep_until, now):
            return False
        # The retention is renewed before the look: the sweep reads the record again just before it deletes.
        await self._state.put_retrieved(record.model_copy(update={"keep_until": now + self._retention}))
        head = await self._objects.head(self._bucket, key)
        return head is not None and head.size == record.size and head.composite_sha256 == record.composite

    async def promised(self, key: str) -> Retrieved | None:
        """The record of an object to which a link is given out now: its time begins anew.

        Even if it was over: nothing is removed that a running job has yet to give out.
        """
        record = await self._state.retrieved(key)
        keep_until = datetime.now(UTC) + self._retention
        if record is not None and is_worth_renewing(record.keep_until, keep_until):
            await self._state.put_retrieved(record.model_copy(update={"keep_until": keep_until}))
        return record

    async def upload(self, key: str) -> tuple[str, dict[int, Part]]:
        """The upload that an earlier attempt left, and its parts, or a new one; those of no use are aborted."""
        found: tuple[str, dict[int, Part]] | None = None
        for upload in reversed(await self._objects.open_uploads(self._bucket, key, [key])):
            if upload.key != key:
                continue
            there = None if found else await self._objects.list_parts(self._bucket, key, upload.upload_id)
            if there is None:
                await self._objects.abort_multipart(self._bucket, key, upload.upload_id)
            else:
                found = upload.upload_id, there
        return found or (await self._objects.create_multipart(self._bucket, key), {})
