"""Datasets, v3 and v4: kept in v4's form, shown in either."""

import uuid
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from . import filters, lifecycle
from .accounts import User
from .context import Body, BodyDep, LoggedIn, PidDep, UserDep, Version, VersionDep, World, WorldDep, merge_patch, now
from .errors import dataset_violations, forbidden, not_found, refusal
from .store import DuplicateKeyError
from .validation import (
    ANY,
    BOOLEAN,
    DATE,
    EMAIL,
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    STRING,
    STRINGS,
    Document,
    Field,
    Kind,
    Shape,
    Violation,
    messages,
    optional,
    partial,
    required,
    violations,
    with_dates,
)

router = APIRouter(tags=["datasets"])
"""v3 and v4."""
public = APIRouter(tags=["datasets"])
"""v4 only."""

RELATIONS = ("origdatablocks", "datablocks", "attachments")

TYPES = ("raw", "derived", "custom")
_TYPE = Kind("isEnum", "{} must be one of the following values: " + ", ".join(TYPES), lambda value: value in TYPES)

_COMMON: Shape = {
    **required(owner=STRING, contactEmail=EMAIL, sourceFolder=STRING, creationTime=DATE, ownerGroup=STRING),
    **optional(
        ownerEmail=EMAIL,
        orcidOfOwner=STRING,
        sourceFolderHost=STRING,
        size=INTEGER,
        packedSize=INTEGER,
        numberOfFiles=INTEGER,
        numberOfFilesArchived=INTEGER,
        validationStatus=STRING,
        keywords=STRINGS,
        description=STRING,
        datasetName=STRING,
        classification=STRING,
        license=STRING,
        isPublished=BOOLEAN,
        accessGroups=STRINGS,
        instrumentGroup=STRING,
        techniques=LIST,
        sharedWith=STRINGS,
        relationships=LIST,
        datasetlifecycle=ANY,
        scientificMetadata=OBJECT,
        scientificMetadataSchema=STRING,
        scientificMetadataValid=BOOLEAN,
        comment=STRING,
        dataQualityMetrics=NUMBER,
        runNumber=STRING,
        startTime=DATE,
        endTime=DATE,
        dataFormat=STRING,
        jobParameters=OBJECT,
        jobLogData=STRING,
    ),
}
_SINGULARS = {"proposalId": "proposalIds", "sampleId": "sampleIds", "instrumentId": "instrumentIds"}
"""Legacy fields of v3 and the lists that v4 has instead."""

_V3_EXTRAS = optional(proposalId=STRING, sampleId=STRING, instrumentId=STRING)
_CREATE: dict[tuple[Version, str], Shape] = {
    ("v3", "raw"): {
        **_COMMON,
        **required(principalInvestigator=STRING, creationLocation=STRING),
        **_V3_EXTRAS,
        **optional(principalInvestigators=STRINGS),
    },
    ("v3", "derived"): {
        **_COMMON,
        **required(investigator=STRING, inputDatasets=STRINGS, usedSoftware=STRINGS),
        **_V3_EXTRAS,
    },
    ("v4", "raw"): {
        **_COMMON,
        **required(creationLocation=STRING),
        **optional(principalInvestigators=STRINGS, proposalIds=STRINGS, sampleIds=STRINGS, instrumentIds=STRINGS),
        **optional(inputDatasets=STRINGS, usedSoftware=STRINGS),
    },
}
_CREATE["v3", "custom"] = {**_CREATE["v3", "raw"], **optional(principalInvestigator=STRING, creationLocation=STRING)}
_CREATE["v4", "custom"] = {**_CREATE["v4", "raw"], **optional(creationLocation=STRING)}
_CREATE["v4", "derived"] = {
    **_CREATE["v4", "custom"],
    **required(inputDatasets=STRINGS, usedSoftware=STRINGS),
}
_UPDATE: dict[Version, Shape] = {
    version: partial({**_CREATE[version, "raw"], **_CREATE[version, "derived"]}) for version in ("v3", "v4")
}


@router.post("/datasets")
async def create_dataset(world: WorldDep, user: LoggedIn, version: VersionDep, body: BodyDep) -> JSONResponse:
    """Store a dataset under the pid given, if the user may give one, else under `<prefix>/<uuid4>`."""
    if found := _violations_of_new(body.document, version):
        raise _violation_error(found, version)
    given = body.document
    if not world.rights.creates_dataset(user, given["ownerGroup"], with_pid="pid" in given):
        raise forbidden("Unauthorized to create this dataset")
    dataset = _new_dataset(world, user, given)
    try:
        world.store.insert("datasets", dataset["pid"], dataset)
    except DuplicateKeyError:
        raise refusal(409, f"A dataset with pid {dataset['pid']} already exists!") from None
    return JSONResponse(render(dataset, version), status_code=201)


@router.post("/datasets/isValid")
async def is_valid(_user: LoggedIn, version: VersionDep, body: BodyDep) -> JSONResponse:
    """Say whether a body would do for POST datasets; stores nothing."""
    found = _violations_of_new(body.document, version)
    return JSONResponse({"valid": not found} | ({"errors": [v.as_json() for v in found]} if found else {}))


@router.get("/datasets")
async def list_datasets(world: WorldDep, user: UserDep, version: VersionDep, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """The datasets one may read that meet the filter; without a token only published ones."""
    return JSONResponse(_listed(world, _readable(world, user, version), version, filter))


@router.get("/datasets/count")
async def count_datasets(
    world: WorldDep,
    user: UserDep,
    version: VersionDep,
    filter: str | None = None,  # noqa: A002
) -> JSONResponse:
    """How many datasets one may read that meet the filter's `where`."""
    where: Document = filters.parse(filter).get("where") or {}
    found = [dataset for dataset in _readable(world, user, version) if filters.matches(dataset, where)]
    return JSONResponse({"count": len(found)})


@router.get("/datasets/findOne")
async def find_dataset(world: WorldDep, user: UserDep, version: VersionDep, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """The first dataset that meets the filter, or an empty object."""
    found = filters.select(_readable(world, user, version), filters.parse(filter))
    return JSONResponse(found[0] if found else {})


@router.get("/datasets/fullquery")
async def query_datasets(
    world: WorldDep, user: UserDep, version: VersionDep, fields: str | None = None, limits: str | None = None
) -> JSONResponse:
    """The datasets one may read, by `fields` and `limits`."""
    return JSONResponse(
        filters.full_query(_readable(world, user, version), filters.parse(fields), filters.parse(limits))
    )


@router.get("/datasets/fullfacet")
async def count_facets(
    world: WorldDep, user: UserDep, version: VersionDep, fields: str | None = None, facets: str | None = None
) -> JSONResponse:
    """How many of the datasets one may read there are, by each value of the `facets`."""
    return JSONResponse(filters.full_facet(_readable(world, user, version), filters.parse(fields), facets))


@router.get("/datasets/{pid}")
async def get_dataset(
    request: Request,
    world: WorldDep,
    user: UserDep,
    version: VersionDep,
    pid: PidDep,
    filter: str | None = None,  # noqa: A002
) -> JSONResponse:
    """One dataset; its blocks may be included, even where their own end points refuse (observed).

    They are asked for by the filter in v3, by `include` in v4 (code).
    """
    dataset = find(world, pid, version)
    if not world.rights.reads_dataset(user, dataset):
        raise forbidden("Unauthorized access")
    wanted = _included(filters.parse(filter)) if version == "v3" else request.query_params.getlist("include")
    return JSONResponse(_with_relations(world, render(dataset, version, history=True), wanted))


@public.get("/datasets/public")
async def list_public_datasets(world: WorldDep, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """The published datasets that meet the filter, for everybody."""
    return JSONResponse(_listed(world, _readable(world, None, "v4"), "v4", filter))


@public.get("/datasets/public/{pid}")
async def get_public_dataset(request: Request, world: WorldDep, pid: PidDep) -> JSONResponse:
    """One published dataset, for everybody; another is as good as unknown."""
    dataset = find(world, pid, "v4")
    if not world.rights.reads_dataset(None, dataset):
        raise not_found("dataset: null not found")
    return JSONResponse(_with_relations(world, render(dataset, "v4"), request.query_params.getlist("include")))


@router.patch("/datasets/{pid}")
async def patch_dataset(
    request: Request, world: WorldDep, user: LoggedIn, version: VersionDep, pid: PidDep, body: BodyDep
) -> JSONResponse:
    """Change a dataset; for admins and members of its ownerGroup.

    Unless it is v4 and a merge patch, a `datasetlifecycle` in the body resets every field that is not in it to its
    default (observed; the contract's second trap).
    """
    shape = _UPDATE[version]
    if found := violations(body.document, shape):
        raise _violation_error(found, version)
    with world.store.transaction():
        dataset = find(world, pid, version)
        if not world.rights.owns(user, dataset):
            raise forbidden("Unauthorized access")
        _check_unmodified(request, dataset)
        dataset = lifecycle.save(world, user, _patched(dataset, body, version))
    return JSONResponse(render(dataset, version))


@router.delete("/datasets/{pid}")
async def delete_dataset(world: WorldDep, user: LoggedIn, version: VersionDep, pid: PidDep) -> JSONResponse:
    """Remove a dataset, for DELETE_GROUPS only; its blocks stay and keep their archiveIds."""
    if not world.rights.deletes(user):
        raise forbidden()
    with world.store.transaction():
        dataset = find(world, pid, version)
        world.store.delete("datasets", pid)
    return JSONResponse(render(dataset, version))


def find(world: World, pid: str, version: Version = "v3") -> Document:
    """The dataset as it is stored.

    Raises:
        ScicatError: 404; v4 names no pid in it (observed).
    """
    dataset = world.store.get("datasets", pid)
    if dataset is None:
        raise not_found(f"dataset: {pid if version == 'v3' else 'null'} not found")
    return dataset


def render(dataset: Document, version: Version, *, history: bool = False) -> Document:
    """The dataset as that version shows it: v3 has legacy fields beside the lists that took their place."""
    shown = dict(dataset)
    if version == "v4":
        return shown
    leader = "investigator" if dataset["type"] == "derived" else "principalInvestigator"
    shown[leader] = next(iter(dataset.get("principalInvestigators") or []), "")
    for singular, plural in _SINGULARS.items():
        if values := dataset.get(plural):
            shown[singular] = values[0]
    shown["version"] = "3"
    return shown | ({"history": []} if history else {})


def _readable(world: World, user: User | None, version: Version) -> list[Document]:
    stored = world.store.list("datasets")
    return [render(dataset, version) for dataset in stored if world.rights.reads_dataset(user, dataset)]


def _listed(world: World, readable: list[Document], version: Version, text: str | None) -> list[Document]:
    query = filters.parse(text)
    found = filters.select(readable, query, filters.V3_LIMITS if version == "v3" else filters.V4_LIMITS)
    wanted = _included(query)
    return [_with_relations(world, dataset, wanted) for dataset in found]


def _violations_of_new(body: Document, version: Version) -> list[Violation]:
    kind: Any = body.get("type")
    shape = _CREATE[version, kind if kind in TYPES else "raw"]
    return violations(body, {**shape, "type": Field(_TYPE, required=True), **optional(pid=STRING)})


def _violation_error(found: list[Violation], version: Version) -> Exception:
    if version == "v3":
        return dataset_violations([violation.as_json() for violation in found])
    return refusal(400, messages(found))


def _in_v4_form(body: Document) -> Document:
    """Legacy v3 fields become the lists that v4 has; null is as good as missing."""
    given = with_dates({name: value for name, value in body.items() if value is not None}, _COMMON)
    for leader in ("principalInvestigator", "investigator"):
        if leader in given:
            given["principalInvestigators"] = [given.pop(leader)]
    for singular, plural in _SINGULARS.items():
        if singular in given:
            given[plural] = [given.pop(singular)]
    return given


def _new_dataset(world: World, user: User, body: Document) -> Document:
    given = _in_v4_form(body)
    pid = given.pop("pid", None) or f"{world.config.pid_prefix}/{uuid.uuid4()}"
    source = given["sourceFolder"].rstrip("/") or "/"
    created = now()
    return {
        "pid": pid,
        "_id": pid,
        "size": 0,
        "packedSize": 0,
        "numberOfFiles": 0,
        "numberOfFilesArchived": 0,
        "datasetName": "/".join(source.split("/")[-2:]),
        "accessGroups": [],
        "isPublished": False,
        "keywords": [],
        "techniques": [],
        "sharedWith": [],
        "relationships": [],
        "scientificMetadata": {},
        "principalInvestigators": [],
        **given,
        "sourceFolder": source,
        "datasetlifecycle": lifecycle.with_defaults(_as_object(given.get("datasetlifecycle"))),
        "createdBy": user.username,
        "updatedBy": user.username,
        "createdAt": created,
        "updatedAt": created,
        "__v": 0,
    }


def _patched(dataset: Document, body: Body, version: Version) -> Document:
    if version == "v4" and body.is_merge_patch:
        merged: Document = merge_patch(dataset, with_dates(body.document, _COMMON))
        return merged | {"datasetlifecycle": lifecycle.with_defaults(_as_object(merged.get("datasetlifecycle")))}
    patch = _in_v4_form(body.document)
    if "datasetlifecycle" in patch:
        patch["datasetlifecycle"] = lifecycle.with_defaults(_as_object(patch["datasetlifecycle"]))
    return dataset | patch


def _as_object(value: Any) -> Document | None:
    return cast("Document", value) if isinstance(value, dict) else None


def _check_unmodified(request: Request, dataset: Document) -> None:
    header = request.headers.get("if-unmodified-since")
    if header is None:
        return
    updated = datetime.fromisoformat(dataset["updatedAt"])
    try:
        # An HTTP date covers its whole second.
        limit = parsedate_to_datetime(header).replace(microsecond=999_999)
    except ValueError:
        try:
            limit = datetime.fromisoformat(header)
        except ValueError:
            return
    if updated > (limit if limit.tzinfo else limit.replace(tzinfo=UTC)):
        raise refusal(412, "Dataset has been modified on server since the date given in If-Unmodified-Since")


def _included(query: Document) -> list[str]:
    wanted: list[Any] = query.get("include") or []
    return [str(cast("Document", entry).get("relation") if isinstance(entry, dict) else entry) for entry in wanted]


def _with_relations(world: World, shown: Document, wanted: list[str]) -> Document:
    names = [name for name in RELATIONS if name in wanted or "all" in wanted]
    return shown | {name: world.store.list(name, dataset=shown["pid"]) for name in names if "pid" in shown}
