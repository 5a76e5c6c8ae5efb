"""Parts of the validation data on which overall numbers may hide damage: column values, classes, the hardest tenth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowbit.measure.intervals import IntervalAt, holm_intervals
from lowbit.measure.metrics import Metric, recall
from lowbit.measure.paired import DeltaAt, paired_delta
from lowbit.types import Array, Policy, SliceResult

HARDEST = "hardest tenth"
MOST_VALUES = 50
"""A column or label with more distinct values is an identifier, not a slice: its largest values are taken (classes: none)."""
FEWEST = 10
"""A slice with fewer samples shows nothing."""


def slice_rows(columns: Mapping[str, Array], extra: Mapping[str, Array], hardest: bool) -> dict[str, Array]:
    """Name -> rows (positions) of every slice.

    Equally hard samples are taken in their order, which is the content hashes' (`lowbit.data.splits`), so that neither the
    source's order nor its classes decide which of them belong to the hardest tenth.

    Args:
        columns: The baseline's outcomes: what is hard is the baseline's to say.
        extra: Column name -> values [n] of the data set.
        hardest: Whether classes and the hardest tenth are wanted.
    """
    found: dict[str, Array] = {}
    for column, values in extra.items():
        names, codes, counts = np.unique(np.asarray(values).astype(str), return_inverse=True, return_counts=True)
        for index in sorted(np.argsort(-counts, kind="stable")[:MOST_VALUES]):
            found[f"{column}={names[index]}"] = np.flatnonzero(codes == index)
    if hardest and "hit" in columns:
        classes = np.unique(columns["label"]) if "label" in columns else np.zeros(0)
        if 1 < len(classes) <= MOST_VALUES:
            found |= {f"class {label}": np.flatnonzero(columns["label"] == label) for label in classes}
    if hardest and (hardness := _hardness(columns)) is not None:
        found[HARDEST] = np.sort(np.argsort(-hardness, kind="stable")[: len(hardness) // 10])
    return {name: rows for name, rows in found.items() if len(rows) >= FEWEST}


def compare_slices(
    metric: Metric, baseline: Mapping[str, Array], candidate: Mapping[str, Array], rows: Mapping[str, Array], policy: Policy, alpha: float
) -> tuple[SliceResult, ...]:
    """The metric on every slice; intervals share alpha after Holm, so one slice over the budget is not one too many tries.

    On a class the metric is the share of its samples that are right (recall), whatever the overall metric.
    """
    if not metric.statistic.row_wise:
        return ()
    deltas: dict[str, DeltaAt] = {}
    for name, positions in rows.items():
        chosen = recall(metric) if name.startswith("class ") and "=" not in name else metric
        ours, theirs = ({key: values[positions] for key, values in columns.items()} for columns in (baseline, candidate))
        if np.isfinite(chosen.value(ours)) and np.isfinite(chosen.value(theirs)):
            deltas[name] = paired_delta(chosen, ours, theirs, relative=policy.max_drop.relative)
    bounds = holm_intervals([_bounds(delta) for delta in deltas.values()], [policy.max_drop.value] * len(deltas), alpha)
    found = []
    for (name, delta), (_, share) in zip(deltas.items(), bounds, strict=True):
        values, result = delta(share)
        found.append(SliceResult(name, values.n, values.baseline, values.candidate, result))
    return tuple(found)


def _bounds(delta: DeltaAt) -> IntervalAt:
    def at(alpha: float) -> tuple[float, float]:
        found = delta(alpha)[1]
        return found.ci_low, found.ci_high

    return at


def _hardness(columns: Mapping[str, Array]) -> Array | None:
    """How hard each sample is for the baseline: its lowest score, its smallest lead, its largest error; None if nothing tells.

    A user's own score that is 0 or 1 does not rank samples: the hardest by it are all wrong already, and a candidate can only
    be better on them. The same goes for any score of which a whole tenth has the lowest value. The lead of the largest
    probability tells then, where the outputs look like classes.
    """
    if "custom" in columns and _ranks(columns["custom"]):
        hardness = -columns["custom"]
    elif "margin" in columns:
        hardness = -columns["margin"]
    elif "hardness" in columns:
        hardness = columns["hardness"]
    elif "error2" in columns:
        hardness = columns["error2"]
    else:
        return None
    return hardness if len(hardness) and float(np.ptp(hardness)) > 0 else None


def _ranks(scores: Array) -> bool:
    """Whether scores tell hard samples from the hardest ones."""
    worst = int((scores == scores.min()).sum()) if len(scores) else 0
    return worst < max(len(scores) // 10, 2) and not np.isin(scores, (0, 1)).all()
