"""SQNR and the facts about outliers, against values known from theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import DataError, UsageError
from lowbit.quant import affine, outliers
from lowbit.quant.error import sqnr
from lowbit.quant.observers import Histogram


def test_sqnr_by_hand() -> None:
    assert sqnr(np.array([10.0, 0.0]), np.array([10.0, 1.0])) == pytest.approx(20.0)
    assert sqnr(np.ones(3), np.ones(3)) == np.inf
    assert sqnr(np.zeros(3), np.ones(3)) == -np.inf
    assert np.isnan(sqnr(np.ones(2), np.array([1.0, np.nan])))
    with pytest.raises(UsageError, match="shape"):
        sqnr(np.ones(3), np.ones((3, 1)))


@given(st.floats(-10, 10), st.floats(0.01, 100))
def test_sqnr_does_not_depend_on_units(shift: float, scale: float) -> None:
    x = np.random.default_rng(0).normal(size=100) + shift
    y = x + 0.1
    assert sqnr(x * scale, y * scale) == pytest.approx(sqnr(x, y))


def test_a_bit_is_six_decibels() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 100_000)
    six, eight = (sqnr(x, affine.round_trip(x, affine.from_values(x, dtype, symmetric=False))) for dtype in ("int6", "int8"))
    assert eight == pytest.approx(8 * 6.02, abs=0.2)
    assert eight - six == pytest.approx(2 * 6.02, abs=0.2)


@pytest.mark.parametrize(("kind", "expected", "tolerance"), [("normal", 0.0, 0.05), ("uniform", -1.2, 0.01), ("laplace", 3.0, 0.3)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_kurtosis_of_known_distributions(kind: str, expected: float, tolerance: float, scale: float) -> None:
    values = getattr(np.random.default_rng(0), kind)(size=200_000) * scale
    assert outliers.kurtosis(Histogram.of(values)) == pytest.approx(expected, abs=tolerance)


def test_kurtosis_does_not_depend_on_where_the_values_are() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    assert outliers.kurtosis(Histogram.of(values + 50)) == pytest.approx(outliers.kurtosis(Histogram.of(values)), abs=0.05)
    assert outliers.kurtosis(Histogram.of(np.full(9, 3.0))) == 0.0


def test_the_share_of_the_range_that_the_tail_takes() -> None:
    rng = np.random.default_rng(0)
    bulk = rng.uniform(-1, 1, 100_000)
    assert outliers.range_share(Histogram.of(bulk)) == pytest.approx(0.001, abs=0.001)
    few = np.append(bulk, np.full(50, 9.0))  # 0.05 % of the values take eight tenths of [-1, 9]
    assert outliers.range_share(Histogram.of(few)) == pytest.approx(0.8, abs=0.01)
    many = np.append(bulk, np.full(200, 9.0))  # 0.2 % are no outliers any more
    assert outliers.range_share(Histogram.of(many)) == pytest.approx(0.0, abs=0.01)
    relu = np.maximum(rng.normal(size=200_000), 0)
    expected = 1 - np.quantile(relu, 0.999) / relu.max()
    assert outliers.range_share(Histogram.of(relu)) == pytest.approx(expected, abs=0.01)
    assert outliers.range_share(Histogram.of(np.zeros(5))) < 1


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60))
def test_facts_stay_within_their_bounds(values: list[float]) -> None:
    found = outliers.facts(Histogram.of(np.array(values)))
    assert found.kurtosis >= -2.0 - 1e-9
    assert 0.0 <= found.range_share <= 1.0


def test_an_empty_histogram_says_nothing() -> None:
    with pytest.raises(DataError, match="without values"):
        outliers.facts(Histogram())
