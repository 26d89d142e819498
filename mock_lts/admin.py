"""The operator's side: what the library looks like from inside, and what shall go wrong. JSON under `/admin`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mock_lts.body import parsed
from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.faults import (
    FAULT,
    CorruptAtRest,
    DriveOffline,
    Fault,
    ForgetRequests,
    LoseFile,
    RecallStuck,
    TapeOffline,
)
from mock_lts.keeper import Keeper
from mock_lts.model import Drive, Phase, StoredFile
from mock_lts.problems import Problem
from mock_lts.uploads import Uploads

MAX_LISTED = 500
"""Files, pins, uploads and queued paths shown at once: the page asks every second."""


class _Evict(BaseModel):
    path: str | None = None


class _Worm(BaseModel):
    on: bool = True


_EVICT = TypeAdapter(_Evict)
_WORM = TypeAdapter(_Worm)


class Admin:
    """The routes."""

    def __init__(self, config: Config, keeper: Keeper, uploads: Uploads, counters: Counters) -> None:
        self._config = config
        self._keeper = keeper
        self._uploads = uploads
        self._counters = counters

    def routes(self) -> list[Route]:
        """For the app."""
        return [
            Route("/admin/state", self._state, methods=["GET"]),
            Route("/admin/requests", self._requests, methods=["GET"]),
            Route("/admin/requests", self._reset_requests, methods=["DELETE"]),
            Route("/admin/faults", self._faults, methods=["GET"]),
            Route("/admin/faults", self._inject, methods=["POST"]),
            Route("/admin/faults", self._lift_all, methods=["DELETE"]),
            Route("/admin/faults/{fault_id:int}", self._lift, methods=["DELETE"]),
            Route("/admin/migrate", self._migrate, methods=["POST"]),
            Route("/admin/evict", self._evict, methods=["POST"]),
            Route("/admin/worm", self._worm, methods=["POST"]),
        ]

    async def _state(self, request: Request) -> Response:
        with self._keeper.acting() as library:
            only = request.query_params.get("path")
            files = (
                [library.by_path[only]] if only in library.by_path else [] if only else list(library.by_path.values())
            )
            mounted = {drive.tape.name: drive.number for drive in library.drives if drive.tape is not None}
            pins = self._keeper.desk.pins()
            uploads = self._uploads.open_uploads()
            totals = self._counters.totals()
            state: dict[str, Any] = {
                "time": self._keeper.clock(),
                "time_factor": self._config.time_factor,
                "worm": self._keeper.worm,
                "cache": {
                    "capacity_bytes": library.rules.cache_bytes,
                    "used_bytes": library.used_bytes,
                    "reserved_bytes": library.reserved_bytes,
                    "pinned_bytes": sum(
                        f.size for f in library.files.values() if f.on_disk and self._keeper.desk.pinned(f.id)
                    ),
                },
                "tapes": [
                    {
                        "name": tape.name,
                        "capacity_bytes": tape.capacity_bytes,
                        "used_bytes": tape.used_bytes,
                        "mounts": tape.mounts,
                        "offline": tape.offline,
                        "drive": mounted.get(tape.name),
                    }
                    for tape in library.tapes.values()
                ],
                "drives": [_drive(drive) for drive in library.drives],
                "recall_queues": {
                    name: [file.path for file in list(queue.files.values())[:MAX_LISTED]]
                    for name, queue in library.queues.items()
                },
                "migration_queue": {
                    "files": len(library.unmigrated()),
                    "bytes": sum(file.size for file in library.unmigrated()),
                },
                "files_total": len(library.files),
                "files": [self._file(file) for file in files[-MAX_LISTED:]],
                "pins": [
                    {"path": entry.path, "request_id": request_id, "expires_at": entry.pin_expires_at}
                    for request_id, entry in pins[:MAX_LISTED]
                ],
                "uploads": [
                    {"id": row.id, "path": row.path, "offset": row.offset, "length": row.length}
                    for row in uploads[:MAX_LISTED]
                ],
                "stage_requests": {
                    "known": len(self._keeper.desk.requests),
                    "open": self._keeper.desk.open_requests(),
                },
                "counters": {
                    "bytes_received": totals.received,
                    "bytes_kept": totals.kept,
                    "bytes_sent": totals.sent,
                    **asdict(library.tally),
                },
                "faults": self._active(),
            }
        return JSONResponse(state)

    def _file(self, file: StoredFile) -> dict[str, Any]:
        return {
            "path": file.path,
            "size": file.size,
            "locality": self._keeper.library.locality(file),
            "tape": file.volume,
            "position": file.position,
            "pins": self._keeper.desk.pin_count(file.id),
            "created_at": file.created_at,
            "migrated_at": file.migrated_at,
            "last_used": file.last_used,
        }

    async def _requests(self, _: Request) -> Response:
        return JSONResponse(
            {
                "requests": {
                    route: {
                        "count": by_status.total(),
                        "statuses": by_status,
                        "most_at_once": self._counters.most_at_once[route],
                    }
                    for route, by_status in self._counters.requests.items()
                },
                "paths": {path: asdict(counted) for path, counted in self._counters.paths.items()},
            }
        )

    async def _reset_requests(self, _: Request) -> Response:
        self._counters.reset()
        return Response(status_code=204)

    async def _faults(self, _: Request) -> Response:
        return JSONResponse(self._active())

    async def _inject(self, request: Request) -> Response:
        fault = await parsed(request, FAULT, within_s=self._config.idle_limit_s)
        library = self._keeper.library
        if isinstance(fault, DriveOffline) and fault.drive >= len(library.drives):
            raise Problem(404, "no such drive")
        if isinstance(fault, TapeOffline) and fault.tape not in library.tapes:
            raise Problem(404, "no such tape")
        match fault:
            case LoseFile():
                with self._keeper.acting():
                    library.lose(self._file_at(fault.path))
            case CorruptAtRest():
                await self._corrupt(fault)
            case ForgetRequests():
                with self._keeper.acting():
                    self._forget(fault.request_id)
            case _:
                with self._keeper.acting():
                    self._keeper.faults.add(fault)
                    self._keeper.take_offline()
        return JSONResponse(_shown(fault), 201)

    async def _lift_all(self, _: Request) -> Response:
        for fault in self._keeper.faults.active:
            self._lift_one(fault)
        with self._keeper.acting() as library:
            library.faults_lifted()  # also what a used-up fault had left stuck
        return Response(status_code=204)

    async def _lift(self, request: Request) -> Response:
        wanted = request.path_params["fault_id"]
        fault = next((fault for fault in self._keeper.faults.active if fault.id == wanted), None)
        if fault is None:
            raise Problem(404, "no such fault")
        self._lift_one(fault)
        return Response(status_code=204)

    async def _migrate(self, _: Request) -> Response:
        with self._keeper.acting() as library:
            waiting = len(library.unmigrated())
            library.flush()
        return JSONResponse({"files": waiting}, 202)

    async def _evict(self, request: Request) -> Response:
        body = await parsed(request, _EVICT, within_s=self._config.idle_limit_s)
        with self._keeper.acting() as library:
            if body.path is not None:
                evicted = [body.path] if library.evict(self._file_at(body.path)) else []
            else:
                evicted = [file.path for file in list(library.files.values()) if library.evict(file)]
        return JSONResponse({"evicted": evicted})

    async def _worm(self, request: Request) -> Response:
        body = await parsed(request, _WORM, within_s=self._config.idle_limit_s)
        self._keeper.set_worm(on=body.on)
        return JSONResponse({"worm": self._keeper.worm})

    async def _corrupt(self, fault: CorruptAtRest) -> None:
        file, vault = self._file_at(fault.path), self._keeper.vault
        if fault.offset >= file.size:
            raise Problem(400, f"the file has {file.size} bytes")
        if file.on_disk and fault.where != "tape":
            await asyncio.to_thread(vault.flip, vault.cached(file.id), fault.offset)
        if file.volume is not None and fault.where != "disk":
            await asyncio.to_thread(vault.flip, vault.on_tape(file.id, file.volume), fault.offset)

    def _lift_one(self, fault: Fault) -> None:
        with self._keeper.acting() as library:
            self._keeper.faults.remove(fault)
            self._keeper.take_offline()
            if isinstance(fault, RecallStuck):
                library.faults_lifted()

    def _forget(self, request_id: str | None) -> None:
        requests = self._keeper.desk.requests
        if request_id is not None and request_id not in requests:
            raise Problem(404, "no such stage request")
        for known in [requests[request_id]] if request_id is not None else list(requests.values()):
            self._keeper.library.forget(known)

    def _file_at(self, path: str | None) -> StoredFile:
        file = self._keeper.library.by_path.get(path or "")
        if file is None:
            raise Problem(404, "no such file")
        return file

    def _active(self) -> list[dict[str, Any]]:
        return [_shown(fault) for fault in self._keeper.faults.active]


def _shown(fault: Fault) -> dict[str, Any]:
    return fault.model_dump(mode="json", exclude_none=True)


def _drive(drive: Drive) -> dict[str, Any]:
    return {
        "number": drive.number,
        "phase": "offline" if drive.offline else drive.phase,
        "tape": None if drive.tape is None else drive.tape.name,
        "path": None if drive.file is None else drive.file.path,
        "since": drive.since,
        "until": None if drive.phase is Phase.EMPTY else drive.until,
    }
