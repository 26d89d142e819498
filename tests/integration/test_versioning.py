"""A build that is not the current one does nothing; setup makes it the current one, and running workflows go over."""

from datetime import timedelta

from temporalio import workflow
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from cli.setup import prepare_temporal
from settings import Settings
from tests.fakes.stage import dev_server
from worker.versioning import deployment


@workflow.defn(sandboxed=False)
class Waiting:
    """Waits for a signal."""

    def __init__(self) -> None:
        self._told = False

    @workflow.signal
    def go_on(self) -> None:
        """Let it end."""
        self._told = True

    @workflow.query
    def asked(self) -> str:
        """Answered by whoever works on it."""
        return "here"

    @workflow.run
    async def run(self) -> str:
        """Wait, then say so."""
        await workflow.wait_condition(lambda: self._told)
        return "gone on"


async def test_setup_hands_running_workflows_to_the_build_that_it_names() -> None:
    async with await dev_server() as server:
        client = server.client

        def of(build: str) -> Settings:
            address = client.service_client.config.target_host
            return Settings(temporal_address=address, worker_build_id=build)

        def working(build: str) -> Worker:
            return Worker(client, task_queue="q", workflows=[Waiting], deployment_config=deployment(of(build)))

        handle: WorkflowHandle[Waiting, str] = await client.start_workflow(Waiting.run, id="w", task_queue="q")
        async with working("one"):
            assert "Made one the current build of the workers." in await prepare_temporal(of("one"))
            assert await handle.query(Waiting.asked, rpc_timeout=timedelta(seconds=30)) == "here"
            assert not [said for said in await prepare_temporal(of("one")) if "build" in said]
        async with working("two"):
            assert "Made two the current build of the workers." in await prepare_temporal(of("two"))
            await handle.signal(Waiting.go_on)
            assert await handle.result() == "gone on"
        described = (await handle.describe()).raw_description.workflow_execution_info
        assert described.versioning_info.deployment_version.build_id == "two"


def test_without_a_build_workers_are_not_versioned() -> None:
    assert deployment(Settings()) is None
