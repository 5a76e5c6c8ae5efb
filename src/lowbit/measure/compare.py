"""One candidate against the baseline on the same samples: everything the gate looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lowbit.errors import DataError, UsageError
from lowbit.measure.detection import paired
from lowbit.measure.metrics import Metric, check_policy, companions
from lowbit.measure.outcomes import Outcomes
from lowbit.measure.paired import binary_delta, paired_delta
from lowbit.measure.slices import compare_slices, slice_rows
from lowbit.types import Array, Comparison, ConfidenceShift, Delta, MetricValue, Policy

BINS = 256
SHIFT = 0.05
"""Relative shift of the mean confidence, or Kolmogorov-Smirnov distance, from which a person should look."""
SHIFT_SAMPLES = 2000
"""Below this many samples a shift is within what chance does."""
CONSTANT = 1e-9
NO_SLICES: Mapping[str, Array] = MappingProxyType({})


def compare(
    metric: Metric,
    baseline: Outcomes,
    candidate: Outcomes,
    policy: Policy,
    *,
    alpha_share: float = 1.0,
    slices: Mapping[str, Array] = NO_SLICES,
    hardest: bool = True,
    secondary: Sequence[Metric] | None = None,
) -> Comparison:
    """Compares two models in pairs.

    Args:
        metric: What the budget is about.
        baseline: Outcomes of the baseline.
        candidate: Outcomes of the candidate, same samples in the same order.
        policy: Budget, confidence and threshold.
        alpha_share: Share of the policy's error rate that this comparison may use: 1/k for one of k finalists.
        slices: Column name -> values [n] of the data set; every value becomes a slice.
        hardest: Also compare the classes, and the tenth of the samples that is hardest for the baseline.
        secondary: Further metrics to show; None means all that the task has and the columns allow.

    Raises:
        UsageError: the budget is in points and the metric has no 0-1 scale, or a threshold for a model without yes/no scores.
        DataError: the two were evaluated on different samples.
    """
    check_policy(metric, policy)
    _check_same_samples(baseline, candidate)
    ours, theirs = baseline.columns, paired(baseline.columns, candidate.columns)
    _check_scale(metric, ours, policy)
    alpha = (1 - policy.confidence) * alpha_share
    found, delta = paired_delta(metric, ours, theirs, relative=policy.max_drop.relative)(alpha)
    others = [m for m in (companions(metric) if secondary is None else secondary) if m.name != metric.name]
    guards, rates = _false_positives(ours, theirs, policy, alpha)
    return Comparison(
        metric=MetricValue(metric.name, found.candidate, found.n),
        baseline=MetricValue(metric.name, found.baseline, found.n),
        delta=delta,
        agreement=_agreement(ours, theirs),
        secondary=_values(others, theirs) | {name: pair[1] for name, pair in rates.items()},
        baseline_secondary=_values(others, ours) | {name: pair[0] for name, pair in rates.items()},
        guards=guards,
        confidence_shift=_confidence_shift(ours, theirs),
        slices=compare_slices(metric, ours, theirs, slice_rows(ours, slices, hardest), policy, alpha),
        histogram=_histogram(theirs),
        baseline_histogram=_histogram(ours),
        broken=broken(ours, theirs),
    )


def broken(baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> str | None:
    """Why outputs cannot be right at all, in words, None if they can.

    A baseline that has NaN itself, or that answers the same whatever the input, is no reason against a candidate
    that does the same, except where the two are one and the same model.
    """
    if "finite" not in candidate or "finite" not in baseline:
        return None
    same = baseline is candidate
    bad = ~candidate["finite"] & (baseline["finite"] | same)
    if bad.any():
        return f"NaN or infinity in the output for {int(bad.sum()):,} of {len(bad):,} samples"
    if int(candidate["width"][0]) != int(baseline["width"][0]):
        return f"{int(candidate['width'][0])} numbers per sample in the output instead of {int(baseline['width'][0])}"
    if _constant(candidate["fingerprint"]) and (same or not _constant(baseline["fingerprint"])):
        return "the same output for every sample"
    return None


def _constant(fingerprint: Array) -> bool:
    return len(fingerprint) > 1 and float(np.ptp(fingerprint)) <= CONSTANT * max(float(np.abs(fingerprint).max()), 1e-30)


def _check_same_samples(baseline: Outcomes, candidate: Outcomes) -> None:
    if baseline.n != candidate.n:
        raise DataError(f"The two were evaluated on {baseline.n:,} and {candidate.n:,} samples.", "Evaluate both on the same data.")
    ours, theirs = baseline.columns.get("label"), candidate.columns.get("label")
    if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
        raise DataError("The two were evaluated on different samples: their labels differ.", "Evaluate both on the same data, same order.")


def _check_scale(metric: Metric, columns: Mapping[str, Array], policy: Policy) -> None:
    """A user's own metric may have any scale; points need 0-1."""
    if policy.max_drop.relative or metric.task != "custom":
        return
    low, high = float(columns["custom"].min()), float(columns["custom"].max())
    if low < 0 or high > 1:
        raise UsageError(
            f"A budget in points ({policy.max_drop}) needs scores in 0-1; {metric.name} gives {low:g} to {high:g}.",
            f"Use {policy.max_drop.value * 100:g}%, relative to the baseline's value.",
        )


def _values(metrics: Sequence[Metric], columns: Mapping[str, Array]) -> dict[str, float]:
    """Value by name of the metrics that the columns allow and that are defined there."""
    values = {metric.name: metric.value(columns) for metric in metrics if metric.measurable(columns)}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _agreement(baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> float:
    """Share of equal predictions or boxes; mean cosine, or 1 - relative error, where there are no classes."""
    if "predicted" in baseline:
        return float(np.mean(baseline["predicted"] == candidate["predicted"]))
    if "matched" in candidate:
        counted = float(candidate["counted"].sum())
        return float(candidate["matched"].sum()) / counted if counted else 1.0
    if "cosine" in candidate:
        return float(candidate["cosine"].mean())
    if "diff2" in candidate:
        spread = candidate["ref2"].mean() - candidate["ref1"].mean() ** 2
        return float(max(0.0, 1 - np.sqrt(candidate["diff2"].mean() / max(spread, 1e-12))))
    first = next(name for name in ("hit", "custom", "error1") if name in baseline)
    return float(np.mean(baseline[first] == candidate[first]))


def _false_positives(
    baseline: Mapping[str, Array], candidate: Mapping[str, Array], policy: Policy, alpha: float
) -> tuple[dict[str, Delta], dict[str, tuple[float, float]]]:
    """Rise of the false-positive rate at the policy's threshold, on the samples whose label is "no"; both rates."""
    if policy.threshold is None:
        return {}, {}
    if "score" not in baseline or "label" not in baseline:
        raise UsageError("A threshold needs a yes/no classifier with labels; this model has no single score.", "Leave the threshold out.")
    negatives = baseline["label"] == 0
    ours, theirs = (columns["score"][negatives] >= policy.threshold for columns in (baseline, candidate))
    delta = binary_delta(worse=int((theirs & ~ours).sum()), better=int((ours & ~theirs).sum()), n=int(negatives.sum()), alpha=alpha)
    return {"false_positive_rate": delta}, {"false_positive_rate": (float(ours.mean()), float(theirs.mean()))} if len(ours) else {}


def _confidence_shift(baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> ConfidenceShift | None:
    if "confidence" not in baseline or "confidence" not in candidate:
        return None
    ours, theirs = np.sort(baseline["confidence"]), np.sort(candidate["confidence"])
    n = len(ours)
    relative = float((theirs.mean() - ours.mean()) / max(ours.mean(), 1e-12))
    values = np.concatenate([ours, theirs])
    ks = float(np.abs(np.searchsorted(ours, values, "right") - np.searchsorted(theirs, values, "right")).max() / n)
    low_tail = float(np.mean(theirs < np.quantile(ours, 0.05)))
    return ConfidenceShift(relative, ks, low_tail, n, n >= SHIFT_SAMPLES and (abs(relative) > SHIFT or ks > SHIFT))


def _histogram(columns: Mapping[str, Array]) -> tuple[int, ...]:
    if "confidence" not in columns:
        return ()
    counts, _ = np.histogram(np.clip(columns["confidence"], 0, 1), bins=BINS, range=(0, 1))
    return tuple(int(count) for count in counts)
