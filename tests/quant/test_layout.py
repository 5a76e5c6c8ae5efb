"""Convolutions as matrices, against ONNX's own reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.quant import bias, layout
from lowbit.quant.moments import Moments
from lowbit.types import Array


def convolved(x: Array, weights: Array, groups: int, strides: list[int], pads: list[int], dilations: list[int]) -> Array:
    import onnx
    from onnx.reference import ReferenceEvaluator

    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups, strides=strides, pads=pads, dilations=dilations)
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xwy"]
    graph = onnx.helper.make_graph([node], "g", infos[:2], infos[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    result: Array = ReferenceEvaluator(model).run(None, {"x": x, "w": weights})[0]
    return result


def as_product(x: Array, weights: Array, groups: int, strides: list[int], pads: list[int], dilations: list[int]) -> Array:
    """The same by way of matrices and patches at every position."""
    kernel = weights.shape[2:]
    extent = layout.output_size(x.shape[2:], kernel, strides, pads, dilations)
    positions = layout.sample_positions(len(x), extent, 10**6)
    rows = layout.patches(x, kernel, strides, pads, dilations, positions).reshape(len(positions), groups, -1)
    flat = np.einsum("gok,rgk->rgo", layout.as_matrices(weights, groups), rows).reshape(len(positions), -1)
    return np.moveaxis(flat.reshape(len(x), *extent, -1), -1, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matrices_times_patches_are_the_convolution(data: st.DataObject) -> None:
    draw = data.draw
    groups, axes = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 2))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
    strides, dilations = (draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes)) for _ in range(2))
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = rng.normal(size=(2, 2 * groups, *draw(st.lists(st.integers(5, 7), min_size=axes, max_size=axes)))).astype(np.float32)
    weights = rng.normal(size=(3 * groups, 2, *kernel)).astype(np.float32)
    arguments = (x, weights, groups, strides, pads, dilations)
    assert as_product(*arguments) == pytest.approx(convolved(*arguments), abs=1e-4)
    assert np.array_equal(layout.from_matrices(layout.as_matrices(weights, groups), weights.shape), weights)


def test_places_lead_to_what_a_convolution_reads_and_padding_is_none_of_it() -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    places, inside = layout.taps(x.shape, (3, 2), (2, 1), (1, 0, 0, 1), (1, 2), np.array([[1, 0, 3], [0, 1, 1]]))
    assert places.shape == (2, 3, 3, 2)
    assert places.dtype == np.int32
    assert inside[:, 0].tolist() == [[[False, False], [True, False], [True, False]], [[True, True]] * 3]
    found = x.reshape(-1)[places]
    np.testing.assert_array_equal(found[0, :, 1:, 0], x[1, :, 0:2, 3])
    np.testing.assert_array_equal(found[1], x[0][:, 1:4, 1::2][:, :, :2])


def test_depthwise_is_a_stack_of_vectors() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 8, 6, 6)).astype(np.float32), rng.normal(size=(8, 1, 3, 3)).astype(np.float32)
    assert layout.as_matrices(weights, 8).shape == (8, 1, 9)
    arguments = (x, weights, 8, [2, 1], [1, 1, 1, 1], [1, 1])
    assert as_product(*arguments) == pytest.approx(convolved(*arguments), abs=1e-5)


def test_positions_are_a_draw_without_replacement() -> None:
    found = layout.sample_positions(3, (4, 5), 20, seed=7)
    assert np.array_equal(found, layout.sample_positions(3, (4, 5), 20, seed=7))
    assert not np.array_equal(found, layout.sample_positions(3, (4, 5), 20, seed=8))
    assert len(np.unique(found, axis=0)) == 20
    assert found.max(axis=0).tolist() <= [2, 3, 4]
    assert len(layout.sample_positions(3, (4, 5), 100)) == 60


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match="groups"):
        layout.as_matrices(np.zeros((5, 1, 3, 3)), 2)
    with pytest.raises(UsageError, match="spatial axes"):
        layout.patches(np.zeros((1, 1, 4, 4)), (3,), (1,), (0, 0), (1,), np.zeros((1, 2), int))


@given(st.integers(0, 10**6))
def test_bias_correction_takes_the_mean_error_to_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0.5, 1, size=(40, 3, 5)).astype(np.float32)
    seen = (rows + rng.normal(0.1, 0.1, size=rows.shape)).astype(np.float32)
    weights = rng.normal(size=(3, 2, 5)).astype(np.float32)
    quantized = np.round(weights * 2) / 2
    moments = Moments.of(rows, seen)

    def mean_output(w: Array, x: Array) -> Array:
        return np.einsum("gok,rgk->go", w, x) / len(x)

    shift = bias.correction(weights, quantized, moments.mean, moments.mean_seen)
    assert shift == pytest.approx(mean_output(weights, rows) - mean_output(quantized, seen), abs=1e-4)
    same = bias.correction(weights, quantized, moments.mean)
    assert same == pytest.approx(mean_output(weights - quantized, rows), abs=1e-4)
    assert bias.correction(weights[0], quantized[0], moments.mean[0]) == pytest.approx(same[0])
