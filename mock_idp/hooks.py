"""Test hooks, no part of any provider: rotate keys, change lifetimes, be down or slow, tell what was asked."""

import asyncio
from collections import deque

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from .grants import Grants
from .keys import Keys

router = APIRouter(prefix="/mock", tags=["test hooks"])


class Fault(BaseModel):
    """What happens to the next `times` requests whose path contains this: a delay, and an error if one is named."""

    model_config = ConfigDict(extra="forbid")

    path_contains: str = ""
    status: int | None = Field(default=None, ge=400, le=599)
    delay_s: float = Field(default=0.0, ge=0)
    times: int = Field(default=1, ge=1)


class Rotation(BaseModel):
    """Whether the old keys are withdrawn at once."""

    forget: bool = False


class Lifetimes(BaseModel):
    """Of tokens given out from now on, in seconds; None leaves one as it is. Below 0: expired from the start."""

    access_s: int | None = None
    refresh_s: int | None = None


class Hooks:
    """The faults that wait and the paths that were asked for; in memory only."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.seen: deque[str] = deque(maxlen=10_000)

    def take_fault(self, path: str) -> Fault | None:
        """The first fault that concerns the path, counted down by one."""
        for fault in self.faults:
            if fault.path_contains in path:
                fault.times -= 1
                self.faults = [waiting for waiting in self.faults if waiting.times > 0]
                return fault
        return None


class FaultInjector:
    """ASGI middleware that applies and records; `/mock/*` is left alone."""

    def __init__(self, app: ASGIApp, hooks: Hooks) -> None:
        self._app, self._hooks = app, hooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as the provider or as the fault says."""
        if scope["type"] != "http" or scope["path"].startswith("/mock/"):
            await self._app(scope, receive, send)
            return
        self._hooks.seen.append(scope["path"])
        fault = self._hooks.take_fault(scope["path"])
        if fault is not None:
            await asyncio.sleep(fault.delay_s)
        if fault is None or fault.status is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"error": "injected"}, status_code=fault.status)(scope, receive, send)


@router.post("/keys", status_code=201)
async def rotate(request: Request, rotation: Rotation) -> dict[str, str]:
    """Sign with a new key from now on; answers its id."""
    keys: Keys = request.app.state.keys
    return {"kid": await asyncio.to_thread(keys.rotate, forget=rotation.forget)}


@router.post("/lifetimes", status_code=201)
async def set_lifetimes(request: Request, lifetimes: Lifetimes) -> dict[str, int]:
    """Change how long tokens are good; answers what counts now."""
    grants: Grants = request.app.state.grants
    if lifetimes.access_s is not None:
        grants.access_lifetime_s = lifetimes.access_s
    if lifetimes.refresh_s is not None:
        grants.refresh_lifetime_s = lifetimes.refresh_s
    return {"access_s": grants.access_lifetime_s, "refresh_s": grants.refresh_lifetime_s}


@router.post("/faults", status_code=201)
async def order_fault(request: Request, fault: Fault) -> list[Fault]:
    """Add a fault and answer all that wait."""
    hooks: Hooks = request.app.state.hooks
    hooks.faults.append(fault)
    return hooks.faults


@router.delete("/faults", status_code=204)
async def clear_faults(request: Request) -> None:
    """Be well again."""
    request.app.state.hooks.faults.clear()


@router.get("/requests")
async def list_requests(request: Request, path_contains: str = "") -> dict[str, int | list[str]]:
    """The last 10,000 paths that were asked for and contain this, oldest first, and how many they are."""
    found = [path for path in request.app.state.hooks.seen if path_contains in path]
    return {"count": len(found), "requests": found}
