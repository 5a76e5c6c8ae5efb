"""The rollouts' tables in the registry's file, and their rows as records."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lowbit.errors import LowbitError, ModelError
from lowbit.rollout.decide import Decision, Look
from lowbit.rollout.evidence import Evidence
from lowbit.rollout.plan import Plan
from lowbit.rollout.records import Decided, Rollout

TABLES = (
    """CREATE TABLE IF NOT EXISTS rollouts (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, champion TEXT NOT NULL, candidate TEXT NOT NULL, plan TEXT NOT NULL, state TEXT NOT NULL,
    step INTEGER NOT NULL, share REAL NOT NULL, step_since REAL NOT NULL, revision INTEGER NOT NULL, started REAL NOT NULL, ended REAL,
    paused_at REAL, by TEXT NOT NULL, why TEXT NOT NULL)""",
    "CREATE UNIQUE INDEX IF NOT EXISTS one_open_rollout_of_a_model ON rollouts (model) WHERE ended IS NULL",
    """CREATE TABLE IF NOT EXISTS rollout_evidence (
    rollout TEXT NOT NULL, step INTEGER NOT NULL, server TEXT NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (rollout, step, server))""",
    """CREATE TABLE IF NOT EXISTS rollout_decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rollout TEXT NOT NULL, revision INTEGER NOT NULL, at REAL NOT NULL, action TEXT NOT NULL,
    body BLOB NOT NULL, sha256 TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS decisions_of_a_rollout ON rollout_decisions (rollout, id)",
    """CREATE TRIGGER IF NOT EXISTS decisions_are_never_changed BEFORE UPDATE ON rollout_decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END""",
    """CREATE TRIGGER IF NOT EXISTS decisions_are_never_cut BEFORE DELETE ON rollout_decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END""",
)
COLUMNS = tuple(name for name in Rollout.__dataclass_fields__)
"""Of the table of rollouts: the record's own."""


def packed(document: Any) -> bytes:
    """JSON, the same for equal documents, compressed: a look is some kilobytes of mostly zeros."""
    return zlib.compress(json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(), level=1)


def unpacked(body: bytes) -> Any:
    """What was packed."""
    return json.loads(zlib.decompress(body))


def digest(plan: Plan, look: Look, decision: Decision) -> str:
    """SHA-256 (hex) of a decision with everything that it was made from."""
    document = {"plan": plan.to_json(), "look": look.to_json(), "decision": decision.to_json()}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def row_of(rollout: Rollout) -> dict[str, Any]:
    """Its row by column."""
    return {name: getattr(rollout, name) for name in COLUMNS} | {"plan": json.dumps(rollout.plan.to_json())}


def rollout_of(row: sqlite3.Row) -> Rollout:
    """The record of a row.

    Raises:
        ModelError: it was changed so that it cannot be read.
    """
    with as_written(f"Rollout {row['id']}"):
        values = {name: row[name] for name in COLUMNS}
        rollout = Rollout(**{**values, "plan": Plan.from_json(json.loads(values["plan"]))})
        if not 0 <= rollout.step < len(rollout.plan.steps):
            raise ValueError("no such step")
        times = (rollout.step_since, rollout.started, rollout.ended, rollout.paused_at)
        _numbers(rollout.share, *(each for each in times if each is not None))
        return rollout


def decided_of(row: sqlite3.Row) -> Decided:
    """The record of a row.

    Raises:
        ModelError: it was changed so that it cannot be read.
    """
    with as_written(f"Decision {row['id']}"):
        body = unpacked(row["body"])
        look, decision = Look.from_json(body["look"]), Decision.from_json(body["decision"])
        _numbers(row["at"])
        if row["action"] != decision.action:
            raise ValueError("two actions")
        return Decided(row["id"], row["rollout"], row["revision"], row["at"], look, decision, row["sha256"])


def evidence_of(row: sqlite3.Row) -> Evidence:
    """What one server reported.

    Raises:
        ModelError: it was changed so that it cannot be read.
    """
    with as_written(f"Evidence of rollout {row['rollout']}"):
        return Evidence.from_json(unpacked(row["body"]))


@contextmanager
def as_written(what: str) -> Iterator[None]:
    """Whatever a row holds that nobody here wrote, in words for a person."""
    try:
        yield
    except (LowbitError, zlib.error, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        hint = "Put back a copy of the registry, or start another rollout."
        raise ModelError(f"{what} was changed after it was written.", hint) from error


def _numbers(*values: object) -> None:
    if not all(isinstance(value, float) and math.isfinite(value) for value in values):
        raise ValueError("a time or a share is no number")
