"""The gate's promise, simulated: choosing the best of twenty candidates must not fool it, and what is right must ship.

Each trial draws per-sample outcomes of a baseline and twenty candidates on searching and confirming samples, and runs
the real compare → select_finalists → compare on the confirming samples → decide. The naive gates beside it show that
the test can fail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowbit.measure.compare import compare
from lowbit.measure.metrics import metric_for
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline.decide import decide
from lowbit.pipeline.finalists import select_finalists
from lowbit.types import Budget, Candidate, Latency, Measurement, Policy, Ratio, TensorInfo, Tuning

TRIALS = 1000
CANDIDATES = 20
POLICY = Policy("classification", "top1", Budget.parse("1pp"), batch=(1,))
METRIC = metric_for("classification", "top1", [TensorInfo("logits", ("N", 10), "float32")], np.arange(10))[1]
BASELINE = Candidate("baseline", "fp32", "onnxruntime", "fp32", size_bytes=100_000_000)


def timed(speedup: float) -> tuple[Measurement, ...]:
    latency = Latency(10 / speedup, 11 / speedup, 12 / speedup, 9.9 / speedup, 10.1 / speedup)
    return (Measurement(1, 1, latency, 100 * speedup, Ratio(speedup, speedup * 0.99, speedup * 1.01), None, 15, False, Tuning()),)


FIELD = [
    Candidate(f"int8-{i:02}@onnxruntime", f"int8-{i:02}", "onnxruntime", "int8", size_bytes=25_000_000, measurements=timed(1.5 + 0.1 * i))
    for i in range(CANDIDATES)
]


def draw(rng: np.random.Generator, n: int, drop: float, flips: float) -> tuple[Outcomes, list[Outcomes]]:
    """A baseline that is right on 85 % of n samples, and candidates that lose `drop` of all samples net of `flips` both ways.

    The candidates share half of their flips: variants of one model err on the same samples.
    """
    right = rng.random(n) < 0.85
    lose, win = (flips + drop) / 0.85, flips / 0.15
    common = rng.random(n)
    candidates = []
    for _ in range(CANDIDATES):
        luck = np.where(rng.random(n) < 0.5, common, rng.random(n))
        candidates.append(Outcomes({"hit": np.where(right, luck >= lose, luck < win)}))
    return Outcomes({"hit": right}), candidates


def trial(rng: np.random.Generator, drop: float, n: int, flips: float = 0.01) -> tuple[str, bool, bool]:
    """Verdict of the gate; whether two naive gates would ship: by point estimate, and by an interval of the winner alone."""
    baseline, searched = draw(rng, n, drop, flips)
    found = [compare(METRIC, baseline, outcomes, POLICY) for outcomes in searched]
    tried = {entry.id: replace(entry, search=comparison) for entry, comparison in zip(FIELD, found, strict=True)}
    finalists = select_finalists(list(tried.values()), POLICY)
    baseline, confirming = draw(rng, n, drop, flips)
    for name in finalists:
        comparison = compare(METRIC, baseline, confirming[list(tried).index(name)], POLICY, alpha_share=1 / len(finalists))
        tried[name] = replace(tried[name], confirm=comparison)
    decision = decide(BASELINE, list(tried.values()), POLICY)
    point = any(comparison.delta.value <= POLICY.max_drop.value for comparison in found)
    interval = any(comparison.delta.ci_high <= POLICY.max_drop.value for comparison in found)
    return decision.verdict, point, interval


def shares(seed: int, drop: float, n: int, trials: int) -> tuple[float, float, float]:
    """Share of trials in which the gate ships, and in which the two naive ones do."""
    rng = np.random.default_rng(seed)
    results = [trial(rng, drop, n) for _ in range(trials)]
    return tuple(np.mean([[verdict == "ship", point, interval] for verdict, point, interval in results], axis=0))  # type: ignore[return-value]


@pytest.mark.slow
def test_gate_ships_at_most_one_in_twenty_searches_of_candidates_just_over_budget():
    ship, point, interval = shares(seed=1, drop=0.0101, n=2000, trials=TRIALS)
    assert ship <= 0.05
    # What this guards against: the same trials under gates without confirmation.
    assert point >= 0.90
    assert interval >= 0.10


def test_gate_ships_what_loses_nothing_given_enough_samples():
    ship, _, _ = shares(seed=2, drop=0.0, n=5000, trials=TRIALS)
    assert ship >= 0.90


def test_gate_with_few_samples_says_provisional_and_not_ship():
    rng = np.random.default_rng(3)
    verdicts = [trial(rng, drop=0.0, n=150)[0] for _ in range(100)]
    assert verdicts.count("provisional") >= 70
    assert verdicts.count("ship") <= 25
