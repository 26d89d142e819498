"""A datablock's name follows from its plan, and the name decides the bytes."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given

from domain import names
from domain.datablock import MAX_CHUNKS, BlockPlan, chunk_bytes_for, plan_digest
from domain.files import Member
from domain.packing import Packer
from domain.tarstream import Layout
from tests.strategies import block_plans, quick
from tests.unit.test_packing import finish

MIB = 2**20

MEMBERS = (
    Member("ä b/100%.tif", 700, "9b2cf535f27731c974343645a3985328-3", 1_700_000_000_123_456_000, 0o640, "p12345", "em"),
    Member(
        "frames/" + "f" * 120 + ".eer",
        0,
        "d41d8cd98f00b204e9800998ecf8427e",
        -1_500_000_000,
        0o444,
        "2097152",
        "Müller",
    ),
    Member("z", 512, "e", 0),
)
PLAN = BlockPlan("20.500.11935/0d4c5e2e-8a1b-4a53-9d3e-1c0a4b7f2e11", 2, 3, 5 * MIB, MEMBERS)


@pytest.fixture(params=["UTC", "Pacific/Kiritimati", "America/St_Johns"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_the_format_has_not_changed() -> None:
    # If this fails, datablocks on tape could not be continued or found again: give the format another version.
    packer = Packer(Layout(replace(PLAN)))
    assert PLAN.stem == "20.500.11935-0d4c5e2e-8a1b-4a53-9d3e-1c0a4b7f2e11_2_f9e48f51"
    assert (
        hashlib.sha256(finish(packer)).hexdigest() == "953d18a96c30d743ce2664627136857532ce7822486cf65812c035102a066567"
    )
    assert packer.digest.hex() == "1b4e152f3b414f9f0be94dbd41cb2b163cbfb7980a187cd8be5b2acc01597873"


CHANGES: dict[str, BlockPlan] = {
    "algorithm": replace(PLAN, algorithm="sha512"),
    "chunk size": replace(PLAN, chunk_bytes=10 * MIB),
    "pid": replace(PLAN, pid="20.500.11935/other"),
    "index": replace(PLAN, index=1),
    "count": replace(PLAN, count=4),
    "generation": replace(PLAN, generation=1),
    "fewer members": replace(PLAN, members=MEMBERS[:2]),
    "order": replace(PLAN, members=MEMBERS[::-1]),
    **{
        f"member's {field}": replace(PLAN, members=(replace(MEMBERS[0], **{field: value}), *MEMBERS[1:]))
        for field, value in {
            "path": "ä b/100%.tiff",
            "size": 701,
            "etag": "other",
            "mtime_ns": 1_700_000_000_123_457_000,
            "mode": 0o600,
            "uid": "p1234",
            "gid": "",
        }.items()
    },
}


@pytest.mark.parametrize("changed", CHANGES)
def test_the_block_digest_changes_with(changed: str) -> None:
    assert CHANGES[changed].digest != PLAN.digest


def test_no_two_changes_have_one_digest() -> None:
    assert len({plan.digest for plan in CHANGES.values()}) == len(CHANGES)


@pytest.mark.parametrize("field", ["version_id", "expected_digest", "expected_algorithm"])
def test_the_block_digest_does_not_change_with(field: str) -> None:
    changed = replace(MEMBERS[0], **{field: "something"})
    assert replace(PLAN, members=(changed, *MEMBERS[1:])).digest == PLAN.digest


@given(block_plans(max_size=4))
@quick
def test_names_are_ours_for_this_dataset_and_no_other(plan: BlockPlan) -> None:
    assert names.is_ours(plan.pid, plan.archive_id)
    assert names.stem_of(plan.archive_id) == plan.stem
    assert len(f"{plan.stem}.tar".encode()) <= 255
    assert not names.is_ours(plan.pid + "x", plan.archive_id)
    assert not names.is_ours("20.500.11935", plan.archive_id)


@pytest.mark.parametrize(
    "archive_id",
    [
        "openem-network/datasets/p/1/datablocks/p-1_1_0123456.tar",
        "openem-network/datasets/p/1/datablocks/p-1_1_01234567.tar.gz",
        "openem-network/datasets/p/1/datablocks/p-1_1_0123456A.tar",
        "openem-network/datasets/p/1/datablocks/p-1_x_01234567.tar",
        "openem-network/datasets/p/1/datablocks/p-1_1_01234567.tar\n",
        "openem-network/datasets/p/2/datablocks/p-1_1_01234567.tar",
        "x/openem-network/datasets/p/1/datablocks/p-1_1_01234567.tar",
        "openem-network/datasets/p/1/datablocks/p-1_1_01234567/../x.tar",
        "/archive/p/1.tar",
        "",
    ],
)
def test_other_names_are_not_ours(archive_id: str) -> None:
    assert not names.is_ours("p/1", archive_id)


def test_a_pid_is_no_pattern() -> None:
    assert not names.is_ours("p.1", "openem-network/datasets/pX1/datablocks/pX1_1_01234567.tar")


def test_names_are_those_of_the_design() -> None:
    pid, stem = PLAN.pid, PLAN.stem
    digest = "d" * 64
    assert names.raw_key(pid, "a b/c") == f"openem-network/datasets/{pid}/raw_files/a b/c"
    assert PLAN.archive_id == f"openem-network/datasets/{pid}/datablocks/{stem}.tar"
    assert names.plan_key(pid, digest) == f"datasets/{pid}/{digest}/plan.jsonl"
    assert names.manifest_key(pid, digest, stem) == f"datasets/{pid}/{digest}/{stem}.manifest.jsonl"
    assert names.verified_key(pid, digest, stem) == f"datasets/{pid}/{digest}/{stem}.verified"
    assert names.committed_key(pid, digest) == f"datasets/{pid}/{digest}/committed"
    assert names.journal_key(pid, digest, stem, 32) == f"datasets/{pid}/{digest}/{stem}/journal-000032.jsonl"
    assert names.journal_key(pid, digest, stem, 32).startswith(names.journal_prefix(pid, digest, stem))
    assert names.retrieved_key(PLAN.archive_id) == f"retrieved/{PLAN.archive_id}.json"
    assert names.orphan_key(PLAN.archive_id) == f"orphans/{PLAN.archive_id}.json"
    assert names.outcome_key("j1", 7) == "jobs/j1/outcomes/7.json"
    assert names.job_datasets_key("j1").startswith(names.job_prefix("j1"))
    assert names.job_workflow("j1") == "job/j1"
    assert names.archive_workflow(pid) == f"archive-dataset/{pid}"
    assert names.retrieve_workflow(pid) == f"retrieve-dataset/{pid}"


def test_the_plan_digest_is_that_of_generation_0() -> None:
    other = replace(PLAN, index=3)
    digest = plan_digest([PLAN, other])
    assert digest == hashlib.sha256((PLAN.digest + other.digest).encode()).hexdigest()
    assert plan_digest([PLAN.regenerated(3), other]) == digest
    assert plan_digest([other, PLAN]) != digest
    assert PLAN.regenerated(3).stem != PLAN.stem
    assert PLAN.regenerated(3).regenerated(0) == PLAN


@pytest.mark.parametrize(
    ("tar_bytes", "chunk_bytes"),
    [
        (1, 16 * MIB),
        (MAX_CHUNKS * 16 * MIB, 16 * MIB),
        (MAX_CHUNKS * 16 * MIB + 1, 32 * MIB),
        (5 * 2**40, 1024 * MIB),
    ],
)
def test_chunks_double_until_there_are_at_most_9000(tar_bytes: int, chunk_bytes: int) -> None:
    assert chunk_bytes_for(tar_bytes) == chunk_bytes
    assert -(-tar_bytes // chunk_bytes) <= 9000


def test_chunks_are_multiples_of_the_setting() -> None:
    assert chunk_bytes_for(MAX_CHUNKS * 20 * MIB + 1, 20 * MIB) == 40 * MIB
    assert chunk_bytes_for(10, 5 * MIB) == 5 * MIB
