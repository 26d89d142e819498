"""What runs now, as Temporal says it. Listings lag behind by about a second where it keeps them in Elasticsearch."""

from datetime import datetime, timedelta
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from domain import names
from domain.progress import UploadProgress

_DATASET_PID = SearchAttributeKey.for_keyword("DatasetPid")
_TOTAL_BYTES = SearchAttributeKey.for_int("TotalBytes")


async def status_of(client: Client, workflow_id: str) -> WorkflowExecutionStatus | None:
    """How a workflow's latest run stands; None if Temporal does not know it."""
    try:
        return (await client.get_workflow_handle(workflow_id).describe()).status
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def is_running(client: Client, workflow_id: str) -> bool:
    """Whether a workflow runs; one that Temporal does not know does not."""
    return await status_of(client, workflow_id) is WorkflowExecutionStatus.RUNNING


async def retrieve_jobs(client: Client) -> list[str]:
    """SciCat's ids of the retrieve jobs that have not ended."""
    running = client.list_workflows('WorkflowType = "RetrieveJob" AND ExecutionStatus = "Running"')
    return [found.id.removeprefix(names.job_workflow("")) async for found in running]


async def retrieved_datasets(client: Client) -> set[str]:
    """Datasets whose retrieval runs."""
    running = client.list_workflows('WorkflowType = "RetrieveDataset" AND ExecutionStatus = "Running"')
    return {found.typed_search_attributes.get(_DATASET_PID) or "" async for found in running}


async def running_uploads(client: Client) -> dict[str, int]:
    """Datasets whose upload runs and was promised room, with the bytes."""
    running = client.list_workflows('WorkflowType = "Upload" AND ExecutionStatus = "Running" AND TotalBytes > 0')
    return {
        found.typed_search_attributes.get(_DATASET_PID) or "": found.typed_search_attributes.get(_TOTAL_BYTES) or 0
        async for found in running
    }


async def finalized_uploads(client: Client) -> set[str]:
    """Datasets whose upload runs, is finalized, and waits for an archive to free the landing zone."""
    running = client.list_workflows('WorkflowType = "Upload" AND ExecutionStatus = "Running" AND Phase = "finalized"')
    return {found.typed_search_attributes.get(_DATASET_PID) or "" async for found in running}


async def urls_until(client: Client, pid: str) -> datetime | None:
    """Until when URLs by which the dataset is uploaded can be used; None if its upload knows of none."""
    handle = client.get_workflow_handle(names.upload_workflow(pid))
    try:
        shown = await handle.query("progress", result_type=UploadProgress, rpc_timeout=timedelta(seconds=10))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise
    return datetime.fromisoformat(shown.urls_until) if shown.urls_until else None


async def tell_upload_freed(client: Client, pid: str) -> None:
    """Tell the dataset's upload, if it runs, that nothing has to be kept for it any more."""
    await signal_if_running(client, names.upload_workflow(pid), "freed")


async def signal_if_running(client: Client, workflow_id: str, signal: str, *args: Any) -> bool:
    """Signal a workflow; return whether it was there to hear it."""
    try:
        await client.get_workflow_handle(workflow_id).signal(signal, args=args)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True
