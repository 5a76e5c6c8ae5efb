"""What each guardrail measures: an estimate of how much worse the candidate is, and bounds of it that hold at every look."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.measure.compare import BINS, SHIFT_SAMPLES
from lowbit.rollout import sequential
from lowbit.rollout.evidence import EDGES_S, Arm
from lowbit.rollout.plan import Kind
from lowbit.types import Array

FIRST = 20
"""Samples that an arm must have for a bound of a rate: below, the arms' ratio still jumps from look to look."""
FIRST_COSTS = 500
"""Rows that an arm must have for a bound of its mean cost: the normal approximation begins here."""
PERCENTILE = 0.99
DIGITS = 10
"""Numbers are rounded to so many, so that another processor's last digit is no other decision."""
_EDGES = np.array(EDGES_S)
_MIDDLES = (np.arange(BINS) + 0.5) / BINS


@dataclass(frozen=True)
class Measured:
    """How much worse the candidate is; positive = worse.

    Attributes:
        value: Estimate; None without data.
        low: Lower bound, at the error rate that was asked for; None: nothing is known.
        high: Upper bound; None: nothing is known.
        n: The candidate's samples.
        n_baseline: The champion's.
        candidate: The candidate's own value: a rate, seconds, a mean confidence.
        champion: The champion's.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_baseline: int
    candidate: float | None = None
    champion: float | None = None


def measured(kind: Kind, baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, *, together: bool = True) -> Measured:
    """One guardrail's numbers. Pure.

    Args:
        kind: Which.
        baseline: The champion's arm.
        canary: The candidate's arm.
        alpha_low: Error rate of the lower bound.
        alpha_high: Error rate of the upper bound.
        together: Both arms answered at the same time. Otherwise rates are bounded each for itself.
    """
    return _MEASURES[kind](baseline, canary, alpha_low, alpha_high, together)


def has_source(kind: Kind, baseline: Arm, canary: Arm) -> bool:
    """Whether there is anything to measure it by. A model that gives no confidences and answers nobody labels have none, ever."""
    if kind == "confidence":  # a candidate that stops giving them has a source, and no data
        return sum(baseline.confidence) + sum(canary.confidence) > 0
    counts = {"errors": canary.requests, "p99": sum(canary.seconds), "disagreement": canary.shadowed, "accuracy": canary.labelled}
    return counts.get(kind, canary.busy_n) > 0


def _errors(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:
    return _rates(baseline.errors, baseline.requests, canary.errors, canary.requests, alpha_low, alpha_high, together)


def _disagreement(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:
    """A champion that nobody asked again is at full precision itself: it disagrees with nothing."""
    if not baseline.shadowed and canary.shadowed >= FIRST:
        x, n = float(canary.disagreed), float(canary.shadowed)
        low, high = float(sequential.rate_low(x, n, alpha_low)), float(sequential.rate_high(x, n, alpha_high))
        rate = canary.disagreed / canary.shadowed
        return Measured(_short(rate), _short(low), _short(high), canary.shadowed, 0, _short(rate), 0.0)
    return _rates(baseline.disagreed, baseline.shadowed, canary.disagreed, canary.shadowed, alpha_low, alpha_high, together)


def _accuracy(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:
    """As the rate of wrong answers."""
    ours, theirs = baseline.labelled - baseline.right, canary.labelled - canary.right
    return _rates(ours, baseline.labelled, theirs, canary.labelled, alpha_low, alpha_high, together)


def _rates(x_b: int, n_b: int, x_c: int, n_c: int, alpha_low: float, alpha_high: float, together: bool) -> Measured:
    ours, theirs = x_b / n_b if n_b else None, x_c / n_c if n_c else None
    value = None if ours is None or theirs is None else theirs - ours
    own = (_short(theirs), _short(ours))
    if n_b < FIRST or n_c < FIRST:
        return Measured(_short(value), None, None, n_c, n_b, *own)
    b, m, c, n = float(x_b), float(n_b), float(x_c), float(n_c)
    if together:
        low, high = sequential.rise_low(b, m, c, n, alpha_low), sequential.rise_high(b, m, c, n, alpha_high)
    else:
        low = sequential.rate_low(c, n, alpha_low / 2) - sequential.rate_high(b, m, alpha_low / 2)
        high = sequential.rate_high(c, n, alpha_high / 2) - sequential.rate_low(b, m, alpha_high / 2)
    return Measured(_short(value), _short(float(low)), _short(float(high)), n_c, n_b, *own)


def _p99(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:  # noqa: ARG001
    """As a rise over the champion's; each arm's quantile has half of the error rate."""
    n_b, n_c = sum(baseline.seconds), sum(canary.seconds)
    if not n_b or not n_c:
        return Measured(None, None, None, n_c, n_b)
    low_c, high_c = _p99_bounds(canary, alpha_low / 2, alpha_high / 2)
    low_b, high_b = _p99_bounds(baseline, alpha_high / 2, alpha_low / 2)
    ours, theirs = _percentile(baseline.seconds), _percentile(canary.seconds)
    low = low_c / high_b - 1 if math.isfinite(high_b) else None
    high = high_c / low_b - 1 if low_b > 0 and math.isfinite(high_c) else None
    return Measured(_short(theirs / ours - 1), _short(low), _short(high), n_c, n_b, _short(theirs), _short(ours))


def _confidence(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:  # noqa: ARG001
    """The larger of the relative shift of the mean, up or down, and the Kolmogorov-Smirnov distance; each has half of the error rate."""
    n_b, n_c = sum(baseline.confidence), sum(canary.confidence)
    if not n_b or not n_c:
        return Measured(None, None, None, n_c, n_b)
    ours, theirs = np.array(baseline.confidence, np.float64), np.array(canary.confidence, np.float64)
    apart = float(sequential.distance(ours, theirs))
    means = [float(each @ _MIDDLES / each.sum()) for each in (ours, theirs)]
    shift = abs(means[1] / means[0] - 1)
    own = (_short(means[1]), _short(means[0]))
    if min(n_b, n_c) < SHIFT_SAMPLES:
        return Measured(_short(max(apart, shift)), None, None, n_c, n_b, *own)
    low = max(apart - _bands(n_b, n_c, alpha_low / 2), _shifts(ours, theirs, alpha_low / 2)[0], 0.0)
    high = max(apart + _bands(n_b, n_c, alpha_high), _shifts(ours, theirs, alpha_high)[1])  # both must hold: no sharing
    return Measured(_short(max(apart, shift)), _short(low), _short(high), n_c, n_b, *own)


def _bands(n_b: int, n_c: int, alpha: float) -> float:
    return float(sum(sequential.band(np.array([n_b, n_c]), alpha / 2, SHIFT_SAMPLES)))


def _shifts(ours: Array, theirs: Array, alpha: float) -> tuple[float, float]:
    """Bounds of the size of the mean's relative shift."""
    n = np.array([ours.sum(), theirs.sum()])
    means = np.array([ours @ _MIDDLES, theirs @ _MIDDLES]) / n
    variances = np.array([ours @ (_MIDDLES - means[0]) ** 2, theirs @ (_MIDDLES - means[1]) ** 2]) / n**2
    off = sequential.deviations(1 / (1 / n).sum(), SHIFT_SAMPLES // 2, alpha)  # of two arms of 2,000: 1,000
    low, high = (float(each) - 1 for each in sequential.ratio_bounds(means[0], variances[0], means[1], variances[1], off))
    return max(low, -high, 0.0), max(high, -low)


def _cost(baseline: Arm, canary: Arm, alpha_low: float, alpha_high: float, together: bool) -> Measured:  # noqa: ARG001
    """As a rise over the champion's compute seconds per row."""
    n_b, n_c = baseline.busy_n, canary.busy_n
    ours, theirs = (arm.busy_s / arm.busy_n if arm.busy_n else None for arm in (baseline, canary))
    if not ours or theirs is None:
        return Measured(None, None, None, n_c, n_b, _short(theirs), _short(ours))
    own = (_short(theirs), _short(ours))
    value = _short(theirs / ours - 1)
    if min(n_b, n_c) < FIRST_COSTS:
        return Measured(value, None, None, n_c, n_b, *own)
    variances = [max(arm.busy_squares / arm.busy_n - (arm.busy_s / arm.busy_n) ** 2, 0.0) / arm.busy_n for arm in (baseline, canary)]
    n = 1 / (1 / n_b + 1 / n_c)
    bounds = [
        sequential.ratio_bounds(ours, variances[0], theirs, variances[1], sequential.deviations(n, FIRST_COSTS // 2, alpha))
        for alpha in (alpha_low, alpha_high)
    ]
    return Measured(value, _short(float(bounds[0][0]) - 1), _short(float(bounds[1][1]) - 1), n_c, n_b, *own)


def _p99_bounds(arm: Arm, alpha_low: float, alpha_high: float) -> tuple[float, float]:
    low, high = sequential.quantile_bounds(np.array(arm.seconds), _EDGES, PERCENTILE, alpha_low, alpha_high)
    return float(low), float(high)


def _percentile(counts: tuple[int, ...]) -> float:
    """The 99th percentile, as the geometric middle of its bin."""
    place = int(np.searchsorted(np.cumsum(counts), PERCENTILE * sum(counts)))
    if place in (0, len(EDGES_S)):
        return EDGES_S[0] if place == 0 else EDGES_S[-1]
    return math.sqrt(EDGES_S[place - 1] * EDGES_S[place])


def _short(value: float | None) -> float | None:
    """A finite number, rounded; None for all else."""
    return None if value is None or not math.isfinite(value) else float(f"{float(value):.{DIGITS}g}")


_MEASURES: Mapping[str, Callable[[Arm, Arm, float, float, bool], Measured]] = {
    "errors": _errors,
    "p99": _p99,
    "disagreement": _disagreement,
    "confidence": _confidence,
    "accuracy": _accuracy,
    "cost": _cost,
}
