"""Test hooks, no part of SciCat: make coming requests fail, and count what was asked."""

import asyncio
from collections import deque
from collections.abc import Iterable
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG_LENGTH = 10_000

router = APIRouter(prefix="/mock", tags=["test hooks"])


class Fault(BaseModel):
    """What is to happen to the next `times` requests that match.

    `path_prefix` and `path_contains` are compared with the path as sent (percent-encoded) and decoded. With `status`
    that status is answered, with `cut` the connection breaks in the middle of the answer, with neither the request is
    only delayed. `after`, with one of the two, lets SciCat do the work first: the answer is lost, the deed is done.
    """

    model_config = ConfigDict(extra="forbid")

    path_prefix: str | None = None
    path_contains: str = ""
    method: str | None = None
    status: int | None = Field(default=None, ge=200, le=599)
    cut: bool = False
    after: bool = False
    delay_s: float = Field(default=0.0, ge=0)
    times: int = Field(default=1, ge=1)

    def concerns(self, method: str, path: str) -> bool:
        """Does it concern this request?"""
        if self.times < 1 or (self.method is not None and self.method.upper() != method):
            return False
        prefix = self.path_prefix or ""
        return any(form.startswith(prefix) and self.path_contains in form for form in (path, unquote(path)))


class Seen(BaseModel):
    """One answered request; status 0 is a cut connection."""

    method: str
    path: str
    status: int


class Hooks:
    """The faults that wait and the requests that were seen; in memory only."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.seen: deque[Seen] = deque(maxlen=LOG_LENGTH)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The first fault that concerns the request, counted down by one."""
        for fault in self.faults:
            if fault.concerns(method, path):
                fault.times -= 1
                self.faults = [waiting for waiting in self.faults if waiting.times > 0]
                return fault
        return None


class FaultInjector:
    """ASGI middleware that applies and records; `/mock/*` and the page are left alone."""

    def __init__(self, app: ASGIApp, hooks: Hooks) -> None:
        self._app = app
        self._hooks = hooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as SciCat or as the fault says."""
        if scope["type"] != "http" or scope["path"] == "/" or scope["path"].startswith("/mock/"):
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        fault = self._hooks.take_fault(method, path)
        if fault is not None and fault.delay_s and not fault.after:
            await asyncio.sleep(fault.delay_s)
        if fault is None or (fault.status is None and not fault.cut):
            await self._pass_on(scope, receive, send)
            return
        if fault.after:
            await self._app(scope, receive, _discard)
            await asyncio.sleep(fault.delay_s)
        else:
            await _drain(receive)
        self._hooks.seen.append(Seen(method=method, path=path, status=0 if fault.cut else fault.status or 0))
        await _answer_fault(fault, scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._hooks.seen.append(Seen(method=scope["method"], path=scope["path"], status=status))


async def _answer_fault(fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
    if fault.cut:
        # The server closes the connection on an answer that is shorter than announced.
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"cut', "more_body": True})
        return
    await JSONResponse("Injected fault", status_code=fault.status or 500)(scope, receive, send)


async def _drain(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


async def _discard(_message: Message) -> None:
    return


def _hooks(request: Request) -> Hooks:
    return request.app.state.hooks


@router.post("/faults", status_code=201)
async def order_fault(request: Request, fault: Fault) -> list[Fault]:
    """Add a fault and answer all that wait; a body without `path_prefix` clears them."""
    hooks = _hooks(request)
    hooks.faults = [] if fault.path_prefix is None else [*hooks.faults, fault]
    return hooks.faults


@router.get("/requests")
async def list_requests(
    request: Request, path_prefix: str = "", path_contains: str = "", method: str | None = None
) -> dict[str, int | list[Seen]]:
    """The last 10,000 requests that match, oldest first, and how many they are."""
    wanted = Fault(path_prefix=path_prefix, path_contains=path_contains, method=method)
    found = [seen for seen in _of(_hooks(request)) if wanted.concerns(seen.method, seen.path)]
    return {"count": len(found), "requests": found}


@router.delete("/requests", status_code=204)
async def forget_requests(request: Request) -> None:
    """Start the log anew."""
    _hooks(request).seen.clear()


def _of(hooks: Hooks) -> Iterable[Seen]:
    return tuple(hooks.seen)
