"""Take QuantizeLinear and DequantizeLinear out of a graph, and keep what they say as a table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import ModelError
from lowbit.quant.affine import Affine, dequantize, levels
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_UNROUNDED = re.compile(r"(_unrounded|_QuantizeLinear_Input)(_\d+)?$")
_STORED = re.compile(r"_quantized(_\d+)?$")
_FOREIGN = re.compile(r"^q_output_(.+)_\d+$")
"""How NNCF calls a stored constant."""

_FOUR_BITS = {"int4": np.int8, "uint4": np.uint8}


@dataclass
class Stripped:
    """What the pairs of a graph said.

    Attributes:
        activations: Tensor -> its grid.
        weights: Initializer -> its grid.
        made: Tensors that were added for a rounding's sake: what a factor a channel was divided out of.
        ends: Inputs and outputs of the graph.
        stored: Stored integers and their scale -> the initializer that was made of them.
        leaks: What a LeakyRelu reads -> what it gives, and its slope.
    """

    activations: dict[str, Affine] = field(default_factory=dict)
    weights: dict[str, Affine] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    ends: frozenset[str] = frozenset()
    stored: dict[tuple[str, str], str] = field(default_factory=dict)
    leaks: dict[str, tuple[str, float]] = field(default_factory=dict)


def strip_pairs(model: ir.Model) -> Stripped:
    """Takes the pairs out of a model, in place, so that it computes in floating point.

    Weights become float initializers that lie exactly on their grids; a Sum of two is an Add again (`graph/spelling.py`).

    Raises:
        ModelError: a pair whose parameters are not constants, or a QuantizeLinear whose integers are computed with.
    """
    found = Stripped()
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and _maker(node) is None:
            _take_weight(model.graph, node, found)
    for node in [node for node in model.graph if node.op_type == "QuantizeLinear"]:
        _take_activation(model.graph, node, found)
    left = [node for node in model.graph if node.op_type in _PAIRS or node.op_type == "DynamicQuantizeLinear"]
    if left:
        raise ModelError(
            f"{left[0].op_type} '{left[0].name}' stands alone in the artifact: only pairs around operators can be read.",
            "Take a candidate that lowbit made itself: lowbit show BUNDLE lists them.",
        )
    _plain_sums(model.graph)
    _drop_unread(model.graph)
    for node in model.graph:
        if node.op_type == "LeakyRelu" and node.inputs[0] is not None:
            slope = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
            found.leaks[str(node.inputs[0].name)] = (str(node.outputs[0].name), slope)
    found.ends = frozenset(str(value.name) for value in (*model.graph.inputs, *model.graph.outputs))
    return found


def _take_activation(graph: ir.Graph, quantizer: ir.Node, found: Stripped) -> None:
    """A tensor that is rounded: everybody who read it rounded reads the tensor itself."""
    value = quantizer.inputs[0]
    assert value is not None
    grid = _grid(quantizer)
    if grid.axis is not None:
        raise ModelError(f"'{value.name}' is rounded with a scale a channel, which activations have nowhere.", None)
    for reader in [use.node for use in quantizer.outputs[0].uses()]:
        if reader.op_type != "DequantizeLinear":
            raise ModelError(f"{reader.op_type} '{reader.name}' computes with integers itself; only pairs around operators can be read.")
        _bypass(graph, reader, value)
    graph.remove(quantizer, safe=True)
    name = str(value.name)
    if name not in found.activations or "16" in found.activations[name].dtype:  # of two, the one of 8 bits
        found.activations[name] = grid
    maker = value.producer()
    if maker is not None and maker.op_type == "Mul" and any(v is not None and "_smoothing" in str(v.name) for v in maker.inputs):
        found.made.add(name)


def _bypass(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Lets a tensor stand for what a DequantizeLinear made of it; where that is an output of the graph, under the output's name."""
    rounded = node.outputs[0]
    name, is_output = rounded.name, rounded.is_graph_output()
    rounded.replace_all_uses_with(value, replace_graph_outputs=is_output)
    graph.remove(node, safe=True)
    if is_output and _UNROUNDED.sub("", str(value.name)) == name:
        rounded.name = None
        value.name = name


def _take_weight(graph: ir.Graph, node: ir.Node, found: Stripped) -> None:
    """A constant that was stored as integers: a float initializer on its grid."""
    import onnx_ir

    stored = node.inputs[0]
    assert stored is not None
    if stored.const_value is None:
        raise ModelError(f"DequantizeLinear '{node.name}' reads '{stored.name}', which is given as integers from outside.")
    integers, grid = _integers(stored.const_value), _grid(node)
    if grid.axis is not None:
        grid = replace(grid, axis=grid.axis % integers.ndim)
    if grid.dtype != "int32":
        middle = not np.any(grid.zero_point) and int(integers.min()) > levels(grid.dtype, False)[0]
        grid = replace(grid, symmetric=middle and not grid.dtype.startswith("u"))
    key = (str(stored.name), str(node.inputs[1].name) if node.inputs[1] is not None else "")
    name = found.stored.get(key) or _unused(graph, key[0])
    if key not in found.stored:
        tensor = onnx_ir.tensor(np.ascontiguousarray(_real(integers, grid)), name=name)
        kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(integers.shape)
        graph.register_initializer(onnx_ir.Value(name=name, const_value=tensor, shape=shape, type=kind))
        found.weights[name], found.stored[key] = grid, name
    node.outputs[0].replace_all_uses_with(graph.initializers[name])
    graph.remove(node, safe=True)


def _unused(graph: ir.Graph, stored: str) -> str:
    """The constant's own name, or that with a number where it is another's."""
    own = name = _STORED.sub("", _FOREIGN.sub(r"\1", stored))
    number = 1
    while name in graph.initializers:
        name, number = f"{own}_{number}", number + 1
    return name


def _real(integers: Array, grid: Affine) -> Array:
    """float32; biases in double precision first, for their levels need more than float32's 24 bits."""
    if grid.dtype != "int32":
        return dequantize(integers, grid)
    return (integers.astype(np.float64) * np.asarray(grid.scale, np.float64)).astype(np.float32)


def _grid(node: ir.Node) -> Affine:
    """What a QuantizeLinear or DequantizeLinear says.

    Raises:
        ModelError: its scale is computed.
    """
    given = [v.const_value if v is not None else None for v in node.inputs[1:3]]
    if given[0] is None or (len(node.inputs) > 2 and node.inputs[2] is not None and given[1] is None):
        raise ModelError(f"{node.op_type} '{node.name}' computes its own scale; other targets need scales that are constants.")
    scale = given[0].numpy().astype(np.float32)
    zero, dtype = (np.zeros(scale.shape, np.int32), "uint8") if len(given) < 2 or given[1] is None else _zero(given[1])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if scale.size == 1 and not block:
        scale, zero, own = scale.reshape(()), zero.reshape(()), None
    else:
        own = axis
    return Affine(scale, zero, dtype, dtype == "int32", own, block or None)  # the operator saturates at the type's own ends


def _zero(tensor: ir.TensorProtocol) -> tuple[Array, str]:
    return tensor.numpy().astype(np.int32), tensor.dtype.name.lower()


def _integers(tensor: ir.TensorProtocol) -> Array:
    name = tensor.dtype.name.lower()
    return tensor.numpy().astype(_FOUR_BITS[name]) if name in _FOUR_BITS else tensor.numpy()


def _maker(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _plain_sums(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type == "Sum" and len(node.inputs) == 2:
            node.op_type = "Add"


def _drop_unread(graph: ir.Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
        del graph.initializers[name]
