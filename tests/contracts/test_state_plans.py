"""Plans in the memory of two workers, and in the state bucket of a real MinIO."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from clients.s3 import ObjectStore
from clients.state import State, StateLost
from domain.datablock import BlockPlan, Member
from domain.names import plan_key
from domain.planfile import DatasetPlan
from tests.contracts.conftest import ACCESS_KEY, REGION, SECRET_KEY
from tests.fakes.processes import ServerProcess


def pinning(version_id: str) -> DatasetPlan:
    members = (Member("a", 3_000, "e", 0, version_id=version_id),)
    return DatasetPlan("p/1", (BlockPlan("p/1", 1, 1, 5 << 20, members),), 5 << 20)


@pytest.fixture
async def states(minio_server: ServerProcess) -> AsyncIterator[tuple[State, State]]:
    bucket = f"state-{uuid4()}"
    url = minio_server.url
    async with ObjectStore.connect(
        endpoint=url, access_key=ACCESS_KEY, secret_key=SECRET_KEY, region=REGION
    ) as objects:
        await objects.ensure_bucket(bucket, versioned=False)
        yield State(objects, bucket), State(objects, bucket)


async def test_versions_that_another_worker_has_pinned_anew_are_seen(states: tuple[State, State]) -> None:
    mine, other = states
    before, now = pinning("v1"), pinning("v2")
    assert before.digest == now.digest
    await mine.put_plan(before)
    assert await mine.plan("p/1", before.digest, pinned=True) == before

    await other.put_plan(now)

    assert await mine.plan("p/1", before.digest, pinned=True) == now
    assert (await mine.block("p/1", before.digest, 1, 0)).members[0].version_id == "v2", "and it is known from then on"


async def test_a_plan_that_is_gone_is_told_where_its_versions_matter(states: tuple[State, State]) -> None:
    mine, other = states
    plan = pinning("v1")
    await mine.put_plan(plan)
    await mine.plan("p/1", plan.digest, pinned=True)
    await other.drop([plan_key("p/1", plan.digest)])

    assert await mine.plan("p/1", plan.digest) == plan
    with pytest.raises(StateLost):
        await mine.plan("p/1", plan.digest, pinned=True)
    with pytest.raises(StateLost):
        await other.plan("p/1", plan.digest)
