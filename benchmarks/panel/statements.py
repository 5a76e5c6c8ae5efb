"""From columns and rounds to statements with intervals. Pure.

A lower fidelity or a worse metric than FP32's, or than a peer's, is judged on the same samples (paired bootstrap);
speeds are compared within rounds of one race.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.measure.intervals import bootstrap_bounds, bootstrap_counts
from lowbit.measure.statistics import Statistic
from panel.tasks import Columns, Task

Entry = dict[str, Any]


def value(statistic: Statistic, columns: Columns) -> float:
    return float(statistic.value(statistic.units(columns)))


def resampled(statistic: Statistic, columns: Columns) -> np.ndarray[Any, Any]:
    """The statistic [B]; the same resamples for all models, so that differences of two are paired."""
    units = statistic.units(columns)
    return np.concatenate([statistic.resampled(units, counts) for counts in bootstrap_counts(len(columns["row"]))])


def with_interval(estimate: float, samples: np.ndarray[Any, Any], n: int) -> Entry:
    low, high = bootstrap_bounds(estimate, samples, n)
    return {"value": estimate, "ci_low": low, "ci_high": high}


def quality(task: Task, columns: Columns, fp32: Columns) -> Entry:
    """Fidelity, metric and drop (positive = worse than FP32) with their 95 % intervals."""
    n = len(columns["row"])
    name, statistic = task.fidelity
    found: Entry = {"n": n, "fidelity": {"name": name, **with_interval(value(statistic, columns), resampled(statistic, columns), n)}}
    if task.metric is not None and set(task.metric[1].needs) <= set(columns):
        name, statistic = task.metric
        sign = 1 if task.higher_is_better else -1
        ours, theirs = value(statistic, columns), value(statistic, fp32)
        change = sign * (resampled(statistic, fp32) - resampled(statistic, columns))
        found["metric"] = {"name": name, "value": ours, "fp32": theirs, "drop": with_interval(sign * (theirs - ours), change, n)}
    found["extras"] = {name: value(statistic, columns) for name, statistic in task.extras}
    return found


def against(task: Task, ours: Columns, theirs: Columns) -> Entry:
    """By how much our fidelity is above theirs, paired."""
    statistic = task.fidelity[1]
    difference = value(statistic, ours) - value(statistic, theirs)
    return with_interval(difference, resampled(statistic, ours) - resampled(statistic, theirs), len(ours["row"]))


def best(entries: Mapping[str, Entry]) -> str | None:
    """The variant with the highest fidelity."""
    return max(entries, key=lambda word: entries[word]["fidelity"]["value"], default=None)


SOUND = 0.1


def sound(entries: Mapping[str, Entry]) -> set[str]:
    """Variants whose fidelity is at most SOUND below the best quantized one's: what is broken may be as fast as it likes."""
    return {word for word, entry in entries.items() if "error" not in entry and entry["fidelity"]["value"] >= _floor(entries)}


def _floor(entries: Mapping[str, Entry]) -> float:
    """Not measured from FP32: on some models every INT8 is far from it."""
    made = [entry["fidelity"]["value"] for word, entry in entries.items() if "error" not in entry and not word.startswith("fp32@")]
    return max(made, default=1.0) - SOUND
