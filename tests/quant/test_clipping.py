"""Weight clipping: never worse than min-max, and as good as trying every ratio by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.quant import affine, clipping
from lowbit.types import Array


def errors(weights: Array, grid: affine.Affine, power: Array) -> Array:
    return ((affine.round_trip(weights, grid) - weights) ** 2 * power).sum(axis=-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["int2", "int4", "uint4", "int8"]), st.booleans(), st.sampled_from([None, 1, 3, 8]))
def test_it_is_never_worse_than_min_max(seed: int, dtype: str, symmetric: bool, block: int | None) -> None:
    rng = np.random.default_rng(seed)
    weights, power = rng.standard_t(2, size=(4, 8)).astype(np.float32), rng.uniform(0, 3, size=8)
    found = clipping.best_scales(weights, dtype, symmetric=symmetric, power=power, block=block)
    plain = affine.from_values(weights, dtype, symmetric=symmetric, axis=-1, block=block or 8)
    assert found.scale.shape == plain.scale.shape == (4, -(-8 // (block or 8)))
    assert np.all(found.scale <= plain.scale)
    assert np.all(errors(weights, found, power) <= errors(weights, plain, power) * (1 + 1e-6) + 1e-12)


def test_symmetric_rows_get_the_best_ratio_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    weights, power = rng.normal(size=(6, 40)), rng.uniform(0.1, 3, size=40)
    found = clipping.best_scales(weights, "int4", symmetric=True, power=power)
    reach = np.abs(weights).max(axis=1)
    tried = [errors(weights, affine.from_range(-reach * r, reach * r, "int4", symmetric=True, axis=0), power) for r in clipping.RATIOS]
    assert errors(weights, clipping.per_channel(found), power) == pytest.approx(np.min(tried, axis=0), rel=1e-6)


def test_asymmetric_rows_clip_each_end_on_its_own() -> None:
    rng = np.random.default_rng(1)
    weights = rng.uniform(-1, 1, size=(1, 4000))
    weights[0, 0] = 2.5  # one outlier, above alone
    found = clipping.best_scales(weights, "uint4", symmetric=False)
    low, high = (float(affine.dequantize(np.array([[level]]), found)[0, 0]) for level in (0, 15))
    assert low == pytest.approx(-1, abs=0.15)
    assert high == pytest.approx(1.1, abs=0.2)


def test_inputs_that_matter_more_are_kept_better() -> None:
    weights = np.append(np.random.default_rng(2).uniform(-1, 1, 200), 4.0)[None]
    quiet, loud = np.ones(201), np.ones(201)
    quiet[-1], loud[-1] = 0.0, 1e6
    clipped, kept = (clipping.best_scales(weights, "int4", symmetric=True, power=power) for power in (quiet, loud))
    assert clipped.scale[0, 0] == pytest.approx(1.2 / 7, rel=0.1)
    assert kept.scale[0, 0] == pytest.approx(4 / 7)


def test_groups_of_a_convolution_are_output_channels_in_the_end() -> None:
    weights = np.random.default_rng(3).normal(size=(5, 2, 9)).astype(np.float32)
    stacked = clipping.best_scales(weights, "int8", symmetric=True)
    flat = clipping.best_scales(weights.reshape(10, 9), "int8", symmetric=True)
    assert np.array_equal(clipping.per_channel(stacked).scale, flat.scale[:, 0])
    tensor = weights.reshape(10, 1, 3, 3)
    assert np.array_equal(affine.round_trip(tensor, clipping.per_channel(stacked)).reshape(5, 2, 9), affine.round_trip(weights, stacked))
