"""Scales: storable, never worse than min-max, near the best there is; levels in range and worth what the method believes."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_case import need
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import ModelError
from lowbit.llm.linear import Grid

need("torch")
import torch  # noqa: E402

from lowbit.llm.methods.grids import Scales, grouped, min_max, searched, storable  # noqa: E402
from lowbit.llm.methods.hqq import NORM, half_quadratic  # noqa: E402

GRIDS = st.builds(Grid, st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 4, 8]), st.booleans())


def weights_of(seed: int, rows: int, columns: int, spread: float) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy((random.standard_t(3, (rows, columns)) * spread).astype(np.float32))


def error(scales: Scales, weights: torch.Tensor, power: torch.Tensor | float = 1.0) -> torch.Tensor:
    off = scales.weights(scales.nearest(weights)) - weights
    return grouped(off.square() * power, scales.grid)[0].sum(-1)


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 21), st.sampled_from([1e-7, 0.02, 1.0, 3e4]), st.booleans())
def test_levels_are_in_range_and_stand_for_what_the_method_believes(
    grid: Grid, seed: int, rows: int, columns: int, spread: float, plain: bool
) -> None:
    weights = weights_of(seed, rows, columns, spread)
    scales = min_max(weights, grid) if plain else searched(weights, grid)
    levels = scales.nearest(weights)
    linear = scales.packed(levels)
    assert linear.levels.dtype == np.uint8
    assert linear.levels.max() < 2**grid.bits
    assert linear.scale.dtype == np.float16
    assert np.isfinite(linear.scale).all()
    assert (linear.scale != 0).all()
    assert linear.scale.shape == (rows, -(-columns // (grid.group or columns)))
    assert (linear.zero is None) == grid.symmetric
    if linear.zero is not None:
        assert linear.zero.max() < 2**grid.bits
    np.testing.assert_array_equal(linear.dequantized(), scales.weights(levels).numpy())


@settings(max_examples=40, deadline=None)
@given(GRIDS, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 19))
def test_a_search_is_never_worse_than_min_max(grid: Grid, seed: int, rows: int, columns: int) -> None:
    weights = weights_of(seed, rows, columns, 0.1)
    assert (error(searched(weights, grid), weights) <= error(min_max(weights, grid), weights) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_search_is_near_the_best_of_all_scales(bits: int) -> None:
    weights = weights_of(3, 16, 32, 0.1)
    grid = Grid(bits, 32)
    best = torch.full((16,), float("inf"))
    reach = weights.abs().amax(-1)
    for ratio in torch.linspace(0.05, 1.3, 2000):
        for sign in (1.0, -1.0):
            scale = storable(sign * ratio * reach / (grid.zero - 1))[:, None]
            best = torch.minimum(best, error(Scales(grid, scale, torch.full_like(scale, grid.zero)), weights)[:, 0])
    found = error(searched(weights, grid), weights)[:, 0]
    assert found.sum() <= 1.02 * best.sum()


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    weights, power = weights_of(5, 64, 32, 0.1), torch.cat([torch.full((8,), 50.0), torch.ones(24)])
    plain, weighted = searched(weights, Grid(3, 32)), searched(weights, Grid(3, 32), power)
    assert error(weighted, weights, power).sum() < 0.95 * error(plain, weights, power).sum()
    assert error(weighted, weights).sum() > error(plain, weights).sum()


def test_a_negative_scale_puts_the_extra_level_where_it_is_needed() -> None:
    weights = torch.tensor([[2.0, -1.0, 1.0, 0.0], [-2.0, 1.0, -1.0, 0.0]])
    scales = searched(weights, Grid(2, 4))
    assert scales.scale[0, 0] < 0 < scales.scale[1, 0]
    torch.testing.assert_close(scales.weights(scales.nearest(weights)), weights)


def test_groups_of_zeros_stay_zero() -> None:
    weights = torch.zeros(2, 8)
    for grid in (Grid(4, 4), Grid(4, 4, False), Grid(2)):
        scales = searched(weights, grid)
        assert not scales.weights(scales.nearest(weights)).any()


def test_damaged_weights_are_named() -> None:
    with pytest.raises(ModelError, match="NaN or infinite"):
        searched(torch.tensor([[1.0, float("nan")]]), Grid(4))


@pytest.mark.parametrize("symmetric", [True, False])
def test_half_quadratic_lowers_its_own_norm(symmetric: bool) -> None:
    weights, grid = weights_of(7, 64, 64, 0.05), Grid(3, 32, symmetric)

    def norm(scales: Scales) -> float:
        return float((scales.weights(scales.nearest(weights)) - weights).abs().pow(NORM).sum())

    start, found = searched(weights, grid), half_quadratic(weights, grid)
    assert norm(found) < norm(start)
    assert (found.zero == found.zero.round()).all()
    assert (found.scale == found.scale.half().float()).all()
