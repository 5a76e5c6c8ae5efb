"""What LiteRT's 8-bit specification asks of a file, held against the file that was written.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lowbit.export.base import Finding
from lowbit.export.litert.writer import schema
from lowbit.export.program.program import SAME_GRID, Kind, Operation, Program, Tensor
from lowbit.types import Array

_ONE_GRID = SAME_GRID | {Kind.RELU6}
"""RELU6 is no mover by the specification, but TensorFlow Lite Micro's kernel copies levels and never looks at the output's grid."""
_FIXED = {Kind.LOGISTIC: (1 / 256, -128), Kind.SOFTMAX: (1 / 256, -128), Kind.TANH: (1 / 128, 0)}
_WITH_BIAS = {Kind.CONV_2D: (0, 1, 2), Kind.DEPTHWISE_CONV_2D: (0, 1, 2), Kind.FULLY_CONNECTED: (0, 1, 2), Kind.TRANSPOSE_CONV: (2, 1, 3)}
"""Where the input, the weights and the bias stand among the operands."""
LARGEST_WINDOW = 25
"""Values under the largest window that XNNPACK has an integer depthwise kernel for."""
_TOLERANCE = 1e-5
"""Of a bias's scale against the product of two float32 scales."""


def findings(content: bytes, program: Program) -> list[Finding]:
    """Rules that a file breaks; empty where it breaks none.

    Args:
        content: Of the .tflite file.
        program: That it was written from.
    """
    found = [Finding("the file says what the program says", "error", text) for text in _differences(content, program)]
    for operation in program.operations:
        found += [Finding("8-bit specification", "error", text) for text in _broken(operation, program)]
    return found


def slow(program: Program) -> list[Finding]:
    """What runs, and far slower than people expect: integer depthwise convolutions that XNNPACK has no kernel for.

    Its kernels take windows of up to 25 values; behind larger ones it runs a general convolution for each channel.
    https://github.com/google/XNNPACK/blob/master/src/configs/dwconv-config.c
    """
    large = [
        operation
        for operation in program.operations
        if operation.kind is Kind.DEPTHWISE_CONV_2D and math.prod(program.tensors[operation.inputs[1]].shape[1:3]) > LARGEST_WINDOW
    ]
    if not large:
        return []
    height, width = program.tensors[large[0].inputs[1]].shape[1:3]
    text = (
        f"{len(large)} depthwise convolution{'s have windows' if large[1:] else ' has a window'} of more than {LARGEST_WINDOW} values "
        f"('{large[0].outputs[0]}': {height}x{width}), for which XNNPACK has no integer kernel: each takes many times as long as it could. "
        "Look at the latency; LiteRT's own kernels on one thread may be faster."
    )
    return [Finding("windows of depthwise convolutions", "warning", text)]


def _differences(content: bytes, program: Program) -> Iterator[str]:
    """Every tensor's shape, scale, zero point and content, read back."""
    fb = schema()
    model = fb.ModelT.InitFromObj(fb.Model.GetRootAs(content, 0))
    written = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    for name, tensor in program.tensors.items():
        if name not in written:
            yield f"Tensor '{name}' is not in the file."
            continue
        if list(written[name].shape) != list(tensor.shape):
            yield f"Tensor '{name}' has shape {list(written[name].shape)} in the file, {list(tensor.shape)} in the program."
        if not _same_grid_as_written(tensor, written[name].quantization):
            yield f"Tensor '{name}' has other scales or zero points in the file than in the program."
        data = model.buffers[written[name].buffer].data
        if tensor.data is not None and not _same_data(tensor, data):
            yield f"Tensor '{name}' has other values in the file than in the program."


def _same_grid_as_written(tensor: Tensor, quantization: Any) -> bool:
    if tensor.grid is None:
        return quantization is None or quantization.scale is None
    scale = np.atleast_1d(tensor.grid.scale)
    zero = np.broadcast_to(np.atleast_1d(tensor.grid.zero_point), scale.shape)
    return np.array_equal(quantization.scale, scale) and np.array_equal(quantization.zeroPoint, zero)


def _same_data(tensor: Tensor, data: Array | None) -> bool:
    wanted = np.ascontiguousarray(tensor.data, dtype=tensor.dtype).tobytes()
    return (b"" if data is None else np.asarray(data, np.uint8).tobytes()) == wanted


def _broken(operation: Operation, program: Program) -> Iterator[str]:
    inputs = [program.tensors[name] if name else None for name in operation.inputs]
    output = program.tensors[operation.outputs[0]]
    place = f"{operation.kind} ('{output.name}')"
    if operation.kind in _ONE_GRID:
        moved = [tensor for tensor in inputs if tensor is not None and tensor.grid is not None]
        if any(_numbers(tensor) != _numbers(output) for tensor in moved):
            yield f"{place} does not rescale, so what goes in and what comes out must have one grid; they have several."
    if operation.kind in _FIXED and _numbers(output) != _FIXED[operation.kind]:
        yield f"{place} must have scale {_FIXED[operation.kind][0]} and zero point {_FIXED[operation.kind][1]}; it has {_numbers(output)}."
    if operation.kind in _WITH_BIAS:
        yield from _broken_product(place, *(inputs[k] if k < len(inputs) else None for k in _WITH_BIAS[operation.kind]))


def _broken_product(place: str, source: Tensor | None, weights: Tensor | None, bias: Tensor | None) -> Iterator[str]:
    if source is None or weights is None or source.grid is None or weights.grid is None:
        yield f"{place} has an input or weights without a grid."
        return
    if np.any(weights.grid.zero_point):
        yield f"The weights of {place} must have zero point 0."
    if bias is None or bias.grid is None:
        return
    product = source.grid.scale.astype(np.float64) * weights.grid.scale.astype(np.float64)
    if np.any(np.abs(bias.grid.scale - product) > _TOLERANCE * product):
        yield f"The bias of {place} must have the scale of its input times that of its weights."


def _numbers(tensor: Tensor) -> tuple[float, int] | None:
    """Scale and zero point of a whole tensor."""
    return None if tensor.grid is None else (float(tensor.grid.scale.reshape(-1)[0]), int(tensor.grid.zero_point.reshape(-1)[0]))
