"""What every end point is given: the world, the user, the API version, the decoded pid, the body."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, cast
from urllib.parse import parse_qsl, unquote

from fastapi import Depends, Request

from .accounts import Accounts, User
from .config import Config
from .errors import forbidden, refusal, unhandled
from .job_actions import UrlAction
from .rights import Rights
from .store import Store
from .validation import Document, Shape, messages, violations

BODY_LIMIT_BYTES = 16 * 1024 * 1024
"""MAX_FILE_UPLOAD_SIZE; a larger body is a bare 500 (observed)."""

MERGE_PATCH = "application/merge-patch+json"
Version = Literal["v3", "v4"]


@dataclass(frozen=True, kw_only=True)
class World:
    """The parts of one running stand-in."""

    config: Config
    store: Store
    accounts: Accounts
    rights: Rights
    url_action: UrlAction | None


@dataclass(frozen=True, kw_only=True)
class Body:
    """A request's JSON object and the media type that it came with."""

    document: Document
    content_type: str

    @property
    def is_merge_patch(self) -> bool:
        """Sent as RFC 7396 merge patch."""
        return self.content_type == MERGE_PATCH

    def check(self, shape: Shape) -> Document:
        """The document, if it has this shape.

        Raises:
            ScicatError: 400 with the list of violations.
        """
        if found := violations(self.document, shape):
            raise refusal(400, messages(found))
        return self.document


def now() -> str:
    """The time as MongoDB's dates come out: UTC, milliseconds, Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge, null removes, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged: Document = dict(cast("Document", target)) if isinstance(target, dict) else {}
    for name, value in cast("Document", patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _world(request: Request) -> World:
    return request.app.state.world


def _user(request: Request) -> User | None:
    # Only "Bearer <token>": a raw token or ?access_token= does not work (observed).
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return _world(request).accounts.user_of(token.strip()) if scheme.lower() == "bearer" else None


def _logged_in(user: "Annotated[User | None, Depends(_user)]") -> User:
    if user is None:
        raise forbidden()
    return user


def _version(request: Request) -> Version:
    return "v4" if request.scope["path"].startswith("/api/v4/") else "v3"


def _pid(request: Request) -> str:
    return unquote(request.path_params["pid"])


def _id(request: Request) -> str:
    return unquote(request.path_params["id"])


async def read_bytes(request: Request) -> bytes:
    """The whole body.

    Raises:
        ScicatError: it is larger than 16 MiB (bare 500), after reading it to its end as the client expects.
    """
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes <= BODY_LIMIT_BYTES:
            chunks.append(chunk)
    if size_bytes > BODY_LIMIT_BYTES:
        raise unhandled()
    return b"".join(chunks)


async def _body(request: Request) -> Body:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    data = await read_bytes(request)
    if content_type == "application/x-www-form-urlencoded":
        return Body(document=dict(parse_qsl(data.decode(errors="replace"))), content_type=content_type)
    if content_type not in ("application/json", MERGE_PATCH) or not data.strip():
        # Express leaves a body of another type unparsed; the end point then sees an empty one.
        return Body(document={}, content_type=content_type)
    try:
        document: Any = json.loads(data, parse_constant=_refuse_constant)
    except ValueError as error:
        raise refusal(400, f"Malformed JSON: {error}") from None
    if not isinstance(document, dict):
        raise refusal(400, ["an object is expected"])
    return Body(document=cast("Document", document), content_type=content_type)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


WorldDep = Annotated[World, Depends(_world)]
UserDep = Annotated[User | None, Depends(_user)]
LoggedIn = Annotated[User, Depends(_logged_in)]
"""Refuses with 403, also an expired token: SciCat's guards know no 401."""
VersionDep = Annotated[Version, Depends(_version)]
PidDep = Annotated[str, Depends(_pid)]
IdDep = Annotated[str, Depends(_id)]
BodyDep = Annotated[Body, Depends(_body)]
