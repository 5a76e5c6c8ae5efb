"""Rewrites change how a graph is written and what runtimes fuse, not what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from lowbit.graph import ir_files
from lowbit.graph.spelling import halve_gelu_last, keep_sums_apart, name_gelus

WIDTH = 6


def block(path: Path, *, half: float = 0.5, swapped: bool = False, reciprocal: bool = False, sum_is_output: bool = True) -> Path:
    """x [N, 4, 6] -> GELU with the half first -> + x -> LayerNormalization."""
    constants = {"root": 1 / np.sqrt(2) if reciprocal else np.sqrt(2), "one": 1.0, "half": half}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    weights.append(numpy_helper.from_array(np.linspace(0.5, 1.5, WIDTH, dtype=np.float32), "gain"))
    weights.append(numpy_helper.from_array(np.linspace(-1, 1, WIDTH, dtype=np.float32), "shift"))
    nodes = [
        helper.make_node("Mul" if reciprocal else "Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["one", "erf"] if swapped else ["erf", "one"], ["gate"]),
        helper.make_node("Mul", ["gate", "half"] if swapped else ["half", "gate"], ["halved"]),
        helper.make_node("Mul", ["halved", "x"] if swapped else ["x", "halved"], ["gelu"]),
        helper.make_node("Add", ["gelu", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gain", "shift"], ["y"]),
    ]
    x, y, total = (helper.make_tensor_value_info(name, 1, ["N", 4, WIDTH]) for name in ("x", "y", "sum"))
    graph = helper.make_graph(nodes, "block", [x], [y, total] if sum_is_output else [y], weights)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(path: Path, optimized: Path | None = None) -> list[np.ndarray]:  # type: ignore[type-arg]
    options = onnxruntime.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(0).normal(size=(5, 4, WIDTH)).astype(np.float32)})


def kernels(path: Path, folder: Path) -> list[str]:
    """What onnxruntime runs."""
    run(path, folder / "optimized.onnx")
    return [node.op_type for node in onnx.load_model(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_a_gelu_that_halves_first_is_fused_once_it_halves_last(tmp_path: Path, swapped: bool, reciprocal: bool) -> None:
    source = block(tmp_path / "source.onnx", swapped=swapped, reciprocal=reciprocal)
    model = ir_files.read(source)
    assert halve_gelu_last(model) == 1
    ir_files.write(model, tmp_path / "rewritten.onnx")
    onnx.checker.check_model(str(tmp_path / "rewritten.onnx"), full_check=True)
    for found, expected in zip(run(tmp_path / "rewritten.onnx"), run(source), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if not reciprocal:  # onnxruntime looks for the division
        assert "Erf" in kernels(source, tmp_path)
        assert "Gelu" in kernels(tmp_path / "rewritten.onnx", tmp_path)


def test_another_factor_is_no_gelu(tmp_path: Path) -> None:
    assert halve_gelu_last(ir_files.read(block(tmp_path / "source.onnx", half=0.25))) == 0


def test_a_rewritten_gelu_is_left_alone(tmp_path: Path) -> None:
    model = ir_files.read(block(tmp_path / "source.onnx"))
    assert [halve_gelu_last(model), halve_gelu_last(model)] == [1, 0]


def test_a_sum_before_a_normalisation_stays_apart_and_keeps_its_name(tmp_path: Path) -> None:
    source = block(tmp_path / "source.onnx")
    model = ir_files.read(source)
    assert keep_sums_apart(model) == 1
    ir_files.write(model, tmp_path / "apart.onnx")
    onnx.checker.check_model(str(tmp_path / "apart.onnx"), full_check=True)
    assert [output.name for output in ir_files.read(tmp_path / "apart.onnx").graph.outputs] == ["y", "sum"]
    for found, expected in zip(run(tmp_path / "apart.onnx"), run(source), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_onnxruntime_fuses_a_sum_with_the_normalisation_unless_it_is_kept_apart(tmp_path: Path) -> None:
    source = block(tmp_path / "source.onnx", sum_is_output=False)
    assert "SkipLayerNormalization" in kernels(source, tmp_path)
    model = ir_files.read(source)
    keep_sums_apart(model)
    ir_files.write(model, tmp_path / "apart.onnx")
    assert {"Sum", "LayerNormalization"} <= set(kernels(tmp_path / "apart.onnx", tmp_path))


def test_a_bias_before_a_normalisation_is_no_residual_sum(tmp_path: Path) -> None:
    source = block(tmp_path / "source.onnx")
    proto = onnx.load_model(source)
    next(node for node in proto.graph.node if node.output[0] == "sum").input[1] = "gain"
    onnx.save_model(proto, source)
    assert keep_sums_apart(ir_files.read(source)) == 0


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("order", ["half first", "half last", "half before"])
def test_a_gelu_gets_its_name_in_whatever_order_it_is_written(tmp_path: Path, order: str, swapped: bool, reciprocal: bool) -> None:
    source = block(tmp_path / "source.onnx", swapped=swapped, reciprocal=reciprocal)
    model = ir_files.read(source)
    if order == "half last":
        assert halve_gelu_last(model) == 1
    elif order == "half before":
        halve_before(model)
    wanted = run(source)
    assert name_gelus(model) == 1
    assert [node.op_type for node in model.graph] == ["Gelu", "Add", "LayerNormalization"]
    assert next(iter(model.graph)).outputs[0].name == "gelu"
    model.opset_imports[""] = 20  # the first that knows it by this name
    ir_files.write(model, tmp_path / "named.onnx")
    for found, before in zip(run(tmp_path / "named.onnx"), wanted, strict=True):
        assert np.abs(found - before).max() < 1e-5


def halve_before(model: ir.Model) -> None:
    """x · (½ · gate) -> (x · ½) · gate, in place."""
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    inner, outer, gate, half = nodes["halved"], nodes["gelu"], nodes["gate"].outputs[0], model.graph.initializers["half"]
    inner.replace_input_with(0, model.graph.inputs[0])
    inner.replace_input_with(1, half)
    outer.replace_input_with(0, gate)
    outer.replace_input_with(1, inner.outputs[0])


def test_what_only_looks_like_a_gelu_keeps_its_name(tmp_path: Path) -> None:
    model = ir_files.read(block(tmp_path / "source.onnx", half=0.25))
    assert name_gelus(model) == 0
    assert len(list(model.graph)) == 7
