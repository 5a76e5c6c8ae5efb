"""The integer program against trying everything, on random small instances."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.compress.allocate import FLOAT, Assignment, Boundary, allocate, between, domain, frontier, least_damage
from lowbit.errors import UsageError

FORMATS = ("w4a8", "w8a8", "w8a16", FLOAT)
TOLERANCE = 1e-4  # HiGHS accepts 1e-7 of the scaled sums; the tie-breaker weighs 1e-6

Problem = tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], list[Boundary]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to five groups in a row with a shortcut or two; floating point harms nothing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = [f"g{index}" for index in range(draw(st.integers(1, 5)))]
    formats = [*draw(st.lists(st.sampled_from(FORMATS[:3]), min_size=1, max_size=3, unique=True)), FLOAT]
    unit = 10.0 ** draw(st.integers(-7, 2))
    damage = {(g, f): 0.0 if f == FLOAT else unit * rng.lognormal(0, 1.5) for g in groups for f in formats}
    seconds = {(g, f): 1e-5 * rng.lognormal(1.0 if f == FLOAT else 0.0, 0.5) for g in groups for f in formats}
    pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :] if b == groups[i + 1] or rng.random() < 0.2]
    return damage, seconds, [Boundary(a, b, 1e-5 * rng.lognormal(-1, 1)) for a, b in pairs]


def everything(problem: Problem) -> list[tuple[float, float]]:
    """(damage, seconds) of all assignments."""
    damage, seconds, boundaries = problem
    groups = sorted({group for group, _ in seconds})
    formats = sorted({form for _, form in seconds})
    found = []
    for choice in product(formats, repeat=len(groups)):
        chosen = dict(zip(groups, choice, strict=True))
        crossed = sum(b.seconds for b in boundaries if domain(chosen[b.first]) != domain(chosen[b.second]))
        found.append((sum(damage[pair] for pair in chosen.items()), crossed + sum(seconds[pair] for pair in chosen.items())))
    return found


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(0, 1.2))
def test_equals_trying_everything(problem: Problem, share: float) -> None:
    all_ = everything(problem)
    most = max(each[0] for each in all_)
    budget = share * most
    found = allocate(*problem, budget)
    best = min(seconds for damage, seconds in all_ if damage <= budget)
    loose = min(seconds for damage, seconds in all_ if damage <= budget + TOLERANCE * most)
    assert found.predicted_damage <= budget + TOLERANCE * most
    assert loose * (1 - TOLERANCE) <= found.predicted_seconds <= best * (1 + TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(problems(), st.floats(0, 1))
def test_the_dual_equals_trying_everything(problem: Problem, share: float) -> None:
    all_ = everything(problem)
    low, high = (end(each[1] for each in all_) for end in (min, max))
    limit = low + share * (high - low)
    found = least_damage(*problem, limit * (1 + 1e-9))
    most = max(each[0] for each in all_)
    assert found.predicted_seconds <= limit * (1 + TOLERANCE)
    assert found.predicted_damage <= min(damage for damage, seconds in all_ if seconds <= limit) + TOLERANCE * most


@settings(max_examples=15, deadline=None)
@given(problems())
def test_a_larger_budget_is_never_slower(problem: Problem) -> None:
    most = sum(problem[0].values())
    seconds = [allocate(*problem, share * most).predicted_seconds for share in (0, 0.01, 0.1, 0.3, 1)]
    assert all(later <= earlier * (1 + TOLERANCE) for earlier, later in pairwise(seconds))


@settings(max_examples=15, deadline=None)
@given(problems())
def test_no_point_of_the_frontier_is_beaten(problem: Problem) -> None:
    found = frontier(*problem)
    assert 1 <= len(found) <= 12
    all_ = everything(problem)
    most = max(each[0] for each in all_)
    for point in found:
        better = [d for d, s in all_ if s <= point.predicted_seconds * (1 - TOLERANCE) and d < point.predicted_damage - TOLERANCE * most]
        assert not better
    for faster, slower in pairwise(found):
        assert faster.predicted_damage > slower.predicted_damage
        assert faster.predicted_seconds <= slower.predicted_seconds * (1 + TOLERANCE)
    assert found[-1].predicted_damage == 0


@settings(max_examples=10, deadline=None)
@given(problems())
def test_points_between_lie_between_and_nothing_beats_them(problem: Problem) -> None:
    ends = frontier(*problem, points=2)
    found = between(*problem, ends[0], ends[-1], points=4)
    assert len(found) <= 4
    for faster, slower in pairwise((ends[0], *found, *ends[1:])):
        assert faster.predicted_damage > slower.predicted_damage
        assert faster.predicted_seconds <= slower.predicted_seconds * (1 + TOLERANCE)
    all_ = everything(problem)
    most = max(each[0] for each in all_)
    for point in found:
        assert point.predicted_damage <= TOLERANCE * most + min(d for d, s in all_ if s <= point.predicted_seconds * (1 - TOLERANCE))


def test_between_by_hand() -> None:
    """Four groups alike but for their damage: between none and all in floating point lie one, two and three, the worst first."""
    damage = {(g, "w8a8"): value for g, value in zip("abcd", (1.0, 2.0, 4.0, 8.0), strict=True)}
    seconds = {(g, f): 1.0 if f == "w8a8" else 2.0 for g in "abcd" for f in ("w8a8", FLOAT)}
    fast, slow = frontier(damage, seconds, [], points=2)
    found = between(damage, seconds, [], fast, slow)
    assert [each.predicted_damage for each in found] == pytest.approx([7.0, 3.0, 1.0])
    assert [each.predicted_seconds for each in found] == pytest.approx([5.0, 6.0, 7.0])
    assert between(damage, seconds, [], found[0], found[1]) == ()


def line(boundary: float) -> Problem:
    """Three groups; the middle one is the only one that floating point would help."""
    damage = {("a", "w8a8"): 0.0, ("b", "w8a8"): 1.0, ("c", "w8a8"): 0.1}
    seconds = {(g, f): 1.0 if f == "w8a8" else 2.0 for g in "abc" for f in ("w8a8", FLOAT)}
    return damage, seconds, [Boundary("a", "b", boundary), Boundary("b", "c", boundary)]


def test_values_by_hand() -> None:
    assert allocate(*line(0.1), 0.5) == Assignment({"a": "w8a8", "b": FLOAT, "c": "w8a8"}, 0.1, pytest.approx(4.2))
    # Each boundary costs more than c gains from integers: c follows b; a does so from 1 s on as well.
    assert allocate(*line(1.1), 0.5).formats == {"a": FLOAT, "b": FLOAT, "c": FLOAT}
    assert allocate(*line(0.1), 1.1).formats == {"a": "w8a8", "b": "w8a8", "c": "w8a8"}


def test_weights_of_other_width_cross_no_boundary() -> None:
    seconds = {(g, f): s for g in "ab" for f, s in (("w4a8", 1.0), ("w8a8", 1.1), ("w8a16", 1.1))}
    damage = {("a", "w4a8"): 5.0, ("b", "w4a8"): 0.0, ("a", "w8a8"): 1.0, ("a", "w8a16"): 0.9, ("b", "w8a8"): 0.0}
    found = allocate(damage, seconds, [Boundary("a", "b", 0.5)], 2.0)
    assert found.formats == {"a": "w8a8", "b": "w4a8"}
    assert found.predicted_seconds == pytest.approx(2.1)


def test_what_cannot_be_met_is_refused() -> None:
    damage, seconds, boundaries = line(0.1)
    only = {pair: value for pair, value in seconds.items() if pair[1] != FLOAT}
    with pytest.raises(UsageError, match=r"at most 0\.5 of damage"):
        allocate(damage, only, boundaries, 0.5)


def test_one_point_where_floating_point_is_fastest() -> None:
    damage, seconds, boundaries = line(0.1)
    slow = {pair: 3.0 if pair[1] == "w8a8" else value for pair, value in seconds.items()}
    (only,) = frontier(damage, slow, boundaries)
    assert set(only.formats.values()) == {FLOAT}
