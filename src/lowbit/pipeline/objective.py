"""How much a candidate gains by the user's objective, and which of several is preferred. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lowbit.types import Candidate, Measurement, Policy

SOURCE = "fp32"
"""The source's own precision, as `Candidate.precision` says it."""
TIE = 0.03
"""Gains within this share of the best are equal: machines repeat themselves no better."""
SIZE_TIE = 0.10
"""Sizes within this share of the smallest are equal."""
NOT_SLOWER = 0.98
"""A speedup from here on counts as not slower: two runs of one program differ by as much."""


def asked(candidate: Candidate, policy: Policy) -> tuple[Measurement, ...]:
    """One call at a time, at the batch sizes that the user asked for; smallest first."""
    return tuple(sorted((m for m in candidate.measurements if m.streams == 1 and m.batch in policy.batch), key=lambda m: m.batch))


def slower(measurement: Measurement) -> bool:
    """True when the candidate is slower than the baseline: more than 2 % by its estimate, or surely, by its whole interval."""
    speedup = measurement.speedup
    return speedup is not None and (speedup.value < NOT_SLOWER or speedup.ci_high < 1)


def gain(candidate: Candidate, baseline: Candidate, policy: Policy) -> float:
    """Times better than the baseline by the objective; 1 for the baseline itself, NaN where it was not measured.

    latency: geometric mean of the speedups at the asked batch sizes. throughput: the speedup where most is in flight
    (streams, then batch). size: the baseline's bytes over the candidate's.
    """
    if candidate.id == baseline.id:
        return 1.0
    if policy.objective == "size":
        return baseline.size_bytes / candidate.size_bytes if baseline.size_bytes and candidate.size_bytes else math.nan
    if policy.objective == "throughput":
        timed = [m for m in candidate.measurements if m.speedup is not None]
        busiest = max(timed, key=lambda m: (m.streams, m.batch), default=None)
        return busiest.speedup.value if busiest is not None and busiest.speedup is not None else math.nan
    return speed(candidate, baseline, policy)


def speed(candidate: Candidate, baseline: Candidate, policy: Policy) -> float:
    """The latency gain, whatever the objective."""
    if candidate.id == baseline.id:
        return 1.0
    return _geometric_mean([m.speedup.value for m in asked(candidate, policy) if m.speedup is not None])


def preferred(pool: Iterable[Candidate], baseline: Candidate, policy: Policy, *, doubtful: bool = False) -> Candidate:
    """The best of a pool that is not empty, whatever its order.

    Best by the objective; among equals (within 3 %) the smallest (within 10 %; for the size objective the fastest);
    then the one that loses least; then the baseline itself; then the first by name.

    Args:
        pool: What there is to choose from.
        baseline: What gains are over.
        policy: The objective.
        doubtful: Nothing in the pool is proved: among equals what loses least goes before what is smaller.
    """
    left = list(pool)
    assert left, "nothing to choose from"
    left = _ties(left, [gain(c, baseline, policy) for c in left], TIE)
    if doubtful:
        least = min(loss(c) for c in left)
        left = [c for c in left if loss(c) <= least]
    if policy.objective == "size":
        left = _ties(left, [speed(c, baseline, policy) for c in left], TIE)
    else:
        left = _ties(left, [1 / c.size_bytes if c.size_bytes else math.nan for c in left], SIZE_TIE)
    return min(left, key=lambda c: (loss(c), c.id != baseline.id, c.id))


def loss(candidate: Candidate) -> float:
    """Point estimate of the drop by the evidence that counts; 0 without evidence."""
    return candidate.evidence.delta.value if candidate.evidence is not None else 0.0


def _ties(pool: Sequence[Candidate], scores: Sequence[float], tolerance: float) -> list[Candidate]:
    """Those within a tolerance of the best score; all where nobody has one."""
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return list(pool)
    floor = max(known) * (1 - tolerance)
    return [candidate for candidate, score in zip(pool, scores, strict=True) if score >= floor]


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else math.nan
