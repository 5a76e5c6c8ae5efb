"""Affine quantization of arrays: x_q = round(x / scale) + zero_point, saturated.

The formula, the rounding (half to even) and the saturation are those of ONNX QuantizeLinear
(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html); a symmetric grid leaves out its lowest
level, so that it is the same on both sides of zero (Wu et al. 2020, arXiv 2004.09602, section 3.1).

An unsigned grid and the signed one of the same width are the same grid with the zero point moved
by half the levels, symmetric or not: one table of parameters, several dialects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowbit.errors import UsageError
from lowbit.types import Array

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Affine:
    """Quantization parameters of one tensor.

    Attributes:
        scale: float32, [] per tensor, [C] per channel, or blocked: the tensor's own shape with one entry a block along `axis`; never zero.
        zero_point: int32, same shape; the level that stands for exactly 0.0.
        dtype: "int8", "uint4", "int16", ...
        symmetric: True where the zero point is the middle of the grid.
        axis: The channel axis, or the one that is cut into blocks; None per tensor.
        block: Elements of a block (the last may be shorter), None where nothing is blocked. As in ONNX from opset 21 on.
    """

    scale: Array
    zero_point: Array
    dtype: str
    symmetric: bool
    axis: int | None = None
    block: int | None = None


def levels(dtype: str, symmetric: bool) -> tuple[int, int]:
    """Lowest and highest level of an integer type.

    >>> levels("int8", False), levels("int8", True), levels("uint4", True)
    ((-128, 127), (-127, 127), (1, 15))

    Raises:
        UsageError: not an integer type of 2 to 16 bits.
    """
    match = re.fullmatch(r"(u?)int(\d+)", dtype)
    bits = int(match[2]) if match else 0
    if match is None or not 2 <= bits <= 16:
        raise UsageError(f"'{dtype}' is not an integer type of 2 to 16 bits.", "Give e.g. int8, uint8, int4, uint4 or int16.")
    low = 0 if match[1] else -(1 << (bits - 1))
    return low + symmetric, low + (1 << bits) - 1


def span(grid: Affine) -> tuple[float, float]:
    """The lowest and the highest value of a grid, per tensor."""
    low, high = levels(grid.dtype, grid.symmetric)
    scale, zero = float(grid.scale), int(grid.zero_point)
    return (low - zero) * scale, (high - zero) * scale


def from_range(
    low: ArrayLike, high: ArrayLike, dtype: str, *, symmetric: bool, axis: int | None = None, block: int | None = None
) -> Affine:
    """Parameters for values in [low, high]. A wider range never has a finer scale.

    The range is widened to hold zero, which is then a level of the grid: padding and ReLU stay exact.
    A range of nothing but zero gets scale 1.

    Args:
        low: [], per channel [C], or blocked [..., blocks, ...].
        high: Same shape; not below `low`.
        dtype: See `levels`.
        symmetric: Same grid on both sides of zero.
        axis: Kept in the result; needed where the range is per channel or blocked.
        block: Elements of a block along `axis`, None where the range is not blocked.

    Raises:
        UsageError: an unknown type, an empty or non-finite range, or channels without an axis.
    """
    least, most = np.minimum(np.asarray(low, np.float64), 0.0), np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.all(np.isfinite(least)) and np.all(np.isfinite(most))) or np.any(np.asarray(low) > np.asarray(high)):
        raise UsageError("A quantization range must be finite with its low end below its high end.")
    if block is None and (least.ndim > 1 or (least.ndim == 1) != (axis is not None)):
        raise UsageError("A range per channel needs an axis, one per tensor has none.")
    if block is not None and (block < 1 or axis is None or not -least.ndim <= axis < least.ndim):
        raise UsageError(f"A range in blocks of {block} needs a positive block and the axis that is cut; it got axis {axis}.")
    bottom, top = levels(dtype, symmetric)
    middle = (bottom + top) // 2
    span = 2 * np.maximum(-least, most) if symmetric else most - least
    scale = np.where(span > 0, np.maximum(span / (top - bottom), _TINY), 1.0).astype(np.float32)
    zero = np.full(least.shape, middle) if symmetric else np.clip(np.rint(bottom - least / scale.astype(np.float64)), bottom, top)
    return Affine(scale, zero.astype(np.int32), dtype, symmetric, axis, block)


def from_values(values: Array, dtype: str, *, symmetric: bool, axis: int | None = None, block: int | None = None) -> Affine:
    """Parameters for the min-max range of an array: per tensor, per channel along `axis`, or per `block` elements along it.

    Raises:
        UsageError: no values, NaN or infinity among them, an unknown type.
    """
    if values.size == 0:
        raise UsageError("An empty array has no range.")
    if block is not None:
        low, high = block_ranges(values, axis, block)
        return from_range(low, high, dtype, symmetric=symmetric, axis=axis, block=block)
    others = None if axis is None else tuple(a for a in range(values.ndim) if a != axis % values.ndim)
    return from_range(values.min(axis=others), values.max(axis=others), dtype, symmetric=symmetric, axis=axis)


def block_ranges(values: Array, axis: int | None, block: int) -> tuple[Array, Array]:
    """Lowest and highest value of every `block` elements along `axis`; the last block may be shorter.

    Raises:
        UsageError: a block below 1, or an axis the array does not have.
    """
    if block < 1 or axis is None or not -values.ndim <= axis < values.ndim:
        raise UsageError(f"Blocks of {block} along axis {axis} do not fit an array of shape {values.shape}.")
    starts = np.arange(0, values.shape[axis], block)
    return np.minimum.reduceat(values, starts, axis=axis), np.maximum.reduceat(values, starts, axis=axis)


def aligned(params: Affine, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scale and zero point in shapes that broadcast with an array of `shape`."""
    return _along(params.scale, shape, params), _along(params.zero_point, shape, params)


def quantize(values: Array, params: Affine) -> Array:
    """Real values -> levels. Types below 8 bits sit in int8 or uint8, not packed.

    Args:
        values: float [...].
        params: Per tensor, or per channel or block along `params.axis`.

    Returns:
        [...] in the narrowest numpy integer that holds the type.
    """
    grid, _, _ = _on_grid(values, params)
    return grid.astype(_container(params.dtype))


def dequantize(grid: Array, params: Affine) -> Array:
    """Levels -> real values: (x_q - zero_point) * scale, float32 [...]."""
    scale, zero = aligned(params, grid.shape)
    return ((grid.astype(np.int32) - zero) * scale).astype(np.float32)


def round_trip(values: Array, params: Affine) -> Array:
    """What is left of the values once they have been quantized, float32 [...]; the same as `dequantize` of `quantize`."""
    grid, scale, zero = _on_grid(values, params)
    grid -= zero
    grid *= scale
    return grid.astype(np.float32, copy=False)


def _on_grid(values: Array, params: Affine) -> tuple[Array, Array, Array]:
    """Levels as floats [...], a new array, with scale and zero point as they broadcast. 16 bits and less are exact in float32."""
    scale, zero = aligned(params, values.shape)
    grid = np.asarray(values / scale)
    zero = zero.astype(grid.dtype)
    np.rint(grid, out=grid)
    grid += zero
    np.clip(grid, *levels(params.dtype, params.symmetric), out=grid)
    return grid, scale, zero


def _container(dtype: str) -> np.dtype[np.generic]:
    unsigned, bits = dtype.startswith("u"), int(dtype.rpartition("int")[2])
    return np.dtype(f"{'u' if unsigned else ''}int{8 if bits <= 8 else 16}")


def _along(values: Array, shape: tuple[int, ...], params: Affine) -> Array:
    """Per channel [C] -> [1, ..., C, ..., 1]; per block: each entry repeated over its block."""
    if params.axis is None:
        return values
    if params.block is not None:
        size = shape[params.axis]
        if values.ndim != len(shape) or values.shape[params.axis] != -(-size // params.block):
            raise UsageError(f"Parameters of shape {values.shape} in blocks of {params.block} do not fit an array of shape {shape}.")
        if values.shape[params.axis] == 1:
            return values
        return np.take(values, np.arange(size) // params.block, axis=params.axis)
    spread = [1] * len(shape)
    spread[params.axis] = -1
    return values.reshape(spread)
