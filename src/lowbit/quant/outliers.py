"""Facts about the tails of a tensor that say why eight bits do or do not suffice for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.errors import DataError
from lowbit.quant.observers import Histogram

TAIL = 0.001
"""Share of the values that counts as the tail: the farthest 0.1 %."""


@dataclass(frozen=True)
class Outliers:
    """How far a tensor's tail reaches.

    Attributes:
        kurtosis: Excess kurtosis: 0 for a Gaussian, -1.2 for a uniform, 3 for a Laplace distribution; far more where outliers rule.
        range_share: Share of the range [min(low, 0), max(high, 0)] that only the farthest 0.1 % of the values use, 0-1.
            Near 0: the levels are where the values are. 0.9: nine levels of ten serve one value in a thousand.
    """

    kurtosis: float
    range_share: float


def facts(histogram: Histogram) -> Outliers:
    """Kurtosis and range use of a tensor, from its histogram.

    Raises:
        DataError: the histogram is empty.
    """
    if not histogram.count:
        raise DataError("A histogram without values says nothing about outliers.", "Calibrate with a method that keeps histograms.")
    return Outliers(kurtosis(histogram), range_share(histogram))


def kurtosis(histogram: Histogram) -> float:
    """Excess kurtosis m4 / m2^2 - 3 of values spread evenly within their bins; 0 where all values fall into one bin."""
    if len(histogram.counts) < 2:
        return 0.0
    weight = histogram.counts / histogram.count
    width = float(np.ldexp(1.0, histogram.exponent))
    # In bin widths, and from the mean: nothing overflows or cancels, whatever the scale of the tensor.
    centres = (histogram.edges[:-1] + width / 2) / width
    away = centres - weight @ centres
    # A bin is a uniform distribution of its own: variance 1/12, fourth moment 1/80.
    second = weight @ (away**2 + 1 / 12)
    fourth = weight @ (away**4 + 6 * away**2 / 12 + 1 / 80)
    return float(fourth / second**2 - 3)


def range_share(histogram: Histogram, tail: float = TAIL) -> float:
    """Share of the range, zero included, that is used by no value but the `tail` farthest ones.

    The tail is taken from whichever end reaches farther, value by value: what is left is the smallest
    symmetric clip |x| <= c that keeps 1 - tail of the values, cut to the range.
    """
    low, high = min(float(histogram.edges[0]), 0.0), max(float(histogram.edges[-1]), 0.0)
    if high == low:
        return 0.0
    # How many values have |x| above each candidate clip: every edge is one, at its magnitude.
    farther = np.maximum(np.abs(histogram.edges[:-1]), np.abs(histogram.edges[1:]))
    order = np.argsort(farther, kind="stable")
    kept = np.cumsum(histogram.counts[order])
    clip = float(farther[order][np.searchsorted(kept, (1 - tail) * kept[-1])])
    return 1 - (min(high, clip) - max(low, -clip)) / (high - low)
