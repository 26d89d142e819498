"""`/s3/…`, single objects: URLs to upload them by, their completion, and the end of an upload that was given up."""

import base64
from typing import Any

from fastapi import APIRouter, Depends

from api.auth import uploader
from api.dependencies import ServicesDep
from api.errors import RESPONSES
from api.frame import Guarded
from api.models import AbortedUpload, AbortUpload, CompletedUpload, CompleteUpload, PresignedUrl, PresignedUrls

_DATASET, _OBJECT = "$request.body#/dataset_id", "$request.body#/object_name"
_UPLOAD = {"dataset_id": _DATASET, "object_name": _OBJECT, "upload_id": "$response.body#/upload_id"}
_LINKS: dict[int | str, dict[str, Any]] = {
    201: {
        "links": {
            "complete": {"operationId": "completeUpload", "requestBody": _UPLOAD},
            "abort": {"operationId": "abortMultipartUpload", "requestBody": _UPLOAD},
        }
    }
}

router = APIRouter(route_class=Guarded, prefix="/s3", tags=["uploads"], dependencies=[Depends(uploader)])


@router.post("/presignedUrls", status_code=201, responses=RESPONSES | _LINKS, operation_id="presignedUrls")
async def presigned_urls(body: PresignedUrl, services: ServicesDep) -> PresignedUrls:
    """A URL for each part of an object; an object of one part is put whole, and its upload id is empty."""
    await services.uploads.admit_urls(body.dataset_id)
    upload_id, urls = await services.landing_zone.begin(body.object_name, body.parts)
    return PresignedUrls(upload_id=upload_id, urls=[base64.b64encode(url.encode()).decode() for url in urls])


@router.post("/completeUpload", status_code=201, responses=RESPONSES, operation_id="completeUpload")
async def complete_upload(body: CompleteUpload, services: ServicesDep) -> CompletedUpload:
    """Make an object of its parts, once however often this is called; S3 compares them with the digests."""
    parts = [(part.part_number, part.etag.strip('"'), part.checksum_sha256) for part in body.parts]
    location = await services.landing_zone.complete(body.object_name, body.upload_id, parts, body.checksum_sha256)
    return CompletedUpload(location=location, key=body.object_name)


@router.post("/abortMultipartUpload", status_code=201, responses=RESPONSES, operation_id="abortMultipartUpload")
async def abort_multipart_upload(body: AbortUpload, services: ServicesDep) -> AbortedUpload:
    """Forget the parts of an upload; one that is unknown or finished is left as it is."""
    await services.landing_zone.abort(body.object_name, body.upload_id)
    return AbortedUpload(
        message="there is no such upload any more", upload_id=body.upload_id, object_name=body.object_name
    )
