"""A small text classifier by hand: embeddings, one attention block with a mask, GELU, normalizations, a mean over real tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

from lowbit.export.neutral import Neutral
from lowbit.graph import ir_files
from lowbit.types import Array, TensorInfo

WORDS, WIDTH, CLASSES = 50, 32, 4
TOKENS, MASK, LOGITS, STATES = "tokens", "mask", "logits", "states"


def classifier(path: Path) -> Path:
    """Writes it: tokens and mask int64 [N, T] -> logits [N, 4] and states [N, T, 32]."""
    rng = np.random.default_rng(7)

    def weight(*shape: int) -> Array:
        return rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32)

    constants: dict[str, Array] = {"words": rng.normal(0, 1, (WORDS, WIDTH)).astype(np.float32)}
    constants |= {name: weight(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
    constants |= {"w1": weight(WIDTH, 64), "b1": weight(64, 64)[0], "w2": weight(64, WIDTH), "wc": weight(WIDTH, CLASSES)}
    constants |= {"ones": np.ones(WIDTH, np.float32), "zeros": np.zeros(WIDTH, np.float32), "bc": np.zeros(CLASSES, np.float32)}
    constants |= {name: np.array(value, np.float32) for name, value in (("one", 1), ("half", 0.5), ("low", -1e4), ("few", 1e-6))}
    constants |= {
        "root": np.sqrt(np.float32(2)),
        "scale": np.array(WIDTH**-0.5, np.float32),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
    }
    nodes = [
        helper.make_node(op, inputs, [output], name=output, **given)
        for op, inputs, output, given in (
            ("Gather", ["words", TOKENS], "x", {}),
            ("Cast", [MASK], "m", {"to": TensorProto.FLOAT}),
            ("Sub", ["one", "m"], "gone", {}),
            ("Mul", ["gone", "low"], "far", {}),
            ("Unsqueeze", ["far", "axis1"], "hide", {}),
            ("MatMul", ["x", "wq"], "q", {}),
            ("MatMul", ["x", "wk"], "k", {}),
            ("MatMul", ["x", "wv"], "v", {}),
            ("Transpose", ["k"], "kt", {"perm": [0, 2, 1]}),
            ("MatMul", ["q", "kt"], "raw", {}),
            ("Mul", ["raw", "scale"], "scores", {}),
            ("Add", ["scores", "hide"], "masked", {}),
            ("Softmax", ["masked"], "shares", {"axis": -1}),
            ("MatMul", ["shares", "v"], "mixed", {}),
            ("MatMul", ["mixed", "wo"], "attended", {}),
            ("Add", ["x", "attended"], "sum1", {}),
            ("LayerNormalization", ["sum1", "ones", "zeros"], "n1", {"axis": -1}),
            ("MatMul", ["n1", "w1"], "wide", {}),
            ("Add", ["wide", "b1"], "u", {}),
            ("Div", ["u", "root"], "u2", {}),
            ("Erf", ["u2"], "erf", {}),
            ("Add", ["erf", "one"], "gate", {}),
            ("Mul", ["u", "gate"], "gated", {}),
            ("Mul", ["gated", "half"], "gelu", {}),
            ("MatMul", ["gelu", "w2"], "narrow", {}),
            ("Add", ["n1", "narrow"], "sum2", {}),
            ("LayerNormalization", ["sum2", "ones", "zeros"], STATES, {"axis": -1}),
            ("Unsqueeze", ["m", "axis2"], "m3", {}),
            ("Mul", [STATES, "m3"], "real", {}),
            ("ReduceSum", ["real", "axis1"], "total", {"keepdims": 0}),
            ("ReduceSum", ["m", "axis1"], "count", {"keepdims": 1}),
            ("Max", ["count", "few"], "counted", {}),
            ("Div", ["total", "counted"], "mean", {}),
            ("Gemm", ["mean", "wc", "bc"], LOGITS, {}),
        )
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in (TOKENS, MASK)]
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", CLASSES]),
        helper.make_tensor_value_info(STATES, TensorProto.FLOAT, ["N", "T", WIDTH]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ir_files.write(onnx_ir.from_proto(made), path)
    return path


def neutral(path: Path, *, samples: dict[str, Array] | None = None) -> Neutral:
    """As a candidate whose weights stay as they are."""
    inputs = tuple(TensorInfo(name, ("N", "T"), "int64") for name in (TOKENS, MASK))
    outputs = (TensorInfo(LOGITS, ("N", CLASSES), "float32"), TensorInfo(STATES, ("N", "T", WIDTH), "float32"))
    return Neutral("classifier", ir_files.read(path), {}, {}, {}, {}, inputs, outputs, None, (), "int8", samples or {})


def texts(n: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Random words, every text of another length up to `length`."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, length + 1, n)
    sizes[0] = length
    mask = (np.arange(length) < sizes[:, None]).astype(np.int64)
    return {TOKENS: rng.integers(1, WORDS, (n, length)) * mask, MASK: mask}
