"""SmoothQuant: exact in floating point, and chosen by an error that is checked on rows nobody fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.quant import smoothquant
from lowbit.types import Array


def outlier_rows(rng: np.random.Generator, rows: int, channels: int) -> Array:
    """What LayerNorm gives: a bulk, and two channels fifty times as large."""
    x = rng.normal(size=(rows, channels))
    x[:, :2] = x[:, :2] * 5 + 50
    return x.astype(np.float32)


def test_factors_by_hand() -> None:
    found = smoothquant.factors(np.array([4.0, 1.0, 0.0]), np.array([1.0, 1.0, 3.0]), 0.5)
    assert found == pytest.approx([2 / 2**0.5, 1 / 2**0.5, 1.0])  # geometric mean 1 over the channels that live
    assert found.dtype == np.float32


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_smoothing_keeps_the_product(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    x, w = outlier_rows(rng, 20, 8).astype(np.float64), rng.normal(size=(8, 5))
    s = smoothquant.factors(np.abs(x).max(axis=0), np.abs(w).max(axis=1), strength)
    assert np.all(s > 0)
    assert (x / s) @ (w * s[:, None]) == pytest.approx(x @ w, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("weight", ["int8", "uint8"])
def test_outlier_channels_are_smoothed(activation: str, weight: str) -> None:
    rng = np.random.default_rng(0)
    x, unseen = outlier_rows(rng, 600, 32), outlier_rows(rng, 600, 32)
    weights = [rng.normal(size=(32, n)).astype(np.float32) for n in (16, 16, 8)]
    weights[0][:2] *= 0.1
    found = smoothquant.search(x, weights, activation=activation, weight=weight)
    assert found.choice != "none"
    assert found.errors[found.choice] == min(found.errors.values())
    ends = {"low": np.minimum(x.min(axis=0), 0) * 1.2, "high": x.max(axis=0) * 1.2, "activation": activation, "weight": weight}
    plain = smoothquant.output_error(unseen, weights, np.ones(32), **ends)
    assert smoothquant.output_error(unseen, weights, found.factors, **ends) < plain / 10


def test_the_bound_is_convex_and_its_slope_is_its_slope() -> None:
    rng = np.random.default_rng(4)
    x, weights = outlier_rows(rng, 50, 6), [rng.normal(size=(6, n)).astype(np.float32) for n in (5, 3)]
    site = smoothquant._site(x, weights, None, None, "uint8", "int8")
    here, there = rng.normal(size=6), rng.normal(size=6)
    value, slope = smoothquant._bound(site, here)
    ahead = [smoothquant._bound(site, here + 1e-3 * np.eye(6)[k])[0] for k in range(6)]
    behind = [smoothquant._bound(site, here - 1e-3 * np.eye(6)[k])[0] for k in range(6)]
    assert (np.array(ahead) - np.array(behind)) / 2e-3 == pytest.approx(slope, rel=5e-3, abs=1e-3 * np.abs(slope).max())
    for t in np.linspace(0, 1, 11):
        between, _ = smoothquant._bound(site, (1 - t) * here + t * there)
        assert between <= (1 - t) * value + t * smoothquant._bound(site, there)[0] + 1e-9
    assert smoothquant._bound(site, here + 1.0)[0] == pytest.approx(value)  # one factor for all channels changes nothing


def test_the_bound_predicts_the_error_of_bounded_inputs() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.uniform(-1, 1, size=(2000, 32)) * rng.uniform(0.2, 3, 32), rng.normal(size=(32, 64))
    site = smoothquant._site(x, [w], None, None, "uint8", "int8")
    for strength in (0.0, 0.5, 1.0):
        s = smoothquant.factors(np.abs(x).max(axis=0), np.abs(w).max(axis=1), strength)
        assert smoothquant._error(site, s) == pytest.approx(smoothquant._bound(site, np.log(s))[0] / 12, rel=0.1)


def test_descending_lowers_the_bound() -> None:
    rng = np.random.default_rng(6)
    x, w = outlier_rows(rng, 200, 32), rng.normal(size=(32, 16)).astype(np.float32)
    site = smoothquant._site(x, [w], None, None, "uint8", "int8")
    for strength in (0.3, 0.75, 1.0):
        start = smoothquant.factors(np.abs(x).max(axis=0), np.abs(w).max(axis=1), strength)
        found = smoothquant._descend(site, start)
        assert smoothquant._bound(site, np.log(found))[0] < 0.95 * smoothquant._bound(site, np.log(start))[0]


def test_the_error_is_that_of_plain_quantization() -> None:
    from lowbit.quant import affine

    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    noisy = affine.round_trip(x, affine.from_values(x, "uint8", symmetric=False)) @ affine.round_trip(
        w, affine.from_values(w, "int8", symmetric=True, axis=1)
    )
    expected = np.sum((noisy - x @ w) ** 2) / np.sum((x @ w) ** 2)
    assert smoothquant.output_error(x, [w], np.ones(6)) == pytest.approx(expected, rel=1e-4)
    assert smoothquant.output_error(x, [w, w], np.ones(6)) == pytest.approx(expected, rel=1e-4)


def test_given_extremes_shape_the_factors_but_not_the_choice() -> None:
    rng = np.random.default_rng(2)
    x, w = outlier_rows(rng, 400, 16), rng.normal(size=(16, 16)).astype(np.float32)
    high = x.max(axis=0)
    high[5] *= 3  # seen once, elsewhere
    own, given_ends = smoothquant.search(x, [w]), smoothquant.search(x, [w], low=x.min(axis=0), high=high)
    assert given_ends.errors == own.errors
    assert given_ends.choice == own.choice
    assert given_ends.factors[5] / given_ends.factors[6] > own.factors[5] / own.factors[6]


def test_where_nothing_helps_nothing_is_smoothed() -> None:
    x, w = np.ones((10, 4), np.float32), np.ones((4, 3), np.float32)
    found = smoothquant.search(x, [w])
    assert found.choice == "none"
    assert found.factors.tolist() == [1.0] * 4


def test_an_input_with_wild_single_values_is_left_alone() -> None:
    """Extremes of single channels that no other half of the rows shares must not decide."""
    rng = np.random.default_rng(3)
    x = rng.standard_cauchy(size=(64, 64)).clip(-300, 300).astype(np.float32)
    w = rng.normal(size=(64, 32)).astype(np.float32)
    found = smoothquant.search(x, [w], strengths=(0.5, 0.95))
    assert found.errors["0.95"] > 2 * found.errors[found.choice]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_any_input_gets_an_answer(seed: int, rows: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, channels)) * rng.choice([0.0, 1.0, 1e4], size=channels)).astype(np.float32)
    w = (rng.normal(size=(channels, 3)) * rng.choice([0.0, 1.0], size=(channels, 1))).astype(np.float32)
    found = smoothquant.search(x, [w])
    assert found.factors.shape == (channels,)
    assert np.all(np.isfinite(found.factors) & (found.factors > 0))


def test_what_does_not_fit_is_said() -> None:
    for rows, weights in ((np.ones((3, 4)), []), (np.ones((3, 4)), [np.ones((5, 2))]), (np.ones((0, 4)), [np.ones((4, 2))])):
        with pytest.raises(UsageError, match="Smoothing needs"):
            smoothquant.search(rows, weights)
