"""Products that read the same tensor become one, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from lowbit.graph import ir_files
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare


def projections(path: Path, *, biases: tuple[bool, ...] = (True, True, True), widths: tuple[int, ...] = (8, 8, 4)) -> Path:
    """x [N, T, 6] -> one projection a width, each with a bias or without, summed over their last axis."""
    rng = np.random.default_rng(0)
    nodes, weights, sums = [], [], []
    for index, (bias, width) in enumerate(zip(biases, widths, strict=True)):
        weights.append(numpy_helper.from_array(rng.normal(size=(6, width)).astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{index}"], [f"p{index}"], name=f"product{index}"))
        result = f"p{index}"
        if bias:
            weights.append(numpy_helper.from_array(rng.normal(size=width).astype(np.float32), f"b{index}"))
            nodes.append(helper.make_node("Add", [f"b{index}", result], [f"linear{index}"], name=f"add{index}"))
            result = f"linear{index}"
        nodes.append(helper.make_node("Tanh", [result], [f"t{index}"], name=f"tanh{index}"))
        nodes.append(helper.make_node("ReduceMean", [f"t{index}"], [f"s{index}"], axes=[-1], name=f"mean{index}"))
        sums.append(f"s{index}")
    nodes.append(helper.make_node("Concat", sums, ["y"], axis=-1, name="joined"))
    value = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["N", 5, 6]), ("y", ["N", 5, len(widths)]))]
    graph = helper.make_graph(nodes, "projections", value[:1], value[1:], weights)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def products_of(path: Path) -> list[str]:
    return [str(node.name) for node in ir_files.read(path).graph if node.op_type == "MatMul"]


def test_three_projections_become_one_and_compute_the_same(tmp_path: Path) -> None:
    source = projections(tmp_path / "three.onnx")
    prepared = prepare(load_model(source), tmp_path / "prepared.onnx")
    assert products_of(prepared) == ["product0_merged"]
    x = np.random.default_rng(1).normal(size=(3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(run(prepared, x), run(source, x), atol=1e-6)


def test_parts_keep_the_names_of_the_tensors_they_replace(tmp_path: Path) -> None:
    prepared = prepare(load_model(projections(tmp_path / "three.onnx")), tmp_path / "prepared.onnx")
    split = next(node for node in ir_files.read(prepared).graph if node.op_type == "Split")
    assert [value.name for value in split.outputs] == ["linear0", "linear1", "linear2"]


def test_products_without_biases_are_merged_too(tmp_path: Path) -> None:
    source = projections(tmp_path / "bare.onnx", biases=(False, False), widths=(3, 5))
    prepared = prepare(load_model(source), tmp_path / "prepared.onnx")
    assert len(products_of(prepared)) == 1
    x = np.random.default_rng(2).normal(size=(2, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(run(prepared, x), run(source, x), atol=1e-6)


def test_a_bias_on_some_of_them_leaves_all_alone(tmp_path: Path) -> None:
    source = projections(tmp_path / "mixed.onnx", biases=(True, False), widths=(3, 5))
    assert len(products_of(prepare(load_model(source), tmp_path / "prepared.onnx"))) == 2
