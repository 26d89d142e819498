"""Steps in SciCat: read jobs and datasets, move life cycles, register datablocks, report results.

Calls about one dataset go one after another: the backend reads, modifies and writes (SciCat 4.27, observed).
"""

from collections.abc import Mapping
from enum import StrEnum

from temporalio import activity

from clients.lts.protocol import LongTermStore
from clients.scicat import Catalogue, Datablock
from clients.state import State
from domain import names
from domain.datablock import FORMAT
from domain.errors import (
    ArchivedOtherwise,
    CatalogueUnavailable,
    ForeignDatablocks,
    JobRefused,
    UnknownJob,
    UnknownJobType,
)
from domain.lifecycle import (
    ArchiveMoment,
    FoundLifecycle,
    JobStatus,
    JobType,
    RetrieveMoment,
    archive_fields,
    finished,
    retrieve_fields,
)
from domain.message import Message
from domain.names import stem_of
from domain.outcome import bounded
from domain.pid import check_pid
from domain.planning import BRIEF_FILES, registration, regular_files, uncovered

_JOB_APPEARS_WITHIN = 6
"""Attempts after which an unknown job id is believed: SciCat calls us before its own answer is out."""


class OpenJob(Message):
    """Read a job and take it up."""

    job_id: str
    type: JobType


class OpenedJob(Message):
    """A job that can be worked on."""

    finished: bool
    """Already finished: leave it alone."""
    status: str
    datasets: int
    owner_group: str = ""


class JobReport(Message):
    """Tell the job's status in SciCat."""

    job_id: str
    status: JobStatus
    message: str


class Look(Message):
    """Look at a dataset before its archive."""

    pid: str


class Standing(StrEnum):
    """What the catalogue's datablocks of a dataset are."""

    NONE = "none"
    """There are none, or only ours that were never committed."""
    COMMITTED = "committed"
    """Ours, committed, covering every registered file."""


class Looked(Message):
    """A dataset as it was found."""

    owner_group: str
    found: FoundLifecycle
    standing: Standing
    plan_digest: str = ""
    """Of the committed plan; empty where its manifests are lost."""
    generations: dict[int, int] = {}
    unverified: tuple[int, ...] = ()
    """Committed, but without a mark that they were read back."""
    off_tape: tuple[int, ...] = ()
    blocks: int = 0
    payload_bytes: int = 0
    brief: bool = False
    """By SciCat's count it has so few files that steps that loop over them take but a moment."""
    stale_marks: bool = False
    """Plans were committed of which no datablock is registered any more: an archive that somebody has deleted."""
    afresh: bool = False
    """It was never planned before: nothing of an earlier attempt can be in the state bucket, or in SciCat."""
    source_folder: str | None = None
    """As the catalogue has it."""


class MoveArchive(Message):
    """Set the archive life cycle of a dataset."""

    pid: str
    moment: ArchiveMoment
    found: FoundLifecycle
    reason: str = ""


class MoveRetrieve(Message):
    """Set the retrieve life cycle of a dataset."""

    pid: str
    moment: RetrieveMoment
    reason: str = ""


class RegisterBlocks(Message):
    """Register all datablocks of a plan; those of an earlier, uncommitted plan go first."""

    pid: str
    plan_digest: str
    generations: dict[int, int] = {}
    afresh: bool = False
    """Nobody has registered any of it before, as `Looked.afresh` says."""


class Registered(Message):
    """What was registered, or taken out."""

    superseded_key: str = ""
    """State key of the list of archiveIds that were taken out and still lie on the LTS."""
    archived: bool = False
    """An undo took nothing out: the plan is committed, and its datablocks are those that are registered."""


class Commit(Message):
    """The archive is final."""

    pid: str
    plan_digest: str
    generations: dict[int, int] = {}
    found: FoundLifecycle
    reason: str = ""
    afresh: bool = False
    """No earlier attempt can have left anything, as `Looked.afresh` says."""


class CatalogueActivities:
    """Holds the catalogue, the state bucket and, for looking, the LTS."""

    def __init__(self, *, catalogue: Catalogue, store: LongTermStore, state: State) -> None:
        self._catalogue, self._store, self._state = catalogue, store, state

    @activity.defn
    async def open_job(self, order: OpenJob) -> OpenedJob:
        """Read the job, keep its dataset list in the state bucket, set it in progress; leave a finished one alone."""
        try:
            job = await self._catalogue.job(order.job_id)
        except UnknownJob as error:
            if activity.info().attempt < _JOB_APPEARS_WITHIN:
                raise CatalogueUnavailable(f"{error}; it may have been created just now") from error
            raise
        if finished(job.status):
            return OpenedJob(finished=True, status=job.status, datasets=len(job.datasets))
        if job.type != order.type:
            raise UnknownJobType(f"job {order.job_id} is of type {job.type!r} in SciCat, not {order.type.value!r}")
        listed = [{"pid": dataset.pid, "files": list(dataset.files)} for dataset in job.datasets]
        await self._state.put_json(names.job_datasets_key(order.job_id), listed)
        try:
            await self._catalogue.patch_job(order.job_id, JobStatus.IN_PROGRESS, f"{order.type.value} in progress")
        except JobRefused as error:
            # One of its datasets was deleted, and SciCat takes no word of the job any more: the others are worked on.
            activity.logger.warning("job %s cannot be updated in SciCat: %s", order.job_id, error)
        return OpenedJob(
            finished=False, status=JobStatus.IN_PROGRESS, datasets=len(listed), owner_group=job.owner_group
        )

    @activity.defn
    async def report_job(self, order: JobReport) -> None:
        """Say in the job what it waits for; best effort, since the final report counts."""
        try:
            await self._catalogue.patch_job(order.job_id, order.status, bounded(order.message), None)
        except JobRefused as error:
            activity.logger.warning("job %s cannot be updated in SciCat: %s", order.job_id, error)

    @activity.defn
    async def look(self, order: Look) -> Looked:
        """Read life cycle and datablocks, and tell what stands already.

        Raises:
            ForeignDatablocks, ArchivedOtherwise, UnknownDataset, NoAccess.
        """
        check_pid(order.pid)
        dataset = await self._catalogue.dataset(order.pid)
        life = dataset.lifecycle
        found = FoundLifecycle(
            archivable=life.archivable, retrievable=life.retrievable, archive_status=life.archive_status
        ).without_stale_start()
        blocks = await self._catalogue.datablocks(order.pid)
        foreign = [b.archive_id for b in blocks if not names.is_ours(order.pid, b.archive_id)]
        if foreign:
            raise ForeignDatablocks(
                f"dataset {order.pid} has {len(foreign)} datablocks that this service did not write, "
                f"e.g. {foreign[0]}; nothing was touched"
            )
        index = await self._state.index(order.pid)
        plans = {index.manifests.get(stem_of(b.archive_id), "") for b in blocks}
        committed = life.archive_status == ArchiveMoment.COMMITTED.status or bool(plans & index.committed)
        if not blocks or not committed:
            return Looked(
                owner_group=dataset.owner_group,
                found=found,
                standing=Standing.NONE,
                brief=0 < dataset.number_of_files <= BRIEF_FILES,
                stale_marks=bool(index.committed),
                afresh=not index.plans and not blocks,
                source_folder=dataset.source_folder,
            )
        await self._check_covered(order.pid, dataset.source_folder, blocks)
        known = plans & index.committed
        plan_digest = known.pop() if len(known) == 1 and len(plans) == 1 else ""
        return Looked(
            owner_group=dataset.owner_group,
            found=found,
            standing=Standing.COMMITTED,
            plan_digest=plan_digest,
            generations=await self._state.committed_generations(order.pid, plan_digest) if plan_digest else {},
            unverified=tuple(_index(b) for b in blocks if stem_of(b.archive_id) not in index.verified),
            off_tape=tuple(sorted(await self._off_tape(blocks))),
            blocks=len(blocks),
            payload_bytes=sum(b.size for b in blocks),
        )

    async def _check_covered(self, pid: str, source_folder: str, blocks: list[Datablock]) -> None:
        registered = await self._catalogue.original_files(pid)
        expected = regular_files(registered, source_folder).values()
        absent = uncovered(expected, (entry for block in blocks for entry in block.files))
        if absent:
            raise ArchivedOtherwise(
                f"dataset {pid} is archived, but {len(absent)} files that are registered now are not in its "
                f"datablocks, e.g. {absent[0]!r}; the archive and the landing zone are untouched"
            )

    async def _off_tape(self, blocks: list[Datablock]) -> set[int]:
        """Datablocks that the LTS does not hold on tape with the registered size."""
        off: set[int] = set()
        for block in blocks:
            there = await self._store.stat(block.archive_id)
            right = there is not None and there.size_bytes == block.packed_size
            if not right or (there and there.locality is not None and not there.locality.on_tape):
                off.add(_index(block))
        return off

    @activity.defn
    async def move_archive(self, order: MoveArchive) -> None:
        """Set the fields that the status table names for this moment."""
        fields = archive_fields(order.moment, order.found, bounded(order.reason))
        await self._catalogue.patch_lifecycle(order.pid, fields)

    @activity.defn
    async def move_retrieve(self, order: MoveRetrieve) -> None:
        """Set the fields that the status table names for this moment."""
        await self._catalogue.patch_lifecycle(order.pid, retrieve_fields(order.moment, bounded(order.reason)))

    @activity.defn
    async def register_blocks(self, order: RegisterBlocks) -> Registered:
        """Register the plan's datablocks, one after another; what is there already counts as done."""
        plan = await self._state.plan(order.pid, order.plan_digest)
        registered: dict[str, str] = {}
        superseded_key = ""
        # Behind a try on the spot that failed somebody has been here.
        if not (order.afresh and activity.info().is_local):
            registered = await self._ours(order.pid)
            superseded_key = await self._take_out(order, registered, keep=True)
        for index in range(1, len(plan.blocks) + 1):
            generation = order.generations.get(index, 0)
            if plan.archive_id(index, generation) in registered:
                continue
            block = await self._state.block(order.pid, order.plan_digest, index, generation)
            manifest = await self._state.manifest(order.pid, order.plan_digest, block.stem)
            if manifest is None:
                raise CatalogueUnavailable(f"the manifest of {block.archive_id} is gone from the state bucket")
            files = [
                registration(member, held.digest) for member, held in zip(block.members, manifest.members, strict=True)
            ]
            await self._catalogue.add_datablock(
                order.pid,
                archive_id=block.archive_id,
                size=block.payload_bytes,
                packed_size=manifest.tar_bytes,
                version=FORMAT,
                checksum_algorithm=block.algorithm,
                files=files,
            )
        return Registered(superseded_key=superseded_key)

    async def _ours(self, pid: str) -> dict[str, str]:
        """The registered datablocks that this service wrote: SciCat's id by archiveId."""
        blocks = await self._catalogue.datablocks(pid)
        return {block.archive_id: block.id for block in blocks if names.is_ours(pid, block.archive_id)}

    async def _take_out(self, order: RegisterBlocks, registered: Mapping[str, str], *, keep: bool) -> str:
        """Delete registered datablocks of ours, or with `keep` only those of an earlier, uncommitted plan.

        The list of the earlier plan's is kept before anything is deleted, since their files lie on the LTS: return its
        state key, empty if there are none.
        """
        plan = await self._state.plan(order.pid, order.plan_digest)
        ours = set(plan.archive_ids(order.generations))
        key = names.superseded_key(order.pid, order.plan_digest)
        listed = {str(archive_id) for archive_id in await self._state.get_list(key)}
        # What an earlier attempt superseded may be what is written now, e.g. in its first generation again.
        earlier = listed - ours
        superseded = registered.keys() - ours
        if earlier | superseded != listed:
            await self._state.put_json(key, sorted(earlier | superseded))
        for archive_id, datablock_id in registered.items():
            if not keep or archive_id in superseded:
                await self._catalogue.delete_datablock(order.pid, datablock_id)
        return key if earlier | superseded else ""

    @activity.defn
    async def unregister_blocks(self, order: RegisterBlocks) -> Registered:
        """Undo of the registration: no datablock of ours stays in the catalogue; never after the commit point.

        A workflow may not know that it has committed, and the landing zone is freed since: one whose last workflow task
        met a cancel and runs again, or one out of an old copy of Temporal's database. The mark knows.
        """
        registered = await self._ours(order.pid)
        if await self._state.is_committed(order.pid, order.plan_digest):
            activity.logger.warning("dataset %s is archived: nothing of it is taken back", order.pid)
            plan = await self._state.plan(order.pid, order.plan_digest)
            if registered.keys() != set(plan.archive_ids(order.generations)):
                return Registered()
            key = names.superseded_key(order.pid, order.plan_digest)
            return Registered(superseded_key=key if await self._state.get_list(key) else "", archived=True)
        return Registered(superseded_key=await self._take_out(order, registered, keep=False))

    @activity.defn
    async def commit(self, order: Commit) -> None:
        """Write the commit mark and tell the catalogue that the dataset can be retrieved."""
        await self._state.mark_committed(order.pid, order.plan_digest, order.generations)
        if not order.afresh:
            plan = await self._state.plan(order.pid, order.plan_digest)
            # What an earlier attempt left on a write-once store has become part of the archive.
            await self._state.adopt(plan.archive_ids(order.generations))
        fields = archive_fields(ArchiveMoment.COMMITTED, order.found, bounded(order.reason))
        await self._catalogue.patch_lifecycle(order.pid, fields)


def _index(block: Datablock) -> int:
    return int(stem_of(block.archive_id).rsplit("_", 2)[1])
