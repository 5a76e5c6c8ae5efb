"""A sound bound on what rounding can do to every element of every tensor of a quantized model.

Walks the written model beside the float one. A rounded tensor is off by half a step more than what went in; a product of x +- e with
quantized weights by |W_q| e + |W_q - W| |x|; other operators by their Lipschitz constant. Saturation adds nothing as long as ranges cover
the float values: clipping is a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lowbit.types import Array

STEEPEST = {
    "Clip": 1.0, "Elu": 1.0, "Gelu": 1.13, "HardSigmoid": 0.2, "HardSwish": 1.5, "LeakyRelu": 1.0, "Mish": 1.1, "Relu": 1.0,
    "Sigmoid": 0.25, "Softmax": 0.5, "Tanh": 1.0, "Identity": 1.0, "Sqrt": np.inf,
}  # fmt: skip
"""Lipschitz constants of pointwise operators (Softmax: in the largest difference along its axis)."""

LINEAR = frozenset(
    {"AveragePool", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "MaxPool", "Pad", "ReduceMean", "Reshape"}
    | {"Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that give, of bounds on their inputs, a bound on their output: means, maxima and moves."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_ROUNDOFF = 1e-5  # of float32 arithmetic, as a share of the values


def predicted(model: onnx.ModelProto, quantized: onnx.ModelProto, values: Mapping[str, Array]) -> dict[str, Array]:
    """Tensor of the quantized model -> bound on its distance from its twin in the float model, elementwise.

    Args:
        model: Float; nodes have names.
        quantized: Written from it; nodes kept theirs.
        values: All tensors of the float model on the samples that are bounded.
    """
    plain = {each.name: each for each in model.graph.node}
    floats = {**{t.name: numpy_helper.to_array(t) for t in model.graph.initializer}, **values}
    constants = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in quantized.graph.initializer}
    loose = _rounded_for_some(quantized, constants)
    bounds: dict[str, Array] = {}
    stored: dict[str, Array] = {}
    opset = next(each.version for each in quantized.opset_import if each.domain == "")
    for each in quantized.graph.node:
        if each.op_type == "QuantizeLinear":
            bounds[each.output[0]] = bounds.get(each.input[0], np.zeros(()))
        elif each.op_type == "DequantizeLinear" and each.input[0] in constants:
            stored[each.output[0]] = dequantized(each, constants)
        elif each.op_type == "DequantizeLinear":
            bounds[each.output[0]] = bounds[each.input[0]] + constants[each.input[1]].max() / 2
        else:
            twin = plain[each.name]
            exact = [floats.get(name) for name in twin.input]
            off = [_off(name, value, bounds, stored) for name, value in zip(each.input, exact, strict=True)]
            for name, found in zip(each.output, _bound(twin, exact, off, opset), strict=False):
                bounds[name] = found + loose.get(name, 0.0)
    for output in quantized.graph.output:
        bounds[output.name] = bounds[output.name] + _ROUNDOFF * np.abs(values[output.name]).max()
    return bounds


def _rounded_for_some(model: onnx.ModelProto, constants: Mapping[str, Array]) -> dict[str, float]:
    """Tensor -> half a step, of those that some readers see rounded and others do not, and of what they were moved from.

    Optimizers carry such a rounding back through moves, and then more readers see it.
    """
    found: dict[str, float] = {}
    for each in reversed(model.graph.node):
        if each.op_type == "QuantizeLinear" and "_rounded_" in each.name:
            found[each.input[0]] = max(found.get(each.input[0], 0.0), float(constants[each.input[1]].max()) / 2)
        elif each.op_type in LINEAR:
            for name in each.input:
                found[name] = max([found.get(name, 0.0), *(found.get(output, 0.0) for output in each.output)])
    return found


def dequantized(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Array:
    """A stored constant in real units: by channel, by block, or whole."""
    grid, scale, zero = (constants[name] for name in node.input)
    attributes = {a.name: a.i for a in node.attribute}
    if attributes.get("block_size"):
        spread = [np.repeat(each, attributes["block_size"], axis=attributes["axis"]) for each in (scale, zero)]
        return (grid - spread[1]) * spread[0]
    if scale.ndim == 1:
        shape = [-1 if axis == attributes.get("axis", 1) else 1 for axis in range(grid.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (grid - zero) * scale


def _off(name: str, exact: Array | None, bounds: Mapping[str, Array], stored: Mapping[str, Array]) -> Array:
    """How far an input of a node may be from its float twin."""
    if name in stored:
        assert exact is not None
        return np.abs(stored[name].reshape(exact.shape if stored[name].size == exact.size else stored[name].shape) - exact)
    found = bounds.get(name, np.zeros(()))
    return np.broadcast_to(found, exact.shape) if exact is not None and exact.dtype.kind == "f" else found


def _bound(node: onnx.NodeProto, exact: Sequence[Array | None], off: Sequence[Array], opset: int) -> list[Array]:
    if node.op_type in PRODUCTS:
        return [_product(node, exact, off, opset)]
    if node.op_type in ("Add", "Sub", "Sum"):
        return [sum(off[1:], off[0])]
    if node.op_type in ("Mul", "Div"):
        return [_mul(node, exact, off)]
    if node.op_type == "LayerNormalization":
        return [_layer_norm(node, exact, off)]
    if node.op_type == "Exp":
        return [np.exp(exact[0]) * np.expm1(off[0])]
    if node.op_type == "PRelu":
        return [off[0] * np.maximum(1.0, np.abs(exact[1]))]
    if node.op_type == "Softmax":
        return [np.broadcast_to(STEEPEST["Softmax"] * off[0].max(axis=-1, keepdims=True), off[0].shape)]
    if node.op_type in STEEPEST:
        slope = next((a.f for a in node.attribute if a.name == "alpha"), STEEPEST[node.op_type])
        return [max(STEEPEST[node.op_type], slope) * off[0]]
    assert node.op_type in LINEAR, node.op_type
    data = len(off) if node.op_type == "Concat" else 1  # the rest are shapes and numbers
    return evaluate(node, [*off[:data], *exact[data:]], opset)


def _product(node: onnx.NodeProto, exact: Sequence[Array | None], off: Sequence[Array], opset: int) -> Array:
    """|W| e_x + e_W |x| + e_W e_x + e_b, the operator itself doing the sums."""
    x, w = (np.abs(each).astype(np.float64) for each in exact[:2] if each is not None)
    whole = evaluate(node, [x + off[0], w + off[1]], opset)[0] - evaluate(node, [x, w], opset)[0]
    return whole if len(off) < 3 else whole + _row(off[2], node, whole)


def _row(bias: Array, node: onnx.NodeProto, like: Array) -> Array:
    return bias.reshape(1, -1, *[1] * (like.ndim - 2)) if node.op_type.startswith("Conv") else bias


def _layer_norm(node: onnx.NodeProto, exact: Sequence[Array | None], off: Sequence[Array]) -> Array:
    """Over the last axis. The standard deviation is a seminorm, so that it moves by no more than the root mean square of what x does."""
    x, gamma, e = exact[0], exact[1], off[0]
    assert x is not None
    assert gamma is not None
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    centred = np.abs(x - x.mean(-1, keepdims=True)).astype(np.float64)
    sigma = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    moved = np.sqrt((e**2).mean(-1, keepdims=True))
    least = np.maximum(sigma - moved, np.sqrt(epsilon))
    return np.abs(gamma) * ((e + e.mean(-1, keepdims=True)) / least + centred * moved / (sigma * least))


def _mul(node: onnx.NodeProto, exact: Sequence[Array | None], off: Sequence[Array]) -> Array:
    a, b = (np.abs(each) for each in exact if each is not None)
    if node.op_type == "Mul":
        return a * off[1] + b * off[0] + off[0] * off[1]
    floor = np.maximum(b - off[1], 1e-30)
    return (off[0] + a / np.maximum(b, 1e-30) * off[1]) / floor


def evaluate(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """What one node gives, in float64, by onnx's reference (grouped transposed convolutions, which it gets wrong, group by group)."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose" and groups > 1:
        single = onnx.NodeProto()
        single.CopyFrom(node)
        next(a for a in single.attribute if a.name == "group").i = 1
        parts = zip(
            *(np.split(each, groups, axis=axis) for each, axis in zip(inputs[:2], (1, 0), strict=True) if each is not None), strict=True
        )
        return [np.concatenate([evaluate(single, list(part), opset)[0] for part in parts], axis=1)]
    given = {f"i{i}": each for i, each in enumerate(inputs) if each is not None}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(f"i{i}" if each is not None else "" for i, each in enumerate(inputs))
    typed: Callable[[str, Any], Any] = lambda name, kind: helper.make_tensor_value_info(name, kind, None)  # noqa: E731
    sources = [typed(name, helper.np_dtype_to_tensor_dtype(np.asarray(each).dtype)) for name, each in given.items()]
    graph = helper.make_graph([copy], "one", sources, [typed(name, onnx.TensorProto.DOUBLE) for name in copy.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ReferenceEvaluator(model).run(None, given)
