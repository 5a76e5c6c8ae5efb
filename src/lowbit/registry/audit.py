"""The audit log: rows that each hold the digest of the row before, and what can be told from them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lowbit.bundle.manifest import without_paths
from lowbit.errors import ModelError
from lowbit.registry.records import AuditRow, Problem, checked_by

FIRST = "0" * 64
"""What the first row has for a digest of the row before."""
MOVES = ("promote", "rollback", "set", "remove")
"""Actions that move an alias."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256, hex, of a value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def row_digest(id: int, at: float, by: str, action: str, subject: str, body: Mapping[str, Any], previous: str) -> str:
    """What a row's `sha256` has to be."""
    return sha256_of([id, at, by, action, subject, body, previous])


def append(db: sqlite3.Connection, action: str, subject: str, body: Mapping[str, Any], by: str, at: float | None = None) -> AuditRow:
    """Adds a row, within a transaction that holds the right to write.

    Absolute paths in the body are cut to base names: the log may be shown to anyone who may see the registry.
    """
    last = db.execute("SELECT id, sha256 FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    id, previous = (last["id"] + 1, last["sha256"]) if last else (1, FIRST)
    at = time.time() if at is None else at
    told = json.loads(canonical(without_paths(dict(body))))
    row = AuditRow(id, at, checked_by(by), action, subject, told, previous, row_digest(id, at, by, action, subject, told, previous))
    values = (id, at, by, action, subject, canonical(told), previous, row.sha256)
    db.execute("INSERT INTO audit (id, at, by, action, subject, body, previous, sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    return row


def row_of(row: sqlite3.Row) -> AuditRow:
    """A record from a row of the table.

    Raises:
        ModelError: its body is no JSON object.
    """
    try:
        body = json.loads(row["body"])
    except (TypeError, ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ModelError(f"Audit row {row['id']} was changed after it was written.", "`lowbit registry verify` lists everything that was.")
    return AuditRow(**{**dict(row), "body": body})


def broken_links(rows: Iterable[AuditRow], first: str = FIRST) -> Iterator[Problem]:
    """Rows that were changed, put in, or from before which rows were taken away.

    Args:
        rows: In the order of their ids, from the first one on.
        first: What the first of them has to continue.
    """
    previous, number = first, 0
    for row in rows:
        number += 1
        if row.id != number:
            yield Problem("audit", f"row {number}", f"Audit row {number} is missing: row {row.id} follows row {number - 1}.")
            number = row.id
        if row.previous != previous:
            yield Problem("audit", f"row {row.id}", f"Audit row {row.id} does not continue the row before: one of the two was changed.")
        if not _intact(row):
            yield Problem("audit", f"row {row.id}", f"Audit row {row.id} ({row.action} {row.subject}) was changed after it was written.")
        previous = row.sha256


def _intact(row: AuditRow) -> bool:
    """Whether a row is what its digest says; what cannot even be digested, as bytes or an infinite time, was never written so."""
    try:
        return row.sha256 == row_digest(row.id, row.at, row.by, row.action, row.subject, row.body, row.previous)
    except (TypeError, ValueError):
        return False


def moves_of(rows: Iterable[AuditRow]) -> Iterator[AuditRow]:
    """Rows that move an alias and say which; one that was changed so that it does not is told of as a broken link."""
    for row in rows:
        said = [row.body.get(name) for name in ("model", "alias", "after")]
        if row.action in MOVES and isinstance(row.body.get("event"), int) and all(isinstance(each, str | None) for each in said):
            yield row


def replay(rows: Iterable[AuditRow]) -> dict[tuple[Any, Any], str]:
    """(model, alias) -> digest, as the log alone tells it."""
    found: dict[tuple[Any, Any], str] = {}
    for row in moves_of(rows):
        key = (row.body.get("model"), row.body.get("alias"))
        if (after := row.body.get("after")) is None:
            found.pop(key, None)
        else:
            found[key] = after
    return found
