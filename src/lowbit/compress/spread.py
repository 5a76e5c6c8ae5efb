"""Samples with unequal chances: few of them, spread over the data, more where more is at stake."""

from __future__ import annotations

import numpy as np

from lowbit.types import Array


def inclusion(importance: Array, count: int) -> Array:
    """Chances [N] of being one of `count`, proportional to importance [N] but never above one; they add up to `count`.

    A twentieth of the importance is the same for all, so that no sample is out of reach.
    """
    mean = float(importance.mean())
    size = 0.95 * importance / mean + 0.05 if mean > 0 else np.ones(len(importance))
    sure = np.zeros(len(size), bool)
    while True:
        free = ~sure
        share = (count - sure.sum()) / size[free].sum() if free.any() else 0.0
        chance = np.where(sure, 1.0, size * share)
        over = (chance >= 1.0) & free
        if not over.any():
            return chance
        sure |= over


def systematic(chance: Array, offset: float) -> Array:
    """Positions, ascending, one every whole step of the chances' running sum: neighbours are rarely drawn together.

    Madow 1949, On the theory of systematic sampling II (Annals of Mathematical Statistics 20, 333-354).

    Args:
        chance: [N], at most 1 each; their sum is the number of positions.
        offset: In [0, 1), where the first step falls.
    """
    steps = np.arange(round(float(chance.sum()))) + offset
    found = np.searchsorted(np.cumsum(chance), steps, side="right")
    return np.unique(np.minimum(found, len(chance) - 1))
