"""Reference of operations that multiply by weights: sums of products in integers, then one factor an output channel.

Products are added up in floating point by the machine's matrix product, which is exact here: every term and every partial sum is an
integer below the largest that the format holds without gaps (2**24, else 2**53).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowbit.export.program import fixed_point as fp
from lowbit.export.program.reference_step import Step
from lowbit.types import Array

_LARGEST_LEVEL = 255
_EXACT_IN_FLOAT32 = 1 << 24


def conv_2d(step: Step) -> Array:
    """CONV_2D: input [N,1,H,W,I], filter [O,h,w,I], bias [O]."""
    weights = step.value(1)[0]
    taps = weights.transpose(1, 2, 3, 0)  # [h, w, I, O]
    sums = _sums(step, _exact(taps, axes=(0, 1, 2)), np.matmul)
    return _finished(step, sums, fp.convolution_multipliers(step.grid(0), step.grid(1), step.output_grid, weights.shape[0]), bias=2)


def depthwise_conv_2d(step: Step) -> Array:
    """DEPTHWISE_CONV_2D: input [N,1,H,W,I], filter [1,h,w,I*m], bias [I*m]: m filters an input channel."""
    weights = step.value(1)[0, 0]
    channels = weights.shape[-1]
    repeats = channels // step.value(0).shape[-1]

    def spread(part: Array, tap: Array) -> Array:
        return (part if repeats == 1 else np.repeat(part, repeats, axis=-1)) * tap

    sums = _sums(step, _exact(weights, axes=(0, 1)), spread)
    return _finished(step, sums, fp.convolution_multipliers(step.grid(0), step.grid(1), step.output_grid, channels), bias=2)


def fully_connected(step: Step) -> Array:
    """FULLY_CONNECTED: input [N, ..., K] whose elements are rows of K, weights [O,K], bias [O]."""
    weights = _exact(step.value(1)[0].T, axes=(0,))
    rows = step.levels(0).reshape(-1, weights.shape[0]).astype(weights.dtype)
    sums = (rows @ weights).reshape(-1, *step.output.shape)
    factors = fp.fully_connected_multipliers(step.grid(0), step.grid(1), step.output_grid, weights.shape[1])
    return _finished(step, sums, factors, bias=2)


def transpose_conv(step: Step) -> Array:
    """TRANSPOSE_CONV: output shape, filter [O,h,w,I], input [N,1,H,W,I], bias [O]: every input is spread over the outputs it reaches."""
    weights = step.value(1)[0]
    taps = _exact(weights.transpose(1, 2, 3, 0), axes=(0, 1, 2))
    source = step.levels(2)[:, 0].astype(taps.dtype)
    (height, width), (out_height, out_width) = source.shape[1:3], step.output.shape[1:3]
    stride_h, stride_w, padding = step.option("stride_h", 1), step.option("stride_w", 1), step.option("padding", "VALID")
    top = fp.transpose_window(padding, out_height, taps.shape[0], stride_h)
    left = fp.transpose_window(padding, out_width, taps.shape[1], stride_w)
    reach = ((height - 1) * stride_h + taps.shape[0], (width - 1) * stride_w + taps.shape[1])
    canvas = np.zeros((len(source), max(reach[0], top + out_height), max(reach[1], left + out_width), taps.shape[3]), taps.dtype)
    for y, x in np.ndindex(*taps.shape[:2]):
        canvas[:, y : y + height * stride_h : stride_h, x : x + width * stride_w : stride_w][:, :height, :width] += source @ taps[y, x]
    sums = canvas[:, top : top + out_height, left : left + out_width]
    factors = fp.convolution_multipliers(step.grid(2), step.grid(1), step.output_grid, weights.shape[0])
    return _finished(step, sums[:, None], factors, bias=3)


def _sums(step: Step, taps: Array, product: Callable[[Array, Array], Array]) -> Array:
    """Adds up, tap by tap, the product of what lies under it and its weights.

    Args:
        step: A convolution.
        taps: [h, w, ...].
        product: Of [N, out_height, out_width, I] and [...].

    Returns:
        [N, 1, out_height, out_width, O].
    """
    source = step.levels(0)[:, 0].astype(taps.dtype)
    padding = step.option("padding", "VALID")
    strides = (step.option("stride_h", 1), step.option("stride_w", 1))
    dilations = (step.option("dilation_h", 1), step.option("dilation_w", 1))
    places = [fp.window(padding, source.shape[1 + a], taps.shape[a], strides[a], dilations[a]) for a in (0, 1)]
    padded = np.pad(
        source, [(0, 0), *(_margins(source.shape[1 + a], taps.shape[a], strides[a], dilations[a], *places[a]) for a in (0, 1)), (0, 0)]
    )
    total: Array | None = None
    for y, x in np.ndindex(*taps.shape[:2]):
        rows = slice(y * dilations[0], y * dilations[0] + (places[0][0] - 1) * strides[0] + 1, strides[0])
        columns = slice(x * dilations[1], x * dilations[1] + (places[1][0] - 1) * strides[1] + 1, strides[1])
        part = product(padded[:, rows, columns], taps[y, x])
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total[:, None]


def _margins(extent: int, taps: int, stride: int, dilation: int, count: int, before: int) -> tuple[int, int]:
    needed = (count - 1) * stride + (taps - 1) * dilation + 1
    return before, max(needed - extent - before, 0)


def _exact(weights: Array, axes: tuple[int, ...]) -> Array:
    """Weights in the narrowest floating-point format in which no sum of products can be rounded; `axes` are added over."""
    largest = int(np.abs(weights.astype(np.int64)).sum(axis=axes).max(initial=0)) * _LARGEST_LEVEL
    return weights.astype(np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64)


def _finished(step: Step, sums: Array, factors: tuple[Array, Array], bias: int) -> Array:
    """Bias, factor, zero point and bounds, int8 [N, *shape]."""
    totals = sums.astype(np.int64)
    if bias < len(step.values) and step.values[bias] is not None:
        totals = totals + step.value(bias)[0].astype(np.int64)
    levels = fp.rescale(fp.wrap32(totals), *factors) + int(step.output_grid.zero_point)
    return fp.to_int8(levels, *fp.activation_bounds(step.option("activation", "NONE"), step.output_grid))
