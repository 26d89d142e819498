"""A SciCat job that retrieves datasets."""

from temporalio import workflow

from workflows.job import JobWorkflow

with workflow.unsafe.imports_passed_through():
    from activities.reporting import FinishedJob
    from workflows.carried import CarriedJob


@workflow.defn
class RetrieveJob(JobWorkflow):
    """Retrieves every dataset of a job, independently of one another."""

    @workflow.init
    def __init__(self, order: CarriedJob) -> None:
        super().__init__(order)

    @workflow.run
    async def run(self, order: CarriedJob) -> FinishedJob | None:
        """The story is told in `JobWorkflow`."""
        return await self.conclude()
