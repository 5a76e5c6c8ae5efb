"""Pooling and means."""

from __future__ import annotations

import math

from lowbit.export.program.lower_grids import same
from lowbit.export.program.lower_products import activation, as_image, image_name, image_shape, put_image
from lowbit.export.program.lower_steps import Step
from lowbit.export.program.lower_windows import Window, padded, settled, window_of
from lowbit.export.program.lower_words import lacking
from lowbit.export.program.lower_write import Writer
from lowbit.export.program.program import Kind, Option
from lowbit.types import Array


def max_pool(writer: Writer, step: Step) -> None:
    """MaxPool and GlobalMaxPool: MAX_POOL_2D, on one grid."""
    window = _window(writer, step)
    if any(each != 1 for each in window.dilation) or (len(step.outputs) > 1 and step.outputs[1]):
        raise lacking(writer.net, step, "its window is dilated, or it gives indices")
    x, window = padded(writer, step, as_image(writer, step), window, lowest=True)
    _pool(writer, step, Kind.MAX_POOL_2D, x, window)


def average_pool(writer: Writer, step: Step) -> None:
    """AveragePool: AVERAGE_POOL_2D, on one grid; over the whole image a MEAN, which can change it."""
    window = _window(writer, step)
    x = as_image(writer, step)
    size = writer.of(x).shape[1:3]
    whole = window.kernel == size and not any((*window.begins, *window.ends))
    if whole:
        put_image(writer, step, _mean(writer, step, x, (1, 2), image_shape(writer, step), image_name(writer, step)))
        return
    if any(each != 1 for each in window.dilation):
        raise lacking(writer.net, step, "its window is dilated")
    if step.get("count_include_pad", 0) and not step.get("ceil_mode", 0):
        x, window = padded(writer, step, x, window, counted=True)
    else:
        done = settled(window, (size[0], size[1]))
        if done is None:
            raise lacking(writer.net, step, f"its padding {window.begins}, {window.ends} is none that LiteRT leaves out of averages")
        window = done
    _pool(writer, step, Kind.AVERAGE_POOL_2D, x, window)


def mean(writer: Writer, step: Step) -> None:
    """ReduceMean and GlobalAveragePool: MEAN, in whatever order the axes lie."""
    name = step.inputs[0]
    rank = len(writer.shape(name))
    axes = tuple(range(2, rank)) if step.op == "GlobalAveragePool" else _axes(writer, step, rank)
    keep = step.op == "GlobalAveragePool" or bool(step.get("keepdims", 1))
    laid = writer.laid[name]
    x = writer.lying(laid, laid.axes, step.nodes)
    places = tuple(sorted(laid.axes.index(axis) for axis in axes))
    kept = laid.axes if keep else tuple(axis for axis in laid.axes if axis not in axes)
    order = kept if keep else tuple(sorted(kept).index(axis) for axis in kept)
    shape = writer.shape(step.output)
    lying = tuple(shape[axis] for axis in order)
    result = _mean(writer, step, x, places, lying, writer.named(step.output), keep=keep)
    writer.put(step.output, result, order)


def _axes(writer: Writer, step: Step, rank: int) -> tuple[int, ...]:
    given: Array | list[int] | None = step.get("axes", None)
    if len(step.inputs) > 1 and step.inputs[1]:
        given = writer.net.constants.get(step.inputs[1])
        if given is None:
            raise lacking(writer.net, step, "its axes are computed")
    axes = tuple(range(rank)) if given is None or not len(given) else tuple(int(axis) % rank for axis in given)
    return tuple(sorted(set(axes)))


def _mean(writer: Writer, step: Step, x: str, axes: tuple[int, ...], shape: tuple[int, ...], name: str, *, keep: bool = True) -> str:
    operands = (x, writer.numbers(f"axes_{''.join(map(str, axes))}", axes))
    grid = writer.grids[step.output]
    if activation(writer, step)["activation"] != "NONE":
        raise lacking(writer.net, step, "its results are cut where its grid does not end")
    return writer.add(Kind.MEAN, operands, name, shape, grid, step.nodes, {"keep_dims": keep})


def _pool(writer: Writer, step: Step, kind: Kind, x: str, window: Window) -> None:
    """A pool on the grid of its input, and a QUANTIZE where the output has another."""
    options: dict[str, Option] = {**window.filters(), **window.strides(), "padding": window.padding, "activation": "NONE"}
    grid = writer.grid(x)
    result = writer.add(kind, (x,), _temporary(writer, step, x), image_shape(writer, step), grid, step.nodes, options)
    result = writer.on_grid(result, writer.grids[step.output], step.nodes, image_name(writer, step))
    put_image(writer, step, result)


def _temporary(writer: Writer, step: Step, x: str) -> str:
    """The output's name where it lies on the input's grid."""
    return image_name(writer, step) if same(writer.grid(x), writer.grids[step.output]) else writer.fresh(f"{step.output}_pooled")


def _window(writer: Writer, step: Step) -> Window:
    size = writer.shape(step.inputs[0])[2:]
    if len(size) not in (1, 2):
        raise lacking(writer.net, step, f"it moves over {len(size)} axes, and only 1 and 2 are known")
    if step.op.startswith("Global"):
        pair = (1, size[0]) if len(size) == 1 else (size[0], size[1])
        return Window(pair, (1, 1), (1, 1), (0, 0), (0, 0))
    kernel = tuple(int(each) for each in step.get("kernel_shape", ()))
    assert math.prod(kernel) > 0
    return window_of(writer, step, kernel)
