"""What QNN's HTP wants of a QDQ model, held against a file.

The rules are those of onnxruntime's QNN execution provider
(https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html) and of its own quantization settings
(`onnxruntime.quantization.execution_providers.qnn`); those on signs and on widths are from running operators in the emulator (docs/lab.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.export.base import Finding
from lowbit.export.falling_back import parts
from lowbit.export.pair_rules import (
    DEQUANTIZE,
    PRODUCTS,
    QUANTIZE,
    Step,
    constant_scales,
    from_pair,
    read_graph,
    scales_a_channel,
    steps_of,
)
from lowbit.graph.groups import is_constant, is_standard, may_be_float

if TYPE_CHECKING:
    import onnx_ir as ir

# fmt: off
OPERATORS = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat",
        "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu", "Equal", "Exp", "Expand",
        "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater",
        "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LRN",
        "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max",
        "MaxPool", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign", "Round", "STFT",
        "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
        "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where",
    }
)
# fmt: on
"""Operators that the execution provider has (its list, and its table of builders)."""

UNSIGNED = ("uint8", "uint16")
FIXED_16 = {"Sigmoid": (1 / 65536, 0), "Tanh": (1 / 32768, 32768)}
"""Operators that have one grid for what they give in 16 bit: scale and zero point."""

_ABSORBED = ("Clip", "Relu")
_ELEMENTWISE = ("Add", "Div", "Mul", "Sub")
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def check(path: Path) -> list[Finding]:
    """What the rules say of a QDQ file.

    Args:
        path: An ONNX file with pairs.
    """
    graph = read_graph(path)
    steps = steps_of(graph)
    found = [*operators(graph), *static_shapes(graph), *constant_scales(steps), *unsigned(steps), *scales_a_channel(steps), *biases(graph)]
    return [*found, *fixed_grids(steps), *between_pairs(graph)]


def operators(graph: ir.Graph) -> Iterator[Finding]:
    """Operators that QNN lacks, with the parts that would fall back to the processor."""
    lacking = [str(node.name) for node in graph if not is_standard(node) or node.op_type not in OPERATORS]
    for part in parts(graph, lacking):
        yield Finding(
            "operators that QNN has", "error", f"QNN has no {part}: that part would fall back to the CPU and cut the graph there."
        )


def static_shapes(graph: ir.Graph) -> Iterator[Finding]:
    """Inputs and outputs have sizes."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None or not value.shape.is_static():
            text = f"'{value.name}' has the shape {value.shape}; QNN compiles for one size. Fix every axis."
            yield Finding("static shapes", "error", text)


def unsigned(steps: Sequence[Step]) -> Iterator[Finding]:
    """Activations are uint8 or uint16. Signed ones with a zero point are taken without an error, and computed wrongly."""
    for step in (step for step in steps if step.quantizes and step.dtype not in UNSIGNED):
        if step.zero is not None and np.any(step.zero):
            text = (
                f"'{step.tensor}' is rounded to {step.dtype} with zero point {int(step.zero.reshape(-1)[0])}: QNN runs that without "
                "an error and answers wrongly. Write the same grid unsigned: half of its levels more on the zero point."
            )
            yield Finding("activations are unsigned", "error", text)
        else:
            text = f"'{step.tensor}' is rounded to {step.dtype}: it runs, less exactly than the unsigned grid of its range."
            yield Finding("activations are unsigned", "warning", text)


def biases(graph: ir.Graph) -> Iterator[Finding]:
    """Biases are int32 on the grid of input times weight."""
    rule = "biases are int32"
    for node in graph:
        if node.op_type not in _BIASED or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        maker, weight = node.inputs[2].producer(), node.inputs[1].producer() if node.inputs[1] is not None else None
        if maker is None or maker.op_type != DEQUANTIZE:
            yield Finding(rule, "error", f"The bias of {node.op_type} '{node.name}' is floating point; store it as int32 behind a pair.")
            continue
        entering = node.inputs[0].producer() if node.inputs[0] is not None else None
        dtype = maker.inputs[0].dtype.name if maker.inputs[0] is not None and maker.inputs[0].dtype is not None else ""
        if dtype != "INT32":
            yield Finding(
                rule, "error", f"The bias of {node.op_type} '{node.name}' is {dtype.lower()}; int32 is what is added to the products."
            )
        elif weight is not None and entering is not None and not _product(maker, entering, weight):
            text = f"The bias of {node.op_type} '{node.name}' is on another grid than input times weight; it would be rounded again."
            yield Finding(rule, "error", text)


def fixed_grids(steps: Sequence[Step]) -> Iterator[Finding]:
    """Sigmoid and Tanh give one grid in 16 bit, whatever the file says."""
    for step in steps:
        maker = step.node.inputs[0].producer() if step.quantizes and step.node.inputs[0] is not None else None
        if maker is None or step.dtype != "uint16" or maker.op_type not in FIXED_16 or step.scale is None or step.zero is None:
            continue
        scale, zero = FIXED_16[maker.op_type]
        if not np.isclose(float(step.scale), scale, rtol=1e-6) or int(step.zero) != zero:
            own = f"{float(step.scale):.3g} and zero at {int(step.zero)}"
            text = f"{maker.op_type} '{maker.name}' gives 16 bit in steps of {own}; QNN computes it in {scale:.3g} and {zero}."
            yield Finding("grids that are given", "warning", text)


def between_pairs(graph: ir.Graph) -> Iterator[Finding]:
    """Every operator reads what a pair gives, and is rounded; what is not stays in floating point, which not every chip has."""
    floats = [str(node.name) for node in graph if is_standard(node) and node.op_type in OPERATORS and not _on_integers(node)]
    for part in parts(graph, floats):
        yield Finding("every operator between pairs", "error", f"{part} stays in floating point: no pair before or behind it.")


def _on_integers(node: ir.Node) -> bool:
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return True
    constants = node.inputs if node.op_type in _ELEMENTWISE else node.inputs[1:2] if node.op_type in PRODUCTS else ()
    if any(is_constant(value) and value is not None and may_be_float(value) and not _follows(node) for value in constants):
        return False
    entering = [value for value in node.inputs if value is not None and not is_constant(value) and may_be_float(value)]
    if any(not from_pair(value) and not _absorbs(node, value) for value in entering):
        return False
    return all(
        _is_rounded(value) for value in node.outputs if value.name and (value.uses() or value.is_graph_output()) and may_be_float(value)
    )


def _is_rounded(value: ir.Value) -> bool:
    """Whether everybody reads a tensor rounded, or one operator takes it in that the same kernel applies."""
    if value.is_graph_output():
        return False
    reading = [use.node for use in value.uses()]
    return all(reader.op_type == QUANTIZE for reader in reading) or (len(reading) == 1 and _absorbs(reading[0], value))


def _absorbs(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node is applied by the kernel that makes a tensor, so that nothing is rounded between."""
    maker = value.producer()
    if maker is None or len(list(value.uses())) != 1 or value.is_graph_output() or (node.inputs[0] is not value and node.op_type != "Add"):
        return False
    if node.op_type == "Add":
        return maker.op_type == "MatMul" and any(is_constant(each) for each in node.inputs)
    return node.op_type in _ABSORBED and (maker.op_type in (*PRODUCTS, *_ELEMENTWISE))


def _follows(node: ir.Node) -> bool:
    """Whether a sum is the bias of a matrix product."""
    return node.op_type == "Add" and any(value is not None and _absorbs(node, value) for value in node.inputs)


def _product(bias: ir.Node, entering: ir.Node, weight: ir.Node) -> bool:
    scales = [node.inputs[1] for node in (bias, entering, weight)]
    known = [value.const_value.numpy().astype(np.float64) for value in scales if value is not None and value.const_value is not None]
    if len(known) == 3 and known[1].size > 1:
        return True  # there is no such grid, which another rule says
    return len(known) == 3 and np.allclose(known[0], known[1] * known[2], rtol=1e-4, atol=0)
