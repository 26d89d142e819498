"""What does not match between SciCat, the LTS, the state bucket and the landing zone, for one dataset at a time."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from domain.message import Message
from domain.names import raw_prefix, stem_of

NAMED = 1_000
"""Findings of a kind that a report names; all of them are counted."""


class Inconsistency(StrEnum):
    """Kinds of findings, the worst first."""

    PHANTOM = "phantom"
    """SciCat has the datablock, the LTS does not."""
    MISMATCH = "mismatch"
    """Both have it, with different sizes."""
    ORPHAN = "orphan"
    """The LTS has a file that is no datablock in SciCat."""
    UNVERIFIED = "unverified"
    """Both have it, but we have no manifest, or no mark that it was read back."""
    LEFTOVER = "leftover"
    """The landing zone still has files of a dataset whose archive is final."""
    STRAY = "stray"
    """The retrieval bucket has an object that no record says how long to keep."""


class Finding(Message):
    """One thing that does not match."""

    kind: Inconsistency
    pid: str
    """Empty where a path does not say."""
    path: str
    """On the LTS, in the landing zone or in the retrieval bucket."""
    detail: str


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What each store says of one dataset."""

    pid: str
    registered: Mapping[str, int] = field(default_factory=dict[str, int])
    """SciCat: archiveId → packed size in bytes."""
    stored: Mapping[str, int] = field(default_factory=dict[str, int])
    """LTS: path → size in bytes."""
    lost: Collection[str] = ()
    """Paths of which the LTS says that it lost the bytes."""
    manifests: Collection[str] = ()
    """Stems of datablocks with a manifest in the state bucket."""
    verified: Collection[str] = ()
    """Stems of datablocks that were read back."""
    kept: Collection[str] = ()
    """Paths that an undo left behind on a write-once LTS, as the state bucket says."""
    committed: bool = False
    landed: int = 0
    """Objects in the landing zone; asked for only if committed."""


def compare(facts: DatasetFacts) -> list[Finding]:
    """All that does not match for this dataset, sorted by path."""
    found: list[Finding] = []

    def find(kind: Inconsistency, path: str, detail: str) -> None:
        found.append(Finding(kind=kind, pid=facts.pid, path=path, detail=detail))

    for path, size in facts.registered.items():
        stored = facts.stored.get(path)
        if stored is None:
            find(Inconsistency.PHANTOM, path, f"{size} bytes by SciCat; not on the LTS")
            continue
        if path in facts.lost:
            find(Inconsistency.PHANTOM, path, f"{size} bytes by SciCat; the LTS says that it has lost them")
            continue
        if stored != size:
            find(Inconsistency.MISMATCH, path, f"{size} bytes by SciCat, {stored} bytes on the LTS")
        if stem_of(path) not in facts.manifests:
            find(Inconsistency.UNVERIFIED, path, "no manifest in the state bucket")
        elif stem_of(path) not in facts.verified:
            find(Inconsistency.UNVERIFIED, path, "no mark that it was read back")
    for path, stored in facts.stored.items():
        if path not in facts.registered:
            why = "; left by an undo, since the LTS does not delete" if path in facts.kept else ""
            find(Inconsistency.ORPHAN, path, f"{stored} bytes on the LTS; not in SciCat{why}")
    if facts.committed and facts.landed:
        objects = "1 object" if facts.landed == 1 else f"{facts.landed} objects"
        find(Inconsistency.LEFTOVER, raw_prefix(facts.pid), f"{objects} in the landing zone")
    return sorted(found, key=lambda finding: finding.path)


class ReportPage(Message):
    """What a part of the stores came to."""

    datasets: int = 0
    files: int = 0
    """Looked at on the LTS."""
    at_work: int = 0
    """Datasets that were not judged, since an archive of theirs runs."""
    counts: dict[Inconsistency, int] = {}
    findings: tuple[Finding, ...] = ()
    """At most `NAMED` of a kind."""


class Report(ReportPage):
    """All pages in one."""

    started: str
    finished: str


def page_of(findings: Iterable[Finding], *, datasets: int = 0, files: int = 0, at_work: int = 0) -> ReportPage:
    """Count findings and name the first of each kind."""
    counts: dict[Inconsistency, int] = {}
    named: list[Finding] = []
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        if counts[finding.kind] <= NAMED:
            named.append(finding)
    return ReportPage(datasets=datasets, files=files, at_work=at_work, counts=counts, findings=tuple(named))


def merge(one: ReportPage, other: ReportPage) -> ReportPage:
    """Two pages as one."""
    kept = page_of((*one.findings, *other.findings)).findings
    return ReportPage(
        datasets=one.datasets + other.datasets,
        files=one.files + other.files,
        at_work=one.at_work + other.at_work,
        counts={
            kind: one.counts.get(kind, 0) + other.counts.get(kind, 0)
            for kind in Inconsistency
            if kind in one.counts or kind in other.counts
        },
        findings=kept,
    )
