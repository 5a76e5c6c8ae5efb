"""The search along the frontier, in simulated worlds whose damage does not add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from lowbit.compress.allocate import FLOAT, Assignment, Boundary, frontier
from lowbit.compress.mixed import Evidence, corrected, mixed

BUDGET = 0.01


def points(damages: list[float]) -> tuple[Assignment, ...]:
    """A frontier whose point i takes 1 + i / 10 seconds."""
    return tuple(Assignment({"g": str(index)}, damage, 1 + index / 10) for index, damage in enumerate(damages))


def measured(real: list[float]) -> tuple[Callable[[Mapping[str, str]], Evidence], list[int]]:
    """Evidence by position on the frontier, and the list of positions that were asked for."""
    asked: list[int] = []

    def evaluate(formats: Mapping[str, str]) -> Evidence:
        asked.append(int(formats["g"]))
        return Evidence(real[asked[-1]])

    return evaluate, asked


PREDICTED = [0.064, 0.032, 0.016, 0.008, 0.004, 0.002, 0.001, 0.0005]


@pytest.mark.parametrize("answer", range(9))
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 50.0])
def test_any_rising_damage_is_bracketed(answer: int, factor: float) -> None:
    """Wherever the budget is met, and however wrong the prediction is, four evaluations find it among eight points."""
    real = [factor * (answer - index) + BUDGET * (1.5 if index < answer else 0.5) for index in range(8)]
    evaluate, asked = measured(real)
    found = mixed(points(PREDICTED), evaluate, BUDGET, most=4)
    assert len(asked) == len(set(asked)) <= 4
    if answer == 8:
        assert found.chosen is None
        assert found.evidence is None
        assert found.reason == "No point of the frontier holds."
    else:
        assert found.chosen == points(PREDICTED)[answer]
        assert found.evidence == Evidence(real[answer])


def test_a_right_prediction_needs_two_evaluations() -> None:
    evaluate, asked = measured(PREDICTED)
    found = mixed(points(PREDICTED), evaluate, BUDGET)
    assert asked == [3, 2]
    assert found.reason == "The next faster point is over the budget."
    assert found.cost == 2


def test_the_prediction_learns_its_units_from_what_is_known() -> None:
    """All predictions are a hundred times too large, which the known point tells."""
    evaluate, asked = measured(PREDICTED)
    inflated = points([100 * damage for damage in PREDICTED])
    mixed(inflated, evaluate, BUDGET, known=[(0, Evidence(PREDICTED[0]))])
    assert asked == [3, 2]


def test_stops_where_nothing_is_to_be_gained() -> None:
    flat = tuple(Assignment({"g": str(index)}, damage, 1 + index / 1000) for index, damage in enumerate(PREDICTED))
    evaluate, asked = measured([0.5 * damage for damage in PREDICTED])
    found = mixed(flat, evaluate, BUDGET)
    assert asked == [3]
    assert found.reason == "At most 0.3 % of the latency is left to gain."


def test_what_is_left_goes_to_points_between_the_last_two() -> None:
    """Real damage is the predicted one. The budget is met between 0.016 and 0.008; two more points lie there, one of which holds."""
    ends = points([0.064, 0.016, 0.008, 0.001])
    more = (Assignment({"g": "0.011"}, 0.011, 1.14), Assignment({"g": "0.009"}, 0.009, 1.17))
    real = {each.formats["g"]: each.predicted_damage for each in (*ends, *more)}
    asked: list[tuple[Assignment, Assignment]] = []

    def between(fast: Assignment, slow: Assignment) -> tuple[Assignment, ...]:
        asked.append((fast, slow))
        return more if len(asked) == 1 else ()

    def evaluate(formats: Mapping[str, str]) -> Evidence:
        return Evidence(real[formats["g"]])

    found = mixed(ends, evaluate, BUDGET, between=between)
    assert [step.point for step in found.steps] == [ends[2], ends[1], more[1], more[0]]
    assert asked == [(ends[1], ends[2]), (more[0], more[1])]
    assert (found.chosen, found.evidence, found.cost) == (more[1], Evidence(0.009), 4)
    assert found.reason == "The next faster point is over the budget."
    assert mixed(ends, evaluate, BUDGET).chosen == ends[2]

    asked.clear()
    assert mixed(ends, evaluate, BUDGET, most=2, between=between).chosen == ends[2]
    assert not asked


def test_points_between_that_gain_nothing_are_not_asked_for() -> None:
    close = (Assignment({"g": "0"}, 0.02, 1.0), Assignment({"g": "1"}, 0.005, 1.009))
    evaluate, asked = measured([0.02, 0.005])
    known = [(0, Evidence(0.02))]
    found = mixed(close, evaluate, BUDGET, known=known, between=lambda fast, slow: pytest.fail(f"{fast} to {slow}"))
    assert found.chosen == close[1]
    assert asked == [1]


def test_the_fastest_point_may_hold() -> None:
    evaluate, asked = measured([0.0] * 8)
    found = mixed(points(PREDICTED), evaluate, BUDGET, most=9)
    assert found.reason == "The fastest point holds."
    assert found.chosen == points(PREDICTED)[0]
    assert len(asked) <= 4


def test_evaluations_are_counted_and_end() -> None:
    frontier_ = points([0.1 / (index + 1) for index in range(40)])
    evaluate, asked = measured([1.0] * 39 + [0.0])
    found = mixed(frontier_, lambda formats: Evidence(evaluate(formats).damage, cost=0.25), BUDGET, most=3)
    assert (len(asked), found.cost) == (3, 0.75)
    assert found.reason == "The evaluations are used up."
    assert found.chosen is None


def test_correction_goes_through_what_was_seen() -> None:
    found = corrected([8.0, 4.0, 2.0, 1.0, 0.0], {0: Evidence(0.08), 2: Evidence(0.005)}, BUDGET)
    np.testing.assert_allclose(found, [0.08, 0.02, 0.005, 0.0025, 0.0], rtol=1e-9)


def test_correction_never_falls_where_the_prediction_rises() -> None:
    """Noise has made the lesser damage look larger: both get their geometric mean."""
    found = corrected([8.0, 4.0, 2.0], {0: Evidence(0.02), 1: Evidence(0.08)}, BUDGET)
    np.testing.assert_allclose(found, [0.04, 0.04, 0.02], rtol=1e-9)
    assert corrected([2.0, 1.0], {0: Evidence(-0.3)}, BUDGET) == pytest.approx([2e-4, 1e-4])
    assert corrected([2.0, 1.0], {}, BUDGET) == [2.0, 1.0]
    assert corrected([0.0, 0.0], {0: Evidence(1.0)}, BUDGET) == [0.0, 0.0]


# Simulated worlds ---------------------------------------------------------------------------------------------------------


World = tuple[tuple[Assignment, ...], Callable[[Mapping[str, str]], Evidence], dict[int, float]]


@cache
def prediction(seed: int) -> tuple[list[str], dict[tuple[str, str], float], tuple[Assignment, ...]]:
    """Names of groups, their predicted damages, and the frontier of them."""
    rng = np.random.default_rng(seed)
    names = [f"g{index}" for index in range(int(rng.integers(8, 25)))]
    predicted = {(name, "w8a8"): float(rng.lognormal(0, 1.7)) for name in names}
    fast = {name: float(rng.lognormal(0, 1)) for name in names}
    seconds = {(n, "w8a8"): s for n, s in fast.items()} | {(n, FLOAT): s * float(rng.uniform(1, 4)) for n, s in fast.items()}
    costs = [Boundary(a, b, float(rng.uniform(0, 0.3)) * fast[a]) for a, b in pairwise(names)]
    return names, predicted, frontier(predicted, seconds, costs)


def worlds(seed: int, count: int) -> Iterator[World]:
    """Frontiers with their evaluation and the real damage of each point; all of a seed share groups and latencies.

    Damages of groups are lognormal over three orders of magnitude and predicted with an error of 20 %, in unknown units. Together they
    count up to three times more, or less, than their sum: the more of them there are, the further from it. An evaluation adds noise of
    3 % of the budget.
    """
    rng = np.random.default_rng((seed, 1))
    names, predicted, found = prediction(seed)
    for _ in range(count):
        real = {name: predicted[name, "w8a8"] * float(rng.lognormal(0, 0.2)) for name in names}
        total, interaction = sum(real.values()), float(rng.uniform(-1, 1))
        scale = float(rng.uniform(1.2, 6)) * BUDGET / total

        def damage(formats: Mapping[str, str], real=real, total=total, scale=scale, interaction=interaction) -> float:  # type: ignore[no-untyped-def]
            quantized = sum(real[name] for name in names if formats[name] != FLOAT)
            return scale * quantized * 3 ** (interaction * quantized / total)

        def evaluate(formats: Mapping[str, str], damage=damage) -> Evidence:  # type: ignore[no-untyped-def]
            return Evidence(damage(formats) + float(rng.normal(0, 0.03 * BUDGET)))

        yield found, evaluate, {index: damage(point.formats) for index, point in enumerate(found)}


@pytest.mark.parametrize(("known", "mean"), [(True, 3.1), (False, 3.7)])
def test_finds_the_best_point_in_five_evaluations(known: bool, mean: float) -> None:
    """In 95 % of 500 worlds: within the budget (and the noise), and at most 10 % slower than the best point of the frontier that is.

    It helps that the fastest point is known already, as it is when a search calls for recovery.
    """
    good, used = 0, []
    for found, evaluate, real in (each for seed in range(25) for each in worlds(seed, 20)):
        first = [(0, evaluate(found[0].formats))] if known else []
        outcome = mixed(found, evaluate, BUDGET, known=first)
        used.append(len(outcome.steps))
        best = min(found[index].predicted_seconds for index, damage in real.items() if damage <= BUDGET)
        if outcome.chosen is not None:
            point = found.index(outcome.chosen)
            good += real[point] <= 1.05 * BUDGET and outcome.chosen.predicted_seconds <= 1.1 * best
    assert max(used) <= 5
    assert np.mean(used) < mean
    assert good >= 0.95 * 500
