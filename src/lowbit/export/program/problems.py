"""What is wrong with a program, in words: every clause of the contract in `program.py`, and where kernels stop.

Whoever makes a program has it checked here; whoever runs or writes one may then rely on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.program import fixed_point as fp
from lowbit.export.program import tables
from lowbit.export.program.program import SAME_GRID, Kind, Operation, Port, Program, Tensor
from lowbit.export.program.shapes import HIGHEST_RANK, shape_of
from lowbit.quant.affine import Affine

Operands = Sequence[Tensor | None]

KEEPS_GRID = SAME_GRID | {Kind.AVERAGE_POOL_2D, Kind.RELU6}
"""Kinds whose kernels do not rescale: those that move values, and two that work on levels."""

OUTPUT_GRIDS: Mapping[Kind, tuple[float, int]] = {Kind.LOGISTIC: (1 / 256, -128), Kind.SOFTMAX: (1 / 256, -128), Kind.TANH: (1 / 128, 0)}
"""Scale and zero point that a kind's kernel takes for granted."""

_WINDOW = {"stride_h", "stride_w", "padding", "activation"}
_POOL = _WINDOW | {"filter_height", "filter_width"}
_RESIZE = {"align_corners", "half_pixel_centers"}
_OPTIONS: Mapping[Kind, set[str]] = {
    Kind.ADD: {"activation"},
    Kind.AVERAGE_POOL_2D: _POOL,
    Kind.CONCATENATION: {"axis"},
    Kind.CONV_2D: _WINDOW | {"dilation_h", "dilation_w"},
    Kind.DEPTH_TO_SPACE: {"block_size"},
    Kind.DEPTHWISE_CONV_2D: _WINDOW | {"dilation_h", "dilation_w", "depth_multiplier"},
    Kind.FULLY_CONNECTED: {"activation", "keep_num_dims"},
    Kind.LEAKY_RELU: {"alpha"},
    Kind.MAX_POOL_2D: _POOL,
    Kind.MEAN: {"keep_dims"},
    Kind.MUL: {"activation"},
    Kind.RESHAPE: {"new_shape"},
    Kind.RESIZE_BILINEAR: _RESIZE,
    Kind.RESIZE_NEAREST_NEIGHBOR: _RESIZE,
    Kind.SOFTMAX: {"beta"},
    Kind.SUB: {"activation"},
    Kind.TRANSPOSE_CONV: _WINDOW,
}
_WEIGHTED: Mapping[Kind, tuple[int, int, int, int]] = {
    Kind.CONV_2D: (0, 1, 2, 0),
    Kind.DEPTHWISE_CONV_2D: (0, 1, 2, 3),
    Kind.FULLY_CONNECTED: (0, 1, 2, 0),
    Kind.TRANSPOSE_CONV: (2, 1, 3, 0),
}
"""Kind -> where its input, weights and bias stand, and the axis of the weights' output channels."""
_BIASED = frozenset({Kind.CONV_2D, Kind.DEPTHWISE_CONV_2D})
_LISTS: Mapping[Kind, tuple[int, ...]] = {
    Kind.MEAN: (1,),
    Kind.PAD: (1,),
    Kind.PADV2: (1,),
    Kind.RESHAPE: (1,),
    Kind.RESIZE_BILINEAR: (1,),
    Kind.RESIZE_NEAREST_NEIGHBOR: (1,),
    Kind.SLICE: (1, 2),
    Kind.STRIDED_SLICE: (1, 2, 3),
    Kind.TRANSPOSE: (1,),
    Kind.TRANSPOSE_CONV: (0,),
}
"""Kind -> operands that are constant lists of int32."""
_LARGEST_ROW = 4095
"""Elements of a SOFTMAX's row whose sum is sure to stay in 12 integer bits."""
_BIAS_TOLERANCE = 1e-6
_SHOWN = 5


def check_program(program: Program) -> None:
    """Raises ModelError with what is wrong, where something is."""
    found = list(problems(program))
    if found:
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise ModelError(f"Program '{program.name}' breaks its contract: {'; '.join(found[:_SHOWN])}{more}.")


def problems(program: Program) -> Iterator[str]:
    """What is wrong, a short sentence each, tensors first."""
    if not program.name.replace("_", "").isalnum() or not program.name.isascii():
        yield f"the name '{program.name}' has more than letters, digits and '_'"
    for name, tensor in program.tensors.items():
        if name != tensor.name:
            yield f"tensor '{tensor.name}' is kept under the name '{name}'"
        yield from _tensor_problems(tensor)
    yield from _order_problems(program)
    for operation in program.operations:
        if all(name in program.tensors for name in (*filter(None, operation.inputs), *operation.outputs)):
            yield from _operation_problems(program, operation)
    for port in (*program.inputs, *program.outputs):
        yield from _port_problems(program, port)


# ---- tensors -----------------------------------------------------------------------------------------------------------------------


def _tensor_problems(tensor: Tensor) -> Iterator[str]:
    where = f"tensor '{tensor.name}'"
    if any(extent < 1 for extent in tensor.shape):
        yield f"{where} has shape {list(tensor.shape)}"
    if len(tensor.shape) > HIGHEST_RANK:
        yield f"{where} has rank {len(tensor.shape)}; kernels stop at {HIGHEST_RANK}"
    if tensor.data is not None and (tensor.data.dtype != np.dtype(tensor.dtype) or tensor.data.shape != tensor.shape):
        yield f"{where} is {tensor.dtype} {list(tensor.shape)}, its data {tensor.data.dtype} {list(tensor.data.shape)}"
    if tensor.dtype == "int8" and tensor.grid is None:
        yield f"{where} is int8 and has no grid"
    if tensor.dtype == "float32" and tensor.grid is not None:
        yield f"{where} is float32 and has a grid"
    if tensor.grid is not None:
        yield from (f"{where} {text}" for text in _grid_problems(tensor, tensor.grid))


def _grid_problems(tensor: Tensor, grid: Affine) -> Iterator[str]:
    scale, zero = np.asarray(grid.scale), np.asarray(grid.zero_point)
    if scale.dtype != np.float32 or not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
        yield "has scales that are not positive float32 numbers"
    if grid.block is not None:
        yield "has a grid in blocks"
    elif grid.axis is None and scale.size != 1:
        yield f"has {scale.size} scales and no axis"
    elif grid.axis is not None and scale.shape != (tensor.shape[grid.axis],):
        yield f"has scales of shape {list(scale.shape)} along axis {grid.axis} of {list(tensor.shape)}"
    if tensor.data is None and (grid.axis is not None or tensor.dtype != "int8"):
        yield "is computed, and its grid is not int8 per tensor"
    if tensor.dtype == "int8" and not (np.all(zero >= fp.INT8_LOW) and np.all(zero <= fp.INT8_HIGH)):
        yield f"has zero points outside int8: {zero.min()} to {zero.max()}"


def _order_problems(program: Program) -> Iterator[str]:
    """Every tensor is made once, before it is used."""
    made = {name for name, tensor in program.tensors.items() if tensor.data is not None}
    for port in program.inputs:
        if port.tensor in made:
            yield f"input '{port.name}' feeds the constant '{port.tensor}'"
        made.add(port.tensor)
    for operation in program.operations:
        for name in filter(None, operation.inputs):
            if name not in made:
                yield f"{operation.kind} uses '{name}' before it is made"
        if len(operation.outputs) != 1:
            yield f"{operation.kind} has {len(operation.outputs)} outputs"
        for name in operation.outputs:
            if name in made or name not in program.tensors:
                yield f"{operation.kind} makes '{name}', which is {'there already' if name in made else 'no tensor'}"
            made.add(name)
    for name, tensor in program.tensors.items():
        if tensor.data is None and name not in made:
            yield f"tensor '{name}' is neither constant, nor fed, nor made"


def _port_problems(program: Program, port: Port) -> Iterator[str]:
    tensor = program.tensors.get(port.tensor)
    if tensor is None:
        yield f"port '{port.name}' names '{port.tensor}', which is no tensor"
        return
    if not port.shape or port.shape[0] != 1 or not tensor.shape or tensor.shape[0] != 1:
        yield f"port '{port.name}' of shape {list(port.shape)} (tensor {list(tensor.shape)}) has not batch 1"
    order = port.permutation
    if order is None:
        if math.prod(port.shape) != math.prod(tensor.shape):
            yield f"port '{port.name}' has shape {list(port.shape)}, its tensor {list(tensor.shape)}"
    elif sorted(order) != list(range(len(port.shape))) or tuple(port.shape[axis] for axis in order) != tensor.shape:
        yield f"port '{port.name}' has shape {list(port.shape)}, its tensor {list(tensor.shape)}: not by permutation {list(order)}"


# ---- operations --------------------------------------------------------------------------------------------------------------------


def _operation_problems(program: Program, operation: Operation) -> Iterator[str]:
    operands: Operands = [program.tensors[name] if name else None for name in operation.inputs]
    output = program.tensors[operation.outputs[0]]
    where = f"{operation.kind} '{output.name}'"
    if operation.inputs and not operation.inputs[-1]:
        yield f"{where} ends with a name for nothing; tflite-micro reads past its tensors there, so leave the operand away"
    unknown = set(operation.options) - _OPTIONS.get(operation.kind, set())
    if unknown:
        yield f"{where} has options that it does not know: {', '.join(sorted(unknown))}"
    try:
        expected = shape_of(operation, operands)
        if expected != output.shape:
            yield f"{where} has shape {list(output.shape)}, and makes {list(expected)}"
        yield from (f"{where} {text}" for text in _type_problems(operation, operands, output))
        yield from (f"{where} {text}" for text in _kernel_problems(operation, operands, output))
    except ModelError as error:
        yield f"{where}: {error.message}"


def _type_problems(operation: Operation, operands: Operands, output: Tensor) -> Iterator[str]:
    """Integers everywhere but at the edges, and grids that are alike where kernels do not rescale."""
    weighted, lists = _WEIGHTED.get(operation.kind), _LISTS.get(operation.kind, ())
    data = [tensor for place, tensor in enumerate(operands) if place not in lists and (weighted is None or place == weighted[0])]
    into = "float32" if operation.kind is Kind.DEQUANTIZE else "int8"
    if output.dtype != into:
        yield f"gives {output.dtype}, not {into}"
    for tensor in data:
        if tensor is None or not (tensor.dtype == "int8" or (tensor.dtype == "float32" and operation.kind is Kind.QUANTIZE)):
            yield f"takes int8, and not {'nothing' if tensor is None else tensor.dtype}"
    if operation.kind in KEEPS_GRID:
        for tensor in data:
            if tensor is not None and not _alike(tensor.grid, output.grid):
                yield f"keeps the grid of its input, and '{tensor.name}' has another than the output"
    wanted = OUTPUT_GRIDS.get(operation.kind)
    if wanted and output.grid is not None and (float(output.grid.scale), int(output.grid.zero_point)) != wanted:
        yield f"gives scale {wanted[0]} and zero point {wanted[1]}, and its output has another grid"
    if weighted is not None:
        yield from _weight_problems(operands, *weighted)
        if operation.kind in _BIASED and len(operands) < 3:
            yield "has no bias; LiteRT's kernels end the process there, so give it zeros"


def _weight_problems(operands: Operands, source_at: int, weights_at: int, bias_at: int, axis: int) -> Iterator[str]:
    source, weights = operands[source_at], operands[weights_at]
    if weights is None or weights.data is None or weights.dtype != "int8" or weights.grid is None or source is None or source.grid is None:
        yield "has weights that are not constant int8 on a grid"
        return
    if np.any(np.asarray(weights.grid.zero_point) != 0):
        yield "has weights whose zero point is not 0"
    if weights.grid.axis is not None and weights.grid.axis % len(weights.shape) != axis:
        yield f"has weights on scales along axis {weights.grid.axis}, not {axis}"
    bias = operands[bias_at] if bias_at < len(operands) else None
    if bias is None:
        return
    channels = weights.shape[axis]
    if bias.data is None or bias.dtype != "int32" or bias.shape != (channels,):
        yield f"has a bias that is not {channels} constants of int32"
    elif bias.grid is None or np.any(np.asarray(bias.grid.zero_point) != 0):
        yield "has a bias without a grid, or whose zero point is not 0"
    else:
        expected = float(source.grid.scale) * np.asarray(weights.grid.scale, np.float64).reshape(-1)
        if not np.allclose(np.asarray(bias.grid.scale, np.float64).reshape(-1), expected, rtol=_BIAS_TOLERANCE, atol=0):
            yield "has a bias whose scale is not that of the input times that of the weights"


def _alike(one: Affine | None, other: Affine | None) -> bool:
    if one is None or other is None:
        return False
    return float(one.scale) == float(other.scale) and int(one.zero_point) == int(other.zero_point)


# ---- where kernels stop ------------------------------------------------------------------------------------------------------------


def _kernel_problems(operation: Operation, operands: Operands, output: Tensor) -> Iterator[str]:
    """Tries the factors that kernels prepare; they raise ModelError where one cannot be had."""
    grids = [tensor.grid for tensor in operands if tensor is not None and tensor.grid is not None]
    if output.grid is None or not grids:
        return
    fp.activation_bounds(str(operation.options.get("activation", "NONE")), output.grid)
    if operation.kind in _FACTORS and len(grids) > 1:
        _FACTORS[operation.kind](grids[0], grids[1], output.grid)
    elif operation.kind in tables.TABLES:
        tables.table(operation.kind, grids[0], output.grid, operation.options)
    elif operation.kind is Kind.SOFTMAX:
        tables.softmax_exponentials(grids[0], float(operation.options.get("beta", 1.0)))  # type: ignore[arg-type]
        if output.shape[-1] > _LARGEST_ROW:
            yield f"has rows of {output.shape[-1]}; kernels add up to {_LARGEST_ROW}"
    elif operation.kind is Kind.MEAN:
        first = operands[0]
        count = math.prod(first.shape) // math.prod(output.shape) if first is not None else 1
        if count * (1 << 8) >= 1 << 31:
            yield f"is over {count} elements; their sum leaves 32 bits"


_FACTORS: Mapping[Kind, Callable[[Affine, Affine, Affine], object]] = {
    Kind.ADD: fp.add_factors,
    Kind.MUL: fp.mul_multiplier,
    Kind.SUB: fp.sub_factors,
}
