"""Small ONNX models for tests, and what they must answer, from onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]


def reference(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Answers of onnx's own evaluator, which computes every node by its definition."""
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def save(
    path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, Array], domain: str = ""
) -> Path:
    """Writes a model; inputs and outputs are name -> (element type, shape)."""
    values = [[helper.make_tensor_value_info(name, *info) for name, info in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    opsets = [helper.make_opsetid("", 19)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def images(n: int, seed: int = 0) -> Array:
    """float32 [n, 3, 8, 8] in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)


def cnn_weights() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        "w1": rng.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 6).astype(np.float32),
        "w2": rng.normal(0, 0.1, (10, 384)).astype(np.float32),
        "b2": rng.normal(0, 0.1, 10).astype(np.float32),
    }


def cnn(path: Path, batch: int | str = "N") -> Path:
    """FP32: Conv, Relu, Flatten, Gemm. Input "input.1" [N, 3, 8, 8], output "logits" [N, 10]."""
    nodes = [
        helper.make_node("Conv", ["input.1", "w1", "b1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="gemm", transB=1),
    ]
    inputs = {"input.1": (TensorProto.FLOAT, [batch, 3, 8, 8])}
    return save(path, nodes, inputs, {"logits": (TensorProto.FLOAT, [batch, 10])}, cnn_weights())


LOGITS_STEP = 0.02
"""Step of the quantized logits of `cnn_qdq`."""


def cnn_qdq(path: Path) -> Path:
    """`cnn` in QDQ form: uint8 activations per tensor, int8 weights per channel, int32 biases."""
    plain = cnn_weights()
    x_step, r_step = np.float32(2 / 255), np.float32(4 / 255)
    s1, s2 = (np.abs(plain[w].reshape(len(plain[w]), -1)).max(1) / 127 for w in ("w1", "w2"))
    weights: dict[str, Array] = {
        "x_s": np.array(x_step),
        "x_z": np.array(128, np.uint8),
        "r_s": np.array(r_step),
        "r_z": np.array(0, np.uint8),
        "y_s": np.array(LOGITS_STEP, np.float32),
        "y_z": np.array(128, np.uint8),
    }
    for number, scales, step in (("1", s1, x_step), ("2", s2, r_step)):
        shaped = scales.reshape(-1, *[1] * (plain[f"w{number}"].ndim - 1))
        weights[f"w{number}_q"] = np.clip(np.round(plain[f"w{number}"] / shaped), -127, 127).astype(np.int8)
        weights[f"w{number}_s"], weights[f"w{number}_z"] = scales.astype(np.float32), np.zeros(len(scales), np.int8)
        weights[f"b{number}_q"] = np.round(plain[f"b{number}"] / (scales * step)).astype(np.int32)
        weights[f"b{number}_s"], weights[f"b{number}_z"] = (scales * step).astype(np.float32), np.zeros(len(scales), np.int32)

    def qdq(tensor: str, scale: str) -> list[Any]:
        names = [f"{scale}_s", f"{scale}_z"]
        return [
            helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}_q"]),
            helper.make_node("DequantizeLinear", [f"{tensor}_q", *names], [f"{tensor}_d"]),
        ]

    nodes = [helper.make_node("DequantizeLinear", [f"{t}_q", f"{t}_s", f"{t}_z"], [f"{t}_d"], axis=0) for t in ("w1", "b1", "w2", "b2")]
    nodes += [
        *qdq("input.1", "x"),
        helper.make_node("Conv", ["input.1_d", "w1_d", "b1_d"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        *qdq("r", "r"),
        helper.make_node("Flatten", ["r_d"], ["f"], name="flatten"),
        *qdq("f", "r"),
        helper.make_node("Gemm", ["f_d", "w2_d", "b2_d"], ["g"], name="gemm", transB=1),
        helper.make_node("QuantizeLinear", ["g", "y_s", "y_z"], ["g_q"]),
        helper.make_node("DequantizeLinear", ["g_q", "y_s", "y_z"], ["logits"]),
    ]
    shapes = {"input.1": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"logits": (TensorProto.FLOAT, ["N", 10])}
    return save(path, nodes, *shapes, weights)


def two_inputs(path: Path) -> Path:
    """Inputs a, b float32 [N, 4]; outputs total = a + b, product = a * b, and `same`, another name for total."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Identity", ["total"], ["same"]),
    ]
    info = (TensorProto.FLOAT, ["N", 4])
    return save(path, nodes, {"a": info, "b": info}, {"total": info, "product": info, "same": info}, {})


def embedding(path: Path) -> Path:
    """Input ids int64 [N, T]; output mean float32 [N, 8] of their embeddings."""
    table = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("ReduceMean", ["e", "axis"], ["mean"], keepdims=0)]
    shapes = {"ids": (TensorProto.INT64, ["N", "T"])}, {"mean": (TensorProto.FLOAT, ["N", 8])}
    return save(path, nodes, *shapes, {"table": table, "axis": np.array([1])})


def half_weights(path: Path) -> Path:
    """Weights stored in float16 and cast up: x float32 [N, 16] -> y [N, 4]."""
    weight = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float16)
    nodes = [helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "w32"], ["y"])]
    shapes = {"x": (TensorProto.FLOAT, ["N", 16])}, {"y": (TensorProto.FLOAT, ["N", 4])}
    return save(path, nodes, *shapes, {"w": weight})


def wide_matmul(path: Path) -> Path:
    """x float32 [N, 512] @ [512, 64]: long sums, in which 16-bit arithmetic shows."""
    weight = np.random.default_rng(4).normal(size=(512, 64)).astype(np.float32)
    shapes = {"x": (TensorProto.FLOAT, ["N", 512])}, {"y": (TensorProto.FLOAT, ["N", 64])}
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], *shapes, {"w": weight})


def unknown_operator(path: Path) -> Path:
    """Uses acme.Frobnicate, which no runtime has."""
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")]
    info = (TensorProto.FLOAT, ["N", 4])
    return save(path, nodes, {"x": info}, {"y": info}, {}, domain="acme")
