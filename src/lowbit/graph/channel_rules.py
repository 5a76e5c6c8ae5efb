"""How channels run through each operator: the rules behind graph/channels.py.

A rule gives the channels of a node's output; None where it does not understand the node, or where the node carries none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.channel_sets import Carried, Count, Work
from lowbit.graph.groups import is_constant
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.graph.channels import Flow

Rule = Callable[["Flow", "ir.Node"], Carried | None]


def _conv(flow: Flow, node: ir.Node) -> Carried | None:
    weight, transposed = _constant(node, 1), node.op_type == "ConvTranspose"
    if weight is None or not _bias_fits(node, weight.shape[1 if transposed else 0]):
        return None
    given, group, rank = flow.of(node.inputs[0]), _int(node, "group", 1), weight.ndim
    if given is not None and given.axis != 1 - rank:
        return None
    outer, inner = (1, 0) if transposed else (0, 1)
    if group > 1:
        return _depthwise(flow, node, weight, given, group)
    made = flow.fresh(weight.shape[outer])
    flow.cut(node.inputs[1], outer, made)
    _cut_bias(flow, node, made)
    if given is not None:
        flow.cut(node.inputs[1], inner, given.channels)
    places = _places(node.inputs[0] if transposed else node.outputs[0], 2)
    read = None if given is None else given.channels
    flow.work.append(Work(str(node.name), str(node.outputs[0].name), float(weight.size * places), made, read, True))
    return Carried(made, 1 - rank, rank)


def _depthwise(flow: Flow, node: ir.Node, weight: Array, given: Carried | None, group: int) -> Carried | None:
    """Every channel by itself, to one or several; other groupings mix channels within blocks that would all have to shrink alike."""
    if node.op_type != "Conv" or weight.shape[1] != 1 or given is None or len(given.channels) != group:
        return None
    made = np.repeat(given.channels, weight.shape[0] // group)
    flow.cut(node.inputs[1], 0, made)
    _cut_bias(flow, node, made)
    flow.counts.append(Count(str(node.name), None, 0, given.channels))
    macs = float(weight.size * _places(node.outputs[0], 2))
    flow.work.append(Work(str(node.name), str(node.outputs[0].name), macs, made, None, False))
    return Carried(made, given.axis, given.rank)


def _gemm(flow: Flow, node: ir.Node) -> Carried | None:
    weight, given, across = _constant(node, 1), flow.of(node.inputs[0]), _int(node, "transB", 0)
    if weight is None or _int(node, "transA", 0) or (given is not None and given.axis != -1):
        return None
    if len(node.inputs) > 2 and not _bias_fits(node, weight.shape[1 - across]):
        return None
    return _matrix(flow, node, weight, given, across, 2)


def _matmul(flow: Flow, node: ir.Node) -> Carried | None:
    weight, given = _constant(node, 1), flow.of(node.inputs[0])
    rank = given.rank if given is not None else _rank(node.inputs[0])
    if weight is None or weight.ndim != 2 or rank is None or rank < 2 or (given is not None and given.axis != -1):
        return None
    return _matrix(flow, node, weight, given, 0, rank)


def _matrix(flow: Flow, node: ir.Node, weight: Array, given: Carried | None, across: int, rank: int) -> Carried:
    made = flow.fresh(weight.shape[1 - across])
    flow.cut(node.inputs[1], 1 - across, made)
    if given is not None:
        flow.cut(node.inputs[1], across, given.channels)
    if node.op_type == "Gemm":
        _cut_bias(flow, node, made)
    shape = node.outputs[0].shape
    rows = math.prod(d for d in shape[1:-1] if isinstance(d, int)) if shape is not None else 1
    read = None if given is None else given.channels
    flow.work.append(Work(str(node.name), str(node.outputs[0].name), float(weight.size * rows), made, read, True))
    return Carried(made, -1, rank)


def _pointwise(flow: Flow, node: ir.Node) -> Carried | None:
    """Element by element, with broadcasting: operands that carry channels must carry the same."""
    operands = [value for value in node.inputs if value is not None]
    carrying = [each for each in (flow.of(value) for value in operands) if each is not None]
    if not carrying:
        return None
    widest = max(carrying, key=lambda each: len(each.channels))
    ids, axis = widest.channels, widest.axis
    if any(each.axis != axis or len(each.channels) not in (1, len(ids)) for each in carrying):
        return None
    others = [value for value in operands if flow.of(value) is None]
    if not all(_broadcasts(value, axis, len(ids)) for value in others):
        return None
    for each in carrying:
        if len(each.channels) == len(ids):
            flow.join(ids, each.channels)
    for value in others:
        shape = () if value.const_value is None else value.const_value.shape.numpy()
        if len(shape) >= -axis and shape[axis] == len(ids) > 1:
            flow.cut(value, len(shape) + axis, ids)
    ranks = [each.rank for each in carrying] + [_rank(value) or 0 for value in others]
    return Carried(ids, axis, max(ranks))


def _broadcasts(value: ir.Value, axis: int, width: int) -> bool:
    """Whether an operand without channels fits: a constant with one number a channel or one for all, a tensor with one for all."""
    if value.const_value is not None:
        shape: Sequence[object] = value.const_value.shape.numpy()
        return len(shape) < -axis or shape[axis] in (1, width)
    return value.shape is not None and (len(value.shape) < -axis or value.shape[axis] == 1)


def _same(flow: Flow, node: ir.Node) -> Carried | None:
    """Each channel by itself; other inputs are settings."""
    settings = [value for value in node.inputs[1:] if value is not None]
    return flow.of(node.inputs[0]) if all(is_constant(value) for value in settings) else None


def _pooling(flow: Flow, node: ir.Node) -> Carried | None:
    given = flow.of(node.inputs[0])
    return given if given is not None and given.axis == 1 - given.rank else None


def _norm(flow: Flow, node: ir.Node) -> Carried | None:
    """Batch norm and instance norm: constants of one number a channel."""
    given = _pooling(flow, node)
    if given is None or not all(is_constant(value) for value in node.inputs[1:]):
        return None
    for value in node.inputs[1:]:
        flow.cut(value, 0, given.channels)
    return given


def _reduce(flow: Flow, node: ir.Node) -> Carried | None:
    return _without(flow.of(node.inputs[0]), _axes(node), kept=bool(_int(node, "keepdims", 1)))


def _squeeze(flow: Flow, node: ir.Node) -> Carried | None:
    return _without(flow.of(node.inputs[0]), _axes(node), kept=False)


def _without(given: Carried | None, axes: Sequence[int] | None, *, kept: bool) -> Carried | None:
    """Channels once other axes have gone, or have `kept` their place with a single element."""
    if given is None or not axes:
        return None
    gone = {axis if axis < 0 else axis - given.rank for axis in axes}
    if given.axis in gone:
        return None
    if kept:
        return given
    return Carried(given.channels, given.axis + sum(axis > given.axis for axis in gone), given.rank - len(gone))


def _unsqueeze(flow: Flow, node: ir.Node) -> Carried | None:
    given, axes = flow.of(node.inputs[0]), _axes(node)
    if given is None or not axes:
        return None
    rank = given.rank + len(axes)
    new = {axis % rank for axis in axes}
    left = [place for place in range(rank) if place not in new]
    return Carried(given.channels, left[given.axis] - rank, rank)


def _transpose(flow: Flow, node: ir.Node) -> Carried | None:
    given = flow.of(node.inputs[0])
    if given is None or "perm" not in node.attributes:
        return None
    return Carried(given.channels, list(node.attributes["perm"].as_ints()).index(given.rank + given.axis) - given.rank, given.rank)


def _concat(flow: Flow, node: ir.Node) -> Carried | None:
    held = [flow.of(value) for value in node.inputs]
    known = [each for each in held if each is not None]
    if not known or len({(each.axis, each.rank) for each in known}) > 1:
        return None
    axis, rank = known[0].axis, known[0].rank
    along = _int(node, "axis", 0)
    if (along if along < 0 else along - rank) != axis:
        if len(known) < len(held) or len({len(each.channels) for each in known}) > 1:
            return None
        for each in known[1:]:
            flow.join(known[0].channels, each.channels)
        return known[0]
    parts = [each.channels if each is not None else _stay(flow, value, axis) for each, value in zip(held, node.inputs, strict=True)]
    return None if any(part is None for part in parts) else Carried(np.concatenate([p for p in parts if p is not None]), axis, rank)


def _stay(flow: Flow, value: ir.Value | None, axis: int) -> Array | None:
    """Ids, all pinned, for an operand of a concatenation that carries none; None where its size is not known."""
    size = None if value is None or value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        return None
    ids = flow.fresh(size)
    flow.pin(ids)
    return ids


def _flatten(flow: Flow, node: ir.Node) -> Carried | None:
    given = flow.of(node.inputs[0])
    return _rows(node, given) if given is not None and _int(node, "axis", 1) == 1 else None


def _reshape(flow: Flow, node: ir.Node) -> Carried | None:
    """To one row a sample; other reshapes mix channels with places."""
    given, wanted = flow.of(node.inputs[0]), _constant(node, 1)
    if given is None or wanted is None or wanted.size != 2 or _int(node, "allowzero", 0):
        return None
    rows = _rows(node, given)
    first = node.inputs[0].shape[0] if node.inputs[0] is not None and node.inputs[0].shape is not None else None
    if rows is None or int(wanted[0]) not in (0, -1, first) or int(wanted[1]) not in (-1, len(rows.channels)):
        return None
    if int(wanted[1]) != -1:
        flow.counts.append(Count(str(node.name), 1, 1, rows.channels))
    return rows


def _rows(node: ir.Node, given: Carried) -> Carried | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if given.axis != 1 - given.rank or (given.rank > 2 and (shape is None or not all(isinstance(size, int) for size in shape[2:]))):
        return None
    return Carried(np.repeat(given.channels, _places(node.inputs[0], 2) if given.rank > 2 else 1), -1, 2)


def _resize(flow: Flow, node: ir.Node) -> Carried | None:
    """By scales, or to sizes whose second follows the channels."""
    given, scales, sizes = _pooling(flow, node), _constant(node, 2), _constant(node, 3)
    if given is None or not all(value is None or is_constant(value) for value in node.inputs[1:]) or "axes" in node.attributes:
        return None
    if sizes is not None and sizes.size == given.rank and sizes[1] == len(given.channels):
        flow.counts.append(Count(str(node.name), 3, 1, given.channels))
        return given
    return given if scales is not None and scales.size == given.rank and scales[1] == 1 else None


def _pad(flow: Flow, node: ir.Node) -> Carried | None:
    """Around the places, not along the channels."""
    given, amounts = flow.of(node.inputs[0]), _constant(node, 1)
    if given is None or amounts is None or len(node.inputs) > 3 or amounts.size != 2 * given.rank:
        return None
    axis = given.rank + given.axis
    return given if amounts[axis] == 0 and amounts[axis + given.rank] == 0 else None


# Small readings of nodes ----------------------------------------------------------------------------------------------------------


def _constant(node: ir.Node, index: int) -> Array | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _bias_fits(node: ir.Node, width: int) -> bool:
    """No bias, a constant one for all, or one number a channel."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = _constant(node, 2)
    return bias is not None and (bias.size == 1 or (bias.size == width and bias.shape[-1] == width))


def _cut_bias(flow: Flow, node: ir.Node, made: Array) -> None:
    bias = _constant(node, 2)
    if bias is not None and bias.size > 1:
        flow.cut(node.inputs[2], bias.ndim - 1, made)


def _axes(node: ir.Node) -> list[int]:
    """From the attribute or the second input; empty where they are left out or computed."""
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"].as_ints()]
    found = _constant(node, 1)
    return [] if found is None else [int(axis) for axis in found.reshape(-1)]


def _places(value: ir.Value | None, first: int) -> int:
    """Product of the known sizes from an axis on."""
    shape = () if value is None or value.shape is None else value.shape
    return math.prod(size for size in shape[first:] if isinstance(size, int))


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"), _pointwise),
    **dict.fromkeys(
        ("Abs", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish"), _same
    ),
    **dict.fromkeys(("Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"), _same),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), _pooling),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _norm),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Resize": _resize,
    "Pad": _pad,
}
