"""Relative increase of perplexity, and drops of scores: the value by hand, and intervals that cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lowbit.errors import DataError
from lowbit.llm.evaluate.paired_text import compare, compare_scores
from lowbit.llm.evaluate.perplexity import DocumentScore, Perplexity


def perplexity(*documents: np.ndarray, tokens: int = 100) -> Perplexity:
    """From the mean negative log-likelihoods of windows of equal size."""
    scores = [
        DocumentScore(f"d{i}", float(means.sum() * tokens), tokens * len(means), tuple((means * tokens).tolist()), (tokens,) * len(means))
        for i, means in enumerate(documents)
    ]
    count = sum(each.tokens for each in scores)
    mean = sum(each.nll for each in scores) / count
    return Perplexity(math.exp(mean), mean, count, tuple(scores), tokens + 1)


def test_the_value_is_the_relative_increase() -> None:
    random = np.random.default_rng(0)
    base = [random.normal(4, 0.5, 40), random.normal(3, 0.5, 25)]
    worse = [means + random.normal(0.01, 0.02, len(means)) for means in base]
    ours, theirs = perplexity(*base), perplexity(*worse)
    delta = compare(ours, theirs)
    assert delta.value == pytest.approx(theirs.value / ours.value - 1, rel=1e-9)
    assert delta.relative
    assert delta.ci_low < delta.value < delta.ci_high
    assert delta.confidence == 0.95
    assert delta.n == 16  # blocks of 4 windows: 10 and 6
    wider = compare(ours, theirs, confidence=0.99)
    assert wider.ci_high - wider.ci_low > delta.ci_high - delta.ci_low
    better = compare(theirs, ours)
    assert better.value == pytest.approx(1 / (1 + delta.value) - 1)


def test_the_same_model_has_no_change_and_no_doubt() -> None:
    ours = perplexity(np.linspace(2, 5, 50))
    delta = compare(ours, ours)
    assert (delta.value, delta.ci_low, delta.ci_high) == (0, 0, 0)


def test_many_documents_are_resampled_as_documents() -> None:
    random = np.random.default_rng(1)
    base = [random.normal(4, 0.5, 5) for _ in range(30)]
    assert compare(perplexity(*base), perplexity(*[each + 0.01 for each in base])).n == 30


def test_pairing_is_what_makes_a_small_change_visible() -> None:
    """Windows differ by 0.5 nats; a change of 0.004 with a spread of 0.01 is seen in 80 of them all the same."""
    random = np.random.default_rng(2)
    base = random.normal(4, 0.5, 80)
    delta = compare(perplexity(base), perplexity(base + random.normal(0.004, 0.01, 80)))
    assert 0 < delta.ci_low < 0.004 < delta.ci_high < 0.01


def test_other_text_is_refused() -> None:
    ours = perplexity(np.full(9, 4.0))
    with pytest.raises(DataError, match="not evaluated on the same text"):
        compare(ours, perplexity(np.full(8, 4.0)))
    with pytest.raises(DataError, match="not evaluated on the same text"):
        compare(ours, perplexity(np.full(9, 4.0), tokens=50))


def simulated(random: np.random.Generator, windows: int, correlation: float) -> np.ndarray:
    """Changes of windows: heavy tails, and each like the one before it."""
    shocks = random.standard_t(5, windows + 20) * 0.02 * math.sqrt(1 - correlation**2)
    found = np.zeros(windows + 20)
    for i in range(1, len(found)):
        found[i] = correlation * found[i - 1] + shocks[i]
    return found[20:] + 0.01


@pytest.mark.parametrize(("windows", "correlation", "least"), [(120, 0.0, 0.93), (120, 0.3, 0.91), (30, 0.2, 0.91)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(windows: int, correlation: float, least: float) -> None:
    random, hits, runs = np.random.default_rng(3), 0, 400
    base = perplexity(random.normal(4, 0.5, windows))
    means = np.array(base.documents[0].windows) / 100
    for _ in range(runs):
        delta = compare(base, perplexity(means + simulated(random, windows, correlation)))
        hits += delta.ci_low <= math.expm1(0.01) <= delta.ci_high
    assert least <= hits / runs <= 0.99


def test_right_and_wrong_answers_are_compared_by_their_flips() -> None:
    ours, theirs = [1, 1, 1, 0, 0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1, 1, 0, 1, 0]
    delta = compare_scores(ours, theirs)
    assert (delta.worse, delta.better, delta.n, delta.method) == (3, 1, 10, "tango-score")
    assert delta.value == pytest.approx(0.2)
    assert delta.ci_low < 0 < 0.2 < delta.ci_high


def test_partial_credit_is_compared_by_a_bootstrap_of_pairs() -> None:
    random = np.random.default_rng(4)
    ours = random.random(200)
    theirs = np.clip(ours - random.normal(0.05, 0.05, 200), 0, 1)
    delta = compare_scores(ours, theirs)
    assert delta.value == pytest.approx(float((ours - theirs).mean()))
    assert delta.ci_low > 0.03
    assert delta.ci_high < 0.07
    assert delta.method == "paired-bootstrap"
    with pytest.raises(DataError, match="200 and 199"):
        compare_scores(ours, theirs[1:])
