"""Which tensors of a graph calibration must observe, and which take another's statistics.

The writer of QDQ models asks for the range of every floating point tensor that goes in or out of a node it quantizes.
Not all of them need a look of their own:

- Where Conv, Gemm, MatMul, ConvTranspose or Add feeds one Relu or Clip and nothing else, the sum is never materialised by
  an integer kernel: both are one node there and have the range of the activation's output. Leaving it alone
  also leaves the runtime its fused Conv+Relu while it calibrates.
- Reshape and its like hold the very same values as their input.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# fmt: off
QUANTIZABLE = frozenset(
    {
        "Add", "ArgMax", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "CumSum",
        "DepthToSpace", "Div", "Elu", "Erf", "Expand", "Flatten", "Gather", "GatherElements", "Gelu", "Gemm",
        "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "LayerNormalization", "LeakyRelu", "LogSoftmax", "LRN", "MatMul", "Max", "MaxPool", "Min",
        "Mul", "Neg", "Pad", "Pow", "PRelu", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize",
        "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK",
        "Transpose", "Unsqueeze", "Upsample", "Where",
    }
)
# fmt: on
"""Operators whose floating point inputs and outputs some writer may quantize."""

_FUSES = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_SAME_VALUES = frozenset({"DepthToSpace", "Flatten", "Identity", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"})
_FLOATS = frozenset({1, 10, 11, 16})  # TensorProto FLOAT, FLOAT16, DOUBLE, BFLOAT16
_RECTIFIED = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"})
_KEEPS_SIGN = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Mul", "ReduceMax", "ReduceMean", "Sum"}
)


@dataclass(frozen=True)
class Plan:
    """What to observe.

    Attributes:
        observed: Names of tensors, in the order in which the graph computes them, graph inputs first.
        aliases: Tensor -> the observed tensor whose statistics it takes.
        rectified: Those of `observed` that cannot be negative, whatever goes in.
        steady: Those of `observed` that depend on no input's values, at most on its shape (tables of positions).
    """

    observed: tuple[str, ...]
    aliases: dict[str, str]
    rectified: frozenset[str]
    steady: frozenset[str]


def plan(model: Any, operators: Collection[str] = QUANTIZABLE) -> Plan:
    """Plans the observation of a model.

    Args:
        model: onnx.ModelProto with inferred types (`value_info`); a tensor of unknown type counts as floating point.
        operators: Operator types that may be quantized.
    """
    graph = model.graph
    constants = _constants(graph)
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    wanted = {v.name for v in [*graph.input, *graph.output]}
    for node in graph.node:
        if node.op_type in operators:
            wanted |= {*node.input, *node.output}
    ordered = [v.name for v in graph.input] + [name for node in graph.node for name in node.output]
    floats = [name for name in ordered if name in wanted - constants - {""} and types.get(name, 0) in _FLOATS | {0}]

    links = {name: target for name, target in _links(graph).items() if name in floats and target not in constants}
    aliases = {name: _follow(links, name) for name in links}
    needed = {name for name in floats if name not in aliases} | set(aliases.values())
    observed = tuple(name for name in ordered if name in needed)
    return Plan(observed, aliases, _rectified(graph) & needed, frozenset(needed) - _moved(graph))


def _constants(graph: Any) -> set[str]:
    return {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}


def _links(graph: Any) -> dict[str, str]:
    """Tensor -> the neighbour whose statistics it takes."""
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {v.name for v in graph.output}
    links: dict[str, str] = {}
    for node in graph.node:
        readers = consumers.get(node.output[0], []) if node.output else []
        fused = node.op_type in _FUSES and len(readers) == 1 and readers[0].op_type in _ACTIVATIONS
        if fused and readers[0].input[0] == node.output[0] and node.output[0] not in outputs:
            links[node.output[0]] = readers[0].output[0]
        elif node.op_type in _SAME_VALUES:
            links[node.output[0]] = node.input[0]
    return links


def _follow(links: dict[str, str], name: str) -> str:
    """The end of a chain of links: no tensor links both ways, so there is one."""
    while name in links:
        name = links[name]
    return name


def _moved(graph: Any) -> set[str]:
    """Tensors that depend on the values of an input."""
    moved = {v.name for v in graph.input} - {t.name for t in graph.initializer}
    for node in graph.node:
        inner = any(a.g.node or a.graphs for a in node.attribute)  # a subgraph may read anything
        if inner or (node.op_type not in ("Shape", "Size") and any(name in moved for name in node.input)):
            moved.update(node.output)
    return moved


def _rectified(graph: Any) -> frozenset[str]:
    """Tensors that are never negative, by the operators that make them."""
    from onnx import numpy_helper

    scalars = {t.name: float(numpy_helper.to_array(t).item()) for t in _scalars(graph)}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Clip" and _floor(node, scalars) >= 0:
            found.update(node.output)
        same = node.op_type in _KEEPS_SIGN or node.op_type in _SAME_VALUES
        data = [node.input[0]] if node.op_type in _SAME_VALUES or node.op_type == "ReduceMean" else list(node.input)
        if node.op_type in _RECTIFIED or (same and data and all(name in found for name in data)):
            found.update(node.output[:1])
    return frozenset(found)


def _scalars(graph: Any) -> list[Any]:
    """Constant floats of one element, as TensorProto."""
    tensors = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value")]
    return [t for t in tensors if t.data_type == 1 and all(d == 1 for d in t.dims) and not t.external_data]


def _floor(node: Any, scalars: dict[str, float]) -> float:
    """The lower bound of a Clip: an attribute before operator set 11, an input since."""
    bound = next((float(a.f) for a in node.attribute if a.name == "min"), float("-inf"))
    return scalars.get(node.input[1], bound) if len(node.input) > 1 else bound
