"""Reviews: a shift waits for a person, with its evidence. Who answers first, answers.

    open ── accept ──────> accepted      the window is the new baseline
         ── roll back ───> rolled_back   the version before serves again
         ── recalibrate ─> recalibrated  a challenger is to be made of recent samples

Until then the review's policy holds.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lowbit.errors import UsageError, unknown
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.database import Database
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.tally import Key
from lowbit.monitoring.windows import Window

State = Literal["open", "accepted", "rolled_back", "recalibrated"]
Answer = Literal["accepted", "rolled_back", "recalibrated"]
Policy = Literal["hold", "tell"]
POLICIES: Mapping[str, str] = {
    "hold": "A running rollout of this model stays at its step, the champion stays, and nothing is promoted until a person has answered.",
    "tell": "Nothing waits for the answer.",
}
"""What a review does to the model while it is open; whoever moves traffic asks `Reviews.holding`."""
QUIET_S = 86_400.0
"""As long nothing is opened again after a rollback: old answers are in the windows for a while, and nobody is helped by a second review."""


@dataclass(frozen=True)
class Review:
    """A question to a person about a shift.

    Attributes:
        id: Of it.
        opened: Seconds since 1970.
        key: Model, version and variant.
        kind: Which rule found it.
        evidence: `finding`, `window` and `baseline` as JSON, with `since`, `until` and `n`.
        state: "open" or how it was answered.
        policy: What holds while it is open.
        seen: In how many looks the shift was found.
        last: When it was found last.
        by: Who answered.
        why: In that person's words.
        closed: When; None while it is open.
    """

    id: str
    opened: float
    key: Key
    kind: str
    evidence: Mapping[str, Any] = field(repr=False)
    state: State = "open"
    policy: Policy = "hold"
    seen: int = 1
    last: float = 0.0
    by: str | None = None
    why: str | None = None
    closed: float | None = None

    @property
    def window(self) -> Window:
        """The one that the shift was found in."""
        return Window.from_json(self.evidence["window"])

    def to_json(self) -> dict[str, Any]:
        """As the server and the command line show it."""
        plain = {name: getattr(self, name) for name in ("id", "opened", "kind", "state", "by", "why", "closed", "seen", "last")}
        return {
            **plain,
            **self.key._asdict(),
            "policy": {"name": self.policy, "text": POLICIES[self.policy]},
            "evidence": dict(self.evidence),
        }


class Reviews:
    """Those of one state folder."""

    def __init__(self, database: Database) -> None:
        """In an open database."""
        self._database = database

    def open(
        self, finding: Finding, window: Window, baseline: Baseline | None, *, policy: Policy = "hold", now: float | None = None
    ) -> Review | None:
        """Opens a review for a finding that asks for one.

        There is one open review of each kind for a variant: later findings are counted in it. Its evidence is that of the latest window
        until all of that came after the review was opened: the first one may hold more of what was normal before than of what is now.

        Args:
            finding: What was found.
            window: In what.
            baseline: Compared with what.
            policy: What holds while it is open.
            now: Seconds since 1970.

        Returns:
            The new one; None where one is open, where a rollback is less than a day old, or where somebody asked for recalibration already.
        """
        at, key = time.time() if now is None else now, window.key
        with self._database.writing() as connection:
            where = "(model, version, variant, kind) = (?, ?, ?, ?)"
            body = json.dumps(evidence(finding, window, baseline))
            shown = "evidence = case when json_extract(evidence, '$.since') < opened then ? else evidence end"
            update = f"update reviews set seen = seen + 1, last = ?, {shown} where state = 'open' and {where}"
            if connection.execute(update, (at, body, *key, finding.kind)).rowcount:
                return None
            quiet = f"select 1 from reviews where {where} and (state = 'recalibrated' or (state = 'rolled_back' and closed > ?))"
            if connection.execute(quiet, (*key, finding.kind, at - QUIET_S)).fetchone():
                return None
            name = secrets.token_hex(6)
            values = (name, at, *key, finding.kind, body, policy, at)
            insert = "insert into reviews (id, opened, model, version, variant, kind, evidence, state, policy, seen, last)"
            connection.execute(f"{insert} values (?, ?, ?, ?, ?, ?, ?, 'open', ?, 1, ?)", values)
        return self.one(name)

    def listed(self, state: str | None = None, *, model: str | None = None, limit: int = 200) -> list[Review]:
        """The latest ones, the latest first.

        Args:
            state: "open", "accepted", "rolled_back", "recalibrated"; None for all.
            model: Of one model alone.
            limit: At most so many.

        Raises:
            UsageError: there is no such state.
        """
        if state is not None and state not in get_args(State):
            raise unknown("state of a review", state, get_args(State))
        rows = self._database.rows(
            "select * from reviews where state = coalesce(?, state) and model = coalesce(?, model) order by opened desc, id limit ?",
            state,
            model,
            limit,
        )
        return [_review(row) for row in rows]

    def one(self, name: str) -> Review:
        """By id.

        Raises:
            UsageError: there is none.
        """
        rows = self._database.rows("select * from reviews where id = ?", name)
        if not rows:
            raise UsageError(f"There is no review '{name}'.", "`lowbit reviews list` shows them.")
        return _review(rows[0])

    def close(self, name: str, answer: Answer, *, by: str, why: str = "", now: float | None = None) -> Review:
        """A person answers. To accept, call `Monitoring.accept`: it sets the baseline, too.

        Raises:
            UsageError: there is no such review, nobody's name was given, or somebody answered it before.
        """
        if answer not in get_args(Answer):
            raise unknown("answer", answer, get_args(Answer))
        if not by.strip():
            raise UsageError("A review is answered by somebody.", "Say who: --by NAME.")
        with self._database.writing() as connection:
            update = "update reviews set state = ?, by = ?, why = ?, closed = ? where id = ? and state = 'open'"
            done = connection.execute(update, (answer, by, why, time.time() if now is None else now, name)).rowcount
        found = self.one(name)
        if not done:
            raise UsageError(
                f"Review '{name}' was answered before: {found.state.replace('_', ' ')} by {found.by}.", "The first answer stands."
            )
        return found

    def holding(self, model: str) -> tuple[Review, ...]:
        """The open reviews for which a rollout of the model has to wait, and nothing may be promoted."""
        return tuple(review for review in self.listed("open", model=model) if review.policy == "hold")


def evidence(finding: Finding, window: Window, baseline: Baseline | None) -> dict[str, Any]:
    """What a person needs to answer: the numbers, and both distributions."""
    shown = None if baseline is None else {"text": baseline.text, "source": baseline.source, "tally": baseline.tally.to_json()}
    return {
        "since": window.since,
        "until": window.until,
        "n": finding.n,
        "finding": finding.to_json(),
        "confidence": list(window.tally.confidence) or None,
        "baseline_confidence": (list(baseline.tally.confidence) or None) if baseline is not None else None,
        "baseline": shown,
        "window": window.to_json(),
    }


def _review(row: sqlite3.Row) -> Review:
    plain = {name: row[name] for name in ("id", "opened", "kind", "state", "policy", "seen", "last", "by", "why", "closed")}
    return Review(key=Key(row["model"], row["version"], row["variant"]), evidence=json.loads(row["evidence"]), **plain)
