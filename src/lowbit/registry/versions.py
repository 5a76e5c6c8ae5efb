"""The table of versions: rows in and out, and references to them."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lowbit.errors import ModelError, UsageError, unknown
from lowbit.registry.audit import canonical, sha256_of
from lowbit.registry.records import CHAMPION, ModelVersion, parse_ref

COLUMNS = "model, number, digest, kind, candidate, precision, runtime, parents, lineage, size_bytes, created, by"


def version_of(row: sqlite3.Row) -> ModelVersion:
    """A record from a row of the table.

    Raises:
        ModelError: it was changed so that it cannot be read.
    """
    found = {name: row[name] for name in COLUMNS.split(", ")}
    try:
        _check_columns(found)
        parents, lineage = tuple(json.loads(row["parents"])), dict(json.loads(row["lineage"]))
    except (TypeError, ValueError, RecursionError) as error:
        ref = f"{row['model']}@{row['number']}"
        raise ModelError(f"What is said of {ref} was changed after it was registered.", "Put back a copy of the registry.") from error
    return ModelVersion(**{**found, "parents": parents, "lineage": lineage})


def _check_columns(found: Mapping[str, Any]) -> None:
    """SQLite keeps anything in any column: what was never written so is no version."""
    kinds = {"number": int, "size_bytes": int, "created": float}
    right = all(isinstance(value, kinds.get(name, str)) for name, value in found.items())
    if not right or not math.isfinite(found["created"]) or not re.fullmatch("[0-9a-f]{64}", found["digest"]):
        raise ValueError("a column of another kind")


def record_of(version: ModelVersion) -> str:
    """SHA-256 of all that is said of a version: the audit log has it, so that a changed row is found."""
    return sha256_of(asdict(version))


def insert(db: sqlite3.Connection, version: ModelVersion) -> None:
    """Adds a version."""
    values = {**asdict(version), "parents": canonical(list(version.parents)), "lineage": canonical(version.lineage)}
    names = COLUMNS.split(", ")
    db.execute(f"INSERT INTO versions ({COLUMNS}) VALUES ({', '.join('?' * len(names))})", [values[name] for name in names])


def next_number(db: sqlite3.Connection, model: str) -> int:
    """One more than any version of a model ever had."""
    return int(db.execute("SELECT coalesce(max(number), 0) + 1 FROM versions WHERE model = ?", (model,)).fetchone()[0])


def find(db: sqlite3.Connection, model: str, digest: str) -> ModelVersion | None:
    """The version of a model with this content, unless it was collected."""
    row = db.execute(f"SELECT {COLUMNS} FROM versions WHERE model = ? AND digest = ? AND collected IS NULL", (model, digest)).fetchone()
    return version_of(row) if row else None


def exists(db: sqlite3.Connection, model: str, digest: str) -> bool:
    """Whether there is a version of a model with this content."""
    query = "SELECT 1 FROM versions WHERE model = ? AND digest = ? AND collected IS NULL"
    return db.execute(query, (model, digest)).fetchone() is not None


def find_source(db: sqlite3.Connection, model: str, lineage: Mapping[str, Any]) -> ModelVersion | None:
    """The version of a model that is this source model behind this preprocessing."""
    rows = db.execute(
        f"SELECT {COLUMNS} FROM versions WHERE model = ? AND kind = 'source' AND collected IS NULL"
        " AND json_extract(lineage, '$.source.sha256') = ? AND json_extract(lineage, '$.preprocess_sha256') IS ? ORDER BY number",
        (model, lineage["source"]["sha256"], lineage["preprocess_sha256"]),
    ).fetchall()
    return version_of(rows[0]) if rows else None


def of_model(db: sqlite3.Connection, model: str) -> list[ModelVersion]:
    """All that can be served, by number."""
    rows = db.execute(f"SELECT {COLUMNS} FROM versions WHERE model = ? AND collected IS NULL ORDER BY number", (model,)).fetchall()
    return [version_of(row) for row in rows]


def aliases_of(db: sqlite3.Connection, model: str) -> dict[str, str]:
    """Alias -> digest."""
    return {row["alias"]: row["digest"] for row in db.execute("SELECT alias, digest FROM aliases WHERE model = ? ORDER BY alias", (model,))}


def resolve(db: sqlite3.Connection, text: str) -> ModelVersion:
    """See `Registry.resolve`."""
    ref = parse_ref(text)
    known = of_model(db, ref.model)
    if not known:
        raise _no_model(db, ref.model)
    if ref.number is not None:
        return _numbered(db, known, ref.model, ref.number)
    if ref.digest is not None:
        return _abbreviated(known, ref.model, ref.digest)
    aliases = aliases_of(db, ref.model)
    if ref.alias is not None and ref.alias not in aliases:
        raise _no_alias(ref.model, ref.alias, aliases)
    if (wanted := aliases.get(ref.alias or CHAMPION)) is None:
        return known[-1]
    if (named := next((version for version in known if version.digest == wanted), None)) is None:
        alias = f"{ref.model}@{ref.alias or CHAMPION}"
        raise ModelError(f"{alias} names a version that is not there.", "`lowbit registry verify` looks for what was changed.")
    return named


def _no_model(db: sqlite3.Connection, model: str) -> UsageError:
    models = [row[0] for row in db.execute("SELECT DISTINCT model FROM versions WHERE collected IS NULL")]
    if not models:
        return UsageError("The registry is empty.", "`lowbit registry push BUNDLE` puts a bundle in.")
    return unknown("model", model, models)


def _no_alias(model: str, alias: str, aliases: Mapping[str, str]) -> UsageError:
    hint = f"`lowbit registry promote {model}@NUMBER --alias {alias}` makes it."
    if not aliases:
        return UsageError(f"'{model}' has no alias '{alias}', nor any other.", hint)
    return UsageError(f"'{model}' has no alias '{alias}'. It has: {', '.join(sorted(aliases))}.", hint)


def _numbered(db: sqlite3.Connection, known: Sequence[ModelVersion], model: str, number: int) -> ModelVersion:
    for version in known:
        if version.number == number:
            return version
    if db.execute("SELECT 1 FROM versions WHERE model = ? AND number = ?", (model, number)).fetchone():
        raise UsageError(f"The files of {model}@{number} were removed by `gc`.", "Push the bundle again: it gets a new number.")
    numbers = ", ".join(str(version.number) for version in known)
    raise UsageError(f"'{model}' has no version {number}. It has: {numbers}.", "`lowbit registry list` shows them all.")


def _abbreviated(known: Sequence[ModelVersion], model: str, digits: str) -> ModelVersion:
    found = [version for version in known if version.digest.startswith(digits)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"'{model}' has no version with a digest that begins with {digits}.", "`lowbit registry list` shows them all.")
    raise UsageError(f"Several versions have a digest that begins with {digits}: {', '.join(v.ref for v in found)}.", "Write more digits.")
