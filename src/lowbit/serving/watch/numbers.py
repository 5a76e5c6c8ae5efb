"""Statistics of inputs as they come: count, mean, variance and extremes, of all numbers of an input or of each of its columns.

They merge by Chan's formula (Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances");
`monitoring.moments` has the same numbers as records that can be taken apart again.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from lowbit.types import Array

RUNS, RUN = 32, 16
"""Of an input so many runs of so many values are looked at, evenly spread. A run is a cache line: the input was last touched before the
model ran, so that each place costs a trip to memory."""
WHOLE = 2 * RUNS * RUN
"""Inputs of no more values than that are looked at whole."""


class Moments:
    """Of finite numbers, whatever their place."""

    __slots__ = ("high", "low", "mean", "n", "not_finite", "squares")

    def __init__(self) -> None:
        """Of no numbers."""
        self.n, self.mean, self.squares, self.low, self.high, self.not_finite = 0, 0.0, 0.0, math.inf, -math.inf, 0

    def add(self, values: Array) -> None:
        """Numbers [n] of any type that can be float64; n may be 0."""
        if not values.size:
            return
        total = float(values.sum(dtype=np.float64))
        if not math.isfinite(total):
            kept = values[np.isfinite(values)]
            self.not_finite += values.size - kept.size
            if not kept.size:
                return
            values, total = kept, float(kept.sum(dtype=np.float64))
        mean = total / values.size
        off = values.astype(np.float64) - mean
        self._join(values.size, mean, float(off @ off), float(values.min()), float(values.max()))

    def _join(self, n: int, mean: float, squares: float, low: float, high: float) -> None:
        both = self.n + n
        apart = mean - self.mean
        self.squares += squares + apart * apart * self.n * n / both
        self.mean += apart * n / both
        self.n = both
        self.low, self.high = min(self.low, low), max(self.high, high)

    def shown(self) -> dict[str, Any]:
        """As JSON has it; null where there is nothing."""
        return _shown(self.n, self.mean, self.squares, self.low, self.high, self.not_finite)


class Columns:
    """Of each column of a table's rows [N, C]; a value that is no number is left out of its own column alone."""

    __slots__ = ("high", "low", "mean", "n", "not_finite", "squares")

    def __init__(self, width: int) -> None:
        """Of so many columns, without rows."""
        self.n, self.not_finite = np.zeros(width), np.zeros(width, np.int64)
        self.mean, self.squares = np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: Array) -> None:
        """Rows [N, C]."""
        for row in rows.astype(np.float64):  # one row comes at a time, mostly: a step of Welford's for each is the quickest then
            known = np.isfinite(row)
            if not known.all():
                self.not_finite += ~known
                row = np.where(known, row, self.mean)  # no step away from the mean, and no weight
            self.n += known
            off = row - self.mean
            self.mean += off / np.maximum(self.n, 1)
            self.squares += off * (row - self.mean)
            np.minimum(self.low, np.where(known, row, np.inf), out=self.low)
            np.maximum(self.high, np.where(known, row, -np.inf), out=self.high)

    def shown(self) -> list[dict[str, Any]]:
        """As JSON has them, column by column."""
        each = (self.n.astype(np.int64), self.mean, self.squares, self.low, self.high, self.not_finite)
        return [_shown(*column) for column in zip(*(values.tolist() for values in each), strict=True)]

    def whole(self) -> dict[str, Any]:
        """Of all columns together, as `Moments.shown` says it."""
        found = Moments()
        for n, mean, squares, low, high in zip(self.n, self.mean, self.squares, self.low, self.high, strict=True):
            if n:
                found._join(int(n), float(mean), float(squares), float(low), float(high))
        found.not_finite = int(self.not_finite.sum())
        return found.shown()


def _shown(n: int, mean: float, squares: float, low: float, high: float, not_finite: int) -> dict[str, Any]:
    if not n:
        return {"n": 0, "mean": None, "std": None, "min": None, "max": None, "not_finite": not_finite}
    return {"n": n, "mean": mean, "std": math.sqrt(max(squares, 0.0) / n), "min": low, "max": high, "not_finite": not_finite}


@lru_cache(64)
def places(size: int) -> Array:
    """Positions of `RUNS` runs in so many values, centred. Their distance has no factor in common with the size: they meet all columns."""
    step = size // RUNS
    while math.gcd(step, size) > 1:
        step -= 1
    first = (size - (RUNS - 1) * step - RUN) // 2
    return (first + step * np.arange(RUNS)[:, None] + np.arange(RUN)).reshape(-1)
