"""Everything the registry says is held against everything else it says, and against its files.

What this finds: content, listing, manifest, version, alias, event or row of the log that was changed, put in or taken away.
What it cannot find without the head of the log kept elsewhere: a log that was rewritten whole, with all that follows from it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.manifest import FILE_NAME
from lowbit.errors import LowbitError, ModelError, UsageError
from lowbit.registry import aliases, audit, signing, versions
from lowbit.registry.blobs import Blobs
from lowbit.registry.checkout import differing, listing_of
from lowbit.registry.lineage import lineage_of
from lowbit.registry.listing import Listed
from lowbit.registry.records import AliasEvent, AuditRow, ModelVersion, Problem
from lowbit.registry.show import manifest_of

_HEAD = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Told:
    """The audit log, and the problems with reading it."""

    rows: tuple[AuditRow, ...]
    problems: tuple[Problem, ...]


def log(db: sqlite3.Connection, head: str | None = None) -> Told:
    """The audit log, its chain checked.

    Args:
        db: Of the registry.
        head: Beginning of the digest of a row that has to be in it.

    Raises:
        UsageError: the head is none, or too short to tell anything.
    """
    beginning = None if head is None else _checked_head(head)
    rows: list[AuditRow] = []
    problems: list[Problem] = []
    for raw in db.execute("SELECT * FROM audit ORDER BY id").fetchall():
        try:
            rows.append(audit.row_of(raw))
        except ModelError as error:
            problems.append(Problem("audit", f"row {raw['id']}", error.message))
    problems += audit.broken_links(rows)
    used = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'audit'").fetchone()
    if used and used[0] > (rows[-1].id if rows else 0):
        problems.append(Problem("audit", "the log", f"The last rows of the log are gone: there were {used[0]:,}."))
    if beginning is not None and not any(str(digest).startswith(beginning) for digest in (audit.FIRST, *(row.sha256 for row in rows))):
        problems.append(Problem("audit", "the log", f"No row has the digest {head}: rows were changed or taken away since that was noted."))
    return Told(tuple(rows), tuple(problems))


def _checked_head(head: str) -> str:
    """The beginning of a head, long enough that no other row happens to begin so."""
    if not _HEAD.fullmatch(head):
        raise UsageError(f"'{head}' is no head of the log: its first 8 hex digits, or more of its 64, are.", "Every change prints it.")
    return head


def table_of_versions(db: sqlite3.Connection, rows: Sequence[AuditRow]) -> Iterator[Problem]:
    """Versions against the rows of the log that registered and collected them."""
    pushed = {row.subject: row for row in rows if row.action == "push"}
    gone = {row.subject for row in rows if row.action == "collect"}
    seen = set()
    for raw in db.execute(f"SELECT {versions.COLUMNS}, collected FROM versions ORDER BY model, number").fetchall():
        try:
            version = versions.version_of(raw)
            ref, record = version.ref, versions.record_of(version)
        except (ModelError, ValueError):  # a number in its lineage that no JSON has
            ref, record = f"{raw['model']}@{raw['number']}", ""
        seen.add(ref)
        if ref not in pushed:
            yield Problem("version", ref, f"{ref} was put in: the log knows no push of it.")
        elif pushed[ref].body.get("record") != record:
            yield Problem("version", ref, f"What is said of {ref} was changed after it was registered.")
        if (raw["collected"] is not None) != (ref in gone):
            yield Problem("version", ref, f"{ref} and the log differ on whether it was collected.")
    for ref in sorted(pushed.keys() - seen):
        yield Problem("version", ref, f"{ref} was taken away: the log knows a push of it.")


def readable(db: sqlite3.Connection) -> list[ModelVersion]:
    """Every version that can be served, without those whose row cannot be read: `table_of_versions` tells of these."""
    found = []
    for raw in db.execute(f"SELECT {versions.COLUMNS} FROM versions WHERE collected IS NULL ORDER BY model, number").fetchall():
        with contextlib.suppress(ModelError):
            found.append(versions.version_of(raw))
    return found


def table_of_aliases(db: sqlite3.Connection, rows: Sequence[AuditRow]) -> Iterator[Problem]:
    """Aliases and their events against the rows of the log."""
    told = {row.body["event"]: row for row in audit.moves_of(rows)}
    for raw in db.execute(f"SELECT {aliases.EVENT} FROM alias_events ORDER BY id").fetchall():
        event, row = AliasEvent(**dict(raw)), told.pop(raw["id"], None)
        subject = f"{event.model}@{event.alias}"
        if row is None:
            yield Problem("alias", subject, f"Event {event.id} of {subject} was put in: the log does not know it.")
        elif (dict(row.body), row.by, row.at, row.action) != (aliases.body_of(event), event.by, event.at, event.kind):
            yield Problem("alias", subject, f"Event {event.id} of {subject} is not what the log says.")
    for id, row in told.items():
        yield Problem("alias", row.subject, f"Event {id} of {row.subject} was taken away.")
    now = {(r["model"], r["alias"]): r["digest"] for r in db.execute("SELECT model, alias, digest FROM aliases").fetchall()}
    replayed = audit.replay(rows)
    for model, alias in sorted(now.keys() | replayed.keys(), key=str):
        if now.get((model, alias)) != replayed.get((model, alias)):
            yield Problem("alias", f"{model}@{alias}", f"{model}@{alias} does not name what the log says.")
        elif not versions.exists(db, model, now[model, alias]):
            yield Problem("alias", f"{model}@{alias}", f"{model}@{alias} names a version that is not there.")


def content(blobs: Blobs, checked: Sequence[ModelVersion]) -> Iterator[Problem]:
    """Listings, files and manifests of versions; a file that several hold is read once."""
    known: dict[str, str | None] = {}
    for version in checked:
        try:
            files = listing_of(blobs, version.digest)
        except (LowbitError, OSError) as error:
            yield Problem("listing", version.ref, f"The listing of {version.ref}: {getattr(error, 'message', error)}")
            continue
        wrong = []
        for file in files:
            if file.sha256 not in known:
                known[file.sha256] = blobs.wrong(file.sha256)
            if (text := known[file.sha256]) is not None:
                wrong.append(Problem("blob", version.ref, f"{file.path} of {version.ref}: {text}"))
        yield from wrong
        if not wrong:
            yield from _manifest(blobs, version, files)


def _manifest(blobs: Blobs, version: ModelVersion, files: Sequence[Listed]) -> Iterator[Problem]:
    """Whether a version is what its manifest says, and holds what that lists."""
    try:
        manifest = manifest_of(blobs, version)
    except LowbitError as error:
        yield Problem("manifest", version.ref, error.message)
        return
    listed = {file.path: file.sha256 for file in files}
    for entry in manifest.files:
        if listed.get(entry.path) != entry.sha256:
            yield Problem("manifest", version.ref, f"{version.ref} does not hold {entry.path} as its {FILE_NAME} lists it.")
    chosen = manifest.chosen
    said = (version.candidate, version.precision, version.runtime)
    if said != (chosen.id, chosen.precision, chosen.runtime) or version.lineage != json.loads(json.dumps(lineage_of(manifest, listed))):
        yield Problem("manifest", version.ref, f"What is said of {version.ref} is not what its {FILE_NAME} says.")


def checkouts(blobs: Blobs, root: Path, checked: Sequence[ModelVersion]) -> Iterator[Problem]:
    """Folders that are checked out; a wrong one is made again when it is next asked for."""
    for digest, version in {version.digest: version for version in checked}.items():
        if not (root / digest).is_dir():
            continue
        try:
            wrong = differing(root / digest, listing_of(blobs, digest))
        except LowbitError:
            continue  # said of the listing already
        if wrong is not None:
            yield Problem("checkout", version.ref, f"The checkout of {version.ref}: {wrong}")


def signatures(db: sqlite3.Connection, checked: Sequence[ModelVersion], trusted: Collection[str]) -> Iterator[Problem]:
    """Signatures of versions; each needs one by a trusted key, where any is named."""
    for version in checked:
        rows = db.execute("SELECT key, signature FROM signatures WHERE digest = ?", (version.digest,)).fetchall()
        if rows and not signing.installed():
            text = f"{version.ref} is signed, and cryptography is not installed to check it: pip install 'lowbit[sign]'."
            yield Problem("signature", version.ref, text)
            continue
        good = {row["key"] for row in rows if signing.valid(version.digest, row["key"], row["signature"])}
        for row in rows:
            if row["key"] not in good:
                yield Problem("signature", version.ref, f"A signature of {version.ref} is not valid (key {row['key'][:12]}).")
        if trusted and not good & set(trusted):
            yield Problem("signature", version.ref, f"{version.ref} is not signed by a trusted key.")


def integrity(db: sqlite3.Connection) -> Iterator[Problem]:
    """SQLite's own check of its file."""
    for row in db.execute("PRAGMA integrity_check(10)").fetchall():
        if row[0] != "ok":
            yield Problem("database", "registry.sqlite", f"SQLite says: {row[0]}.")
