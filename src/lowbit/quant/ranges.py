"""From the statistics of a tensor to the range that is quantized: min-max, percentile, entropy, MSE.

Every range holds zero (it must be a level of the grid) and lies within min-max otherwise.
All four are vectorised over candidates and take milliseconds a tensor at most.

Exact zeros are left out where an error is weighed: zero is always a level, so they cost nothing, and
behind a ReLU they are half of all values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowbit.errors import DataError, UsageError, unknown
from lowbit.quant.observers import BINS, Histogram, TensorStats
from lowbit.types import Array, RangeMethod

PERCENTILE = 99.999
"""Per cent of the values that the two-sided percentile range keeps, half of the rest cut at each end.

Output signal-to-noise of static INT8 against FP32, ResNet-20 / MCUNet: 99.9 20.3 / 13.8 dB, 99.99 27.6 / 15.7 dB, 99.999 29.0 / 15.8 dB.
"""

_LEVELS = 256
_ENTROPY_LEVELS = _LEVELS // 2
_ENTROPY_CANDIDATES = 512
_MSE_STEPS = 96
_MSE_FINALISTS = 8


def find_range(stats: TensorStats, method: RangeMethod, levels: int = _LEVELS) -> tuple[float, float]:
    """The range of a tensor by one of the four methods.

    Args:
        stats: From calibration.
        method: Of the four.
        levels: Of the grid: 256 for eight bits, 16 for four. What was seen ("minmax") and how often ("percentile")
            do not depend on it; which outliers are worth their share of the levels ("entropy", "mse") does.

    Raises:
        UsageError: an unknown method, or fewer than four levels.
        DataError: the method needs a histogram, and calibration was asked for min-max alone.
    """
    finders: dict[str, Callable[[TensorStats], tuple[float, float]]] = {
        "minmax": minmax,
        "percentile": percentile,
        "entropy": lambda seen: entropy(seen, levels // 2),
        "mse": lambda seen: mse(seen, levels),
    }
    if method not in finders:
        raise unknown("range method", method, finders)
    if levels < 4:
        raise UsageError(f"A grid of {levels} levels is too small; two bits are four levels.")
    if method != "minmax" and not stats.histogram.count:
        raise DataError(f"Range method '{method}' needs a histogram, and calibration kept none.", f"Calibrate with methods=('{method}',).")
    return finders[method](stats)


def minmax(stats: TensorStats) -> tuple[float, float]:
    """Everything that was seen."""
    return min(stats.low, 0.0), max(stats.high, 0.0)


def percentile(stats: TensorStats, percent: float = PERCENTILE) -> tuple[float, float]:
    """The middle `percent` of the values, interpolated within a bin."""
    histogram = stats.histogram
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    cut = (1 - percent / 100) / 2 * below[-1]
    low, high = np.interp([cut, below[-1] - cut], below, histogram.edges)
    return _within(stats, float(low), float(high))


def entropy(stats: TensorStats, levels: int = _ENTROPY_LEVELS) -> tuple[float, float]:
    """The symmetric clip whose quantized distribution loses least information (Kullback-Leibler).

    The search is that of TensorRT (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 36-39):
    for each threshold, the reference P is the histogram of |x| up to it with the outliers in the last
    bin, and Q is the histogram without the outliers, put into a few levels and spread again over the bins
    that are not empty. |x| gets TensorRT's 128 levels, also where values have one sign and eight bits hold 256:
    with 256 the output was noisier (ResNet-20 27.9 against 28.5 dB, MCUNet 13.4 against 14.2). The range is then cut to min-max.

    Sums over levels are differences of running sums, so one threshold costs `levels` operations, not bins.
    """
    histogram = _from_zero(stats.histogram)
    counts = _magnitudes(histogram)
    if len(counts) <= levels:
        return minmax(stats)
    ends = np.unique(np.linspace(levels, len(counts), _ENTROPY_CANDIDATES).astype(int))
    best = int(ends[np.argmin(_divergences(counts, ends, levels))])
    clip = float(np.ldexp(float(best), histogram.exponent))
    return _within(stats, -clip, clip) if best < len(counts) else minmax(stats)


def mse(stats: TensorStats, levels: int = _LEVELS) -> tuple[float, float]:
    """The clip that minimises the expected squared error of asymmetric quantization.

    A grid over both ends is rated with an estimate (step^2 / 12 for what is inside, the distance to
    the clip for what is outside); the best of it are weighed exactly by `expected_error`, and the
    winner's neighbourhood once more, finer.
    """
    low, high = minmax(stats)
    histogram = stats.histogram
    if low == high or not np.any(_positive_mass(histogram)):
        return low, high
    # Each end shrinks geometrically and separately: a heavy tail may want a hundredth of min-max.
    shrink = np.concatenate([np.linspace(1.0, 0.2, _MSE_STEPS // 2), np.geomspace(0.2, 0.004, _MSE_STEPS // 2 + 1)[1:]])
    lows, highs = _candidates(low * shrink, high * shrink)
    order = np.argsort(_estimated_error(histogram, lows, highs, levels), kind="stable")[:_MSE_FINALISTS]
    lows, highs = np.append(lows[order], low), np.append(highs[order], high)
    best = int(np.argmin(expected_error(histogram, lows, highs, levels)))
    near = np.linspace(0.96, 1.04, 5)
    lows, highs = _candidates(np.maximum(lows[best] * near, low), np.minimum(highs[best] * near, high))
    best = int(np.argmin(expected_error(histogram, lows, highs, levels)))
    return float(lows[best]), float(highs[best])


def expected_error(histogram: Histogram, lows: Array, highs: Array, levels: int = _LEVELS) -> Array:
    """Expected squared quantization error of a value, for many ranges at once.

    Exact for values that are spread evenly within each bin. The error is a saw-tooth x - q(x) inside the range
    and a straight line outside; the integral of its square has a closed form, and a bin's share is a difference of it.

    Args:
        histogram: Of the tensor.
        lows: [candidates], <= 0.
        highs: [candidates], >= 0, above `lows`.
        levels: Of the grid, 256 for eight bits.

    Returns:
        float64 [candidates].
    """
    mass, edges = _positive_mass(histogram), histogram.edges
    used = np.flatnonzero(mass)
    step = ((highs - lows) / (levels - 1))[:, None]
    bottom = np.rint(lows[:, None] / step)  # first and last level, counted from zero: the grid that is really used
    top = bottom + levels - 1

    units = edges / step  # [candidates, bins + 1], and everything below
    nearest = np.minimum(np.maximum(np.rint(units), bottom), top)
    units -= nearest
    integral = nearest / 12 + units * units * units / 3  # as powers, it takes ten times as long
    share: Array = np.diff(integral, axis=1)[:, used] * step**2
    width = np.ldexp(1.0, histogram.exponent)
    total: Array = (share * step / width) @ mass[used] / histogram.count
    return total


def _candidates(lows: Array, highs: Array) -> tuple[Array, Array]:
    """Every pair of ends, without the pair of two zeros."""
    grid_low, grid_high = np.meshgrid(np.unique(lows), np.unique(highs), indexing="ij")
    keep = grid_high > grid_low
    return grid_low[keep], grid_high[keep]


def _estimated_error(histogram: Histogram, lows: Array, highs: Array, levels: int) -> Array:
    """step^2 / 12 inside and the squared distance outside, from running sums; float64 [candidates]."""
    mass, edges = _positive_mass(histogram), histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    moments = [np.concatenate([[0.0], np.cumsum(mass * centres**k)]) for k in range(3)]

    def sums(x: Array) -> list[Array]:
        return [np.interp(x, edges, moment) for moment in moments]

    below, above = sums(lows), [moment[-1] - part for moment, part in zip(moments, sums(highs), strict=True)]
    inside = moments[0][-1] - below[0] - above[0]
    steps = (highs - lows) / (levels - 1)
    outside = sum(part[2] - 2 * clip * part[1] + clip**2 * part[0] for part, clip in ((below, lows), (above, highs)))
    result: Array = (inside * steps**2 / 12 + outside) / histogram.count
    return result


def _divergences(counts: Array, ends: Array, groups: int) -> Array:
    """KL(P || Q) for each number of bins kept; float64 [candidates], inf where Q is zero and P is not."""
    total = counts.sum()
    c = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    clogc = np.concatenate([[0.0], np.cumsum(counts * np.log(np.maximum(counts, 1)))])
    bounds = ends[:, None] * np.arange(groups + 1) // groups
    last, outliers = counts[ends - 1], total - c[ends]
    inside = np.diff(c[bounds], axis=1)  # [candidates, groups]
    bins = np.diff(filled[bounds], axis=1)
    bins[:, -1] += (last == 0) & (outliers > 0)
    reference = inside.copy()
    reference[:, -1] += outliers
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(reference > 0, reference * np.log(inside / bins), 0.0).sum(axis=1)
        heaped = last + outliers
        own = clogc[ends] - last * np.log(np.maximum(last, 1)) + heaped * np.log(np.maximum(heaped, 1))
        result: Array = (own - spread) / total - np.log(total) + np.log(c[ends])
    return np.where(np.isfinite(result), result, np.inf)


def _from_zero(histogram: Histogram) -> Histogram:
    """Coarse enough that a few thousand bins reach from zero to the farthest value."""
    farthest = max(abs(histogram.first), abs(histogram.first + len(histogram.counts)))
    return histogram.coarsened(histogram.exponent + max(0, farthest.bit_length() - BINS.bit_length()))


def _magnitudes(histogram: Histogram) -> Array:
    """Counts of |x| in bins from zero up, exact zeros left out; float64 [bins]."""
    mass, numbers = _positive_mass(histogram), np.arange(histogram.first, histogram.first + len(histogram.counts))
    return np.bincount(np.where(numbers < 0, -numbers - 1, numbers), weights=mass)


def _positive_mass(histogram: Histogram) -> Array:
    """Counts without the exact zeros, float64 [bins]."""
    mass = histogram.counts.astype(np.float64)
    if histogram.zeros:
        mass[-histogram.first] -= histogram.zeros
    return mass


def _within(stats: TensorStats, low: float, high: float) -> tuple[float, float]:
    least, most = minmax(stats)
    return min(max(low, least), 0.0), max(min(high, most), 0.0)
