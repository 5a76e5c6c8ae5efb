"""Count, mean and variance of numbers that were seen elsewhere; they add up and can be taken apart again.

Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"; taking apart is the same formula
solved for one of its parts. Extremes only add up: of a difference they are known where it is the later part that moved them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.types import Array


@dataclass(frozen=True)
class Moments:
    """Of finite numbers.

    Attributes:
        n: How many.
        mean: 0 without any.
        squares: Sum of squared distances to the mean.
        low: Lowest; None where it is not known.
        high: Highest; likewise.
        not_finite: NaN and infinities that were left out.
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float | None = None
    high: float | None = None
    not_finite: int = 0

    @property
    def std(self) -> float:
        """Of the numbers as a population; 0 without any."""
        return math.sqrt(self.squares / self.n) if self.n else 0.0

    def __add__(self, other: Moments) -> Moments:
        """Of both."""
        not_finite = self.not_finite + other.not_finite
        if not self.n or not other.n:
            some = self if self.n else other
            return Moments(some.n, some.mean, some.squares, some.low, some.high, not_finite)
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart * apart * self.n * other.n / n
        low, high = _outer(min, self.low, other.low), _outer(max, self.high, other.high)
        return Moments(n, self.mean + apart * other.n / n, squares, low, high, not_finite)

    def __sub__(self, before: Moments) -> Moments:
        """Of what came after `before`, which these hold, too."""
        n, not_finite = self.n - before.n, self.not_finite - before.not_finite
        if n <= 0:
            return Moments(not_finite=max(not_finite, 0))
        if not before.n:
            return Moments(n, self.mean, self.squares, self.low, self.high, not_finite)
        mean = (self.n * self.mean - before.n * before.mean) / n
        squares = self.squares - before.squares - (mean - before.mean) ** 2 * before.n * n / self.n
        low = self.low if self.low is not None and before.low is not None and self.low < before.low else None
        high = self.high if self.high is not None and before.high is not None and self.high > before.high else None
        return Moments(n, mean, max(squares, 0.0), low, high, not_finite)

    @classmethod
    def of(cls, values: Array) -> Moments:
        """Of an array of any shape."""
        flat = np.asarray(values, np.float64).reshape(-1)
        kept = flat[np.isfinite(flat)]
        if not kept.size:
            return cls(not_finite=int(flat.size))
        mean = float(kept.mean())
        squares = float(((kept - mean) ** 2).sum())
        return cls(int(kept.size), mean, squares, float(kept.min()), float(kept.max()), int(flat.size - kept.size))

    def to_json(self) -> dict[str, Any]:
        """As a recording of the server has it: null where nothing is known."""
        some = self.n > 0
        return {
            "n": self.n,
            "mean": self.mean if some else None,
            "std": self.std if some else None,
            "min": self.low,
            "max": self.high,
            "not_finite": self.not_finite,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Moments:
        """What `to_json` or a server's recording gave."""
        n = int(document["n"])
        if not n:
            return cls(not_finite=int(document.get("not_finite", 0)))
        squares = float(document["std"]) ** 2 * n
        return cls(n, float(document["mean"]), squares, document.get("min"), document.get("max"), int(document.get("not_finite", 0)))


def _outer(which: Any, one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return which(known) if known else None
