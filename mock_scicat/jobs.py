"""Jobs, v3 and v4: one store in v4's form, read and patched by either."""

import json
import uuid
from contextlib import nullcontext, suppress
from typing import Any, cast

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from . import datasets, filters
from .accounts import User
from .context import Body, BodyDep, IdDep, LoggedIn, Version, VersionDep, World, WorldDep, merge_patch, now
from .errors import ScicatError, forbidden, job_refusal, not_found, refusal
from .rights import may_use_dataset
from .validation import (
    DATE,
    EMAIL,
    LIST,
    OBJECT,
    STRING,
    Document,
    Shape,
    messages,
    optional,
    required,
    violations,
)

router = APIRouter(tags=["jobs"])

NEEDS = {"archive": "archivable", "retrieve": "retrievable"}
"""The job types, and the life-cycle flag that the validate action of each wants on every dataset."""

_V3_CREATE = required(type=STRING) | optional(
    datasetList=LIST, jobParams=OBJECT, emailJobInitiator=EMAIL, executionTime=DATE, jobStatusMessage=STRING
)
_V3_UPDATE = optional(jobStatusMessage=STRING, jobResultObject=OBJECT, executionTime=DATE)
_V4_CREATE = required(type=STRING, jobParams=OBJECT) | optional(ownerUser=STRING, ownerGroup=STRING, contactEmail=EMAIL)
_V4_UPDATE = required(statusCode=STRING, statusMessage=STRING) | optional(jobResultObject=OBJECT)

_V3_NAMES = {"emailJobInitiator": "contactEmail", "creationTime": "createdAt", "jobStatusMessage": "statusCode"}
_STORED_NAMES: dict[Version, dict[str, str]] = {
    "v3": _V3_NAMES
    | {
        "executionTime": "jobParams.executionTime",
        "jobParams.username": "ownerUser",
        "datasetList": "jobParams.datasetList",
    },
    "v4": {},
}
"""How names in a v3 filter are translated (4.27, code): whole names alone, so `datasetList.pid` finds nothing."""


@router.post("/jobs")
async def create_job(world: WorldDep, user: LoggedIn, version: VersionDep, body: BodyDep) -> JSONResponse:
    """Store a job, then perform the `url` action, whose failure is the caller's while the job stays (trap)."""
    if version == "v3":
        request = _v4_request_of(world, user, _known_fields(body.document, _V3_CREATE))
    else:
        request = body.check(_V4_CREATE)
    job = _authorised_job(world, user, request)
    world.store.insert("jobs", job["id"], job)
    # No lock and no transaction from here on: the target reads and patches the job while we wait for it.
    if world.url_action is not None:
        with suppress(ScicatError) if world.config.job_ignore_errors else nullcontext():
            await world.url_action.perform(job)
    return JSONResponse(render(job, version), status_code=201)


@router.get("/jobs")
async def list_jobs(world: WorldDep, user: LoggedIn, version: VersionDep, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """The jobs that meet the filter; those one may not read are left out."""
    query = filters.parse(filter)
    fields = query.pop("fields", None)
    found = filters.select(_readable(world, user), filters.renamed(query, _STORED_NAMES[version]))
    return JSONResponse([filters.project(render(job, version), fields) for job in found])


@router.get("/jobs/fullquery")
async def query_jobs(
    world: WorldDep, user: LoggedIn, version: VersionDep, fields: str | None = None, limits: str | None = None
) -> JSONResponse:
    """The jobs one may read, by `fields` and `limits`."""
    names = _STORED_NAMES[version]
    where, page = filters.renamed(filters.parse(fields), names), filters.renamed(filters.parse(limits), names)
    found = filters.full_query(_readable(world, user), where, page)
    return JSONResponse([render(job, version) for job in found])


@router.get("/jobs/fullfacet")
async def count_facets(
    world: WorldDep, user: LoggedIn, version: VersionDep, fields: str | None = None, facets: str | None = None
) -> JSONResponse:
    """How many of the jobs one may read there are, by each value of the `facets`."""
    where = filters.renamed(filters.parse(fields), _STORED_NAMES[version])
    return JSONResponse(filters.full_facet(_readable(world, user), where, facets))


@router.get("/jobs/datasetDetails")
async def dataset_details(
    world: WorldDep,
    user: LoggedIn,
    version: VersionDep,
    jobId: str = "",  # noqa: N803 SciCat's name
) -> JSONResponse:
    """The datasets of a job."""
    job = _readable_job(world, user, jobId)
    found = [world.store.get("datasets", pid) for pid in _pids(job)]
    return JSONResponse([datasets.render(dataset, version) for dataset in found if dataset is not None])


@router.get("/jobs/{id}")
async def get_job(world: WorldDep, user: LoggedIn, version: VersionDep, id: IdDep) -> JSONResponse:  # noqa: A002
    """One job. An unknown id is 400, not 404 (trap)."""
    return JSONResponse(render(_readable_job(world, user, id), version))


@router.patch("/jobs/{id}")
async def patch_job(world: WorldDep, user: LoggedIn, version: VersionDep, id: IdDep, body: BodyDep) -> JSONResponse:  # noqa: A002
    """Set status and result; no value is checked and no transition refused.

    Once one of the job's datasets was deleted this is 404 for ever (trap).
    """
    patch = _known_fields(body.document, _V3_UPDATE) if version == "v3" else body.check(_V4_UPDATE)
    with world.store.transaction():
        job = _find(world, id)
        if not world.rights.updates_job(user, job):
            raise forbidden("Unauthorized to update this job.")
        _require_datasets(world, job)
        job = _patched_v3(job, patch, body) if version == "v3" else _patched_v4(job, patch, body)
        job |= {"updatedBy": user.username, "updatedAt": now()}
        world.store.replace("jobs", id, job)
    return JSONResponse(render(job, version))


@router.delete("/jobs/{id}")
async def delete_job(world: WorldDep, user: LoggedIn, version: VersionDep, id: IdDep) -> JSONResponse:  # noqa: A002
    """Remove a job, for DELETE_JOB_GROUPS only."""
    if not world.rights.deletes_jobs(user):
        raise forbidden()
    with world.store.transaction():
        job = world.store.get("jobs", id)
        if job is None:
            raise job_refusal(f"Job id {id} doesn't exist.")
        world.store.delete("jobs", id)
    return JSONResponse(render(job, version))


def render(job: Document, version: Version) -> Document:
    """The job as that version shows it."""
    if version == "v4":
        return job
    params = job["jobParams"]
    shown = {"_id": job["_id"], "id": job["id"], "type": job["type"]}
    shown |= {v3: job[v4] for v3, v4 in _V3_NAMES.items() if v4 in job}
    if "executionTime" in params:
        shown["executionTime"] = params["executionTime"]
    others = {name: value for name, value in params.items() if name not in ("datasetList", "executionTime", "username")}
    return shown | {
        "jobParams": ({"username": job["ownerUser"]} if "ownerUser" in job else {}) | others,
        "datasetList": params.get("datasetList", []),
        "jobResultObject": job["jobResultObject"],
    }


# -- reading -----------------------------------------------------------------------------------------------------


def _find(world: World, key: str) -> Document:
    job = world.store.get("jobs", key)
    if job is None:
        raise job_refusal("Invalid job id.")
    return job


def _readable_job(world: World, user: User, key: str) -> Document:
    job = _find(world, key)
    if not world.rights.reads_job(user, job):
        raise forbidden("Unauthorized to get this job.")
    return job


def _readable(world: World, user: User) -> list[Document]:
    return [job for job in world.store.list("jobs") if world.rights.reads_job(user, job)]


def _pids(job: Document) -> list[str]:
    return [entry["pid"] for entry in job["jobParams"].get("datasetList", [])]


# -- creating ----------------------------------------------------------------------------------------------------


def _known_fields(body: Document, shape: Shape) -> Document:
    """What v3 does: unknown fields are dropped in silence (trap), the others checked."""
    known = {name: value for name, value in body.items() if name in shape}
    if found := violations(known, shape):
        raise refusal(400, messages(found))
    return known


def _v4_request_of(world: World, user: User, body: Document) -> Document:
    """A v3 body as a v4 one: owned by `jobParams.username` or the caller, and by the first dataset's ownerGroup."""
    given_params: Document = body.get("jobParams") or {}
    entries: list[Any] = body.get("datasetList") or []
    params = {"datasetList": entries} | {n: value for n, value in given_params.items() if n != "datasetList"}
    if body.get("executionTime"):
        params["executionTime"] = body["executionTime"]
    request: Document = {
        "type": body["type"],
        "jobParams": params,
        "contactEmail": body.get("emailJobInitiator") or user.email,
    }
    owner = world.accounts.find(str(params["username"])) if "username" in params else user
    if owner is not None:
        request["ownerUser"] = owner.username
    if "ownerGroup" in params:
        request["ownerGroup"] = params["ownerGroup"]
    elif entries and isinstance(entries[0], dict):
        dataset = world.store.get("datasets", str(cast("Document", entries[0]).get("pid")))
        if dataset is not None:
            request["ownerGroup"] = dataset["ownerGroup"]
    return request


def _authorised_job(world: World, user: User, request: Document) -> Document:
    """Check a request by SciCat's rules, in SciCat's order, and make the job of it.

    Raises:
        ScicatError: 400 with the rule that is broken; 403 without a right on each of the datasets.
    """
    if request["type"] not in NEEDS:
        raise job_refusal(f"Invalid job type: {request['type']}")
    params: Document = request["jobParams"]
    named: list[Document] = []
    if "datasetList" in params:
        named = _named_datasets(world, params["datasetList"])
    owner = _owner(world, user, request)
    if "datasetList" not in params:
        raise job_refusal("Dataset ids list was not provided in jobParams")
    auth = world.config.job_create_auth
    usable = {d["pid"] for d in named if may_use_dataset(auth, d, owner.get("ownerGroup"))}
    # SciCat compares the number of usable datasets with the length of the list, so naming one twice is a 403.
    if len(usable) != len(params["datasetList"]) and not world.rights.is_admin(user):
        raise forbidden("Unauthorized to create this job.")
    flag = NEEDS[request["type"]]
    if not all(dataset["datasetlifecycle"].get(flag) is True for dataset in named):
        raise job_refusal(f"Invalid request. Invalid value for 'datasetlifecycle.{flag}'")
    return _new_job(user, request, owner)


def _named_datasets(world: World, entries: Any) -> list[Document]:
    if not isinstance(entries, list):
        raise job_refusal("Invalid dataset list")
    if not entries:
        raise job_refusal("List of passed datasets is empty.")
    checked = [_checked_entry(entry) for entry in cast("list[Any]", entries)]
    found = {entry["pid"]: world.store.get("datasets", entry["pid"]) for entry in checked}
    if unknown := [pid for pid, dataset in found.items() if dataset is None]:
        raise job_refusal(f"Datasets with pid {','.join(unknown)} do not exist.")
    missing = [lack for entry in checked if (lack := _missing_files(world, entry))]
    if missing:
        error = json.dumps(missing, separators=(",", ":"))
        raise job_refusal("At least one requested file could not be found.", error=error)
    return [dataset for dataset in found.values() if dataset is not None]


def _checked_entry(entry: Any) -> Document:
    if not isinstance(entry, dict) or cast("Document", entry).keys() != {"pid", "files"}:
        # An entry without `files` is told about `files`.
        if isinstance(entry, dict) and cast("Document", entry).keys() == {"pid"}:
            raise job_refusal("In datasetList each 'files' field should be an array.")
        raise job_refusal("Dataset list is expected to contain sets of pid and files.")
    checked = cast("Document", entry)
    if not isinstance(checked["pid"], str):
        raise job_refusal("In datasetList each 'pid' field should be a string.")
    if not isinstance(checked["files"], list):
        raise job_refusal("In datasetList each 'files' field should be an array.")
    return checked


def _missing_files(world: World, entry: Document) -> Document | None:
    if not entry["files"]:
        return None
    blocks = world.store.list("origdatablocks", dataset=entry["pid"])
    known = {file["path"] for block in blocks for file in block["dataFileList"]}
    missing = [path for path in entry["files"] if path not in known]
    return {"pid": entry["pid"], "nonExistFiles": missing} if missing else None


def _owner(world: World, user: User, request: Document) -> Document:
    """Whose the job will be: ownerUser, ownerGroup, contactEmail."""
    group, name, email = (request.get(field) for field in ("ownerGroup", "ownerUser", "contactEmail"))
    if world.rights.creates_any_job(user):
        if not (group or name or email):
            raise job_refusal("Contact email should be specified for an anonymous job.")
        named = world.accounts.find(name) if name else None
        owner = {"ownerUser": (named or user).username} if name else {}
        return owner | ({"ownerGroup": group} if group else {}) | {"contactEmail": email or (named or user).email}
    if not group:
        raise job_refusal("Invalid new job. Owner group should be specified.")
    if name and name != user.username:
        raise job_refusal("Invalid new job. User owning the job should match user logged in.")
    if group not in user.groups:
        raise job_refusal("Invalid new job. User needs to belong to job owner group.")
    return {"ownerUser": user.username, "ownerGroup": group, "contactEmail": email or user.email}


def _new_job(user: User, request: Document, owner: Document) -> Document:
    key, created = str(uuid.uuid4()), now()
    return {
        "_id": key,
        "id": key,
        "type": request["type"],
        "statusCode": "jobSubmitted",
        "statusMessage": "Job submitted.",
        "jobParams": request["jobParams"],
        **owner,
        "accessGroups": [],
        "isPublished": False,
        "configVersion": "1.0",
        "jobResultObject": {},
        "createdBy": user.username,
        "updatedBy": user.username,
        "createdAt": created,
        "updatedAt": created,
        "__v": 0,
    }


# -- patching ----------------------------------------------------------------------------------------------------


def _require_datasets(world: World, job: Document) -> None:
    pids = _pids(job)
    if any(world.store.get("datasets", pid) is None for pid in pids):
        raise not_found(f"Unable to get a dataset. ({json.dumps(pids, separators=(',', ':'), ensure_ascii=False)})")


def _patched_v3(job: Document, patch: Document, body: Body) -> Document:
    changed = dict(job)
    if status := patch.get("jobStatusMessage"):
        changed |= {"statusCode": status, "statusMessage": status}
    if patch.get("executionTime"):
        # SciCat passes it through the result object, which empties one that is not sent along (observed).
        changed["jobParams"] = job["jobParams"] | {"executionTime": patch["executionTime"]}
        patch = cast("Document", {"jobResultObject": {}}) | {n: v for n, v in patch.items() if v is not None}
    return _with_result(changed, patch, body)


def _patched_v4(job: Document, patch: Document, body: Body) -> Document:
    changed = job | {"statusCode": patch["statusCode"], "statusMessage": patch["statusMessage"]}
    return _with_result(changed, patch, body)


def _with_result(job: Document, patch: Document, body: Body) -> Document:
    """The result is replaced whole when it is sent, merged when it comes as a merge patch, else kept."""
    result = patch.get("jobResultObject")
    if result is None:
        return job
    return job | {"jobResultObject": merge_patch(job["jobResultObject"], result) if body.is_merge_patch else result}
