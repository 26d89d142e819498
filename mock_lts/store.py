"""Everything that must survive, in one SQLite file.

One process and one thread use it. WAL with synchronous=NORMAL: a commit is in the page cache before it returns, so a
kill -9 loses none; what must survive a power cut as well calls `sync` before it is promised.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mock_lts.model import StageEntry, StageRequest, StageState, StoredFile, Tape

SCHEMA = """
CREATE TABLE IF NOT EXISTS flags (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, path TEXT NOT NULL, length INTEGER NOT NULL, offset INTEGER NOT NULL,
    created_at REAL NOT NULL, expires_at REAL NOT NULL, phase TEXT NOT NULL, metadata TEXT NOT NULL DEFAULT '')
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, created_at REAL NOT NULL,
    last_used REAL NOT NULL, on_disk INTEGER NOT NULL, volume TEXT, position INTEGER NOT NULL, migrated_at REAL,
    reads INTEGER NOT NULL, lost INTEGER NOT NULL, sha256 TEXT, stuck INTEGER NOT NULL DEFAULT 0)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tapes (
    name TEXT PRIMARY KEY, capacity_bytes INTEGER NOT NULL, used_bytes INTEGER NOT NULL, mounts INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stage_requests (id TEXT PRIMARY KEY, created_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stage_entries (
    request_id TEXT NOT NULL, n INTEGER NOT NULL, asked TEXT NOT NULL, path TEXT NOT NULL, file_id TEXT,
    lifetime_s REAL NOT NULL, state TEXT NOT NULL, started_at REAL, finished_at REAL, error TEXT,
    pin_expires_at REAL, released INTEGER NOT NULL, PRIMARY KEY (request_id, n)) WITHOUT ROWID;
"""
_ADDED = (("uploads", "metadata", "TEXT NOT NULL DEFAULT ''"), ("files", "stuck", "INTEGER NOT NULL DEFAULT 0"))
"""Columns that older state folders lack."""


@dataclass(slots=True)
class UploadRow:
    """An upload as stored; `phase` is open, done or gone; `metadata` is what tus calls so, as it came."""

    id: str
    path: str
    length: int
    offset: int
    created_at: float
    expires_at: float
    phase: str
    metadata: str = ""


class Store:
    """The database; every method but `sync` belongs to the event loop's thread."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            RuntimeError: Another process uses this state folder.
        """
        self._wal = path.with_name(path.name + "-wal")
        self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        try:
            # Exclusive: a second process on the same folder fails here instead of spoiling both.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
            for table, column, kind in _ADDED:
                if column not in {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}:
                    self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise RuntimeError(f"cannot use {path}: {error} (is another mock_lts running on this folder?)") from error

    def close(self) -> None:
        """Close the database; nothing is lost without it."""
        self._db.close()

    def sync(self) -> None:
        """Make every commit so far survive a power cut; blocks, may be called from any thread."""
        fd = os.open(self._wal, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def flag(self, name: str) -> str | None:
        """A named value."""
        row = self._db.execute("SELECT value FROM flags WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_flag(self, name: str, value: str) -> None:
        """Store a named value."""
        self._db.execute("INSERT OR REPLACE INTO flags VALUES (?, ?)", (name, value))

    def uploads(self) -> list[UploadRow]:
        """Every upload ever made; those gone are kept so that they answer 410 and not 404."""
        return [UploadRow(*row) for row in self._db.execute("SELECT * FROM uploads")]

    def put_upload(self, row: UploadRow) -> None:
        """Store an upload."""
        self._db.execute(
            "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (row.id, row.path, row.length, row.offset, row.created_at, row.expires_at, row.phase, row.metadata),
        )

    def set_offset(self, upload_id: str, offset: int, expires_at: float) -> None:
        """An upload has grown."""
        self._db.execute("UPDATE uploads SET offset = ?, expires_at = ? WHERE id = ?", (offset, expires_at, upload_id))

    def files(self) -> list[StoredFile]:
        """Every published file."""
        return [
            StoredFile(
                id=row[0],
                path=row[1],
                size=row[2],
                created_at=row[3],
                last_used=row[4],
                on_disk=bool(row[5]),
                volume=row[6],
                position=row[7],
                migrated_at=row[8],
                reads=row[9],
                lost=bool(row[10]),
                sha256=row[11],
                stuck=bool(row[12]),
            )
            for row in self._db.execute("SELECT * FROM files")
        ]

    def put_file(self, f: StoredFile) -> None:
        """Store a file, in the place of another of the same path."""
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(f.id, f.path, f.size, f.created_at, f.last_used, f.on_disk),
                *(f.volume, f.position, f.migrated_at, f.reads, f.lost, f.sha256, f.stuck),
            ),
        )

    def drop_file(self, file_id: str) -> None:
        """Forget a file."""
        self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))

    def tapes(self) -> list[Tape]:
        """Every cartridge ever used."""
        return [Tape(*row) for row in self._db.execute("SELECT * FROM tapes ORDER BY name")]

    def put_tape(self, tape: Tape) -> None:
        """Store a cartridge."""
        self._db.execute(
            "INSERT OR REPLACE INTO tapes VALUES (?, ?, ?, ?)",
            (tape.name, tape.capacity_bytes, tape.used_bytes, tape.mounts),
        )

    def requests(self) -> list[StageRequest]:
        """Every stage request with its entries in order."""
        requests = {row[0]: StageRequest(*row) for row in self._db.execute("SELECT * FROM stage_requests")}
        for row in self._db.execute("SELECT * FROM stage_entries ORDER BY request_id, n"):
            entry = StageEntry(
                asked=row[2],
                path=row[3],
                file_id=row[4],
                lifetime_s=row[5],
                state=StageState(row[6]),
                started_at=row[7],
                finished_at=row[8],
                error=row[9],
                pin_expires_at=row[10],
                released=bool(row[11]),
            )
            requests[row[0]].entries.append(entry)
        return sorted(requests.values(), key=lambda request: request.created_at)

    def put_request(self, request: StageRequest) -> None:
        """Store a request's head."""
        self._db.execute("INSERT OR REPLACE INTO stage_requests VALUES (?, ?)", (request.id, request.created_at))

    def put_entries(self, entries: Iterable[tuple[tuple[str, int], StageEntry]]) -> None:
        """Store entries under (request id, place)."""
        self._db.executemany(
            "INSERT OR REPLACE INTO stage_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(request_id, n, e.asked, e.path, e.file_id, e.lifetime_s, e.state.value),
                    *(e.started_at, e.finished_at, e.error, e.pin_expires_at, e.released),
                )
                for (request_id, n), e in entries
            ),
        )

    def drop_request(self, request_id: str) -> None:
        """Forget a request and its entries."""
        self._db.execute("DELETE FROM stage_requests WHERE id = ?", (request_id,))
        self._db.execute("DELETE FROM stage_entries WHERE request_id = ?", (request_id,))
