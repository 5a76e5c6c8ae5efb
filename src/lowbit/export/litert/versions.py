"""Versions of LiteRT's builtin operators: the lowest that has what an operation uses.

The rules are those by which TensorFlow's own converter stamps a file
(tensorflow/lite/tools/versioning/op_version.cc), for 8-bit operands.
"""

from __future__ import annotations

from lowbit.export.program.program import Kind, Operation, Program, Tensor

_FIRST = frozenset({Kind.DEPTH_TO_SPACE, Kind.HARD_SWISH, Kind.LEAKY_RELU, Kind.QUANTIZE, Kind.RESHAPE})
"""Operators whose first version knows 8-bit integers; the second one did for nearly all others. The converter stamps DEPTH_TO_SPACE with 2
as well, but LiteRT's reference kernels, which compute it on integers, are registered for 1 alone, and the kernel is the same one."""
_DEEP = {Kind.PAD: 4, Kind.PADV2: 4, Kind.SLICE: 5, Kind.STRIDED_SLICE: 4, Kind.TRANSPOSE: 4}
"""Versions from which on tensors may have more than 4 axes."""


def version(operation: Operation, program: Program) -> int:
    """The version of an operation's operator, as an operator code of the file states it."""
    match operation.kind:
        case Kind.CONV_2D:
            return 6 if _grouped(operation, program) else 3
        case Kind.DEPTHWISE_CONV_2D:
            return 3
        case Kind.FULLY_CONNECTED:
            return _fully_connected(operation)
        case Kind.MUL:
            return _mul(operation, program)
        case Kind.RESIZE_BILINEAR:
            return 3 if operation.options.get("half_pixel_centers") else 2
        case Kind.RESIZE_NEAREST_NEIGHBOR:
            return 3 if operation.options.get("half_pixel_centers") or operation.options.get("align_corners") else 2
        case Kind.SUB:
            return 3 if _broadcast(operation, program) and _rank(operation, program) > 4 else 2
        case Kind.TRANSPOSE_CONV:
            return _transpose_conv(operation)
    if operation.kind in _DEEP and _rank(operation, program) > 4:
        return 6 if operation.kind is Kind.TRANSPOSE and _rank(operation, program) > 5 else _DEEP[operation.kind]
    return 1 if operation.kind in _FIRST else 2


def _fully_connected(operation: Operation) -> int:
    """Without a bias in its list of operands 6; keeping the axes 5."""
    if len(operation.inputs) == 2:
        return 6
    return 5 if operation.options.get("keep_num_dims") else 4


def _transpose_conv(operation: Operation) -> int:
    if operation.options.get("activation", "NONE") != "NONE":
        return 4
    return 3 if len(operation.inputs) == 4 and operation.inputs[3] else 2


def _mul(operation: Operation, program: Program) -> int:
    """A product of scales that is not finer than the output's needs a multiplier of 1 or more, which came with version 3."""
    scales = [_scale(program.tensors[name]) for name in (*operation.inputs, *operation.outputs)]
    return 3 if all(scales) and scales[0] * scales[1] / scales[2] >= 1.0 else 2


def _scale(tensor: Tensor) -> float:
    return 0.0 if tensor.grid is None else float(tensor.grid.scale.reshape(-1)[0])


def _grouped(operation: Operation, program: Program) -> bool:
    """Whether the filters see only a part of the input's channels."""
    source, filters = (program.tensors[name] for name in operation.inputs[:2])
    return source.shape[-1] != filters.shape[-1]


def _rank(operation: Operation, program: Program) -> int:
    return max(len(program.tensors[name].shape) for name in operation.inputs if name)


def _broadcast(operation: Operation, program: Program) -> bool:
    first, second = (program.tensors[name].shape for name in operation.inputs[:2])
    return first != second
