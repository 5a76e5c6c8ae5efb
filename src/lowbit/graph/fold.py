"""Merge batch normalization into the products around it, where onnxruntime's optimizations leave it: a scale and a shift a channel.

y = s x + t with s = gamma / sqrt(var + eps), t = beta - s mean (Ioffe & Szegedy 2015, arXiv 1502.03167). Behind a product, s goes into
the weights of its output channels and t into its bias. Before products, s goes into the weights of their input channels and t, through
the sum over those weights, into their biases, which is exact where no padding stands between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.groups import channel_axis, input_axis, is_constant, is_standard, output_channels
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class _Affine:
    """y = scale * x + shift, float64 [C] each."""

    scale: Array
    shift: Array


def fold_batch_norms(model: ir.Model) -> int:
    """Merges batch norms into Conv, ConvTranspose and Gemm before or behind them, in place; others stay.

    Returns:
        How many were merged.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or not is_standard(node):
            continue
        transform = _transform(node)
        if transform is not None and (_fold_backward(model.graph, node, transform) or _fold_forward(model.graph, node, transform)):
            count += 1
    return count


def _transform(node: ir.Node) -> _Affine | None:
    """What a batch norm computes; None where its statistics are not constants, or where it is in training."""
    training = "training_mode" in node.attributes and node.attributes["training_mode"].as_int()
    constants = [v.const_value.numpy().astype(np.float64) for v in node.inputs[1:] if v is not None and v.const_value is not None]
    if len(constants) != 4 or training or any(v is not None and v.uses() for v in node.outputs[1:]):
        return None
    gamma, beta, mean, variance = constants
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    return _Affine(scale, beta - scale * mean)


def _fold_backward(graph: ir.Graph, node: ir.Node, transform: _Affine) -> bool:
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    if value is None or maker is None or len(list(value.uses())) != 1 or value.is_graph_output() or not _is_product(maker):
        return False
    weight, bias = _values(maker, 1), _bias(maker)
    if maker.op_type == "ConvTranspose":
        groups = maker.attributes["group"].as_int() if "group" in maker.attributes else 1
        shaped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        scaled = (shaped * transform.scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    else:
        scaled = weight * _along(transform.scale, weight.ndim, channel_axis(maker))
    _set(graph, maker, 1, scaled)
    _set(graph, maker, 2, bias * transform.scale + transform.shift)
    _bypass(graph, node, value)
    return True


def _fold_forward(graph: ir.Graph, node: ir.Node, transform: _Affine) -> bool:
    output, value = node.outputs[0], node.inputs[0]
    readers = [use.node for use in output.uses()]
    if value is None or output.is_graph_output() or not readers or len({id(reader) for reader in readers}) != len(readers):
        return False
    if not all(_takes_input_scale(reader, node, transform) for reader in readers):
        return False
    for reader in readers:
        weight = _values(reader, 1)
        groups = reader.attributes["group"].as_int() if reader.op_type == "Conv" and "group" in reader.attributes else 1
        scale, shift = _by_input(transform.scale, weight, reader, groups), _by_input(transform.shift, weight, reader, groups)
        outputs = tuple(axis for axis in range(weight.ndim) if axis != channel_axis(reader))
        _set(graph, reader, 2, _bias(reader) + (weight * shift).sum(axis=outputs))
        _set(graph, reader, 1, weight * scale)
    _bypass(graph, node, value)
    return True


def _takes_input_scale(reader: ir.Node, norm: ir.Node, transform: _Affine) -> bool:
    """Whether a product can take a scale and a shift of its input channels into its weights and bias."""
    if (
        reader.graph is not norm.graph
        or reader.op_type not in ("Conv", "Gemm")
        or not _is_product(reader)
        or reader.inputs[0] is not norm.outputs[0]
    ):
        return False
    padded = any(reader.attributes["pads"].as_ints()) if "pads" in reader.attributes else False
    automatic = "auto_pad" in reader.attributes and reader.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID")
    return not (padded or automatic) or not transform.shift.any()


def _is_product(node: ir.Node) -> bool:
    """A product whose weight and bias are constants; of Gemm only plain A B + C."""
    if node.op_type not in _PRODUCTS or not is_standard(node) or not is_constant(node.inputs[1]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        constant = node.inputs[2].const_value
        if constant is None or constant.size not in (1, output_channels(node)) or (constant.size > 1 and constant.shape.numpy()[-1] == 1):
            return False
    plain = all(node.attributes[key].as_float() == 1.0 for key in ("alpha", "beta") if key in node.attributes)
    return plain and not ("transA" in node.attributes and node.attributes["transA"].as_int())


def _by_input(values: Array, weight: Array, reader: ir.Node, groups: int) -> Array:
    """[C] in a shape that broadcasts with a product's weight, over its input channels."""
    axis = input_axis(reader)
    if groups == 1:
        return _along(values, weight.ndim, axis)
    per_group = weight.shape[0] // groups
    return np.repeat(values.reshape(groups, -1), per_group, axis=0).reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))


def _along(values: Array, rank: int, axis: int | None) -> Array:
    assert axis is not None
    return values.reshape([-1 if a == axis else 1 for a in range(rank)])


def _values(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _bias(node: ir.Node) -> Array:
    """The bias of a product, float64 [channels]; zeros where it has none."""
    channels = output_channels(node)
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels)
    return np.broadcast_to(_values(node, 2).reshape(-1), (channels,))


def _set(graph: ir.Graph, node: ir.Node, index: int, values: Array) -> None:
    """Gives a node a constant of its own: others may read the old one."""
    import onnx_ir

    name = f"{node.name or node.outputs[0].name}_{'weight' if index == 1 else 'bias'}_folded"
    while name in graph.initializers:
        name += "_"
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(values, np.float32, order="C"), name=name))
    graph.register_initializer(value)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _bypass(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Takes a node of one input and one output away. An output of the graph keeps its name."""
    output = node.outputs[0]
    name, is_output = output.name, output.is_graph_output()
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, value)
    if is_output:
        for index, each in enumerate(graph.outputs):
            if each is output:
                graph.outputs[index] = value
    graph.remove(node, safe=not is_output)
    if is_output:
        output.name = None
        value.name = name
