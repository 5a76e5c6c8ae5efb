"""Many rollouts at once, looked at in every minute: the tests of the guardrails on arrays [runs, looks].

What it computes is what `lowbit.rollout.measures` computes one by one; `test_canary_simulation.py` holds the two against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rollout_evidence import HEALTHY, Traffic, confidences, latencies

from lowbit.measure.compare import BINS, SHIFT_SAMPLES
from lowbit.rollout import sequential
from lowbit.rollout.evidence import EDGES_S, Arm
from lowbit.rollout.measures import FIRST, FIRST_COSTS, PERCENTILE
from lowbit.rollout.plan import Guardrail, Plan
from lowbit.types import Array

THIN = 4
"""Samples fall into every so many bins only: drawing them takes most of the time."""
EDGES = np.array(EDGES_S)
MIDDLES = (np.arange(BINS) + 0.5) / BINS


@dataclass(frozen=True)
class Arms:
    """One arm of many runs, cumulative; all [runs, looks] but for the histograms [runs, looks, bins]."""

    n: Array
    errors: Array
    seconds: Array
    confidence: Array
    shadowed: Array
    disagreed: Array
    labelled: Array
    wrong: Array
    busy_s: Array
    busy_squares: Array

    def at(self, run: int, look: int) -> Arm:
        """As a server would have counted it."""
        place = (run, look)
        return Arm(
            requests=int(self.n[place]),
            errors=int(self.errors[place]),
            seconds=tuple(int(each) for each in self.seconds[place]),
            confidence=tuple(int(each) for each in self.confidence[place]),
            shadowed=int(self.shadowed[place]),
            disagreed=int(self.disagreed[place]),
            labelled=int(self.labelled[place]),
            right=int(self.labelled[place] - self.wrong[place]),
            busy_n=int(self.n[place]),
            busy_s=float(self.busy_s[place]),
            busy_squares=float(self.busy_squares[place]),
        )


def arms(rng: np.random.Generator, runs: int, looks: int, share: float, rate: int, traffic: Traffic = HEALTHY) -> Arms:
    """An arm of `runs` rollouts over `looks` looks.

    Args:
        rng: Of everything.
        runs: How many.
        looks: How often each is looked at.
        share: Of the traffic: each request is assigned by chance.
        rate: Requests of both arms from one look to the next.
        traffic: How the version behaves.
    """
    each = rng.binomial(rate, share, (runs, looks))
    n = each.cumsum(axis=1)
    tenth = each // 10
    mean, square = math.exp(-5 + 0.08) * traffic.cost, math.exp(-10 + 0.32) * traffic.cost**2
    busy = each * mean + rng.normal(size=each.shape) * np.sqrt(each * (square - mean**2))
    return Arms(
        n=n,
        errors=rng.binomial(each, traffic.errors).cumsum(axis=1),
        seconds=_drawn(rng, each, latencies(traffic.slower)),
        confidence=_drawn(rng, each, confidences(traffic.confident)),
        shadowed=tenth.cumsum(axis=1),
        disagreed=rng.binomial(tenth, traffic.disagree).cumsum(axis=1),
        labelled=tenth.cumsum(axis=1),
        wrong=rng.binomial(tenth, traffic.wrong).cumsum(axis=1),
        busy_s=busy.cumsum(axis=1),
        busy_squares=n * square,
    )


def _drawn(rng: np.random.Generator, each: Array, rates: Array) -> Array:
    padded = np.zeros(-(-len(rates) // THIN) * THIN)
    padded[: len(rates)] = rates
    coarse = padded.reshape(-1, THIN).sum(axis=1)
    kept = np.flatnonzero(coarse)
    found = np.zeros((*each.shape, len(rates)))
    found[..., kept * THIN] = rng.multinomial(each, coarse[kept] / coarse.sum()).cumsum(axis=1)
    return found


def failed(plan: Plan, guardrail: Guardrail, baseline: Arms, canary: Arms) -> Array:
    """Whether the guardrail fails, [runs, looks]."""
    alpha, tolerance = plan.alpha_of(guardrail), guardrail.tolerance
    if guardrail.kind == "p99":
        low = sequential.quantile_bounds(canary.seconds, EDGES, PERCENTILE, alpha / 2, 0.1)[0]
        high = sequential.quantile_bounds(baseline.seconds, EDGES, PERCENTILE, 0.1, alpha / 2)[1]
        return np.isfinite(high) & (low > (1 + tolerance) * high)
    if guardrail.kind == "confidence":
        return shifted(baseline.confidence, canary.confidence, tolerance, alpha)
    if guardrail.kind == "cost":
        return _dearer(baseline, canary, tolerance, alpha)
    x_b, n_b, x_c, n_c = {
        "errors": (baseline.errors, baseline.n, canary.errors, canary.n),
        "disagreement": (baseline.disagreed, baseline.shadowed, canary.disagreed, canary.shadowed),
        "accuracy": (baseline.wrong, baseline.labelled, canary.wrong, canary.labelled),
    }[guardrail.kind]
    return risen(x_b, n_b, x_c, n_c, tolerance, alpha) & (np.minimum(n_b, n_c) >= FIRST)


def risen(x_b: Array, n_b: Array, x_c: Array, n_c: Array, tolerance: float, alpha: float) -> Array:
    """Whether a rate is shown to have risen by more than the tolerance."""
    return sequential.rise_log_e(x_b, n_b, x_c, n_c, tolerance) >= -math.log(alpha)


def shifted(ours: Array, theirs: Array, tolerance: float, alpha: float) -> Array:
    """Whether confidences are shown to have shifted by more than the tolerance."""
    n_b, n_c = ours.sum(axis=-1), theirs.sum(axis=-1)
    widths = sequential.band(n_b, alpha / 4, SHIFT_SAMPLES) + sequential.band(n_c, alpha / 4, SHIFT_SAMPLES)
    apart = sequential.distance(ours, theirs) - widths > tolerance
    means, variances = zip(*(_mean(each) for each in (ours, theirs)), strict=True)
    off = sequential.deviations(1 / (1 / np.maximum(n_b, 1) + 1 / np.maximum(n_c, 1)), SHIFT_SAMPLES // 2, alpha / 2)
    low, high = sequential.ratio_bounds(means[0], variances[0], means[1], variances[1], off)
    return (np.minimum(n_b, n_c) >= SHIFT_SAMPLES) & (apart | (low - 1 > tolerance) | (1 - high > tolerance))


def _mean(counts: Array) -> tuple[Array, Array]:
    """Mean, and its variance."""
    n = np.maximum(counts.sum(axis=-1), 1)
    mean = counts @ MIDDLES / n
    return mean, (counts @ MIDDLES**2 / n - mean**2) / n


def _dearer(baseline: Arms, canary: Arms, tolerance: float, alpha: float) -> Array:
    n_b, n_c = np.maximum(baseline.n, 1), np.maximum(canary.n, 1)
    ours, theirs = baseline.busy_s / n_b, canary.busy_s / n_c
    variances = [np.maximum(arm.busy_squares / n - mean**2, 0) / n for arm, n, mean in ((baseline, n_b, ours), (canary, n_c, theirs))]
    off = sequential.deviations(1 / (1 / n_b + 1 / n_c), FIRST_COSTS // 2, alpha)
    low, _ = sequential.ratio_bounds(ours, variances[0], theirs, variances[1], off)
    return (np.minimum(n_b, n_c) >= FIRST_COSTS) & (low - 1 > tolerance)


def first(fails: Array) -> Array:
    """The look at which a run first failed, from 1; infinity where it never did."""
    return np.where(fails.any(axis=1), fails.argmax(axis=1) + 1.0, np.inf)


def rolled_back(rng: np.random.Generator, plan: Plan, runs: int, looks: int, rate: int, canary: Traffic = HEALTHY) -> dict[str, Array]:
    """Whole rollouts: for each guardrail, and for all together, whether it failed in any step that has both arms [runs]."""
    found = {guardrail.kind: np.zeros(runs, bool) for guardrail in plan.guardrails}
    for share in (share for share in plan.steps if share < 1):
        both = arms(rng, runs, looks, 1 - share, rate), arms(rng, runs, looks, share, rate, canary)
        for guardrail in plan.guardrails:
            found[guardrail.kind] |= failed(plan, guardrail, *both).any(axis=1)
    return {**found, "all": np.any(list(found.values()), axis=0)}
