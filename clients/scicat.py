"""SciCat, the data catalogue: jobs, datasets, life cycles, original datablocks and datablocks.

The catalogue's traps that shape this client (observed on the real backend):

- An expired token is a 403 like any other, so a 403 is believed only when it meets a fresh token.
- Datablocks and life cycles are read, changed and written in the backend: the calls of one dataset are made one after
  another, or updates get lost.
- `archiveId` is unique over all of SciCat, and a second POST with the same one is a bare 500.
- A life cycle is PATCHed as a sub-resource, which merges; embedded in the dataset, it would reset what is not sent.
- A POST of a job that fails may have left the job: SciCat calls us before it answers, and passes our status on.
- v4 has no blocks below a dataset, and no datablocks at all.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import quote
from weakref import WeakValueDictionary

from clients.bulk import Answer
from clients.control import ControlCalls
from domain.errors import (
    CatalogueUnavailable,
    InfrastructureError,
    JobRefused,
    Misconfigured,
    NoAccess,
    TokenRefused,
    UnknownDataset,
    UnknownJob,
)
from domain.files import RegisteredFile
from domain.lifecycle import JobStatus, JobType, finished, uploaded_fields

_ALL = 1_000_000
"""More datablocks, or jobs, than any dataset has."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What may stand behind "Bearer" (RFC 6750)."""


@dataclass(frozen=True, slots=True)
class JobDataset:
    """One entry of a job's dataset list; no `files` means the whole dataset."""

    pid: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A job in either shape: v3 says jobStatusMessage and datasetList, v4 statusCode and jobParams.datasetList."""

    id: str
    type: str
    status: str
    datasets: tuple[JobDataset, ...]
    owner_group: str = ""
    """Empty in v3, which does not say."""
    owner_user: str = ""
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    created: str = ""
    """RFC 3339."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What the catalogue says of a dataset's whereabouts; `raw` has all of its fields as they came."""

    archivable: bool
    retrievable: bool
    archive_status: str
    retrieve_status: str
    is_on_central_disk: bool
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the archiver needs to know of a dataset."""

    pid: str
    owner_group: str
    source_folder: str
    size: int
    packed_size: int
    number_of_files: int
    lifecycle: Lifecycle

    @property
    def archivable(self) -> bool:
        """Whether the life cycle allows an archive."""
        return self.lifecycle.archivable


@dataclass(frozen=True, slots=True)
class Datablock:
    """One registered datablock."""

    id: str
    archive_id: str
    size: int
    packed_size: int
    version: str
    checksum_algorithm: str
    files: tuple[RegisteredFile, ...]


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One registered datablock without its files."""

    archive_id: str
    packed_size: int


class Catalogue:
    """One service account's view of SciCat. Every method may be called twice with the same arguments without harm.

    Every method raises `CatalogueUnavailable` for whatever may pass (no answer, no success), `Misconfigured` when the
    account itself is refused; those of a dataset raise `UnknownDataset` and `NoAccess`. Others are named at the method.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        username: str,
        password: str,
        api_prefix: str = "/api/v3",
        datasets_api_prefix: str = "",
        jobs_api_prefix: str = "/api/v4",
        ca_file: Path | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        total_timeout_s: float = 300.0,
    ) -> None:
        """Connect to nothing yet; the first call logs in.

        Args:
            endpoint: address of the backend.
            username: service account.
            password: its password.
            api_prefix: of login, users and datablocks, which exist in v3 only.
            datasets_api_prefix: of datasets, life cycles and original datablocks; empty is `api_prefix`.
            jobs_api_prefix: of jobs; the shape of their bodies follows it.
            ca_file: certificates to trust instead of the system's.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes.
            total_timeout_s: longest wait for a whole answer, however steadily it trickles.
        """
        self._username, self._password = username, password
        self._api, self._jobs_api = api_prefix.rstrip("/"), jobs_api_prefix.rstrip("/")
        self._datasets_api = datasets_api_prefix.rstrip("/") or self._api
        self._endpoint = endpoint.rstrip("/")
        self._control = ControlCalls(
            "scicat",
            CatalogueUnavailable,
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            total_timeout_s=total_timeout_s,
        )
        self._token, self._token_number, self._renew_at = "", 0, 0.0
        self._login = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._control.aclose()

    async def healthy(self) -> bool:
        """Whether the account can be used now. SciCat's own health page still says ok when its database is gone."""
        with contextlib.suppress(InfrastructureError):
            answer = await self._ask("asking for the own account", "GET", f"{self._api}/users/my/self")
            return answer.ok
        return False

    async def groups_of(self, token: str) -> frozenset[str]:
        """The groups of the user whose token of SciCat's this is; the service's own account is not used.

        Raises:
            TokenRefused: SciCat does not accept the token.
        """
        what = "asking whose a token is"
        if not _TOKEN.fullmatch(token):
            raise TokenRefused("that is no bearer token")
        answer = await self._send(what, "GET", f"{self._api}/users/my/identity", None, token)
        if answer.status in (401, 403):
            raise TokenRefused("the catalogue does not accept the token: it is expired, or not one of its own")
        groups = _mapping(_mapping(self._json(answer, what)).get("profile")).get("accessGroups")
        return (
            frozenset(str(group) for group in cast("list[object]", groups)) if isinstance(groups, list) else frozenset()
        )

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            UnknownJob: the catalogue does not know the id.
        """
        what = f"reading job {job_id!r}"
        answer = await self._ask(what, "GET", self._job_url(job_id))
        if _is_unknown_job(answer):
            raise UnknownJob(f"the catalogue does not know the job {job_id!r}")
        return _job(_mapping(self._json(answer, what)))

    async def patch_job(self, job_id: str, status: str, message: str, result: Mapping[str, Any] | None = None) -> None:
        """Set a job's status; the result is replaced whole when given, kept when not.

        Args:
            job_id: the job.
            status: v3 jobStatusMessage, v4 statusCode.
            message: v4 statusMessage, a sentence; v3 has no place for it.
            result: jobResultObject.

        Raises:
            JobRefused: the job, or its dataset, is unknown: this will never work.
        """
        what = f"setting the status of job {job_id!r}"
        if _is_v3(self._jobs_api):
            body: dict[str, Any] = {"jobStatusMessage": status}
        else:
            body = {"statusCode": status, "statusMessage": message}
        if result is not None:
            body["jobResultObject"] = result
        answer = await self._ask(what, "PATCH", self._job_url(job_id), body)
        if _is_unknown_job(answer) or (answer.status == 404 and "Unable to get a dataset" in _said(answer)):
            raise JobRefused(f"{what}: the catalogue answered {answer.status}{_said(answer)}")
        if not answer.ok:
            _refuse(what, answer)

    async def open_archive_jobs(self, pid: str) -> list[Job]:
        """The archive jobs with this dataset that have not finished, whether or not anybody works on them."""
        async with self._turn(pid):
            return await self._open_archive_jobs(pid)

    async def open_jobs(self) -> list[Job]:
        """The jobs that have not finished, the oldest first, whether or not anybody works on them."""
        where = {
            "type": {"$in": [kind.value for kind in JobType]},
            "statusCode": {"$nin": [status.value for status in JobStatus if finished(status)]},
        }
        jobs = await self._find_jobs("looking for jobs that have not finished", where)
        return sorted(jobs, key=lambda job: job.created)

    async def create_archive_job(self, pid: str, owner_user: str, owner_group: str, contact_email: str) -> str:
        """See to it that there is an archive job of this dataset which has not finished; its id.

        SciCat may have failed to tell us of the job, now or when it was made (by whomever), so whoever calls this
        starts the job's workflow himself; starting it twice does no harm.

        Args:
            pid: the dataset, which has to be archivable.
            owner_user: SciCat user that the job is to belong to.
            owner_group: SciCat group that the job is to belong to.
            contact_email: where SciCat sends its mails about the job.

        Raises:
            JobRefused: SciCat will never take such a job, e.g. since the dataset is not archivable.
        """
        what = f"posting an archive job of dataset {pid!r}"
        datasets: list[dict[str, Any]] = [{"pid": pid, "files": []}]
        body: dict[str, Any] = {"type": JobType.ARCHIVE.value}
        if _is_v3(self._jobs_api):
            params = {"username": owner_user, "ownerGroup": owner_group}
            body |= {"datasetList": datasets, "jobParams": params, "emailJobInitiator": contact_email}
        else:
            params = {"username": owner_user, "datasetList": datasets}
            body |= {"jobParams": params, "ownerUser": owner_user, "ownerGroup": owner_group}
            body |= {"contactEmail": contact_email}
        async with self._turn(pid):
            for job in await self._open_archive_jobs(pid):
                return job.id
            try:
                answer = await self._ask(what, "POST", f"{self._jobs_api}/jobs", body)
                if answer.status == 400 and not _is_of_url_action(answer):
                    raise JobRefused(f"{what}: the catalogue answered 400{_said(answer)}")
                return _text(_mapping(self._json(answer, what)), "id")
            except InfrastructureError:
                # The job is there if only the answer was lost, or if SciCat could not tell us of it.
                for job in await self._open_archive_jobs(pid):
                    return job.id
                raise

    async def _open_archive_jobs(self, pid: str) -> list[Job]:
        where = {"type": JobType.ARCHIVE.value, "jobParams.datasetList.pid": pid}
        return await self._find_jobs(f"looking for archive jobs of dataset {pid!r}", where)

    async def _find_jobs(self, what: str, where: Mapping[str, Any]) -> list[Job]:
        """Those that have not finished. Names are v4's, by which both versions look into the one store.

        v3's own `datasetList.pid` finds nothing (4.27, code).
        """
        query = json.dumps({"where": where, "limits": {"limit": _ALL}})
        answer = await self._ask(what, "GET", f"{self._jobs_api}/jobs?filter={quote(query, safe='')}")
        jobs = [_job(found) for found in _mappings(self._json(answer, what))]
        return [job for job in jobs if not finished(job.status)]

    def _job_url(self, job_id: str) -> str:
        return f"{self._jobs_api}/jobs/{quote(job_id, safe='')}"

    # --- Datasets -----------------------------------------------------------------------------------------------------

    async def dataset(self, pid: str) -> Dataset:
        """Read a dataset."""
        what = "reading"
        async with self._turn(pid):
            found = _mapping(await self._of_dataset(what, "GET", pid))
        return Dataset(
            pid=pid,
            owner_group=_text(found, "ownerGroup"),
            source_folder=_text(found, "sourceFolder"),
            size=_number(found, "size"),
            packed_size=_number(found, "packedSize"),
            number_of_files=_number(found, "numberOfFiles"),
            lifecycle=_lifecycle(_mapping(found.get("datasetlifecycle"))),
        )

    async def lifecycle(self, pid: str) -> Lifecycle:
        """Read a dataset's life cycle."""
        async with self._turn(pid):
            return _lifecycle(
                _mapping(await self._of_dataset("reading the life cycle of", "GET", pid, "/datasetlifecycle"))
            )

    async def patch_lifecycle(self, pid: str, fields: Mapping[str, Any]) -> None:
        """Change these fields of a dataset's life cycle, in SciCat's names, and no other."""
        async with self._turn(pid):
            await self._of_dataset("changing the life cycle of", "PATCH", pid, "/datasetlifecycle", fields)

    async def datasets_in(self, status: Mapping[str, str], after: str, limit: int) -> list[str]:
        """The next ids of datasets whose life cycle says so, sorted, behind `after`; empty when there are no more.

        Args:
            status: fields of `datasetlifecycle`, in SciCat's names.
            after: the last id of the page before.
            limit: at most so many.
        """
        what = "looking for datasets by their life cycle"
        where = {"pid": {"$gt": after}} | {f"datasetlifecycle.{name}": value for name, value in status.items()}
        order = {"order": "pid:asc"} if _is_v3(self._datasets_api) else {"skip": 0, "sort": {"pid": "asc"}}
        query = json.dumps({"where": where, "limits": {"limit": limit, **order}})
        answer = await self._ask(what, "GET", f"{self._datasets_api}/datasets?filter={quote(query, safe='')}")
        return [_text(found, "pid") for found in _mappings(self._json(answer, what))]

    async def mark_archivable(self, pid: str) -> None:
        """Tell that all files of a dataset have arrived; not for one whose archive is under way."""
        await self.patch_lifecycle(pid, uploaded_fields())

    async def original_files(self, pid: str) -> list[RegisteredFile]:
        """All entries of all original datablocks, in the order of registration; paths as registered."""
        async with self._turn(pid):
            if _is_v3(self._datasets_api):
                found = await self._of_dataset("reading the original datablocks of", "GET", pid, "/origdatablocks")
            else:
                found = await self._find_original_blocks(pid)
        return [file for block in _mappings(found) for file in _files(block)]

    async def _find_original_blocks(self, pid: str) -> object:
        """By a filter, as v4 wants it, which leaves out what may not be read: an empty answer is not taken on trust."""
        what = f"reading the original datablocks of dataset {pid!r}"
        # Without limits the newest ten would come, newest first (4.27, code).
        limits = {"limit": _ALL, "skip": 0, "sort": {"createdAt": "asc"}}
        query = json.dumps({"where": {"datasetId": pid}, "limits": limits})
        answer = await self._ask(what, "GET", f"{self._datasets_api}/origdatablocks?filter={quote(query, safe='')}")
        found = self._json(answer, what)
        if not found and _number(_mapping(await self._of_dataset("reading", "GET", pid)), "numberOfFiles"):
            raise self._no_access(what, "")
        return found

    async def datablocks(self, pid: str) -> list[Datablock]:
        """All registered datablocks."""
        async with self._turn(pid):
            return await self._datablocks(pid)

    async def add_datablock(
        self,
        pid: str,
        *,
        archive_id: str,
        size: int,
        packed_size: int,
        version: str,
        checksum_algorithm: str,
        files: Sequence[Mapping[str, Any]],
    ) -> None:
        """Register a datablock; one with this archiveId at this dataset counts as done.

        Args:
            pid: the dataset.
            archive_id: unique over all of the catalogue.
            size: bytes of payload.
            packed_size: bytes on the LTS.
            version: format of the datablock.
            checksum_algorithm: of the entries' `chk`.
            files: `dataFileList`; path, size and time of each are required.
        """
        body: dict[str, Any] = {
            "archiveId": archive_id,
            "size": size,
            "packedSize": packed_size,
            "version": version,
            "chkAlg": checksum_algorithm,
            "dataFileList": list(files),
        }
        async with self._turn(pid):
            try:
                await self._of_dataset("registering a datablock of", "POST", pid, "/datablocks", body)
            except CatalogueUnavailable:
                # Also what a second POST with the same archiveId meets, e.g. one whose first answer was lost. To look
                # first would cost a reading of all files of all datablocks for each of them.
                if not any(block.archive_id == archive_id for block in await self._datablocks(pid)):
                    raise

    async def delete_datablock(self, pid: str, datablock_id: str) -> None:
        """Take a datablock out of the catalogue; an absent one, or one of an absent dataset, is fine."""
        async with self._turn(pid):
            with contextlib.suppress(UnknownDataset):
                await self._of_dataset(
                    "deleting a datablock of", "DELETE", pid, f"/datablocks/{quote(datablock_id, safe='')}"
                )

    async def datasets_with_blocks(self, after: str, limit: int) -> list[str]:
        """The next ids of datasets that have datablocks, sorted, behind `after`; empty when there are no more.

        One page of at most `limit` datablocks is read, so there may be fewer datasets. A dataset need not exist any
        more: its datablocks may.
        """
        where = {"datasetId": {"$gt": after}}
        found = await self._find_blocks(where, ("datasetId",), {"limit": limit, "order": "datasetId:asc"})
        return list(dict.fromkeys(_text(block, "datasetId") for block in found))

    async def block_entries(self, pid: str) -> list[BlockEntry]:
        """All registered datablocks of a dataset, which may be gone itself, without their files."""
        # Without a limit the backend gives no more than 100 (4.27, code).
        found = await self._find_blocks({"datasetId": pid}, ("archiveId", "packedSize"), {"limit": _ALL})
        return [BlockEntry(_text(block, "archiveId"), _number(block, "packedSize")) for block in found]

    async def is_archive_id(self, archive_id: str) -> bool:
        """Whether any dataset has a datablock of this name."""
        return bool(await self._find_blocks({"archiveId": archive_id}, ("archiveId",), {"limit": 1}))

    async def _find_blocks(
        self, where: Mapping[str, Any], fields: Sequence[str], limits: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """By a filter over all of the catalogue; an account of DELETE_GROUPS sees everything there."""
        what = "looking for datablocks"
        query = json.dumps({"where": where, "fields": list(fields), "limits": limits})
        answer = await self._ask(what, "GET", f"{self._api}/datablocks?filter={quote(query, safe='')}")
        return _mappings(self._json(answer, what))

    async def _datablocks(self, pid: str) -> list[Datablock]:
        found = await self._of_dataset("reading the datablocks of", "GET", pid, "/datablocks")
        return [
            Datablock(
                id=_text(block, "id") or _text(block, "_id"),
                archive_id=_text(block, "archiveId"),
                size=_number(block, "size"),
                packed_size=_number(block, "packedSize"),
                version=_text(block, "version"),
                checksum_algorithm=_text(block, "chkAlg"),
                files=tuple(_files(block)),
            )
            for block in _mappings(found)
        ]

    @asynccontextmanager
    async def _turn(self, pid: str) -> AsyncGenerator[None]:
        """Wait until no other call of this dataset is under way."""
        lock = self._turns.setdefault(pid, asyncio.Lock())
        async with lock:
            yield

    async def _of_dataset(
        self, doing: str, method: str, pid: str, resource: str = "", body: Mapping[str, Any] | None = None
    ) -> object:
        """One call of a dataset; its answer's JSON, None if there is no body."""
        what = f"{doing} dataset {pid!r}"
        api = self._api if resource.startswith("/datablocks") else self._datasets_api
        answer = await self._ask(what, method, f"{api}/datasets/{quote(pid, safe='')}{resource}", body)
        if answer.status == 404 and not _is_unknown_route(answer):
            raise UnknownDataset(f"{what}: the catalogue does not know it{_said(answer)}")
        if answer.status == 403:
            raise self._no_access(what, _said(answer))
        return self._json(answer, what)

    def _no_access(self, what: str, said: str) -> NoAccess:
        return NoAccess(
            f"{what}: SciCat does not let the archiver do that (its account is {self._username!r}); ask whoever "
            f"looks after SciCat{said}"
        )

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _ask(self, what: str, method: str, url: str, body: Mapping[str, Any] | None = None) -> Answer:
        """One call with a token that has not expired; 401 and 403 are believed from a fresh token only."""
        token, number = await self._fresh_token()
        answer = await self._send(what, method, url, body, token)
        if answer.status in (401, 403) and not _is_of_url_action(answer):
            token, _ = await self._fresh_token(after=number)
            answer = await self._send(what, method, url, body, token)
        if answer.status == 401 and not _is_of_url_action(answer):
            raise Misconfigured(f"{what}: the catalogue refuses the account {self._username!r}")
        return answer

    async def _send(
        self, what: str, method: str, url: str, body: Mapping[str, Any] | None, token: str | None
    ) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await self._control.ask(what, method, self._endpoint + url, headers=headers, body=body)

    async def _fresh_token(self, after: int = 0) -> tuple[str, int]:
        """The token in use and its number, or a new one if that has nearly expired or was refused.

        Numbers tell tokens apart; the tokens do not, since two of one second are equal.

        Args:
            after: number of the token that was refused.
        """
        async with self._login:
            if self._token_number > after and time.monotonic() < self._renew_at:
                return self._token, self._token_number
            what = "logging in"
            asked_at = time.monotonic()
            credentials = {"username": self._username, "password": self._password}
            answer = await self._send(what, "POST", f"{self._api}/auth/login", credentials, None)
            if answer.status in (400, 401, 403):
                raise Misconfigured(f"{what}: the catalogue refuses the account {self._username!r}")
            if answer.status == 404:
                raise Misconfigured(f"{what}: the catalogue has no login at {self._api}/auth/login")
            granted = _mapping(self._json(answer, what))
            token = _text(granted, "access_token")
            life_s = _number(granted, "expires_in") or _number(granted, "ttl") or 600
            if not _TOKEN.fullmatch(token):
                raise CatalogueUnavailable(f"{what}: the answer holds no token that can be sent")
            self._token, self._token_number = token, self._token_number + 1
            self._renew_at = asked_at + life_s - _renewal_margin_s(life_s)
            return token, self._token_number

    @staticmethod
    def _json(answer: Answer, what: str) -> object:
        if not answer.ok:
            _refuse(what, answer)
        if not answer.body:
            return None
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise CatalogueUnavailable(f"{what}: the answer is not JSON") from error


def _renewal_margin_s(life_s: float) -> float:
    """A token is renewed so long before it expires. Its times are whole seconds, so it may live one less than said."""
    return max(2.0, min(60.0, life_s / 10))


def _refuse(what: str, answer: Answer) -> NoReturn:
    misconfigured = (answer.status in (401, 403) and not _is_of_url_action(answer)) or _is_unknown_route(answer)
    kind = Misconfigured if misconfigured else CatalogueUnavailable
    raise kind(f"{what}: the catalogue answered {answer.status}{_said(answer)}")


def _said(answer: Answer) -> str:
    """The catalogue's own words, of which there are several shapes, cut short."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return ""
    message = body if isinstance(body, str) else _mapping(body).get("message")
    if isinstance(message, list):
        message = "; ".join(str(line) for line in cast("list[object]", message))
    return f": {str(message)[:300]}" if message else ""


def _is_unknown_job(answer: Answer) -> bool:
    """An unknown id is a 400 like any other but for its text."""
    return answer.status == 400 and "Invalid job id" in _said(answer)


def _is_of_url_action(answer: Answer) -> bool:
    """Whether it was not SciCat that failed but its call of us: the job is there, and a status is not SciCat's own."""
    said = _said(answer)
    return said.startswith(": A remote URL call failed") or "unable to perform action 'url'" in said


def _is_v3(prefix: str) -> bool:
    return "v3" in prefix.split("/")


def _is_unknown_route(answer: Answer) -> bool:
    """Whether the backend is too old, or the prefix wrong, rather than the thing asked for unknown."""
    return answer.status == 404 and _said(answer).startswith(": Cannot ")


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _mappings(value: object) -> list[dict[str, Any]]:
    return [_mapping(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    return "" if value is None else str(value)


def _number(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _job(found: Mapping[str, Any]) -> Job:
    params = _mapping(found.get("jobParams"))
    entries = _mappings(found.get("datasetList")) or _mappings(params.get("datasetList"))
    return Job(
        id=_text(found, "id") or _text(found, "_id"),
        type=_text(found, "type"),
        status=_text(found, "statusCode") or _text(found, "jobStatusMessage"),
        datasets=tuple(
            JobDataset(_text(entry, "pid"), tuple(str(name) for name in cast("list[object]", entry.get("files") or [])))
            for entry in entries
        ),
        owner_group=_text(found, "ownerGroup"),
        owner_user=_text(found, "ownerUser") or _text(params, "username"),
        result=_mapping(found.get("jobResultObject")),
        created=_text(found, "createdAt") or _text(found, "creationTime"),
    )


def _lifecycle(found: dict[str, Any]) -> Lifecycle:
    return Lifecycle(
        archivable=found.get("archivable") is True,
        retrievable=found.get("retrievable") is True,
        archive_status=_text(found, "archiveStatusMessage"),
        retrieve_status=_text(found, "retrieveStatusMessage"),
        is_on_central_disk=found.get("isOnCentralDisk") is True,
        raw=found,
    )


def _files(block: Mapping[str, Any]) -> list[RegisteredFile]:
    algorithm = _text(block, "chkAlg")
    return [
        RegisteredFile(
            path=_text(entry, "path"),
            size=_number(entry, "size"),
            time=_text(entry, "time"),
            perm=_text(entry, "perm"),
            uid=_text(entry, "uid"),
            gid=_text(entry, "gid"),
            digest=_text(entry, "chk").lower(),
            algorithm=algorithm,
        )
        for entry in _mappings(block.get("dataFileList"))
    ]
