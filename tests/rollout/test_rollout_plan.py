"""Plans: read strictly, written so that they come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.rollout.plan import GUARDRAILS, Guardrail, Plan

TEXT = """
schema: 1
mode: canary
steps: [1%, 0.05, 25%, 100%]
step_s: 10m
min_requests: 100
deadline_s: 2h
overdue: rollback
look_s: 500ms
shadow: 5%
alpha: 0.01
guardrails:
  - {kind: errors, tolerance: 0.5pp}
  - {kind: p99, tolerance: 30%, required: measured}
  - {kind: cost, tolerance: 0, margin: 10%, weight: 2}
"""


def test_a_plan_is_read_and_comes_back() -> None:
    plan = Plan.from_yaml(TEXT)
    assert (plan.steps, plan.step_s, plan.deadline_s, plan.look_s) == ((0.01, 0.05, 0.25, 1.0), 600.0, 7200.0, 0.5)
    assert plan.guardrails == (
        Guardrail("errors", 0.005, 0.01, "always", 5.0),
        Guardrail("p99", 0.3, 0.6, "measured"),
        Guardrail("cost", 0.0, 0.1, "never", 2.0),
    )
    assert Plan.from_yaml(plan.to_yaml()) == Plan.from_json(plan.to_json()) == plan
    assert Plan.from_yaml("") == Plan()


def test_modes_bring_their_steps() -> None:
    assert Plan.from_json({"mode": "ab"}).steps == (0.5,)
    shadow = Plan.from_json({"mode": "shadow"})
    assert (shadow.steps, shadow.shadow) == ((0.0,), 1.0)


@given(st.lists(st.floats(0.1, 9.0), min_size=6, max_size=6), st.integers(1, 7))
def test_the_error_rate_is_shared_and_no_more(weights: list[float], steps: int) -> None:
    guardrails = tuple(replace(each, weight=weight) for each, weight in zip(GUARDRAILS, weights, strict=True))
    plan = Plan(steps=tuple((step + 1) / steps * 0.9 for step in range(steps)), guardrails=guardrails)
    assert steps * sum(plan.alpha_of(each) for each in guardrails) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: [50%, 20%]", "must rise"),
        ("steps: []", "must rise"),
        ("steps: [0, 1]", "must rise"),
        ("steps: [20%, 120%]", "must rise"),
        ("steps: 20%", "must be a list"),
        ("mode: ab\nsteps: [10%, 20%]", "one split"),
        ("mode: shadow\nsteps: [1%]", "answers nobody"),
        ("mode: blue", "Unknown mode 'blue'"),
        ("look: 10s", "Did you mean 'look_s'"),
        ("step_s: soon", "is not a duration"),
        ("step_s: 0", "a time above 0"),
        ("step_s: 2h\ndeadline_s: 1h", "cannot end by a deadline"),
        ("min_requests: 0", "1 or more"),
        ("min_requests: 1.5", "whole number"),
        ("alpha: 0.7", "below 0.5"),
        ("alpha: 0", "above 0"),
        ("shadow: -1", "is not understood"),
        ("shadow: 2", "share from 0 to 1"),
        ("overdue: maybe", "Allowed: hold, rollback"),
        ("guardrails: []", "needs a guardrail"),
        ("guardrails: [{kind: error}]", "Did you mean 'errors'"),
        ("guardrails: [{tolerance: 1}]", "needs its kind"),
        ("guardrails: [{kind: p99}, {kind: p99}]", "two guardrails on p99"),
        ("guardrails: [{kind: p99, tolerance: 0.2, margin: 0.1}]", "is below its tolerance"),
        ("guardrails: [{kind: p99, tolerance: 0, margin: 0, required: always}]", "Nothing can show"),
        ("guardrails: [{kind: p99, weight: 0}]", "must be above 0"),
        ("guardrails: [{kind: p99, required: yes}]", "Unknown word for required"),
        ("schema: 2", "schema 2 is not known"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("deadline_s: .nan", "a time above 0"),
        (f"step_s: {10**400}", "a time above 0"),
        (f"step_s: {-(10**400)}", "a time above 0"),
        (f"guardrails: [{{kind: p99, tolerance: {10**400}}}]", "is not understood"),
    ],
)
def test_mistakes_are_said_kindly(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Plan.from_yaml(text)
