"""Convolutions and fully connected layers: weights on the candidate's grids, biases on the grid of input times weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from lowbit.export.program.lower_grids import ends
from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_windows import Window, padded, window_of
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import Writer
from lowbit.export.program.program import Kind, Option
from lowbit.quant.affine import Affine, from_values, quantize
from lowbit.types import Array

MOST_GROUPS = 16
"""A convolution in that many groups is written as one of each; beyond that nobody gains anything."""

_LARGEST_BIAS = 2**31 - 1


def convolution(writer: Writer, step: Step) -> None:
    """Conv over one or two axes: CONV_2D, DEPTHWISE_CONV_2D, or one CONV_2D a group."""
    weight = _constant_weight(writer, step)
    rank, groups = weight.ndim, int(step.get("group", 1))
    if rank not in (3, 4):
        raise lacking(writer.net, step, f"it moves over {rank - 2} axes, and only 1 and 2 are known")
    window = window_of(writer, step, tuple(weight.shape[2:]))
    x = as_image(writer, step)
    if rank == 3:
        weight = weight[:, :, None, :]
    channels = int(writer.of(x).shape[-1])
    x, window = padded(writer, step, x, window)
    if groups == 1:
        result = _conv(writer, step, x, weight, window, slice(None))
    elif groups == channels and weight.shape[1] == 1:
        result = _depthwise(writer, step, x, weight, window, channels)
    else:
        result = _grouped(writer, step, x, weight, window, groups)
    put_image(writer, step, result)


def as_image(writer: Writer, step: Step) -> str:
    """The first input channels last; one of rank 3 with a height of 1."""
    name = step.inputs[0]
    if len(writer.shape(name)) == 4:
        return writer.image(name, step.nodes)
    flat = writer.lying(writer.laid[name], (0, 2, 1), step.nodes)
    shape = writer.of(flat).shape
    return writer.reshaped(flat, (shape[0], 1, *shape[1:]), step.nodes)


def image_shape(writer: Writer, step: Step) -> tuple[int, ...]:
    """Of the output channels last; a height of 1 where it has none."""
    shape = writer.shape(step.output)
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else (shape[0], 1, shape[2], shape[1])


def image_name(writer: Writer, step: Step) -> str:
    """Of the tensor that is written channels last."""
    return writer.named(step.output) if len(writer.shape(step.output)) == 4 else writer.fresh(f"{step.output}_2d")


def put_image(writer: Writer, step: Step, result: str) -> None:
    """Says where the output lies, after a height of 1 was taken off again."""
    shape = writer.shape(step.output)
    if len(shape) == 4:
        writer.put(step.output, result, (0, 2, 3, 1))
    else:
        flat = writer.reshaped(result, (shape[0], shape[2], shape[1]), step.nodes, writer.named(step.output))
        writer.put(step.output, flat, (0, 2, 1))


def _conv(writer: Writer, step: Step, x: str, weight: Array, window: Window, part: slice, name: str | None = None) -> str:
    integers, grid = weight_integers(writer, step, weight, 0, part)
    lying = np.transpose(integers, (0, 2, 3, 1))
    operands = _operands(writer, step, x, lying, grid, part, weight.shape[0])
    shape = (*image_shape(writer, step)[:-1], weight.shape[0])
    options = {**window.strides(), **window.dilations(), "padding": window.padding, **activation(writer, step)}
    return writer.add(Kind.CONV_2D, operands, name or image_name(writer, step), shape, writer.grids[step.output], step.nodes, options)


def _depthwise(writer: Writer, step: Step, x: str, weight: Array, window: Window, channels: int) -> str:
    integers, grid = weight_integers(writer, step, weight, 0, slice(None))
    lying = np.transpose(integers, (1, 2, 3, 0))
    operands = _operands(writer, step, x, lying, replace(grid, axis=3 if grid.axis is not None else None), slice(None), weight.shape[0])
    options: dict[str, Option] = {**window.strides(), **window.dilations(), "padding": window.padding, **activation(writer, step)}
    options["depth_multiplier"] = weight.shape[0] // channels
    name, shape = image_name(writer, step), image_shape(writer, step)
    return writer.add(Kind.DEPTHWISE_CONV_2D, operands, name, shape, writer.grids[step.output], step.nodes, options)


def _grouped(writer: Writer, step: Step, x: str, weight: Array, window: Window, groups: int) -> str:
    if groups > MOST_GROUPS:
        raise lacking(writer.net, step, f"it has {groups} groups; one convolution a group is written for at most {MOST_GROUPS}")
    shape = writer.of(x).shape
    width, wide = shape[-1] // groups, weight.shape[0] // groups
    parts = []
    for group in range(groups):
        begin = writer.numbers(f"{x}_begin", (0, 0, 0, group * width))
        size = writer.numbers(f"{x}_size", (*shape[:-1], width))
        cut = writer.add(Kind.SLICE, (x, begin, size), writer.fresh(f"{x}_group"), (*shape[:-1], width), writer.grid(x), step.nodes)
        part = slice(group * wide, (group + 1) * wide)
        parts.append(_conv(writer, step, cut, weight[part], window, part, writer.fresh(f"{step.output}_group")))
    name, whole = image_name(writer, step), image_shape(writer, step)
    return writer.add(Kind.CONCATENATION, parts, name, whole, writer.grids[step.output], step.nodes, {"axis": 3})


def dense(writer: Writer, step: Step) -> None:
    """Gemm, and MatMul with a constant: FULLY_CONNECTED on rows."""
    weight = _constant_weight(writer, step)
    if weight.ndim != 2 or step.get("transA", 0):
        raise lacking(writer.net, step, "its weights are not one matrix, or its input is transposed")
    if step.op == "MatMul" or not step.get("transB", 0):
        weight, axis = weight.T, 1
    else:
        axis = 0
    laid = writer.laid[step.inputs[0]]
    x, order = laid.tensor, laid.order
    if order is None:
        x = writer.lying(laid, tuple(range(len(laid.axes))), step.nodes)
    shape = writer.shape(step.output)
    rows = math.prod(shape[:-1])
    x = writer.reshaped(x, (rows, weight.shape[1]), step.nodes)
    factor = float(step.get("alpha", 1.0)) if step.op == "Gemm" else 1.0
    integers, grid = _dense_integers(writer, step, weight, axis, factor)
    integers = integers if order is None else integers[:, order]
    operands = _operands(writer, step, x, integers, grid, slice(None), weight.shape[0])
    name = writer.named(step.output) if len(shape) == 2 else writer.fresh(f"{step.output}_rows")
    options = activation(writer, step)
    grid_out = writer.grids[step.output]
    result = writer.add(Kind.FULLY_CONNECTED, operands, name, (rows, weight.shape[0]), grid_out, step.nodes, options)
    if len(shape) != 2:
        result = writer.reshaped(result, shape, step.nodes, writer.named(step.output))
    writer.put(step.output, result)


def _dense_integers(writer: Writer, step: Step, weight: Array, axis: int, factor: float) -> tuple[Array, Affine]:
    integers, grid = weight_integers(writer, step, weight, axis, slice(None))
    if writer.per_tensor_dense and grid.axis is not None:
        grid = from_values(weight, "int8", symmetric=True)
        integers = quantize(weight, grid)
        writer.notes.append(f"The weights of {step.op} '{step.nodes[0]}' have one scale instead of one a channel: they were rounded again.")
    return integers, replace(grid, scale=(grid.scale * np.float32(factor)).astype(np.float32))


def transposed_convolution(writer: Writer, step: Step) -> None:
    """ConvTranspose: TRANSPOSE_CONV without padding, and what the padding takes off cut away behind it."""
    grid_ends_where_it_is_cut(writer, step)
    weight = _constant_weight(writer, step)
    dilations = tuple(step.get("dilations", (1,) * (weight.ndim - 2)))
    if weight.ndim != 4 or int(step.get("group", 1)) != 1 or any(each != 1 for each in dilations):
        raise lacking(writer.net, step, "only transposed convolutions over two axes, in one group and without dilation are known")
    strides = tuple(int(each) for each in step.get("strides", (1, 1)))
    begins = _transposed_pads(writer, step, tuple(weight.shape[2:]), strides)
    x = writer.image(step.inputs[0], step.nodes)
    shape, source = image_shape(writer, step), writer.of(x).shape
    full = [max((source[i + 1] - 1) * strides[i] + weight.shape[i + 2], begins[i] + shape[i + 1]) for i in (0, 1)]
    whole = (1, *full, shape[3])
    integers, grid = weight_integers(writer, step, np.swapaxes(weight, 0, 1), 1, slice(None))
    filter_, bias = _operands(writer, step, x, np.transpose(integers, (0, 2, 3, 1)), grid, slice(None), weight.shape[1])[1:]
    operands = (writer.numbers(f"{step.output}_shape", whole), filter_, x, bias)
    cut = whole != shape
    name = writer.fresh(f"{step.output}_whole") if cut else writer.named(step.output)
    options: dict[str, Option] = {"stride_h": strides[0], "stride_w": strides[1], "padding": "VALID"}
    grid_out = writer.grids[step.output]
    result = writer.add(Kind.TRANSPOSE_CONV, operands, name, whole, grid_out, step.nodes, options)
    if cut:
        begin, size = writer.numbers(f"{step.output}_begin", (0, *begins, 0)), writer.numbers(f"{step.output}_size", shape)
        result = writer.add(Kind.SLICE, (result, begin, size), writer.named(step.output), shape, grid_out, step.nodes)
    writer.put(step.output, result, (0, 2, 3, 1))


def _transposed_pads(writer: Writer, step: Step, kernel: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Rows and columns that are cut off in front (ONNX ConvTranspose)."""
    given, shape = step.get("output_shape", None), writer.shape(step.inputs[0])
    automatic = step.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID") and not given:
        return [int(each) for each in step.get("pads", (0, 0, 0, 0))[:2]] if automatic == "NOTSET" else [0, 0]
    extra = step.get("output_padding", (0, 0))
    total = [max((shape[i + 2] - 1) * strides[i] + extra[i] + kernel[i] - writer.shape(step.output)[i + 2], 0) for i in (0, 1)]
    return [each // 2 if automatic == "SAME_UPPER" else each - each // 2 for each in total]


def scale_and_shift(writer: Writer, step: Step) -> None:
    """BatchNormalization that could not be folded: a depthwise convolution of one pixel, which has a scale and a bias a channel."""
    shape, constants = writer.shape(step.output), [writer.net.constants.get(name) for name in step.inputs[1:5]]
    if any(values is None for values in constants) or step.get("training_mode", 0) or len(shape) < 2:
        raise lacking(writer.net, step, "its statistics are computed")
    gamma, beta, mean, variance = (np.asarray(values, np.float64) for values in constants)
    factor = gamma / np.sqrt(variance + step.get("epsilon", 1e-5))
    laid = writer.laid[step.inputs[0]]
    axes = (*(axis for axis in laid.axes if axis != 1), 1)
    x = writer.lying(laid, axes, step.nodes)
    lying, channels = writer.of(x).shape, shape[1]
    x = writer.reshaped(x, (1, 1, math.prod(lying[:-1]), channels), step.nodes)
    grid = from_values(factor, "int8", symmetric=True, axis=0)
    weight = writer.constant(f"{step.output}_factor", quantize(factor, grid).reshape(1, 1, 1, -1), replace(grid, axis=3))
    scale = np.float64(writer.grid(x).scale) * grid.scale
    on = Affine(scale.astype(np.float32), np.zeros(channels, np.int32), "int32", symmetric=True, axis=0)
    bias = writer.constant(f"{step.output}_shift", np.rint((beta - factor * mean) / scale).astype(np.int32), on)
    options: dict[str, Option] = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "padding": "VALID", "depth_multiplier": 1}
    flat = lying == writer.of(x).shape
    name = writer.named(step.output) if flat else writer.fresh(f"{step.output}_rows")
    grid_out, options = writer.grids[step.output], {**options, **activation(writer, step)}
    result = writer.add(Kind.DEPTHWISE_CONV_2D, (x, weight, bias), name, writer.of(x).shape, grid_out, step.nodes, options)
    writer.put(step.output, writer.reshaped(result, lying, step.nodes, writer.named(step.output)), axes)


def weight_integers(writer: Writer, step: Step, weight: Array, axis: int, part: slice) -> tuple[Array, Affine]:
    """A weight as int8 with a scale a channel of its first axis, on the candidate's grid where that can be said so.

    Args:
        writer: The program.
        step: Whose weight.
        weight: float [O, ...], output channels first.
        axis: Where the output channels are in the source.
        part: Those of the source's channels that these are.
    """
    name = step.inputs[1]
    grid = writer.weights.get(name)
    if grid is not None and _is_plain(grid, axis):
        scale = grid.scale if grid.axis is None else grid.scale[part]
        plain = Affine(scale, np.zeros(scale.shape, np.int32), "int8", grid.symmetric, None if grid.axis is None else 0)
        return quantize(weight, plain), plain
    if part == slice(None) or part.start == 0:
        was = "stays in floating point in the candidate" if grid is None else f"is {grid.dtype} {_words(grid)} in the candidate"
        writer.notes.append(f"The weight of {step.op} '{step.nodes[0]}' {was}; it was rounded to int8 with a scale a channel here.")
    own = from_values(weight, "int8", symmetric=True, axis=0)
    return quantize(weight, own), own


def _is_plain(grid: Affine, axis: int) -> bool:
    narrow = grid.dtype in ("int8", "int4")
    return narrow and grid.block is None and not np.any(grid.zero_point) and grid.axis in (None, axis)


def _words(grid: Affine) -> str:
    return f"in blocks of {grid.block}" if grid.block is not None else "with zero points or along another axis"


def _operands(writer: Writer, step: Step, x: str, weight: Array, grid: Affine, part: slice, channels: int) -> tuple[str, str, str]:
    """Input, weight and bias as a product reads them; a product without a bias gets one of zeros."""
    name = writer.constant(step.inputs[1] or f"{step.output}_weight", weight, grid)
    values = _bias(writer, step, channels, part)
    scale = np.float64(writer.grid(x).scale) * np.asarray(grid.scale, np.float64)
    levels = np.rint(values / scale)
    if np.any(np.abs(levels) > _LARGEST_BIAS):
        raise lacking(writer.net, step, "its bias does not fit into 32 bits on the grid of input times weight")
    on = Affine(scale.astype(np.float32), np.zeros(scale.shape, np.int32), "int32", symmetric=True, axis=0 if scale.ndim else None)
    source = step.inputs[2] if len(step.inputs) > 2 and step.inputs[2] else f"{step.output}_bias"
    return x, name, writer.constant(source, levels.astype(np.int32), on)


def _bias(writer: Writer, step: Step, channels: int, part: slice) -> Array:
    """float64 [channels]."""
    if len(step.inputs) < 3 or not step.inputs[2]:
        return np.zeros(channels)
    if step.inputs[2] not in writer.net.constants:
        raise lacking(writer.net, step, "its bias is computed")
    values = writer.net.constants[step.inputs[2]].astype(np.float64).reshape(-1) * float(step.get("beta", 1.0))
    if values.size == 1:
        return np.full(channels, values[0])
    values = values[part]
    if values.size != channels:
        raise lacking(writer.net, step, f"its bias has {values.size} numbers for {channels} channels")
    return values


def _constant_weight(writer: Writer, step: Step) -> Array:
    values = writer.net.constants.get(step.inputs[1])
    if values is None or step.inputs[0] in writer.net.constants:
        raise lacking(writer.net, step, "both its operands are computed, as in attention; only weights that are constants are known")
    return values.astype(np.float32)


def grid_ends_where_it_is_cut(writer: Writer, step: Step) -> None:
    """For kernels that cut nothing themselves.

    Raises:
        ModelError: a Clip was taken in whose bounds the grid does not have.
    """
    if activation(writer, step)["activation"] != "NONE":
        raise lacking(writer.net, step, "its results are cut where its grid does not end")


def activation(writer: Writer, step: Step) -> dict[str, Option]:
    """The activation that a kernel must apply itself: none where the grid ends where the bounds are."""
    if step.clamp is None:
        return {"activation": "NONE"}
    low, high = ends(writer.grids[step.output])
    half = float(writer.grids[step.output].scale) / 2
    if low >= step.clamp[0] - half and high <= step.clamp[1] + half:
        return {"activation": "NONE"}
    if step.clamp[0] == 0 and step.clamp[1] in (6.0, math.inf):
        return {"activation": "RELU6" if step.clamp[1] == 6.0 else "RELU"}
    raise lacking(writer.net, step, f"its results are cut at {step.clamp}, which no grid that holds zero ends at")
