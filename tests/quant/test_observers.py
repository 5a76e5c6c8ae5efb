"""Observers: exact whatever the chunks, the order and the merging."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.quant.observers import BINS, Histogram, MinMax, Observer
from lowbit.types import Array

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
samples = st.one_of(
    arrays(np.float32, st.integers(1, 300), elements=anything),
    arrays(np.float32, st.integers(1, 300), elements=st.floats(-4, 4, width=32)),
    arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([0.0, -0.0, 1.0, 6.0, 1e-45, -1e-45, 1e-30, 3e38, -3e38])),
)


def same(a: Histogram, b: Histogram) -> bool:
    return (a.exponent, a.first, a.zeros) == (b.exponent, b.first, b.zeros) and np.array_equal(a.counts, b.counts)


@settings(max_examples=300)
@given(samples, st.lists(st.integers(0, 300), max_size=6), st.randoms(use_true_random=False))
def test_chunks_and_order_change_nothing(values: Array, cuts: list[int], random: Random) -> None:
    check_chunks(values, cuts, random)


def test_a_chunk_of_zeros_does_not_coarsen_the_grid() -> None:
    check_chunks(np.array([1e-45, 0.0], np.float32), [1], Random(0))


def check_chunks(values: Array, cuts: list[int], random: Random) -> None:
    whole = Observer().update(values)
    chunks = np.split(values, sorted(min(c, len(values)) for c in cuts))
    random.shuffle(chunks)
    streamed = Observer()
    for chunk in chunks:
        streamed = streamed.update(chunk)
    halves = [Observer(), Observer()]
    for i, chunk in enumerate(chunks):
        halves[i % 2] = halves[i % 2].update(chunk)
    for other in (streamed, halves[0].merge(halves[1]), halves[1].merge(halves[0])):
        assert other.extrema == whole.extrema
        assert same(other.histogram, whole.histogram)


@given(samples)
def test_every_value_lies_in_its_bin(values: Array) -> None:
    histogram = Histogram.of(values)
    edges = histogram.edges
    expected, _ = np.histogram(values.astype(np.float64), edges)
    assert np.array_equal(histogram.counts, expected)
    assert histogram.count == len(values)
    assert histogram.zeros == np.sum(values == 0)
    assert len(histogram.counts) <= BINS
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


def test_resolution_uses_at_least_half_of_the_bins() -> None:
    for spread in (1e-6, 0.3, 1.0, 7.0, 1e20):
        histogram = Histogram.of(np.linspace(-spread, spread * 1.7, 1000, dtype=np.float32))
        assert BINS // 2 <= len(histogram.counts) <= BINS


def test_memory_is_flat_while_the_range_grows() -> None:
    state = Observer()
    for i in range(60):
        state = state.update(np.array([2.0**i, -(3.0**i) % 1e30, 1e-3], np.float32))
    assert len(state.histogram.counts) <= BINS
    assert state.histogram.count == 180
    assert state.extrema.high == float(np.float32(2.0**59)) or state.extrema.high > 2.0**59


def test_min_max_is_exact_and_starts_empty() -> None:
    assert MinMax() == MinMax(np.inf, -np.inf)
    assert MinMax.of(np.array([0.1, -7.25], np.float32)).merge(MinMax()) == MinMax(-7.25, float(np.float32(0.1)))
    assert np.isnan(MinMax.of(np.array([1.0, np.nan])).low)


def test_the_sample_feeds_the_histogram_alone() -> None:
    stats = Observer().update(np.arange(100.0), sample=np.array([5.0, 6.0])).finalize()
    assert (stats.low, stats.high, stats.histogram.count) == (0.0, 99.0, 2)


def test_half_precision_counts_like_single() -> None:
    values = np.array([0.5, -2.0, 65504.0], np.float16)
    assert same(Histogram.of(values), Histogram.of(values.astype(np.float32)))
