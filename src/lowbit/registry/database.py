"""The registry's SQLite file: opened, made, read and written to in transactions.

One connection reads and writes, guarded by a lock, so that any thread may call; another one only notices what others commit.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lowbit.errors import Interrupted, LowbitError, ModelError, UsageError

FILE = "registry.sqlite"
BUSY_S = 20.0
"""A writer waits this long for another one."""
SCHEMA = 1

TABLES = """
CREATE TABLE versions (
    model TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL, candidate TEXT NOT NULL,
    precision TEXT NOT NULL, runtime TEXT NOT NULL, parents TEXT NOT NULL, lineage TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    created REAL NOT NULL, by TEXT NOT NULL, collected REAL, PRIMARY KEY (model, number));
CREATE UNIQUE INDEX one_version_of_a_digest ON versions (model, digest) WHERE collected IS NULL;
CREATE TABLE alias_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, alias TEXT NOT NULL, before TEXT, after TEXT,
    at REAL NOT NULL, by TEXT NOT NULL, why TEXT NOT NULL, kind TEXT NOT NULL);
CREATE INDEX events_of_an_alias ON alias_events (model, alias, id);
CREATE TABLE aliases (
    model TEXT NOT NULL, alias TEXT NOT NULL, digest TEXT NOT NULL, event INTEGER NOT NULL, PRIMARY KEY (model, alias));
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, by TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL,
    body TEXT NOT NULL, previous TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE INDEX audit_of_a_subject ON audit (subject, id);
CREATE TABLE signatures (
    digest TEXT NOT NULL, key TEXT NOT NULL, signature TEXT NOT NULL, at REAL NOT NULL, by TEXT NOT NULL, PRIMARY KEY (digest, key));
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_never_cut BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON alias_events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_never_cut BEFORE DELETE ON alias_events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER numbers_are_never_reused BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'a number is never used twice'); END;
"""


class Database:
    """The file `registry.sqlite` of a registry."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        """Opens it.

        Raises:
            UsageError: there is none and `create` is False, or it cannot be opened.
            ModelError: it is damaged, or a newer lowbit wrote it.
            Interrupted: the disk is full.
        """
        self.file = folder / FILE
        self._lock = threading.RLock()
        self._depth = 0
        if not self.file.is_file():
            _make(folder, create)
        self.writable = os.access(folder, os.W_OK) and (not self.file.exists() or os.access(self.file, os.W_OK))
        with self.kind():
            self._db, self._watch = self._connect(), self._connect()
            self._prepare()

    def _connect(self) -> sqlite3.Connection:
        name = str(self.file)
        if not self.writable:
            log = self.file.with_name(FILE + "-wal")
            # Without a log there is nothing that others still write, and nothing has to be written to read.
            still = not log.exists() or not log.stat().st_size
            name = f"{self.file.resolve().as_uri()}?mode=ro" + ("&immutable=1" if still else "")
        db = sqlite3.connect(name, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=not self.writable)
        db.row_factory = sqlite3.Row
        return db

    def _prepare(self) -> None:
        if self.writable:
            self._wal()
            self._db.execute("PRAGMA synchronous = FULL")
        version = self._version()
        if version == 0 and self.writable:
            with self.transaction() as db:  # waits for whoever else is making it
                if self._version() == 0:
                    for statement in _statements(TABLES):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {SCHEMA}")
            version = self._version()
        if version != SCHEMA:
            raise ModelError(f"{self.file} has schema {version}; this lowbit knows {SCHEMA}.", "Upgrade lowbit: pip install -U lowbit.")

    def _wal(self) -> None:
        """Changing the journal is not waited for by SQLite itself."""
        until = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, beginning with the right to write; within another one of the same thread: a part that can fail alone.

        Raises:
            UsageError: it is read-only, or another process writes for too long.
            Interrupted: the disk is full; nothing was changed.
            ModelError: the file is damaged.
        """
        with self._lock, self.kind():
            if not self.writable:
                raise UsageError(f"The registry at {self.file.parent} is read-only here.", "Run this where it can be written to.")
            name = f"part{self._depth}"
            self._db.execute(f"SAVEPOINT {name}" if self._depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._db
                self._db.execute(f"RELEASE {name}" if self._depth > 1 else "COMMIT")
            except BaseException:
                self._undo(name)
                raise
            finally:
                self._depth -= 1

    def _undo(self, name: str) -> None:
        if not self._db.in_transaction:
            return  # SQLite did it itself, e.g. for want of space
        if self._depth == 1:
            self._db.execute("ROLLBACK")
            return
        self._db.execute(f"ROLLBACK TO {name}")
        self._db.execute(f"RELEASE {name}")

    @contextlib.contextmanager
    def part_of(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Within a transaction that is going on: it can fail alone.

        Raises:
            UsageError: the connection is another registry's, or no transaction is going on.
        """
        if connection is not self._db or not connection.in_transaction:
            raise UsageError("That is no transaction of this registry.", "Give what `with registry.transaction() as db` gave.")
        with self.transaction():
            yield

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Several reads that see one state; joins a transaction of the same thread."""
        with self._lock, self.kind():
            outermost = not self._db.in_transaction
            if outermost:
                self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if outermost and self._db.in_transaction:
                    self._db.execute("COMMIT")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock, self.kind():
            return self._db.execute(query, values).fetchall()

    def changes(self) -> int:
        """Another number once any connection, here or in another process, has committed."""
        with self._lock, self.kind():
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Closes both connections."""
        with self._lock:
            self._watch.close()
            self._db.close()

    @contextlib.contextmanager
    def kind(self) -> Iterator[None]:
        """SQLite's errors in words for a person."""
        try:
            yield
        except LowbitError:
            raise
        except sqlite3.Error as error:
            raise self._said(error) from error

    def _said(self, error: sqlite3.Error) -> LowbitError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return Interrupted(f"{self.file} could not be written: {error}. Nothing was changed.", "Free some space and run it again.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return UsageError(f"Another process has been writing to the registry for {BUSY_S:.0f} s.", "Try it again when it is done.")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return UsageError(f"{self.file} cannot be opened for this: {error}.", "Check who may read and write it.")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return ModelError(f"{self.file} is damaged: {error}.", "Put back a copy of it; push again what came after that.")
        return ModelError(f"{self.file} could not do that: {error}.", "`lowbit registry verify` looks for what is wrong.")


def _make(folder: Path, create: bool) -> None:
    if not create:
        raise UsageError(f"There is no registry in {folder}.", "`lowbit registry push BUNDLE` makes one; --registry DIR names another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"No registry can be made at {folder}: {error.strerror}.", "Name another place: --registry DIR.") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"No registry can be made at {folder}: it is read-only.", "Name another place: --registry DIR.")


def _statements(script: str) -> Iterator[str]:
    """One after the other: `executescript` would commit what is going on."""
    waiting = ""
    for line in script.splitlines(keepends=True):
        waiting += line
        if sqlite3.complete_statement(waiting):
            yield waiting
            waiting = ""
