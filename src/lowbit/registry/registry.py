"""The registry: one folder with versions of models, their aliases, and the log of every change.

with Registry.open(Path("registry"), create=True) as registry:
    pushed = registry.push(Path("build/demo"), "fashion", by="ana")
    registry.promote(pushed.version.ref, by="ana", why="within the budget on fresh data")
    folder = registry.checkout(registry.resolve("fashion@champion"))
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.schema import Manifest
from lowbit.errors import ModelError, UsageError
from lowbit.registry import aliases, audit, signing, verify, versions
from lowbit.registry.aliases import ANY, Expected
from lowbit.registry.blobs import Blobs, writing
from lowbit.registry.checkout import check_out, export, listing_of
from lowbit.registry.collect import collect, sweep
from lowbit.registry.database import Database
from lowbit.registry.listing import Listed
from lowbit.registry.push import default_name, draft_quantized, draft_source, register
from lowbit.registry.records import (
    CHAMPION,
    AliasEvent,
    AuditRow,
    Collected,
    ModelVersion,
    Move,
    Problem,
    Pushed,
    checked_by,
    checked_model,
)
from lowbit.registry.show import manifest_of


class Registry:
    """Versions of models in a folder; safe to call from any thread, and from several processes.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, folder: Path, database: Database, trusted: frozenset[str] = frozenset()) -> None:
        """Use `open`."""
        self.folder = folder
        self._trusted = trusted
        self._database = database
        self._blobs = Blobs(folder)

    @classmethod
    def open(cls, folder: Path, *, create: bool = False, trusted: Sequence[Path] = ()) -> Registry:
        """Opens a registry.

        Args:
            folder: Where it is.
            create: Make it where there is none.
            trusted: Files with public keys: only versions signed by one of them can be checked out.

        Raises:
            UsageError: there is none, or the folder cannot be read.
            ModelError: it is damaged, or written by a newer lowbit.
        """
        folder = Path(folder)
        keys = frozenset(signing.public_key(file) for file in trusted)
        database = Database(folder, create=create)
        if database.writable:
            with writing("a folder"):
                for name in ("blobs", "checkouts"):
                    (folder / name).mkdir(exist_ok=True)
        return cls(folder, database, keys)

    def close(self) -> None:
        """Closes its file."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ── versions ────────────────────────────────────────────────────────────────────────────────────────────────────

    def push(self, bundle: Path, model: str | None = None, *, by: str) -> Pushed:
        """Registers a bundle: what it ships, and the model in its own precision that this was made from.

        Doing it twice is doing it once. A source model is known again by its file and its preprocessing.

        Args:
            bundle: Its folder; every file is checked against its digest.
            model: Name to register it under; the source file's name without its ending if None.
            by: Who does it.

        Raises:
            UsageError: no bundle, or a name that cannot be one.
            ModelError: a file of it was changed, or is a link.
            Interrupted: the disk is full; nothing was registered.
        """
        checked_by(by)
        loaded = Bundle.load(bundle)
        name = default_name(loaded) if model is None else checked_model(model)
        manifest = loaded.manifest
        with self._blobs.held():
            source = draft_source(self._blobs, loaded, name, by)
            keeps = manifest.decision.chosen == manifest.baseline.id
            quantized = None if keeps else draft_quantized(self._blobs, loaded, name, by)
            with self.transaction() as db:
                return register(db, source, quantized)

    def resolve(self, ref: str) -> ModelVersion:
        """The version that a reference names.

        Args:
            ref: "name" (its champion, else its newest), "name@champion", "name@3" or "name@sha256:abcd".

        Raises:
            UsageError: there is none, or several.
        """
        with self._database.snapshot() as db:
            return versions.resolve(db, ref)

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return [row[0] for row in self._database.rows("SELECT DISTINCT model FROM versions WHERE collected IS NULL ORDER BY model")]

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model that can be served, by number; empty where there is no such model."""
        with self._database.snapshot() as db:
            return versions.of_model(db, model)

    def version(self, model: str, digest: str) -> ModelVersion | None:
        """The version of a model with this digest; None if there is none or it was collected."""
        with self._database.snapshot() as db:
            return versions.find(db, model, digest)

    def files(self, version: ModelVersion) -> tuple[Listed, ...]:
        """The files of a version.

        Raises:
            ModelError: their listing was changed.
        """
        return listing_of(self._blobs, version.digest)

    def manifest(self, version: ModelVersion) -> Manifest:
        """A version's `bundle.json`.

        Raises:
            ModelError: it was changed.
        """
        return manifest_of(self._blobs, version)

    # ── aliases ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def aliases(self, model: str) -> dict[str, ModelVersion]:
        """Alias -> the version that it names."""
        with self._database.snapshot() as db:
            known = {version.digest: version for version in versions.of_model(db, model)}
            return {alias: known[digest] for alias, digest in versions.aliases_of(db, model).items() if digest in known}

    def move(
        self,
        model: str,
        alias: str,
        to: str | None,
        *,
        expect: Expected,
        by: str,
        why: str,
        kind: Move = "set",
        within: sqlite3.Connection | None = None,
    ) -> AliasEvent:
        """Moves an alias if it is where the caller believes it to be.

        Where it is there already nothing is changed, and the event that led there comes back.

        Args:
            model: Of the alias.
            alias: Its name.
            to: Digest of the version that it shall name; None removes it.
            expect: Digest that it names now; None: it does not exist; `aliases.ANY`: whatever it is.
            by: Who does it.
            why: For the audit log.
            kind: What for.
            within: The connection that `transaction` gave, to move it together with other things.

        Raises:
            Conflict: another version is there now.
            UsageError: no such version, or a name that cannot be one.
        """
        with self._within(within) as db:
            return aliases.move(db, model, alias, to, expect=expect, by=by, why=why, kind=kind)

    def promote(
        self,
        ref: str | ModelVersion,
        *,
        alias: str = CHAMPION,
        expect: Expected = ANY,
        by: str,
        why: str,
        within: sqlite3.Connection | None = None,
    ) -> AliasEvent:
        """Lets an alias name a version; the champion before becomes the fallback, together.

        Raises:
            Conflict: the alias does not name what was expected.
            UsageError: no such version.
        """
        with self._within(within) as db:
            version = versions.resolve(db, ref) if isinstance(ref, str) else ref
            return aliases.promote(db, version, alias=alias, expect=expect, by=by, why=why)

    def rollback(
        self,
        model: str,
        *,
        alias: str = CHAMPION,
        to: int | str | None = None,
        by: str,
        why: str,
        within: sqlite3.Connection | None = None,
    ) -> AliasEvent:
        """Lets an alias name again what it named before. Doing it twice is doing it once.

        Args:
            model: Of the alias.
            alias: Its name.
            to: Id of an event: what that led to; or a digest that the alias had. None: what it had before its last move;
                where that was a rollback already, nothing is changed.
            by: Who does it.
            why: For the audit log.
            within: The connection that `transaction` gave.

        Raises:
            UsageError: there was nothing before, or what was is gone.
        """
        with self._within(within) as db:
            return aliases.rollback(db, model, alias=alias, to=to, by=by, why=why)

    def history(self, model: str, alias: str | None = None) -> list[AliasEvent]:
        """Every move of a model's aliases, or of one of them, the first one first."""
        with self._database.snapshot() as db:
            return aliases.history(db, model, alias)

    # ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, action: str, subject: str, body: Mapping[str, Any], by: str, *, within: sqlite3.Connection | None = None) -> AuditRow:
        """Adds a row to the audit log. Absolute paths in the body are cut to base names."""
        with self._within(within) as db:
            return audit.append(db, action, subject, body, by)

    def audit(self, after: int = 0, limit: int | None = None, subject: str | None = None) -> list[AuditRow]:
        """Rows of the audit log with ids above `after`, the first one first.

        Args:
            after: An id; 0 begins at the beginning.
            limit: At most this many.
            subject: Of this subject alone.
        """
        where, values = ("AND subject = ?", [subject]) if subject is not None else ("", [])
        query = f"SELECT * FROM audit WHERE id > ? {where} ORDER BY id LIMIT ?"
        return [audit.row_of(row) for row in self._database.rows(query, [after, *values, -1 if limit is None else limit])]

    def head(self) -> str:
        """Digest of the last row of the audit log: whoever keeps it can tell later whether rows were taken away."""
        rows = self._database.rows("SELECT sha256 FROM audit ORDER BY id DESC LIMIT 1")
        return str(rows[0][0]) if rows else audit.FIRST

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def checkout(self, version: ModelVersion) -> Path:
        """A version as a bundle's folder, every file checked; callers at once get the same one. It must not be written to.

        Raises:
            ModelError: its content was changed or is gone, or it lacks a trusted signature.
            UsageError: it is not checked out, and the registry is read-only here.
        """
        self._trusted_or_refused(version)
        with self._blobs.held():
            return check_out(self._blobs, self.folder / "checkouts", version.digest)

    def export(self, version: ModelVersion, folder: Path) -> Path:
        """Writes a version's files to a new folder, which is then nobody's but the caller's.

        Raises:
            UsageError: the folder exists, or cannot be written.
            ModelError: its content was changed or is gone.
        """
        if folder.exists():
            raise UsageError(f"{folder} exists.", "Name a folder that does not.")
        self._trusted_or_refused(version)
        with self._blobs.held():
            export(self._blobs, version.digest, folder)
        return folder

    def gc(self, *, keep: int, dry_run: bool = False, by: str) -> Collected:
        """Removes versions that nobody needs, and all files that belong to none.

        What stays of each model: the newest, what an alias names, what a rollback would lead to, and the parents of these.

        Args:
            keep: How many of the newest stay.
            dry_run: Only say what would go.
            by: Who does it.

        Raises:
            ModelError: a listing was changed, so that nobody can say what is needed; nothing is removed.
        """
        checked_by(by)
        with self._blobs.held(alone=True):
            with self.snapshot() if dry_run else self.transaction() as db:
                found, files = collect(db, self._blobs, keep, by, dry_run=dry_run)
                kept = {row["digest"] for row in db.execute("SELECT digest FROM versions WHERE collected IS NULL")}
            if not dry_run:  # only now that it is certain which versions are gone
                sweep(self._blobs, files, self.folder / "checkouts", kept)
        return found

    # ── trust ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def verify(self, ref: str | None = None, *, head: str | None = None, trusted: Sequence[Path] = ()) -> list[Problem]:
        """Looks for whatever is not as it was written; see `lowbit.registry.verify` for what can and cannot be found.

        Args:
            ref: Read the files of this version and its parents alone; the tables and the log are looked at whole.
            head: What `head` gave once (or its beginning): that row must still be there.
            trusted: Files with public keys: every version looked at must be signed by one of them.

        Raises:
            UsageError: no such version, or a key that is none.
        """
        keys = [signing.public_key(file) for file in trusted]
        root = self.folder / "checkouts"
        with self._blobs.held():
            with self.snapshot() as db:
                found = [*verify.integrity(db)]
                told = verify.log(db, head)
                found += [*told.problems, *verify.table_of_versions(db, told.rows), *verify.table_of_aliases(db, told.rows)]
                checked = verify.readable(db) if ref is None else self._with_parents(ref)
                found += verify.signatures(db, checked, keys)
            return [*found, *verify.content(self._blobs, checked), *verify.checkouts(self._blobs, root, checked)]

    def chain(self, head: str | None = None) -> list[Problem]:
        """The part of `verify` that looks at the audit log alone: quick enough for a page."""
        with self.snapshot() as db:
            return list(verify.log(db, head).problems)

    def sign(self, version: ModelVersion, key: Path, *, by: str) -> str:
        """Signs a version with a private Ed25519 key; returns the public one, hex.

        Raises:
            UsageError: the file is no such key, or the extra `sign` is not installed.
        """
        with self.transaction() as db:
            return signing.sign(db, version, key, checked_by(by))

    def signers(self, version: ModelVersion) -> set[str]:
        """Public keys, hex, with a valid signature of a version."""
        with self.snapshot() as db:
            return signing.signers(db, version.digest)

    def _with_parents(self, ref: str) -> list[ModelVersion]:
        first = self.resolve(ref)
        parents = [self.version(first.model, digest) for digest in first.parents]
        return [first, *(parent for parent in parents if parent is not None)]

    def _trusted_or_refused(self, version: ModelVersion) -> None:
        if self._trusted and not self.signers(version) & self._trusted:
            raise ModelError(
                f"{version.ref} is not signed by a trusted key.", f"`lowbit registry sign {version.ref} --key KEY.pem` signs it."
            )

    # ── for others ──────────────────────────────────────────────────────────────────────────────────────────────────

    def transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The file, to change several things together: `BEGIN IMMEDIATE`, committed at the end, rolled back by an exception.

        Other rooms may keep tables of their own in it. Within one, a further one of the same thread is a part that can fail alone.
        """
        return self._database.transaction()

    def snapshot(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The file, to read several things of one moment."""
        return self._database.snapshot()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds."""
        return self._database.rows(query, values)

    def changes(self) -> int:
        """Another number once anybody has committed something, also through this object. Costs microseconds."""
        return self._database.changes()

    @contextlib.contextmanager
    def _within(self, connection: sqlite3.Connection | None) -> Iterator[sqlite3.Connection]:
        if connection is None:
            with self.transaction() as db:
                yield db
            return
        with self._database.part_of(connection):
            yield connection
