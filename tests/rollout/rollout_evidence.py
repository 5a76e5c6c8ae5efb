"""Traffic made up for tests of rollouts: what two versions answer, as counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from lowbit.measure.compare import BINS
from lowbit.rollout.evidence import EDGES_S, LATENCY_BINS, Arm, Evidence
from lowbit.types import Array


@dataclass(frozen=True)
class Traffic:
    """How a version behaves; the defaults are a healthy one.

    Attributes:
        errors: Rate of failures.
        slower: Factor on every latency.
        confident: Confidences are Beta(6, this): 1.2 has a mean of 0.833, more is less sure.
        disagree: Rate of rows that differ from full precision.
        wrong: Rate of wrong answers.
        cost: Factor on compute.
    """

    errors: float = 0.01
    slower: float = 1.0
    confident: float = 1.2
    disagree: float = 0.01
    wrong: float = 0.1
    cost: float = 1.0


HEALTHY = Traffic()


@lru_cache
def latencies(slower: float) -> Array:
    """Probabilities of the latency bins: log-normal, median 18 ms, p99 59 ms."""
    found = np.random.default_rng(0).lognormal(-4, 0.5, 200_000) * slower
    return np.bincount(np.searchsorted(EDGES_S, found, side="right"), minlength=LATENCY_BINS) / 200_000


@lru_cache
def confidences(confident: float) -> Array:
    """Probabilities of the confidence bins."""
    found = np.random.default_rng(1).beta(6, confident, 200_000)
    return np.bincount(np.minimum((found * BINS).astype(int), BINS - 1), minlength=BINS) / 200_000


def arm(rng: np.random.Generator, n: int, traffic: Traffic = HEALTHY, *, shadow: float = 0.1, labels: float = 0.1) -> Arm:
    """n answers of a version."""
    shadowed, labelled = int(n * shadow), int(n * labels)
    # The sums of n log-normal costs, by their exact means and variances: n of them are many.
    mean, square = np.exp(-5 + 0.08) * traffic.cost, np.exp(-10 + 0.32) * traffic.cost**2
    total = n * mean + rng.normal() * np.sqrt(n * (square - mean**2))
    return Arm(
        requests=n,
        errors=int(rng.binomial(n, traffic.errors)),
        seconds=counts(rng, n, latencies(traffic.slower)),
        confidence=counts(rng, n, confidences(traffic.confident)),
        shadowed=shadowed,
        disagreed=int(rng.binomial(shadowed, traffic.disagree)),
        labelled=labelled,
        right=labelled - int(rng.binomial(labelled, traffic.wrong)),
        busy_n=n,
        busy_s=float(max(total, 0.0)),
        busy_squares=float(n * square),
    )


def counts(rng: np.random.Generator, n: int, rates: Array) -> tuple[int, ...]:
    """n samples in bins."""
    return tuple(int(each) for each in rng.multinomial(n, rates))


def evidence(rng: np.random.Generator, n_baseline: int, n_canary: int, canary: Traffic = HEALTHY) -> Evidence:
    """Both arms."""
    return Evidence(arm(rng, n_baseline), arm(rng, n_canary, canary))


def clean(n_baseline: int, n_canary: int) -> Evidence:
    """Healthy traffic without chance in it: both arms are what they are expected to be."""
    return Evidence(*(_expected(n) for n in (n_baseline, n_canary)))


def _expected(n: int) -> Arm:
    made = arm(np.random.default_rng(2), n)
    return replace(made, errors=n // 200, disagreed=made.shadowed // 100, right=made.labelled - made.labelled // 10)


GOOD = clean(10_000, 4_000)
BAD = replace(GOOD, canary=replace(GOOD.canary, errors=400))
"""A tenth of its answers are failures."""
