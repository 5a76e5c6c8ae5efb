"""Weight clipping: scales that trade a few clipped weights for a finer step, row by row.

Each row (or block of a row) of a weight matrix gets the share of its min-max range that minimises its squared error, every
weight counted with the mean square of its input where that is known (the diagonal of X^T X: errors of different inputs
taken as independent). All rows are searched at once.
"""

from __future__ import annotations

import numpy as np

from lowbit.quant.affine import Affine, block_ranges, from_range
from lowbit.quant.rounding import Levels
from lowbit.types import Array

RATIOS = tuple(np.linspace(1.0, 0.3, 36))
"""Shares of the min-max range that are tried."""


def best_scales(
    weights: Array, dtype: str, *, symmetric: bool, power: Array | None = None, block: int | None = None, ratios: tuple[float, ...] = RATIOS
) -> Affine:
    """Parameters with the least weighted error per row, or per block of a row.

    Args:
        weights: Float [..., O, K]; for a convolution see `layout.as_matrices`.
        dtype: Of the weights, see `affine.levels`.
        symmetric: Same grid on both sides of zero; otherwise each end is searched, too.
        power: Mean square of each input, [..., K] (the diagonal of `Moments.gram` will do); all equal where None.
        block: Elements of a block along K; the whole row where None.
        ratios: Shares of min-max to try, 1 among them.

    Returns:
        Blocked along the last axis, scale [..., O, blocks]; see `per_channel` for one scale per output channel.
    """
    size = weights.shape[-1] if block is None else block
    importance = np.ones((1, weights.shape[-1])) if power is None else np.asarray(power, np.float64)[..., None, :]
    ends = block_ranges(weights, -1, size)
    low, high = np.minimum(ends[0], 0.0).astype(np.float64), np.maximum(ends[1], 0.0).astype(np.float64)
    shares = np.ones((2, *low.shape))
    passes = [(0, 1)] if symmetric else [(0, 1), (0,), (1,), (0,), (1,)]  # both together, then in turn
    least = np.full(low.shape, np.inf)
    for chosen in passes:
        start = shares.copy()
        for ratio in ratios:
            tried = start.copy()
            tried[list(chosen)] *= ratio
            grid = from_range(low * tried[0], high * tried[1], dtype, symmetric=symmetric, axis=-1, block=size)
            error = _errors(weights, grid, importance, size)
            better = error < least
            least = np.where(better, error, least)
            shares = np.where(better, tried, shares)
    return from_range(low * shares[0], high * shares[1], dtype, symmetric=symmetric, axis=-1, block=size)


def per_channel(grid: Affine) -> Affine:
    """Parameters with one block a row, [..., O, 1], as those of a tensor with O' = prod(..., O) output channels on axis 0."""
    return Affine(grid.scale.reshape(-1), grid.zero_point.reshape(-1), grid.dtype, grid.symmetric, axis=0)


def _errors(weights: Array, grid: Affine, importance: Array, size: int) -> Array:
    """Weighted squared error of each block, float64 [..., O, blocks]."""
    error = (Levels.of(grid, weights.shape).nearest(weights) - weights) ** 2 * importance
    result: Array = np.add.reduceat(error, np.arange(0, weights.shape[-1], size), axis=-1)
    return result
