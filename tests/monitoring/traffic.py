"""Confidences as a model gives them, and what can go wrong with them: the cases of the tests. All random, with fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowbit.measure.compare import BINS
from lowbit.monitoring.tally import Key, Tally
from lowbit.types import Array

KEY = Key("demo", "v1", "int8@onnxruntime")
Draw = Callable[[np.random.Generator, int], Array]
"""(source of chance, n) -> confidences [n]."""
BASELINE_N = 20_000


def normal(rng: np.random.Generator, n: int) -> Array:
    """What the model gives on a good day."""
    return rng.beta(6, 1.2, n)


MEAN = 6 / 7.2


def lower(rng: np.random.Generator, n: int) -> Array:
    """A mean that is 5 % lower."""
    return normal(rng, n) * 0.95


def doubtful(rng: np.random.Generator, n: int) -> Array:
    """A twentieth of the traffic below 0.3."""
    return np.where(rng.random(n) < 0.05, rng.uniform(0, 0.3, n), normal(rng, n))


def anything(rng: np.random.Generator, n: int) -> Array:
    """A twentieth of the traffic anywhere."""
    return np.where(rng.random(n) < 0.05, rng.random(n), normal(rng, n))


def wider(rng: np.random.Generator, n: int) -> Array:
    """The same mean, 1.3 times the spread."""
    return np.clip(MEAN + 1.3 * (normal(rng, n) - MEAN), 0, 1)


def counts(values: Array) -> tuple[int, ...]:
    """As a server's histogram."""
    return tuple(int(count) for count in np.histogram(values, BINS, (0, 1))[0])


def tally(rng: np.random.Generator, n: int, draw: Draw = normal) -> Tally:
    """Of n answers."""
    return Tally(requests=n, rows=n, recorded=n, confidence=counts(draw(rng, n)))
