"""Find the fastest choice of formats that really holds: a handful of end-to-end evaluations along a predicted frontier.

Predicted damages add up; real ones need not, and they are not in the budget's units. But more predicted damage is more real damage,
so the frontier is a sorted list, and what is looked for is where it crosses the budget. Every evaluation says on which side a point
lies, and corrects the prediction of all others. The next point is where the corrected prediction crosses the budget, moved only
where plain bisection would otherwise no longer finish with the evaluations left. Once two neighbours enclose the budget, what
evaluations are left go to points between them, if the caller can find any.

Everything here is pure but for the `evaluate` that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.compress.allocate import Assignment
from lowbit.types import Array

MOST = 5
"""Evaluations end to end."""

WORTH = 0.01
"""A share of the latency that is not worth another evaluation."""

FLOOR = 0.02
"""Least damage that a correction believes in, in budgets: below it evaluations measure noise, and negative damage has no logarithm."""


@dataclass(frozen=True)
class Evidence:
    """What an evaluation end to end has shown.

    Attributes:
        damage: In the units of the budget, e.g. lost accuracy; below zero where it happened to gain.
        cost: In full evaluations; less where it was stopped early.
    """

    damage: float
    cost: float = 1.0


@dataclass(frozen=True)
class Step:
    """One evaluation of the search.

    Attributes:
        point: What was evaluated.
        expected: Damage that the prediction, corrected by what was known before, gave it.
        evidence: What it showed.
    """

    point: Assignment
    expected: float
    evidence: Evidence


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        chosen: The fastest assignment that was seen to hold; None where none was.
        evidence: Its evidence.
        steps: All evaluations, in order.
        cost: Of all of them, in full evaluations.
        reason: Why it stopped, in a sentence.
    """

    chosen: Assignment | None
    evidence: Evidence | None
    steps: tuple[Step, ...]
    cost: float
    reason: str


Between = Callable[[Assignment, Assignment], Sequence[Assignment]]
"""Points of a frontier between two of it, the fastest first."""


def mixed(
    frontier: Sequence[Assignment],
    evaluate: Callable[[Mapping[str, str]], Evidence],
    budget: float,
    most: int = MOST,
    known: Sequence[tuple[int, Evidence]] = (),
    between: Between | None = None,
) -> Outcome:
    """Searches a frontier.

    Args:
        frontier: From `allocate.frontier`: the fastest first, predicted damage falling.
        evaluate: Measures an assignment end to end.
        budget: Most damage, in the units of the evidence.
        most: Most evaluations.
        known: (position, evidence) of points that have been evaluated before, such as the fastest one.
        between: Finds more points, e.g. by `allocate.between`, for the evaluations that are left when neighbours enclose the budget.
    """
    points, seen = list(frontier), dict(known)
    steps: list[Step] = []
    while True:
        over, holds = _bracket(len(points), seen, budget)
        if between and len(steps) < most and 0 <= over == holds - 1 < len(points) - 1:
            points, seen = _refined(points, seen, holds, between)
            over, holds = _bracket(len(points), seen, budget)
        if reason := _done(points, over, holds, most - len(steps)):
            break
        expected = corrected([each.predicted_damage for each in points], seen, budget)
        point = _next(expected, over, holds, budget, most - len(steps), fitted=bool(seen))
        seen[point] = evaluate(points[point].formats)
        steps.append(Step(points[point], expected[point], seen[point]))
    found = holds < len(points)
    cost = sum(step.evidence.cost for step in steps)
    return Outcome(points[holds] if found else None, seen[holds] if found else None, tuple(steps), cost, reason)


def _refined(
    points: list[Assignment], seen: dict[int, Evidence], holds: int, between: Between
) -> tuple[list[Assignment], dict[int, Evidence]]:
    """More points in front of the one that holds, and what has been seen at its new position."""
    if not _gain(points[holds - 1], points[holds]) >= WORTH:
        return points, seen
    more = [each for each in between(points[holds - 1], points[holds]) if _gain(each, points[holds]) >= WORTH]
    moved = {index + len(more) * (index >= holds): evidence for index, evidence in seen.items()}
    return [*points[:holds], *more, *points[holds:]], moved


def _gain(fast: Assignment, slow: Assignment) -> float:
    """Share of the latency that the faster one saves."""
    return 1 - fast.predicted_seconds / slow.predicted_seconds


def corrected(predicted: Sequence[float], seen: Mapping[int, Evidence], budget: float) -> list[float]:
    """Predicted damages in the units of the evidence, through what was seen.

    Log of damage over log of prediction, straight between seen points, which are first made monotone (least squares), and of slope 1
    beyond them. Without anything seen the prediction stands as it is.
    """
    informative = {index: evidence for index, evidence in seen.items() if predicted[index] > 0}
    if not informative:
        return [float(value) for value in predicted]
    x = np.log([max(value, 1e-300) for value in predicted])
    order = sorted(informative, key=lambda index: (x[index], index))
    damage = _rising(np.log([max(seen[index].damage, FLOOR * budget) for index in order]))
    known = x[order]
    y = np.interp(x, known, damage) + np.minimum(x - known[0], 0) + np.maximum(x - known[-1], 0)
    return [float(value) if original > 0 else 0.0 for value, original in zip(np.exp(y), predicted, strict=True)]


def _rising(values: Array) -> Array:
    """The nearest sequence that never falls (pool adjacent violators: Barlow et al. 1972)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, m), (second, n) = blocks[-2:]
            blocks[-2:] = [((m * first + n * second) / (m + n), m + n)]
    return np.concatenate([np.full(count, value) for value, count in blocks])


def _bracket(points: int, seen: Mapping[int, Evidence], budget: float) -> tuple[int, int]:
    """The slowest point known to be over the budget before the fastest that holds (-1: none), and that one (`points`: none)."""
    holds = min((index for index, evidence in seen.items() if evidence.damage <= budget), default=points)
    return max((index for index in seen if index < holds), default=-1), holds


def _done(frontier: Sequence[Assignment], over: int, holds: int, left: int) -> str | None:
    """Why to stop; None to go on."""
    if holds == len(frontier) and over == len(frontier) - 1:
        return "No point of the frontier holds."
    if holds - over <= 1:
        return "The next faster point is over the budget." if over >= 0 else "The fastest point holds."
    if left <= 0:
        return "The evaluations are used up."
    if holds < len(frontier):
        gain = _gain(frontier[over + 1], frontier[holds])
        if gain < WORTH:
            return f"At most {100 * gain:.1g} % of the latency is left to gain."
    return None


def _next(expected: Sequence[float], over: int, holds: int, budget: float, left: int, *, fitted: bool) -> int:
    """The point to evaluate: where the budget is met, within what bisection could still finish with `left` evaluations.

    A prediction that nothing has been seen of yet, and that puts all points on one side, is in other units: start in the middle.
    """
    inside = range(over + 1, holds)
    meets = [expected[point] <= budget for point in inside]
    wanted = inside[meets.index(True)] if any(meets) else inside[-1]
    if not fitted and (meets[0] or sum(meets) <= sum(expected[point] == 0 for point in inside)):
        wanted = (inside[0] + inside[-1]) // 2
    reach = 2 ** (left - 1)
    low, high = max(inside[0], holds - reach), min(inside[-1], over + reach)
    return min(max(wanted, low), high) if low <= high else (low + high) // 2
