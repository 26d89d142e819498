"""What is taken for inconsistent: exactly what was broken, nothing of what is whole."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from domain.consistency import NAMED, DatasetFacts, Finding, Inconsistency, compare, merge, page_of
from domain.names import archive_id, dataset_of, raw_key, raw_prefix, restored_key, stem_of
from tests.strategies import paths, segments

PID = "20.500.11935/abc"


@dataclass
class Block:
    """One datablock, and what became of it."""

    size: int
    registered: bool
    stored: int | None
    lost: bool
    manifest: bool
    verified: bool

    @property
    def expected(self) -> set[Inconsistency]:
        kinds: set[Inconsistency] = set()
        if self.stored is not None and not self.registered:
            kinds.add(Inconsistency.ORPHAN)
        if self.registered and (self.stored is None or self.lost):
            kinds.add(Inconsistency.PHANTOM)
        elif self.registered:
            if self.stored != self.size:
                kinds.add(Inconsistency.MISMATCH)
            if not (self.manifest and self.verified):
                kinds.add(Inconsistency.UNVERIFIED)
        return kinds


sizes = st.integers(1, 3)
blocks = st.lists(
    st.builds(
        Block,
        size=sizes,
        registered=st.booleans(),
        stored=st.none() | sizes,
        lost=st.booleans(),
        manifest=st.booleans(),
        verified=st.booleans(),
    ),
    max_size=8,
)


def facts_of(blocks: list[Block], *, committed: bool = True, landed: int = 0) -> tuple[DatasetFacts, list[str]]:
    paths = [archive_id(PID, f"block_{n}_0123abcd") for n in range(len(blocks))]
    pairs = list(zip(paths, blocks, strict=True))
    return DatasetFacts(
        pid=PID,
        registered={path: block.size for path, block in pairs if block.registered},
        stored={path: block.stored for path, block in pairs if block.stored is not None},
        lost={path for path, block in pairs if block.lost and block.stored is not None},
        manifests={stem_of(path) for path, block in pairs if block.manifest},
        verified={stem_of(path) for path, block in pairs if block.verified},
        committed=committed,
        landed=landed,
    ), paths


@given(blocks)
def test_each_datablock_is_found_for_what_is_wrong_with_it(blocks: list[Block]) -> None:
    facts, paths = facts_of(blocks)
    found = {(finding.path, finding.kind) for finding in compare(facts)}
    assert found == {(path, kind) for path, block in zip(paths, blocks, strict=True) for kind in block.expected}


@given(st.lists(sizes, max_size=5), st.integers(0, 3), st.booleans())
def test_a_whole_archive_has_no_findings_but_files_that_were_not_freed(
    whole: list[int], landed: int, committed: bool
) -> None:
    blocks = [Block(size, registered=True, stored=size, lost=False, manifest=True, verified=True) for size in whole]
    found = compare(facts_of(blocks, committed=committed, landed=landed)[0])
    expected = [(Inconsistency.LEFTOVER, raw_prefix(PID))] if committed and landed else []
    assert [(finding.kind, finding.path) for finding in found] == expected


@given(st.lists(segments.filter(lambda s: s not in ("raw_files", "datablocks", "restored")), min_size=1), paths)
def test_a_path_says_whose_it_is(pid_segments: list[str], path: str) -> None:
    pid = "/".join(pid_segments)
    assert {dataset_of(key) for key in (raw_key(pid, path), restored_key(pid, path), archive_id(pid, "a"))} == {pid}
    assert dataset_of(f"elsewhere/{raw_key(pid, path)}") == dataset_of(f"openem-network/datasets/{pid}") == ""


findings = st.lists(
    st.builds(Finding, kind=st.sampled_from(Inconsistency), pid=st.just(PID), path=st.text(), detail=st.just(""))
)


@given(findings, findings)
def test_pages_that_are_merged_count_as_one(one: list[Finding], other: list[Finding]) -> None:
    together = page_of([*one, *other], datasets=3, files=5, at_work=2)
    assert merge(page_of(one, datasets=1, files=5), page_of(other, datasets=2, at_work=2)) == together


def test_many_findings_are_counted_and_the_first_of_each_kind_named() -> None:
    many = [
        Finding(kind=kind, pid=PID, path=str(n), detail="")
        for kind in (Inconsistency.ORPHAN, Inconsistency.STRAY)
        for n in range(NAMED + 5)
    ]
    page = merge(page_of(many), page_of(many))
    assert page.counts == {Inconsistency.ORPHAN: 2 * NAMED + 10, Inconsistency.STRAY: 2 * NAMED + 10}
    assert [finding.path for finding in page.findings] == [str(n) for n in range(NAMED)] * 2
