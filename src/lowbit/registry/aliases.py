"""Aliases: moved by compare-and-swap, each move an event that is never changed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from lowbit.bundle.manifest import without_paths
from lowbit.errors import UsageError
from lowbit.registry import audit, versions
from lowbit.registry.records import (
    CHAMPION,
    FALLBACK,
    AliasEvent,
    Conflict,
    ModelVersion,
    Move,
    checked_alias,
    checked_by,
    checked_model,
    checked_why,
)

EVENT = "id, model, alias, before, after, at, by, why, kind"


class Any_:
    """The type of `ANY`."""

    def __repr__(self) -> str:
        return "ANY"


ANY = Any_()
"""For `expect`: whatever it names now."""
Expected = str | None | Any_


def history(db: sqlite3.Connection, model: str, alias: str | None = None) -> list[AliasEvent]:
    """Every move of a model's aliases, or of one, the first one first."""
    where, values = ("model = ?", [model]) if alias is None else ("model = ? AND alias = ?", [model, alias])
    return [AliasEvent(**dict(row)) for row in db.execute(f"SELECT {EVENT} FROM alias_events WHERE {where} ORDER BY id", values)]


def latest(db: sqlite3.Connection, model: str, alias: str) -> AliasEvent | None:
    """The last move of an alias."""
    row = db.execute(f"SELECT {EVENT} FROM alias_events WHERE model = ? AND alias = ? ORDER BY id DESC LIMIT 1", (model, alias)).fetchone()
    return AliasEvent(**dict(row)) if row else None


def move(db: sqlite3.Connection, model: str, alias: str, to: str | None, *, expect: Expected, by: str, why: str, kind: Move) -> AliasEvent:
    """See `Registry.move`; within a transaction."""
    checked_model(model), checked_alias(alias), checked_by(by), checked_why(why)
    now = versions.aliases_of(db, model).get(alias)
    last = latest(db, model, alias)
    if now == to and last is not None:
        return last  # done already: whoever asks again after a crash is told so
    if to is None and now is None:
        raise UsageError(f"'{model}' has no alias '{alias}'.", "There is nothing to remove.")
    if not isinstance(expect, Any_) and expect != now:
        raise _conflict(db, model, alias, expect, now, last)
    if to is not None and not versions.exists(db, model, to):
        raise UsageError(f"'{model}' has no version with the digest {to[:12]}.", "It was collected, or pushed to another registry.")
    return _write(db, (model, alias, now, to, time.time(), by, str(without_paths(why)), kind))


def _write(db: sqlite3.Connection, values: tuple[Any, ...]) -> AliasEvent:
    """The event, the alias and the row of the log, together."""
    model, alias, _, to, at, by, _, kind = values
    names = EVENT.removeprefix("id, ")
    id = db.execute(f"INSERT INTO alias_events ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values).lastrowid
    assert id is not None, "an insert gives an id"
    if to is None:
        db.execute("DELETE FROM aliases WHERE model = ? AND alias = ?", (model, alias))
    else:
        db.execute("INSERT OR REPLACE INTO aliases (model, alias, digest, event) VALUES (?, ?, ?, ?)", (model, alias, to, id))
    event = AliasEvent(id, *values)
    audit.append(db, kind, f"{model}@{alias}", body_of(event), by, at)
    return event


def body_of(event: AliasEvent) -> dict[str, Any]:
    """What the audit log says of a move."""
    return {"event": event.id, "model": event.model, "alias": event.alias, "before": event.before, "after": event.after, "why": event.why}


def _conflict(db: sqlite3.Connection, model: str, alias: str, expect: str | None, now: str | None, last: AliasEvent | None) -> Conflict:
    there = f"names {named(db, model, now)}" if now else "does not exist"
    who = f", moved by {last.by} at {_clock(last.at)}" if last else ""
    believed = named(db, model, expect) if expect else "nothing"
    hint = f"Look at `lowbit registry history {model}`, then decide again."
    return Conflict(f"{model}@{alias} {there}{who}, not {believed} as expected. Nothing was changed.", hint, found=now)


def named(db: sqlite3.Connection, model: str, digest: str) -> str:
    """A version's reference, or the digest's beginning where it was collected."""
    version = versions.find(db, model, digest)
    return version.ref if version else f"{model}@sha256:{digest[:12]}"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def promote(db: sqlite3.Connection, version: ModelVersion, *, alias: str, expect: Expected, by: str, why: str) -> AliasEvent:
    """See `Registry.promote`; within a transaction."""
    model = version.model
    before = versions.aliases_of(db, model).get(alias)
    event = move(db, model, alias, version.digest, expect=expect, by=by, why=why, kind="promote")
    if alias == CHAMPION and before is not None and before != version.digest:
        move(db, model, FALLBACK, before, expect=ANY, by=by, why=f"It was the champion before {version.ref}.", kind="set")
    return event


def rollback(db: sqlite3.Connection, model: str, *, alias: str, to: int | str | None, by: str, why: str) -> AliasEvent:
    """See `Registry.rollback`; within a transaction."""
    checked_model(model), checked_alias(alias)
    events = history(db, model, alias)
    if not events or events[-1].after is None:
        raise UsageError(f"'{model}' has no alias '{alias}' to roll back.", f"`lowbit registry history {model}` shows what there was.")
    if to is None and events[-1].kind == "rollback":
        return events[-1]
    target = back_to(events, to)
    return move(db, model, alias, target, expect=events[-1].after, by=by, why=why, kind="rollback")


def back_to(events: Sequence[AliasEvent], to: int | str | None) -> str:
    """The digest that a rollback leads to.

    Args:
        events: Of the alias, the first one first, at least one.
        to: An event's id: what it led to; a digest that the alias had once; None: what it had before the last move.

    Raises:
        UsageError: there was nothing before, or no such event.
    """
    model, alias = events[0].model, events[0].alias
    if to is None:
        if (before := events[-1].before) is None:
            hint = f"`lowbit registry promote {model}@NUMBER` moves it."
            raise UsageError(f"{model}@{alias} had no version before this one.", hint)
        return before
    if isinstance(to, str):
        if to not in digests(events):
            hint = "Roll back to one that it had (`lowbit registry history`), or promote this one."
            raise UsageError(f"{model}@{alias} never named the version {to[:12]}.", hint)
        return to
    found = next((event for event in events if event.id == to), None)
    if found is None:
        ids = ", ".join(str(event.id) for event in events[-10:])
        raise UsageError(f"{model}@{alias} has no event {to}. Its last ones: {ids}.", f"`lowbit registry history {model}` shows them all.")
    if found.after is None:
        raise UsageError(f"Event {to} removed {model}@{alias}; it leads to no version.", "Name an event that does.")
    return found.after


def digests(events: Iterable[AliasEvent]) -> set[str]:
    """Every digest that an alias had."""
    return {digest for event in events for digest in (event.before, event.after) if digest is not None}
