from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from lowbit.measure.intervals import LARGE, RESAMPLES, bootstrap_bounds, bootstrap_counts, holm, holm_intervals, tango


@pytest.mark.parametrize(
    ("worse", "better", "n", "alpha", "low", "high"),
    [
        # As published for R's PropCIs::scoreci.mp and ratesci (Tango's method by other authors).
        (28, 25, 618, 0.10, -0.0148, 0.0247),
        (1, 7, 21, 0.05, -0.517, -0.026),
    ],
)
def test_tango_published_values(worse, better, n, alpha, low, high):
    found = tango(worse, better, n, alpha)
    assert found == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(("worse", "better", "n"), [(0, 0, 50), (5, 1, 40), (12, 9, 1000), (0, 7, 30), (30, 0, 60)])
def test_tango_ends_solve_the_score_equation_with_a_brute_force_likelihood(worse, better, n):
    """At each end the score statistic is z, with the nuisance maximised numerically instead of by Tango's formula."""

    def statistic(delta: float) -> float:
        def negative_likelihood(q: float) -> float:  # q = P(better), q + delta = P(worse)
            cells = ((worse, q + delta), (better, q), (n - worse - better, 1 - 2 * q - delta))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = float(minimize_scalar(negative_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
        return (worse - better - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))

    low, high = tango(worse, better, n, 0.05)
    z = norm.ppf(0.975)
    assert statistic(low) == pytest.approx(z, abs=2e-2)
    assert statistic(high) == pytest.approx(-z, abs=2e-2)


def test_tango_without_discordant_pairs_keeps_the_width_of_a_score_interval():
    z2 = norm.ppf(0.975) ** 2
    low, high = tango(0, 0, 100, 0.05)
    assert high == pytest.approx(z2 / (100 + z2), abs=1e-6)
    assert low == pytest.approx(-high, abs=1e-9)


def test_tango_upper_end_covers_as_promised_by_exact_enumeration():
    """P(upper end below the true difference), summed over all outcomes; the gate rests on this end."""
    n, p_worse, p_better = 150, 0.03, 0.02
    missed = 0.0
    for worse in range(25):
        for better in range(25):
            if tango(worse, better, n, 0.05)[1] < p_worse - p_better:
                missed += binom.pmf(worse, n, p_worse) * binom.pmf(better, n - worse, p_better / (1 - p_worse))
    assert 0.005 < missed < 0.035


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_tango_contains_the_estimate_and_mirrors(pair, data):
    n, worse = pair
    better = data.draw(st.integers(0, n - worse))
    low, high = tango(worse, better, n, 0.05)
    assert -1 <= low <= (worse - better) / n + 1e-9
    assert (worse - better) / n - 1e-9 <= high <= 1
    assert tango(better, worse, n, 0.05) == pytest.approx((-high, -low), abs=1e-9)
    wider = tango(worse, better, n, 0.01)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9


def test_tango_of_nothing_is_everything():
    assert tango(0, 0, 0) == (-1.0, 1.0)


def test_bootstrap_counts_are_resamples_and_repeatable():
    counts = np.concatenate(list(bootstrap_counts(37)))
    assert counts.shape == (RESAMPLES, 37)
    assert (counts.sum(axis=1) == 37).all()
    assert np.array_equal(counts, np.concatenate(list(bootstrap_counts(37))))
    assert not np.array_equal(counts, np.concatenate(list(bootstrap_counts(37, seed=1))))
    assert counts.var() == pytest.approx(1 - 1 / 37, rel=0.02)


@pytest.mark.parametrize("n", [500, LARGE])
def test_bootstrap_bounds_of_a_mean_are_its_normal_interval(n):
    x = np.random.default_rng(0).exponential(size=n)
    resampled = np.concatenate([counts @ x / n for counts in bootstrap_counts(n)])
    low, high = bootstrap_bounds(x.mean(), resampled, n, 0.05)
    half = 1.96 * x.std() / math.sqrt(n)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert low < x.mean() < high


def test_bootstrap_bounds_cover_with_few_samples():
    """Plain percentiles cover the mean of ten samples nine times in ten; expanded ones come near 95 %."""
    rng = np.random.default_rng(0)
    counts = np.concatenate(list(bootstrap_counts(10))) / 10
    expanded, plain = [], []
    for _ in range(3000):
        x = rng.normal(size=10)
        low, high = bootstrap_bounds(x.mean(), counts @ x, 10, 0.05)
        expanded.append(low <= 0 <= high)
        low, high = np.quantile(counts @ x, [0.025, 0.975])
        plain.append(low <= 0 <= high)
    assert np.mean(plain) < 0.91
    assert np.mean(expanded) > 0.925


def test_bootstrap_bounds_with_thin_tails_go_on_beyond_the_resamples():
    x = np.random.default_rng(0).normal(size=200)
    resampled = np.concatenate([counts @ x / 200 for counts in bootstrap_counts(200)])
    low, high = bootstrap_bounds(x.mean(), resampled, 200, 1e-6)
    assert high - x.mean() == pytest.approx(4.9 * x.std() / math.sqrt(200), rel=0.1)
    assert low < bootstrap_bounds(x.mean(), resampled, 200, 0.01)[0]


def test_bootstrap_bounds_of_one_sample_say_nothing():
    assert bootstrap_bounds(1.0, np.ones(RESAMPLES), 1) == (-math.inf, math.inf)


def test_holm_is_between_bonferroni_and_nothing():
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.04]) == [True, True, True]  # Bonferroni would reject the first alone
    assert holm([0.02, 0.02, 0.02]) == [False, False, False]
    assert holm([]) == []


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8))
def test_holm_intervals_decide_as_holm_on_p_values(p_values):
    """An interval whose low end passes its limit exactly when p <= alpha."""
    intervals = [lambda alpha, p=p: ((1.0 if p <= alpha else -1.0), 2.0) for p in p_values]
    found = holm_intervals(intervals, [0.0] * len(p_values), 0.05)
    assert [low > 0 for (low, _), _ in found] == holm(p_values, 0.05)


def test_holm_intervals_start_with_bonferroni():
    found = holm_intervals([lambda alpha: (-alpha, alpha)] * 4, [1.0] * 4, 0.05)
    assert [share for _, share in found] == [0.0125] * 4
    assert holm_intervals([], [], 0.05) == []
