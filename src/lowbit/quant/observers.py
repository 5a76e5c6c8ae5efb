"""Streaming statistics of a tensor: exact min-max, and a histogram on a power-of-two grid.

Every observer is a value with three pure functions: `of(values)` looks at some values, `merge(a, b)`
joins what two of them saw, and nothing (`EMPTY`) is neutral. Streaming is `state = merge(state, of(chunk))`.

Merging is associative and commutative to the last bit, so the result depends only on which values
were seen: not on chunks, not on their order, not on how many machines looked. For the histogram that
follows from its grid. Bin i of a histogram with exponent e holds floor(x / 2^e) == i, and e is the
smallest for which the bins from the lowest to the highest value seen are at most `BINS`. That is a
function of the lowest and highest value alone, it only grows with them, and going from e to e + 1
joins bins 2i and 2i + 1 exactly, because floor(floor(x) / 2) == floor(x / 2). Dividing a float by a
power of two is exact, too. Memory is at most `BINS` counters, whatever was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lowbit.types import Array

BINS = 4096
"""Most bins of a histogram; once two values differ, between half of them and all are in use."""

_LEAST_EXPONENT = -120
_INDEX_BITS = 30  # bin numbers fit int32


@dataclass(frozen=True)
class MinMax:
    """Lowest and highest value seen; (inf, -inf) before the first."""

    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, values: Array) -> MinMax:
        """Of an array [...]; NaN where it holds one."""
        return cls(float(values.min()) + 0.0, float(values.max()) + 0.0) if values.size else cls()

    def merge(self, other: MinMax) -> MinMax:
        return MinMax(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Histogram:
    """How often values fell into [i * 2^exponent, (i + 1) * 2^exponent), i = first, first + 1, ...

    Attributes:
        exponent: Bin width is 2^exponent.
        first: Number of the first bin.
        counts: int64 [bins]; first and last are not zero; [0] before the first value.
        zeros: How many values were exactly zero (they are in `counts`, too).
    """

    exponent: int = _LEAST_EXPONENT
    first: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    zeros: int = 0

    @classmethod
    def of(cls, values: Array) -> Histogram:
        """Of an array [...] of finite floats, counted as float32."""
        flat = np.ravel(values).astype(np.float32, copy=False)
        if not flat.size:
            return cls()
        exponent = _exponent(float(flat.min()), float(flat.max()))
        index = np.floor(flat.astype(np.float64) * 2.0**-exponent).astype(np.int32)  # in float64 nothing underflows
        first = int(index.min())
        counts = np.bincount(index - first)
        return cls(exponent, first, counts.astype(np.int64, copy=False), flat.size - int(np.count_nonzero(flat)))

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def edges(self) -> Array:
        """Of the bins, float64 [bins + 1], ascending."""
        return np.ldexp(np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64), self.exponent)

    def merge(self, other: Histogram) -> Histogram:
        if not len(self.counts) or not len(other.counts):
            return self if len(self.counts) else other
        exponent = max(self.exponent, other.exponent)
        a, b = self.coarsened(exponent), other.coarsened(exponent)
        first, end = min(a.first, b.first), max(a.first + len(a.counts), b.first + len(b.counts))
        steps = 0
        while ((end - 1) >> steps) - (first >> steps) >= BINS:
            steps += 1
        if steps:
            return a.coarsened(exponent + steps).merge(b.coarsened(exponent + steps))
        counts = np.zeros(end - first, np.int64)
        counts[a.first - first :][: len(a.counts)] += a.counts
        counts[b.first - first :][: len(b.counts)] += b.counts
        return Histogram(exponent, first, counts, a.zeros + b.zeros)

    def coarsened(self, exponent: int) -> Histogram:
        """The same values on a grid that is 2^(exponent - self.exponent) times as wide."""
        steps = min(exponent - self.exponent, 62)  # 62 takes every bin number to 0 or -1, as would more
        if steps == 0:
            return self
        index = np.arange(self.first, self.first + len(self.counts)) >> steps
        starts = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
        return Histogram(exponent, int(index[0]), np.add.reduceat(self.counts, starts), self.zeros)


def _exponent(low: float, high: float) -> int:
    """The smallest exponent whose grid covers [low, high] with at most `BINS` bins."""
    most = max(abs(low), abs(high))
    if most == 0.0:  # frexp calls zero's exponent 0
        return _LEAST_EXPONENT
    exponent = max(_LEAST_EXPONENT, math.frexp(most)[1] - _INDEX_BITS)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / BINS)[1] - 2)  # never above the answer: the loop ends on it
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


@dataclass(frozen=True)
class TensorStats:
    """What calibration knows of one tensor.

    Attributes:
        low: Lowest value, exact over every element of every sample.
        high: Highest value, likewise.
        histogram: Of a deterministic subsample of the elements; empty where only min-max was asked for.
    """

    low: float
    high: float
    histogram: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class Observer:
    """The state from which `TensorStats` come: both observers side by side."""

    extrema: MinMax = field(default_factory=MinMax)
    histogram: Histogram = field(default_factory=Histogram)

    def update(self, values: Array, sample: Array | None = None) -> Observer:
        """Sees an array; `sample` are the elements for the histogram (all where None)."""
        return self.merge(Observer(MinMax.of(values), Histogram.of(values if sample is None else sample)))

    def merge(self, other: Observer) -> Observer:
        return Observer(self.extrema.merge(other.extrema), self.histogram.merge(other.histogram))

    def finalize(self) -> TensorStats:
        return TensorStats(self.extrema.low, self.extrema.high, self.histogram)
