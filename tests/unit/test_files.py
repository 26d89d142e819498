"""Paths, pids, permissions, times and digests as they come from outside."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import errors, names
from domain.checksum import b64, composite, known_algorithm, s3_composite
from domain.errors import DatasetError, UnsafePath
from domain.files import RegisteredFile, check_path, format_time, parse_mode, parse_time, whole_seconds
from domain.pid import check_pid, flat
from tests.strategies import HOSTILE_PATHS, paths, quick, times_ns

PID = "20.500.11935/0d4c"


@given(paths)
@quick
def test_odd_paths_are_accepted_as_they_are(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(UnsafePath) as refusal:
        check_path(path)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "path", ["a" * 255, "ü" * 127, "...", ".hidden", "..a", "a..", "-rf", "~", "C:\\x", "a/...", " ", "\u2028"]
)
def test_tame_paths_are_accepted(path: str) -> None:
    assert check_path(path) == path


def test_a_refusal_does_not_repeat_a_path_without_end() -> None:
    with pytest.raises(UnsafePath) as refusal:
        check_path("x" * 100_000)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("pid", ["20.500.11935/0d4c5e2e-8a1b", "a", "a b", "ü/+%", "p" * 200, "raw_files-of/x"])
def test_pids_are_accepted(pid: str) -> None:
    assert check_pid(pid) == pid
    assert "/" not in flat(pid)


@pytest.mark.parametrize(
    "pid",
    ["", "p" * 201, "/a", "a/", "a//b", "../x", "a/..", ".", "a\nb", "a\0", "a\\b", "\ud800",
     "ü" * 101, "p/1/raw_files", "datablocks/x", "p/restored/y"],
)  # fmt: skip
def test_pids_are_refused(pid: str) -> None:
    with pytest.raises(UnsafePath):
        check_pid(pid)


@pytest.mark.parametrize(
    ("perm", "mode"),
    [
        ("-rw-r--r--", 0o644),
        ("-rwxr-x--x", 0o751),
        ("----------", 0o000),
        ("-rwxrwxrwx", 0o777),
        ("rw-r-----", 0o640),
        ("urwxr-xr-x", 0o755),
        ("ugrwxr-xr-x", 0o755),
        ("-rwsr-sr-t", 0o755),
        ("-rwSr-Sr-T", 0o644),
        (" -rw------- ", 0o600),
        ("0640", 0o640),
        ("640", 0o640),
        ("100640", 0o640),
        ("0o600", 0o600),
        ("4755", 0o755),
        ("7777", 0o777),
        ("", 0o644),
        ("33188", 0o644),
        ("-rw-r--r", 0o644),
        ("everything", 0o644),
        ("99", 0o644),
    ],
)
def test_parse_mode(perm: str, mode: int) -> None:
    assert parse_mode(perm) == mode


@pytest.mark.parametrize("letter", "dLDpSc")
def test_entries_with_a_type_are_not_regular(letter: str) -> None:
    assert not RegisteredFile("a", 1, perm=f"{letter}rwxr-xr-x").regular


@pytest.mark.parametrize("perm", ["-rw-r--r--", "rw-r--r--", "", "0644", "urwxr-xr-x", "trwxr-xr-x", "-rwsr-sr-t"])
def test_entries_without_a_type_are_regular(perm: str) -> None:
    assert RegisteredFile("a", 1, perm=perm).regular


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000Z", 0),
        ("1970-01-01T00:00:00", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2023-11-14T22:13:20.123456Z", 1_700_000_000_123_456_000),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_000),
        ("1969-12-31T23:59:58.5Z", -1_500_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800 * 10**9),
        ("9999-12-31T23:59:59Z", 253_402_300_799 * 10**9),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("", None),
        ("yesterday", None),
        ("2023-13-01T00:00:00Z", None),
        ("1700000000", None),
    ],
)
def test_parse_time(text: str, ns: int | None) -> None:
    assert parse_time(text) == ns


@given(times_ns)
@quick
def test_times_survive_writing_and_reading(ns: int) -> None:
    microseconds = ns // 1000 * 1000
    assert parse_time(format_time(microseconds)) == microseconds


@given(st.datetimes(timezones=st.just(UTC) | st.integers(-23, 23).map(lambda h: timezone(timedelta(hours=h)))))
@quick
def test_whatever_time_is_read_can_be_written(moment: datetime) -> None:
    ns = parse_time(moment.isoformat())
    assert ns is None or parse_time(format_time(ns)) == ns


def test_times_are_written_with_as_many_digits_as_they_have() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(1_500_000_000) == "1970-01-01T00:00:01.5Z"
    assert format_time(-1) == "1969-12-31T23:59:59.999999999Z"


def test_last_modified_is_cut_to_the_second_whatever_the_zone() -> None:
    moment = datetime(2024, 7, 1, 12, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert whole_seconds(moment) == 1_719_828_000 * 10**9
    with pytest.raises(TypeError):  # a time without a zone would bring in the machine's own
        whole_seconds(datetime(2024, 7, 1))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("sha256", "sha256"), ("SHA-256", "sha256"), (" Sha512 ", "sha512"), ("md5", "md5"), ("SHA1", "sha1"),
        ("sha-1", "sha1"), ("blake2b", "blake2b"), ("SHA3-256", "sha3_256"), ("crc32", ""), ("shake_128", ""), ("", ""),
        ("none", ""),
    ],
)  # fmt: skip
def test_known_algorithm(name: str, known: str) -> None:
    assert known_algorithm(name) == known
    if known:
        assert hashlib.new(known, b"", usedforsecurity=False).hexdigest()


def test_composite_is_what_s3_computes() -> None:
    parts = [hashlib.sha256(bytes([n])).digest() for n in range(3)]
    digest = composite(parts)
    assert digest == hashlib.sha256(parts[0] + parts[1] + parts[2]).digest()
    assert s3_composite(digest, 3) == base64.b64encode(digest).decode() + "-3"
    assert b64(digest) == base64.b64encode(digest).decode()


def test_every_error_of_the_users_is_never_retried() -> None:
    mine = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DatasetError)]
    assert {kind.__name__ for kind in mine} == errors.DATASET_ERRORS
    assert set(errors.NEVER_RETRIED) == errors.DATASET_ERRORS | errors.JOB_ERRORS
    assert "TapeUnavailable" not in errors.NEVER_RETRIED
    assert all(
        name in (errors.__doc__ or "") for name in (*errors.NEVER_RETRIED, "Damaged", "NoSpace", "Misconfigured")
    )


def test_an_archive_id_lies_in_its_datasets_folder() -> None:
    ours = f"openem-network/datasets/{PID}/datablocks/x_0.tar"
    assert names.check_archive_id(PID, ours) == ours


@pytest.mark.parametrize(
    "archive_id",
    [
        "openem-network/datasets/20.500/other/datablocks/x_0.tar",
        f"openem-network/datasets/{PID}2/datablocks/x_0.tar",
        f"openem-network/datasets/{PID}/datablocks/../../other/datablocks/x_0.tar",
        f"openem-network/datasets/{PID}/datablocks//x_0.tar",
        f"openem-network/datasets/{PID}/datablocks/",
        f"/openem-network/datasets/{PID}/datablocks/x_0.tar",
        f"openem-network/datasets/{PID}/raw_files/x_0.tar",
        "other-project/x_0.tar",
        "",
    ],
)
def test_an_archive_id_that_leads_elsewhere_is_refused(archive_id: str) -> None:
    with pytest.raises(UnsafePath):
        names.check_archive_id(PID, archive_id)
