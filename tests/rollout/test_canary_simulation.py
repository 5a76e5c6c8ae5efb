"""What the guardrails promise, by simulation with fixed seeds: healthy candidates stay, bad ones go, however often one looks.

`benchmarks/canary.py` does the same with more runs, and writes the table of the guide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from rollout_evidence import HEALTHY, Traffic, arm
from simulated import EDGES, Arms, arms, failed, first, risen, rolled_back, shifted

from lowbit.measure.compare import BINS, SHIFT_SAMPLES
from lowbit.rollout import sequential
from lowbit.rollout.decide import Look, decide
from lowbit.rollout.evidence import Arm, Evidence
from lowbit.rollout.measures import measured
from lowbit.rollout.plan import Plan
from lowbit.types import Array

PLAN = Plan()
ONE_STEP = Plan(steps=(0.5,))
MINUTES = 60
RATE = 200
"""Requests a minute and arm, at 1 % errors: the case that others are measured by, too."""


def errors(canary: float, *, runs: int = 600, seed: int = 0, share: float = 0.5, base: float = 0.01) -> tuple[Array, Array, Array, Array]:
    """Errors and requests of both arms, [runs, MINUTES]."""
    rng, total = np.random.default_rng(seed), int(RATE / share)
    n_c = rng.binomial(total, share, (runs, MINUTES))
    n_b = total - n_c
    x_b, x_c = rng.binomial(n_b, base), rng.binomial(n_c, canary)
    return x_b.cumsum(axis=1), n_b.cumsum(axis=1), x_c.cumsum(axis=1), n_c.cumsum(axis=1)


# Healthy candidates stay ------------------------------------------------------------------------------------------------


def test_a_healthy_candidate_is_rolled_back_in_two_runs_of_a_hundred_at_most() -> None:
    """All guardrails together, every step that has both arms, 20 looks in each."""
    found = rolled_back(np.random.default_rng(3), PLAN, 200, 20, 3000)
    assert found["all"].mean() <= PLAN.alpha
    assert set(found) == {"errors", "p99", "disagreement", "confidence", "accuracy", "cost", "all"}


def test_repeated_z_tests_would_not_hold_what_these_hold() -> None:
    x_b, n_b, x_c, n_c = errors(0.01, runs=3000)
    pooled = (x_b + x_c) / (n_b + n_c)
    z = (x_c / n_c - x_b / n_b) / np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / n_b + 1 / n_c))
    assert (z > 1.645).any(axis=1).mean() > 0.25
    assert risen(x_b, n_b, x_c, n_c, 0.0, 0.05).any(axis=1).mean() < 0.03


@pytest.mark.parametrize("base", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_errors_keep_their_error_rate_whatever_the_rate_and_the_split(base: float, share: float) -> None:
    found = risen(*errors(base, runs=1500, seed=4, share=share, base=base), 0.0, 0.05)
    assert found.any(axis=1).mean() < 0.05


def test_errors_that_come_in_bursts_are_nobodys_fault() -> None:
    """A minute in ten has fifty times as many errors, in both arms."""
    rng = np.random.default_rng(5)
    burst = np.where(rng.random((1500, MINUTES)) < 0.1, 0.25, 0.005)
    n_c = rng.binomial(20 * RATE, 0.05, (1500, MINUTES))
    n_b = 20 * RATE - n_c
    found = risen(*(each.cumsum(axis=1) for each in (rng.binomial(n_b, burst), n_b, rng.binomial(n_c, burst), n_c)), 0.0, 0.05)
    assert found.any(axis=1).mean() < 0.05


def test_bounds_hold_the_truth_at_all_looks_at_once() -> None:
    rng, alpha = np.random.default_rng(6), 0.1
    x_b, n_b, x_c, n_c = (each[:, ::6] for each in errors(0.03, runs=400, seed=6))
    low, high = sequential.rise_low(x_b, n_b, x_c, n_c, alpha), sequential.rise_high(x_b, n_b, x_c, n_c, alpha)
    assert (low > 0.02).any(axis=1).mean() < alpha
    assert (high < 0.02).any(axis=1).mean() < alpha
    assert (np.median(low[:, -1]), np.median(high[:, -1])) == (pytest.approx(0.0145, abs=0.003), pytest.approx(0.026, abs=0.003))

    each = rng.multinomial(200, np.full(100, 0.01), (400, 40)).cumsum(axis=1)  # uniform on 0..100
    low, high = sequential.quantile_bounds(each, np.arange(1.0, 100.0), 0.9, alpha, alpha)
    assert (low > 90).any(axis=1).mean() < alpha
    assert (high < 90).any(axis=1).mean() < alpha
    assert (np.median(low[:, -1]), np.median(high[:, -1])) == (pytest.approx(89, abs=1), pytest.approx(91, abs=1))

    large = rng.multinomial(500, np.full(100, 0.01), (400, 40)).cumsum(axis=1)[:, 3:]
    n = large.sum(axis=-1)
    off = np.abs(large.cumsum(axis=-1) / n[..., None] - np.arange(1, 101) / 100).max(axis=-1)
    assert (off > sequential.band(n, alpha, SHIFT_SAMPLES)).any(axis=1).mean() < alpha
    z = np.abs(np.cumsum(rng.normal(size=(400, 20_000)), axis=1)) / np.sqrt(np.arange(1, 20_001))
    assert (z > sequential.deviations(np.arange(1, 20_001), 500, alpha)).any(axis=1).mean() < alpha


# Bad ones go ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "minutes", "caught"), [(0.02, 10.5, 0.99), (0.03, 4, 1.0), (0.015, 35, 0.75)])
def test_errors_are_found_as_soon_as_the_yardstick_finds_them(rate: float, minutes: float, caught: float) -> None:
    """One guardrail, one step, 5 %: a mixture e-process is known to find these in 10.5 minutes, 4 minutes, and in 77 % of runs."""
    found = first(risen(*errors(rate), 0.0, 0.05))
    assert np.median(found) <= minutes + 1
    assert np.isfinite(found).mean() >= caught


def test_sharing_the_error_rate_costs_time_and_no_more() -> None:
    """The default plan: five steps, six guardrails, 2 % for all together."""
    alpha = PLAN.alpha_of(PLAN.guardrails[0])
    assert alpha == pytest.approx(0.002)
    assert np.median(first(risen(*errors(0.02), 0.0, alpha))) <= 21
    assert np.median(first(risen(*errors(0.03), 0.0, alpha))) <= 8


@pytest.mark.parametrize(
    ("kind", "canary", "share", "requests"),
    [
        ("p99", Traffic(slower=1.5), 0.01, 2000),
        ("p99", Traffic(slower=2.0), 0.5, 2200),
        ("cost", Traffic(cost=1.3), 0.01, 600),
        ("cost", Traffic(cost=1.3), 0.5, 600),
        ("disagreement", Traffic(disagree=0.10), 0.05, 2500),
        ("accuracy", Traffic(wrong=0.25), 0.05, 4000),
        ("confidence", Traffic(confident=2.0), 0.05, 2400),
    ],
)
def test_a_bad_candidate_goes_after_so_many_answers(kind: str, canary: Traffic, share: float, requests: int) -> None:
    """Its own answers, at the default plan's error rates; a tenth of them is shadowed and labelled."""
    rng, each = np.random.default_rng(7), 200
    (guardrail,) = (guardrail for guardrail in PLAN.guardrails if guardrail.kind == kind)
    both = arms(rng, 40, 30, 1 - share, int(each / share)), arms(rng, 40, 30, share, int(each / share), canary)
    found = first(failed(PLAN, guardrail, *both)) * each
    assert np.median(found) <= requests


@pytest.mark.parametrize("kind", [guardrail.kind for guardrail in PLAN.guardrails if guardrail.tolerance > 0])
def test_what_is_tolerated_is_tolerated(kind: str) -> None:
    """Worse by nearly the tolerance, for ever."""
    close = Traffic(slower=1.19, disagree=0.029, wrong=0.109, cost=1.09, confident=1.4)  # a mean of 0.811 instead of 0.833
    rng = np.random.default_rng(8)
    (guardrail,) = (guardrail for guardrail in PLAN.guardrails if guardrail.kind == kind)
    both = arms(rng, 60, 20, 0.5, 2000), arms(rng, 60, 20, 0.5, 2000, close)
    assert failed(ONE_STEP, guardrail, *both).any(axis=1).mean() <= 0.02


# The rule of five per cent ----------------------------------------------------------------------------------------------


def sure(n: int, runs: int, seed: int) -> Array:
    """Confidences of a healthy version, Beta(6, 1.2) [runs, n]."""
    return np.random.default_rng(seed).beta(6, 1.2, (runs, n))


def binned(values: Array) -> Array:
    return np.stack([np.bincount(np.minimum((row * BINS).astype(int), BINS - 1), minlength=BINS) for row in values])


def moved(values: Array, how: str) -> Array:
    """One of the shifts of the rule's table."""
    rng = np.random.default_rng(9)
    hit = rng.random(values.shape) < 0.05
    changed = {
        "healthy": values,
        "mean -5 %": 0.95 * values,
        "mean -10 %": 0.9 * values,
        "5 % below 0.3": np.where(hit, 0.3 * rng.random(values.shape), values),
        "5 % anywhere": np.where(hit, rng.random(values.shape), values),
        "spread x1.3": np.clip(values.mean() + 1.3 * (values - values.mean()), 0, 1),
    }
    return changed[how]


@pytest.mark.parametrize(
    ("how", "n", "fails", "distance"),
    [
        ("healthy", 500, (0, 0), 0.0),
        ("healthy", 2000, (0, 0), 0.0),
        ("healthy", 20_000, (0, 0), 0.0),
        ("mean -5 %", 1999, (0, 0), 0.197),
        ("mean -5 %", 2000, (0.9, 1), 0.197),
        ("mean -10 %", 2000, (1, 1), 0.385),
        ("spread x1.3", 2000, (0.5, 1), 0.149),
        ("spread x1.3", 5000, (1, 1), 0.149),
        ("5 % below 0.3", 20_000, (0, 0.1), 0.051),
        ("5 % anywhere", 20_000, (0, 0), 0.033),
    ],
)
def test_the_rule_of_five_per_cent(how: str, n: int, fails: tuple[float, float], distance: float) -> None:
    """What is over five per cent fails once there are 2,000 answers; what is just there is not shown to be over it."""
    runs, alpha = 20, PLAN.alpha_of(PLAN.guardrails[3])
    baseline, canary = binned(sure(20_000, runs, 10)), binned(moved(sure(n, runs, 11), how))
    share = float(shifted(baseline, canary, 0.05, alpha).mean())
    assert fails[0] <= share <= fails[1]
    assert float(np.median(sequential.distance(baseline, canary))) == pytest.approx(distance, abs=0.02 + 0.6 / math.sqrt(n))


# The same as one by one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "canary", [HEALTHY, Traffic(errors=0.03), Traffic(slower=1.6, confident=1.6), Traffic(wrong=0.3, cost=1.2, disagree=0.12)]
)
def test_decisions_are_what_is_simulated(canary: Traffic) -> None:
    rng = np.random.default_rng(12)
    both: tuple[Arms, Arms] = arms(rng, 3, 12, 0.75, 2000), arms(rng, 3, 12, 0.25, 2000, canary)
    expected = {guardrail.kind: failed(PLAN, guardrail, *both) for guardrail in PLAN.guardrails}
    for run, look in np.ndindex(3, 12):
        if look % 3:
            continue
        decision = decide(PLAN, Look(2, 1.0, Evidence(*(each.at(run, look) for each in both))))
        for verdict in decision.verdicts:
            assert (verdict.verdict == "fail") == expected[verdict.guardrail][run, look], verdict
        assert (decision.action == "rollback") == any(bool(each[run, look]) for each in expected.values())


def test_p99_and_confidence_share_their_error_rate_over_what_must_hold() -> None:
    """Two arms' quantiles; two rules with two bands, and one mean."""
    rng, alpha, beta = np.random.default_rng(13), 0.004, 0.1
    ours, theirs = arms(rng, 1, 8, 0.5, 4000), arms(rng, 1, 8, 0.5, 4000, Traffic(slower=1.5, confident=2.0))
    pair = ours.at(0, 7), theirs.at(0, 7)
    (low_b, low_c), (high_b, high_c) = sequential.quantile_bounds(
        np.array([each.seconds for each in pair]), EDGES, 0.99, alpha / 2, alpha / 2
    )
    (low_b, _), (_, high_c) = sequential.quantile_bounds(np.array([each.seconds for each in pair]), EDGES, 0.99, beta / 2, beta / 2)
    found = measured("p99", *pair, alpha, beta)
    assert (found.low, found.high) == (pytest.approx(low_c / high_b - 1), pytest.approx(high_c / low_b - 1))
    counts = [np.array(each.confidence) for each in pair]
    apart = float(sequential.distance(*counts))
    found = measured("confidence", *pair, alpha, beta)
    assert found.high == pytest.approx(apart + sum(sequential.band(each.sum(), beta / 2, SHIFT_SAMPLES) for each in counts))
    found = measured("confidence", *pair, 0.2, beta)
    assert found.low == pytest.approx(apart - sum(sequential.band(each.sum(), 0.05, SHIFT_SAMPLES) for each in counts))


def test_each_arms_p99_has_half_of_the_error_rate() -> None:
    """At many error rates, since a bin's width hides most of what halving one changes."""
    rng = np.random.default_rng(13)
    pair = arm(rng, 3000), arm(rng, 3000)
    seconds, rates = np.array([each.seconds for each in pair]), np.geomspace(0.3, 1e-4, 60)
    halved, whole = ([sequential.quantile_bounds(seconds, EDGES, 0.99, rate / part, rate / part) for rate in rates] for part in (2, 1))
    assert [measured("p99", *pair, rate, 0.05).low for rate in rates] == pytest.approx([low[1] / high[0] - 1 for low, high in halved])
    for bound in (0, 1):  # the candidate's lower one, the champion's upper one
        assert any(one[bound][1 - bound] != two[bound][1 - bound] for one, two in zip(halved, whole, strict=True)), (
            "else this shows nothing"
        )


def test_a_shift_is_shown_from_2000_answers_of_each_arm_on() -> None:
    many, few = (tuple([0] * 200 + [n] * 2 + [0] * (BINS - 202)) for n in (500_000, 990))
    low, lower = tuple([0] * 100 + [990] * 2 + [0] * (BINS - 102)), tuple([0] * 100 + [1010] * 2 + [0] * (BINS - 102))
    assert measured("confidence", Arm(confidence=many), Arm(confidence=low), 0.001, 0.05).low is None
    assert measured("confidence", Arm(confidence=few), Arm(confidence=lower), 0.001, 0.05).low is None
    assert (measured("confidence", Arm(confidence=many), Arm(confidence=lower), 0.001, 0.05).low or 0.0) > 0.4


def test_edges_are_where_they_are_said_to_be() -> None:
    assert (EDGES[0], EDGES[-1] > 30) == (1e-4, True)
    assert np.diff(np.log(EDGES)).max() < math.log(1.02)
