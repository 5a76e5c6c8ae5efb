"""Affine quantization: values by hand, and properties over arbitrary ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.quant import affine

TYPES = ["int8", "uint8", "int4", "uint4", "int16", "uint16", "int2"]
finite = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize(
    ("dtype", "symmetric", "expected"),
    [
        ("int8", False, (-128, 127)),
        ("int8", True, (-127, 127)),
        ("uint8", False, (0, 255)),
        ("uint8", True, (1, 255)),
        ("int4", False, (-8, 7)),
        ("int4", True, (-7, 7)),
        ("uint4", False, (0, 15)),
        ("int16", True, (-32767, 32767)),
    ],
)
def test_levels(dtype: str, symmetric: bool, expected: tuple[int, int]) -> None:
    assert affine.levels(dtype, symmetric) == expected


@pytest.mark.parametrize("dtype", ["float32", "int32", "int1", "int", "fp16", ""])
def test_levels_refuse_what_is_no_small_integer(dtype: str) -> None:
    with pytest.raises(UsageError, match="not an integer type"):
        affine.levels(dtype, False)


def test_asymmetric_uint8_by_hand() -> None:
    params = affine.from_range(-1.0, 3.0, "uint8", symmetric=False)
    assert params.scale == pytest.approx(4 / 255)
    assert params.zero_point == 64  # 63.75
    assert affine.quantize(np.array([-1.0, 0.0, 3.0, 99.0, -99.0]), params).tolist() == [0, 64, 255, 255, 0]


def test_symmetric_int4_by_hand() -> None:
    params = affine.from_range(-3.5, 1.0, "int4", symmetric=True)
    assert (params.scale, params.zero_point) == (0.5, 0)
    grid = affine.quantize(np.array([-9.0, -3.5, 0.25, 0.75, 1.0]), params)  # ties go to even: 0.5 -> 0, 1.5 -> 2
    assert grid.tolist() == [-7, -7, 0, 2, 2]
    assert grid.dtype == np.int8
    assert affine.dequantize(grid, params).tolist() == [-3.5, -3.5, 0.0, 1.0, 1.0]


def test_per_channel_gives_each_channel_its_own_scale() -> None:
    weights = np.array([[[1.0, -2.0]], [[0.5, 0.25]], [[0.0, 0.0]]], np.float32)
    params = affine.from_values(weights, "int8", symmetric=True, axis=0)
    assert params.scale == pytest.approx([2 / 127, 0.5 / 127, 1.0])
    assert affine.quantize(weights, params)[:, 0].tolist() == [[64, -127], [127, 64], [0, 0]]
    last = affine.from_values(weights, "int8", symmetric=True, axis=-1)
    assert last.scale == pytest.approx([1 / 127, 2 / 127])
    assert affine.round_trip(weights, last)[0, 0].tolist() == pytest.approx([1.0, -2.0])


def test_range_must_be_a_range() -> None:
    for low, high in ((1.0, -1.0), (np.nan, 1.0), (0.0, np.inf)):
        with pytest.raises(UsageError, match="finite"):
            affine.from_range(low, high, "int8", symmetric=False)
    with pytest.raises(UsageError, match="axis"):
        affine.from_range([0.0, 0.0], [1.0, 2.0], "int8", symmetric=False)
    with pytest.raises(UsageError, match="empty"):
        affine.from_values(np.zeros(0), "int8", symmetric=False)


@given(finite, finite, st.sampled_from(TYPES), st.booleans(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip_error_is_half_a_step(a: float, b: float, dtype: str, symmetric: bool, places: list[float]) -> None:
    low, high = min(a, b), max(a, b)
    params = affine.from_range(low, high, dtype, symmetric=symmetric)
    values = low + (high - low) * np.array(places)
    error = np.abs(affine.round_trip(values, params).astype(np.float64) - values)
    slack = 1e-6 * max(abs(low), abs(high))  # the scale is float32
    assert np.all(error <= params.scale * 0.5 + slack)


@given(finite, finite, st.sampled_from(TYPES), st.booleans())
def test_zero_is_a_level(a: float, b: float, dtype: str, symmetric: bool) -> None:
    params = affine.from_range(min(a, b), max(a, b), dtype, symmetric=symmetric)
    grid = affine.quantize(np.zeros(1), params)
    bottom, top = affine.levels(dtype, symmetric)
    assert bottom <= grid[0] <= top
    assert grid[0] == params.zero_point
    assert affine.dequantize(grid, params)[0] == 0.0


@given(st.lists(finite, min_size=2, max_size=50), st.sampled_from(TYPES), st.booleans())
def test_quantizing_is_monotone_and_stays_on_the_grid(values: list[float], dtype: str, symmetric: bool) -> None:
    ordered = np.sort(np.array(values))
    params = affine.from_range(ordered[len(ordered) // 4], ordered[-1], dtype, symmetric=symmetric)
    grid = affine.quantize(ordered, params).astype(int)
    bottom, top = affine.levels(dtype, symmetric)
    assert np.all(np.diff(grid) >= 0)
    assert grid.min() >= bottom
    assert grid.max() <= top


@given(finite, finite, st.booleans(), st.lists(finite, min_size=1, max_size=20))
def test_signed_and_unsigned_are_one_grid(a: float, b: float, symmetric: bool, values: list[float]) -> None:
    low, high = min(a, b), max(a, b)
    signed, unsigned = (affine.from_range(low, high, dtype, symmetric=symmetric) for dtype in ("int8", "uint8"))
    assert unsigned.zero_point - signed.zero_point == 128
    array = np.array(values)
    assert np.array_equal(affine.round_trip(array, signed), affine.round_trip(array, unsigned))


def test_agrees_with_onnx_quantize_linear() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    values = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 3
    params = affine.from_values(values, "int8", symmetric=False, axis=0)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0)
    infos = [onnx.helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", 3))]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("q", 3, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    feeds = {"x": values, "s": params.scale, "z": params.zero_point.astype(np.int8)}
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    assert np.array_equal(affine.quantize(values, params), expected)


# Blocks ----------------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 6), st.integers(1, 12))


@given(shapes, st.integers(1, 14), st.sampled_from([0, 1, -1]), st.sampled_from(TYPES), st.booleans(), st.integers(0, 1000))
def test_every_block_is_a_tensor_of_its_own(shape: tuple[int, int], block: int, axis: int, dtype: str, symmetric: bool, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    params = affine.from_values(values, dtype, symmetric=symmetric, axis=axis, block=block)
    found = np.moveaxis(affine.round_trip(values, params), axis, -1)
    rows = np.moveaxis(values, axis, -1)
    for row, start in np.ndindex(rows.shape[0], -(-rows.shape[1] // block)):
        part = rows[row, start * block : (start + 1) * block]
        own = affine.from_values(part, dtype, symmetric=symmetric)
        assert np.array_equal(found[row, start * block : (start + 1) * block], affine.round_trip(part, own))


@given(shapes, st.integers(0, 5), st.sampled_from(TYPES), st.booleans(), st.integers(0, 1000))
def test_a_block_that_covers_the_axis_is_a_channel(shape: tuple[int, int], more: int, dtype: str, symmetric: bool, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    channel = affine.from_values(values, dtype, symmetric=symmetric, axis=0)
    blocked = affine.from_values(values, dtype, symmetric=symmetric, axis=1, block=shape[1] + more)
    assert blocked.scale.shape == (shape[0], 1)
    assert np.array_equal(affine.quantize(values, blocked), affine.quantize(values, channel))
    assert np.array_equal(affine.round_trip(values, blocked), affine.round_trip(values, channel))


def test_blocks_agree_with_onnx_quantize_linear() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    values = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    params = affine.from_values(values, "int8", symmetric=False, axis=1, block=4)
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1, block_size=4)
    infos = [onnx.helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", 3))]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("q", 3, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    feeds = {"x": values, "s": params.scale, "z": params.zero_point.astype(np.int8)}
    assert np.array_equal(affine.quantize(values, params), ReferenceEvaluator(model).run(None, feeds)[0])


def test_blocks_must_fit() -> None:
    values = np.ones((2, 6), np.float32)
    for axis, block in ((1, 0), (2, 3), (None, 3)):
        with pytest.raises(UsageError, match="do not fit"):
            affine.from_values(values, "int8", symmetric=True, axis=axis, block=block)
    with pytest.raises(UsageError, match="positive block"):
        affine.from_range(values, values, "int8", symmetric=True, block=3)
    params = affine.from_values(values, "int8", symmetric=True, axis=1, block=3)
    with pytest.raises(UsageError, match="do not fit"):
        affine.quantize(np.ones((2, 9), np.float32), params)


@given(finite, finite, st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(TYPES), st.booleans())
def test_a_wider_range_is_never_finer(a: float, b: float, below: float, above: float, dtype: str, symmetric: bool) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    if low == high:
        return
    narrow, wide = (affine.from_range(*ends, dtype, symmetric=symmetric) for ends in ((low, high), (low - below, high + above)))
    assert wide.scale >= narrow.scale
