"""SciCat in memory, for tests of what calls it; how the real one behaves is tested in `tests/contracts`."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from clients.scicat import Catalogue, Datablock, Dataset, Job, JobDataset, Lifecycle
from domain.errors import CatalogueUnavailable, JobRefused, TokenRefused, UnknownDataset, UnknownJob
from domain.files import RegisteredFile
from domain.lifecycle import finished


@dataclass
class FakeDataset:
    """Everything that the catalogue holds of a dataset."""

    files: list[RegisteredFile] = field(default_factory=list[RegisteredFile])
    owner_group: str = "group1"
    source_folder: str = "/data/run1"
    lifecycle: dict[str, Any] = field(
        default_factory=lambda: {
            "archivable": True,
            "retrievable": False,
            "isOnCentralDisk": True,
            "archiveStatusMessage": "datasetCreated",
            "retrieveStatusMessage": "",
        }
    )
    datablocks: dict[str, Datablock] = field(default_factory=dict[str, Datablock])


@dataclass
class FakeJob:
    """A job and what was PATCHed into it, oldest first."""

    type: str
    datasets: tuple[JobDataset, ...]
    owner_group: str = "group1"
    """Empty as of v3, which does not say."""
    status: str = "jobSubmitted"
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    history: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


class FakeCatalogue(Catalogue):
    """`fail_next("datablocks", error)` makes calls of a method raise; `calls` counts them."""

    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.known: dict[str, FakeDataset] = {}
        self.jobs: dict[str, FakeJob] = {}
        self.groups: dict[str, frozenset[str]] = {}
        """Of the tokens that are accepted."""
        self.calls: Counter[str] = Counter()
        self._failures: dict[str, deque[Exception]] = {}
        self._last_id = 0

    def fail_next(self, method: str, *errors: Exception) -> None:
        """Make the next calls of a method raise these, one each."""
        self._failures.setdefault(method, deque()).extend(errors)

    async def aclose(self) -> None:
        """Nothing to close."""

    async def healthy(self) -> bool:
        """Unless told otherwise by `fail_next`."""
        self._called("healthy")
        return True

    async def job(self, job_id: str) -> Job:
        """Read a job."""
        self._called("job")
        if job_id not in self.jobs:
            raise UnknownJob(job_id)
        job = self.jobs[job_id]
        return Job(job_id, job.type, job.status, job.datasets, job.owner_group, "alice", job.result)

    async def patch_job(self, job_id: str, status: str, message: str, result: Mapping[str, Any] | None = None) -> None:
        """Set a job's status."""
        self._called("patch_job")
        job = self.jobs.get(job_id)
        if job is None or any(entry.pid not in self.known for entry in job.datasets):
            raise JobRefused(job_id)
        job.status, job.result = status, job.result if result is None else result
        job.history.append((status, message))

    async def open_archive_jobs(self, pid: str) -> list[Job]:
        """Those not finished."""
        self._called("open_archive_jobs")
        archives = [
            Job(job_id, job.type, job.status, job.datasets, job.owner_group, "alice", job.result)
            for job_id, job in self.jobs.items()
            if job.type == "archive" and any(entry.pid == pid for entry in job.datasets)
        ]
        return [job for job in archives if not finished(job.status)]

    async def create_archive_job(self, pid: str, owner_user: str, owner_group: str, contact_email: str) -> str:
        """Post a job, unless there is one."""
        if not self._dataset("create_archive_job", pid).lifecycle["archivable"]:
            raise JobRefused(pid)
        for job in await self.open_archive_jobs(pid):
            return job.id
        job_id = str(uuid4())
        self.jobs[job_id] = FakeJob("archive", (JobDataset(pid),), owner_group)
        return job_id

    async def groups_of(self, token: str) -> frozenset[str]:
        """Of the tokens in `groups`."""
        self._called("groups_of")
        if token not in self.groups:
            raise TokenRefused(token)
        return self.groups[token]

    async def dataset(self, pid: str) -> Dataset:
        """Read a dataset."""
        found = self._dataset("dataset", pid)
        return Dataset(
            pid=pid,
            owner_group=found.owner_group,
            source_folder=found.source_folder,
            size=sum(file.size for file in found.files),
            packed_size=sum(block.packed_size for block in found.datablocks.values()),
            number_of_files=len(found.files),
            lifecycle=_lifecycle(found),
        )

    async def lifecycle(self, pid: str) -> Lifecycle:
        """Read a life cycle."""
        return _lifecycle(self._dataset("lifecycle", pid))

    async def patch_lifecycle(self, pid: str, fields: Mapping[str, Any]) -> None:
        """Merge these fields."""
        self._dataset("patch_lifecycle", pid).lifecycle.update(fields)

    async def original_files(self, pid: str) -> list[RegisteredFile]:
        """As given."""
        return list(self._dataset("original_files", pid).files)

    async def datablocks(self, pid: str) -> list[Datablock]:
        """As registered."""
        return list(self._dataset("datablocks", pid).datablocks.values())

    async def add_datablock(
        self,
        pid: str,
        *,
        archive_id: str,
        size: int,
        packed_size: int,
        version: str,
        checksum_algorithm: str,
        files: Sequence[Mapping[str, Any]],
    ) -> None:
        """Register a datablock once."""
        found = self._dataset("add_datablock", pid)
        if any(block.archive_id == archive_id for block in found.datablocks.values()):
            return
        if any(block.archive_id == archive_id for other in self.known.values() for block in other.datablocks.values()):
            raise CatalogueUnavailable("Internal server error")
        self._last_id += 1
        registered = tuple(
            RegisteredFile(
                path=file["path"],
                size=file["size"],
                time=file["time"],
                perm=file.get("perm", ""),
                uid=file.get("uid", ""),
                gid=file.get("gid", ""),
                digest=file.get("chk", "").lower(),
                algorithm=checksum_algorithm,
            )
            for file in files
        )
        block = Datablock(
            f"block-{self._last_id}", archive_id, size, packed_size, version, checksum_algorithm, registered
        )
        found.datablocks[block.id] = block

    async def delete_datablock(self, pid: str, datablock_id: str) -> None:
        """Forget a datablock."""
        self._called("delete_datablock")
        if pid in self.known:
            self.known[pid].datablocks.pop(datablock_id, None)

    def _called(self, method: str) -> None:
        self.calls[method] += 1
        ordered = self._failures.get(method)
        if ordered:
            raise ordered.popleft()

    def _dataset(self, method: str, pid: str) -> FakeDataset:
        self._called(method)
        if pid not in self.known:
            raise UnknownDataset(pid)
        return self.known[pid]


def _lifecycle(found: FakeDataset) -> Lifecycle:
    raw = dict(found.lifecycle)
    return Lifecycle(
        archivable=raw["archivable"],
        retrievable=raw["retrievable"],
        archive_status=raw["archiveStatusMessage"],
        retrieve_status=raw["retrieveStatusMessage"],
        is_on_central_disk=raw["isOnCentralDisk"],
        raw=raw,
    )
