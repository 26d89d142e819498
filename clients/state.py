"""The state bucket: plans, journals, manifests, marks and outcomes, by the keys of `domain.names`."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from clients.s3 import ObjectStore
from domain import names
from domain.checksum import s3_composite
from domain.datablock import BlockPlan
from domain.errors import InfrastructureError
from domain.manifest import Journal, Manifest, load_journal, load_manifest
from domain.message import Message
from domain.outcome import DatasetOutcome
from domain.planfile import DatasetPlan, dump_plan, load_plan, packed, smallest_chunk_of
from domain.streams import Seen

_PLANS_KEPT = 2
_PLAN_BYTES_KEPT = 32 * 2**20
"""So many plans stay in memory, and more of them if they are small."""


class StateLost(InfrastructureError):
    """A record that a running workflow relies on is gone from the state bucket."""


@dataclass(frozen=True, slots=True)
class StateIndex:
    """What the state bucket holds of one dataset, from one listing."""

    plans: frozenset[str] = frozenset()
    """Plan digests."""
    committed: frozenset[str] = frozenset()
    manifests: dict[str, str] = field(default_factory=dict[str, str])
    """Datablock stem → plan digest."""
    verified: frozenset[str] = frozenset()
    """Datablock stems."""


class Retrieved(Message):
    """An object in the retrieval bucket: what it has to be, and until when it is kept."""

    pid: str
    key: str
    size: int
    chunk_bytes: int
    digest: str
    """Hex sha256 over the raw digests of its parts."""
    bagged: bool = True
    keep_until: datetime

    @property
    def composite(self) -> str:
        """The composite checksum that S3's HEAD gives for it while it is intact."""
        return s3_composite(bytes.fromhex(self.digest), -(-self.size // self.chunk_bytes))


@dataclass(frozen=True, slots=True)
class _KnownPlan:
    plan: DatasetPlan
    etag: str
    """Of the object that it was read from, or written to."""


class State:
    """Typed access to one bucket."""

    def __init__(self, objects: ObjectStore, bucket: str) -> None:
        self._objects, self._bucket = objects, bucket
        self._plans: OrderedDict[tuple[str, str], _KnownPlan] = OrderedDict()
        self._loading = asyncio.Lock()

    async def index(self, pid: str) -> StateIndex:
        """List what is known of a dataset."""
        plans: set[str] = set()
        committed: set[str] = set()
        manifests: dict[str, str] = {}
        verified: set[str] = set()
        prefix = names.state_prefix(pid)
        async for item in self._objects.list_objects(self._bucket, prefix):
            digest, _, name = item.key.removeprefix(prefix).partition("/")
            if name == "plan.jsonl":
                plans.add(digest)
            elif name == "committed":
                committed.add(digest)
            elif name.endswith(".manifest.jsonl"):
                manifests[name.removesuffix(".manifest.jsonl")] = digest
            elif name.endswith(".verified"):
                verified.add(name.removesuffix(".verified"))
        return StateIndex(frozenset(plans), frozenset(committed), manifests, frozenset(verified))

    async def put_plan(self, plan: DatasetPlan) -> None:
        """Keep a plan; one with the same digest pins the versions that are there now."""
        data = await asyncio.to_thread(dump_plan, plan)
        etag = await self._put(names.plan_key(plan.pid, plan.digest), data)
        self._know(await asyncio.to_thread(packed, plan, data), etag)

    async def chunk_settings(self, pid: str, digests: Iterable[str]) -> list[int]:
        """The chunk settings that existing plans were made with: they win over today's, so that work is found again."""
        found: set[int] = set()
        for digest in digests:
            data = await self._get(names.plan_key(pid, digest))
            if data is not None:
                found.add(smallest_chunk_of(data[: data.index(b"\n")]))
        return sorted(found)

    async def plan(self, pid: str, digest: str, *, pinned: bool = False) -> DatasetPlan:
        """A plan; some stay in memory, since each step of a dataset asks for the same one.

        Args:
            pid: the dataset.
            digest: says everything of the plan but the versions that it pins.
            pinned: these matter: another worker may have planned anew meanwhile, so the bucket is asked.
        """
        if not pinned and (known := self._plans.get((pid, digest))):
            self._plans.move_to_end((pid, digest))
            return known.plan
        async with self._loading:
            known = self._plans.get((pid, digest))
            if known and not pinned:
                return known.plan
            data, etag = await self._objects.get_unless(
                self._bucket, names.plan_key(pid, digest), known.etag if known else ""
            )
            if data is not None:
                # The old one first: a hundred thousand files are 50 MiB.
                self._plans.pop((pid, digest), None)
                return self._know(await asyncio.to_thread(load_plan, data), etag)
            if known is None or not etag:
                raise StateLost(f"the plan {digest} of dataset {pid} is gone from the state bucket {self._bucket}")
            return self._know(known.plan, etag)

    def _know(self, plan: DatasetPlan, etag: str) -> DatasetPlan:
        self._plans[plan.pid, plan.digest] = _KnownPlan(plan, etag)
        self._plans.move_to_end((plan.pid, plan.digest))
        bytes_kept = sum(known.plan.weight_bytes for known in self._plans.values())
        while len(self._plans) > _PLANS_KEPT and bytes_kept > _PLAN_BYTES_KEPT:
            bytes_kept -= self._plans.popitem(last=False)[1].plan.weight_bytes
        return plan

    async def block(self, pid: str, digest: str, index: int, generation: int, *, pinned: bool = False) -> BlockPlan:
        """One datablock of a plan in the given generation; `pinned` as of `plan`."""
        plan = await self.plan(pid, digest, pinned=pinned)
        return await asyncio.to_thread(plan.block, index, generation)

    async def archive_id(self, pid: str, digest: str, index: int, generation: int) -> str:
        """What a datablock of a plan is called in the given generation."""
        return (await self.plan(pid, digest)).archive_id(index, generation)

    async def put_manifest(self, pid: str, digest: str, stem: str, data: bytes) -> None:
        """Keep the manifest of a finished tar."""
        await self._put(names.manifest_key(pid, digest, stem), data)

    async def manifest(self, pid: str, digest: str, stem: str) -> Manifest | None:
        """The manifest of a datablock, None if there is none."""
        data = await self._get(names.manifest_key(pid, digest, stem))
        return None if data is None else await asyncio.to_thread(load_manifest, data)

    async def put_segment(self, pid: str, digest: str, stem: str, first_chunk: int, data: bytes) -> None:
        """Keep a journal segment; an existing one stays, since the writer that comes second may be a zombie."""
        key = names.journal_key(pid, digest, stem, first_chunk)
        await self._objects.put(self._bucket, key, data, only_if_absent=True)

    async def journal(self, pid: str, digest: str, stem: str) -> Journal:
        """What a running write has finished."""
        keys = await self.keys(names.journal_prefix(pid, digest, stem))
        segments = [data for key in keys if (data := await self._get(key)) is not None]
        return load_journal(segments)

    async def drop_journal(self, pid: str, digest: str, stem: str) -> None:
        """Forget the journal of a finished or undone write."""
        await self._objects.delete_objects(self._bucket, await self.keys(names.journal_prefix(pid, digest, stem)))

    async def mark_verified(self, pid: str, digest: str, stem: str) -> None:
        """Every byte of the datablock was read back and matched."""
        await self._put(names.verified_key(pid, digest, stem), b"")

    async def is_verified(self, pid: str, digest: str, stem: str) -> bool:
        """Whether the mark is there."""
        return await self._objects.exists(self._bucket, names.verified_key(pid, digest, stem))

    async def mark_committed(self, pid: str, digest: str, generations: dict[int, int]) -> None:
        """The archive by this plan is final; generations that differ from 0 stand in the mark."""
        await self._put(names.committed_key(pid, digest), json.dumps(generations).encode())

    async def is_committed(self, pid: str, digest: str) -> bool:
        """Whether the mark is there."""
        return await self._objects.exists(self._bucket, names.committed_key(pid, digest))

    async def withdraw_commit(self, pid: str, digest: str) -> None:
        """What the mark stood for is there no more."""
        await self._objects.delete_objects(self._bucket, [names.committed_key(pid, digest)])

    async def committed_generations(self, pid: str, digest: str) -> dict[int, int]:
        """Which generation of each datablock was committed, 0 left out."""
        found = await self.get_json(names.committed_key(pid, digest))
        generations = cast("dict[str, int]", found) if isinstance(found, dict) else {}
        return {int(index): generation for index, generation in generations.items() if generation}

    async def forget_block(self, pid: str, digest: str, stem: str) -> None:
        """Drop the marks of an undone datablock; its manifest would otherwise claim bytes that are gone."""
        keys = [names.verified_key(pid, digest, stem), names.manifest_key(pid, digest, stem)]
        await self._objects.delete_objects(self._bucket, keys)
        await self.drop_journal(pid, digest, stem)

    async def adopt(self, archive_ids: Iterable[str]) -> None:
        """Files on the LTS that belong to an archived dataset are no orphans, whatever was listed."""
        await self._objects.delete_objects(self._bucket, map(names.orphan_key, archive_ids))

    async def put_retrieved(self, record: Retrieved) -> None:
        """Keep, or renew, the record of an object in the retrieval bucket."""
        await self._put(names.retrieved_key(record.key), record.model_dump_json().encode())

    async def retrieved(self, key: str) -> Retrieved | None:
        """The record of an object in the retrieval bucket."""
        data = await self._get(names.retrieved_key(key))
        return None if data is None else Retrieved.model_validate_json(data)

    async def retrieved_keys(self, after: str, limit: int) -> list[str]:
        """Keys of the next objects of which there is a record, in the order of their records, behind `after`."""
        keys: list[str] = []
        start = names.retrieved_key(after) if after else ""
        async for item in self._objects.list_objects(self._bucket, names.RETRIEVED, start):
            keys.append(item.key.removeprefix(names.RETRIEVED).removesuffix(".json"))
            if len(keys) == limit:
                break
        return keys

    async def drop_retrieved(self, key: str) -> None:
        """Forget an object that is no longer in the retrieval bucket."""
        await self._objects.delete_objects(self._bucket, [names.retrieved_key(key)])

    async def streams(self, queue: str) -> tuple[dict[int, Seen], str | None]:
        """The streams of a queue by number, and the ETag of the mark that somebody goes without one."""
        prefix = names.streams_prefix(queue)
        found: dict[int, Seen] = {}
        mark = None
        async for item in self._objects.list_objects(self._bucket, prefix):
            name = item.key.removeprefix(prefix)
            if name.isdecimal():
                found[int(name)] = Seen(item.etag, free=not item.size)
            elif item.key == names.stream_mark_key(queue):
                mark = item.etag
        return found, mark

    async def write_stream(self, queue: str, number: int, holder: bytes, known: str | None) -> str | None:
        """Write who holds a stream, or that nobody does (empty), on the ETag known; the new one, None if refused."""
        return await self._objects.replace(self._bucket, names.stream_key(queue, number), holder, known)

    async def stream(self, queue: str, number: int) -> tuple[bytes, str]:
        """Who holds a stream, and its ETag; both empty if there is no such object."""
        holder, etag = await self._objects.get_unless(self._bucket, names.stream_key(queue, number), "")
        return holder or b"", etag

    async def mark_streams(self, queue: str, content: bytes, known: str | None) -> str | None:
        """Note that somebody goes without a stream, on the ETag known; the new one, None if another was faster."""
        return await self._objects.replace(self._bucket, names.stream_mark_key(queue), content, known)

    async def put_json(self, key: str, value: object) -> None:
        """Keep a small record."""
        await self._put(key, json.dumps(value, ensure_ascii=False).encode())

    async def get_json(self, key: str) -> object | None:
        """A small record, None if there is none."""
        data = await self._get(key)
        return None if data is None else json.loads(data)

    async def drop(self, keys: Iterable[str]) -> None:
        """Forget these records; absent ones are fine."""
        await self._objects.delete_objects(self._bucket, keys)

    async def get_list(self, key: str) -> list[Any]:
        """A small record that is a list; empty if there is none."""
        found = await self.get_json(key)
        return cast("list[Any]", found) if isinstance(found, list) else []

    async def put_outcome(self, job_id: str, n: int, outcome: DatasetOutcome) -> None:
        """How the n-th dataset of a job ended."""
        await self._put(names.outcome_key(job_id, n), outcome.model_dump_json().encode())

    async def outcomes(self, job_id: str, positions: Iterable[int]) -> list[DatasetOutcome | None]:
        """The outcomes of the datasets at these positions of a job, None where there is none."""
        limit = asyncio.Semaphore(16)

        async def one(n: int) -> DatasetOutcome | None:
            async with limit:
                data = await self._get(names.outcome_key(job_id, n))
            return None if data is None else DatasetOutcome.model_validate_json(data)

        return await asyncio.gather(*(one(n) for n in positions))

    async def keys(self, prefix: str) -> Sequence[str]:
        """All keys below a prefix, sorted; only for those that are few."""
        return [item.key async for item in self._objects.list_objects(self._bucket, prefix)]

    async def _put(self, key: str, data: bytes) -> str:
        return await self._objects.put(self._bucket, key, data)

    async def _get(self, key: str) -> bytes | None:
        return await self._objects.get(self._bucket, key)
