"""Reshape, Flatten, Squeeze, Unsqueeze and Transpose on tensors whose axes lie in another order than in the source.

A reshape splits axes and joins them. Groups of axes that it maps onto each other can lie in any order in memory, as long as the axes of
each group lie behind each other as in the source: then the numbers stay where they are. So a split of the channels costs nothing channels
last either, and a shuffle of channels is one TRANSPOSE of its two factors.
"""

from __future__ import annotations

import math

import numpy as np

from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import IMAGE, Axes, Laid, Writer
from lowbit.types import Array

_DENSE = ("Gemm", "MatMul")
_FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of float32, float16, float64 and bfloat16."""

Group = tuple[list[int], list[int]]
"""Axes of the old shape, and those of the new one that hold the same numbers; axes of one element are in no group."""


def groups_of(old: tuple[int, ...], new: tuple[int, ...]) -> list[Group]:
    """The finest partition of two shapes of as many elements into groups that map onto each other."""
    a, b = [i for i, size in enumerate(old) if size != 1], [i for i, size in enumerate(new) if size != 1]
    found: list[Group] = []
    while a and b:
        left, right = [a.pop(0)], [b.pop(0)]
        sizes = [old[left[0]], new[right[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                left.append(a.pop(0))
                sizes[0] *= old[left[-1]]
            else:
                right.append(b.pop(0))
                sizes[1] *= new[right[-1]]
        found.append((left, right))
    return found


def reshape_laid(
    writer: Writer, laid: Laid, old: tuple[int, ...], new: tuple[int, ...], origin: tuple[str, ...], name: str | None = None
) -> Laid:
    """A tensor in another shape of the source, with its axes wherever that moves least."""
    groups = groups_of(old, new)
    order = _wanted(laid.axes, old, groups)
    if order != [axis for axis in laid.axes if old[axis] != 1]:
        ones = tuple(axis for axis in laid.axes if old[axis] == 1)
        laid = Laid(writer.lying(laid, (*ones, *order), origin), (*ones, *order))
    by_axis = {axis: right for left, right in groups for axis in left}
    sequence = list(dict.fromkeys(axis for each in order for axis in by_axis[each]))
    axes = _with_ones(sequence, new)
    return Laid(writer.reshaped(laid.tensor, tuple(new[axis] for axis in axes), origin, name), axes)


def _wanted(axes: Axes, old: tuple[int, ...], groups: list[Group]) -> list[int]:
    """The order in which the old axes must lie: groups by where their first axis lies now, each inside as in the source."""
    place = {axis: axes.index(axis) for axis in axes if old[axis] != 1}
    return [axis for left, _ in sorted(groups, key=lambda group: min(place[axis] for axis in group[0])) for axis in left]


def _with_ones(sequence: list[int], shape: tuple[int, ...]) -> Axes:
    """All axes of a shape, those of more than one element in this order: channels last or as in the source where that is one of these."""
    identity = tuple(range(len(shape)))
    for candidate in (IMAGE, identity) if len(shape) == 4 else (identity,):
        if [axis for axis in candidate if shape[axis] != 1] == sequence:
            return candidate
    return (*(axis for axis in identity if shape[axis] == 1), *sequence)


def reshape(writer: Writer, step: Step) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze; what only fully connected layers read stays where it lies, and their weights move."""
    name = step.inputs[0]
    old, new = writer.shape(name), writer.shape(step.output)
    laid = writer.laid[name]
    order = _scrambled(writer, step, laid, old, new)
    if order is not None:
        flat = writer.reshaped(laid.tensor, new, step.nodes, writer.named(step.output))
        _settle(writer, step, Laid(flat, tuple(range(len(new))), order))
        return
    _settle(writer, step, reshape_laid(writer, laid, old, new, step.nodes, writer.named(step.output)))


def _scrambled(writer: Writer, step: Step, laid: Laid, old: tuple[int, ...], new: tuple[int, ...]) -> Array | None:
    """Position in memory -> position in the source along the last axis, where that is all that readers need to know; else None."""
    rows = math.prod(new[:-1])
    if rows != 1 or laid.order is not None or step.output in writer.net.outputs:
        return None
    readers = [each for each in writer.net.steps if step.output in each.inputs]
    if not all(each.op in _DENSE and each.inputs[0] == step.output and each.inputs[1] in writer.net.constants for each in readers):
        return None
    order = np.arange(math.prod(old)).reshape(old).transpose(laid.axes).reshape(-1)
    return None if np.array_equal(order, np.arange(len(order))) else order


def _settle(writer: Writer, step: Step, laid: Laid) -> None:
    """Says where the output lies, on its own grid."""
    tensor = writer.on_grid(laid.tensor, writer.grids[step.output], step.nodes)
    writer.put(step.output, tensor, laid.axes, laid.order)


def transpose(writer: Writer, step: Step) -> None:
    """Transpose: the numbers stay where they are, and their axes have other names."""
    laid = writer.laid[step.inputs[0]]
    permutation = [int(axis) for axis in step.get("perm", range(len(laid.axes))[::-1])]
    tensor = writer.on_grid(laid.tensor, writer.grids[step.output], step.nodes)
    writer.put(step.output, tensor, tuple(permutation.index(axis) for axis in laid.axes))


def alias(writer: Writer, step: Step) -> None:
    """Identity, Dropout and casts between floating-point types."""
    if step.op == "Cast" and step.get("to", 1) not in _FLOATS:
        raise lacking(writer.net, step, "it makes integers of what is computed")
    laid = writer.laid[step.inputs[0]]
    tensor = writer.on_grid(laid.tensor, writer.grids[step.output], step.nodes)
    writer.put(step.output, tensor, laid.axes, laid.order)
