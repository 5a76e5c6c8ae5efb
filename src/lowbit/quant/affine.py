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
        scale: float32, [] per tensor or [C] per channel; never zero.
        zero_point: int32, same shape; the level that stands for exactly 0.0.
        dtype: "int8", "uint4", "int16", ...
        symmetric: True where the zero point is the middle of the grid.
        axis: The channel axis, None per tensor.
    """

    scale: Array
    zero_point: Array
    dtype: str
    symmetric: bool
    axis: int | None = None


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


def from_range(low: ArrayLike, high: ArrayLike, dtype: str, *, symmetric: bool, axis: int | None = None) -> Affine:
    """Parameters for values in [low, high].

    The range is widened to hold zero, which is then a level of the grid: padding and ReLU stay exact.
    A range of nothing but zero gets scale 1.

    Args:
        low: [] or, per channel, [C].
        high: Same shape; not below `low`.
        dtype: See `levels`.
        symmetric: Same grid on both sides of zero.
        axis: Kept in the result; needed where the range is per channel.

    Raises:
        UsageError: an unknown type, an empty or non-finite range, or channels without an axis.
    """
    least, most = np.minimum(np.asarray(low, np.float64), 0.0), np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.all(np.isfinite(least)) and np.all(np.isfinite(most))) or np.any(np.asarray(low) > np.asarray(high)):
        raise UsageError("A quantization range must be finite with its low end below its high end.")
    if least.ndim > 1 or (least.ndim == 1) != (axis is not None):
        raise UsageError("A range per channel needs an axis, one per tensor has none.")
    bottom, top = levels(dtype, symmetric)
    middle = (bottom + top) // 2
    span = 2 * np.maximum(-least, most) if symmetric else most - least
    scale = np.where(span > 0, np.maximum(span / (top - bottom), _TINY), 1.0).astype(np.float32)
    zero = np.full(least.shape, middle) if symmetric else np.clip(np.rint(bottom - least / scale.astype(np.float64)), bottom, top)
    return Affine(scale, zero.astype(np.int32), dtype, symmetric, axis)


def from_values(values: Array, dtype: str, *, symmetric: bool, axis: int | None = None) -> Affine:
    """Parameters for the min-max range of an array, per channel along `axis` where one is given.

    Raises:
        UsageError: no values, NaN or infinity among them, an unknown type.
    """
    if values.size == 0:
        raise UsageError("An empty array has no range.")
    others = None if axis is None else tuple(a for a in range(values.ndim) if a != axis % values.ndim)
    return from_range(values.min(axis=others), values.max(axis=others), dtype, symmetric=symmetric, axis=axis)


def quantize(values: Array, params: Affine) -> Array:
    """Real values -> levels. Types below 8 bits sit in int8 or uint8, not packed.

    Args:
        values: float [...].
        params: Per tensor, or per channel along `params.axis`.

    Returns:
        [...] in the narrowest numpy integer that holds the type.
    """
    bottom, top = levels(params.dtype, params.symmetric)
    scale, zero = _along(params.scale, values.ndim, params.axis), _along(params.zero_point, values.ndim, params.axis)
    grid = np.clip(np.rint(values / scale) + zero, bottom, top)
    return grid.astype(_container(params.dtype))


def dequantize(grid: Array, params: Affine) -> Array:
    """Levels -> real values: (x_q - zero_point) * scale, float32 [...]."""
    scale, zero = _along(params.scale, grid.ndim, params.axis), _along(params.zero_point, grid.ndim, params.axis)
    return ((grid.astype(np.int32) - zero) * scale).astype(np.float32)


def round_trip(values: Array, params: Affine) -> Array:
    """What is left of the values once they have been quantized, float32 [...]."""
    return dequantize(quantize(values, params), params)


def _container(dtype: str) -> np.dtype[np.generic]:
    unsigned, bits = dtype.startswith("u"), int(dtype.rpartition("int")[2])
    return np.dtype(f"{'u' if unsigned else ''}int{8 if bits <= 8 else 16}")


def _along(params: Array, ndim: int, axis: int | None) -> Array:
    """[C] -> [1, ..., C, ..., 1], to broadcast along `axis`."""
    if axis is None:
        return params
    shape = [1] * ndim
    shape[axis] = -1
    return params.reshape(shape)
