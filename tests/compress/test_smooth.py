"""Smoothing keeps the function once the factors are applied, helps where a channel stands out, and runs everywhere alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from graph_cases import Case, node, relative_error, run, weights
from lowbit.compress.products import products
from lowbit.compress.smooth import smooth
from lowbit.compress.static import write_static
from lowbit.graph.groups import find_groups
from lowbit.graph.profiles import ONNXRUNTIME_CPU, OPENVINO_CPU, Profile
from lowbit.recipe import QuantSpec
from lowbit.runtimes import registry
from transform_cases import INT8, UINT8, error_of, evidence, feeds, outlier_net, static


def test_the_function_stays_once_factors_are_applied(tmp_path: Path) -> None:
    case = outlier_net()
    seen, _ = evidence(case, tmp_path)
    model = onnx_ir.from_proto(case.proto())
    factors = smooth(model, products(model, find_groups(model.graph, ONNXRUNTIME_CPU)), seen.captured, {"n"}, INT8, UINT8)
    assert set(factors) == {"n"}
    assert factors["n"][3] == factors["n"].max()
    assert factors["n"][3] > 5 * np.median(factors["n"])
    proto = onnx_ir.to_proto(model)
    divided = next(each for each in proto.graph.node if each.name == "first")
    divided.input[0] = "n/s"
    proto.graph.node.insert(1, node("Div", "n s", "n/s"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(factors["n"], "s"))
    feed = feeds(case, 1, seed=50)[0]
    np.testing.assert_allclose(run(proto, feed)["y"], run(case.proto(), feed)["y"], rtol=1e-3, atol=1e-4)


def test_an_outlier_channel_rounds_better(tmp_path: Path) -> None:
    case = outlier_net()
    seen, _ = evidence(case, tmp_path)
    made = [write_static(seen, tmp_path / f"{len(t)}.onnx", static(*t), ONNXRUNTIME_CPU) for t in ((), ("smooth",))]
    assert (set(made[0].factors), "n" in made[1].factors) == (set(), True)
    assert error_of(tmp_path / "1.onnx", case) < 0.5 * error_of(tmp_path / "0.onnx", case)


@pytest.mark.parametrize("batch", [8, "N"])
@pytest.mark.parametrize("target", [ONNXRUNTIME_CPU, OPENVINO_CPU], ids=lambda each: each.name)
def test_runtimes_agree_on_a_smoothed_artifact(target: Profile, batch: int | str, tmp_path: Path) -> None:
    net = outlier_net()
    case = Case(net.nodes, {"x": [batch, 4, 32]}, net.outputs, net.constants)
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("smooth"), target)
    assert "n" in made.factors
    feed = feeds(case, 1, seed=50)[0]
    answers = []
    for name in ("onnxruntime", "openvino"):
        session = registry.get(name).open(tmp_path / "m.onnx")
        answers.append(session.run(feed)["y"])
        session.close()
        assert relative_error(answers[-1], run(case.proto(), feed)["y"]) < 0.05
    assert relative_error(*answers) < 0.02


def beside(reader: list[onnx.NodeProto], constants: dict) -> Case:
    """`outlier_net` with a second reader of what the first product reads."""
    net = outlier_net()
    return Case([*net.nodes, *reader], net.inputs, ["y", "z"], dict(net.constants) | constants)


def test_readers_share_the_factors(tmp_path: Path) -> None:
    case = beside([node("MatMul", "n w3", "z", "third")], {"w3": weights(32, 5, seed=7)})
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("smooth"), ONNXRUNTIME_CPU)
    assert "n" in made.factors
    feed = feeds(case, 1, seed=50)[0]
    found, expected = run(onnx.load(tmp_path / "m.onnx"), feed), run(case.proto(), feed)
    assert max(relative_error(found[name], expected[name]) for name in "yz") < 0.05


def test_an_integer_reader_whose_weight_takes_no_factors_holds_the_tensor(tmp_path: Path) -> None:
    case = beside([node("MatMul", "n stack", "z", "stacked")], {"stack": weights(4, 32, 5, seed=7)})
    case = Case(case.nodes, {"x": [4, 4, 32]}, case.outputs, case.constants)
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("smooth"), ONNXRUNTIME_CPU)
    assert "stacked" in made.placement.formats
    assert "n" not in made.factors
    feed = feeds(case, 1, seed=50)[0]
    found, expected = run(onnx.load(tmp_path / "m.onnx"), feed), run(case.proto(), feed)
    assert relative_error(found["z"], expected["z"]) < 0.1


def test_a_reader_in_floating_point_is_left_alone(tmp_path: Path) -> None:
    case = beside([node("MatMul", "n w3", "z", "third")], {"w3": weights(32, 5, seed=7)})
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("smooth", formats={"third": "float"}), ONNXRUNTIME_CPU)
    assert "n" in made.factors
    feed = feeds(case, 1, seed=50)[0]
    np.testing.assert_allclose(run(onnx.load(tmp_path / "m.onnx"), feed)["z"], run(case.proto(), feed)["z"], rtol=1e-4, atol=1e-4)


def test_two_grids_of_one_tensor_hold_it(tmp_path: Path) -> None:
    case = beside([node("MatMul", "n w3", "z", "third")], {"w3": weights(32, 5, seed=7)})
    seen, _ = evidence(case, tmp_path)
    made = write_static(seen, tmp_path / "m.onnx", static("smooth", formats={"third": "w8a16"}), ONNXRUNTIME_CPU)
    assert {made.table[entry.key].dtype for entry in made.placement.activations if entry.tensor == "n"} == {"uint8", "uint16"}
    assert "n" not in made.factors
    feed = feeds(case, 1, seed=50)[0]
    found, expected = run(onnx.load(tmp_path / "m.onnx"), feed), run(case.proto(), feed)
    assert relative_error(found["z"], expected["z"]) < 0.02


def test_inputs_of_convolutions_are_not_smoothed(tmp_path: Path) -> None:
    case = Case([node("Conv", "x w", "c", "conv"), node("Sigmoid", "c", "y")], {"x": ["N", 4, 6, 6]}, ["y"], {"w": weights(4, 4, 3, 3)})
    seen, _ = evidence(case, tmp_path)
    model = onnx_ir.from_proto(case.proto())
    found = products(model, find_groups(model.graph, ONNXRUNTIME_CPU))
    assert set(found) == {"conv"}
    assert smooth(model, found, seen.captured, {"x"}, INT8, QuantSpec("uint8")) == {}


def test_what_is_equalized_is_not_smoothed_again(tmp_path: Path) -> None:
    sizes = np.geomspace(0.02, 2, 16).astype(np.float32)
    nodes = [node("Gemm", "x w1 b1", "g", "first"), node("Relu", "g", "r"), node("Gemm", "r w2 b2", "y", "second")]
    constants = {"w1": weights(16, 16) * sizes, "b1": weights(16) * sizes, "w2": weights(16, 4, seed=1), "b2": weights(4)}
    case = Case(nodes, {"x": ["N", 16]}, ["y"], constants)
    seen, _ = evidence(case, tmp_path)
    wide = {"second": "w8a16"}  # its input is no integer of the first one's making
    factors = [
        write_static(seen, tmp_path / "m.onnx", static(*transforms, formats=wide), ONNXRUNTIME_CPU).factors
        for transforms in (("equalize",), ("equalize", "smooth"))
    ]
    np.testing.assert_array_equal(factors[1]["r"], factors[0]["r"])
