"""Login and "who am I"; v3 only, as in SciCat."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from . import filters
from .accounts import User
from .context import BodyDep, LoggedIn, UserDep, WorldDep, now
from .errors import ScicatError, not_found, unauthenticated
from .validation import Document

router = APIRouter(tags=["users"])


@router.post("/auth/login")
async def login(world: WorldDep, body: BodyDep) -> JSONResponse:
    """Give out a token for a name and a password, sent as JSON or as a form."""
    username, password = body.document.get("username"), body.document.get("password")
    user = None
    if isinstance(username, str) and isinstance(password, str):
        user = world.accounts.check_password(username, password)
    if user is None:
        raise ScicatError(401, {"message": "Unauthorized", "statusCode": 401})
    token, ttl_s = world.accounts.token(user), world.accounts.ttl_s
    answer = {"access_token": token, "id": token, "expires_in": ttl_s, "ttl": ttl_s, "created": now()}
    return JSONResponse(answer | {"userId": user.id, "user": _record(user)}, status_code=201)


@router.post("/users/login")
async def useless_login() -> Response:
    """201 with an empty body, whoever asks (observed)."""
    return Response(status_code=201)


@router.post("/auth/logout")
async def logout() -> JSONResponse:
    """Say so; the token stays valid (observed)."""
    return JSONResponse({"logout": "successful"})


@router.get("/auth/whoami")
async def whoami(user: LoggedIn) -> JSONResponse:
    """The shortest way to one's groups."""
    record = {"_id": user.id, "username": user.username, "email": user.email}
    return JSONResponse(record | {"currentGroups": list(user.groups), "authStrategy": "local"})


@router.get("/users/my/self")
async def my_self(user: UserDep) -> JSONResponse:
    """One's record, without groups. Without a good token 401, unlike everywhere else."""
    return JSONResponse(_record(_known(user)))


@router.get("/users/my/identity")
async def my_identity(user: UserDep) -> JSONResponse:
    """One's identity: `profile.accessGroups` has the groups."""
    return JSONResponse(_identity(_known(user)))


@router.get("/users/{id}/userIdentity")
async def identity_of(world: WorldDep, user: LoggedIn, id: str) -> JSONResponse:  # noqa: A002 the path's name
    """Somebody's identity; the Ingestor asks for its own by this."""
    asked = world.accounts.find_by_id(id)
    if asked is None or not (asked == user or world.rights.is_admin(user)):
        raise not_found(f"user: {id} not found")
    return JSONResponse(_identity(asked))


@router.get("/policies")
async def policies(_user: LoggedIn, filter: str | None = None) -> JSONResponse:  # noqa: A002
    """None are kept; the Ingestor asks for them and lives without."""
    return JSONResponse(filters.select([], filters.parse(filter)))


@router.get("/health")
async def health() -> JSONResponse:
    """ "ok" as long as the process lives, whatever the database does (observed)."""
    up = {"mongodb": {"status": "up"}}
    return JSONResponse({"status": "ok", "info": up, "error": {}, "details": up})


def _known(user: User | None) -> User:
    if user is None:
        raise unauthenticated()
    return user


def _record(user: User) -> Document:
    return user.profile() | {"__v": 0}


def _identity(user: User) -> Document:
    profile = {
        "displayName": user.username,
        "email": user.email,
        "username": user.username,
        "thumbnailPhoto": "no photo",
        "id": user.username,
        "emails": [{"value": user.email}],
        "accessGroups": list(user.groups),
        "_id": user.id,
    }
    return {
        "authStrategy": "local",
        "externalId": user.username,
        "profile": profile,
        "provider": "local",
        "userId": user.id,
        "_id": user.id,
        "created": "2026-01-01T00:00:00.000Z",
        "modified": "2026-01-01T00:00:00.000Z",
        "__v": 0,
        "id": user.id,
    }
