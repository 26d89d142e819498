"""The state: one SQLite table of JSON documents per collection, committed before anything is answered."""

import json
import secrets
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .validation import Document

COLLECTIONS = ("datasets", "origdatablocks", "datablocks", "attachments", "jobs")


class DuplicateKeyError(Exception):
    """A document with this id or unique key is there already."""


class Store:
    """Documents by collection and id, in order of creation.

    `dataset` groups blocks by dataset; `unique_key` is unique within its collection (a datablock's archiveId). Every
    write outside of `transaction` is committed when the method returns; WAL makes it survive a kill -9 of the process.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        self._db = sqlite3.connect(str(path or ":memory:"), isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        with self.transaction():
            for collection in COLLECTIONS:
                self._db.execute(
                    f"CREATE TABLE IF NOT EXISTS {collection} (seq INTEGER PRIMARY KEY AUTOINCREMENT,"
                    " id TEXT NOT NULL UNIQUE, dataset TEXT, unique_key TEXT UNIQUE, body TEXT NOT NULL)"
                )
                self._db.execute(f"CREATE INDEX IF NOT EXISTS {collection}_dataset ON {collection} (dataset)")
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All writes inside are committed together, or none; may be nested. Never await inside."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    if self._depth == 1:
                        self._db.execute("ROLLBACK")
                    raise
                if self._depth == 1:
                    self._db.execute("COMMIT")
            finally:
                self._depth -= 1

    def insert(
        self, collection: str, key: str, body: Document, *, dataset: str | None = None, unique_key: str | None = None
    ) -> None:
        """Add a document.

        Raises:
            DuplicateKeyError: the id or the unique key is taken.
        """
        statement = f"INSERT INTO {_table(collection)} (id, dataset, unique_key, body) VALUES (?, ?, ?, ?)"  # noqa: S608 - a name of ours
        with self.transaction():
            try:
                self._db.execute(statement, (key, dataset, unique_key, json.dumps(body)))
            except sqlite3.IntegrityError as error:
                raise DuplicateKeyError(key) from error

    def replace(self, collection: str, key: str, body: Document, *, unique_key: str | None = None) -> None:
        """Put a new body in the place of a document that exists.

        Raises:
            DuplicateKeyError: the unique key belongs to another document.
        """
        statement = f"UPDATE {_table(collection)} SET body = ?, unique_key = ? WHERE id = ?"  # noqa: S608 - a name of ours
        with self.transaction():
            try:
                self._db.execute(statement, (json.dumps(body), unique_key, key))
            except sqlite3.IntegrityError as error:
                raise DuplicateKeyError(key) from error

    def get(self, collection: str, key: str) -> Document | None:
        """The document with this id, or None."""
        statement = f"SELECT body FROM {_table(collection)} WHERE id = ?"  # noqa: S608 - a name of ours
        with self._lock:
            row = self._db.execute(statement, (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def list(self, collection: str, *, dataset: str | None = None, newest: int | None = None) -> "list[Document]":
        """All documents in order of creation, of one dataset if named; `newest` first and no more, if given."""
        statement, values = f"SELECT body FROM {_table(collection)}", ()  # noqa: S608 - a name of ours
        if dataset is not None:
            statement, values = f"{statement} WHERE dataset = ?", (dataset,)
        statement += " ORDER BY seq" if newest is None else f" ORDER BY seq DESC LIMIT {int(newest)}"
        with self._lock:
            rows = self._db.execute(statement, values).fetchall()
        return [json.loads(row[0]) for row in rows]

    def count(self, collection: str) -> int:
        """How many documents there are."""
        with self._lock:
            return self._db.execute(f"SELECT count(*) FROM {_table(collection)}").fetchone()[0]  # noqa: S608 - a name of ours

    def delete(self, collection: str, key: str) -> None:
        """Remove a document; one that is not there is no error."""
        with self.transaction():
            self._db.execute(f"DELETE FROM {_table(collection)} WHERE id = ?", (key,))  # noqa: S608 - a name of ours

    def secret(self) -> str:
        """The key that signs tokens: random, made once, kept with the state so that tokens outlive a restart."""
        with self.transaction():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('jwt_secret', ?)", (secrets.token_hex(32),))
            return self._db.execute("SELECT value FROM meta WHERE name = 'jwt_secret'").fetchone()[0]


def _table(collection: str) -> str:
    # Table names cannot be bound as parameters; nothing but our own names may get into a statement.
    if collection not in COLLECTIONS:
        raise ValueError(collection)
    return collection
