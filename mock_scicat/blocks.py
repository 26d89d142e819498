"""Original datablocks (the files as they were) and datablocks (their packages in the archive)."""

import secrets
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from . import datasets, filters, lifecycle
from .accounts import User
from .context import BodyDep, IdDep, LoggedIn, PidDep, UserDep, VersionDep, World, WorldDep, now
from .errors import forbidden, not_found, unhandled
from .store import DuplicateKeyError
from .validation import (
    BOOLEAN,
    DATE,
    INTEGER,
    LIST,
    STRING,
    STRINGS,
    Document,
    Field,
    as_date,
    optional,
    partial,
    required,
)

of_dataset = APIRouter(tags=["datasets"])
"""Below v3/datasets/{pid}; v4 has no twin."""
origdatablocks = APIRouter(tags=["origdatablocks"])
"""v3 and v4."""
datablocks = APIRouter(tags=["datablocks"])
"""v3 only."""

Collection = Literal["origdatablocks", "datablocks"]

_FILE = required(path=STRING, size=INTEGER, time=DATE) | optional(chk=STRING, uid=STRING, gid=STRING, perm=STRING)
_FILES = {"dataFileList": Field(LIST, required=True, items=_FILE | optional(type=STRING))}
_ORIGDATABLOCK = required(size=INTEGER) | optional(chkAlg=STRING) | _FILES
_DATABLOCK = required(archiveId=STRING, packedSize=INTEGER, version=STRING) | _ORIGDATABLOCK
_DATABLOCK_PATCH = partial(_DATABLOCK) | _FILES
"""A PATCH needs dataFileList even to change another field (observed)."""

# At the top level a block says itself whose it is; below a dataset these fields are refused.
_OWN = required(datasetId=STRING) | optional(
    ownerGroup=STRING, accessGroups=STRINGS, instrumentGroup=STRING, isPublished=BOOLEAN
)


# -- below a dataset ---------------------------------------------------------------------------------------------


@of_dataset.get("/datasets/{pid}/origdatablocks")
async def list_origdatablocks(world: WorldDep, user: UserDep, pid: PidDep) -> JSONResponse:
    """The dataset's original datablocks, oldest first."""
    return JSONResponse(_blocks(world, user, pid, "origdatablocks"))


@of_dataset.post("/datasets/{pid}/origdatablocks")
async def add_origdatablock(world: WorldDep, user: LoggedIn, pid: PidDep, body: BodyDep) -> JSONResponse:
    """Add one; the dataset's size and numberOfFiles grow."""
    return _add(world, user, pid, "origdatablocks", body.check(_ORIGDATABLOCK))


@of_dataset.get("/datasets/{pid}/datablocks")
async def list_datablocks(world: WorldDep, user: UserDep, pid: PidDep) -> JSONResponse:
    """The dataset's datablocks, oldest first."""
    return JSONResponse(_blocks(world, user, pid, "datablocks"))


@of_dataset.get("/datasets/{pid}/datablocks/count")
async def count_datablocks(world: WorldDep, user: UserDep, pid: PidDep) -> JSONResponse:
    """How many datablocks the dataset has."""
    return JSONResponse({"count": len(_blocks(world, user, pid, "datablocks"))})


@of_dataset.post("/datasets/{pid}/datablocks")
async def add_datablock(world: WorldDep, user: LoggedIn, pid: PidDep, body: BodyDep) -> JSONResponse:
    """Register one; packedSize and numberOfFilesArchived grow. An archiveId that is taken is a bare 500 (trap)."""
    return _add(world, user, pid, "datablocks", body.check(_DATABLOCK))


@of_dataset.patch("/datasets/{pid}/datablocks/{id}")
async def patch_datablock(world: WorldDep, user: LoggedIn, pid: PidDep, id: IdDep, body: BodyDep) -> JSONResponse:  # noqa: A002
    """Change one, for admins and the owner group."""
    return _patch_datablock(world, user, id, body.check(_DATABLOCK_PATCH), pid=pid)


@of_dataset.delete("/datasets/{pid}/datablocks/{id}")
async def delete_datablock(world: WorldDep, user: LoggedIn, pid: PidDep, id: IdDep) -> Response:  # noqa: A002
    """Remove one, for DELETE_GROUPS only; the counters go down again."""
    _delete_datablock(world, user, id, pid=pid)
    return Response(status_code=200)


@of_dataset.delete("/datasets/{pid}/datablocks")
async def delete_datablocks(world: WorldDep, user: LoggedIn, pid: PidDep) -> JSONResponse:
    """Remove all of the dataset's datablocks, for DELETE_GROUPS only."""
    if not world.rights.deletes(user):
        raise forbidden()
    with world.store.transaction():
        dataset = datasets.find(world, pid)
        blocks = world.store.list("datablocks", dataset=pid)
        for block in blocks:
            world.store.delete("datablocks", block["id"])
            dataset = _counted(dataset, "datablocks", block, sign=-1)
        lifecycle.save(world, user, dataset)
    return JSONResponse({"count": len(blocks)})


# -- at the top level --------------------------------------------------------------------------------------------


@origdatablocks.get("/origdatablocks")
async def find_origdatablocks(
    world: WorldDep,
    user: UserDep,
    version: VersionDep,
    filter: str | None = None,  # noqa: A002
) -> JSONResponse:
    """By filter; what one may not read is left out."""
    readable = [block for block in world.store.list("origdatablocks") if world.rights.reads(user, block)]
    limits = filters.V3_LIMITS if version == "v3" else filters.V4_LIMITS
    return JSONResponse(filters.select(readable, filters.parse(filter), limits))


@origdatablocks.post("/origdatablocks")
async def create_origdatablock(world: WorldDep, user: LoggedIn, body: BodyDep) -> JSONResponse:
    """Add one to the dataset that the body names, as the Ingestor does."""
    given = body.check(_OWN | _ORIGDATABLOCK)
    return _add(world, user, given["datasetId"], "origdatablocks", given)


@origdatablocks.get("/origdatablocks/{id}")
async def get_origdatablock(world: WorldDep, user: UserDep, id: IdDep) -> JSONResponse:  # noqa: A002
    """One original datablock."""
    block = _find(world, "origdatablocks", id)
    if not world.rights.reads(user, block):
        raise forbidden("Unauthorized access")
    return JSONResponse(block)


@datablocks.get("/datablocks")
async def find_datablocks(world: WorldDep, user: UserDep, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """By filter; here DELETE_GROUPS may read all."""
    readable = [block for block in world.store.list("datablocks") if _reads_datablock(world, user, block)]
    return JSONResponse(filters.select(readable, filters.parse(filter), filters.V3_LIMITS))


@datablocks.post("/datablocks")
async def create_datablock(world: WorldDep, user: LoggedIn, body: BodyDep) -> JSONResponse:
    """Register one for the dataset that the body names."""
    given = body.check(_OWN | _DATABLOCK)
    return _add(world, user, given["datasetId"], "datablocks", given)


@datablocks.get("/datablocks/{id}")
async def get_datablock(world: WorldDep, user: UserDep, id: IdDep) -> JSONResponse:  # noqa: A002
    """One datablock."""
    block = _find(world, "datablocks", id)
    if not _reads_datablock(world, user, block):
        raise forbidden("Unauthorized access")
    return JSONResponse(block)


@datablocks.patch("/datablocks/{id}")
async def change_datablock(world: WorldDep, user: LoggedIn, id: IdDep, body: BodyDep) -> JSONResponse:  # noqa: A002
    """Change one, for admins and the owner group."""
    return _patch_datablock(world, user, id, body.check(_DATABLOCK_PATCH))


@datablocks.delete("/datablocks/{id}")
async def remove_datablock(world: WorldDep, user: LoggedIn, id: IdDep) -> Response:  # noqa: A002
    """Remove one, for DELETE_GROUPS only."""
    _delete_datablock(world, user, id)
    return Response(status_code=200)


# -- what both share ---------------------------------------------------------------------------------------------


def _blocks(world: World, user: User | None, pid: str, collection: Collection) -> list[Document]:
    if not world.rights.reads(user, datasets.find(world, pid)):
        raise forbidden("Unauthorized access")
    return world.store.list(collection, dataset=pid)


def _reads_datablock(world: World, user: User | None, block: Document) -> bool:
    return world.rights.deletes(user) or world.rights.reads(user, block)


def _find(world: World, collection: Collection, key: str, *, pid: str | None = None) -> Document:
    block = world.store.get(collection, key)
    if block is None or (pid is not None and block["datasetId"] != pid):
        raise not_found(f"{collection.removesuffix('s')}: {key} not found")
    return block


def _add(world: World, user: User, pid: str, collection: Collection, given: Document) -> JSONResponse:
    if not world.rights.adds_blocks(user):
        raise forbidden()
    with world.store.transaction():
        dataset = datasets.find(world, pid)
        block = _new_block(dataset, user, given)
        try:
            world.store.insert(collection, block["id"], block, dataset=pid, unique_key=given.get("archiveId"))
        except DuplicateKeyError:
            raise unhandled() from None
        lifecycle.save(world, user, _counted(dataset, collection, block, sign=1))
    return JSONResponse(block, status_code=201)


def _new_block(dataset: Document, user: User, given: Document) -> Document:
    key, created = str(uuid.uuid4()), now()
    return {
        "_id": key,
        "id": key,
        "datasetId": dataset["pid"],
        "ownerGroup": dataset["ownerGroup"],
        "accessGroups": dataset.get("accessGroups", []),
        "isPublished": dataset.get("isPublished", False),
        **{name: value for name, value in given.items() if value is not None},
        "dataFileList": _files(given["dataFileList"]),
        "createdBy": user.username,
        "updatedBy": user.username,
        "createdAt": created,
        "updatedAt": created,
        "__v": 0,
    }


def _files(given: list[Document]) -> list[Document]:
    files: list[Document] = []
    for entry in given:
        key = secrets.token_hex(12)
        files.append({**entry, "time": as_date(entry["time"]), "_id": key, "id": key})
    return files


def _counted(dataset: Document, collection: Collection, block: Document, *, sign: Literal[1, -1]) -> Document:
    size, number = (
        ("size", "numberOfFiles") if collection == "origdatablocks" else ("packedSize", "numberOfFilesArchived")
    )
    return dataset | {
        size: dataset[size] + sign * block[size],
        number: dataset[number] + sign * len(block["dataFileList"]),
    }


def _patch_datablock(world: World, user: User, key: str, patch: Document, *, pid: str | None = None) -> JSONResponse:
    with world.store.transaction():
        old = _find(world, "datablocks", key, pid=pid)
        if not world.rights.owns(user, old):
            raise forbidden("Unauthorized access")
        changes: dict[str, Any] = {name: value for name, value in patch.items() if value is not None}
        changes["dataFileList"] = _files(patch["dataFileList"])
        new = old | changes | {"updatedBy": user.username, "updatedAt": now()}
        try:
            world.store.replace("datablocks", key, new, unique_key=new["archiveId"])
        except DuplicateKeyError:
            raise unhandled() from None
        dataset = world.store.get("datasets", old["datasetId"])
        if dataset is not None:
            dataset = _counted(_counted(dataset, "datablocks", old, sign=-1), "datablocks", new, sign=1)
            lifecycle.save(world, user, dataset)
    return JSONResponse(new)


def _delete_datablock(world: World, user: User, key: str, *, pid: str | None = None) -> None:
    if not world.rights.deletes(user):
        raise forbidden()
    with world.store.transaction():
        block = _find(world, "datablocks", key, pid=pid)
        world.store.delete("datablocks", key)
        dataset = world.store.get("datasets", block["datasetId"])
        if dataset is not None:
            lifecycle.save(world, user, _counted(dataset, "datablocks", block, sign=-1))
