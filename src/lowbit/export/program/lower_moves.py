"""What moves values and computes none: joins, cuts, paddings, and enlarging, in whatever order the axes lie."""

from __future__ import annotations

import math

import numpy as np

from lowbit.export.program.lower_grids import same
from lowbit.export.program.lower_resize import Way, way_of
from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import IMAGE, Laid, Writer
from lowbit.export.program.program import Kind
from lowbit.quant.affine import quantize
from lowbit.types import Array


def concat(writer: Writer, step: Step) -> None:
    """Concat: CONCATENATION; whatever lies on another grid than the result is put on it first."""
    shape, grid = writer.shape(step.output), writer.grids[step.output]
    found = [writer.laid[name].axes for name in step.inputs if name in writer.laid]
    axes = IMAGE if IMAGE in found else found[0]
    parts = []
    for name in step.inputs:
        if name in writer.net.constants:
            values = writer.net.constants[name].transpose(axes)
            parts.append(writer.constant(name, quantize(values, grid), grid))
        elif math.prod(writer.shape(name)):
            parts.append(writer.on_grid(writer.lying(writer.laid[name], axes, step.nodes), grid, step.nodes))
    lying = tuple(shape[axis] for axis in axes)
    place = axes.index(int(step.get("axis", 0)) % len(shape))
    if len(parts) == 1:
        writer.put(step.output, parts[0], axes)
        return
    writer.put(
        step.output, writer.add(Kind.CONCATENATION, parts, writer.named(step.output), lying, grid, step.nodes, {"axis": place}), axes
    )


def pad(writer: Writer, step: Step) -> None:
    """Pad with a number: PAD with zeros, PADV2 with another."""
    if step.get("mode", "constant") != "constant":
        raise lacking(writer.net, step, f"it pads by '{step.get('mode', '')}', and only constants are known")
    laid = writer.laid[step.inputs[0]]
    shape = writer.shape(step.inputs[0])
    begins, behind = _paddings(writer, step, len(shape))
    number = _number(writer, step, 2, "value")
    if min((*begins, *behind)) < 0:
        cut_begins = [max(-each, 0) for each in begins]
        cut_ends = [size - max(-each, 0) for size, each in zip(shape, behind, strict=True)]
        laid = Laid(_cut(writer, laid, cut_begins, cut_ends, [1] * len(shape), writer.fresh(f"{step.output}_cut"), step), laid.axes)
        begins, behind = [max(each, 0) for each in begins], [max(each, 0) for each in behind]
    x = writer.lying(laid, laid.axes, step.nodes)
    pads = np.array([(begins[axis], behind[axis]) for axis in laid.axes], np.int32)

    x = writer.on_grid(x, writer.grids[step.output], step.nodes)
    if not np.any(pads):
        writer.put(step.output, x, laid.axes)
        return
    grid, operands, kind = writer.grid(x), [x, writer.numbers(f"{step.output}_paddings", pads)], Kind.PAD
    if number != 0:
        operands.append(writer.constant(f"{step.output}_value", quantize(np.array(number, np.float32), grid), grid))
        kind = Kind.PADV2
    shape = tuple(size + int(sum(pair)) for size, pair in zip(writer.of(x).shape, pads, strict=True))
    writer.put(step.output, writer.add(kind, operands, writer.named(step.output), shape, grid, step.nodes), laid.axes)


def _paddings(writer: Writer, step: Step, rank: int) -> tuple[list[int], list[int]]:
    pads = [int(each) for each in _list(writer, step, 1, "pads") or ()]
    axes = [int(axis) % rank for axis in _list(writer, step, 3, "axes") or range(rank)]
    begins, behind = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], behind[axis] = pads[place], pads[place + len(axes)]
    return begins, behind


def slice_(writer: Writer, step: Step) -> None:
    """Slice with constant bounds: SLICE, or STRIDED_SLICE where it leaves something out."""
    name = step.inputs[0]
    shape = writer.shape(name)
    starts, stops = _list(writer, step, 1, "starts"), _list(writer, step, 2, "ends")
    assert starts is not None
    assert stops is not None
    axes = [int(axis) % len(shape) for axis in _list(writer, step, 3, "axes") or range(len(starts))]
    steps = _list(writer, step, 4, "steps") or [1] * len(starts)
    begins, ends, strides = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, start, stop, stride in zip(axes, starts, stops, steps, strict=True):
        if stride < 1:
            raise lacking(writer.net, step, "it runs backwards")
        begins[axis], ends[axis], strides[axis] = *slice(start, stop, stride).indices(shape[axis])[:2], stride
    laid = writer.laid[name]
    result = _cut(writer, laid, begins, ends, strides, writer.named(step.output), step)
    writer.put(step.output, writer.on_grid(result, writer.grids[step.output], step.nodes), laid.axes)


def split(writer: Writer, step: Step) -> None:
    """Split: a SLICE for each part that is read."""
    laid, shape = writer.laid[step.inputs[0]], writer.shape(step.inputs[0])
    axis, start = int(step.get("axis", 0)) % len(shape), 0
    for name in step.outputs:
        size = writer.shape(name)[axis] if name else 0
        if name and (name in writer.net.outputs or any(name in each.inputs for each in writer.net.steps)):
            begins, ends = [0] * len(shape), list(shape)
            begins[axis], ends[axis] = start, start + size
            result = _cut(writer, laid, begins, ends, [1] * len(shape), writer.named(name), step)
            writer.put(name, writer.on_grid(result, writer.grids[name], step.nodes), laid.axes)
        start += size


def _cut(writer: Writer, laid: Laid, begins: list[int], ends: list[int], strides: list[int], name: str, step: Step) -> str:
    """Part of a tensor; bounds by axes of the source."""
    x = writer.lying(laid, laid.axes, step.nodes)
    shape = [max(-(-(ends[axis] - begins[axis]) // strides[axis]), 0) for axis in laid.axes]
    if tuple(shape) == writer.of(x).shape:
        return x
    begin = writer.numbers(f"{name}_begin", [begins[axis] for axis in laid.axes])
    grid = writer.grid(x)
    if all(each == 1 for each in strides):
        return writer.add(Kind.SLICE, (x, begin, writer.numbers(f"{name}_size", shape)), name, shape, grid, step.nodes)
    end, stride = (
        writer.numbers(f"{name}_{word}", [each[axis] for axis in laid.axes]) for word, each in (("end", ends), ("strides", strides))
    )
    return writer.add(Kind.STRIDED_SLICE, (x, begin, end, stride), name, shape, grid, step.nodes)


def resize(writer: Writer, step: Step) -> None:
    """Resize of an image: RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR where LiteRT reads the very same pixels."""
    name = step.inputs[0]
    old, new = writer.shape(name), writer.shape(step.output)
    if old == new:
        tensor = writer.on_grid(writer.lying(writer.laid[name], writer.laid[name].axes, step.nodes), writer.grids[step.output], step.nodes)
        writer.put(step.output, tensor, writer.laid[name].axes)
        return
    scales = _list_of_floats(writer, step)
    found = way_of(step, old, new, scales) if len(old) == 4 and old[:2] == new[:2] else None
    if not isinstance(found, Way):
        raise lacking(writer.net, step, found or "it changes other axes than height and width")
    x = writer.image(name, step.nodes)
    size = writer.numbers(f"size_{new[2]}x{new[3]}", new[2:])
    shape = tuple(new[axis] for axis in IMAGE)
    options = {"align_corners": found.align_corners, "half_pixel_centers": found.half_pixel_centers}
    grid = writer.grid(x)
    own = same(grid, writer.grids[step.output])
    result = writer.add(
        found.kind,
        (x, size),
        writer.named(step.output) if own else writer.fresh(f"{step.output}_resized"),
        shape,
        grid,
        step.nodes,
        options,
    )
    writer.put(step.output, writer.on_grid(result, writer.grids[step.output], step.nodes), IMAGE)


def _list_of_floats(writer: Writer, step: Step) -> tuple[float, ...] | None:
    name = step.inputs[2] if len(step.inputs) > 2 else step.inputs[1] if len(step.inputs) == 2 else ""
    values = writer.net.constants.get(name) if name else None
    return tuple(float(each) for each in values) if values is not None and values.size else None


def depth_to_space(writer: Writer, step: Step) -> None:
    """DepthToSpace: DEPTH_TO_SPACE; in ONNX's other order of channels ("CRD") these are put in LiteRT's first."""
    x = writer.image(step.inputs[0], step.nodes)
    block = int(step.get("blocksize", 1))
    if step.get("mode", "DCR") == "CRD":
        shape = writer.of(x).shape
        split_ = writer.reshaped(x, (shape[1] * shape[2], shape[3] // block**2, block**2), step.nodes)
        turned = writer.transposed(split_, (0, 2, 1), step.nodes)
        x = writer.reshaped(turned, shape, step.nodes)
    new = writer.shape(step.output)
    shape_ = tuple(new[axis] for axis in IMAGE)
    result = writer.add(Kind.DEPTH_TO_SPACE, (x,), writer.named(step.output), shape_, writer.grid(x), step.nodes, {"block_size": block})
    writer.put(step.output, writer.on_grid(result, writer.grids[step.output], step.nodes), IMAGE)


def space_to_depth(writer: Writer, step: Step) -> None:
    """SpaceToDepth: every block-th pixel in both directions, and what that gives joined along the channels."""
    x, block = writer.image(step.inputs[0], step.nodes), int(step.get("blocksize", 1))
    shape, new = writer.of(x).shape, writer.shape(step.output)
    x = writer.on_grid(x, writer.grids[step.output], step.nodes)
    end, strides = writer.numbers(f"{step.output}_end", shape), writer.numbers(f"{step.output}_strides", (1, block, block, 1))
    parts = []
    for row in range(block):
        for column in range(block):
            begin = writer.numbers(f"{step.output}_begin", (0, row, column, 0))
            size, name = (1, new[2], new[3], shape[3]), writer.fresh(f"{step.output}_part")
            parts.append(writer.add(Kind.STRIDED_SLICE, (x, begin, end, strides), name, size, writer.grid(x), step.nodes))
    lying = tuple(new[axis] for axis in IMAGE)
    result = writer.add(Kind.CONCATENATION, parts, writer.named(step.output), lying, writer.grid(x), step.nodes, {"axis": 3})
    writer.put(step.output, result, IMAGE)


def _list(writer: Writer, step: Step, index: int, attribute: str) -> list[int] | None:
    """A list that is an attribute in old operator sets and a constant input in new ones; None where it is left out."""
    if attribute in step.attributes:
        return [int(each) for each in step.attributes[attribute]]
    values = _input(writer, step, index)
    return None if values is None else [int(each) for each in values.reshape(-1)]


def _number(writer: Writer, step: Step, index: int, attribute: str) -> float:
    values = _input(writer, step, index)
    return float(values.reshape(-1)[0]) if values is not None and values.size else float(step.get(attribute, 0.0))


def _input(writer: Writer, step: Step, index: int) -> Array | None:
    name = step.inputs[index] if index < len(step.inputs) else ""
    if not name:
        return None
    if name not in writer.net.constants:
        raise lacking(writer.net, step, f"its input '{name}' is computed, and must be a constant")
    return writer.net.constants[name]
