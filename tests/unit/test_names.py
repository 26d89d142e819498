"""Whose folder a key lies in: the only fence between the datasets of those who hold the same token."""

import pytest

from domain.errors import UnsafePath
from domain.names import MAX_KEY_BYTES, check_raw_key, raw_prefix

PID = "20.500.11935/8c4e"
PREFIX = raw_prefix(PID)


def filled_to(size: int) -> str:
    """A key of so many bytes with no segment that is too long."""
    rest = size - len(PREFIX)
    return PREFIX + "/".join(["a" * 99] * (rest // 100) + ["b" * (rest % 100)])


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b.tif",
        "with space",
        "plus+plus",
        "100%",
        "percent%2F",
        "(paren)",
        "ünïcödé/試料.mrc",
        "..a",
        "a..",
        "...",
    ],
)
def test_a_file_of_the_dataset_is_allowed(path: str) -> None:
    assert check_raw_key(PREFIX + path, PID) == check_raw_key(PREFIX + path) == PREFIX + path


def test_a_key_may_be_as_long_as_s3_takes_it() -> None:
    longest = filled_to(MAX_KEY_BYTES)
    assert len(check_raw_key(longest, PID)) == 1024
    with pytest.raises(UnsafePath, match="1024 bytes"):
        check_raw_key(longest + "b", PID)
    with pytest.raises(UnsafePath, match="1024 bytes"):
        check_raw_key(longest[:-1] + "é", PID)


@pytest.mark.parametrize(
    "key",
    [
        "",
        PREFIX,
        PREFIX.rstrip("/"),
        f"{PREFIX}/a",
        f"{PREFIX}a/",
        f"{PREFIX}a//b",
        f"{PREFIX}.",
        f"{PREFIX}a/./b",
        f"{PREFIX}../a",
        f"{PREFIX}a/../../../other/raw_files/b",
        f"{PREFIX}a\\b",
        f"{PREFIX}a\nb",
        f"{PREFIX}a\x00",
        f"{PREFIX}a\x7f",
        f"{PREFIX}a\ud800",
        f"/{PREFIX}a",
        PREFIX.upper() + "a",
        f"openem-network/datasets/{PID}/datablocks/a",
        f"openem-network/datasets/{PID}/raw_filesx/a",
        f"openem-network/datasets/{PID}d/raw_files/a",
        f"openem-network/datasets/{PID}/x/raw_files/a",
        "openem-network/datasets/20.500.11935/raw_files/a",
        f"openem-network/datasets/./{PID}/raw_files/a",
        "a",
    ],
)
def test_a_key_that_leaves_the_dataset_is_refused(key: str) -> None:
    with pytest.raises(UnsafePath):
        check_raw_key(key, PID)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        "openem-network/datasets//raw_files/a",
        "openem-network/datasets/../raw_files/a",
        "openem-network/datasets/a/../raw_files/a",
        "openem-network/datasets/raw_files/a",
        f"openem-network/datasets/{PID}/datablocks/a",
        f"openem-network/datasets/{PID}/datablocks/raw_files/a",
        f"openem-network/datasets/{PID}/raw_files/",
        f"{PREFIX}../a",
    ],
)
def test_a_key_must_be_a_raw_file_of_some_dataset(key: str) -> None:
    with pytest.raises(UnsafePath):
        check_raw_key(key)


@pytest.mark.parametrize("pid", ["..", "a/../b", "a//b", "a\\b", "a\n", "x" * 201, "a/raw_files/b"])
def test_a_dataset_that_cannot_be_is_refused(pid: str) -> None:
    with pytest.raises(UnsafePath, match="dataset id"):
        check_raw_key(f"openem-network/datasets/{pid}/raw_files/a", pid)
