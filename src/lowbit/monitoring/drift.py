"""Whether confidences moved: the rule of 5 %, and the low tail that it does not see. Pure.

Review where the mean moved by more than 5 % of itself, or the Kolmogorov-Smirnov distance is over 0.05, with 2,000 rows or more. The
distance also needs a baseline of some size: two samples of one distribution lie 0.05 apart once in a thousand times where
n m / (n + m) is 1,500 (Smirnov's limit, 2 exp(-2 d^2 n m / (n + m))), more often where it is less. Both rules miss a twentieth of the
traffic that turns to any confidence at all; the share below the baseline's 5th percentile finds it. Wasserstein's distance is told, and
no rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.measure.compare import SHIFT, SHIFT_SAMPLES
from lowbit.monitoring.findings import Finding
from lowbit.types import Array

ENOUGH = 1_500
"""n m / (n + m) from which on the distance counts."""
TAIL = 0.05
"""The baseline's percentile that bounds the low tail."""
TAIL_RISE = 0.02
"""From this many points more than the baseline has, the tail counts; and three standard errors."""
STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Shift:
    """How a window's confidences lie to the baseline's.

    Attributes:
        mean: Of the window.
        baseline_mean: Of the baseline.
        relative_mean: Their difference over the baseline's mean.
        ks: Kolmogorov-Smirnov distance, 0-1.
        w1: Wasserstein's distance in units of confidence.
        low_tail: Share of the window below `tail_edge`.
        baseline_low_tail: Share of the baseline below it: about 0.05.
        tail_edge: The edge of a bin that is next below the baseline's 5th percentile.
        n: Rows of the window.
        baseline_n: Samples of the baseline.
    """

    mean: float
    baseline_mean: float
    relative_mean: float
    ks: float
    w1: float
    low_tail: float
    baseline_low_tail: float
    tail_edge: float
    n: int
    baseline_n: int

    @property
    def effective_n(self) -> float:
        """n m / (n + m): what the noise of a distance between two samples depends on."""
        return self.n * self.baseline_n / (self.n + self.baseline_n)

    @property
    def tail_error(self) -> float:
        """Standard error of the difference of the two tails, were they one."""
        pooled = (self.low_tail * self.n + self.baseline_low_tail * self.baseline_n) / (self.n + self.baseline_n)
        return math.sqrt(pooled * (1 - pooled) / self.effective_n)


def shift(window: Sequence[int] | Array, baseline: Sequence[int] | Array) -> Shift | None:
    """Compares two histograms of confidences.

    Args:
        window: Counts in equal bins over [0, 1], [B].
        baseline: Likewise, of as many bins.

    Returns:
        None where either is empty.
    """
    ours, theirs = np.asarray(baseline, np.float64), np.asarray(window, np.float64)
    if not ours.sum() or not theirs.sum():
        return None
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    width, m, n = 1 / len(ours), int(ours.sum()), int(theirs.sum())
    ours, theirs = ours / m, theirs / n
    middles = (np.arange(len(ours)) + 0.5) * width
    mean, baseline_mean = float(theirs @ middles), float(ours @ middles)
    below, below_window = np.cumsum(ours), np.cumsum(theirs)
    apart = np.abs(below_window - below)
    edge = int(np.searchsorted(below, TAIL, side="right"))  # bins before it hold at most the tail
    tail, tail_window = (float(values[edge - 1]) if edge else 0.0 for values in (below, below_window))
    return Shift(
        mean,
        baseline_mean,
        (mean - baseline_mean) / max(baseline_mean, 1e-12),
        float(apart.max()),
        float(apart.sum()) * width,
        tail_window,
        tail,
        edge * width,
        n,
        m,
    )


def confidence(found: Shift, *, limit: float = SHIFT, least: int = SHIFT_SAMPLES) -> Finding:
    """The rule of 5 %.

    Args:
        found: The comparison.
        limit: Of the relative mean shift and of the distance.
        least: Rows that a window needs.
    """
    full, enough = found.n >= least, found.effective_n >= ENOUGH
    by_mean, by_distance = abs(found.relative_mean) > limit, found.ks > limit
    review = full and (by_mean or (by_distance and enough))
    value = max(abs(found.relative_mean), found.ks if enough else 0.0)
    text = (
        f"Mean confidence {found.mean:.3f} against {found.baseline_mean:.3f} ({found.relative_mean:+.1%}), "
        f"distance of the distributions {found.ks:.3f}; {limit:g} is allowed of each"
    )
    if not full:
        text += f". {found.n:,} rows; the rule needs {least:,}"
    elif not enough and by_distance and not by_mean:
        text += f". {found.baseline_n:,} samples of the baseline are too few for the distance to count with {found.n:,} rows"
    numbers = {name: getattr(found, name) for name in ("mean", "baseline_mean", "relative_mean", "ks", "w1", "baseline_n")}
    return Finding("confidence", value, limit, review, f"{text}.", found.n, numbers)


def low_tail(found: Shift, *, least: int = SHIFT_SAMPLES) -> Finding:
    """More answers of low confidence than the baseline has, whatever the mean does.

    Args:
        found: The comparison.
        least: Rows that a window needs.
    """
    limit = found.baseline_low_tail + max(TAIL_RISE, STANDARD_ERRORS * found.tail_error)
    review = found.n >= least and found.low_tail > limit
    text = (
        f"{found.low_tail:.1%} of the answers have a confidence below {found.tail_edge:.3f}, "
        f"{found.baseline_low_tail:.1%} of the baseline's have; {limit:.1%} is allowed"
    )
    if found.n < least:
        text += f". {found.n:,} rows; the rule needs {least:,}"
    numbers = {"low_tail": found.low_tail, "baseline_low_tail": found.baseline_low_tail, "edge": found.tail_edge}
    return Finding("low_tail", found.low_tail, limit, review, f"{text}.", found.n, numbers)
