"""Steps on the landing zone: plan what a dataset consists of, and free what is safe."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client

from activities.progress import not_yet
from activities.running import tell_upload_freed, urls_until
from clients.s3 import ObjectStore, ObjectVersion
from clients.scicat import Catalogue
from clients.state import State
from domain import names
from domain.errors import Misconfigured
from domain.files import LandedObject
from domain.freeing import Archived, Decision, decide
from domain.message import Message
from domain.pid import check_pid
from domain.planfile import DatasetPlan, Marker
from domain.planning import BRIEF_FILES, NAMED, Matched, PackingRules, group, match

_DELETE_BATCH = 250
"""Keys that are decided on and deleted together."""

_DELETES_AT_ONCE = 4

_UNVERSIONED = "null"
"""S3's version id of what was written while its bucket kept no versions."""


class PlanDataset(Message):
    """Decide on the datablocks of a dataset."""

    pid: str
    target_bytes: int
    target_files: int
    smallest_chunk: int
    afresh: bool = False
    stale_marks: bool = False
    source_folder: str | None = None
    """All three as they were found by the look before; not asked for again."""


class PlannedDataset(Message):
    """A plan in the state bucket, and what a workflow has to know of it."""

    plan_digest: str
    blocks: int
    files: int
    payload_bytes: int
    unlisted: tuple[str, ...] = ()
    differing_in_case: tuple[str, ...] = ()

    @property
    def brief(self) -> bool:
        """Steps that loop over all its files take but a moment."""
        return self.files <= BRIEF_FILES


class FreeDataset(Message):
    """Delete from the landing zone what a committed plan archived."""

    pid: str
    plan_digest: str
    by_content: bool = False
    """Compare size and ETag instead of version ids: for a dataset that an earlier run archived."""


class Freed(Message):
    """What was deleted and what stays."""

    bytes: int = 0
    leftovers: tuple[str, ...] = ()
    leftover_count: int = 0


class LandingZoneActivities:
    """Holds the landing zone, the catalogue and the state bucket."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        objects: ObjectStore,
        landing_bucket: str,
        state: State,
        allow_unversioned: bool = False,
        url_lifetime: timedelta = timedelta(hours=1),
        client: Client,
    ) -> None:
        self._catalogue, self._objects, self._bucket, self._state = catalogue, objects, landing_bucket, state
        self._allow_unversioned, self._url_lifetime = allow_unversioned, url_lifetime
        self._client = client

    @activity.defn
    async def plan_dataset(self, order: PlanDataset) -> PlannedDataset:
        """Match the registered files with the landed ones, cut them into datablocks, and keep the plan.

        Raises:
            DatasetError: whatever `domain.planning` refuses.
            Misconfigured: the landing zone keeps no versions and nobody allowed that.
        """
        check_pid(order.pid)
        versioned = await self._versioned()
        source_folder = order.source_folder
        if source_folder is None:
            source_folder = (await self._catalogue.dataset(order.pid)).source_folder
        registered = await self._catalogue.original_files(order.pid)
        prefix = names.raw_prefix(order.pid)
        uploads = await self._objects.open_uploads(self._bucket, prefix)
        landed = [
            LandedObject(
                path=version.key.removeprefix(prefix),
                size=version.size,
                etag=version.etag,
                last_modified=version.last_modified,
                version_id=version.version_id if versioned else None,
            )
            async for version in self._objects.list_versions(self._bucket, prefix)
            if version.is_latest and not version.delete_marker
        ]
        matched = await asyncio.to_thread(
            match,
            registered,
            landed,
            source_folder=source_folder,
            open_uploads=[upload.key.removeprefix(prefix) for upload in uploads],
        )
        # A hundred thousand files are 15 MiB in each list; the plan needs neither.
        del registered, landed
        plan = await self._cut(order, matched)
        await self._state.put_plan(plan)
        if order.stale_marks:
            # The files are here, and none of the plan's datablocks in SciCat: it is not committed, whatever it was.
            await self._state.withdraw_commit(order.pid, plan.digest)
        return PlannedDataset(
            plan_digest=plan.digest,
            blocks=len(plan.blocks),
            files=sum(len(block.members) for block in plan.blocks),
            payload_bytes=sum(block.payload_bytes for block in plan.blocks),
            unlisted=plan.unlisted[:NAMED],
            differing_in_case=plan.differing_in_case[:NAMED],
        )

    async def _cut(self, order: PlanDataset, matched: Matched) -> DatasetPlan:
        """Cut the files into datablocks, as an existing plan did it if there is one for the same files."""
        existing = frozenset[str]() if order.afresh else (await self._state.index(order.pid)).plans
        settings = [*await self._state.chunk_settings(order.pid, existing), order.smallest_chunk]
        for smallest_chunk in settings:
            rules = PackingRules(order.target_bytes, order.target_files, smallest_chunk=smallest_chunk)
            plan = DatasetPlan(
                pid=order.pid,
                blocks=tuple(await asyncio.to_thread(group, order.pid, matched.members, rules)),
                smallest_chunk=smallest_chunk,
                unlisted=matched.unlisted,
                differing_in_case=matched.differing_in_case,
                markers=tuple(Marker(m.path, m.etag, m.version_id) for m in matched.folders),
            )
            if plan.digest in existing or smallest_chunk == settings[-1]:
                return plan
        raise AssertionError("the last setting always gives a plan")

    @activity.defn
    async def free_dataset(self, order: FreeDataset) -> Freed:
        """Delete the archived versions, older ones of the same key first; what is newer stays and is named.

        Called only after the commit point. May run any number of times: what is gone is gone. An upload that keeps room
        for the dataset hears of it.
        """
        plan = await self._state.plan(order.pid, order.plan_digest, pinned=True)
        prefix = names.raw_prefix(order.pid)
        archived = await asyncio.to_thread(_archived, plan, prefix)
        freed = Freed()
        try:
            async with asyncio.TaskGroup() as deletes:
                slots = asyncio.Semaphore(_DELETES_AT_ONCE)
                async for batch in self._decided(prefix, archived, by_content=order.by_content):
                    left = tuple(decision.key.removeprefix(prefix) for decision in batch if decision.leftover)
                    freed = Freed(
                        bytes=freed.bytes + sum(decision.bytes for decision in batch),
                        leftovers=(freed.leftovers + left)[:NAMED],
                        leftover_count=freed.leftover_count + len(left),
                    )
                    # Taken here, so that a long listing does not run ahead of what is deleted.
                    await slots.acquire()
                    deletes.create_task(self._delete(order.pid, batch)).add_done_callback(lambda _: slots.release())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        await tell_upload_freed(self._client, order.pid)
        return freed

    async def _decided(
        self, prefix: str, archived: Mapping[str, Archived], *, by_content: bool
    ) -> AsyncIterator[list[Decision]]:
        """What happens to every key below the prefix, in batches."""
        batch: list[Decision] = []
        async for key, versions in _by_key(self._objects.list_versions(self._bucket, prefix)):
            batch.append(decide(key, versions, archived.get(key), by_content=by_content))
            if len(batch) == _DELETE_BATCH:
                yield batch
                batch = []
        yield batch

    async def _delete(self, pid: str, batch: list[Decision]) -> None:
        """Delete a batch of keys: all that is older, then the archived versions and the delete markers."""
        older, last = [v for d in batch for v in d.older], [v for d in batch for v in d.last]
        # Whatever the bucket keeps today, a version with an id of its own is that one and no other.
        if any(version == _UNVERSIONED for _, version in older + last) and not await self._versioned():
            await self._delete_unversioned(pid, batch)
            return
        for versions in (older, last):
            if versions:
                await self._objects.delete_versions(self._bucket, versions)

    async def _delete_unversioned(self, pid: str, decided: list[Decision]) -> None:
        """Without versions a late PUT could be lost: wait until no URL can be in use, look again, one by one."""
        last_url = await urls_until(self._client, pid)
        for decision in decided:
            for key, _ in decision.last:
                head = await self._objects.head(self._bucket, key)
                if head is None:
                    continue
                from_then = head.last_modified + self._url_lifetime
                remaining = max(from_then, last_url or from_then) + timedelta(hours=1) - datetime.now(UTC)
                if remaining > timedelta():
                    raise not_yet(
                        f"the landing zone keeps no versions; {key} may be freed in {remaining}",
                        initial_s=60,
                        longest_s=3600,
                    )
                if head.etag == decision.etag:
                    await self._objects.delete_objects(self._bucket, [key])

    async def _versioned(self) -> bool:
        versioning = await self._objects.versioning(self._bucket)
        if versioning is None:
            raise Misconfigured(f"the landing zone bucket {self._bucket} does not exist; run `scopemarchiver setup`")
        if versioning != "Enabled" and not self._allow_unversioned:
            raise Misconfigured(
                f"the landing zone bucket {self._bucket} keeps no versions ({versioning}); enable versioning, or set "
                "ARCHIVER_ALLOW_UNVERSIONED"
            )
        return versioning == "Enabled"


def _archived(plan: DatasetPlan, prefix: str) -> dict[str, Archived]:
    """What a plan pins, by key."""
    return {
        prefix + member.path: Archived(member.size, member.etag, member.version_id)
        for block in plan.blocks
        for member in block.members
    } | {prefix + marker.path: Archived(0, marker.etag, marker.version_id) for marker in plan.markers}


async def _by_key(versions: AsyncIterator[ObjectVersion]) -> AsyncIterator[tuple[str, list[ObjectVersion]]]:
    """Versions grouped by key; S3 lists the versions of a key one after another, the newest first."""
    current: list[ObjectVersion] = []
    async for version in versions:
        if current and current[0].key != version.key:
            yield current[0].key, current
            current = []
        current.append(version)
    if current:
        yield current[0].key, current
