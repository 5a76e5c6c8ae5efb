"""What follows from a look: the order of things, deadlines, modes; and that it is a function of plan and look alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_evidence import BAD, GOOD, HEALTHY, Traffic, arm, clean, evidence

from lowbit.errors import DataError
from lowbit.rollout.decide import Decision, Look, decide
from lowbit.rollout.desired import assigned
from lowbit.rollout.evidence import EDGES_S, LATENCY_BINS, Arm, Evidence, latency_bin
from lowbit.rollout.plan import GUARDRAILS, Guardrail, Plan
from lowbit.rollout.result import results

PLAN = Plan(step_s=60.0, deadline_s=3600.0)
LATE, SOON = 4000.0, 10.0


def action(plan: Plan = PLAN, in_step_s: float = 61.0, seen: Evidence = GOOD, step: int = 0, **more: Any) -> str:
    return decide(plan, Look(step, in_step_s, seen, **more)).action


def says(decision: Decision, kind: str) -> str:
    (verdict,) = [each for each in decision.verdicts if each.guardrail == kind]
    return verdict.verdict


def test_a_step_ends_when_everything_required_holds() -> None:
    assert action() == "advance"
    assert action(step=3) == "advance"
    assert action(step=4, seen=replace(GOOD, baseline=Arm()), reference=GOOD.baseline) == "promote"
    assert action(in_step_s=59) == "hold"
    assert action(plan=replace(PLAN, min_requests=4001)) == "hold"
    assert action(paused=True) == "hold"
    assert [says(decide(PLAN, Look(0, 61.0, GOOD)), each.kind) for each in GUARDRAILS if each.required != "never"] == ["pass"] * 3


def test_one_failed_guardrail_ends_it_at_any_time() -> None:
    for more in (
        {},
        {"paused": True},
        {"in_step_s": 0.0},
        {"plan": replace(PLAN, mode="ab", steps=(0.5,))},
        {"plan": Plan.from_json({"mode": "shadow"})},
    ):
        assert action(seen=BAD, **more) == "rollback"
    slow = replace(GOOD, canary=arm(np.random.default_rng(0), 4000, Traffic(errors=0.0, slower=3.0)))
    found = decide(PLAN, Look(0, SOON, slow))
    assert (found.action, says(found, "p99"), says(found, "errors")) == ("rollback", "fail", "pass")
    assert found.reasons[0].startswith("P99 latency: at least ")


@pytest.mark.parametrize("word", ["crashed", "not a number", "out of memory"])
def test_hard_stops_need_no_evidence(word: str) -> None:
    assert action(in_step_s=0.0, seen=Evidence(hard=(word,))) == "rollback"
    assert action(in_step_s=0.0, seen=Evidence(hard=(word,)), paused=True) == "rollback"


def test_no_data_holds_and_is_rolled_back_at_the_deadline() -> None:
    few = clean(10_000, 400)
    assert (action(in_step_s=LATE / 2, seen=few), action(in_step_s=LATE, seen=few)) == ("hold", "rollback")
    assert (action(in_step_s=LATE / 2, seen=Evidence()), action(in_step_s=LATE, seen=Evidence())) == ("hold", "rollback")
    silent = replace(GOOD, canary=replace(GOOD.canary, confidence=()))  # a champion with confidences, a candidate without
    assert (action(in_step_s=LATE / 2, seen=silent), action(in_step_s=LATE, seen=silent)) == ("hold", "rollback")
    found = decide(PLAN, Look(0, LATE, silent))
    assert found.reasons == ("No data on the shift of confidences by the step's deadline of 3600 s.",)


def test_inconclusive_holds_and_the_plan_says_what_becomes_of_it() -> None:
    unclear = replace(GOOD, canary=replace(GOOD.canary, errors=40))  # 1 % beside 0.5 %: not shown to be worse, nor to be within a point
    found = decide(PLAN, Look(0, 61.0, unclear))
    assert (found.action, says(found, "errors"), found.reasons) == ("hold", "inconclusive", ("Inconclusive: errors.",))
    assert action(in_step_s=LATE, seen=unclear) == "hold"
    assert action(plan=replace(PLAN, overdue="rollback"), in_step_s=LATE, seen=unclear) == "rollback"


def test_a_guardrail_that_can_never_be_measured_blocks_nobody() -> None:
    """A regression: no confidences, no labels, nothing shadowed, no costs."""
    bare = Evidence(
        *(replace(each, confidence=(), shadowed=0, disagreed=0, labelled=0, right=0, busy_n=0) for each in (GOOD.baseline, GOOD.canary))
    )
    assert action(seen=bare) == "advance"
    always = replace(PLAN, guardrails=(*GUARDRAILS[:4], replace(GUARDRAILS[4], required="always")))
    assert (action(plan=always, seen=bare), action(plan=always, seen=bare, in_step_s=LATE)) == ("hold", "rollback")


def test_a_champion_at_full_precision_disagrees_with_nothing() -> None:
    alone = replace(GOOD, baseline=replace(GOOD.baseline, shadowed=0, disagreed=0))
    assert says(decide(PLAN, Look(0, 61.0, alone)), "disagreement") == "pass"
    wrong = replace(alone, canary=replace(alone.canary, disagreed=60))
    assert says(decide(PLAN, Look(0, 61.0, wrong)), "disagreement") == "fail"


def test_modes_that_a_person_ends() -> None:
    for plan in (
        Plan(mode="ab", steps=(0.5,), step_s=60.0, deadline_s=3600.0),
        Plan(mode="shadow", steps=(0.0,), step_s=60.0, deadline_s=3600.0),
    ):
        assert decide(plan, Look(0, LATE, GOOD)).reasons == ("Nothing failed. A person ends it.",)
        assert action(plan=plan, in_step_s=LATE, seen=Evidence()) == "rollback"


def test_another_champion_ends_it() -> None:
    assert action(moved=True) == "rollback"


def test_the_last_step_compares_with_another_time_and_asks_for_the_margin() -> None:
    """At 100 % the champion answers nobody: what it answered before stands in, and a fifth slower may be the time of day."""
    rng = np.random.default_rng(1)
    before, slower, much_slower = (arm(rng, 100_000, Traffic(slower=each)) for each in (1.0, 1.35, 2.0))
    assert says(decide(PLAN, Look(3, SOON, Evidence(before, slower))), "p99") == "fail"
    assert says(decide(PLAN, Look(4, SOON, Evidence(Arm(), slower), reference=before)), "p99") == "pass"
    assert says(decide(PLAN, Look(4, SOON, Evidence(Arm(), much_slower), reference=before)), "p99") == "fail"
    errors = replace(much_slower, errors=4500)
    assert says(decide(PLAN, Look(4, SOON, Evidence(Arm(), errors), reference=before)), "errors") == "fail"


def test_nothing_at_all_may_be_tolerated() -> None:
    strict = replace(PLAN, guardrails=tuple(replace(each, tolerance=0.0) for each in GUARDRAILS))
    assert action(plan=strict) == "advance"
    worse = replace(GOOD, canary=arm(np.random.default_rng(2), 20_000, Traffic(errors=0.0, disagree=0.05)))
    assert says(decide(strict, Look(0, 61.0, worse)), "disagreement") == "fail"


def test_results_of_an_ab_test_say_who_is_better() -> None:
    rng = np.random.default_rng(3)
    found = {
        each.kind: each
        for each in results(PLAN, Evidence(arm(rng, 20_000), arm(rng, 20_000, Traffic(errors=0.001, wrong=0.2, slower=1.02))))
    }
    better = {kind: each.better for kind, each in found.items()}
    assert better == {"errors": "candidate", "p99": "not shown", "disagreement": "not shown", "accuracy": "champion", "cost": "not shown"}
    errors = found["errors"]
    assert errors.low is not None
    assert errors.high is not None
    assert errors.low < -0.009 < errors.high < 0


# A function of plan and look --------------------------------------------------------------------------------------------

TRAFFIC = st.builds(
    Traffic,
    errors=st.sampled_from([0.0, 0.01, 0.05, 1.0]),
    slower=st.sampled_from([0.01, 1.0, 1.5, 1e4]),
    confident=st.sampled_from([1.2, 1.6, 30.0]),
    disagree=st.sampled_from([0.0, 0.2]),
    wrong=st.sampled_from([0.1, 0.5]),
    cost=st.sampled_from([0.5, 1.0, 1.3]),
)
SIZES = st.sampled_from([0, 1, 25, 600, 2500, 9000])
PLANS = st.sampled_from(
    [PLAN, Plan.from_json({"mode": "ab"}), Plan.from_json({"mode": "shadow"}), replace(PLAN, overdue="rollback", steps=(0.3,)),
     replace(PLAN, guardrails=(Guardrail("p99", 0.0, 0.1, "always"),))]
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> tuple[Plan, list[Look]]:
    """A plan, and looks at evidence that grows."""
    plan, rng = draw(PLANS), np.random.default_rng(draw(st.integers(0, 99)))
    seen, at, found = Evidence(), 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        seen += evidence(rng, draw(SIZES), draw(SIZES), draw(TRAFFIC))
        seen += Evidence(hard=draw(st.sampled_from([(), (), (), ("crashed",)])))
        at += draw(st.floats(0, 3000))
        reference = arm(rng, draw(SIZES), HEALTHY) if draw(st.booleans()) else Arm()
        flags = {"paused": draw(st.booleans()), "moved": draw(st.sampled_from([False, False, True]))}
        found.append(Look(draw(st.integers(0, len(plan.steps) - 1)), at, seen, len(found), reference, **flags))
    return plan, found


@settings(max_examples=60, deadline=None)
@given(streams())
def test_any_decision_replays_and_any_record_comes_back_from_json(stream: tuple[Plan, list[Look]]) -> None:
    plan, looks = stream
    for look in looks:
        decision = decide(plan, look)
        again = Plan.from_json(json.loads(json.dumps(plan.to_json()))), Look.from_json(json.loads(json.dumps(look.to_json())))
        assert again == (plan, look)
        assert decide(*again) == decision == Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False)))
        assert len(decision.reasons) >= 1
        assert (decision.action == "rollback") or not any(each.verdict == "fail" for each in decision.verdicts)
        for each in decision.verdicts:
            assert each.low is None or each.high is None or each.low <= each.high, each


def test_evidence_adds_up_over_servers() -> None:
    rng = np.random.default_rng(4)
    one, two = evidence(rng, 300, 200), evidence(rng, 100, 700) + Evidence(hard=("crashed",))
    both = one + two
    assert (both.baseline.requests, both.canary.requests, both.hard) == (400, 900, ("crashed",))
    assert sum(both.canary.seconds) == 900
    assert one + two == two + one
    assert one + Evidence() == one


@pytest.mark.parametrize(
    "wrong",
    [
        {"canary": {"requests": -1}},
        {"canary": {"requests": 1.5}},
        {"canary": {"requests": True}},
        {"canary": {"requests": 1, "errors": 2}},
        {"canary": {"seconds": [1, 2]}},
        {"canary": {"busy_s": float("nan")}},
        {"canary": {"strange": 1}},
        {"other": {}},
        {"hard": "crashed"},
        [],
    ],
)
def test_evidence_that_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(DataError):
        Evidence.from_json(wrong)


def test_latencies_fall_into_their_bins() -> None:
    for seconds in (0.0, 5e-5, 1e-4, 0.0123, 1.0, 31.0, 1e9):
        place = latency_bin(seconds)
        assert 0 <= place < LATENCY_BINS
        assert place == 0 or EDGES_S[place - 1] <= seconds
        assert place == LATENCY_BINS - 1 or seconds < EDGES_S[place]


def test_keys_stick_to_their_side_and_shares_are_nested() -> None:
    keys = [f"session-{number}" for number in range(20_000)]
    sides = {share: [assigned("fashion-1", share, key) for key in keys] for share in (0.0, 0.01, 0.05, 0.25, 1.0)}
    assert [sum(found) / len(keys) for found in sides.values()] == pytest.approx([0, 0.01, 0.05, 0.25, 1], abs=0.008)
    for less, more in ((0.01, 0.05), (0.05, 0.25), (0.25, 1.0)):
        assert all(b for a, b in zip(sides[less], sides[more], strict=True) if a)
    other = [assigned("fashion-2", 0.25, key) for key in keys]
    assert sum(a and b for a, b in zip(sides[0.25], other, strict=True)) / len(keys) == pytest.approx(0.25**2, abs=0.01), "another draw"
