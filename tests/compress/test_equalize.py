"""Equalizing keeps the function, helps where channels differ, and leaves alone what does not scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from graph_cases import Case, node, relative_error, run, weights
from lowbit.compress.equalize import equalize, joints
from lowbit.compress.products import products, with_biases
from lowbit.compress.static import write_static
from lowbit.graph.groups import find_groups
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, Profile
from lowbit.types import Array
from transform_cases import INT8, UINT8, conv_net, error_of, evidence, feeds, static


def equalized(case: Case, folder: Path, profile: Profile = ONNXRUNTIME_CPU) -> tuple[onnx.ModelProto, dict[str, Array]]:
    seen, _ = evidence(case, folder)
    model = onnx_ir.from_proto(case.proto())
    with_biases(model)
    factors = equalize(model, products(model, find_groups(model.graph, profile)), seen.captured, INT8, UINT8)
    return onnx_ir.to_proto(model), factors


def tensors(case: Case, profile: Profile = ONNXRUNTIME_CPU) -> list[str]:
    model = onnx_ir.from_proto(case.proto())
    return [each.tensor for each in joints(model, products(model, find_groups(model.graph, profile)))]


@pytest.mark.parametrize(("between", "profile"), [("", ONNXRUNTIME_CPU), ("Relu", ONNXRUNTIME_CPU), ("LeakyRelu", OPENVINO_CPU)])
def test_the_function_stays(between: str, profile: Profile, tmp_path: Path) -> None:
    case = conv_net(between=between)
    model, factors = equalized(case, tmp_path, profile)
    (name,) = factors
    assert name == ("r1" if between else "c1")
    assert factors[name].max() / factors[name].min() > 8
    feed = feeds(case, 1, seed=50)[0]
    feed["x"] *= 4  # far beyond calibration: no bound is needed
    np.testing.assert_allclose(run(model, feed)["y"], run(case.proto(), feed)["y"], rtol=2e-4, atol=1e-4)


def test_under_a_clip_the_function_stays_where_calibration_has_been(tmp_path: Path) -> None:
    case = conv_net(between="Clip")
    model, factors = equalized(case, tmp_path)
    assert factors["r1"].min() < 0.3
    seen = evidence(case, tmp_path)[0].captured
    assert np.all(factors["r1"][seen.high["r1"] >= 6] == 1)
    assert np.any(seen.high["r1"] >= 6)
    for feed in feeds(case):
        np.testing.assert_allclose(run(model, feed)["y"], run(case.proto(), feed)["y"], rtol=2e-4, atol=1e-4)


def test_wildly_different_channels_round_better(tmp_path: Path) -> None:
    case = conv_net()
    seen, _ = evidence(case, tmp_path)
    write_static(seen, tmp_path / "plain.onnx", static(), ONNXRUNTIME_CPU)
    write_static(seen, tmp_path / "equalized.onnx", static("equalize"), ONNXRUNTIME_CPU)
    plain, better = (error_of(tmp_path / f"{name}.onnx", case) for name in ("plain", "equalized"))
    assert better < 0.6 * plain


def test_ranges_are_those_of_the_equalized_model(tmp_path: Path) -> None:
    case = conv_net()
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("equalize"), ONNXRUNTIME_CPU)
    reach = (seen.captured.high["r1"] / made.factors["r1"]).max()
    assert float(made.table["r1"].scale) * 255 == pytest.approx(reach, rel=1e-3)


@pytest.mark.parametrize(("between", "profile"), [("Sigmoid", OPENVINO_CPU), ("Tanh", OPENVINO_CPU), ("Sigmoid", ONNXRUNTIME_CPU)])
def test_nothing_scales_across_other_activations(between: str, profile: Profile, tmp_path: Path) -> None:
    case = conv_net(between=between)
    assert tensors(case, profile) == []
    assert equalized(case, tmp_path, profile)[1] == {}


def test_nothing_scales_across_an_output_or_a_sum() -> None:
    case = conv_net()
    assert tensors(case) == ["r1"]
    assert tensors(Case(case.nodes, case.inputs, ["y", "r1"], case.constants)) == []
    added = [*case.nodes, node("Add", "r1 r1", "s")]
    assert tensors(Case(added, case.inputs, ["y", "s"], case.constants)) == []


def test_a_clip_that_does_not_hold_zero_does_not_scale() -> None:
    case = conv_net(between="Clip")
    assert tensors(case) == ["r1"]
    assert tensors(Case(case.nodes, case.inputs, case.outputs, dict(case.constants) | {"zero": np.float32(0.5)})) == []


def mlp(bias: str = "b1", second: str = "b2") -> Case:
    """Two matrix products with biases; the names say whether they share one."""
    nodes = [
        node("MatMul", "x w1", "m1", "first"),
        node("Add", f"m1 {bias}", "a1"),
        node("Relu", "a1", "r1"),
        node("MatMul", "r1 w2", "m2", "second"),
        node("Add", f"m2 {second}", "y"),
    ]
    sizes = np.geomspace(0.02, 2, 8).astype(np.float32)
    constants = {
        "w1": weights(8, 8) * sizes,
        "w2": weights(8, 8, seed=1) / sizes[:, None],
        "b1": weights(8) * sizes,
        "b2": weights(8, seed=2),
    }
    used = {name for each in nodes for name in each.input}
    return Case(nodes, {"x": ["N", 8]}, ["y"], {name: value for name, value in constants.items() if name in used})


def test_biases_of_matrix_products_scale_with_them(tmp_path: Path) -> None:
    case = mlp()
    model, factors = equalized(case, tmp_path)
    assert factors["r1"].max() / factors["r1"].min() > 4
    feed = feeds(case, 1, seed=50)[0]
    np.testing.assert_allclose(run(model, feed)["y"], run(case.proto(), feed)["y"], rtol=1e-4, atol=1e-5)


def test_a_shared_bias_holds_its_product(tmp_path: Path) -> None:
    case = mlp("b1", "b1")
    model, factors = equalized(case, tmp_path)
    assert factors == {}
    feed = feeds(case, 1, seed=50)[0]
    assert relative_error(run(model, feed)["y"], run(case.proto(), feed)["y"]) < 1e-6


def test_a_bias_of_one_number_holds_its_product(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w1 b", "g", "first"), node("Relu", "g", "r"), node("Gemm", "r w2", "y", "second")]
    constants = {"w1": weights(8, 8) * np.geomspace(0.02, 2, 8).astype(np.float32), "w2": weights(8, 8, seed=1), "b": np.float32(0.5)}
    assert equalized(Case(nodes, {"x": ["N", 8]}, ["y"], constants), tmp_path)[1] == {}


def test_a_matrix_product_behind_a_convolution_has_its_channels_elsewhere(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w1 b1", "c", "conv"), node("Relu", "c", "r"), node("MatMul", "r w2", "y", "matmul")]
    constants = {
        "w1": weights(6, 3, 3, 3) * np.geomspace(0.02, 2, 6).astype(np.float32).reshape(-1, 1, 1, 1),
        "b1": weights(6),
        "w2": weights(6, 4),
    }
    case = Case(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)  # 6 channels, and rows of 6: only the axis tells them apart
    model, factors = equalized(case, tmp_path)
    assert factors == {}
    feed = feeds(case, 1)[0]
    np.testing.assert_allclose(run(model, feed)["y"], run(case.proto(), feed)["y"], rtol=1e-5, atol=1e-5)


def test_depthwise_readers_are_scaled_channel_by_channel(tmp_path: Path) -> None:
    sizes = np.geomspace(0.02, 2, 6).astype(np.float32).reshape(-1, 1, 1, 1)
    nodes = [
        node("Conv", "x w1", "c", "one"),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "d", "two", group=6),
        node("Relu", "d", "s"),
        node("Conv", "s w3", "y", "three"),
    ]
    constants = {"w1": weights(6, 3, 3, 3) * sizes, "w2": weights(6, 1, 3, 3, seed=1) / sizes, "w3": weights(4, 6, 1, 1)}
    case = Case(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants)
    model, factors = equalized(case, tmp_path)
    assert "r" in factors
    feed = feeds(case, 1)[0]
    np.testing.assert_allclose(run(model, feed)["y"], run(case.proto(), feed)["y"], rtol=1e-4, atol=1e-5)


def test_ranges_follow_where_there_was_room_under_a_clip(tmp_path: Path) -> None:
    net = conv_net(between="Clip")
    case = Case(net.nodes, net.inputs, net.outputs, dict(net.constants) | {"six": np.float32(60)})
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("equalize"), ONNXRUNTIME_CPU)
    reach = (seen.captured.high["r1"] / made.factors["r1"]).max()
    assert reach > 1.5 * seen.captured.high["r1"].max()
    assert float(made.table["r1"].scale) * 255 == pytest.approx(reach, rel=1e-3)
