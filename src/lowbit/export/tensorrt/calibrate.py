"""Calibration for grids around zero: how far a tensor is followed on both sides of it.

The statistics are those of the bundle's own calibration; what differs is the grid they are read for. A tensor of one sign uses half the
levels of such a grid, so that a clip that was right for the whole of them may be wrong for half.
"""

from __future__ import annotations

import numpy as np

from lowbit.quant.observers import TensorStats
from lowbit.quant.ranges import expected_error, find_range
from lowbit.types import RangeMethod

LEVELS = 255
"""Of int8 around zero: -127 to 127."""

_STEPS = 64


def symmetric_range(stats: TensorStats, method: RangeMethod) -> tuple[float, float]:
    """The range of a tensor on a symmetric int8 grid; the same on both sides of zero.

    Args:
        stats: Of the tensor.
        method: "entropy" is TensorRT's own (S. Migacz, "8-bit Inference with TensorRT", GTC 2017); "mse" weighs the squared error of the
            symmetric grid itself; "percentile" and "minmax" take the farther end of what they keep.

    Raises:
        DataError: the method needs a histogram, and calibration kept none.
    """
    low, high = find_range(stats, "minmax" if method == "mse" and not stats.histogram.count else method)
    clip = max(-low, high)
    if method == "mse":
        clip = _least_error(stats, max(-stats.low, stats.high, 0.0))
    return -clip, clip


def _least_error(stats: TensorStats, most: float) -> float:
    """The clip with the least expected squared error, searched coarsely and then around the best."""
    if most <= 0 or not stats.histogram.count:
        return max(most, 0.0)
    clips = most * np.concatenate([np.linspace(1.0, 0.2, _STEPS), np.geomspace(0.2, 0.004, _STEPS // 2)[1:]])
    best = clips[np.argmin(expected_error(stats.histogram, -clips, clips, LEVELS))]
    near = np.minimum(best * np.linspace(0.97, 1.03, 13), most)
    return float(near[np.argmin(expected_error(stats.histogram, -near, near, LEVELS))])
