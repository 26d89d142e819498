"""Bodies of the API: strict types, unknown fields ignored, names as clients know them."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from domain.errors import DatasetError
from domain.names import MAX_KEY_BYTES, check_raw_key
from domain.pid import MAX_PID_BYTES, check_pid

MAX_PARTS = 10_000
"""S3's limit for one upload."""


class Body(BaseModel):
    """Base of every body."""

    model_config = ConfigDict(strict=True, extra="ignore")


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).isoformat()


def _safe(pid: str) -> str:
    try:
        return check_pid(pid)
    except DatasetError as error:
        raise _refusal(error) from error


def _refusal(error: DatasetError) -> PydanticCustomError:
    return PydanticCustomError("value_error", "{reason}", {"reason": str(error)})


def _whole(number: object) -> object:
    return int(number) if isinstance(number, float) and number.is_integer() else number


WHOLE = BeforeValidator(_whole)
"""Stands behind the limits of an integer, or its JSON schema lacks them: there, 5.0 is an integer."""

_A_KEY = "openem-network/datasets/20.500.11935/8c4e/raw_files/grid 1/frame+1.tif"

DatasetId = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PID_BYTES, description="SciCat's pid", examples=["20.500.11935/8c4e"]),
    AfterValidator(_safe),
]
ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_KEY_BYTES,
        description="The whole key: openem-network/datasets/<dataset_id>/raw_files/<path>",
        examples=[_A_KEY],
    ),
]
UploadId = Annotated[
    str,
    Field(
        max_length=1024,
        pattern="^[ -~]*$",
        description="From /s3/presignedUrls; empty for an object that was put whole",
    ),
]
Digest = Annotated[str, Field(min_length=1, max_length=100, pattern="^[!-~]+$", description="SHA-256 in base64")]


class CreateJob(Body):
    """SciCat's word that a job exists."""

    id: Annotated[UUID, Field(strict=False)]  # a string in JSON; anything else is refused all the same
    type: Literal["archive", "retrieve"]


class SteerDataset(Body):
    """Which dataset is meant."""

    pid: str
    by: Annotated[str, Field(max_length=200)] = ""
    """Who says so; stands in the answers of the paused dataset."""


class JobStarted(Body):
    """The run that carries the job out; the same for every repeat of the request."""

    uuid: UUID
    name: str


class Healthy(Body):
    """The process is alive."""

    status: Literal["healthy"] = "healthy"
    timestamp: str = Field(default_factory=now)


class DependencyError(Body):
    """One dependency that does not answer."""

    dependency: str
    endpoint: str
    message: str


class Ready(Body):
    """Everything that the service needs answers."""

    status: Literal["ready"] = "ready"
    timestamp: str = Field(default_factory=now)
    notes: list[DependencyError] = []
    """What does not answer, though only new uploads need it."""


class NotReady(Body):
    """Something that the service needs does not answer."""

    status: Literal["not ready"] = "not ready"
    error: str
    errors: list[DependencyError]
    notes: list[DependencyError] = []


class ServerError(Body):
    """Body of every 500: all fields are always there, since clients dereference them."""

    code: str
    message: str
    details: str
    timestamp: str = Field(default_factory=now)


class Detail(Body):
    """Body of a 401, 404 or 409."""

    detail: str


class Invalid(Body):
    """One reason of a 422."""

    loc: list[str | int]
    msg: str
    type: str


class Unprocessable(Body):
    """Body of every 422: `detail` is always a list."""

    detail: list[Invalid]


class OfObject(Body):
    """An object of a dataset; its name lies within the dataset's own folder."""

    dataset_id: DatasetId
    object_name: ObjectName

    @field_validator("object_name")
    @classmethod
    def _within_its_dataset(cls, key: str, info: ValidationInfo) -> str:
        # A dataset id that was refused itself is absent here.
        return _checked_key(key, info.data.get("dataset_id", ""))


class PresignedUrl(OfObject):
    """Where are these parts to be put?"""

    parts: Annotated[int, Field(ge=1, le=MAX_PARTS), WHOLE]


class PresignedUrls(Body):
    """One URL for each part, in the order of the parts, each in base64; whoever has one may upload."""

    upload_id: str
    urls: list[str]


class UploadedPart(Body):
    """One part as S3 took it in."""

    part_number: Annotated[int, Field(ge=1, le=MAX_PARTS), WHOLE]
    etag: Annotated[str, Field(min_length=1, max_length=200, pattern="^[!-~]+$", description="Without quotes")]
    checksum_sha256: Digest


class CompleteUpload(OfObject):
    """All parts are there; make an object of them."""

    upload_id: UploadId
    parts: Annotated[list[UploadedPart], Field(min_length=1, max_length=MAX_PARTS)]
    checksum_sha256: Annotated[Digest, Field(description="SHA-256 in base64 over the raw digests of all parts")]

    @field_validator("parts")
    @classmethod
    def _each_once(cls, parts: list[UploadedPart]) -> list[UploadedPart]:
        if len({part.part_number for part in parts}) < len(parts):
            raise PydanticCustomError("value_error", "a part number stands there more than once")
        return sorted(parts, key=lambda part: part.part_number)


class CompletedUpload(Body):
    """The object."""

    location: str
    key: str


class AbortUpload(Body):
    """Forget the parts; clients say neither the dataset nor, where none was given, the upload id."""

    dataset_id: str
    object_name: ObjectName
    upload_id: UploadId

    @field_validator("object_name")
    @classmethod
    def _within_a_dataset(cls, key: str) -> str:
        return _checked_key(key, "")


class AbortedUpload(Body):
    """There is no such upload any more."""

    message: str
    upload_id: str
    object_name: str


class UploadRequest(Body):
    """Is there room for a dataset?"""

    dataset_id: DatasetId
    dataset_size_gib: Annotated[
        int, Field(ge=0, description="Cut off to whole GiB, so up to 1 GiB more may come"), WHOLE
    ]


class UploadAdmitted(Body):
    """There is, and it is kept."""

    message: str


class NoRoom(Body):
    """There is none now: body of a 507."""

    message: str
    dataset_id: str
    requested_size_gib: int


def _with_an_at(address: str) -> str:
    name, at, host = address.rpartition("@")
    if not (name and at and host) or any(character.isspace() for character in address):
        raise PydanticCustomError("value_error", "that is no e-mail address")
    return address


class FinalizeDatasetUpload(Body):
    """All of a dataset is uploaded."""

    dataset_id: DatasetId
    create_archiving_job: bool
    owner_group: str
    owner_user: str
    contact_email: Annotated[str, Field(json_schema_extra={"format": "email"}), AfterValidator(_with_an_at)]


class AbortDatasetUpload(Body):
    """Nothing of a dataset is to stay."""

    dataset_id: DatasetId


class DatasetUploadDone(Body):
    """What has become of the dataset."""

    dataset_id: str
    message: str


def _checked_key(key: str, pid: str) -> str:
    try:
        return check_raw_key(key, pid)
    except DatasetError as error:
        raise _refusal(error) from error


class IssuedToken(Body):
    """The identity provider's answer, passed on."""

    access_token: str
    refresh_token: str
    expires_in: int
    refresh_expires_in: int | None = None
    token_type: str | None = None
    not_before_policy: Annotated[int | None, Field(alias="not-before-policy")] = None
    session_state: str | None = None
    scope: str | None = None
