"""Steps of the consistency report: read every store, change none, write down what does not match.

First all datasets that have datablocks in SciCat, then those of which only the LTS knows, then the retrieval bucket.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum

from temporalio import activity
from temporalio.client import Client

from activities.running import is_running
from activities.side_by_side import each
from clients.lts.protocol import Listable, Locality, LongTermStore, NearlineStore
from clients.s3 import ObjectInfo, ObjectStore
from clients.scicat import Catalogue
from clients.state import State
from domain import names
from domain.consistency import DatasetFacts, Finding, Inconsistency, Report, ReportPage, compare, merge, page_of
from domain.errors import UnsafePath
from domain.files import check_path
from domain.message import Message
from domain.pid import check_pid

PAGE = 500
"""Datasets, files or objects that one step looks at."""

REPORTS_KEPT = 30

_LONGEST_NAME = 1_024
"""Bytes of an S3 key."""

_LAST = chr(0x10FFFF)
"""Sorts behind every name."""


class Source(StrEnum):
    """Where a step finds what it looks at."""

    CATALOGUE = "catalogue"
    LTS = "lts"
    RETRIEVAL_BUCKET = "retrieval-bucket"


class CheckPage(Message):
    """Look at the next part of a source."""

    report: str
    page: int
    source: Source
    after: str = ""
    limit: int = PAGE


class CheckedPage(Message):
    """Where to go on; no source: everything was looked at."""

    source: Source | None = None
    after: str = ""


class CloseReport(Message):
    """Put the pages of a report together."""

    report: str
    started: str


class ClosedReport(Message):
    """What it came to."""

    key: str
    counts: dict[Inconsistency, int]


class ConsistencyActivities:
    """Holds all the stores and the Temporal client."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        store: LongTermStore,
        objects: ObjectStore,
        landing_bucket: str,
        retrieval_bucket: str,
        state: State,
        client: Client,
    ) -> None:
        self._catalogue, self._store, self._objects, self._state = catalogue, store, objects, state
        self._landing, self._retrieval, self._client = landing_bucket, retrieval_bucket, client

    @activity.defn
    async def check_page(self, order: CheckPage) -> CheckedPage:
        """Look at a part of one source, and keep what was found in the state bucket."""
        match order.source:
            case Source.CATALOGUE:
                page, after = await self._check_catalogue(order.after, order.limit)
                follows = Source.LTS
            case Source.LTS:
                page, after = await self._check_lts(order.after, order.limit)
                follows = Source.RETRIEVAL_BUCKET
            case Source.RETRIEVAL_BUCKET:
                page, after = await self._check_retrieval_bucket(order.after, order.limit)
                follows = None
        await self._state.put_json(names.report_page_key(order.report, order.page), page.model_dump(mode="json"))
        return CheckedPage(source=order.source, after=after) if after else CheckedPage(source=follows)

    async def _check_catalogue(self, after: str, limit: int) -> tuple[ReportPage, str]:
        pids = await self._catalogue.datasets_with_blocks(after, limit)
        return await self._judge(pids), pids[-1] if pids else ""

    async def _check_lts(self, after: str, limit: int) -> tuple[ReportPage, str]:
        if not isinstance(self._store, Listable):
            return ReportPage(), ""
        files = await self._store.list(names.ALL_DATASETS, after=after, limit=limit)
        pids = list(dict.fromkeys(pid for path in files if (pid := _holder(path))))
        unknown = [pid for pid, blocks in zip(pids, await each(self._blocks, pids), strict=True) if not blocks]
        page = await self._judge(unknown)
        astray = [path for path in files if not _holder(path) and not await self._catalogue.is_archive_id(path)]
        findings = [finding for path in astray for finding in compare(DatasetFacts("", stored={path: files[path]}))]
        if len(files) < limit:
            return merge(page, page_of(findings, files=len(astray))), ""
        last = [*files][-1]
        # Whatever else the last dataset has was looked at too.
        go_on = names.datablocks_prefix(_holder(last)) + _LAST if _holder(last) else last
        return merge(page, page_of(findings, files=len(astray))), go_on

    async def _blocks(self, pid: str) -> dict[str, int]:
        return {entry.archive_id: entry.packed_size for entry in await self._catalogue.block_entries(pid)}

    async def _check_retrieval_bucket(self, after: str, limit: int) -> tuple[ReportPage, str]:
        objects: list[ObjectInfo] = []
        async for found in self._objects.list_objects(self._retrieval, "", after):
            objects.append(found)
            if len(objects) == limit:
                break
        records = await each(self._state.retrieved, [found.key for found in objects])
        findings = [
            Finding(
                kind=Inconsistency.STRAY,
                pid=names.dataset_of(found.key),
                path=found.key,
                detail=f"{found.size} bytes in the retrieval bucket; no record of it",
            )
            for found, record in zip(objects, records, strict=True)
            if record is None
        ]
        return page_of(findings), objects[-1].key if len(objects) == limit else ""

    async def _judge(self, pids: list[str]) -> ReportPage:
        """What does not match twice in a row: the stores are read one after another while archives come and go."""
        first = await each(self._facts, pids)
        judged = [facts for facts in first if facts is not None]
        suspected = [finding for facts in judged for finding in compare(facts)]
        once = {(finding.pid, finding.kind, finding.path) for finding in suspected}
        again = await each(self._facts, dict.fromkeys(finding.pid for finding in suspected))
        twice = [finding for facts in again if facts is not None for finding in compare(facts)]
        findings = [finding for finding in twice if (finding.pid, finding.kind, finding.path) in once]
        return page_of(
            findings,
            datasets=len(pids),
            files=sum(len(facts.stored) for facts in judged),
            at_work=len(first) - len(judged),
        )

    async def _facts(self, pid: str) -> DatasetFacts | None:
        """What each store says of a dataset; None while an archive of it runs, or is being undone."""
        registered = await self._blocks(pid)
        if not _is_tame(pid, check_pid):
            return DatasetFacts(pid, registered=registered)
        if await is_running(self._client, names.archive_workflow(pid)):
            return None
        stored = await self._stored(pid, registered)
        index = await self._state.index(pid)
        committed = bool({index.manifests.get(names.stem_of(path), "") for path in registered} & index.committed)
        unknown = [path for path in stored if path not in registered]
        notes = await each(self._state.get_json, map(names.orphan_key, unknown))
        return DatasetFacts(
            pid=pid,
            registered=registered,
            stored=stored,
            lost=await self._lost([path for path in stored if path in registered]),
            manifests=index.manifests.keys(),
            verified=index.verified,
            kept={path for path, note in zip(unknown, notes, strict=True) if note is not None},
            committed=committed,
            landed=await self._landed(pid) if committed else 0,
        )

    async def _stored(self, pid: str, registered: Iterable[str]) -> dict[str, int]:
        folder = names.datablocks_prefix(pid)
        stored = await self._store.list(folder) if isinstance(self._store, Listable) else dict[str, int]()
        for path in registered:
            # Datablocks that another system wrote lie elsewhere.
            if path not in stored and _is_tame(path, check_path) and (found := await self._store.stat(path)):
                stored[path] = found.size_bytes
        return stored

    async def _lost(self, paths: list[str]) -> set[str]:
        if not isinstance(self._store, NearlineStore):
            return set()
        return {path for path, found in (await self._store.localities(paths)).items() if found is Locality.LOST}

    async def _landed(self, pid: str) -> int:
        count = 0
        async for _ in self._objects.list_objects(self._landing, names.raw_prefix(pid)):
            count += 1
        return count

    @activity.defn
    async def close_report(self, order: CloseReport) -> ClosedReport:
        """Make one report of the pages, as `latest` too; drop the pages and the oldest reports."""
        key, pages = names.report_key(order.report), await self._state.keys(names.report_pages_prefix(order.report))
        found = await self._state.get_json(key)
        # One that is there is an earlier attempt's, which may have dropped pages already.
        report = Report.model_validate(found) if found else await self._whole(order, pages)
        await self._state.put_json(key, report.model_dump(mode="json"))
        await self._state.put_json(names.LATEST_REPORT, report.model_dump(mode="json"))
        await self._state.drop(pages)
        await self._drop_old()
        return ClosedReport(key=key, counts=report.counts)

    async def _whole(self, order: CloseReport, pages: Iterable[str]) -> Report:
        whole = ReportPage()
        for page in pages:
            whole = merge(whole, ReportPage.model_validate(await self._state.get_json(page)))
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        return Report(**whole.model_dump(), started=order.started, finished=finished)

    async def _drop_old(self) -> None:
        """Reports are named by their time; pages of one that never ended go with it."""
        by_report: dict[str, list[str]] = {}
        for key in await self._state.keys(names.REPORTS):
            if key != names.LATEST_REPORT:
                report = key.removeprefix(names.REPORTS).removesuffix(".json").partition("/")[0]
                by_report.setdefault(report, []).append(key)
        for report in sorted(by_report)[:-REPORTS_KEPT]:
            await self._state.drop(by_report[report])


def _is_tame(name: str, check: Callable[[str], str]) -> bool:
    """Whether a name from SciCat may reach a store; what has another one is not there."""
    try:
        check(name)
    except UnsafePath:
        return False
    return len(name.encode()) <= _LONGEST_NAME


def _holder(path: str) -> str:
    """The dataset in whose folder of datablocks a file lies; empty if in none."""
    pid = names.dataset_of(path)
    return pid if pid and path.startswith(names.datablocks_prefix(pid)) else ""
