"""Attachments: pictures of a dataset. The archiver has no use for them; the clients that fill SciCat have."""

import uuid

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from . import datasets
from .accounts import User
from .context import BodyDep, IdDep, LoggedIn, PidDep, UserDep, World, WorldDep, now
from .errors import forbidden, not_found, refusal
from .store import DuplicateKeyError
from .validation import BOOLEAN, LIST, STRING, STRINGS, Document, Field, optional, required

of_dataset = APIRouter(tags=["datasets"])
"""Below v3/datasets/{pid}."""
attachments = APIRouter(tags=["attachments"])
"""v4 only; `relationships` say of what."""

_OWN = optional(ownerGroup=STRING, accessGroups=STRINGS, instrumentGroup=STRING, isPublished=BOOLEAN)
_TARGET = required(targetId=STRING, targetType=STRING) | optional(relationType=STRING)
_TARGETS = {"relationships": Field(LIST, required=True, items=_TARGET)}
_V3 = {**optional(id=STRING, datasetId=STRING, thumbnail=STRING), **required(caption=STRING), **_OWN}
_V4 = {**_OWN, **optional(aid=STRING, thumbnail=STRING), **required(caption=STRING, ownerGroup=STRING), **_TARGETS}


@of_dataset.get("/datasets/{pid}/attachments")
async def list_attachments(world: WorldDep, user: UserDep, pid: PidDep) -> JSONResponse:
    """The dataset's attachments, oldest first."""
    if not world.rights.reads(user, datasets.find(world, pid)):
        raise forbidden("Unauthorized access")
    return JSONResponse(world.store.list("attachments", dataset=pid))


@of_dataset.post("/datasets/{pid}/attachments")
async def add_attachment(world: WorldDep, user: LoggedIn, pid: PidDep, body: BodyDep) -> JSONResponse:
    """Add one, for admins and the owner group."""
    given = body.check(_V3)
    dataset = datasets.find(world, pid)
    return _add(world, user, dataset, given | {"aid": given.get("id"), "datasetId": pid})


@attachments.post("/attachments")
async def create_attachment(world: WorldDep, user: LoggedIn, body: BodyDep) -> JSONResponse:
    """Add one to the dataset that `relationships` name."""
    given = body.check(_V4)
    targets = [one["targetId"] for one in given["relationships"] if one["targetType"] == "dataset"]
    if not targets:
        raise refusal(400, "An attachment of something else than a dataset is more than this stand-in keeps")
    return _add(world, user, datasets.find(world, targets[0], "v4"), given)


@attachments.get("/attachments/{id}")
async def get_attachment(world: WorldDep, user: UserDep, id: IdDep) -> JSONResponse:  # noqa: A002
    """One attachment."""
    found = world.store.get("attachments", id)
    if found is None:
        raise not_found(f"Attachment: {id} not found")
    if not world.rights.reads(user, found):
        raise forbidden("Unauthorized access")
    return JSONResponse(found)


def _add(world: World, user: User, dataset: Document, given: Document) -> JSONResponse:
    if not world.rights.owns(user, dataset):
        raise forbidden("Unauthorized access")
    key, created = given.get("aid") or str(uuid.uuid4()), now()
    attachment: Document = {
        "_id": key,
        "ownerGroup": dataset["ownerGroup"],
        "accessGroups": dataset.get("accessGroups", []),
        "isPublished": dataset.get("isPublished", False),
        **{name: value for name, value in given.items() if value is not None},
        "aid": key,
        "id": key,
        "createdBy": user.username,
        "updatedBy": user.username,
        "createdAt": created,
        "updatedAt": created,
    }
    try:
        world.store.insert("attachments", key, attachment, dataset=dataset["pid"])
    except DuplicateKeyError:
        raise refusal(409, f"An attachment with id {key} already exists!") from None
    return JSONResponse(attachment, status_code=201)
