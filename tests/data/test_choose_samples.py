"""Choosing samples: shares, what each method promises, the same answer for a seed, flat memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.data.selection import METHODS, choose, cluster, farthest, nearest_distance, quotas, strata_of
from lowbit.errors import UsageError


def blobs(sizes: tuple[int, ...] = (200, 80, 20), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around far-apart centres, and which centre each has."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.normal(size=(len(centre), 3)) + 50 * centre[:, None]).astype(np.float32), centre


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_is_n_different_positions_and_the_same_for_a_seed(method: str) -> None:
    points, centre = blobs()
    for strata in (None, centre):
        chosen = choose(points, 37, method, strata=strata, seed=3)
        assert len(np.unique(chosen)) == 37
        assert (np.diff(chosen) > 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < 300
        np.testing.assert_array_equal(chosen, choose(points, 37, method, strata=strata, seed=3))
    assert (choose(points, 37, method, seed=3) != choose(points, 37, method, seed=4)).any()
    np.testing.assert_array_equal(choose(points, 300, method), np.arange(300))
    assert len(choose(points, 1, method)) == 1


def test_clusters_find_each_group_once() -> None:
    points, centre = blobs()
    chosen = choose(points, 3, "clusters")
    assert centre[chosen].tolist() == [0, 1, 2]
    for position in chosen:  # the middle one, not any one
        group = points[centre == centre[position]]
        away = np.linalg.norm(group - group.mean(axis=0), axis=1)
        assert np.linalg.norm(points[position] - group.mean(axis=0)) == pytest.approx(away.min(), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_within_twice_the_best_radius(seed: int) -> None:
    """Gonzalez' bound, against the best pair of all."""
    points = np.random.default_rng(seed).normal(size=(30, 2)).astype(np.float32)
    table = np.linalg.norm(points[:, None] - points[None], axis=2)
    best = min(np.minimum(table[a], table[b]).max() for a in range(30) for b in range(a))
    found = nearest_distance(points, points[choose(points, 2, "k-center", seed=seed)]).max()
    assert best - 1e-5 <= found <= 2 * best + 1e-5


def test_mixed_keeps_an_edge_case_that_clusters_pass_over() -> None:
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    points[123] = 12.0
    points[321] = -9.0
    points[321, 0] = 9.0
    assert {123, 321} <= set(choose(points, 16, "mixed").tolist())
    assert {123, 321} <= set(choose(points, 16, "k-center").tolist())
    assert not {123, 321} <= set(choose(points, 16, "random").tolist())


def test_herding_keeps_the_mean_better_than_chance() -> None:
    points = np.random.default_rng(0).gamma(1.0, size=(1000, 4)).astype(np.float32)

    def error(method: str, seed: int) -> float:
        return float(np.linalg.norm(points[choose(points, 20, method, seed=seed)].mean(axis=0) - points.mean(axis=0)))  # type: ignore[arg-type]

    herding, random = ([error(method, seed) for seed in range(8)] for method in ("herding", "random"))
    assert np.mean(herding) < 0.7 * np.mean(random)


def test_farthest_takes_the_farthest_from_all_taken() -> None:
    line = np.array([[0.0], [1.0], [2.0], [7.0], [10.0]], np.float32)
    assert farthest(line, 3, np.array([0])).tolist() == [4, 3, 2]
    same = np.zeros((4, 2), np.float32)
    assert sorted(farthest(same, 3, np.array([1])).tolist()) == [0, 2, 3]


def test_points_that_coincide_are_still_different_samples() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    for method in METHODS:
        assert len(np.unique(choose(points, 12, method))) == 12


def test_nearest_distance_is_the_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 5)).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    expected = np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1)
    np.testing.assert_allclose(nearest_distance(a, b, width=8), expected, atol=1e-5)


def test_strata_get_their_shares() -> None:
    points, centre = blobs((150, 100, 50))
    for method in ("clusters", "k-center", "herding", "random"):
        assert np.bincount(centre[choose(points, 30, method, strata=centre)]).tolist() == [15, 10, 5]
    # A quarter of a mixed choice goes to edge cases, wherever they are.
    assert (np.bincount(centre[choose(points, 40, "mixed", strata=centre)]) >= [15, 10, 5]).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_quotas_are_fair(sizes: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, sum(sizes)))
    found = quotas(sizes, n, seed=data.draw(st.integers(0, 3)))
    assert sum(found) == n
    assert all(0 <= share <= size for share, size in zip(found, sizes, strict=True))
    if n >= len(sizes):
        assert min(found) >= 1
    else:
        assert max(found) == 1
        assert min(size for size, share in zip(sizes, found, strict=True) if share) >= max(
            [size for size, share in zip(sizes, found, strict=True) if not share]
        )


def test_quotas_are_in_proportion() -> None:
    assert quotas([600, 300, 100], 10) == [6, 3, 1]
    assert quotas([996, 2, 2], 10) == [8, 1, 1]
    assert quotas([5, 5], 10) == [5, 5]
    assert quotas([55, 30, 15], 7) == [4, 2, 1]  # 3.85, 2.1, 1.05
    assert quotas([50, 45, 3, 2], 10) == [4, 4, 1, 1]  # 5, 4.5, and one each for 0.3 and 0.2


def test_strata_combine_columns() -> None:
    label, light = np.array([0, 0, 1, 1, 1]), np.array(["day", "night", "day", "day", "night"])
    found = strata_of([label, light])
    assert found is not None
    assert len(np.unique(found)) == 4
    assert found[2] == found[3]
    fractions = strata_of([np.arange(100) / 7.0])
    assert fractions is not None
    assert np.bincount(fractions).tolist() == [20] * 5
    assert strata_of([]) is None
    assert strata_of([np.zeros((5, 2))]) is None


def test_what_cannot_be_chosen_is_refused() -> None:
    points = np.zeros((10, 2), np.float32)
    with pytest.raises(UsageError, match="11 samples were asked for; the pool has 10"):
        choose(points, 11)
    with pytest.raises(UsageError, match="Allowed: clusters, herding, k-center, mixed, random"):
        choose(points, 5, "kcenter")  # type: ignore[arg-type]


def test_memory_stays_near_that_of_the_points() -> None:
    """A table of all distances of 20,000 points would take 1.6 GB."""
    points = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    cluster(points[:50], 2, 0)  # so that the import of scikit-learn is not counted
    tracemalloc.start()
    choose(points, 50, "k-center")
    nearest_distance(points, points[:200])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
