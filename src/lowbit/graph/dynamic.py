"""Write dynamic INT8 models: weights quantized ahead of time, activations at run time.

Matrix products and LSTMs have integer kernels in onnxruntime, inside branches and loops too (openvino reads DynamicQuantizeLSTM as well,
and computes it in floating point). GRU and RNN have none: their weights are stored as int8 a gate's unit, which makes the file small, and
runtimes turn them back when they load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph import ir_files
from lowbit.graph.groups import is_standard
from lowbit.graph.spelling import keep_sums_apart
from lowbit.quant.affine import from_values, quantize
from lowbit.quiet import no_telemetry, no_warnings
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")
"""Convolutions are left out: onnxruntime's ConvInteger is slower than its FP32 convolution."""

STORED = ("GRU", "RNN")
"""Recurrent operators without an integer kernel: their weights alone are quantized."""


def write_dynamic(prepared: Path, out: Path, recipe: Recipe) -> Path:
    """Quantizes the weights of matrix products and recurrent layers by `recipe`.

    Raises:
        ValueError: onnxruntime's quantizer met a graph it cannot write.
    """
    no_telemetry()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.parent.mkdir(parents=True, exist_ok=True)
    with no_warnings():  # its advice to run a pre-processing step that has already been done
        quantize_dynamic(
            _without_weight_shapes(onnx.load_model(prepared)),
            str(out),
            op_types_to_quantize=list(recipe.operators or OPERATORS),
            per_channel=recipe.weights.granularity == "per-channel",
            weight_type=QuantType.QInt8 if recipe.weights.dtype == "int8" else QuantType.QUInt8,
            nodes_to_exclude=list(recipe.exclude),
            extra_options={"EnableSubgraph": True},
        )
    model = ir_files.read(out)
    if store_recurrent_weights(model, recipe) + keep_sums_apart(model):
        ir_files.write(model, out)
    return out


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
                _store(model.graph, node, index, value)
                count += 1
    return count


def _store(graph: ir.Graph, node: ir.Node, index: int, value: ir.Value) -> None:
    """One weight [directions, gates x units, inputs] as int8."""
    import onnx_ir

    assert value.const_value is not None
    weights = value.const_value.numpy()
    grid = from_values(weights, "int8", symmetric=True, axis=1)
    name = f"{value.name}_{node.name}_{index}"
    parts = {"quantized": quantize(weights, grid), "scale": grid.scale, "zero_point": grid.zero_point.astype(np.int8)}
    inputs = []
    for part, array in parts.items():
        stored = onnx_ir.Value(name=f"{name}_{part}", const_value=onnx_ir.tensor(np.array(array, order="C"), name=f"{name}_{part}"))
        graph.register_initializer(stored)
        inputs.append(stored)
    back = onnx_ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{name}_DequantizeLinear")
    back.outputs[0].name = f"{name}_DequantizeLinear_Output"
    back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
    graph.insert_before(node, back)
    node.replace_input_with(index, back.outputs[0])
    if not value.uses() and value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]
