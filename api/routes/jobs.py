"""`/archiver/…`: SciCat's job action, and where jobs and datasets stand."""

import uuid

from fastapi import APIRouter, Depends, HTTPException

from api.auth import job_account, operator_account
from api.dependencies import GatewayDep, ServicesDep, SettingsDep
from api.errors import RESPONSES, Refused
from api.gateway import OtherType
from api.models import CreateJob, Detail, JobStarted
from api.orders import job_order
from domain import names
from domain.errors import DatasetError
from domain.lifecycle import JobType
from domain.pid import check_pid
from domain.progress import DatasetProgress, JobProgress

router = APIRouter(prefix="/archiver", tags=["archiver"])

_UNKNOWN = {404: {"model": Detail, "description": "Nothing is known of it"}}


@router.post("/jobs/", status_code=201, dependencies=[Depends(job_account)], include_in_schema=False)
@router.post("/jobs", status_code=201, dependencies=[Depends(job_account)], responses=RESPONSES)
async def create_job(body: CreateJob, gateway: GatewayDep, settings: SettingsDep) -> JobStarted:
    """Start the workflow of a SciCat job, once however often this is called; the workflow reads the job itself."""
    job_id = str(body.id)
    try:
        run_id = await gateway.start_job(job_order(settings, job_id, JobType(body.type)))
    except OtherType as error:
        raise Refused(str(error), "body", "type") from error
    return JobStarted(uuid=uuid.UUID(run_id), name=names.job_workflow(job_id))


@router.get("/jobs/{job_id}", dependencies=[Depends(operator_account)], responses=RESPONSES | _UNKNOWN)
async def job(job_id: uuid.UUID, services: ServicesDep) -> JobProgress:
    """Where a job stands, with the outcome and reason of every dataset that has ended."""
    progress = await services.gateway.job(str(job_id))
    if progress is None:
        raise HTTPException(404, f"no job {job_id} is known")
    ended = await services.state.outcomes(str(job_id), [shown.n for shown in progress.datasets])
    datasets = [
        shown.model_copy(
            update={
                "pid": outcome.pid,
                "status": outcome.status.value,
                "error_class": outcome.error_class,
                "message": outcome.message,
                "bytes": outcome.bytes,
            }
        )
        if outcome
        else shown
        for shown, outcome in zip(progress.datasets, ended, strict=True)
    ]
    return progress.model_copy(update={"datasets": tuple(datasets)})


@router.get("/datasets/{pid:path}", dependencies=[Depends(operator_account)], responses=RESPONSES | _UNKNOWN)
async def dataset(pid: str, gateway: GatewayDep) -> DatasetProgress:
    """Where a dataset stands: its archive or its retrieval, whichever began later."""
    try:
        check_pid(pid)
    except DatasetError as error:
        raise Refused(str(error), "path", "pid") from error
    known = await gateway.dataset(pid)
    if not known:
        raise HTTPException(404, f"no workflow of dataset {pid} is known")
    return known[0]
