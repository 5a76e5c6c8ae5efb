"""The file that everything is kept in: one SQLite database that several server processes and the command line share."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowbit.errors import UsageError

FILE = "monitoring.sqlite"
SCHEMA = 1
BUSY_S = 10.0
"""As long as one waits for another process that writes."""
# fmt: off
_TABLES = (
    """create table if not exists windows (
        id integer primary key, server text not null, model text not null, version text not null, variant text not null,
        since real not null, until real not null, recorded integer not null, body text not null)""",
    "create index if not exists windows_of on windows (model, version, variant, until)",
    "create index if not exists windows_until on windows (until)",
    """create table if not exists baselines (
        model text not null, version text not null, variant text not null, since real not null, body text not null,
        primary key (model, version, variant))""",
    """create table if not exists predictions (
        request_id text not null, part integer not null, at real not null, model text not null, version text not null,
        variant text not null, predicted text not null, confidence real, primary key (request_id, part)) without rowid""",
    "create index if not exists predictions_at on predictions (at)",
    """create table if not exists labels (
        request_id text not null, part integer not null, at real not null, label text not null, by text not null,
        primary key (request_id, part)) without rowid""",
    "create index if not exists labels_at on labels (at)",
    """create table if not exists reviews (
        id text primary key, opened real not null, model text not null, version text not null, variant text not null, kind text not null,
        evidence text not null, state text not null, policy text not null, seen integer not null, last real not null,
        by text, why text, closed real)""",
    "create unique index if not exists one_open_review on reviews (model, version, variant, kind) where state = 'open'",
    "create index if not exists reviews_opened on reviews (opened)",
    """create table if not exists samples (
        id integer primary key, model text not null, version text not null, request_id text not null, at real not null,
        inputs blob not null)""",
    "create index if not exists samples_of on samples (model, at)",
    "create table if not exists reservoirs (model text primary key, seen integer not null)",
)
# fmt: on


class Database:
    """A connection that calls of any thread take turns on."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Opens the database in a folder.

        Args:
            folder: Of the server's state.
            create: False refuses a folder that has none.

        Raises:
            UsageError: there is none, it cannot be written to, or it is of another version.
        """
        self.file = folder / FILE
        self._lock = threading.RLock()
        self._within = 0
        if not create and not self.file.is_file():
            raise UsageError(
                f"There is no {FILE} in {folder}: no server has kept windows there.", "Give the folder of `lowbit serve --state FOLDER`."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=wal", "synchronous=full", "secure_delete=on"):  # what was deleted is not left in the file
                self._connection.execute(f"pragma {pragma}")
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"{self.file} cannot be opened: {error}.", "Give another folder: --state FOLDER.") from error

    def _prepare(self) -> None:
        (version,) = self._connection.execute("pragma user_version").fetchone()
        if version not in (0, SCHEMA):
            raise UsageError(
                f"{self.file} has version {version}; this lowbit reads {SCHEMA}.", "Use the lowbit that wrote it, or a new folder."
            )
        if version == SCHEMA:
            return
        with self.writing() as connection:
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"pragma user_version={SCHEMA}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is done within is on disk when this ends, or none of it. Within another one it is part of that.

        Raises:
            sqlite3.Error: the disk is full, or another process did not let go in time.
        """
        with self._lock:
            if self._within:
                yield self._connection
                return
            self._connection.execute("begin immediate")
            self._within = 1
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._connection.execute("rollback")
                raise
            finally:
                self._within = 0

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def settle(self) -> None:
        """Writes the log back and empties it: what was deleted is then in neither file. Left for later where somebody is reading."""
        with self._lock:
            self._connection.execute("pragma wal_checkpoint(truncate)")

    def close(self) -> None:
        """Lets the file go; twice is fine."""
        with self._lock:
            self._connection.close()
