"""The composition root: a `Config` becomes an ASGI application."""

from urllib.parse import parse_qsl

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from . import hooks
from .config import Config
from .grants import Denied, Grants
from .keys import Document, Keys

router = APIRouter(tags=["OpenID Connect"])


def create_app(config: Config) -> FastAPI:
    """Make the stand-in."""
    app = FastAPI(title="Identity provider stand-in", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.keys = Keys(config.state)
    app.state.grants = Grants(config, app.state.keys)
    app.state.hooks = hooks.Hooks()
    app.include_router(router, prefix=f"/realms/{config.realm}")
    app.include_router(hooks.router)
    app.add_exception_handler(Denied, _answer_denied)
    app.add_exception_handler(404, _answer_unknown)
    app.add_middleware(hooks.FaultInjector, hooks=app.state.hooks)
    return app


@router.get("/.well-known/openid-configuration")
async def discovery(request: Request) -> Document:
    """What stands where, and what can be had."""
    issuer = _issuer(request)
    end_points = f"{issuer}/protocol/openid-connect"
    return {
        "issuer": issuer,
        "token_endpoint": f"{end_points}/token",
        "jwks_uri": f"{end_points}/certs",
        "grant_types_supported": ["password", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
    }


@router.get("/protocol/openid-connect/certs")
async def certs(request: Request) -> Document:
    """The public keys."""
    return request.app.state.keys.published()


@router.post("/protocol/openid-connect/token")
async def token(request: Request) -> JSONResponse:
    """Give out a token for a password or a refresh token, sent as a form."""
    form = dict(parse_qsl((await request.body()).decode(errors="replace")))
    answer = request.app.state.grants.answer(form, request.headers.get("authorization", ""), _issuer(request))
    return JSONResponse(answer, headers={"Cache-Control": "no-store", "Pragma": "no-cache"})


def _issuer(request: Request) -> str:
    """As Keycloak without a fixed host name has it: the address by which it is asked."""
    path: str = request.scope["path"]
    return f"{request.url.scheme}://{request.url.netloc}{'/'.join(path.split('/')[:3])}"


async def _answer_denied(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Denied)  # noqa: S101 registered for this type only
    return JSONResponse(error.body, status_code=error.status)


async def _answer_unknown(request: Request, _error: Exception) -> JSONResponse:
    unknown_realm = request.scope["path"].startswith("/realms/")
    return JSONResponse({"error": "Realm does not exist" if unknown_realm else "Not found"}, status_code=404)
