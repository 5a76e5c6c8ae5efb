"""Confidence intervals for paired comparisons, and corrections for making many of them. Pure math."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

from lowbit.types import Array

RESAMPLES = 2000
LARGE = 20_000
"""From this many samples on, the sampling distribution is normal for our purposes and its standard error is enough."""
RESAMPLES_LARGE = 400
THIN_TAIL = 10
"""A percentile wants at least this many resamples beyond it."""
_CHUNK = 2_000_000
"""Elements of one block of resampling counts (16 MB)."""

Bounds = tuple[float, float]
IntervalAt = Callable[[float], Bounds]
"""alpha (two-sided) -> (low, high)."""


def tango(worse: int, better: int, n: int, alpha: float = 0.05) -> Bounds:
    """Score interval for a difference of two paired proportions.

    Tango T., "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17:891-908 (1998). Unlike the bootstrap and Wald's
    interval it keeps a width when no pair disagrees.

    Args:
        worse: Pairs right in the first and wrong in the second.
        better: Pairs wrong in the first and right in the second.
        n: All pairs.
        alpha: Two-sided error.

    Returns:
        Ends of the interval of (worse - better) / n, within [-1, 1].
    """
    assert min(worse, better) >= 0, (worse, better)
    assert worse + better <= n, (worse, better, n)
    if n == 0:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(1 - alpha / 2)

    def deviation(delta: float) -> float:
        """Standard deviation of worse - better - n delta, with the nuisance at its maximum likelihood given delta."""
        b = -worse - better + (2 * n - worse + better) * delta
        c = -better * delta * (1 - delta)
        nuisance = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        return math.sqrt(max(n * (2 * nuisance + delta * (1 - delta)), 0.0))

    def root(inside: float, end: float, sign: float) -> float:
        """Where |worse - better - n delta| = z deviation, between the estimate and one end."""
        for _ in range(40):
            middle = (inside + end) / 2
            if sign * (n * middle - worse + better) <= z * deviation(middle):
                inside = middle
            else:
                end = middle
        return (inside + end) / 2

    estimate = (worse - better) / n
    return root(estimate, -1.0, -1.0), root(estimate, 1.0, 1.0)


def wilson(right: int, n: int, alpha: float = 0.05) -> Bounds:
    """Score interval for one proportion.

    Wilson E. B., "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22:209-212 (1927).

    Args:
        right: Of them.
        n: All.
        alpha: Two-sided error.

    Returns:
        Ends of the interval, within [0, 1]; all of it where n is 0.
    """
    assert 0 <= right <= n, (right, n)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - alpha / 2)
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap_counts(n: int, seed: int = 0) -> Iterator[Array]:
    """How often each of n samples is drawn in each resample (Efron's bootstrap), block by block.

    The counts depend on n and seed alone, so two models resampled with them stay paired.

    Yields:
        Blocks float64 [b, n] whose rows sum to n, RESAMPLES rows in all (RESAMPLES_LARGE from LARGE samples on).
    """
    rng = np.random.default_rng(seed)
    left = RESAMPLES if n < LARGE else RESAMPLES_LARGE
    while left > 0:
        block = min(left, max(1, _CHUNK // n))
        drawn = rng.integers(0, n, size=(block, n), dtype=np.int32 if block * n < 2**31 else np.int64)
        drawn += np.arange(block, dtype=drawn.dtype)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=block * n).reshape(block, n).astype(np.float64)
        left -= block


def bootstrap_bounds(estimate: float, resampled: Array, n: int, alpha: float = 0.05) -> Bounds:
    """Interval from bootstrap values: expanded percentiles, or normal where the tail is too thin for percentiles.

    Plain percentiles are too narrow for few samples; expanding alpha to match Student's t mends that
    (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69:371, 2015).

    Args:
        estimate: Value on the sample itself.
        resampled: Bootstrap values [B]; undefined ones (NaN) are left out.
        n: Samples that were resampled.
        alpha: Two-sided error.

    Returns:
        Ends of the interval; (-inf, inf) where there are fewer than two samples.
    """
    from scipy.special import stdtrit

    values = resampled[np.isfinite(resampled)]
    if n < 2 or len(values) < 2:
        return -math.inf, math.inf
    z = -math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, alpha / 2))
    tail = NormalDist().cdf(-z)
    if n < LARGE and tail * len(values) >= THIN_TAIL:
        low, high = np.quantile(values, [tail, 1 - tail])
        # A skewed resampling distribution may miss the estimate itself; an interval never does.
        return min(float(low), estimate), max(float(high), estimate)
    spread = float(values.std(ddof=1))
    return estimate - z * spread, estimate + z * spread


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected with a family-wise error of alpha (Holm, Scand. J. Statistics 6:65, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def holm_intervals(intervals: Sequence[IntervalAt], limits: Sequence[float], alpha: float = 0.05) -> list[tuple[Bounds, float]]:
    """Intervals for many deltas such that "the low end is over its limit" is Holm's test of all of them together.

    Starts with alpha over their number; each time some are over their limit, the others share alpha among themselves.

    Returns:
        For each: its bounds and the two-sided alpha they have.
    """
    share = alpha / max(len(intervals), 1)
    found: list[tuple[Bounds, float]] = [(interval(share), share) for interval in intervals]
    over: set[int] = set()
    while True:
        fresh = {i for i, ((low, _), _) in enumerate(found) if i not in over and low > limits[i]}
        over |= fresh
        if not fresh or len(over) == len(intervals):
            return found
        share = alpha / (len(intervals) - len(over))
        found = [entry if i in over else (intervals[i](share), share) for i, entry in enumerate(found)]
