"""What nobody needs any more is removed: versions first, in one transaction, and then the files of none."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from lowbit.errors import UsageError
from lowbit.registry import aliases, audit, versions
from lowbit.registry.blobs import Blobs, writing
from lowbit.registry.checkout import listing_of
from lowbit.registry.records import Collected, ModelVersion


def unneeded(db: sqlite3.Connection, keep: int) -> list[ModelVersion]:
    """Versions of every model that are none of: its newest, named by an alias, named by it before its last move, a parent of those.

    Args:
        db: Of the registry.
        keep: How many of the newest stay.

    Raises:
        UsageError: fewer than one is to stay.
    """
    if keep < 1:
        raise UsageError(
            f"--keep {keep} would leave no version; at least 1 has to stay.", "Say how many of the newest stay, e.g. --keep 5."
        )
    found = []
    for row in db.execute("SELECT DISTINCT model FROM versions WHERE collected IS NULL ORDER BY model").fetchall():
        known = versions.of_model(db, row["model"])
        needed = {version.digest for version in known[-keep:]} | _named(db, row["model"])
        needed |= {parent for version in known if version.digest in needed for parent in version.parents}
        found += [version for version in known if version.digest not in needed]
    return found


def _named(db: sqlite3.Connection, model: str) -> set[str]:
    """Digests that a model's aliases name, and those that a rollback would lead back to."""
    now = versions.aliases_of(db, model)
    last = [aliases.latest(db, model, alias) for alias in now]
    return {*now.values(), *(event.before for event in last if event is not None and event.before is not None)}


def mark(db: sqlite3.Connection, gone: Iterable[ModelVersion], by: str) -> None:
    """Makes versions unreachable; within a transaction. Their numbers stay used."""
    for version in gone:
        at = time.time()
        db.execute("UPDATE versions SET collected = ? WHERE model = ? AND number = ?", (at, version.model, version.number))
        audit.append(db, "collect", version.ref, {"digest": version.digest}, by, at)


def loose(db: sqlite3.Connection, blobs: Blobs, gone: Iterable[ModelVersion] = ()) -> list[Path]:
    """Files that no version holds: of versions that are gone, or going, and of pushes that were killed.

    Raises:
        ModelError: a listing of a version that stays was changed, so that nobody can say what it needs.
    """
    going = {(version.model, version.digest) for version in gone}
    rows = db.execute("SELECT model, digest FROM versions WHERE collected IS NULL").fetchall()
    held: set[str] = set()
    for digest in {row["digest"] for row in rows if (row["model"], row["digest"]) not in going}:
        held |= {digest, *(file.sha256 for file in listing_of(blobs, digest))}
    return [file for file in blobs.all() if file.name not in held]


def sweep(blobs: Blobs, files: Iterable[Path], checkouts: Path, kept: set[str]) -> None:
    """Deletes files, what was never whole, and the checkouts of versions that are gone."""
    with writing("the registry", "to"):
        for file in files:
            file.unlink(missing_ok=True)
        if blobs.incoming.is_dir():
            for file in blobs.incoming.iterdir():
                file.unlink(missing_ok=True)
    for folder in checkouts.iterdir() if checkouts.is_dir() else ():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def collect(db: sqlite3.Connection, blobs: Blobs, keep: int, by: str, *, dry_run: bool) -> tuple[Collected, list[Path]]:
    """Marks what goes (unless it is a dry run) and finds its files; within a transaction, with nobody pushing."""
    gone = unneeded(db, keep)
    files = loose(db, blobs, gone)
    if not dry_run:
        mark(db, gone, by)
    return Collected(tuple(gone), len(files), sum(file.stat().st_size for file in files)), files
