"""The operator's side: what the library looks like from inside, and what shall go wrong. JSON under `/admin`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mock_lts.config import Config
from mock_lts.counters import Counters
from mock_lts.faults import FAULT, CorruptAtRest, DriveOffline, Fault, LoseFile, TapeOffline
from mock_lts.keeper import Keeper
from mock_lts.model import Drive, Phase, StoredFile
from mock_lts.problems import Problem
from mock_lts.uploads import Uploads

MAX_LISTED = 500
"""Files, pins, uploads and queued paths shown at once: the page asks every second."""


Body = TypeVar("Body", bound=BaseModel)


class _Evict(BaseModel):
    path: str | None = None


class _Worm(BaseModel):
    on: bool = True


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
                    "files": len(library.unmigrated),
                    "bytes": sum(file.size for file in library.unmigrated.values()),
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
                    route: {"count": by_status.total(), "statuses": by_status}
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
        try:
            fault = FAULT.validate_json(await request.body())
        except ValidationError as error:
            raise Problem(400, "; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors()[:5])) from error
        await self._apply(fault)
        if not isinstance(fault, LoseFile | CorruptAtRest):
            self._keeper.faults.add(fault)
        with self._keeper.acting():
            pass
        return JSONResponse(fault.model_dump(mode="json", exclude_none=True), 201)

    async def _lift_all(self, _: Request) -> Response:
        for fault in list(self._keeper.faults.active):
            self._lift_one(fault.id)
        with self._keeper.acting() as library:
            library.faults_lifted()  # also what a used-up fault had left stuck
        return Response(status_code=204)

    async def _lift(self, request: Request) -> Response:
        if not self._lift_one(request.path_params["fault_id"]):
            raise Problem(404, "no such fault")
        return Response(status_code=204)

    async def _migrate(self, _: Request) -> Response:
        with self._keeper.acting() as library:
            waiting = len(library.unmigrated)
            library.flush()
        return JSONResponse({"files": waiting}, 202)

    async def _evict(self, request: Request) -> Response:
        body = await _body(request, _Evict)
        with self._keeper.acting() as library:
            if body.path is not None:
                evicted = [body.path] if library.evict(self._file_at(body.path)) else []
            else:
                evicted = [file.path for file in list(library.files.values()) if library.evict(file)]
        return JSONResponse({"evicted": evicted})

    async def _worm(self, request: Request) -> Response:
        body = await _body(request, _Worm)
        self._keeper.set_worm(on=body.on)
        return JSONResponse({"worm": self._keeper.worm})

    async def _apply(self, fault: Fault) -> None:
        """What a fault does at the moment it is injected."""
        with self._keeper.acting() as library:
            if isinstance(fault, DriveOffline):
                if fault.drive >= len(library.drives):
                    raise Problem(404, "no such drive")
                library.set_drive_offline(fault.drive, offline=True)
            elif isinstance(fault, TapeOffline):
                if fault.tape not in library.tapes:
                    raise Problem(404, "no such tape")
                library.set_tape_offline(fault.tape, offline=True)
            elif isinstance(fault, LoseFile):
                library.lose(self._file_at(fault.path))
        if isinstance(fault, CorruptAtRest):
            await self._corrupt(fault)

    async def _corrupt(self, fault: CorruptAtRest) -> None:
        file, vault = self._file_at(fault.path), self._keeper.vault
        if fault.offset >= file.size:
            raise Problem(400, f"the file has {file.size} bytes")
        if file.on_disk and fault.where != "tape":
            await asyncio.to_thread(vault.flip, vault.cached(file.id), fault.offset)
        if file.volume is not None and fault.where != "disk":
            await asyncio.to_thread(vault.flip, vault.on_tape(file.id, file.volume), fault.offset)

    def _lift_one(self, fault_id: int) -> bool:
        faults = self._keeper.faults
        fault = next((fault for fault in faults.active if fault.id == fault_id), None)
        if fault is None:
            return False
        faults.active.remove(fault)
        with self._keeper.acting() as library:
            if isinstance(fault, DriveOffline):
                library.set_drive_offline(fault.drive, offline=False)
            elif isinstance(fault, TapeOffline):
                library.set_tape_offline(fault.tape, offline=False)
            library.faults_lifted()
        return True

    def _file_at(self, path: str | None) -> StoredFile:
        file = self._keeper.library.by_path.get(path or "")
        if file is None:
            raise Problem(404, "no such file")
        return file

    def _active(self) -> list[dict[str, Any]]:
        return [fault.model_dump(mode="json", exclude_none=True) for fault in self._keeper.faults.active]


def _drive(drive: Drive) -> dict[str, Any]:
    return {
        "number": drive.number,
        "phase": "offline" if drive.offline else drive.phase,
        "tape": None if drive.tape is None else drive.tape.name,
        "path": None if drive.file is None else drive.file.path,
        "until": None if drive.phase is Phase.EMPTY else drive.until,
    }


async def _body(request: Request, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        raise Problem(400, error.errors()[0]["msg"]) from error
