"""Dynamic INT8: matrix products, recurrent layers, and what is inside loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_subgraphs import loop

from graph_cases import Case, node, relative_error, run, samples, weights
from lowbit.graph.dynamic import write_dynamic
from lowbit.graph.load import load_model
from lowbit.graph.prepare import prepare
from lowbit.recipe import QuantSpec, Recipe
from lowbit.runtimes import registry
from lowbit.types import Array, Tuning

DYNAMIC = Recipe("dynamic", "dynamic", QuantSpec("int8", "per-channel", symmetric=True))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, directions: int = 1, units: int = 64) -> Case:
    """A recurrent layer and a matrix product; x [T, N, 32]."""
    rows = GATES[op] * units
    constants = {
        "w": weights(directions, rows, 32, scale=0.1),
        "r": weights(directions, rows, units, seed=1, scale=0.1),
        "b": weights(directions, 2 * rows, seed=2, scale=0.1),
        "v": weights(units, 8, seed=3),
    }
    direction = "forward" if directions == 1 else "bidirectional"
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    nodes = [node(op, "x w r b", "h", hidden_size=units, direction=direction, **more), node("MatMul", "h v", "y")]
    return Case(nodes, {"x": [12, 2, 32]}, ["y"], constants)


def all_operators(graph: onnx.GraphProto) -> list[str]:
    inner = [op for each in graph.node for a in each.attribute if a.HasField("g") for op in all_operators(a.g)]
    return [each.op_type for each in graph.node] + inner


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_recurrent_layers_get_small_and_stay_right_on_every_runtime(tmp_path: Path, op: str, directions: int) -> None:
    case, feeds = recurrent(op, directions), {"x": samples((12, 2, 32))}
    path = prepare(load_model(case.save(tmp_path / "m.onnx")), tmp_path / "prepared.onnx")
    small = write_dynamic(path, tmp_path / "small.onnx", DYNAMIC)
    assert small.stat().st_size < 0.45 * path.stat().st_size
    expected = run(case.proto(), feeds)["y"]
    for runtime in registry.available():
        if runtime.name in ("onnxruntime", "openvino"):
            found = runtime.open(small, Tuning(threads=1), None).run(feeds)["y"]
            assert 0 < relative_error(found, expected) < 0.02, runtime.name


def test_a_recurrent_models_small_head_stays_float(tmp_path: Path) -> None:
    path = prepare(load_model(recurrent("LSTM").save(tmp_path / "m.onnx")), tmp_path / "prepared.onnx")
    operators = all_operators(onnx.load(write_dynamic(path, tmp_path / "small.onnx", DYNAMIC)).graph)
    assert {"DynamicQuantizeLSTM", "Cast", "MatMul"} <= set(operators)
    large = recurrent("LSTM")
    large.constants["v"] = weights(64, 200, seed=3)
    path = prepare(load_model(large.save(tmp_path / "large.onnx")), tmp_path / "prepared_large.onnx")
    assert "MatMul" not in all_operators(onnx.load(write_dynamic(path, tmp_path / "small_large.onnx", DYNAMIC)).graph)


def test_what_a_recipe_excludes_stays_float(tmp_path: Path) -> None:
    path = prepare(load_model(recurrent("GRU").save(tmp_path / "m.onnx")), tmp_path / "prepared.onnx")
    name = next(each.name for each in onnx.load(path).graph.node if each.op_type == "GRU")
    for recipe in (
        Recipe("d", "dynamic", DYNAMIC.weights, exclude=(name,)),
        Recipe("d", "dynamic", DYNAMIC.weights, operators=("MatMul",)),
    ):
        model = onnx.load(write_dynamic(path, tmp_path / "small.onnx", recipe))
        assert "DequantizeLinear" not in all_operators(model.graph)
        assert "MatMulInteger" in all_operators(model.graph)


def test_products_inside_loops_are_quantized_too(tmp_path: Path) -> None:
    case, feeds = loop(), {"x": samples((5, 16))}
    path = prepare(load_model(case.save(tmp_path / "m.onnx")), tmp_path / "prepared.onnx")
    model = onnx.load(write_dynamic(path, tmp_path / "small.onnx", DYNAMIC))
    onnx.checker.check_model(model)
    expected = run(case.proto(), feeds)
    for name, found in run(model, feeds).items():
        assert relative_error(found, expected[name]) < 0.05
    outer = [each.op_type for each in model.graph.node]
    assert outer.count("MatMulInteger") == 2


def bits_per_character(path: Path, ids: Array) -> float:
    """Of rows of 512 characters from a zero state, the first 32 of each not counted."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: ids})[0][:, :-1].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, ids[:, 1:, None], -1)[..., 0] - np.log(np.exp(shifted).sum(-1))
    return float(-chosen[:, 31:].mean() / np.log(2))


def test_a_character_model_loses_next_to_nothing(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "char-lstm"
    vocabulary = json.loads((folder / "char_lstm_charlotte_bronte.vocab.json").read_text())
    text = (folder / "bronte_1M.txt").open(encoding="utf-8", newline="").read(32 * 512)
    ids = np.array([vocabulary.get(letter, 0) for letter in text], np.int64).reshape(-1, 512)
    path = prepare(load_model(folder / "char_lstm_charlotte_bronte.onnx"), tmp_path / "prepared.onnx")
    small = write_dynamic(path, tmp_path / "small.onnx", DYNAMIC)
    assert small.stat().st_size < path.stat().st_size / 3
    before = bits_per_character(path, ids)
    assert abs(bits_per_character(small, ids) - before) < 0.01
    coarse = write_dynamic(path, tmp_path / "coarse.onnx", Recipe("d", "dynamic", QuantSpec("int8", symmetric=True)))
    assert bits_per_character(coarse, ids) - before > 0.01


def test_a_turned_weight_with_a_noted_shape_is_written(tmp_path: Path) -> None:
    """torch's exporter notes the shapes of weights; onnxruntime's quantizer turns a Gemm's weight around and keeps the note."""
    case = Case([node("Gemm", "x w b", "y", transB=1)], {"x": [5, 32]}, ["y"], {"w": weights(6, 32), "b": weights(6, seed=1)})
    proto = case.proto()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [6, 32]))
    onnx.save_model(proto, tmp_path / "m.onnx")
    small = write_dynamic(tmp_path / "m.onnx", tmp_path / "small.onnx", DYNAMIC)
    feeds = {"x": samples((5, 32))}
    assert "MatMulInteger" in all_operators(onnx.load_model(small).graph)
    found = registry.get("onnxruntime").open(small, Tuning(threads=1), None).run(feeds)["y"]
    assert 0 < relative_error(found, run(proto, feeds)["y"]) < 0.02
