"""From raw seconds to statements: medians, ratios, intervals, and whether the machine was too noisy to say.

Pure functions. A round is one turn of every variant; what disturbs the machine for a while disturbs
neighbouring turns alike, so variants are compared within a round. Calls of one round are not independent
of each other, so the intervals resample rounds (Efron's percentile bootstrap over clusters), never calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowbit.types import Array, Latency, Measurement, Ratio, Tuning

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0

NOISE = 0.10
"""Noisy = the interval of the median latency, or of the speedup, reaches further than this share from its middle value."""

BUSY = 0.10
"""Noisy as well = other processes took more than this share of the cores' time during the turns. Rounds may agree
with each other and still be wrong: steady load slows variants down unequally."""

FEWEST_ROUNDS = 3
"""With fewer the rounds cannot disagree, so nothing is known about noise: that counts as noisy."""

Rounds = Sequence[Sequence[float]]
"""Seconds of every call, per round."""


def latency(rounds: Rounds) -> Latency:
    """Quantiles over all calls, in milliseconds, with the bootstrap interval of the median."""
    everything = np.concatenate([np.asarray(calls) for calls in rounds]) * 1e3
    p50, p95, p99 = np.quantile(everything, (0.50, 0.95, 0.99))
    low, high = interval(medians(rounds)) * 1e3
    # The interval is that of the median of round medians, which may pass the pooled median by a hair.
    return Latency(float(p50), float(p95), float(p99), float(min(low, p50)), float(max(high, p50)))


def speedup(baseline: Rounds, candidate: Rounds) -> Ratio | None:
    """How many times faster: the median over rounds of (baseline's median / candidate's median).

    Only rounds that both have count; None where there are none.
    """
    n = min(len(baseline), len(candidate))
    return ratio(medians(baseline[:n]), medians(candidate[:n]))


def ratio(numerators: Sequence[float] | Array, denominators: Sequence[float] | Array) -> Ratio | None:
    """Median of the ratios of paired values, with its bootstrap interval; None without pairs."""
    if not len(numerators):
        return None
    ratios = np.asarray(numerators, float) / np.asarray(denominators, float)
    low, high = interval(ratios)
    return Ratio(float(np.median(ratios)), float(low), float(high))


def throughput(rounds: Rounds, walls: Sequence[float], batch: int) -> Array:
    """Samples per second in each round, float [rounds]: calls finished x batch / wall time."""
    return np.array([len(calls) * batch / wall for calls, wall in zip(rounds, walls, strict=True)])


def medians(rounds: Rounds) -> Array:
    """Median seconds per call of each round, float [rounds]."""
    return np.array([np.median(calls) for calls in rounds])


def noisy(latency_ms: Latency, *ratios: Ratio | None, rounds: int, other_load: float = 0.0) -> bool:
    """Whether the machine was too noisy to call; the rule is `NOISE`, `BUSY` and `FEWEST_ROUNDS`."""
    if rounds < FEWEST_ROUNDS or other_load > BUSY:
        return True
    spans = [(latency_ms.ci_low, latency_ms.p50, latency_ms.ci_high)]
    spans += [(found.ci_low, found.value, found.ci_high) for found in ratios if found is not None]
    return any(max(high - middle, middle - low) > NOISE * middle for low, middle, high in spans)


def summary(
    rounds: Rounds,
    walls: Sequence[float],
    *,
    batch: int,
    streams: int,
    tuning: Tuning,
    baseline: tuple[Rounds, Sequence[float]] | None,
    best_fp32: tuple[Rounds, Sequence[float]] | None,
    other_load: float = 0.0,
) -> Measurement:
    """Everything the manifest says about one variant at one batch size.

    With one stream a speedup is of latency, with several it is of throughput.

    Args:
        rounds: Seconds of every call, per round.
        walls: Wall seconds of each round.
        batch: Samples per call.
        streams: Calls in flight at once.
        tuning: What the runtime was asked for.
        baseline: Rounds and walls of the baseline in the same run; None where it failed.
        best_fp32: The same of the fastest FP32.
        other_load: Share of the cores' time that other processes took, 0-1.
    """

    def over(other: tuple[Rounds, Sequence[float]] | None) -> Ratio | None:
        if other is None:
            return None
        if streams == 1:
            return speedup(other[0], rounds)
        n = min(len(other[0]), len(rounds))
        return ratio(throughput(rounds[:n], walls[:n], batch), throughput(other[0][:n], other[1][:n], batch))

    latency_ms = latency(rounds)
    faster, faster_fp32 = over(baseline), over(best_fp32)
    return Measurement(
        batch=batch,
        streams=streams,
        latency_ms=latency_ms,
        throughput_per_s=float(np.median(throughput(rounds, walls, batch))),
        speedup=faster,
        speedup_over_best_fp32=faster_fp32,
        rounds=len(rounds),
        noisy=noisy(latency_ms, faster, faster_fp32, rounds=len(rounds), other_load=other_load),
        tuning=tuning,
    )


def interval(values: Array) -> Array:
    """Bootstrap interval of the median of independent values, float [2]. The seed is fixed: same values, same interval."""
    rng = np.random.default_rng(SEED)
    resampled = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(resampled, (tail, 1 - tail))
