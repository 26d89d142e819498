"""The dataset life cycle: its fields and defaults, and the sub-resource that merges."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from .accounts import User
from .context import BodyDep, LoggedIn, PidDep, UserDep, Version, VersionDep, World, WorldDep, merge_patch, now
from .errors import forbidden, not_found, refusal, unhandled
from .validation import ANY, BOOLEAN, DATE, STRING, Document, optional, with_dates

router = APIRouter(tags=["datasets"])

SHAPE = optional(
    archivable=BOOLEAN,
    retrievable=BOOLEAN,
    publishable=BOOLEAN,
    isOnCentralDisk=BOOLEAN,
    retrieveIntegrityCheck=BOOLEAN,
    archiveStatusMessage=STRING,
    retrieveStatusMessage=STRING,
    exportedTo=STRING,
    storageLocation=STRING,
    archiveReturnMessage=ANY,
    retrieveReturnMessage=ANY,
    dateOfDiskPurging=DATE,
    archiveRetentionTime=DATE,
    dateOfPublishing=DATE,
    publishedOn=DATE,
)


def defaults() -> Document:
    """A new dataset's life cycle; the dates are today's."""
    today = now()
    return {
        "archivable": True,
        "retrievable": False,
        "publishable": False,
        "dateOfDiskPurging": today,
        "archiveRetentionTime": today,
        "dateOfPublishing": today,
        "publishedOn": today,
        "isOnCentralDisk": True,
        "archiveStatusMessage": "datasetCreated",
        "retrieveStatusMessage": "",
        "archiveReturnMessage": {},
        "retrieveReturnMessage": {},
        "retrieveIntegrityCheck": False,
    }


def with_defaults(given: Document | None) -> Document:
    """The fields given, defaults for all others; fields that SciCat does not know are dropped by its schema."""
    return defaults() | {name: value for name, value in (given or {}).items() if name in SHAPE}


@router.get("/datasets/{pid}/datasetlifecycle")
async def get_lifecycle(world: WorldDep, user: UserDep, pid: PidDep) -> JSONResponse:
    """The life cycle, to whom may read the dataset."""
    dataset = _find(world, pid)
    if not world.rights.reads_dataset(user, dataset):
        raise forbidden("Unauthorized access")
    return JSONResponse(dataset["datasetlifecycle"])


@router.patch("/datasets/{pid}/datasetlifecycle")
async def patch_lifecycle(
    world: WorldDep, user: LoggedIn, version: VersionDep, pid: PidDep, body: BodyDep
) -> JSONResponse:
    """Change the fields that are sent and no other; answers the whole life cycle.

    Status strings are free text. Null is stored by v3, and is the default again in v4.
    """
    if body.content_type not in ("application/json", "application/merge-patch+json"):
        raise unhandled()  # observed with text/plain
    patch = with_dates(body.check(SHAPE), SHAPE)
    if not patch:
        raise refusal(400, "dataset lifecycle DTO must not be empty")
    with world.store.transaction():
        dataset = _find(world, pid)
        if not world.rights.changes_lifecycle(user, dataset):
            raise forbidden(_REFUSALS[version])
        lifecycle = dataset["datasetlifecycle"] | _patched(
            dataset["datasetlifecycle"], patch, version, body.is_merge_patch
        )
        save(world, user, dataset | {"datasetlifecycle": lifecycle})
    return JSONResponse(lifecycle)


_REFUSALS: dict[Version, str] = {"v3": "Unauthorized to update this dataset", "v4": "Unauthorized access"}


def _patched(lifecycle: Document, patch: Document, version: Version, is_merge_patch: bool) -> Document:
    new: Document = {}
    for name, value in patch.items():
        if value is None:
            new[name] = None if version == "v3" else defaults().get(name)
        else:
            new[name] = merge_patch(lifecycle.get(name), value) if is_merge_patch else value
    return new


def save(world: World, user: User, dataset: Document) -> Document:
    """Put a changed dataset in its place, with who and when."""
    dataset = dataset | {"updatedBy": user.username, "updatedAt": now()}
    world.store.replace("datasets", dataset["pid"], dataset)
    return dataset


def _find(world: World, pid: str) -> Document:
    dataset = world.store.get("datasets", pid)
    if dataset is None:
        raise not_found(f"dataset with pid {pid} not found")
    return dataset
