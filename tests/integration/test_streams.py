"""A limit on streams to the LTS that holds across workers: in Temporal's SDK, and in whole worker processes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

import domain.streams
import worker.streams
from cli.ports import Ports
from cli.stack import Stack
from tests.fakes.stage import dev_server
from tests.fakes.streams import StreamsInMemory
from tests.lab import QUICK, Lab, eventually, some_bytes, visit
from worker.build import tuner
from worker.streams import SharedStreams

LIMIT = 2


@workflow.defn(sandboxed=False)
class Writes:
    """So many steps at once, the last of them urgent."""

    @workflow.run
    async def run(self, count: int) -> None:
        """Start all of them, and wait for their ends."""
        steps = [
            workflow.start_activity(
                "write",
                number,
                start_to_close_timeout=timedelta(minutes=1),
                heartbeat_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50)),
                priority=Priority(priority_key=1 if number == count - 1 else 3),
            )
            for number in range(count)
        ]
        await asyncio.gather(*steps)


@dataclass
class Desk:
    """Sees which steps are at work, in all workers together."""

    working: int = 0
    most: int = 0
    begun: list[int] = field(default_factory=list[int])
    by: set[str] = field(default_factory=set[str])
    attempts: list[int] = field(default_factory=list[int])
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """Steps end."""

    def of(self, name: str) -> object:
        """The step, as one worker has it."""

        @activity.defn(name="write")
        async def write(number: int) -> None:
            self.working += 1
            self.most = max(self.most, self.working)
            self.begun.append(number)
            self.attempts.append(activity.info().attempt)
            self.by.add(name)
            try:
                for _ in range(5):
                    activity.heartbeat(number)
                    await asyncio.sleep(0.002)
                while not self.free.is_set():
                    activity.heartbeat(number)
                    await asyncio.sleep(0.02)
            finally:
                self.working -= 1

        return write


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    for name in ("RENEW_S", "KEEP_S", "EXPIRE_S", "TERM_S", "YIELD_S"):
        monkeypatch.setattr(domain.streams, name, getattr(domain.streams, name) / 10)
    monkeypatch.setattr(worker.streams, "ROUND_S", 0.1)


@asynccontextmanager
async def working(client: Client, state: StreamsInMemory, queue: str, desk: Desk, name: str) -> AsyncGenerator[None]:
    """A worker that shares its streams; by a client of its own, as that of another process is."""
    own = await Client.connect(client.service_client.config.target_host)
    async with (
        SharedStreams.sharing(state, queue, limit=LIMIT, slots=2) as shared,
        Worker(
            own,
            task_queue=queue,
            workflows=[Writes],
            activities=[desk.of(name)],  # pyright: ignore[reportArgumentType]
            tuner=tuner(shared),
            interceptors=[shared],
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        ),
    ):
        yield


async def started(client: Client, queue: str, count: int) -> WorkflowHandle[Writes, None]:
    return await client.start_workflow(Writes.run, count, id=queue, task_queue=queue)


@pytest.mark.usefixtures("quick")
async def test_no_more_steps_run_than_there_are_streams_however_many_workers_there_are() -> None:
    desk, state, queue = Desk(), StreamsInMemory(), f"streams-{uuid4()}"
    desk.free.set()
    async with await dev_server() as server, AsyncExitStack() as workers:
        for name in ("one", "two", "three"):
            await workers.enter_async_context(working(server.client, state, queue, desk, name))
        handle = await started(server.client, queue, 100)
        await asyncio.wait_for(handle.result(), 60)
    assert desk.most == LIMIT
    assert sorted(desk.begun) == list(range(100))
    # Nothing was refused or ended for want of a stream.
    assert set(desk.attempts) == {1}
    assert desk.begun.index(99) < 50
    # All of it was given back.
    assert {name: body for name, (body, _) in state.objects.items() if name != "mark"} == {"0": b"", "1": b""}


@pytest.mark.usefixtures("quick")
async def test_a_step_whose_stream_is_lost_ends_and_goes_on_where_there_is_one() -> None:
    desk, state, queue = Desk(), StreamsInMemory(), f"streams-{uuid4()}"
    async with await dev_server() as server, working(server.client, state, queue, desk, "one"):
        handle = await started(server.client, queue, 2)

        async def both() -> bool:
            return desk.working == LIMIT

        async def none() -> bool:
            return desk.working == 0

        await eventually(both)
        state.away = True
        await eventually(none)
        state.away = False
        await eventually(both)
        desk.free.set()
        await asyncio.wait_for(handle.result(), 60)
    assert desk.begun.count(0) == desk.begun.count(1) == 2
    assert desk.most == LIMIT


async def test_a_step_that_comes_when_the_stream_is_lost_is_not_begun() -> None:
    state = StreamsInMemory(away=True)
    async with SharedStreams.sharing(state, "queue", limit=LIMIT, slots=2) as shared:
        with pytest.raises(ApplicationError, match="lost its stream"), shared.using():
            pytest.fail("begun")


@pytest.mark.usefixtures("quick")
async def test_a_lost_answer_costs_no_stream() -> None:
    desk, state, queue = Desk(), StreamsInMemory(), f"streams-{uuid4()}"
    async with await dev_server() as server, working(server.client, state, queue, desk, "one"):
        handle = await started(server.client, queue, 2)

        async def both() -> bool:
            return desk.working == LIMIT

        await eventually(both)
        state.lose_answers = 2

        async def renewed() -> bool:
            return not state.lose_answers

        await eventually(renewed)
        seen = state.writes

        async def renewed_again_and_again() -> bool:
            return state.writes > seen + 10 * LIMIT

        await eventually(renewed_again_and_again)
        desk.free.set()
        await asyncio.wait_for(handle.result(), 60)
    assert sorted(desk.begun) == [0, 1]


@pytest.mark.long
@pytest.mark.usefixtures("quick")
async def test_who_comes_later_gets_a_stream_of_those_who_have_all() -> None:
    desk, state, queue = Desk(), StreamsInMemory(), f"streams-{uuid4()}"
    desk.free.set()
    async with await dev_server() as server, working(server.client, state, queue, desk, "one"):
        await asyncio.wait_for((await started(server.client, queue, 5)).result(), 60)
        async with working(server.client, state, queue, desk, "two"):

            async def two_had_work() -> bool:
                handle = await server.client.start_workflow(Writes.run, 5, id=str(uuid4()), task_queue=queue)
                await handle.result()
                return "two" in desk.by

            await eventually(two_had_work)
    assert desk.most == LIMIT


@pytest.mark.long
async def test_three_worker_processes_write_two_datablocks_at_once_and_a_killed_one_leaves_its_streams(
    tmp_path: Path,
) -> None:
    limits = {"LTS_WRITE_STREAMS": str(LIMIT), "LTS_READ_STREAMS": "1"}
    async with (
        Stack(tmp_path / "stack", Ports.free(), QUICK | limits, scale={"worker-archival": 3}) as stack,
        visit(stack) as lab,
    ):
        # Each datablock is on its way for some seconds.
        await lab.lts("POST", "/admin/faults", json={"kind": "slow", "direction": "in", "bytes_per_s": 4_000_000})
        files = {f"movie{n}.tif": some_bytes(10_000_000, n) for n in range(4)}
        pids = [await lab.dataset(files) for _ in range(3)]
        job = await lab.archive(*pids)
        names = [name for name in stack.workers if name.startswith("worker-archival")]
        await eventually(lambda: _two_are_written(lab))
        for name in names[:2]:
            # Whoever of them held a stream has left it to the third.
            await stack.kill(name)
        ended = await lab.ended(job, within_s=110)
        assert ended["jobStatusMessage"] == "finishedSuccessful", ended["jobResultObject"]
        requests = (await lab.lts("GET", "/admin/requests")).json()["requests"]
        assert requests["PATCH /uploads/{id}"]["most_at_once"] == LIMIT


async def _two_are_written(lab: Lab) -> bool:
    requests = (await lab.lts("GET", "/admin/requests")).json()["requests"]
    return requests.get("PATCH /uploads/{id}", {"most_at_once": 0})["most_at_once"] == LIMIT
