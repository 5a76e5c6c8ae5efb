"""Arithmetic of integer kernels: real multipliers as 32-bit fixed point, with the roundings that microcontrollers use.

Fixed-point numbers, roundings and saturations follow gemmlowp (https://github.com/google/gemmlowp, fixedpoint/) and section 2.2 of
Jacob et al. 2018 (arXiv 1712.05877); where a kernel computes a real multiplier in single and where in double precision follows TensorFlow
Lite for Microcontrollers, whose wheel is the oracle of the tests. Everything is a pure function of numbers or numpy integers; C kernels
that are given these constants and do the same three integer operations answer bit for bit the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lowbit.errors import ModelError
from lowbit.quant.affine import Affine
from lowbit.types import Array

INT8_LOW, INT8_HIGH = -128, 127
INT32_LOW, INT32_HIGH = -(1 << 31), (1 << 31) - 1
SUM_SHIFT = 20
"""Bits by which ADD and SUB shift their operands to the left before they rescale them."""


class Multiplier(NamedTuple):
    """A real factor: `multiplier` * 2**(shift - 31), `multiplier` in [2**30, 2**31) or 0, `shift` in [-31, 30]."""

    multiplier: int
    shift: int


class SumFactors(NamedTuple):
    """How ADD and SUB bring operands to one grid, and the sum to the output's."""

    left: Multiplier
    right: Multiplier
    output: Multiplier


# ---- integers ----------------------------------------------------------------------------------------------------------------------


def wrap32(values: Array) -> Array:
    """Integers as a 32-bit register keeps them, int64 [...]."""
    return ((values - INT32_LOW) & 0xFFFFFFFF) + INT32_LOW


def doubling_high_mul(left: Array, right: Array | int, bits: int = 32) -> Array:
    """High half of twice the product, to nearest, halves upwards; saturates where both are the lowest integer.

    Args:
        left: int [...], each in `bits` bits.
        right: Likewise; broadcasts.
        bits: 32 or 16.

    Returns:
        int64 [...].
    """
    product = np.multiply(left, right, dtype=np.int64)
    return np.minimum((product + (1 << (bits - 2))) >> (bits - 1), (1 << (bits - 1)) - 1)


def truncated_divide(values: Array, divisor: Array | int) -> Array:
    """Integer division that drops the remainder, as C does: towards zero."""
    return np.sign(values) * (np.abs(values) // divisor)


def rounding_divide(values: Array, exponent: Array | int) -> Array:
    """Divides by 2**exponent, to nearest, halves away from zero; int64 [...]."""
    exponent = np.asarray(exponent, np.int64)
    half = (np.int64(1) << exponent) >> 1
    nudged = np.asarray(values, np.int64) + half
    nudged -= (nudged < half) & (exponent > 0)
    return nudged >> exponent


def saturating_shift(values: Array, exponent: int) -> Array:
    """Multiplies a 32-bit integer by 2**exponent: saturated to the left, rounded (halves away from zero) to the right."""
    if exponent <= 0:
        return rounding_divide(values, -exponent)
    return np.clip(np.asarray(values, np.int64) << exponent, INT32_LOW, INT32_HIGH)


def rescale(values: Array, multiplier: Array | int, shift: Array | int) -> Array:
    """Integers times a real factor: shift to the left, high half of the doubled product, rounding shift to the right.

    Args:
        values: int [...], of 32 bits.
        multiplier: Of `quantized_multiplier`; broadcasts against `values` (one a channel, channels last).
        shift: Likewise.

    Returns:
        int64 [...], of 32 bits.
    """
    shift = np.asarray(shift, np.int64)
    shifted = wrap32(np.asarray(values, np.int64) << np.maximum(shift, 0)) if np.any(shift > 0) else values
    return rounding_divide(doubling_high_mul(shifted, multiplier), np.maximum(-shift, 0))


def to_int8(values: Array, low: int = INT8_LOW, high: int = INT8_HIGH) -> Array:
    """Saturated to [low, high], int8 [...]."""
    return np.clip(values, low, high).astype(np.int8)


# ---- real numbers as integers ------------------------------------------------------------------------------------------------------


def quantized_multiplier(real: float) -> Multiplier:
    """A factor as 31 bits and a power of two; 0 where it is so small that every product rounds to zero.

    Raises:
        ModelError: negative, infinite or not a number, or 2**30 and more, which no kernel can shift by.
    """
    if not (math.isfinite(real) and real >= 0):
        raise ModelError(f"A factor between two grids is {real}; it must be a number, not negative.", "Calibrate again: a scale is broken.")
    mantissa, shift = math.frexp(real)
    fixed = _round(mantissa * (1 << 31))
    if fixed == 1 << 31:
        fixed, shift = fixed // 2, shift + 1
    if shift < -31:
        return Multiplier(0, 0)
    if shift > 30:
        raise ModelError(f"A factor between two grids is {real:.3g}; kernels take less than 2**30.", "Calibrate again: a scale is broken.")
    return Multiplier(fixed, shift)


def quantized_level(real: float, grid: Affine) -> int:
    """The level nearest to a real number, halves away from zero, not saturated: what bounds of activations are made with."""
    return _round(float(np.float32(real) / np.float32(grid.scale))) + int(grid.zero_point)


def activation_bounds(activation: str, output: Affine) -> tuple[int, int]:
    """Lowest and highest int8 level that a fused activation lets through.

    Args:
        activation: "NONE", "RELU" or "RELU6".
        output: The output's grid, per tensor.

    Raises:
        ModelError: another activation.
    """
    if activation == "NONE":
        return INT8_LOW, INT8_HIGH
    if activation not in ("RELU", "RELU6"):
        raise ModelError(f"'{activation}' is no fused activation of integer kernels. Allowed: NONE, RELU, RELU6.")
    low = max(INT8_LOW, quantized_level(0.0, output))
    return low, INT8_HIGH if activation == "RELU" else min(INT8_HIGH, quantized_level(6.0, output))


def _round(value: float) -> int:
    """To nearest, halves away from zero, as C's `round`."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value)) if abs(value) < 1 << 51 else int(value)


# ---- factors of each kind ----------------------------------------------------------------------------------------------------------


def convolution_multipliers(source: Affine, weights: Affine, output: Affine, channels: int) -> tuple[Array, Array]:
    """Multipliers and shifts of a CONV_2D, DEPTHWISE_CONV_2D or TRANSPOSE_CONV, one an output channel.

    Args:
        source: Of the input, per tensor.
        weights: Per tensor or per output channel.
        output: Per tensor.
        channels: Output channels.

    Returns:
        int32 [channels], int32 [channels].
    """
    scales = np.broadcast_to(np.asarray(weights.scale, np.float64).reshape(-1), (channels,))
    factors = [quantized_multiplier(float(source.scale) * float(scale) / float(output.scale)) for scale in scales]
    return _columns(factors)


fully_connected_multipliers = convolution_multipliers
"""Of a FULLY_CONNECTED. Older releases of the oracle round the product of scales to single precision where weights have one scale."""


def add_factors(left: Affine, right: Affine, output: Affine) -> SumFactors:
    """Factors of an ADD or SUB: both operands to half the coarser one's grid and finer, the sum to the output's.

    Raises:
        ModelError: the output's grid is so much finer than the operands' that kernels stop.
    """
    widest = 2 * max(float(left.scale), float(right.scale))
    to_output = widest / ((1 << SUM_SHIFT) * float(output.scale))
    if to_output >= 1:
        raise ModelError(
            "An addition's output has a scale 2**19 times finer than its operands; kernels stop at that.",
            "Calibrate again: one of the three ranges is broken.",
        )
    return SumFactors(*(quantized_multiplier(real) for real in (float(left.scale) / widest, float(right.scale) / widest, to_output)))


sub_factors = add_factors
"""Older releases of the oracle prepare SUB in single precision and differ by a step on rare grids; the one that tests run does not."""


def mul_multiplier(left: Affine, right: Affine, output: Affine) -> Multiplier:
    """Factor of a MUL: the product of two levels to a level."""
    return quantized_multiplier(float(left.scale) * float(right.scale) / float(output.scale))


def requantize_multiplier(source: Affine, output: Affine) -> Multiplier:
    """Factor of a QUANTIZE from one grid of integers to another."""
    return quantized_multiplier(float(source.scale) / float(output.scale))


def relu_multiplier(source: Affine, output: Affine, alpha: float = 1.0) -> Multiplier:
    """Factor of RELU and LEAKY_RELU; with `alpha`, a number in single precision, that of the negative side by its magnitude."""
    return quantized_multiplier(float(source.scale) * float(np.float32(abs(alpha))) / float(output.scale))


def mean_multiplier(source: Affine, output: Affine, count: int) -> Multiplier:
    """Factor of a MEAN: the sum of `count` levels to a level. The division is part of it, cut off and not rounded."""
    multiplier, shift = requantize_multiplier(source, output)
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return Multiplier((multiplier << bits) // count, shift - bits)


def _columns(factors: list[Multiplier]) -> tuple[Array, Array]:
    columns = np.array(factors, np.int32).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


# ---- places ------------------------------------------------------------------------------------------------------------------------


def window(padding: str, extent: int, taps: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Places of a filter along one axis, and elements padded before the first.

    Args:
        padding: "SAME" or "VALID".
        extent: Of the input.
        taps: Of the filter.
        stride: Between places.
        dilation: Between taps.

    Returns:
        Extent of the output; padding before (what is padded after may be one more).
    """
    reach = (taps - 1) * dilation + 1
    count = -(-extent // stride) if padding == "SAME" else (extent + stride - reach) // stride
    return count, max((count - 1) * stride + reach - extent, 0) // 2


def transpose_window(padding: str, output: int, taps: int, stride: int) -> int:
    """Elements that a TRANSPOSE_CONV leaves out before its first output along one axis."""
    return window(padding, output, taps, stride)[1]


def bilinear_places(extent: int, output: int, *, align_corners: bool, half_pixel_centers: bool) -> tuple[Array, Array, Array]:
    """Where RESIZE_BILINEAR reads along one axis, in 1/1024 of an element.

    Returns:
        int64 [output] each: the element below, the element above, and the weight of the one above (1024 less it is the other's); the
        weight may be negative or above 1024 where both are the same element.
    """
    aligned = align_corners and output > 1
    steps, gaps = (extent - 1, output - 1) if aligned else (extent, output)
    scale = ((steps << 10) + gaps // 2) // gaps
    place = np.arange(output, dtype=np.int64) * scale
    if half_pixel_centers:
        place += scale // 2 - (1 << 9)
    below = np.maximum(truncated_divide(place, 1 << 10), 0)
    above = np.minimum(truncated_divide(place + (1 << 10) - 1, 1 << 10), extent - 1)
    return below, above, place - (below << 10)


def nearest_places(extent: int, output: int, *, align_corners: bool, half_pixel_centers: bool) -> Array:
    """Which element RESIZE_NEAREST_NEIGHBOR reads along one axis, int64 [output]; in single precision."""
    aligned = align_corners and output > 1
    scale = np.float32(extent - 1) / np.float32(output - 1) if aligned else np.float32(extent) / np.float32(output)
    place = (np.arange(output, dtype=np.float32) + np.float32(0.5 if half_pixel_centers else 0.0)) * scale
    nearest = np.floor(place.astype(np.float64) + 0.5) if align_corners else np.floor(place)
    return np.clip(nearest.astype(np.int64), 0, extent - 1)
