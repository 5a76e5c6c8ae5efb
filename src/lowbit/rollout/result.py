"""Which of two versions is better, for people who end an A/B test: an interval a measure, right at every look and all together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowbit.rollout.evidence import Evidence
from lowbit.rollout.measures import measured
from lowbit.rollout.plan import Kind, Plan

Better = Literal["candidate", "champion", "not shown"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Result:
    """One measure of an A/B test.

    Attributes:
        kind: What was measured, as guardrails call it.
        better: Who is, or that it is not shown.
        value: How much worse the candidate is, estimated; None without data. In points, or for p99 and cost relative to the champion.
        low: Lower end of the interval; None: nothing is known.
        high: Upper end.
        n: The candidate's samples.
        candidate: Its own value.
        champion: The champion's.
    """

    kind: Kind
    better: Better
    value: float | None
    low: float | None
    high: float | None
    n: int
    candidate: float | None
    champion: float | None


def results(plan: Plan, evidence: Evidence, confidence: float = CONFIDENCE) -> tuple[Result, ...]:
    """Every measure of the plan's guardrails but the shift of confidences, which is neither good nor bad.

    Args:
        plan: Its guardrails say what is measured.
        evidence: Of the step.
        confidence: That all intervals are right at every look, together.
    """
    kinds: list[Kind] = [each.kind for each in plan.guardrails if each.kind != "confidence"]
    each = (1 - confidence) / (2 * max(len(kinds), 1))
    return tuple(_result(kind, evidence, each) for kind in kinds)


def _result(kind: Kind, evidence: Evidence, alpha: float) -> Result:
    found = measured(kind, evidence.baseline, evidence.canary, alpha, alpha)
    better: Better = "not shown"
    if found.high is not None and found.high < 0:
        better = "candidate"
    elif found.low is not None and found.low > 0:
        better = "champion"
    return Result(kind, better, found.value, found.low, found.high, found.n, found.candidate, found.champion)
