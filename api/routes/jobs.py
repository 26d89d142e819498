"""`/archiver/jobs`: SciCat's job action, where jobs stand, and what operators tell them."""

import asyncio
import logging
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query

from api import observing
from api.auth import job_account, operator_account, operator_verbs
from api.dependencies import GatewayDep, ServicesDep, SettingsDep
from api.errors import RESPONSES, UNKNOWN, VERB_RESPONSES, Refused
from api.frame import Guarded
from api.gateway import NoSuchPage, OtherType
from api.models import CreateJob, JobStarted
from api.orders import job_order
from clients.state import State
from domain import names
from domain.errors import InfrastructureError
from domain.lifecycle import JobStatus, JobType, Phase
from domain.progress import JobDatasetProgress, JobProgress
from domain.steering import JobList, Steered, Verb

router = APIRouter(route_class=Guarded, prefix="/archiver", tags=["archiver"])
operators = APIRouter(
    route_class=Guarded, prefix="/archiver/jobs", tags=["operators"], dependencies=[Depends(operator_account)]
)
verbs = APIRouter(
    route_class=Guarded,
    prefix="/archiver/jobs",
    tags=["operators"],
    dependencies=[Depends(operator_verbs)],
    responses=VERB_RESPONSES,
)

_log = logging.getLogger("api")

_STARTED_WITHIN_S = 2.0
"""SciCat's own caller waits for its call of ours; a job whose start was not confirmed may be posted again."""

_OUTCOMES_WITHIN_S = 5.0
_THE_JOB = {"parameters": {"job_id": "$request.body#/id"}}
_LINKS: dict[int | str, dict[str, Any]] = {
    201: {"links": {name: {"operationId": name, **_THE_JOB} for name in ("job", "pauseJob", "resumeJob", "cancelJob")}}
}


@router.post("/jobs", status_code=201, dependencies=[Depends(job_account)], responses=RESPONSES | _LINKS)
async def create_job(body: CreateJob, gateway: GatewayDep, settings: SettingsDep) -> JobStarted:
    """Start the workflow of a SciCat job, once however often this is called; the workflow reads the job itself."""
    job_id = str(body.id)
    observing.is_about(job_id=job_id)
    try:
        order = job_order(settings, job_id, JobType(body.type))
        run_id = await gateway.start_job(order, within_s=_STARTED_WITHIN_S)
    except OtherType as error:
        raise Refused(str(error), "body", "type") from error
    _log.info("job %s runs as %s", job_id, run_id)
    return JobStarted(uuid=uuid.UUID(run_id), name=names.job_workflow(job_id))


@operators.get("", responses=RESPONSES)
async def jobs(
    gateway: GatewayDep,
    phase: Phase | None = None,
    outcome: JobStatus | None = None,
    owner: Annotated[str, Query(max_length=200, description="SciCat's owner group")] = "",
    running: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    page: Annotated[str, Query(max_length=4000, description="`next_page` of the answer before")] = "",
) -> JobList:
    """The jobs that Temporal remembers: those that run, then those that ended last; filters are joined by *and*."""
    try:
        return await gateway.jobs(
            phase=phase or "", outcome=outcome or "", owner_group=owner, running=running, limit=limit, page=page
        )
    except NoSuchPage as error:
        raise Refused(str(error), "query", "page") from error


@operators.get("/{job_id}", responses=RESPONSES | UNKNOWN, operation_id="job")
async def job(job_id: uuid.UUID, services: ServicesDep) -> JobProgress:
    """Where a job stands, with the outcome and reason of every dataset that has ended."""
    progress = await services.gateway.job(str(job_id))
    if progress is None:
        raise HTTPException(404, f"no job {job_id} is known")
    return await _with_outcomes(progress, services.state)


@verbs.post("/{job_id}/pause", operation_id="pauseJob")
async def pause(job_id: uuid.UUID, gateway: GatewayDep) -> Steered:
    """Pause all datasets of the job, for every job that waits for them; running copies stop within seconds."""
    return await _steer(gateway, job_id, Verb.PAUSE)


@verbs.post("/{job_id}/resume", operation_id="resumeJob")
async def resume(job_id: uuid.UUID, gateway: GatewayDep) -> Steered:
    """Go on after a pause."""
    return await _steer(gateway, job_id, Verb.RESUME)


@verbs.post("/{job_id}/cancel", operation_id="cancelJob")
async def cancel(job_id: uuid.UUID, gateway: GatewayDep) -> Steered:
    """End the job; datasets that no other job waits for are undone, but for those that are archived already."""
    return await _steer(gateway, job_id, Verb.CANCEL)


async def _steer(gateway: GatewayDep, job_id: uuid.UUID, verb: Verb) -> Steered:
    steered = await gateway.steer_job(str(job_id), verb)
    if steered is None:
        raise HTTPException(404, f"no job {job_id} is known")
    if not steered.acted:
        raise HTTPException(409, f"{verb.value} job {job_id}: {'; '.join(steered.left_alone.values())}")
    return steered


async def _with_outcomes(progress: JobProgress, state: State) -> JobProgress:
    """The reasons lie in the state bucket; without it Temporal's knowledge is answered, and what is missing is said."""
    try:
        async with asyncio.timeout(_OUTCOMES_WITHIN_S):
            ended = await state.outcomes(progress.id, [shown.n for shown in progress.datasets])
    except (InfrastructureError, TimeoutError) as error:
        why = str(error) or "no answer in time"
        missing = f"the outcomes of the datasets cannot be read from the state bucket now: {why}"
        return progress.model_copy(update={"note": "; ".join(filter(None, [progress.note, missing]))})
    datasets = [
        JobDatasetProgress(
            n=shown.n,
            phase=shown.phase,
            pid=outcome.pid,
            status=outcome.status.value,
            error_class=outcome.error_class,
            message=outcome.message,
            bytes=outcome.bytes,
        )
        if outcome
        else shown
        for shown, outcome in zip(progress.datasets, ended, strict=True)
    ]
    return progress.model_copy(update={"datasets": tuple(datasets)})
