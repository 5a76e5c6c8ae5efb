"""Rollouts in a real registry: people's verbs, looks and what follows, several lookers, deaths at every statement."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from registry_case import BY, MODEL, filled, in_child, quick_folder
from rollout_evidence import BAD, GOOD

from lowbit.errors import ModelError, UsageError
from lowbit.registry.records import Conflict
from lowbit.registry.registry import Registry
from lowbit.rollout.decide import decide
from lowbit.rollout.desired import desired
from lowbit.rollout.evidence import Arm, Evidence
from lowbit.rollout.plan import Plan
from lowbit.rollout.records import Decided, Rollout
from lowbit.rollout.store import Rollouts
from lowbit.rollout.tables import digest, packed

PLAN = Plan(steps=(0.2, 0.5, 1.0), step_s=60.0, min_requests=500, deadline_s=3600.0, look_s=5.0)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A registry with versions 1, 2 (champion) and 3, and tables for rollouts. Not to be changed."""
    with quick_folder() as folder:
        registry, _, _ = filled(folder / "registry")
        Rollouts(registry)
        registry.close()
        yield folder / "registry"


@pytest.fixture
def registry(template: Path) -> Iterator[Registry]:
    with quick_folder() as folder:
        shutil.copytree(template, folder / "registry")
        with Registry.open(folder / "registry") as registry:
            yield registry


@pytest.fixture
def rollouts(registry: Registry) -> Rollouts:
    return Rollouts(registry)


def begun(rollouts: Rollouts, plan: Plan = PLAN) -> Rollout:
    return rollouts.start(MODEL, rollouts.registry.resolve(f"{MODEL}@3"), plan, by=BY, now=1000.0)


def looked(rollouts: Rollouts, id: str, now: float) -> str | None:
    found = rollouts.look(id, now)
    return None if found is None else found.decision.action


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: version.number for alias, version in registry.aliases(MODEL).items()}


def test_a_healthy_candidate_goes_through_all_steps_and_becomes_the_champion(rollouts: Rollouts) -> None:
    registry, rollout = rollouts.registry, begun(rollouts)
    assert (rollout.id, rollout.state, rollout.step, rollout.share) == (f"{MODEL}-1", "running", 0, 0.2)
    assert aliases(registry) == {"champion": 2, "fallback": 1, "challenger": 3}
    now = 1000.0
    for step, share in enumerate(PLAN.steps):
        assert (rollouts.get(rollout.id).step, rollouts.get(rollout.id).share) == (step, share)
        rollouts.report(rollout.id, step, "server-a", replace(GOOD, baseline=Arm()) if share == 1 else GOOD)
        assert looked(rollouts, rollout.id, now + 30) == "hold"
        assert looked(rollouts, rollout.id, now + 61) == ("promote" if share == 1 else "advance")
        now += 61
    ended = rollouts.get(rollout.id)
    assert (ended.state, ended.share, ended.ended, ended.by) == ("promoted", 1.0, now, "rollout")
    assert aliases(registry) == {"champion": 3, "fallback": 2}
    assert (rollouts.running(MODEL), rollouts.replay(rollout.id)) == (None, [])
    assert [row.action for row in registry.audit(subject=rollout.id)] == ["rollout start", *["rollout advance"] * 2, "rollout promote"]
    kept = {decided.id: decided.sha256 for decided in rollouts.decisions(rollout.id)}
    assert all(kept[row.body["decision"]] == row.body["sha256"] for row in registry.audit(subject=rollout.id)[1:])
    assert looked(rollouts, rollout.id, now + 100) is None
    assert registry.verify() == []


def test_a_bad_candidate_is_rolled_back_at_the_first_look_that_shows_it(rollouts: Rollouts) -> None:
    registry, rollout = rollouts.registry, begun(rollouts)
    rollouts.report(rollout.id, 0, "server-a", BAD)
    found = rollouts.look(rollout.id, 1001.0)
    assert found is not None
    assert found.decision.action == "rollback"
    assert "Errors: at least" in found.decision.reasons[0]
    ended = rollouts.get(rollout.id)
    assert (ended.state, ended.share, ended.ended) == ("rolled_back", 0.0, 1001.0)
    assert aliases(registry) == {"champion": 2, "fallback": 1}
    for again in (rollouts.look(rollout.id, 1010.0), rollouts.abort(rollout.id, by=BY)):
        assert again in (None, ended)
    assert len(rollouts.decisions(rollout.id)) == 1


def test_hard_stops_do_not_wait_for_the_next_look(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    assert looked(rollouts, rollout.id, 1001.0) == "hold"
    rollouts.report(rollout.id, 0, "b", Evidence(hard=("not a number",)))
    assert looked(rollouts, rollout.id, 1001.2) == "rollback"
    assert rollouts.get(rollout.id).why == "The candidate: not a number. That needs no statistics."


def test_at_100_per_cent_the_step_before_stands_in_for_the_champion(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    seen = [replace(GOOD, baseline=replace(GOOD.baseline, errors=errors)) for errors in (40, 44)]
    for step, evidence in enumerate(seen):
        rollouts.report(rollout.id, step, "a", evidence)
        assert looked(rollouts, rollout.id, 1061.0 + 61 * step) == "advance"
    rollouts.report(rollout.id, 2, "a", replace(GOOD, baseline=Arm()))
    decided = rollouts.look(rollout.id, 1130.0)
    assert decided is not None
    assert decided.look.reference == seen[1].baseline


def test_a_crash_that_is_reported_after_the_step_moved_on_ends_it_too(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    assert looked(rollouts, rollout.id, 1061.0) == "advance"
    rollouts.report(rollout.id, 1, "a", GOOD)
    assert looked(rollouts, rollout.id, 1062.0) is None
    rollouts.report(rollout.id, 0, "b", Evidence(hard=("crashed",)))
    assert looked(rollouts, rollout.id, 1062.2) == "rollback"
    assert rollouts.replay(rollout.id) == []


def test_looks_that_are_early_or_see_nothing_new_are_not_kept(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    assert looked(rollouts, rollout.id, 1005.0) == "hold"
    rollouts.report(rollout.id, 0, "a", GOOD + GOOD)
    assert looked(rollouts, rollout.id, 1006.0) is None, "another one looked a second ago"
    assert looked(rollouts, rollout.id, 1010.0) == "hold"
    assert looked(rollouts, rollout.id, 1020.0) is None, "it saw the same"
    assert [decided.look.looks for decided in rollouts.decisions(rollout.id)] == [0, 1]


def test_a_pause_stops_the_clock_and_not_the_guardrails(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    paused = rollouts.pause(rollout.id, by=BY, why="lunch", now=1050.0)
    assert rollouts.pause(rollout.id, by=BY, now=1051.0) == paused
    assert (paused.state, paused.share, desired(rollouts.registry, rollouts, MODEL).share) == ("paused", 0.2, 0.2)
    found = rollouts.look(rollout.id, 1000.0 + 7200)
    assert found is not None
    assert (found.decision.action, found.look.in_step_s) == ("hold", 50.0)
    rollouts.resume(rollout.id, by=BY, now=1000.0 + 7200)
    assert looked(rollouts, rollout.id, 1000.0 + 7205) == "hold", "55 of 60 seconds"
    assert looked(rollouts, rollout.id, 1000.0 + 7211) == "advance"
    rollouts.pause(rollout.id, by=BY, now=9000.0)
    rollouts.report(rollout.id, 1, "a", BAD)
    assert looked(rollouts, rollout.id, 9001.0) == "rollback"


def test_servers_add_up_and_an_older_report_changes_nothing(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    for server, seen in (("a", GOOD), ("b", BAD), ("b", GOOD), ("a", Evidence())):
        rollouts.report(rollout.id, 0, server, seen)
    assert rollouts.evidence(rollout.id, 0) == GOOD + GOOD
    rollouts.report(rollout.id, 1, "a", BAD)
    assert rollouts.evidence(rollout.id, 0) == GOOD + GOOD


def test_people_end_it(rollouts: Rollouts) -> None:
    registry, rollout = rollouts.registry, begun(rollouts)
    with pytest.raises(UsageError, match=f"Rollout {MODEL}-1 of '{MODEL}' is running"):
        begun(rollouts)
    aborted = rollouts.abort(rollout.id, by=BY, why="changed our minds")
    assert (aborted.state, aborted.share, aborted.by, aborted.why) == ("aborted", 0.0, BY, "changed our minds")
    assert rollouts.abort(rollout.id, by="bo") == aborted
    with pytest.raises(UsageError, match="it was aborted"):
        rollouts.promote(rollout.id, by=BY)
    second = begun(rollouts)
    promoted = rollouts.promote(second.id, by=BY)
    assert (second.id, promoted.state, aliases(registry)) == (f"{MODEL}-2", "promoted", {"champion": 3, "fallback": 2})
    assert rollouts.promote(second.id, by=BY) == promoted
    with pytest.raises(UsageError, match=f"lowbit registry rollback {MODEL}"):
        rollouts.abort(second.id, by=BY)
    assert [each.id for each in rollouts.listed(MODEL)] == [second.id, rollout.id]


def test_what_cannot_begin_is_refused(rollouts: Rollouts) -> None:
    registry = rollouts.registry
    with pytest.raises(UsageError, match="is the champion already"):
        rollouts.start(MODEL, registry.resolve(MODEL), PLAN, by=BY)
    with pytest.raises(UsageError, match="is no version of 'other'"):
        rollouts.start("other", registry.resolve(f"{MODEL}@3"), PLAN, by=BY)
    with pytest.raises(UsageError, match="There are no rollouts yet"):
        rollouts.get("shirts-1")
    begun(rollouts)
    with pytest.raises(UsageError, match="Did you mean 'shirts-1'"):
        rollouts.get("shirt-1")


def test_another_champion_ends_a_rollout_and_nobody_overwrites_it(rollouts: Rollouts) -> None:
    registry, rollout = rollouts.registry, begun(rollouts)
    registry.promote(f"{MODEL}@1", by="bo", why="back to full precision, now")
    assert desired(registry, rollouts, MODEL).canary is None, "servers follow before anybody looks"
    with pytest.raises(Conflict):
        rollouts.promote(rollout.id, by=BY)
    assert rollouts.get(rollout.id).state == "running"
    assert looked(rollouts, rollout.id, 1001.0) == "rollback"
    assert aliases(registry) == {"champion": 1, "fallback": 2}


def test_what_servers_should_do_follows_the_rollout(rollouts: Rollouts) -> None:
    registry = rollouts.registry
    assert (before := desired(registry, rollouts, MODEL)).champion.number == 2
    assert (before.canary, before.rollout, [each.number for each in before.warm]) == (None, None, [1])
    rollout = begun(rollouts)
    during = desired(registry, rollouts, MODEL)
    assert during.canary is not None
    assert (during.champion.number, during.canary.number, during.share, during.mode, during.rollout) == (2, 3, 0.2, "canary", rollout.id)
    rollouts.promote(rollout.id, by=BY)
    after = desired(registry, rollouts, MODEL)
    assert (after.champion.number, after.canary, [each.number for each in after.warm]) == (3, None, [2]), "the way back is kept warm"
    shadow = rollouts.start(MODEL, registry.resolve(f"{MODEL}@2"), Plan.from_json({"mode": "shadow"}), by=BY)
    during = desired(registry, rollouts, MODEL)
    assert during.canary is not None
    assert (shadow.share, during.share, during.canary.number, during.shadow, during.warm) == (0.0, 0.0, 2, 1.0, ())


def test_a_read_only_registry_shows_what_there_is(registry: Registry, rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    registry.close()
    registry.folder.chmod(0o555)
    try:
        if os.access(registry.folder, os.W_OK):
            pytest.skip("root may write anywhere")
        with Registry.open(registry.folder) as reader:
            assert Rollouts(reader).get(rollout.id) == rollout
    finally:
        registry.folder.chmod(0o755)


def test_a_changed_decision_is_found(rollouts: Rollouts) -> None:
    registry, rollout = rollouts.registry, begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    rollouts.look(rollout.id, 1001.0)
    rollouts.report(rollout.id, 0, "a", BAD)
    rollouts.report(rollout.id, 0, "a", GOOD + BAD)
    rollouts.look(rollout.id, 1010.0)
    good, bad = rollouts.decisions(rollout.id)
    assert rollouts.replay(rollout.id) == []
    with pytest.raises(Exception, match="append-only"), registry.transaction() as db:
        db.execute("UPDATE rollout_decisions SET sha256 = 'x'")
    with registry.transaction() as db:
        db.execute("DROP TRIGGER decisions_are_never_changed")
        db.execute("UPDATE rollout_decisions SET body = (SELECT body FROM rollout_decisions WHERE id = ?) WHERE id = ?", (bad.id, good.id))
    (found,) = rollouts.replay(rollout.id)
    assert (found.decision, found.text) == (good.id, f"Decision {good.id} was changed after it was written."), "its action is another"
    with registry.transaction() as db:
        db.execute("UPDATE rollout_decisions SET action = 'rollback' WHERE id = ?", (good.id,))
    (found,) = rollouts.replay(rollout.id)
    assert (found.decision, found.text[:15]) == (good.id, "Its digest is o")


def rolled_back(rollouts: Rollouts) -> tuple[Rollout, Decided]:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", BAD)
    decided = rollouts.look(rollout.id, 1001.0)
    assert decided is not None
    with rollouts.registry.transaction() as db:
        db.execute("DROP TRIGGER decisions_are_never_changed")
        db.execute("DROP TRIGGER decisions_are_never_cut")
    return rollout, decided


def test_a_decision_written_anew_with_its_digest_is_found_by_the_log(rollouts: Rollouts) -> None:
    rollout, kept = rolled_back(rollouts)
    look = replace(kept.look, evidence=kept.look.evidence + BAD)
    decision = decide(PLAN, look)
    body = packed({"look": look.to_json(), "decision": decision.to_json()})
    with rollouts.registry.transaction() as db:
        db.execute("UPDATE rollout_decisions SET body = ?, sha256 = ?", (body, digest(PLAN, look, decision)))
    (found,) = rollouts.replay(rollout.id)
    assert (found.decision, found.text) == (kept.id, "The audit log has another digest of it, or none: it was written anew.")


def test_a_decision_taken_away_is_found_by_the_log(rollouts: Rollouts) -> None:
    rollout, kept = rolled_back(rollouts)
    with rollouts.registry.transaction() as db:
        db.execute("DELETE FROM rollout_decisions")
    (found,) = rollouts.replay(rollout.id)
    assert (found.decision, found.text[:22]) == (kept.id, "The audit log knows it")
    assert rollouts.count(rollout.id) == 1


def test_a_decision_is_never_taken_away_by_mistake(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    rollouts.look(rollout.id, 1001.0)
    with pytest.raises(ModelError, match="append-only"), rollouts.registry.transaction() as db:
        db.execute("DELETE FROM rollout_decisions")


@pytest.mark.parametrize("content", [b"\x00\xff", "text", 7, packed([]), packed({"look": {}, "decision": {}})])
def test_a_decision_that_cannot_be_read_is_said_and_no_bug(rollouts: Rollouts, content: object) -> None:
    rollout, kept = rolled_back(rollouts)
    with rollouts.registry.transaction() as db:
        db.execute("UPDATE rollout_decisions SET body = ?", (content,))
    assert [(found.decision, found.text) for found in rollouts.replay(rollout.id)] == [
        (kept.id, "Decision 1 was changed after it was written.")
    ]
    with pytest.raises(ModelError, match="was changed after it was written"):
        rollouts.decisions(rollout.id)


@pytest.mark.parametrize("change", ["plan = 'no json'", "step = 9", "step = -1", "step = 'x'", "share = 'x'", "step_since = '['"])
def test_a_rollout_that_cannot_be_read_is_said_and_no_bug(rollouts: Rollouts, change: str) -> None:
    rollout = begun(rollouts)
    with rollouts.registry.transaction() as db:
        db.execute(f"UPDATE rollouts SET {change}")
    with pytest.raises(ModelError, match=f"Rollout {rollout.id} was changed after it was written"):
        rollouts.look(rollout.id, 1001.0)


def test_evidence_that_cannot_be_read_is_said_and_no_bug(rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    with rollouts.registry.transaction() as db:
        db.execute("UPDATE rollout_evidence SET body = 'text'")
    with pytest.raises(ModelError, match="Evidence of rollout shirts-1 was changed"):
        rollouts.look(rollout.id, 1001.0)


@pytest.mark.parametrize("why", ["x" * 2001, "\udcff", "\x1b[2J"])
def test_a_reason_that_cannot_be_kept_changes_nothing(rollouts: Rollouts, why: str) -> None:
    with pytest.raises(UsageError, match="The reason"):
        rollouts.start(MODEL, rollouts.registry.resolve(f"{MODEL}@3"), PLAN, by=BY, why=why)
    rollout = begun(rollouts)
    with pytest.raises(UsageError, match="The reason"):
        rollouts.pause(rollout.id, by=BY, why=why)
    assert rollouts.get(rollout.id) == rollout


# Several at once, and deaths --------------------------------------------------------------------------------------------


def test_many_lookers_make_one_decision_each_time(registry: Registry, rollouts: Rollouts) -> None:
    rollout = begun(rollouts)
    rollouts.report(rollout.id, 0, "a", GOOD)
    found: list[str | None] = []

    def controller() -> None:
        with Registry.open(registry.folder) as own:
            found.append(looked(Rollouts(own), rollout.id, 1061.0))

    threads = [threading.Thread(target=controller) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [None] * 5 + ["advance"]
    assert (rollouts.get(rollout.id).step, len(rollouts.decisions(rollout.id))) == (1, 1)
    assert len(registry.audit(subject=rollout.id)) == 2


@pytest.mark.parametrize("ends", ["promote", "rollback", "person"])
def test_a_controller_that_dies_at_any_statement_leaves_the_state_before_or_after(template: Path, ends: str) -> None:
    """SIGKILL before the n-th statement, for every n until one survives; then somebody else looks, and it goes on."""
    plan = replace(PLAN, steps=(0.5,))
    with quick_folder() as folder:
        shutil.copytree(template, folder / "base", ignore=shutil.ignore_patterns("blobs", "checkouts"))
        with Registry.open(folder / "base") as registry:
            rollout = begun(Rollouts(registry), plan)
            Rollouts(registry).report(rollout.id, 0, "a", BAD if ends == "rollback" else GOOD)
        after = {"champion": 2, "fallback": 1} if ends == "rollback" else {"champion": 3, "fallback": 2}
        for n in range(1, 200):
            place = Path(shutil.copytree(folder / "base", folder / f"run-{n}"))
            ended = in_child(lambda n=n, place=place: _dies(place, rollout.id, n, ends))
            with Registry.open(place) as registry:
                rollouts = Rollouts(registry)
                now = rollouts.get(rollout.id)
                assert aliases(registry) == (after if now.ended else {"champion": 2, "fallback": 1, "challenger": 3})
                assert bool(now.ended) == bool(len(registry.audit(subject=rollout.id)) - 1)
                assert [problem for problem in registry.verify() if problem.kind in ("audit", "alias", "database")] == []
                _act(rollouts, rollout.id, ends, 1070.0)
                assert (aliases(registry), rollouts.running(MODEL), rollouts.replay(rollout.id)) == (after, None, [])
                assert len(rollouts.decisions(rollout.id)) == (0 if ends == "person" else 1)
            shutil.rmtree(place)
            if ended.signal == 0:
                break
        assert n > 15, "it died at too few places to say anything"


def _dies(place: Path, id: str, n: int, ends: str) -> None:
    registry = Registry.open(place)
    left = n

    def count(statement: str) -> None:  # noqa: ARG001
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    registry.rows("SELECT 1")
    db: sqlite3.Connection = registry._database._db
    db.set_trace_callback(count)
    _act(Rollouts(registry), id, ends, 1065.0)


def _act(rollouts: Rollouts, id: str, ends: str, now: float) -> None:
    if ends == "person":
        rollouts.promote(id, by=BY, now=now)
    else:
        rollouts.look(id, now)
