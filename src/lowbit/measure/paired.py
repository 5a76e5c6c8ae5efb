"""Paired differences of a metric between two models on the same samples, with their interval at any error rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.measure.intervals import bootstrap_bounds, bootstrap_counts, tango
from lowbit.measure.metrics import Metric
from lowbit.types import Array, Delta

Columns = Mapping[str, Array]
FEW_FLIPS = 10
"""With fewer changed predictions (or images with boxes) than this, a bootstrap of a metric over classes has not met what may happen."""
LIMIT = 1e9
"""Stands for "without bound" in a delta, so that records stay valid JSON."""


@dataclass(frozen=True)
class Values:
    """A metric of both models over n units (samples, or pairs of samples)."""

    baseline: float
    candidate: float
    n: int


DeltaAt = Callable[[float], tuple[Values, Delta]]
"""alpha (two-sided) -> values and delta; what is costly is computed once for all alphas."""


def paired_delta(metric: Metric, baseline: Columns, candidate: Columns, *, relative: bool) -> DeltaAt:
    """How much worse the candidate is, in points of the metric or relative to the baseline's value.

    Accuracy-like metrics get Tango's score interval, divided by the baseline's value where the budget is relative
    (its own uncertainty is of second order there); all others a paired bootstrap of the ratio itself.

    Args:
        metric: What is compared.
        baseline: Its columns.
        candidate: Its columns, same samples.
        relative: Whether the delta is a fraction of the baseline's value.

    Returns:
        A function of the two-sided alpha.
    """
    ours, theirs = metric.statistic.units(baseline), metric.statistic.units(candidate)
    n = len(next(iter(ours.values())))
    values = Values(_defined(metric.statistic.value(ours)), _defined(metric.statistic.value(theirs)), n)
    if _zero_one(metric, ours, theirs):
        column = metric.statistic.needs[0]
        right, still = ours[column].astype(bool), theirs[column].astype(bool)
        worse, better = int((right & ~still).sum()), int((still & ~right).sum())
        scale = values.baseline if relative else None
        return lambda alpha: (values, binary_delta(worse, better, n, alpha, scale))
    resampled = _resampled_deltas(metric, ours, theirs, relative)
    flips = _flips(baseline, candidate)
    changed = flips or _changed_images(baseline, candidate)
    value = float(_change(metric, np.asarray(values.baseline), np.asarray(values.candidate), relative))

    def at(alpha: float) -> tuple[Values, Delta]:
        low, high = bootstrap_bounds(value, resampled, n, alpha)
        if changed is not None and metric.bounded and sum(changed) < FEW_FLIPS:
            flip_low, flip_high = tango(*changed, len(baseline["finite"]), alpha)
            scale = abs(values.baseline) if relative and values.baseline else 1.0
            low, high = min(low, flip_low / scale), max(high, flip_high / scale)
        low, high = max(low, -LIMIT), min(high, LIMIT)
        worse, better = (None, None) if flips is None else flips
        return values, Delta(value, low, high, 1 - alpha, n, "paired-bootstrap", relative, worse, better)

    return at


def binary_delta(worse: int, better: int, n: int, alpha: float, scale: float | None = None) -> Delta:
    """Delta of a mean of zeros and ones from its flips.

    Args:
        worse: Samples that became wrong.
        better: Samples that became right.
        n: All samples.
        alpha: Two-sided error.
        scale: The baseline's value for a relative delta; None (or 0, where relative has no meaning) for points.
    """
    low, high = tango(worse, better, n, alpha)
    by = scale or 1.0
    return Delta((worse - better) / max(n, 1) / by, low / by, high / by, 1 - alpha, n, "tango-score", bool(scale), worse, better)


def _zero_one(metric: Metric, ours: Columns, theirs: Columns) -> bool:
    """True for means of zeros and ones: metrics known as such, and users' own scores that happen to be."""
    if metric.binary:
        return True
    if metric.task != "custom":
        return False
    scores = np.concatenate([ours["custom"], theirs["custom"]])
    return bool(((scores == 0) | (scores == 1)).all())


def _flips(baseline: Columns, candidate: Columns) -> tuple[int, int] | None:
    if "hit" not in baseline or "hit" not in candidate:
        return None
    right, still = baseline["hit"].astype(bool), candidate["hit"].astype(bool)
    return int((right & ~still).sum()), int((still & ~right).sum())


def _changed_images(baseline: Columns, candidate: Columns) -> tuple[int, int] | None:
    """Images of a detector that became worse and better, by their confident boxes; None for other models.

    Where next to none has changed, a bootstrap of them says that nothing can; what share of images may, their number says.
    """
    if "hardness" in baseline and "hardness" in candidate:
        change = candidate["hardness"] - baseline["hardness"]
    elif "matched" in candidate:
        change = candidate["counted"] - candidate["matched"]
    else:
        return None
    return int((change > 0).sum()), int((change < 0).sum())


def _resampled_deltas(metric: Metric, ours: Columns, theirs: Columns, relative: bool) -> Array:
    n = len(next(iter(ours.values())))
    if n == 0:
        return np.zeros(0)
    parts = [
        _change(metric, metric.statistic.resampled(ours, counts), metric.statistic.resampled(theirs, counts), relative)
        for counts in bootstrap_counts(n)
    ]
    return np.concatenate(parts)


def _change(metric: Metric, ours: Array, theirs: Array, relative: bool) -> Array:
    """Positive = worse. Against a baseline of 0 any relative change is (nearly) without bound; no change is 0."""
    change = ours - theirs if metric.higher_is_better else theirs - ours
    if not relative:
        return np.asarray(change)
    size = np.maximum(np.abs(ours), 1e-12)
    return np.clip(change / size, -LIMIT, LIMIT)


def _defined(value: float) -> float:
    """A metric that is not defined on these samples counts as 0 for both models: no difference can be seen."""
    return value if np.isfinite(value) else 0.0
