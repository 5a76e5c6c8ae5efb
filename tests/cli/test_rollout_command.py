"""`lowbit rollout` on a real registry, from beginning to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Shell, lowbit
from registry_case import MODEL, bundle, filled
from rollout_evidence import BAD, GOOD

from lowbit.registry.registry import Registry
from lowbit.rollout.evidence import Evidence
from lowbit.rollout.plan import Plan
from lowbit.rollout.store import Rollouts

Run = Callable[..., Shell]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    filled(tmp_path / "registry")[0].close()
    return tmp_path / "registry"


@pytest.fixture
def rollout(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LOWBIT_REGISTRY", str(folder))
    monkeypatch.setenv("LOWBIT_BY", "ana")
    return lambda *args: lowbit(capfd, monkeypatch, "rollout", *args)


def document(shell: Shell) -> Any:
    assert shell.code == 0, shell.err
    return json.loads(shell.out)


def seen(folder: Path, evidence: Evidence, at_s: float = 1.0, step: int = 0) -> str:
    """What a server does: it reports, and looks."""
    with Registry.open(folder) as registry:
        rollouts = Rollouts(registry)
        open_one = rollouts.running(MODEL)
        assert open_one is not None
        rollouts.report(open_one.id, step, "server", evidence)
        decided = rollouts.look(open_one.id, open_one.step_since + at_s)
        assert decided is not None
        return decided.decision.action


def test_a_rollout_from_beginning_to_end(folder: Path, rollout: Run) -> None:
    assert rollout("status").out == "There are no rollouts yet.\n"
    started = rollout("start", f"{MODEL}@3", "--steps", "20%,50%", "--step-time", "1m", "--why", "cheaper [by half]")
    assert (started.code, started.out) == (0, f"{MODEL}-1: {MODEL}@3 answers 20 % of the traffic.\n")
    assert "Nobody has looked yet" in rollout("status", MODEL).out
    assert seen(folder, GOOD, 30) == "hold"
    shown = rollout("status", f"{MODEL}-1").out
    assert "cheaper [by half]" in shown, "words in brackets are no markup"
    assert "running, step 1 of 2, 20 % of the traffic" in shown
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("errors", "p99"))] == [["errors", "pass"], ["p99", "pass"]]
    assert rollout("pause", MODEL).out == f"{MODEL}-1 is paused: {MODEL}@3 answers 20 %.\n"
    assert rollout("resume", MODEL, "--why", "go").out == f"{MODEL}-1 is running: {MODEL}@3 answers 20 %.\n"
    found = document(rollout("status", MODEL, "--output", "json"))
    assert (found["champion"], found["candidate"], found["decision"]["action"], found["by"]) == (f"{MODEL}@2", f"{MODEL}@3", "hold", "ana")
    assert Evidence.from_json(found["evidence"]) == GOOD
    assert seen(folder, GOOD, 61) == "advance"
    tried = rollout("promote", MODEL, "--dry-run").out
    assert tried == f"{MODEL}-1 would be promoted: {MODEL}@3 answers everybody.  Not done: --dry-run.\n"
    assert rollout("promote", MODEL).out == f"{MODEL}-1 is promoted: {MODEL}@3 answers everybody.\n"
    assert [line.split()[6] for line in rollout("decisions", MODEL).out.splitlines()[1:]] == ["hold", "advance"]
    assert rollout("replay", MODEL).out == f"{MODEL}-1: 2 of 2 decisions replay to what was written.\n"


def test_a_bad_version_is_shown_as_what_it_is(folder: Path, rollout: Run) -> None:
    document(rollout("start", f"{MODEL}@3", "--output", "json"))
    assert seen(folder, BAD) == "rollback"
    (row,) = document(rollout("status", "--output", "json"))["rollouts"]
    assert (row["state"], row["share"], row["by"]) == ("rolled_back", 0.0, "rollout")
    assert "Errors: at least" in rollout("status").out
    (decided,) = document(rollout("decisions", MODEL, "--output", "json"))["decisions"]
    assert Evidence.from_json(decided["look"]["evidence"]) == BAD
    (verdict,) = [each for each in decided["verdicts"] if each["guardrail"] == "errors"]
    assert (verdict["verdict"], verdict["limit"], verdict["n"]) == ("fail", 0.0, BAD.canary.requests)
    assert rollout("abort", MODEL).out == f"{MODEL}-1 is rolled back: {MODEL}@2 answers everybody.\n"


def test_an_ab_test_says_who_is_better(folder: Path, rollout: Run) -> None:
    assert "answers 50 %" in rollout("start", f"{MODEL}@3", "--mode", "ab").out
    cheaper = replace(GOOD.canary, busy_s=GOOD.canary.busy_s * 0.7, busy_squares=GOOD.canary.busy_squares * 0.49)
    assert seen(folder, replace(GOOD, canary=cheaper), 1000) == "hold"
    result = {each["kind"]: each for each in document(rollout("status", MODEL, "--output", "json"))["result"]}
    assert (result["cost"]["better"], result["errors"]["better"], "confidence" in result) == ("candidate", "not shown", False)
    assert -0.35 < result["cost"]["low"] < result["cost"]["value"] < result["cost"]["high"] < -0.25
    assert [line.split()[:2] for line in rollout("status", MODEL).out.splitlines() if line.startswith("cost ")][-1] == ["cost", "candidate"]


def test_a_plan_comes_from_a_file_and_the_command_line(tmp_path: Path, rollout: Run) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("steps: [10%, 100%]\nstep_s: 5m\nguardrails:\n  - {kind: errors, tolerance: 0.5pp}\n  - {kind: p99, tolerance: 30%}\n")
    shown = rollout("start", f"{MODEL}@3", "--plan", file, "--step-time", "30s", "--deadline", "1h", "--shadow", "0.5", "--dry-run")
    plan = Plan.from_yaml(shown.out)
    assert (plan.steps, plan.step_s, plan.deadline_s, plan.shadow) == ((0.1, 1.0), 30.0, 3600.0, 0.5)
    assert [(each.kind, each.tolerance) for each in plan.guardrails] == [("errors", 0.005), ("p99", 0.3)]
    assert rollout("status").out == "There are no rollouts yet.\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["start", f"{MODEL}@2"], "is the champion already"),
        (["start", f"{MODEL}@9"], "has no version 9"),
        (["start", f"{MODEL}@3", "--steps", "50%,20%"], "must rise"),
        (["start", f"{MODEL}@3", "--steps", "many"], "Step 'many' is not understood"),
        (["start", f"{MODEL}@3", "--plan", "none.yaml"], "cannot be read"),
        (["start", f"{MODEL}@3", "--step-time", "soon"], "'soon' is not a duration"),
        (["pause", MODEL], "There are no rollouts yet"),
    ],
)
def test_mistakes_are_said_kindly(rollout: Run, args: list[str], says: str) -> None:
    shell = rollout(*args)
    assert shell.code == 2
    assert says in shell.err
    assert "Traceback" not in shell.err


def test_a_changed_decision_is_said_and_fails(folder: Path, rollout: Run) -> None:
    document(rollout("start", f"{MODEL}@3", "--output", "json"))
    seen(folder, BAD)
    with Registry.open(folder) as registry, registry.transaction() as db:
        db.execute("DROP TRIGGER decisions_are_never_changed")
        db.execute("UPDATE rollout_decisions SET sha256 = 'x'")
    shell = rollout("replay", MODEL)
    assert (shell.code, shell.out.splitlines()[0]) == (3, f"{MODEL}-1: 0 of 1 decisions replay to what was written.")


def test_trying_to_end_what_has_ended_is_said_as_doing_it_is(rollout: Run) -> None:
    rollout("start", f"{MODEL}@3")
    tried = document(rollout("abort", MODEL, "--dry-run", "--output", "json"))
    assert (tried["state"], tried["dry_run"]) == ("aborted", True)
    assert document(rollout("status", MODEL, "--output", "json"))["state"] == "running"
    assert rollout("abort", MODEL).code == 0
    assert (rollout("promote", MODEL, "--dry-run").code, rollout("promote", MODEL).code) == (2, 2)


def test_a_rollouts_own_name_goes_before_a_models(folder: Path, rollout: Run) -> None:
    rollout("start", f"{MODEL}@3")
    with Registry.open(folder) as registry:
        pushed = registry.push(bundle("first"), f"{MODEL}-1", by="ana")
        registry.promote(pushed.source, by="ana", why="to begin with")
    rollout("start", f"{MODEL}-1@2")
    assert rollout("abort", f"{MODEL}-1").out.startswith(f"{MODEL}-1 is aborted: {MODEL}@2 answers everybody")
    assert document(rollout("status", f"{MODEL}-1-1", "--output", "json"))["state"] == "running"
