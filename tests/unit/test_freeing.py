"""What may be freed: never anything newer than what was archived, and the archived version last of all."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from domain.freeing import Archived, decide


@dataclass(frozen=True)
class Version:
    version_id: str
    etag: str = "e"
    size: int = 1
    delete_marker: bool = False
    key: str = "k"


ARCHIVED = Archived(1, "e", "archived")

histories = st.lists(st.sampled_from(["version", "marker", "archived"]), max_size=8).filter(
    lambda kinds: kinds.count("archived") <= 1
)


def versions_of(kinds: list[str]) -> list[Version]:
    return [
        Version("archived" if kind == "archived" else f"v{n}", delete_marker=kind == "marker")
        for n, kind in enumerate(kinds)
    ]


def ids(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [version_id for _, version_id in pairs]


@given(histories)
def test_nothing_newer_than_the_archived_version_goes(kinds: list[str]) -> None:
    versions = versions_of(kinds)
    decision = decide("k", versions, ARCHIVED)
    contents = [v.version_id for v in versions if not v.delete_marker]
    newer = contents[: contents.index("archived")] if "archived" in contents else contents
    assert not set(newer) & set(ids(decision.older) + ids(decision.last))
    assert decision.leftover == bool(newer)


@given(histories)
def test_the_archived_version_goes_after_all_older_ones(kinds: list[str]) -> None:
    decision = decide("k", versions_of(kinds), ARCHIVED)
    assert "archived" not in ids(decision.older)
    assert ("archived" in ids(decision.last)) == ("archived" in kinds)


@given(histories)
def test_a_delete_marker_goes_only_when_no_version_is_left(kinds: list[str]) -> None:
    versions = versions_of(kinds)
    decision = decide("k", versions, ARCHIVED)
    going = set(ids(decision.older) + ids(decision.last))
    markers = {v.version_id for v in versions if v.delete_marker}
    staying = {v.version_id for v in versions if not v.delete_marker} - going
    assert not going & markers if staying else markers <= going


@given(histories)
def test_what_stands_in_no_plan_stays(kinds: list[str]) -> None:
    decision = decide("k", versions_of(kinds), None)
    assert not decision.older
    assert not decision.last


@given(histories)
def test_freeing_again_after_a_crash_in_the_middle_frees_the_rest(kinds: list[str]) -> None:
    versions = versions_of(kinds)
    once = decide("k", versions, ARCHIVED)
    left = [v for v in versions if v.version_id not in ids(once.older)]
    again = decide("k", left, ARCHIVED)
    assert set(ids(again.last)) == set(ids(once.last))
    assert not again.older


def test_by_content_takes_equal_bytes_alone() -> None:
    versions = [Version("new", etag="other"), Version("same again"), Version("older", size=2), Version("archived")]
    decision = decide("k", versions, ARCHIVED, by_content=True)
    assert ids(decision.older) + ids(decision.last) == ["same again", "archived"]
    assert decision.leftover


def test_a_marker_alone_goes() -> None:
    assert ids(decide("k", [Version("m", delete_marker=True)], ARCHIVED).last) == ["m"]
