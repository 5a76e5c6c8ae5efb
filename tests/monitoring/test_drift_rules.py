"""The rule of 5 %: how often it is wrong when nothing happened, and what it finds. Simulated, with fixed seeds.

The yardstick (200 repeats, a baseline of 20,000): P(false alarm) of the distance at n = 500 / 1,000 / 2,000: 0.16 / 0.015 / 0.00, of the
relative mean 0 everywhere; and values for four kinds of trouble at n = 2,000.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import BASELINE_N, Draw, anything, counts, doubtful, lower, normal, wider

from lowbit.monitoring import drift
from lowbit.monitoring.drift import Shift, confidence, low_tail, shift

REPEATS = 200


@cache
def shifts(draw: Draw, n: int, *, baseline_n: int = BASELINE_N, repeats: int = REPEATS, seed: int = 7) -> list[Shift]:
    rng = np.random.default_rng(seed)
    found = [shift(counts(draw(rng, n)), counts(normal(rng, baseline_n))) for _ in range(repeats)]
    return [each for each in found if each is not None]


def share(found: list[Shift], rule: object) -> float:
    assert callable(rule)
    return float(np.mean([rule(each).review for each in found]))


@pytest.mark.parametrize(("n", "low", "high"), [(500, 0.10, 0.20), (1_000, 0.003, 0.03), (2_000, 0.0, 0.0)])
def test_chance_alone_moves_the_distance_as_much_as_is_known(n: int, low: float, high: float) -> None:
    """The bare distance: at 500 rows it is over the limit in a sixth of all windows, at 2,000 never. That is why the rule wants 2,000."""
    found = shifts(normal, n)
    assert low <= np.mean([each.ks > 0.05 for each in found]) <= high
    assert all(abs(each.relative_mean) < 0.05 for each in found)


@pytest.mark.parametrize("n", [500, 1_999, 2_000, 5_000])
def test_no_false_alarm_at_any_size(n: int) -> None:
    found = shifts(normal, n)
    assert share(found, confidence) == 0
    assert share(found, low_tail) <= 0.005


def test_few_samples_in_the_baseline_are_no_reason_for_an_alarm() -> None:
    """With 1,000 of them the distance of 2,000 healthy rows is over 0.05 in one window of twenty; the rule knows that it means nothing."""
    found = shifts(normal, 2_000, baseline_n=1_000)
    assert np.mean([each.ks > 0.05 for each in found]) > 0.03
    assert share(found, confidence) == 0
    assert "too few" in confidence(max(found, key=lambda each: each.ks)).text


def test_few_samples_bound_the_tail_badly() -> None:
    """With 500 in the baseline its 5th percentile is not known to 2 points: the rise has to be three standard errors, too."""
    found = shifts(normal, 2_000, baseline_n=500)
    assert np.mean([each.low_tail > each.baseline_low_tail + 0.02 for each in found]) > 0.015
    assert share(found, low_tail) <= 0.005


@pytest.mark.parametrize(
    ("draw", "ks", "w1", "relative", "by_confidence", "by_tail"),
    [
        (lower, 0.197, 0.0417, 0.049, 1.0, 0.32),
        (doubtful, 0.051, 0.034, 0.041, 0.72, 1.0),
        (anything, 0.033, 0.017, 0.020, 0.025, 0.86),
        (wider, 0.149, None, 0.004, 1.0, 1.0),
    ],
    ids=["mean -5 %", "5 % of traffic below 0.3", "5 % of traffic anywhere", "spread x1.3"],
)
def test_what_the_rules_find(draw: Draw, ks: float, w1: float | None, relative: float, by_confidence: float, by_tail: float) -> None:
    """Values as the yardstick has them, and how often each rule sees the trouble in one window of 2,000 rows."""
    found = shifts(draw, 2_000)
    assert np.median([each.ks for each in found]) == pytest.approx(ks, abs=0.012)
    assert abs(np.median([each.relative_mean for each in found])) == pytest.approx(relative, abs=0.005)
    if w1 is not None:
        assert np.median([each.w1 for each in found]) == pytest.approx(w1, abs=0.005)
    for rule, expected in ((confidence, by_confidence), (low_tail, by_tail)):
        assert share(found, rule) == pytest.approx(expected, abs=0.02)


def test_the_tail_finds_what_the_distance_misses() -> None:
    """A twentieth of the traffic at any confidence: the rule of 5 % hardly ever sees it, the tail does, surely with 4,000 rows."""
    found = shifts(anything, 2_000)
    assert share(found, confidence) <= 0.05
    assert share(found, low_tail) > 0.75
    assert share(shifts(anything, 4_000, repeats=200), low_tail) > 0.9


def test_both_rules_together_find_the_twentieth_that_doubts() -> None:
    found = shifts(doubtful, 2_000)
    assert 0.3 < share(found, confidence) < 0.8, "the distance is at its limit there"
    assert share(found, low_tail) == 1


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3_000))
def test_a_histogram_has_no_distance_to_itself(seed: int, n: int) -> None:
    values = counts(normal(np.random.default_rng(seed), n))
    found = shift(values, values)
    assert found is not None
    assert (found.ks, found.w1, found.relative_mean) == (0, 0, 0)
    assert found.low_tail == found.baseline_low_tail <= drift.TAIL
    assert not confidence(found).review
    assert not low_tail(found).review


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1_000))
def test_distances_are_those_of_the_samples(seed: int) -> None:
    """Exact to the width of a bin: checked against the sorted values themselves."""
    from scipy.stats import ks_2samp, wasserstein_distance

    rng = np.random.default_rng(seed)
    ours, theirs = normal(rng, 800), lower(rng, 700)
    found = shift(counts(theirs), counts(ours))
    assert found is not None
    assert found.ks <= ks_2samp(ours, theirs).statistic + 1e-12
    assert found.w1 == pytest.approx(wasserstein_distance(ours, theirs), abs=1 / 256)
    assert found.relative_mean == pytest.approx(theirs.mean() / ours.mean() - 1, abs=1 / 128)


def test_an_empty_window_says_nothing() -> None:
    assert shift((0,) * 256, counts(normal(np.random.default_rng(0), 100))) is None
    assert shift(counts(normal(np.random.default_rng(0), 100)), (0,) * 256) is None


def test_a_certain_model_has_no_low_tail_to_compare() -> None:
    """All answers in one bin: the 5th percentile lies in it, and nothing is below."""
    same = (0,) * 255 + (5_000,)
    found = shift(same, same)
    assert found is not None
    assert (found.low_tail, found.tail_edge) == (0, 255 / 256)
    moved = shift((200,) + (0,) * 254 + (4_800,), same)
    assert moved is not None
    assert low_tail(moved).review, "4 % that were never seen before are more than 2 points"


def test_small_windows_say_how_much_is_missing() -> None:
    (found,) = shifts(lower, 100, repeats=1)
    finding = confidence(found)
    assert not finding.review
    assert "100 rows; the rule needs 2,000" in finding.text
