"""What stands behind the API, pretended: Temporal, the stores, the identity provider, SciCat and datasets' uploads."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import httpx

from api.dependencies import Services
from api.gateway import NoSuchPage, OtherType
from clients.landing_zone import LandingZone
from clients.s3 import ObjectHead
from clients.s3_bulk import PartRefused, UploadVanished
from clients.s3_wire import Wire
from domain.errors import TokenRefused
from domain.lifecycle import JobType, Outcome, Phase
from domain.orders import JobOrder
from domain.outcome import DatasetOutcome
from domain.progress import DatasetProgress, JobDatasetProgress, JobProgress
from domain.steering import JobList, JobSummary, Steered, Verb
from domain.uploads import FinalizedUpload, FinalizeUpload
from settings import Settings
from tests.digests import composite_b64, sha256_b64

SCICAT = ("scicat", "pässword:with colon")
OPERATOR = ("operator", "word")
JOB_ID = "0d4c3f6e-5a58-4c6c-9d6f-5f6a1d3c7f10"
SERVICE_TOKEN, SCICAT_TOKEN, OUTSIDERS_TOKEN = "of-the-service", "of-a-member", "of-an-outsider"
BUCKET = "landingzone"
KNOWN_DATASET = "20.500/known"

# Outcomes by position in the job; the workflow has ceased to remember the pid of the first.
ENDED = {
    250: DatasetOutcome(pid="p/250", status=Outcome.DATASET_ERROR, error_class="MissingFiles", message="1 of 2"),
    0: DatasetOutcome(pid="p/0", status=Outcome.ARCHIVED, bytes=5),
}


@dataclass
class PretendGateway:
    """Starts each job once, or fails as it is told; knows the dataset `20.500/known`, which can only be paused."""

    started: dict[str, tuple[JobType, str]] = field(default_factory=dict[str, tuple[JobType, str]])
    orders: list[JobOrder] = field(default_factory=list[JobOrder])
    failure: Exception | None = None
    told: list[tuple[str, Verb, str]] = field(default_factory=list[tuple[str, Verb, str]])
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    async def jobs(self, **filters: Any) -> JobList:
        self.asked.append(filters)
        if filters["page"] == "none of ours":
            raise NoSuchPage("no page of a list begins there")
        listed = JobSummary(
            id=JOB_ID, type="archive", phase=Phase.PARKED, started="2026-01-02", workflow_id=f"job/{JOB_ID}", run_id="r"
        )
        return JobList(jobs=(listed,), next_page="more")

    async def steer_job(self, job_id: str, verb: Verb) -> Steered | None:
        if job_id not in self.started:
            return None
        self.told.append((job_id, verb, ""))
        name = f"job/{job_id}"
        return (
            Steered(verb=verb, acted=(name,))
            if verb is Verb.PAUSE
            else Steered(verb=verb, acted=(), left_alone={name: "too late"})
        )

    async def steer_dataset(self, pid: str, verb: Verb, by: str) -> Steered | None:
        if pid != KNOWN_DATASET:
            return None
        self.told.append((pid, verb, by))
        left_alone = {"retrieve-dataset/20.500/known": "already ended: retrieved"}
        if verb is Verb.PAUSE:
            return Steered(verb=verb, acted=("archive-dataset/20.500/known",), left_alone=left_alone)
        return Steered(verb=verb, acted=(), left_alone={"archive-dataset/20.500/known": "too late", **left_alone})

    async def start_job(self, order: JobOrder, *, within_s: float) -> str:
        if self.failure:
            raise self.failure
        self.orders.append(order)
        known, run_id = self.started.setdefault(order.job_id, (order.type, str(uuid4())))
        if known is not order.type:
            raise OtherType(f"job {order.job_id} was started as {known.value}")
        return run_id

    async def healthy(self) -> bool:
        if self.failure:
            raise self.failure
        return True

    async def job(self, job_id: str) -> JobProgress | None:
        if self.failure:
            raise self.failure
        if job_id not in self.started:
            return None
        shown = (JobDatasetProgress(pid="", n=250, phase="done"), JobDatasetProgress(pid="p/7", n=7, phase="moving"))
        return JobProgress(id=job_id, type="archive", phase=Phase.WRITING, datasets_total=251, datasets=shown)

    async def dataset(self, pid: str) -> list[DatasetProgress]:
        return [DatasetProgress(pid=pid, kind="archive", phase=Phase.WRITING)] if pid == KNOWN_DATASET else []


@dataclass
class PretendStore:
    """The state bucket and S3, as far as these routes ask."""

    failure: Exception | None = None

    async def outcomes(self, job_id: str, positions: Iterable[int]) -> list[DatasetOutcome | None]:
        if self.failure:
            raise self.failure
        return [ENDED.get(n) for n in positions]

    async def versioning(self, bucket: str) -> str:
        return "Enabled"


@dataclass
class PretendS3:
    """One bucket as far as `LandingZone` asks of it: open uploads by id with their key, objects by key."""

    failure: Exception | None = None
    open: dict[str, str] = field(default_factory=dict[str, str])
    parts: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict[str, dict[int, tuple[str, str]]])
    objects: dict[str, ObjectHead] = field(default_factory=dict[str, ObjectHead])

    async def create_multipart(self, bucket: str, key: str) -> str:
        self._work()
        upload_id = secrets.token_urlsafe(12)
        self.open[upload_id], self.parts[upload_id] = key, {}
        return upload_id

    async def complete_multipart(
        self, bucket: str, key: str, upload_id: str, parts: Sequence[tuple[int, str, str]], composite_b64: str
    ) -> str:
        self._work()
        if self.open.get(upload_id) != key:
            raise UploadVanished("the upload is unknown")
        if any(self.parts[upload_id].get(number) != (etag, digest) for number, etag, digest in parts):
            raise PartRefused("S3 has other parts", "InvalidPart")
        del self.open[upload_id]
        self.objects[key] = head(f"{composite_b64}-{len(parts)}")
        return f"http://inside/{bucket}/{key}"

    async def head(self, bucket: str, key: str) -> ObjectHead | None:
        self._work()
        return self.objects.get(key)

    async def abort_multipart(self, bucket: str, key: str, upload_id: str) -> None:
        self._work()
        if self.open.get(upload_id) == key:
            del self.open[upload_id]

    def _work(self) -> None:
        if self.failure:
            raise self.failure


def head(composite: str, etag: str = "etag") -> ObjectHead:
    return ObjectHead(
        size=1, etag=etag, last_modified=datetime(2026, 1, 2, tzinfo=UTC), version_id=None, composite_sha256=composite
    )


WHOLE_OBJECT = f"openem-network/datasets/{KNOWN_DATASET}/raw_files/whole"
WHOLE: dict[str, Any] = {
    "parts": [{"part_number": 1, "etag": "etag", "checksum_sha256": sha256_b64(b"whole")}],
    "checksum_sha256": composite_b64(b"whole"),
}
"""What completes an object that was put whole."""


@dataclass
class PretendIdentity:
    """Knows the service's token, and gives it out."""

    failure: Exception | None = None
    """Of the keys."""
    grant_failure: Exception | None = None
    answer: Mapping[str, Any] = field(
        default_factory=lambda: {
            "access_token": SERVICE_TOKEN,
            "refresh_token": "renewal",
            "expires_in": 300,
            "refresh_expires_in": 1800,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "session_state": "s",
            "scope": "email profile",
            "id_token": "not ours to pass on",
        }
    )

    async def answers(self) -> bool:
        if self.failure:
            raise self.failure
        return True

    async def issued(self, token: str) -> bool:
        return token.startswith(SERVICE_TOKEN)

    async def check(self, token: str) -> None:
        if self.failure:
            raise self.failure
        if token != SERVICE_TOKEN:
            raise TokenRefused("it has expired")

    async def service_token(self) -> Mapping[str, Any]:
        if self.grant_failure:
            raise self.grant_failure
        return self.answer


@dataclass
class PretendCatalogue:
    """Knows whose SciCat tokens these are."""

    failure: Exception | None = None

    async def groups_of(self, token: str) -> frozenset[str]:
        if self.failure:
            raise self.failure
        groups = {SCICAT_TOKEN: {"group1", "other"}, OUTSIDERS_TOKEN: {"group"}}
        if token not in groups:
            raise TokenRefused("the catalogue does not accept the token")
        return frozenset(groups[token])


@dataclass
class PretendUploads:
    """Admits objects into every dataset, and datasets of up to 10 GiB, unless told otherwise."""

    failure: Exception | None = None
    asked: list[str] = field(default_factory=list[str])
    wishes: list[FinalizeUpload] = field(default_factory=list[FinalizeUpload])

    async def admit_urls(self, pid: str) -> None:
        self._work(pid)

    async def request(self, pid: str, size_gib: int) -> bool:
        self._work(pid)
        return size_gib <= 10

    async def finalize(self, pid: str, wish: FinalizeUpload) -> FinalizedUpload:
        self._work(pid)
        self.wishes.append(wish)
        return FinalizedUpload(job_id=JOB_ID if wish.create_job else "")

    async def abort(self, pid: str) -> None:
        self._work(pid)

    def _work(self, pid: str) -> None:
        self.asked.append(pid)
        if self.failure:
            raise self.failure


@dataclass
class Front:
    """All of it."""

    gateway: PretendGateway = field(default_factory=PretendGateway)
    store: PretendStore = field(default_factory=PretendStore)
    s3: PretendS3 = field(default_factory=PretendS3)
    identity: PretendIdentity = field(default_factory=PretendIdentity)
    catalogue: PretendCatalogue = field(default_factory=PretendCatalogue)
    uploads: PretendUploads = field(default_factory=PretendUploads)

    def services(self) -> Services:
        outside = Wire(endpoint="https://s3.example.org", access_key="u", secret_key="p", region="eu-west-1")
        return cast("Any", Services)(
            gateway=self.gateway,
            objects=self.store,
            state=self.store,
            landing_zone=LandingZone(cast("Any", self.s3), BUCKET, outside, expires_s=3600),
            catalogue=self.catalogue,
            identity=self.identity,
            uploads=self.uploads,
        )


def settings(**more: Any) -> Settings:
    given: dict[str, Any] = {
        "environment": "development",
        "job_endpoint_username": SCICAT[0],
        "job_endpoint_password": SCICAT[1],
        "operator_username": OPERATOR[0],
        "operator_password": OPERATOR[1],
        "s3_user": "u",
        "s3_password": "p",
    }
    return Settings(**(given | more))


def assert_is_unprocessable(answer: httpx.Response) -> list[dict[str, Any]]:
    """The one shape that the Ingestor decodes: a list of reasons."""
    assert answer.status_code == 422
    reasons: list[dict[str, Any]] = answer.json()["detail"]
    assert reasons
    for reason in reasons:
        assert reason.keys() == {"loc", "msg", "type"}
        assert all(isinstance(part, str | int) for part in reason["loc"])
    return reasons


def assert_is_server_error(answer: httpx.Response, code: str) -> dict[str, str]:
    assert answer.status_code == 500
    body: dict[str, str] = answer.json()
    assert body.keys() == {"code", "message", "details", "timestamp"}
    assert (body["code"], bool(body["message"])) == (code, True)
    assert datetime.fromisoformat(body["timestamp"]).utcoffset() is not None
    return body
