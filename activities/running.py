"""What runs now, as Temporal says it. Listings lag behind by about a second where it keeps them in Elasticsearch."""

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from domain import names

_DATASET_PID = SearchAttributeKey.for_keyword("DatasetPid")


async def is_running(client: Client, workflow_id: str) -> bool:
    """Whether a workflow runs; one that Temporal does not know does not."""
    try:
        description = await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return description.status is WorkflowExecutionStatus.RUNNING


async def retrieve_jobs(client: Client) -> list[str]:
    """SciCat's ids of the retrieve jobs that have not ended."""
    running = client.list_workflows('WorkflowType = "RetrieveJob" AND ExecutionStatus = "Running"')
    return [found.id.removeprefix(names.job_workflow("")) async for found in running]


async def retrieved_datasets(client: Client) -> set[str]:
    """Datasets whose retrieval runs."""
    running = client.list_workflows('WorkflowType = "RetrieveDataset" AND ExecutionStatus = "Running"')
    return {found.typed_search_attributes.get(_DATASET_PID) or "" async for found in running}
