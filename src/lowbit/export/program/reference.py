"""The integer program on numpy: what every kernel that runs it is compared with.

Bit for bit what TensorFlow Lite for Microcontrollers' reference kernels answer on the same program written as a flatbuffer; the tests hold
it to its wheel. The generated C has the same arithmetic; other kernels (XNNPACK, LiteRT's built-in ones) may differ by a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lowbit.errors import DataError, ModelError
from lowbit.export.program import reference_elements as elements
from lowbit.export.program import reference_moves as moves
from lowbit.export.program import reference_products as products
from lowbit.export.program import reference_windows as windows
from lowbit.export.program.program import Kind, Operation, Port, Program, Tensor
from lowbit.export.program.reference_step import Step
from lowbit.types import Array, Feeds

KERNELS: Mapping[Kind, Callable[[Step], Array]] = {
    Kind.ADD: elements.add_or_sub,
    Kind.AVERAGE_POOL_2D: windows.average_pool_2d,
    Kind.CONCATENATION: moves.concatenation,
    Kind.CONV_2D: products.conv_2d,
    Kind.DEPTH_TO_SPACE: moves.depth_to_space,
    Kind.DEPTHWISE_CONV_2D: products.depthwise_conv_2d,
    Kind.DEQUANTIZE: elements.dequantize,
    Kind.FULLY_CONNECTED: products.fully_connected,
    Kind.HARD_SWISH: elements.by_table,
    Kind.LEAKY_RELU: elements.by_table,
    Kind.LOGISTIC: elements.by_table,
    Kind.MAX_POOL_2D: windows.max_pool_2d,
    Kind.MEAN: windows.mean,
    Kind.MUL: elements.mul,
    Kind.PAD: moves.pad,
    Kind.PADV2: moves.pad,
    Kind.QUANTIZE: elements.quantize,
    Kind.RELU: elements.by_table,
    Kind.RELU6: elements.by_table,
    Kind.RESHAPE: moves.reshape,
    Kind.RESIZE_BILINEAR: moves.resize_bilinear,
    Kind.RESIZE_NEAREST_NEIGHBOR: moves.resize_nearest,
    Kind.SLICE: moves.cut,
    Kind.SOFTMAX: elements.softmax,
    Kind.STRIDED_SLICE: moves.cut,
    Kind.SUB: elements.add_or_sub,
    Kind.TANH: elements.by_table,
    Kind.TRANSPOSE: moves.transpose,
    Kind.TRANSPOSE_CONV: products.transpose_conv,
}

TOLERANCE: Mapping[Kind, int] = dict.fromkeys(KERNELS, 0)
"""Steps by which an answer may be away from the oracle's, by kind: none, measured for every kind on thousands of random grids."""

_CHUNK_ELEMENTS = 1 << 20
"""Of the largest tensor, in as many samples as go through together."""


def run(program: Program, feeds: Feeds) -> dict[str, Array]:
    """Answers samples in real numbers.

    Args:
        program: What to run.
        feeds: Input port -> array [N, ...] in the source model's layout; real numbers, or int8 levels where the program is fed int8.

    Returns:
        Output port -> float32 [N, ...] in the source model's layout.

    Raises:
        DataError: an input is missing or has another shape.
        ModelError: the program breaks its own contract (see `problems.check_program`).
    """
    return {port.name: _to_source(_real(values, program.tensors[port.tensor]), port) for port, values in _answers(program, feeds, {})}


def run_integers(program: Program, feeds: Feeds) -> dict[str, Array]:
    """The same answers as levels, int8: where an output is DEQUANTIZEd, what goes into that.

    Raises:
        DataError: as `run`.
        ModelError: as `run`; or an output that is real and not made by DEQUANTIZE.
    """
    before = {operation.outputs[0]: operation.inputs[0] for operation in program.operations if operation.kind is Kind.DEQUANTIZE}
    for port in program.outputs:
        if program.tensors[port.tensor].dtype == "float32" and port.tensor not in before:
            raise ModelError(f"Output '{port.name}' is in floating point and has no levels.")
    return {port.name: _to_source(values, port) for port, values in _answers(program, feeds, before)}


def run_tensors(program: Program, feeds: Feeds) -> dict[str, Array]:
    """Every tensor that is fed or computed, [N, *shape] in the program's own layout and dtype: to find where two runs part.

    Raises:
        As `run`.
    """
    names = [name for name, tensor in program.tensors.items() if tensor.data is None]
    return dict(zip(names, _kept(program, feeds, names), strict=True))


def first_difference(program: Program, expected: Mapping[str, Array], found: Mapping[str, Array]) -> tuple[Operation, int, int] | None:
    """The first operation, in running order, whose output differs between two runs.

    Args:
        program: What both ran.
        expected: Of `run_tensors`.
        found: Likewise, of another kernel; tensors may be missing.

    Returns:
        The operation, how many elements differ, and by how much at most (in levels); None where nothing does.
    """
    for operation in program.operations:
        for name in operation.outputs:
            if name in found and name in expected:
                gap = np.abs(np.asarray(found[name], np.float64) - np.asarray(expected[name], np.float64).reshape(np.shape(found[name])))
                if gap.any():
                    return operation, int(np.count_nonzero(gap)), int(np.ceil(gap.max()))
    return None


def _answers(program: Program, feeds: Feeds, instead: Mapping[str, str]) -> Iterator[tuple[Port, Array]]:
    """Output ports with [N, *shape] of their tensor, or of the one that stands `instead` of it."""
    names = [instead.get(port.tensor, port.tensor) for port in program.outputs]
    return zip(program.outputs, _kept(program, feeds, names), strict=True)


def _kept(program: Program, feeds: Feeds, names: list[str]) -> list[Array]:
    """Runs chunk by chunk; [N, *shape] of each tensor."""
    fed = {port.tensor: from_source(port, feeds, program.tensors[port.tensor]) for port in program.inputs}
    counts = {len(values) for values in fed.values()}
    if len(counts) != 1:
        raise DataError(f"Inputs have different numbers of samples: {sorted(counts)}.")
    count = counts.pop()
    largest = max((int(np.prod(tensor.shape)) for tensor in program.tensors.values() if tensor.data is None), default=1)
    rows = max(1, _CHUNK_ELEMENTS // max(largest, 1))
    chunks = [
        _run(program, {name: values[at : at + rows] for name, values in fed.items()}, set(names)) for at in range(0, max(count, 1), rows)
    ]
    return [np.concatenate([chunk[name] for chunk in chunks]) for name in names]


def _run(program: Program, values: dict[str, Array], names: set[str]) -> dict[str, Array]:
    """All operations in order; a tensor is dropped after its last use, unless it is asked for."""
    last = {name: number for number, operation in enumerate(program.operations) for name in operation.inputs}
    count = len(next(iter(values.values())))
    for number, operation in enumerate(program.operations):
        result = _apply(program, operation, values)
        values[operation.outputs[0]] = np.broadcast_to(result, (count, *result.shape[1:]))
        for name in operation.inputs:
            if last[name] == number and name not in names:
                values.pop(name, None)
    missing = names - set(values)
    if missing:
        raise ModelError(f"The program never makes {', '.join(sorted(missing))}.")
    return {name: values[name] for name in names}


def _apply(program: Program, operation: Operation, values: Mapping[str, Array]) -> Array:
    tensors = tuple(program.tensors[name] if name else None for name in operation.inputs)
    operands = tuple(None if tensor is None else _operand(tensor, values) for tensor in tensors)
    output = program.tensors[operation.outputs[0]]
    kernel = KERNELS.get(operation.kind)
    if kernel is None:
        raise ModelError(f"The reference has no {operation.kind}.")
    result = kernel(Step(operation, tensors, operands, output))
    if result.shape[1:] != output.shape:
        raise ModelError(f"{operation.kind} makes '{output.name}' of shape {result.shape[1:]}, where the program says {output.shape}.")
    return result


def _operand(tensor: Tensor, values: Mapping[str, Array]) -> Array:
    if tensor.data is not None:
        return np.asarray(tensor.data, tensor.dtype).reshape(1, *tensor.shape)
    if tensor.name not in values:
        raise ModelError(f"'{tensor.name}' is used before it is made.")
    return values[tensor.name]


def from_source(port: Port, feeds: Mapping[str, Array], tensor: Tensor) -> Array:
    """An input in the program's layout and dtype, [N, *shape].

    Raises:
        DataError: it is missing or has another shape.
        ModelError: it is int8 and has no grid.
    """
    if port.name not in feeds:
        raise DataError(f"Input '{port.name}' is missing; given: {', '.join(sorted(feeds)) or 'nothing'}.")
    values = np.asarray(feeds[port.name])
    if values.shape[1:] != port.shape[1:]:
        raise DataError(f"Input '{port.name}' has shape {list(values.shape)}; the model takes {['N', *port.shape[1:]]}.")
    moved = values if port.permutation is None else values.transpose(port.permutation)
    if tensor.dtype == "int8" and moved.dtype != np.int8:
        if tensor.grid is None:
            raise ModelError(f"Input '{port.name}' is int8 and has no grid.")
        moved = elements.levels(moved, tensor.grid)
    return moved.astype(tensor.dtype, copy=False).reshape(-1, *tensor.shape)


def _to_source(values: Array, port: Port) -> Array:
    """[N, 1, ...] in the program's layout to [N, ...] in the source model's."""
    rows = values.reshape(-1, *values.shape[2:])
    moved = rows if port.permutation is None else rows.transpose(np.argsort(port.permutation))
    return np.ascontiguousarray(moved.reshape(-1, *port.shape[1:]))


def _real(values: Array, tensor: Tensor) -> Array:
    return values if tensor.grid is None or tensor.dtype == "float32" else elements.real(values, tensor.grid)
