"""Rollouts in the registry's file: begun and ended by people, moved by looks at their evidence.

A look reads, decides, and writes the decision with its consequence in one transaction that begins with the right to write. So it does not
matter who looks, how many do, or where one of them dies: there is either the state before a look or the state after it, and the next look,
by whomever, goes on from there. Aliases, rollouts and the audit log change together, because they live in one file.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowbit.errors import ModelError, UsageError, unknown
from lowbit.registry.aliases import ANY
from lowbit.registry.records import CHALLENGER, CHAMPION, LONGEST_WHY, ModelVersion, checked_by, checked_why
from lowbit.registry.registry import Registry
from lowbit.rollout.decide import Decision, Look, decide
from lowbit.rollout.evidence import Arm, Evidence
from lowbit.rollout.plan import Plan
from lowbit.rollout.records import Decided, Mismatch, Rollout, State
from lowbit.rollout.tables import COLUMNS, TABLES, decided_of, digest, evidence_of, packed, rollout_of, row_of

ITSELF = "rollout"
"""Who does what follows from evidence."""
CONSEQUENCES = frozenset({"rollout advance", "rollout promote", "rollout rollback"})
"""Actions in the audit log. A person's promotion is one, too, without a decision."""
EARLY = 0.9
"""A look is due after so much of the plan's time from look to look: several servers look at slightly different times."""


class Rollouts:
    """The rollouts of a registry. Safe to call from any thread, and from several processes.

    Attributes:
        registry: Where they live.
    """

    def __init__(self, registry: Registry) -> None:
        """Makes its tables where there are none and the registry can be written to."""
        self.registry = registry
        if not self._exists():
            try:
                with registry.transaction() as db:
                    for statement in TABLES:
                        db.execute(statement)
            except UsageError:  # read-only: there are no rollouts to show, and none can be started
                if self._exists():
                    raise

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, model: str, candidate: ModelVersion, plan: Plan, *, by: str, why: str = "", now: float | None = None) -> Rollout:
        """Begins to let a version in; the alias "challenger" names it from now on.

        Args:
            model: Of both versions.
            candidate: That is let in.
            plan: By which.
            by: Who does it.
            why: For the audit log.
            now: Seconds since 1970; the clock's if None.

        Raises:
            UsageError: one is open already, there is no champion, the candidate is of another model or the champion itself, or the
                plan would find no evidence.
            ModelError: the candidate's manifest is damaged.
        """
        checked_by(by), checked_why(why)
        self._fitting(candidate, plan)
        now = time.time() if now is None else now
        with self.registry.transaction() as db:
            champion = self._startable(model, candidate)
            count = db.execute("SELECT COUNT(*) FROM rollouts WHERE model = ?", (model,)).fetchone()[0]
            rollout = Rollout(
                id=f"{model}-{count + 1}", model=model, champion=champion.digest, candidate=candidate.digest, plan=plan, state="running",
                step=0, share=plan.steps[0], step_since=now, revision=1, started=now, ended=None, by=by, why=why,
            )  # fmt: skip
            names = ", ".join(COLUMNS)
            db.execute(f"INSERT INTO rollouts ({names}) VALUES ({', '.join(f':{name}' for name in COLUMNS)})", row_of(rollout))
            self.registry.move(model, CHALLENGER, candidate.digest, expect=ANY, by=by, why=f"Rollout {rollout.id}.", within=db)
            body = {"champion": champion.ref, "candidate": candidate.ref, "plan": plan.to_json(), "why": why}
            self.registry.note("rollout start", rollout.id, body, by, within=db)
        return rollout

    def pause(self, id: str, *, by: str, why: str = "", now: float | None = None) -> Rollout:
        """Stops steps and their clock; the candidate keeps its share and its guardrails. Doing it twice is doing it once.

        Raises:
            UsageError: there is no such rollout, or it has ended.
        """
        return self._person("pause", id, "paused", by, why, now)

    def resume(self, id: str, *, by: str, why: str = "", now: float | None = None) -> Rollout:
        """Goes on after a pause, which counts nowhere as time. Doing it twice is doing it once.

        Raises:
            UsageError: there is no such rollout, or it has ended.
        """
        return self._person("resume", id, "running", by, why, now)

    def promote(self, id: str, *, by: str, why: str = "", now: float | None = None) -> Rollout:
        """Makes the candidate the champion now, whatever the evidence says. Doing it twice is doing it once.

        Raises:
            Conflict: another version is the champion by now.
            UsageError: there is no such rollout, or it has ended otherwise.
        """
        return self._person("promote", id, "promoted", by, why, now)

    def abort(self, id: str, *, by: str, why: str = "", now: float | None = None) -> Rollout:
        """Takes the candidate's share away; the champion answers everybody. Doing it twice, or after a rollback, changes nothing.

        Raises:
            UsageError: there is no such rollout, or it was promoted.
        """
        return self._person("abort", id, "aborted", by, why, now)

    # ── servers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def report(self, id: str, step: int, server: str, evidence: Evidence) -> None:
        """Keeps a server's evidence of a step in place of what it reported before; an older report than that changes nothing.

        Args:
            id: Of the rollout.
            step: In which the evidence was seen.
            server: A name that no other server has, and none had before: one that starts again counts from nothing.
            evidence: Cumulative since the server saw the step begin.
        """
        body, arms = packed(evidence.to_json()), (evidence.baseline, evidence.canary)
        n = sum(arm.requests + arm.shadowed + arm.labelled + arm.busy_n for arm in arms) + len(evidence.hard)
        key = (id, step, server)
        query = "SELECT body FROM rollout_evidence WHERE rollout = ? AND step = ? AND server = ?"
        if (known := self._rows(query, key)) and known[0]["body"] == body:
            return  # an idle server writes nothing
        with self.registry.transaction() as db:
            db.execute(
                """INSERT INTO rollout_evidence (rollout, step, server, n, body) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (rollout, step, server) DO UPDATE SET n = excluded.n, body = excluded.body WHERE excluded.n >= n""",
                (*key, n, body),
            )

    def look(self, id: str, now: float | None = None) -> Decided | None:
        """Looks at the evidence and does what follows, in one transaction.

        Returns:
            What was decided; None where there was nothing to decide: it has ended, somebody looked a moment ago, or it holds and
            nothing new was seen.

        Raises:
            UsageError: there is no such rollout, or the registry is read-only.
        """
        now = time.time() if now is None else now
        rollout = self.get(id)
        if not rollout.open or not self._due(rollout, now):
            return None
        with self.registry.transaction() as db:
            rollout = self.get(id)  # again, with the right to write: somebody may have been quicker
            if not rollout.open or not self._due(rollout, now):
                return None
            last = self._last(id)
            look = self._seen(rollout, now, looks=last[0] if last else 0)
            decision = decide(rollout.plan, look)
            if decision.action == "hold" and last and _nothing_new(last[1], rollout, look):
                return None
            decided = self._write(db, rollout, look, decision, now)
            self._follow(db, rollout, decision, now, decided)
            return decided

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, id: str) -> Rollout:
        """One of them.

        Raises:
            UsageError: there is none of that name.
        """
        if not (rows := self._rows("SELECT * FROM rollouts WHERE id = ?", (id,))):
            known = [row["id"] for row in self._rows("SELECT id FROM rollouts ORDER BY started DESC LIMIT 20")]
            raise unknown("rollout", id, known) if known else UsageError("There are no rollouts yet.", "`lowbit rollout start` begins one.")
        return rollout_of(rows[0])

    def running(self, model: str) -> Rollout | None:
        """The open one of a model, running or paused; None where there is none."""
        rows = self._rows("SELECT * FROM rollouts WHERE model = ? AND ended IS NULL", (model,))
        return rollout_of(rows[0]) if rows else None

    def listed(self, model: str | None = None) -> list[Rollout]:
        """All of them, or all of a model, the latest first."""
        where, values = ("WHERE model = ?", (model,)) if model is not None else ("", ())
        return [rollout_of(row) for row in self._rows(f"SELECT * FROM rollouts {where} ORDER BY started DESC, rowid DESC", values)]

    def evidence(self, id: str, step: int) -> Evidence:
        """What all servers saw in a step."""
        rows = self._rows("SELECT rollout, body FROM rollout_evidence WHERE rollout = ? AND step = ? ORDER BY server", (id, step))
        return sum(map(evidence_of, rows), Evidence())

    def decisions(self, id: str, *, last: int | None = None) -> list[Decided]:
        """What was decided, the first one first; the `last` of them alone if given."""
        rows = self._rows("SELECT * FROM rollout_decisions WHERE rollout = ? ORDER BY id DESC LIMIT ?", (id, -1 if last is None else last))
        return [decided_of(row) for row in reversed(rows)]

    def replay(self, id: str) -> list[Mismatch]:
        """Decides everything again from what was kept, and says what differs from what was written: nothing, as it should be."""
        with self.registry.snapshot():
            plan, told, found = self.get(id).plan, self._told(id), []
            for row in self._rows("SELECT * FROM rollout_decisions WHERE rollout = ? ORDER BY id", (id,)):
                try:
                    kept = decided_of(row)
                    text = _differs(plan, kept, told.pop(kept.id, None))
                except ModelError as error:
                    text = error.message
                    told.pop(row["id"], None)
                found += [Mismatch(row["id"], text)] if text else []
        return [*found, *(Mismatch(each, "The audit log knows it, and it is not there any more.") for each in told)]

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def count(self, id: str) -> int:
        """How many decisions were made; those that the audit log knows are counted even where they are gone."""
        rows = self._rows("SELECT id FROM rollout_decisions WHERE rollout = ?", (id,))
        return len({row["id"] for row in rows} | self._told(id).keys())

    def _told(self, id: str) -> dict[int, str]:
        """Decisions that the audit log knows of, with their digests: those that changed something."""
        bodies = [row.body for row in self.registry.audit(subject=id) if row.action in CONSEQUENCES]
        return {body["decision"]: str(body.get("sha256")) for body in bodies if isinstance(body.get("decision"), int)}

    def _exists(self) -> bool:
        return bool(self.registry.rows("SELECT 1 FROM sqlite_master WHERE name = 'rollout_decisions'"))

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """What a query finds; nothing where a read-only registry has no tables for rollouts yet."""
        with self.registry.snapshot():
            return self.registry.rows(query, values) if self._exists() else []

    def _startable(self, model: str, candidate: ModelVersion) -> ModelVersion:
        """The champion, if a rollout can begin."""
        if candidate.model != model:
            raise UsageError(f"{candidate.ref} is no version of '{model}'.", "A rollout is between two versions of one model.")
        if (there := self.running(model)) is not None:
            hint = f"`lowbit rollout promote {there.id}` or `lowbit rollout abort {there.id}` ends it."
            raise UsageError(f"Rollout {there.id} of '{model}' is {there.state}; a model has one at a time.", hint)
        champion = self.registry.aliases(model).get(CHAMPION)
        if champion is None:
            hint = f"Make one with `lowbit registry promote {model}@NUMBER`."
            raise UsageError(f"'{model}' has no champion that the candidate could be compared with.", hint)
        if champion.digest == candidate.digest:
            raise UsageError(f"{candidate.ref} is the champion already.", "Push another version, or name one with MODEL@NUMBER.")
        return champion

    def _fitting(self, candidate: ModelVersion, plan: Plan) -> None:
        """Refuses a plan by which nothing would ever be seen: who mirrors requests mirrors arrays, and a language model has none."""
        if plan.mode == "shadow" and self.registry.manifest(candidate).language is not None:
            raise UsageError(
                f"{candidate.ref} is a language model, whose requests are not mirrored: in mode shadow there would be no evidence. "
                "Allowed: canary and ab.",
                "Begin with a small share (--mode canary --steps 1%,10%,50%,100%): what the candidate fails at, the champion answers.",
            )

    def _person(self, verb: str, id: str, state: State, by: str, why: str, now: float | None) -> Rollout:
        checked_by(by), checked_why(why)
        now = time.time() if now is None else now
        with self.registry.transaction() as db:
            rollout = self.get(id)
            if rollout.state == state or (verb == "abort" and rollout.state == "rolled_back"):
                return rollout
            if not rollout.open:
                hint = (
                    f"`lowbit registry rollback {rollout.model}` goes back to the version before." if rollout.state == "promoted" else None
                )
                raise UsageError(f"Rollout {id} has ended: it was {rollout.state.replace('_', ' ')}. It cannot {verb}.", hint)
            self.registry.note(f"rollout {verb}", id, {"step": rollout.step, "share": rollout.share, "why": why}, by, within=db)
            return self._change(db, rollout, _moved(rollout, state, now), by, why)

    def _due(self, rollout: Rollout, now: float) -> bool:
        """Whether it is time to look. What is hard does not wait."""
        rows = self._rows("SELECT at FROM rollout_decisions WHERE rollout = ? ORDER BY id DESC LIMIT 1", (rollout.id,))
        soon = bool(rows) and 0 <= now - rows[0]["at"] < EARLY * rollout.plan.look_s
        return not soon or bool(self._hard(rollout))

    def _hard(self, rollout: Rollout) -> tuple[str, ...]:
        """Hard stops of any step: a crash that a server reports when another has moved the step on is one nevertheless."""
        steps = range(rollout.step + 1)
        return tuple(sorted({word for step in steps for word in self.evidence(rollout.id, step).hard}))

    def _last(self, id: str) -> tuple[int, Decided] | None:
        """How many decisions there are, and the last one."""
        kept = self.decisions(id, last=1)
        count = self._rows("SELECT COUNT(*) AS n FROM rollout_decisions WHERE rollout = ?", (id,))
        return (count[0]["n"], kept[0]) if kept else None

    def _seen(self, rollout: Rollout, now: float, looks: int) -> Look:
        """Everything that the next decision is made from."""
        paused = now - rollout.paused_at if rollout.paused_at is not None else 0.0
        champion = self.registry.aliases(rollout.model).get(CHAMPION)
        return Look(
            step=rollout.step,
            in_step_s=max(now - rollout.step_since - paused, 0.0),
            evidence=replace(self.evidence(rollout.id, rollout.step), hard=self._hard(rollout)),
            looks=looks,
            reference=self._reference(rollout) if rollout.share >= 1 else Arm(),
            paused=rollout.state == "paused",
            moved=champion is None or champion.digest != rollout.champion,
        )

    def _reference(self, rollout: Rollout) -> Arm:
        """What the champion answered in the last step in which it answered anybody."""
        earlier = (self.evidence(rollout.id, step).baseline for step in range(rollout.step - 1, -1, -1))
        return next((arm for arm in earlier if arm.requests), Arm())

    def _write(self, db: sqlite3.Connection, rollout: Rollout, look: Look, decision: Decision, now: float) -> Decided:
        sha256 = digest(rollout.plan, look, decision)
        body = packed({"look": look.to_json(), "decision": decision.to_json()})
        values = (rollout.id, rollout.revision, now, decision.action, body, sha256)
        query = "INSERT INTO rollout_decisions (rollout, revision, at, action, body, sha256) VALUES (?, ?, ?, ?, ?, ?)"
        id = db.execute(query, values).lastrowid
        assert id is not None, "an insert gives an id"
        return Decided(id, rollout.id, rollout.revision, now, look, decision, sha256)

    def _follow(self, db: sqlite3.Connection, rollout: Rollout, decision: Decision, now: float, decided: Decided) -> None:
        """The consequence of a decision."""
        if decision.action == "hold":
            return
        why = " ".join(decision.reasons)[:LONGEST_WHY]
        body = {"decision": decided.id, "sha256": decided.sha256, "step": rollout.step, "share": rollout.share, "why": why}
        self.registry.note(f"rollout {decision.action}", rollout.id, body, ITSELF, within=db)
        if decision.action == "advance":
            step = rollout.step + 1
            change: Mapping[str, Any] = {"step": step, "share": rollout.plan.steps[step], "step_since": now}
        else:
            change = _moved(rollout, "promoted" if decision.action == "promote" else "rolled_back", now)
        self._change(db, rollout, change, ITSELF, why)

    def _change(self, db: sqlite3.Connection, rollout: Rollout, change: Mapping[str, Any], by: str, why: str) -> Rollout:
        """Writes the new state if nobody was quicker, and moves the aliases that go with it."""
        after = replace(rollout, **change, revision=rollout.revision + 1, by=by, why=why)
        if after.state == "promoted":
            version = self.registry.resolve(f"{rollout.model}@sha256:{rollout.candidate}")
            said = f"Rollout {rollout.id}. {why}".strip()[:LONGEST_WHY]
            self.registry.promote(version, expect=rollout.champion, by=by, why=said, within=db)
        challenger = self.registry.aliases(rollout.model).get(CHALLENGER)
        if not after.open and challenger is not None and challenger.digest == rollout.candidate:
            said = f"Rollout {rollout.id} was {after.state.replace('_', ' ')}."
            self.registry.move(rollout.model, CHALLENGER, None, expect=rollout.candidate, by=by, why=said, kind="remove", within=db)
        sets = ", ".join(f"{name} = :{name}" for name in COLUMNS if name != "id")
        values = {**row_of(after), "read": rollout.revision}
        changed = db.execute(f"UPDATE rollouts SET {sets} WHERE id = :id AND revision = :read", values).rowcount
        assert changed == 1, "the transaction began with the right to write, and read the revision after that"
        return after


def _moved(rollout: Rollout, state: State, now: float) -> dict[str, Any]:
    """What a new state brings with it."""
    if state == "paused":
        return {"state": state, "paused_at": now}
    lasted = now - rollout.paused_at if rollout.paused_at is not None else 0.0
    if state == "running":
        return {"state": state, "paused_at": None, "step_since": rollout.step_since + max(lasted, 0.0)}
    return {"state": state, "share": 1.0 if state == "promoted" else 0.0, "ended": now, "paused_at": None}


def _nothing_new(last: Decided, rollout: Rollout, look: Look) -> bool:
    """Whether a look that holds saw just what the last one saw: such looks are not kept, or an idle server would fill the disk."""
    then, now = last.look.in_step_s, look.in_step_s
    over = any(then < end <= now for end in (rollout.plan.step_s, rollout.plan.deadline_s))
    same = last.decision.action == "hold" and last.revision == rollout.revision and not over
    return same and replace(last.look, in_step_s=now, looks=look.looks) == look


def _differs(plan: Plan, kept: Decided, told: str | None) -> str:
    """What a decision replays to, if it is not what was written, here and (its digest) in the audit log; else nothing."""
    again = decide(plan, kept.look)
    if again != kept.decision:
        parts = [name for name in ("action", "verdicts", "reasons") if getattr(again, name) != getattr(kept.decision, name)]
        return f"It said {kept.decision.action} and replays to {again.action}; {', '.join(parts)} differ."
    if digest(plan, kept.look, kept.decision) != kept.sha256:
        return "Its digest is of something else: the plan, the evidence or the decision was changed afterwards."
    if kept.decision.action != "hold" and told != kept.sha256:
        return "The audit log has another digest of it, or none: it was written anew."
    return ""
