"""Bodies of the API: strict types, unknown fields ignored, names as clients know them."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """Base of every body."""

    model_config = ConfigDict(strict=True, extra="ignore")


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).isoformat()


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


class Ready(Body):
    """Everything that the service needs answers."""

    status: Literal["ready"] = "ready"
    timestamp: str = Field(default_factory=now)


class DependencyError(Body):
    """One dependency that does not answer."""

    dependency: str
    endpoint: str
    message: str


class NotReady(Body):
    """Something that the service needs does not answer."""

    status: Literal["not ready"] = "not ready"
    error: str
    errors: list[DependencyError]


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
