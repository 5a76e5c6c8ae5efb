"""Whether the samples that judge are of the kind that the bundle was judged by: full precision has to be about as good on both."""

from __future__ import annotations

import math

from lowbit.bundle import words
from lowbit.bundle.schema import FindingEntry, MetricEntry
from lowbit.measure.intervals import wilson
from lowbit.measure.metrics import Metric

ALPHA = 0.001
"""Of each of the two intervals: a warning that comes by chance would teach people to skip it."""
FEWEST = 20
"""Samples; fewer say nothing about their kind."""
TIMES = 3.0
"""So many times the bundle's error is another kind of data, where the metric is no share of right answers."""
LOWER = 0.3
"""So much lower is, of scores between 0 and 1 that are no such share either: F1, mean average precision, a cosine."""


def doubt(metric: Metric, here: float, n: int, known: MetricEntry | None) -> FindingEntry | None:
    """A warning where full precision is far worse on samples than on the bundle's own: other classes, labels or preprocessing.

    Args:
        metric: That the bundle was judged by.
        here: Its value for full precision on the samples.
        n: How many they are.
        known: What the bundle says of full precision; None where it was not judged.

    Returns:
        What is said, or None. Shares are held against each other by Wilson's intervals (1927), other scores between 0 and 1 by their
        difference, errors by their ratio; scores without bounds by nothing.
    """
    if known is None or known.name != metric.name or n < FEWEST or not (math.isfinite(here) and math.isfinite(known.value)):
        return None
    if not (_lower_share(here, n, known) if metric.binary else _larger_error(metric, here, known)):
        return None
    found, wanted = (words.metric_value(metric.name, value) for value in (here, known.value))
    text = (
        f"Full precision itself has {words.metric_name(metric.name)} {found} on these {n:,} samples and {wanted} on the bundle's own. "
        "Look whether classes are numbered alike and images prepared alike."
    )
    return FindingEntry(rule="the data are of the bundle's kind", severity="warning", text=text)


def _lower_share(here: float, n: int, known: MetricEntry) -> bool:
    high = wilson(round(here * n), n, ALPHA)[1]
    low = wilson(round(known.value * known.n), known.n, ALPHA)[0] if known.n else 0.0
    return high < low


def _larger_error(metric: Metric, here: float, known: MetricEntry) -> bool:
    if metric.higher_is_better:
        return metric.bounded and here < known.value - LOWER
    return known.value > 0 and here > TIMES * known.value
