"""The WLCG Tape REST API v1: discovery, stage, poll, cancel, delete, release, archiveinfo.

Limits and habits are dCache's where the specification leaves them open.
"""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mock_lts.body import parsed
from mock_lts.config import Config
from mock_lts.gate import base_url
from mock_lts.keeper import Keeper
from mock_lts.model import StageEntry, StageRequest, StageState
from mock_lts.paths import collapsed
from mock_lts.problems import Problem

PREFIX = "/api/v1/tape"
MAX_STAGE_PATHS = 500
MAX_OPEN_REQUESTS = 5_000
MAX_ARCHIVEINFO_PATHS = 10_000
MAX_ARCHIVEINFO_BYTES = 64 << 20
"""A list that is too long must not be an error; this much is no list of files any more."""
MAX_PIN_S = 30 * 86_400.0
"""A longer diskLifetime is cut to this: a pin for ever is a cache lost for ever."""

_DURATION = re.compile(
    r"P(?=.)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:[.,]\d+)?)S)?)?"
)
_UNITS_S = (365 * 86_400, 30 * 86_400, 7 * 86_400, 86_400, 3_600, 60, 1)


def seconds(duration: str) -> float:
    """An ISO 8601 duration such as PT1H or P1DT12H; a year counts 365 days and a month 30.

    Raises:
        ValueError: It is none.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError("not an ISO 8601 duration")
    return sum(unit * float(n.replace(",", ".")) for n, unit in zip(found.groups(), _UNITS_S, strict=True) if n)


def _duration(text: str) -> str:
    seconds(text)
    return text


class _StageFile(BaseModel):
    path: str
    disk_lifetime: Annotated[str, AfterValidator(_duration)] | None = Field(None, alias="diskLifetime")


class _StageBody(BaseModel):
    """Keys we do not know, foreign metadata among them, are ignored."""

    model_config = ConfigDict(extra="allow")

    files: list[_StageFile]


class _PathsBody(BaseModel):
    paths: list[str]


_STAGE = TypeAdapter(_StageBody)
_PATHS = TypeAdapter(_PathsBody)


class TapeRest:
    """The routes."""

    def __init__(self, config: Config, keeper: Keeper) -> None:
        self._config = config
        self._keeper = keeper

    def routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/.well-known/wlcg-tape-rest-api", self._discover, methods=["GET"]),
            Route(f"{PREFIX}/stage", self._stage, methods=["POST"]),
            Route(f"{PREFIX}/stage/{{request_id}}", self._poll, methods=["GET"]),
            Route(f"{PREFIX}/stage/{{request_id}}", self._forget, methods=["DELETE"]),
            Route(f"{PREFIX}/stage/{{request_id}}/cancel", self._cancel, methods=["POST"]),
            Route(f"{PREFIX}/release/{{request_id}}", self._release, methods=["POST"]),
            Route(f"{PREFIX}/archiveinfo", self._archiveinfo, methods=["POST"]),
        ]

    async def _discover(self, request: Request) -> Response:
        endpoint: dict[str, Any] = {"uri": base_url(request, self._config) + PREFIX, "version": "v1", "metadata": {}}
        endpoints = [endpoint]
        if self._keeper.faults.dialect().more_versions:
            endpoints.insert(0, {**endpoint, "uri": endpoint["uri"] + "/v1.1", "version": "v1.1"})
        return JSONResponse(
            {"sitename": self._config.site, "description": "A pretend tape library", "endpoints": endpoints}
        )

    async def _stage(self, request: Request) -> Response:
        body = await parsed(request, _STAGE, within_s=self._config.idle_limit_s)
        if body.model_extra and self._keeper.faults.dialect().strict:
            raise Problem(400, f"unknown keys: {', '.join(sorted(body.model_extra))}")
        if not body.files:
            raise Problem(400, "files must not be empty")
        if len(body.files) > MAX_STAGE_PATHS:
            raise Problem(413, f"at most {MAX_STAGE_PATHS} files in one request")
        if self._keeper.desk.open_requests() >= MAX_OPEN_REQUESTS:
            raise Problem(429, f"{MAX_OPEN_REQUESTS} requests are open", {"Retry-After": "60"})
        wants = [(file.path, self._lifetime_s(file.disk_lifetime)) for file in body.files]
        with self._keeper.acting() as library:
            staged = library.stage(str(uuid.uuid4()), wants)
        location = f"{base_url(request, self._config)}{PREFIX}/stage/{staged.id}"
        return JSONResponse({"requestId": staged.id}, 201, {"Location": location})

    async def _poll(self, request: Request) -> Response:
        with self._keeper.acting():
            staged = self._known(request)
        answer: dict[str, Any] = {
            "id": staged.id,
            "createdAt": self._time(staged.created_at),
            "startedAt": self._time(staged.started_at),
        }
        if staged.completed_at is not None:
            answer["completedAt"] = self._time(staged.completed_at)
        answer["files"] = [self._file(entry) for entry in staged.entries]
        return JSONResponse(answer)

    async def _cancel(self, request: Request) -> Response:
        body = await parsed(request, _PATHS, within_s=self._config.idle_limit_s)
        with self._keeper.acting() as library:
            staged = self._known(request)
            paths = {collapsed(path) for path in body.paths}
            if not paths <= {entry.path for entry in staged.entries}:
                raise Problem(400, "File missing from stage request")
            library.cancel(staged, paths)
        return Response()

    async def _forget(self, request: Request) -> Response:
        with self._keeper.acting() as library:
            library.forget(self._known(request))
        return Response()

    async def _release(self, request: Request) -> Response:
        # gfal2 releases under a placeholder when it has lost the id, and dCache answers 200 whatever it could unpin.
        body = await parsed(request, _PATHS, within_s=self._config.idle_limit_s)
        with self._keeper.acting() as library:
            staged = self._keeper.desk.find(request.path_params["request_id"], self._keeper.clock())
            if staged is not None:
                library.release(staged, {collapsed(path) for path in body.paths})
        return Response()

    async def _archiveinfo(self, request: Request) -> Response:
        body = await parsed(request, _PATHS, within_s=self._config.idle_limit_s, max_bytes=MAX_ARCHIVEINFO_BYTES)
        with self._keeper.acting():
            return JSONResponse([self._info(path) for path in body.paths[:MAX_ARCHIVEINFO_PATHS]])

    def _info(self, asked: str) -> dict[str, str]:
        library = self._keeper.library
        path = collapsed(asked)
        file = library.by_path.get(path)
        answer = {"path": self._keeper.faults.echoed(asked)}
        if file is not None:
            answer["locality"] = library.locality(file)
        else:
            answer["error"] = library.no_recall(path) or "No such file or directory"
        return answer

    def _file(self, entry: StageEntry) -> dict[str, Any]:
        dialect = self._keeper.faults.dialect()
        answer: dict[str, Any] = {"path": self._keeper.faults.echoed(entry.asked)}
        if dialect.on_disk:
            file = self._keeper.library.files.get(entry.file_id or "")
            answer["onDisk"] = file is not None and file.on_disk
            return answer if entry.error is None else {**answer, "error": entry.error}
        canceled = dialect.canceled and entry.state is StageState.CANCELLED
        answer["state"] = "CANCELED" if canceled else entry.state
        if entry.started_at is not None:
            answer["startedAt"] = self._time(entry.started_at)
        if entry.finished_at is not None:
            answer["finishedAt"] = self._time(entry.finished_at)
        if entry.error is not None:
            answer["error"] = entry.error
        return answer

    def _known(self, request: Request) -> StageRequest:
        staged = self._keeper.desk.find(request.path_params["request_id"], self._keeper.clock())
        if staged is None:
            raise Problem(404, "no such stage request")
        return staged

    def _lifetime_s(self, duration: str | None) -> float:
        return self._config.pin_lifetime_s if duration is None else min(seconds(duration), MAX_PIN_S)

    def _time(self, epoch_s: float) -> int:
        return int(epoch_s * 1000) if self._keeper.faults.milliseconds() else int(epoch_s)
