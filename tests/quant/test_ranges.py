"""Ranges: against brute force, against onnxruntime's calibrators, and properties that always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.errors import DataError, UsageError
from lowbit.quant import affine, ranges
from lowbit.quant.observers import Histogram, Observer, TensorStats
from lowbit.types import Array, RangeMethod

METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "entropy", "mse")


def stats_of(values: Array) -> TensorStats:
    return Observer().update(np.asarray(values, np.float32)).finalize()


def drawn(kind: str, n: int = 200_000) -> Array:
    rng = np.random.default_rng(7)
    if kind == "laplace":
        return rng.laplace(size=n).astype(np.float32)
    if kind == "relu":
        return np.maximum(rng.normal(size=n), 0).astype(np.float32)
    if kind == "outlier":  # what LayerNorm does: a bulk around zero and a few values far away
        return np.append(rng.normal(size=n), rng.normal(60, 2, size=20)).astype(np.float32)
    if kind == "gelu":
        x = rng.normal(size=n) * 2
        return (x / (1 + np.exp(-1.702 * x))).astype(np.float32)
    return rng.normal(size=n).astype(np.float32)


def real_error(values: Array, low: float, high: float) -> float:
    params = affine.from_range(low, high, "uint8", symmetric=False)
    return float(np.mean((affine.round_trip(values, params) - values) ** 2))


def test_minmax_is_what_was_seen_and_zero() -> None:
    assert ranges.find_range(stats_of(np.array([-1.5, 4.0])), "minmax") == (-1.5, 4.0)
    assert ranges.find_range(stats_of(np.array([2.0, 4.0])), "minmax") == (0.0, 4.0)
    assert ranges.find_range(stats_of(np.array([-2.0, -1.0])), "minmax") == (-2.0, 0.0)


def test_percentile_agrees_with_the_sorted_values() -> None:
    values = drawn("laplace")
    for percent, tolerance in ((99.0, 0.005), (99.9, 0.01), (99.99, 0.05)):  # ten values lie beyond the last
        low, high = ranges.percentile(stats_of(values), percent)
        cut = (100 - percent) / 2
        expected = np.percentile(values, [cut, 100 - cut])
        assert [low, high] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "outlier", "gelu"])
def test_mse_is_as_good_as_brute_force(kind: str) -> None:
    values = drawn(kind, 30_000)
    low, high = values.min(), values.max()
    lows = [0.0] if low >= 0 else low * np.linspace(0.05, 1, 24)
    best = min(real_error(values, float(a), float(b)) for a in lows for b in high * np.linspace(0.03, 1, 48))
    found = real_error(values, *ranges.mse(stats_of(values)))
    assert found <= best * 1.02
    assert found <= real_error(values, float(low), float(high))


def test_mse_clips_a_lonely_outlier_and_keeps_a_full_range() -> None:
    bulk = np.random.default_rng(0).uniform(-1, 1, 100_000)
    assert ranges.mse(stats_of(bulk)) == pytest.approx((-1, 1), abs=0.02)
    low, high = ranges.mse(stats_of(np.append(bulk, 1.5)))
    assert low == pytest.approx(-1, abs=0.02)
    # The optimum: d/dh of (h - low)^2 / (12 * 255^2) + (1.5 - h)^2 / 100,001 is zero.
    assert high == pytest.approx(1.22, abs=0.02)


def test_expected_error_is_the_error_of_values_spread_in_their_bins() -> None:
    values = drawn("normal", 2_000_000)
    histogram = stats_of(values).histogram
    pairs = [(-1.0, 1.0), (-4.0, 2.0), (-0.3, 5.0), (-6.0, 6.0)]
    found = ranges.expected_error(histogram, np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]))
    assert found == pytest.approx([real_error(values, *pair) for pair in pairs], rel=0.01)


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_entropy_is_near_onnxruntimes(kind: str) -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = drawn(kind)
    # Its levels are for both signs together, as ours are; bins as fine as its own documentation advises.
    collector = HistogramCollector("entropy", True, 2049, 256, 99.99, None)
    threshold = float(np.abs(values).max())
    counts, edges = np.histogram(values, bins=2049, range=(-threshold, threshold))
    theirs = collector.get_entropy_threshold((counts, edges, values.min(), values.max(), threshold), 256)[:2]
    assert ranges.entropy(stats_of(values)) == pytest.approx([float(t) for t in theirs], rel=0.12)


def test_entropy_clips_outliers_and_ignores_how_many_zeros_there_are() -> None:
    low, high = ranges.entropy(stats_of(drawn("outlier")))
    assert -6 < low < -2
    assert 2 < high < 12
    relu = drawn("relu")
    assert ranges.entropy(stats_of(relu)) == ranges.entropy(stats_of(np.append(relu, np.zeros(10**6))))


def plain_divergence(counts: Array, end: int, groups: int) -> float:
    """Slides 36-39 as loops."""
    total, kept = counts.sum(), counts[:end]
    p = kept.astype(float).copy()
    p[-1] += counts[end:].sum()
    q = np.zeros(end)
    for j in range(groups):
        a, b = end * j // groups, end * (j + 1) // groups
        filled = p[a:b] > 0
        if filled.any():
            q[a:b][filled] = kept[a:b].sum() / filled.sum()
    p, q = p / total, q / kept.sum()
    with np.errstate(divide="ignore"):
        return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


@given(arrays(np.int64, st.integers(20, 80), elements=st.sampled_from([0, 0, 1, 2, 50, 1000])), st.integers(2, 16))
def test_divergence_of_running_sums_is_that_of_loops(counts: Array, groups: int) -> None:
    if not counts[: groups + 1].sum():
        counts[0] = 1
    ends = np.arange(groups, len(counts) + 1)
    found = ranges._divergences(counts.astype(float), ends, groups)
    expected = []
    for end in ends:
        expected.append(plain_divergence(counts, int(end), groups) if counts[:end].sum() else np.inf)
    assert found == pytest.approx(expected, abs=1e-9)


values_of_all_kinds = arrays(
    np.float32, st.integers(1, 400), elements=st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 6.0, 1e-30, 3e38, 1e4]))
)


@settings(max_examples=150, deadline=None)
@given(values_of_all_kinds)
def test_every_range_holds_zero_and_lies_in_min_max(values: Array) -> None:
    stats = stats_of(values)
    least, most = min(stats.low, 0.0), max(stats.high, 0.0)
    for method in METHODS:
        low, high = ranges.find_range(stats, method)
        assert least <= low <= 0.0 <= high <= most
        if most > least:
            assert high > low or method == "percentile"


def test_a_narrow_range_far_from_zero_costs_nothing() -> None:
    stats = stats_of(np.linspace(1000, 1000.001, 500))
    for method in METHODS:
        low, high = ranges.find_range(stats, method)
        assert low == 0.0
        assert high == pytest.approx(1000, rel=0.01)


def test_constant_zero_has_an_empty_range() -> None:
    for method in METHODS:
        assert ranges.find_range(stats_of(np.zeros(10)), method) == (0.0, 0.0)


def test_what_cannot_be_answered_is_said() -> None:
    bare = TensorStats(-1.0, 1.0, Histogram())
    assert ranges.find_range(bare, "minmax") == (-1.0, 1.0)
    with pytest.raises(DataError, match="needs a histogram"):
        ranges.find_range(bare, "mse")
    with pytest.raises(UsageError, match="percentile"):
        ranges.find_range(bare, "percentil")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu"])
def test_each_number_of_levels_gets_its_own_range(kind: str, bits: int) -> None:
    values = drawn(kind, 30_000)
    stats, levels = stats_of(values), 1 << bits
    low, high = ranges.find_range(stats, "mse", levels)

    def error(a: float, b: float) -> float:
        return float(np.mean((affine.round_trip(values, affine.from_range(a, b, f"uint{bits}", symmetric=False)) - values) ** 2))

    least, most = ranges.minmax(stats)
    lows = [0.0] if least == 0.0 else least * np.linspace(0.05, 1, 24)
    assert error(low, high) <= 1.03 * min(error(float(a), float(b)) for a in lows for b in most * np.linspace(0.03, 1, 48))


def test_fewer_levels_clip_more_and_many_clip_nothing() -> None:
    stats = stats_of(drawn("laplace"))
    widths = [high - low for low, high in (ranges.find_range(stats, "mse", levels) for levels in (8, 16, 256, 65536))]
    assert widths == sorted(widths)
    assert widths[0] < 0.5 * widths[2]
    assert widths[3] == pytest.approx(stats.high - stats.low, rel=0.02)
    entropies = [high - low for low, high in (ranges.find_range(stats, "entropy", levels) for levels in (16, 256))]
    assert entropies[0] < entropies[1]
    assert ranges.find_range(stats, "entropy", 65536) == ranges.minmax(stats)
    for method in METHODS:
        assert ranges.find_range(stats, method, 256) == ranges.find_range(stats, method)
    with pytest.raises(UsageError, match="levels"):
        ranges.find_range(stats, "mse", 2)
