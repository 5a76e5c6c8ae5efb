"""The shape of what an operation makes, from the shapes and constants that go in: LiteRT's own rules, one function a family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lowbit.errors import ModelError
from lowbit.export.program.fixed_point import window
from lowbit.export.program.program import Kind, Operation, Tensor

Shape = tuple[int, ...]

RANKS: Mapping[Kind, tuple[int, ...]] = {
    Kind.AVERAGE_POOL_2D: (4,),
    Kind.CONV_2D: (4,),
    Kind.DEPTH_TO_SPACE: (4,),
    Kind.DEPTHWISE_CONV_2D: (4,),
    Kind.MAX_POOL_2D: (4,),
    Kind.RESIZE_BILINEAR: (4,),
    Kind.RESIZE_NEAREST_NEIGHBOR: (4,),
    Kind.TRANSPOSE_CONV: (4,),
}
"""Ranks of the data operand that a kind takes; others take every rank up to `HIGHEST_RANK`."""

HIGHEST_RANK = 5
"""Of kernels on microcontrollers, for what only moves values."""


def shape_of(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    """The shape of an operation's output.

    Args:
        operation: With its options.
        operands: In the order of the kind.

    Raises:
        ModelError: operands that do not fit each other, or lists that are not constant.
    """
    return _RULES.get(operation.kind, _as_first)(operation, operands)


def numbers(operation: Operation, operands: Sequence[Tensor | None], place: int) -> Shape:
    """A constant list of integers.

    Raises:
        ModelError: it is computed, missing or not int32.
    """
    tensor = operands[place] if place < len(operands) else None
    if tensor is None or tensor.data is None or tensor.dtype != "int32":
        raise ModelError(f"{operation.kind} takes a constant list of int32 as operand {place}.")
    return tuple(int(value) for value in tensor.data.reshape(-1))


def broadcast(left: Shape, right: Shape) -> Shape:
    """Of two operands, axes aligned at the end.

    Raises:
        ModelError: an axis has two extents, neither of them 1.
    """
    rank = max(len(left), len(right))
    pairs = list(zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True))
    if any(one != other and 1 not in (one, other) for one, other in pairs):
        raise ModelError(f"Shapes {list(left)} and {list(right)} do not broadcast.")
    return tuple(other if one == 1 else one for one, other in pairs)


def _shape(operation: Operation, operands: Sequence[Tensor | None], place: int = 0) -> Shape:
    tensor = operands[place] if place < len(operands) else None
    if tensor is None:
        raise ModelError(f"{operation.kind} lacks its operand {place}.")
    ranks = RANKS.get(operation.kind)
    data = 2 if operation.kind is Kind.TRANSPOSE_CONV else 0
    if place == data and ranks and len(tensor.shape) not in ranks:
        raise ModelError(f"{operation.kind} takes rank {ranks[0]}, and '{tensor.name}' has shape {list(tensor.shape)}.")
    return tensor.shape


def _as_first(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    return _shape(operation, operands)


def _binary(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    return broadcast(_shape(operation, operands, 0), _shape(operation, operands, 1))


def _windows(operation: Operation, shape: Shape, taps: tuple[int, int]) -> Shape:
    options = operation.options
    found = []
    for axis, name in enumerate("hw"):
        stride, dilation = int(options.get(f"stride_{name}", 1)), int(options.get(f"dilation_{name}", 1))  # type: ignore[arg-type]
        found.append(window(str(options.get("padding", "VALID")), shape[1 + axis], taps[axis], stride, dilation)[0])
    if min(found) < 1:
        raise ModelError(f"{operation.kind} has a window larger than its input {list(shape)}.")
    return tuple(found)


def _pool(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape = _shape(operation, operands)
    taps = tuple(int(operation.options.get(name, 1)) for name in ("filter_height", "filter_width"))  # type: ignore[arg-type]
    return (shape[0], *_windows(operation, shape, (taps[0], taps[1])), shape[3])


def _convolution(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, weights = _shape(operation, operands), _shape(operation, operands, 1)
    depthwise = operation.kind is Kind.DEPTHWISE_CONV_2D
    fits = len(weights) == 4 and (weights[0] == 1 and weights[3] % shape[3] == 0 if depthwise else weights[3] == shape[3])
    if not fits:
        raise ModelError(f"{operation.kind} has a filter of shape {list(weights)} for an input of shape {list(shape)}.")
    return (shape[0], *_windows(operation, shape, (weights[1], weights[2])), weights[3] if depthwise else weights[0])


def _transpose_conv(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    wanted, weights, shape = numbers(operation, operands, 0), _shape(operation, operands, 1), _shape(operation, operands, 2)
    if len(weights) != 4 or weights[3] != shape[3] or len(wanted) != 4 or wanted[3] != weights[0]:
        raise ModelError(f"TRANSPOSE_CONV has a filter of shape {list(weights)} for {list(shape)} and an output of {list(wanted)}.")
    if _windows(operation, wanted, (weights[1], weights[2])) != shape[1:3]:
        raise ModelError(f"TRANSPOSE_CONV of {list(shape)} does not give {list(wanted)} with these strides.")
    return (shape[0], *wanted[1:])


def _fully_connected(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, weights = _shape(operation, operands), _shape(operation, operands, 1)
    if len(weights) != 2 or math.prod(shape) % weights[1]:
        raise ModelError(f"FULLY_CONNECTED has weights of shape {list(weights)} for an input of shape {list(shape)}.")
    if operation.options.get("keep_num_dims", False):
        return (*shape[:-1], weights[0])
    return (math.prod(shape) // weights[1], weights[0])


def _concatenation(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shapes = [_shape(operation, operands, place) for place in range(len(operands))]
    axis = int(operation.options.get("axis", 0)) % len(shapes[0])  # type: ignore[arg-type]
    if any(shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :] for shape in shapes):
        raise ModelError(f"CONCATENATION along axis {axis} of {[list(shape) for shape in shapes]}: other axes differ.")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _mean(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape = _shape(operation, operands)
    axes = {axis % len(shape) for axis in numbers(operation, operands, 1)}
    if operation.options.get("keep_dims", False):
        return tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


def _pad(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, margins = _shape(operation, operands), numbers(operation, operands, 1)
    if len(margins) != 2 * len(shape) or min(margins, default=0) < 0:
        raise ModelError(f"{operation.kind} has paddings {list(margins)} for shape {list(shape)}; two a axis, not negative.")
    return tuple(extent + margins[2 * axis] + margins[2 * axis + 1] for axis, extent in enumerate(shape))


def _reshape(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, wanted = _shape(operation, operands), numbers(operation, operands, 1)
    if math.prod(shape) != math.prod(wanted) or min(wanted, default=1) < 0:
        raise ModelError(f"RESHAPE of {list(shape)} to {list(wanted)}: another number of elements.")
    return wanted


def _resize(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, size = _shape(operation, operands), numbers(operation, operands, 1)
    if len(size) != 2 or min(size) < 1:
        raise ModelError(f"{operation.kind} has size {list(size)}; two extents, not below 1.")
    if operation.options.get("align_corners", False) and operation.options.get("half_pixel_centers", False):
        raise ModelError(f"{operation.kind} has both align_corners and half_pixel_centers; kernels take one.")
    return (shape[0], *size, shape[3])


def _slice(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, begins, sizes = _shape(operation, operands), numbers(operation, operands, 1), numbers(operation, operands, 2)
    if not len(shape) == len(begins) == len(sizes):
        raise ModelError(f"SLICE of {list(shape)} from {list(begins)} with sizes {list(sizes)}: one number an axis.")
    found = tuple(extent - begin if size == -1 else size for begin, size, extent in zip(begins, sizes, shape, strict=True))
    if any(begin < 0 or size < 1 or begin + size > extent for begin, size, extent in zip(begins, found, shape, strict=True)):
        raise ModelError(f"SLICE of {list(shape)} from {list(begins)} with sizes {list(sizes)} leaves its input.")
    return found


def _strided_slice(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape = _shape(operation, operands)
    begins, ends, strides = (numbers(operation, operands, place) for place in (1, 2, 3))
    if not len(shape) == len(begins) == len(ends) == len(strides):
        raise ModelError(f"STRIDED_SLICE of {list(shape)} from {list(begins)} to {list(ends)} by {list(strides)}: one number an axis.")
    rows = list(zip(begins, ends, strides, shape, strict=True))
    if any(stride < 1 or not 0 <= begin < end <= extent for begin, end, stride, extent in rows):
        raise ModelError(
            f"STRIDED_SLICE of {list(shape)} from {list(begins)} to {list(ends)} by {list(strides)} leaves its input or gives nothing."
        )
    return tuple(-(-(end - begin) // stride) for begin, end, stride, _ in rows)


def _transpose(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, order = _shape(operation, operands), numbers(operation, operands, 1)
    if sorted(order) != list(range(len(shape))):
        raise ModelError(f"TRANSPOSE of {list(shape)} by {list(order)}: every axis once.")
    return tuple(shape[axis] for axis in order)


def _depth_to_space(operation: Operation, operands: Sequence[Tensor | None]) -> Shape:
    shape, block = _shape(operation, operands), int(operation.options.get("block_size", 1))  # type: ignore[arg-type]
    if block < 1 or shape[3] % block**2:
        raise ModelError(f"DEPTH_TO_SPACE of {list(shape)} by blocks of {block}: channels are no multiple of {block**2}.")
    return (shape[0], shape[1] * block, shape[2] * block, shape[3] // block**2)


_RULES: Mapping[Kind, Callable[[Operation, Sequence[Tensor | None]], Shape]] = {
    Kind.ADD: _binary,
    Kind.AVERAGE_POOL_2D: _pool,
    Kind.CONCATENATION: _concatenation,
    Kind.CONV_2D: _convolution,
    Kind.DEPTH_TO_SPACE: _depth_to_space,
    Kind.DEPTHWISE_CONV_2D: _convolution,
    Kind.FULLY_CONNECTED: _fully_connected,
    Kind.MAX_POOL_2D: _pool,
    Kind.MEAN: _mean,
    Kind.MUL: _binary,
    Kind.PAD: _pad,
    Kind.PADV2: _pad,
    Kind.RESHAPE: _reshape,
    Kind.RESIZE_BILINEAR: _resize,
    Kind.RESIZE_NEAREST_NEIGHBOR: _resize,
    Kind.SLICE: _slice,
    Kind.STRIDED_SLICE: _strided_slice,
    Kind.SUB: _binary,
    Kind.TRANSPOSE: _transpose,
    Kind.TRANSPOSE_CONV: _transpose_conv,
}
