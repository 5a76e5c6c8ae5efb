"""Write dynamic INT8 models: weights quantized ahead of time, activations at run time.

Matrix products and LSTMs have integer kernels in onnxruntime, inside branches and loops too (openvino reads DynamicQuantizeLSTM as well,
and computes it in floating point). GRU and RNN have none: their weights are stored as int8 a gate's unit, which makes the file small, and
runtimes turn them back when they load it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph import ir_files
from lowbit.graph.groups import is_standard
from lowbit.graph.spelling import keep_sums_apart
from lowbit.quant.affine import from_values, quantize
from lowbit.quiet import no_telemetry, no_warnings
from lowbit.recipe import Recipe
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")
"""Convolutions are left out: onnxruntime's ConvInteger is slower than its FP32 convolution."""

STORED = ("GRU", "RNN")
"""Recurrent operators without an integer kernel: their weights alone are quantized."""

RECURRENT = ("LSTM", *STORED)

HEAD = 0.1
"""Share of the weights up to which the last product of a recurrent model stays in float, its weights stored as float16: nothing after it
evens its rounding out, and it costs next to no time. A character LSTM agrees with FP32 on 97.9 % of its predictions so, on 97.1 % with the
head's weights in int8, whether its activations are rounded or not."""


def write_dynamic(prepared: Path, out: Path, recipe: Recipe) -> Path:
    """Quantizes the weights of matrix products and recurrent layers by `recipe`.

    Raises:
        ValueError: onnxruntime's quantizer met a graph it cannot write.
    """
    no_telemetry()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.parent.mkdir(parents=True, exist_ok=True)
    heads = small_heads(ir_files.read(prepared), recipe)
    with no_warnings():  # its advice to run a pre-processing step that has already been done
        quantize_dynamic(
            _without_weight_shapes(onnx.load_model(prepared)),
            str(out),
            op_types_to_quantize=list(recipe.operators or OPERATORS),
            per_channel=recipe.weights.granularity == "per-channel",
            weight_type=QuantType.QInt8 if recipe.weights.dtype == "int8" else QuantType.QUInt8,
            nodes_to_exclude=[*recipe.exclude, *heads],
            extra_options={"EnableSubgraph": True},
        )
    model = ir_files.read(out)
    if store_recurrent_weights(model, recipe) + store_heads(model, heads) + keep_sums_apart(model):
        ir_files.write(model, out)
    return out


def small_heads(model: ir.Model, recipe: Recipe) -> list[str]:
    """Names of the last products of a recurrent model that are not worth rounding; none in other models."""
    if recipe.operators or not any(node.op_type in RECURRENT and node.name not in recipe.exclude for node in model.graph):
        return []
    sizes = {name: value.const_value.size for name, value in model.graph.initializers.items() if value.const_value is not None}
    small = HEAD * sum(sizes.values())
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm") and node.name not in recipe.exclude and _is_last(node)]
    return [str(node.name) for node in products if sum(sizes.get(str(value.name), 0) for value in node.inputs if value is not None) < small]


def store_heads(model: ir.Model, names: Collection[str]) -> int:
    """Stores the weights of these products as float16, in place; runtimes turn them back when they load the model.

    Returns:
        How many weights.
    """
    count = 0
    for node in [node for node in model.graph if node.name in names]:
        value = node.inputs[1]
        if value is not None and value.const_value is not None and value.const_value.dtype.name == "FLOAT":
            half = value.const_value.numpy().astype(np.float16)
            if np.isfinite(half).all():
                _put_behind(model.graph, node, 1, "Cast", {"half": half}, {"to": 1})  # 1: FLOAT
                count += 1
    return count


def _is_last(node: ir.Node) -> bool:
    """Whether no product or recurrent layer comes after a node."""
    ahead, seen = [node], {node}
    while ahead:
        for user, _ in (use for value in ahead.pop().outputs for use in value.uses()):
            if user.op_type in (*OPERATORS, *RECURRENT, "Conv"):
                return False
            if user not in seen:
                seen.add(user)
                ahead.append(user)
    return True


def _without_weight_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops the noted shapes of weights: onnxruntime's quantizer turns a Gemm's weight and then stumbles over it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def store_recurrent_weights(model: ir.Model, recipe: Recipe) -> int:
    """Puts the weights of GRU and RNN behind DequantizeLinear, in place, with one scale a unit of each gate.

    Returns:
        How many weights.
    """
    wanted = [op for op in STORED if not recipe.operators or op in recipe.operators]
    count = 0
    for node in list(model.graph):
        if node.op_type not in wanted or not is_standard(node) or node.name in recipe.exclude:
            continue
        for index in (1, 2):  # of the input, and of the state
            value = node.inputs[index]
            if value is not None and value.const_value is not None and value.const_value.dtype.name == "FLOAT":
                _store(model.graph, node, index, value.const_value.numpy(), axis=1)  # [directions, gates x units, inputs]
                count += 1
    return count


def _store(graph: ir.Graph, node: ir.Node, index: int, weights: Array, axis: int) -> None:
    """One weight as int8, with a scale for each step of an axis."""
    grid = from_values(weights, "int8", symmetric=True, axis=axis)
    parts = {"quantized": quantize(weights, grid), "scale": grid.scale, "zero_point": grid.zero_point.astype(np.int8)}
    _put_behind(graph, node, index, "DequantizeLinear", parts, {"axis": axis})


def _put_behind(graph: ir.Graph, node: ir.Node, index: int, op: str, parts: Mapping[str, Array], attributes: Mapping[str, int]) -> None:
    """Has an operator on stored parts give a node what a constant gave it; the constant goes when nobody else needs it."""
    import onnx_ir

    value = node.inputs[index]
    assert value is not None, "the caller has looked at it"
    name, inputs = f"{value.name}_{node.name}_{index}", []
    for part, array in parts.items():
        stored = onnx_ir.Value(name=f"{name}_{part}", const_value=onnx_ir.tensor(np.array(array, order="C"), name=f"{name}_{part}"))
        graph.register_initializer(stored)
        inputs.append(stored)
    back = onnx_ir.node(op, inputs, dict(attributes), name=f"{name}_{op}")
    back.outputs[0].name = f"{name}_{op}_Output"
    back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
    graph.insert_before(node, back)
    node.replace_input_with(index, back.outputs[0])
    if not value.uses() and value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]
