"""`/s3/…`, whole datasets: whether there is room for one, that all of it is there, that none of it shall stay."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from api.auth import uploader
from api.dependencies import ServicesDep
from api.errors import RESPONSES
from api.frame import Guarded
from api.models import (
    AbortDatasetUpload,
    DatasetUploadDone,
    FinalizeDatasetUpload,
    NoRoom,
    UploadAdmitted,
    UploadRequest,
)
from domain.uploads import FinalizeUpload

router = APIRouter(route_class=Guarded, prefix="/s3", tags=["uploads"], dependencies=[Depends(uploader)])

_FULL: dict[int | str, dict[str, Any]] = {507: {"model": NoRoom, "description": "There is no room for it now"}}


@router.post(
    "/requestDatasetUpload",
    status_code=201,
    responses=RESPONSES | _FULL,
    response_model=UploadAdmitted,
    operation_id="requestDatasetUpload",
)
async def request_dataset_upload(body: UploadRequest, services: ServicesDep) -> UploadAdmitted | JSONResponse:
    """Keep room in the landing zone, until the dataset is archived, aborted, or nobody goes on with it."""
    if await services.uploads.request(body.dataset_id, body.dataset_size_gib):
        return UploadAdmitted(message=f"there is room for dataset {body.dataset_id}")
    full = NoRoom(
        message=f"there is no room for dataset {body.dataset_id} now; ask again later",
        dataset_id=body.dataset_id,
        requested_size_gib=body.dataset_size_gib,
    )
    return JSONResponse(full.model_dump(), status_code=507)


@router.post("/finalizeDatasetUpload", status_code=201, responses=RESPONSES, operation_id="finalizeDatasetUpload")
async def finalize_dataset_upload(body: FinalizeDatasetUpload, services: ServicesDep) -> DatasetUploadDone:
    """Mark the dataset as archivable in SciCat, and have it archived if that is wished for; any number of times."""
    wish = FinalizeUpload(
        create_job=body.create_archiving_job,
        owner_group=body.owner_group,
        owner_user=body.owner_user,
        contact_email=body.contact_email,
    )
    finalized = await services.uploads.finalize(body.dataset_id, wish)
    job = f"archive job {finalized.job_id}" if finalized.job_id else "no archive job"
    what = "it is archived already" if finalized.archived else job
    return DatasetUploadDone(dataset_id=body.dataset_id, message=f"the upload is finalized; {what}")


@router.post("/abortDatasetUpload", status_code=201, responses=RESPONSES, operation_id="abortDatasetUpload")
async def abort_dataset_upload(body: AbortDatasetUpload, services: ServicesDep) -> DatasetUploadDone:
    """Throw away what was uploaded of a dataset that nobody has finalized."""
    await services.uploads.abort(body.dataset_id)
    return DatasetUploadDone(dataset_id=body.dataset_id, message="nothing of the upload is left")
