"""Products as matrices: every layout there and back, and only what belongs to a product is its own."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from graph_cases import Case, node, run, samples, weights
from lowbit.compress.products import Product, products, with_biases
from lowbit.graph.groups import find_groups
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.quant.affine import from_values, round_trip
from lowbit.quant.rounding import to_nearest
from lowbit.types import Array
from transform_cases import conv_net


def found_in(case: Case) -> dict[str, Product]:
    model = onnx_ir.from_proto(case.proto())
    return products(model, find_groups(model.graph, ONNXRUNTIME_CPU))


def one(op: str, weight: Array, shape: list[int], **attributes: int) -> Product:
    return found_in(Case([node(op, "x w", "y", "p", **attributes)], {"x": shape}, ["y"], {"w": weight}))["p"]


LAYOUTS = {
    "conv": ("Conv", weights(6, 2, 3, 3), [1, 4, 5, 5], {"group": 2}),
    "rows": ("Gemm", weights(6, 8), [1, 8], {"transB": 1}),
    "columns": ("MatMul", weights(8, 6), [1, 8], {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_matrices_go_back_where_they_came_from(name: str) -> None:
    op, weight, shape, attributes = LAYOUTS[name]
    product = one(op, weight, shape, **attributes)
    assert product.layout == name
    np.testing.assert_array_equal(product.back(product.matrices(weight), weight.shape), weight)


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_grid_of_rows_rounds_as_the_grid_of_the_weight(name: str, block: int | None) -> None:
    op, weight, shape, attributes = LAYOUTS[name]
    product = one(op, weight, shape, **attributes)
    by_rows = {"conv": 0, "rows": 0, "columns": 1}[name]
    by_inputs = {"conv": 1, "rows": 1, "columns": 0}[name]
    grid = from_values(weight, "int4", symmetric=True, axis=by_rows if block is None else by_inputs, block=block)
    rounded = product.back(to_nearest(product.matrices(weight), product.grid_of_rows(grid, weight)), weight.shape)
    np.testing.assert_allclose(rounded, round_trip(weight, grid), rtol=1e-6)
    assert not np.allclose(rounded, weight, rtol=1e-3)


def test_factors_of_input_channels_follow_the_groups() -> None:
    op, weight, shape, attributes = LAYOUTS["conv"]
    factors = np.array([1, 2, 3, 4], np.float32)
    scaled = one(op, weight, shape, **attributes)
    result = scaled.back(scaled.matrices(weight) * scaled.by_channel(factors), weight.shape)
    np.testing.assert_array_equal(result[:3], weight[:3] * factors[:2].reshape(1, 2, 1, 1))
    np.testing.assert_array_equal(result[3:], weight[3:] * factors[2:].reshape(1, 2, 1, 1))


def test_weights_and_biases_that_others_read_are_not_its_own() -> None:
    nodes = [
        node("MatMul", "x own", "a", "p1"),
        node("Add", "a shared_bias", "b"),
        node("MatMul", "b shared", "c", "p2"),
        node("MatMul", "c shared", "d", "p3"),
        node("Add", "d shared_bias", "e"),
        node("MatMul", "e last", "f", "p4"),
        node("Add", "f bias", "y"),
    ]
    constants = {"own": weights(4, 4), "shared": weights(4, 4), "last": weights(4, 4), "shared_bias": weights(4), "bias": weights(4)}
    found = found_in(Case(nodes, {"x": ["N", 4]}, ["y"], constants))
    assert set(found) == {"p1", "p4"}
    assert (found["p1"].bias, found["p1"].adds) == (None, True)
    assert (found["p4"].bias, found["p4"].adds) == ("bias", True)


def test_one_number_for_all_channels_is_no_bias_of_its_own() -> None:
    case = Case([node("Gemm", "x w b", "y", "p")], {"x": ["N", 4]}, ["y"], {"w": weights(4, 4), "b": np.float32(2)})
    assert (found_in(case)["p"].bias, found_in(case)["p"].adds) == (None, True)


def test_biases_of_zeros_change_nothing_and_take_no_name() -> None:
    nodes = [
        node("Conv", "x w", "c", "conv"),
        node("Relu", "c", "r"),
        node("Flatten", "r", "f"),
        node("Gemm", "f g", "y1", "gemm"),
        node("Add", "y1 conv_bias", "y"),
    ]
    constants = {"w": weights(5, 3, 8, 8), "g": weights(5, 4), "conv_bias": weights(4)}
    case = Case(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)
    model = onnx_ir.from_proto(case.proto())
    with_biases(model)
    with_biases(model)  # what has one keeps it
    feed = {"x": samples([2, 3, 8, 8])}
    np.testing.assert_array_equal(run(onnx_ir.to_proto(model), feed)["y"], run(case.proto(), feed)["y"])
    biases = {str(each.name): str(each.inputs[2].name) for each in model.graph if each.op_type in ("Conv", "Gemm")}
    assert biases == {"conv": "conv_bias_1", "gemm": "gemm_bias"}
    assert {name: p.bias for name, p in products(model, find_groups(model.graph, ONNXRUNTIME_CPU)).items()} == biases


def test_a_net_is_found_whole() -> None:
    assert {name: (p.bias, p.layout) for name, p in found_in(conv_net()).items()} == {
        "conv1": ("b1", "conv"),
        "conv2": ("b2", "conv"),
        "gemm": ("b3", "rows"),
    }
