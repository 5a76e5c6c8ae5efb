"""Element by element: sums, products, activations, softmax."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lowbit.export.program.lower_fuse import bounds_of
from lowbit.export.program.lower_grids import ends, operator_grid
from lowbit.export.program.lower_products import activation, grid_ends_where_it_is_cut
from lowbit.export.program.lower_reshape import reshape_laid
from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import IMAGE, Axes, Writer
from lowbit.export.program.program import Kind, Option
from lowbit.quant.affine import Affine, from_range, from_values, quantize
from lowbit.types import Array

_TWO = {"Add": Kind.ADD, "Div": Kind.MUL, "Mul": Kind.MUL, "Sub": Kind.SUB}
_ONE = {"HardSwish": Kind.HARD_SWISH, "LeakyRelu": Kind.LEAKY_RELU, "Sigmoid": Kind.LOGISTIC, "Tanh": Kind.TANH}


def two(writer: Writer, step: Step) -> None:
    """Add, Sub, Mul, and Div by a constant: of two tensors, or a tensor and a constant."""
    if len(step.inputs) != 2:
        raise lacking(writer.net, step, f"it has {len(step.inputs)} operands, and only two are known")
    if step.op == "Div" and step.inputs[1] not in writer.net.constants:
        raise lacking(writer.net, step, "it divides by what is computed")
    shape = writer.shape(step.output)
    axes = _common_axes(writer, step, len(shape))
    operands = [_operand(writer, step, index, axes) for index in (0, 1)]
    lying = tuple(shape[axis] for axis in axes)
    grid = writer.grids[step.output]
    result = writer.add(_TWO[step.op], operands, writer.named(step.output), lying, grid, step.nodes, activation(writer, step))
    writer.put(step.output, result, axes)


def _common_axes(writer: Writer, step: Step, rank: int) -> Axes:
    """How both operands lie: channels last if one of them does."""
    found = [writer.laid[name].axes for name in step.inputs if name in writer.laid and len(writer.laid[name].axes) == rank]
    return IMAGE if IMAGE in found else found[0] if found else tuple(range(rank))


def _operand(writer: Writer, step: Step, index: int, axes: Axes) -> str:
    name = step.inputs[index]
    values = writer.net.constants.get(name)
    if values is not None:
        values = 1 / values if step.op == "Div" else values
        return constant_operand(writer, name, values.reshape((1,) * (len(axes) - values.ndim) + values.shape).transpose(axes))
    laid = writer.laid[name]
    if len(laid.axes) < len(axes):
        shape = writer.shape(name)
        laid = reshape_laid(writer, laid, shape, (1,) * (len(axes) - len(shape)) + shape, step.nodes)
    return writer.lying(laid, axes, step.nodes)


def constant_operand(writer: Writer, name: str, values: Array) -> str:
    """A constant on the grid that the candidate gave it, or on its own min-max."""
    grid = writer.weights.get(name)
    if grid is None or grid.axis is not None or grid.block is not None or grid.dtype != "int8":
        grid = from_values(values, "int8", symmetric=False)
    return writer.constant(name, quantize(values, grid), Affine(grid.scale, grid.zero_point, "int8", grid.symmetric))


def one(writer: Writer, step: Step) -> None:
    """An activation with a kernel of its own."""
    grid_ends_where_it_is_cut(writer, step)
    laid = writer.laid[step.inputs[0]]
    x = writer.lying(laid, laid.axes, step.nodes)
    options: dict[str, Option] = {"alpha": float(step.get("alpha", 0.01))} if step.op == "LeakyRelu" else {}
    grid = writer.grids[step.output]
    own = operator_grid(step.op)
    assert own is None or own.scale == grid.scale, step
    result = writer.add(_ONE[step.op], (x,), writer.named(step.output), writer.of(x).shape, grid, step.nodes, options)
    writer.put(step.output, result, laid.axes)


def clamp(writer: Writer, step: Step) -> None:
    """Relu and Clip that follow what has no grid of its own: RELU, or a QUANTIZE to a grid that ends at the bounds."""
    bounds = bounds_of(step, writer.net)
    if bounds is None:
        raise lacking(writer.net, step, "its bounds are computed")
    laid = writer.laid[step.inputs[0]]
    x = writer.lying(laid, laid.axes, step.nodes)
    grid = writer.grids[step.output]
    if not bounds[0] <= 0 <= bounds[1]:
        raise lacking(writer.net, step, f"its bounds {bounds} leave zero out, which every grid holds")
    result = writer.add(
        Kind.RELU if step.op == "Relu" else Kind.QUANTIZE, (x,), writer.named(step.output), writer.of(x).shape, grid, step.nodes
    )
    writer.put(step.output, result, laid.axes)


def softmax(writer: Writer, step: Step) -> None:
    """Softmax over one axis, which comes to lie last."""
    name = step.inputs[0]
    shape = writer.shape(name)
    axis = int(step.get("axis", -1 if writer.net.opset >= 13 else 1)) % len(shape)
    if writer.net.opset < 13:  # it was over all axes from there on
        wide = [index for index in range(axis, len(shape)) if shape[index] != 1]
        if len(wide) > 1:
            raise lacking(writer.net, step, "it sums over several axes at once")
        axis = wide[0] if wide else len(shape) - 1
    laid = writer.laid[name]
    axes = laid.axes if laid.axes[-1] == axis else (*(each for each in laid.axes if each != axis), axis)
    x = writer.lying(laid, axes, step.nodes)
    result = writer.add(
        Kind.SOFTMAX, (x,), writer.named(step.output), writer.of(x).shape, writer.grids[step.output], step.nodes, {"beta": 1.0}
    )
    writer.put(step.output, result, axes)


def hard_sigmoid(writer: Writer, step: Step) -> None:
    """clip(alpha x + beta, 0, 1): a MUL that only renames levels, and an ADD whose grid ends at 0 and 1."""
    laid = writer.laid[step.inputs[0]]
    x = writer.lying(laid, laid.axes, step.nodes)
    alpha, beta = float(step.get("alpha", 0.2)), float(step.get("beta", 0.5))
    ones = (1,) * len(laid.axes)
    slope = constant_operand(writer, f"{step.output}_slope", np.full(ones, alpha, np.float32))
    shift = constant_operand(writer, f"{step.output}_shift", np.full(ones, beta, np.float32))
    own, shape = writer.grid(x), writer.of(x).shape
    finer = Affine((own.scale * np.float32(abs(alpha))).astype(np.float32), own.zero_point, "int8", symmetric=False)
    part = writer.add(Kind.MUL, (x, slope), writer.fresh(f"{step.output}_product"), shape, finer, step.nodes, {"activation": "NONE"})
    grid = writer.grids[step.output]
    result = writer.add(Kind.ADD, (part, shift), writer.named(step.output), shape, grid, step.nodes, {"activation": "NONE"})
    writer.put(step.output, result, laid.axes)


def leaky_by_channel(writer: Writer, step: Step) -> None:
    """PRelu: max(x, 0) + slope · min(x, 0). A RELU, and a QUANTIZE to a grid that ends at zero, take the two halves apart."""
    slope = writer.net.constants.get(step.inputs[1])
    if slope is None:
        raise lacking(writer.net, step, "its slopes are computed")
    if np.all(slope == slope.reshape(-1)[0]) and float(slope.reshape(-1)[0]) >= 0:
        one(writer, replace(step, op="LeakyRelu", inputs=step.inputs[:1], attributes={"alpha": float(slope.reshape(-1)[0])}))
        return
    laid = writer.laid[step.inputs[0]]
    x = writer.lying(laid, laid.axes, step.nodes)
    shape, (low, high) = writer.of(x).shape, ends(writer.grid(x))
    slope = slope.reshape((1,) * (len(shape) - slope.ndim) + slope.shape).transpose(laid.axes)
    reach = low * slope

    def part(kind: Kind, inputs: tuple[str, ...], word: str, least: float, most: float) -> str:
        options: dict[str, Option] = {"activation": "NONE"} if kind == Kind.MUL else {}
        grid = from_range(least, most, "int8", symmetric=False)
        return writer.add(kind, inputs, writer.fresh(f"{step.output}_{word}"), shape, grid, step.nodes, options)

    above = part(Kind.RELU, (x,), "above", 0.0, max(high, 0.0))
    below = part(Kind.QUANTIZE, (x,), "below", min(low, 0.0), 0.0)
    factor = constant_operand(writer, step.inputs[1], slope)
    below = part(Kind.MUL, (below, factor), "scaled", min(float(reach.min()), 0.0), max(float(reach.max()), 0.0))
    grid = writer.grids[step.output]
    result = writer.add(Kind.ADD, (above, below), writer.named(step.output), shape, grid, step.nodes, activation(writer, step))
    writer.put(step.output, result, laid.axes)
