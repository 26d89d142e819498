"""`/archiver/datasets`: where a dataset stands, and what operators tell its archive and its retrievals."""

from fastapi import APIRouter, Depends, HTTPException

from api.auth import operator_account, operator_verbs
from api.dependencies import GatewayDep
from api.errors import RESPONSES, UNKNOWN, VERB_RESPONSES, Refused
from api.frame import Guarded
from api.models import SteerDataset
from domain.errors import DatasetError
from domain.pid import check_pid
from domain.progress import DatasetProgress
from domain.steering import Steered, Verb

router = APIRouter(
    route_class=Guarded, prefix="/archiver/datasets", tags=["operators"], dependencies=[Depends(operator_account)]
)
verbs = APIRouter(
    route_class=Guarded,
    prefix="/archiver/datasets",
    tags=["operators"],
    dependencies=[Depends(operator_verbs)],
    responses=VERB_RESPONSES,
)


@router.get("/{pid:path}", responses=RESPONSES | UNKNOWN)
async def dataset(pid: str, gateway: GatewayDep) -> DatasetProgress:
    """Where a dataset stands: the archive or retrieval that runs, else the one begun last; `others` names the rest."""
    known = await gateway.dataset(_checked(pid, "path"))
    if not known:
        raise HTTPException(404, f"no workflow of dataset {pid} is known")
    return known[0]


@verbs.post("/pause")
async def pause(body: SteerDataset, gateway: GatewayDep) -> Steered:
    """Stop running copies at the next chunk, within seconds, and start nothing more."""
    return await _steer(gateway, body, Verb.PAUSE)


@verbs.post("/resume")
async def resume(body: SteerDataset, gateway: GatewayDep) -> Steered:
    """Go on after a pause, whoever paused it."""
    return await _steer(gateway, body, Verb.RESUME)


@verbs.post("/retry")
async def retry(body: SteerDataset, gateway: GatewayDep) -> Steered:
    """Try what is parked again, or cut a running backoff short."""
    return await _steer(gateway, body, Verb.RETRY)


@verbs.post("/give-up")
async def give_up(body: SteerDataset, gateway: GatewayDep) -> Steered:
    """End what is parked, undoing what was done."""
    return await _steer(gateway, body, Verb.GIVE_UP)


@verbs.post("/cancel")
async def cancel(body: SteerDataset, gateway: GatewayDep) -> Steered:
    """End it for every job that waits for it, undoing what was done; behind the commit point it is too late."""
    return await _steer(gateway, body, Verb.CANCEL)


async def _steer(gateway: GatewayDep, body: SteerDataset, verb: Verb) -> Steered:
    steered = await gateway.steer_dataset(_checked(body.pid, "body"), verb, body.by)
    if steered is None:
        raise HTTPException(404, f"no workflow of dataset {body.pid} is known")
    if not steered.acted:
        reasons = "; ".join(f"{workflow_id}: {why}" for workflow_id, why in steered.left_alone.items())
        raise HTTPException(409, f"{verb.value}: {reasons}")
    return steered


def _checked(pid: str, where: str) -> str:
    try:
        return check_pid(pid)
    except DatasetError as error:
        raise Refused(str(error), where, "pid") from error
