"""Functions of one 8-bit level as tables of 256, and what SOFTMAX is made of: the same integers that kernels compute one by one.

A kernel that looks its answer up here answers bit for bit what TensorFlow Lite for Microcontrollers computes with fixed-point series
(exponential by a polynomial on [-1/4, 0) and factors exp(-2**n); quotients by three Newton-Raphson steps: gemmlowp, fixedpoint/), with
none of that arithmetic on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.program import fixed_point as fp
from lowbit.export.program.program import Kind, Option
from lowbit.quant.affine import Affine
from lowbit.types import Array

LEVELS = np.arange(fp.INT8_LOW, fp.INT8_HIGH + 1, dtype=np.int64)
"""All int8 levels; a table's entry 0 belongs to -128."""

TABLES = frozenset({Kind.HARD_SWISH, Kind.LEAKY_RELU, Kind.LOGISTIC, Kind.QUANTIZE, Kind.RELU, Kind.RELU6, Kind.TANH})
"""Kinds whose answer depends on one int8 level alone (QUANTIZE: from int8 to int8)."""

_ONE = fp.INT32_HIGH
"""1.0 in a format without integer bits, where it saturates."""
_SOFTMAX_BITS, _CURVE_BITS, _SUM_BITS = 5, 4, 12
"""Integer bits of what goes into SOFTMAX's exponential, of what goes into LOGISTIC and TANH, and of SOFTMAX's sum."""
_LARGEST_FACTOR = (1 << 31) - 1.0


def table(kind: Kind, source: Affine, output: Affine, options: Mapping[str, Option] | None = None) -> Array:
    """The answer of one kind for every level.

    Args:
        kind: One of `TABLES`.
        source: Of the input, int8 per tensor.
        output: Of the output, likewise.
        options: Of the operation; LEAKY_RELU has one.

    Returns:
        int8 [256]; entry 0 belongs to level -128.

    Raises:
        ModelError: a kind that has no table, or grids that its kernel does not take.
    """
    if kind not in TABLES:
        raise ModelError(f"{kind} has no table; {', '.join(sorted(TABLES))} have.")
    levels = LEVELS - int(source.zero_point)
    if kind is Kind.LEAKY_RELU:
        alpha = (options or {}).get("alpha", 0.0)
        return _leaky_relu(levels, source, output, float(cast(float, alpha)))
    return _BY_KIND[kind](levels, source, output)


# ---- piecewise linear --------------------------------------------------------------------------------------------------------------


def _requantize(levels: Array, source: Affine, output: Affine) -> Array:
    return fp.to_int8(fp.rescale(levels, *fp.requantize_multiplier(source, output)) + int(output.zero_point))


def _relu(levels: Array, source: Affine, output: Affine) -> Array:
    values = fp.rescale(levels, *fp.relu_multiplier(source, output)) + int(output.zero_point)
    return fp.to_int8(values, int(output.zero_point))


def _relu6(levels: Array, source: Affine, output: Affine) -> Array:
    """Clamped and not rescaled."""
    del output  # the kernel never looks at it
    six = min(fp.quantized_level(6.0, source), fp.INT8_HIGH) - int(source.zero_point)
    return fp.to_int8(np.clip(levels, 0, max(six, 0)) + int(source.zero_point))


def _leaky_relu(levels: Array, source: Affine, output: Affine, alpha: float) -> Array:
    positive = fp.rescale(levels, *fp.relu_multiplier(source, output))
    negative = fp.rescale(levels, *fp.relu_multiplier(source, output, alpha))
    return fp.to_int8(np.where(levels >= 0, positive, negative if alpha >= 0 else -negative) + int(output.zero_point))


# ---- hard swish --------------------------------------------------------------------------------------------------------------------


def _hard_swish(levels: Array, source: Affine, output: Affine) -> Array:
    """x * relu6(x + 3) / 6 in 16 bits: x on the output's grid times a ramp that is 0 at -3 and 1 at 3."""
    fine = float(source.scale) / 128
    to_output = fp.quantized_multiplier(fine / float(output.scale))
    to_ramp = fp.quantized_multiplier(fine * 32768 / 3)
    if to_output.shift > 0:
        raise ModelError(
            "HARD_SWISH's output has a scale 128 times finer than its input; its kernel stops at that.",
            "Calibrate again: one of the two ranges is broken.",
        )
    lifted = levels << 7
    on_output = fp.doubling_high_mul(lifted, _to_16_bits(to_output.multiplier), bits=16)
    ramp = _ramp(lifted, _to_16_bits(to_ramp.multiplier), to_ramp.shift)
    product = fp.truncated_divide(ramp * on_output, 1 << 15)
    return fp.to_int8(fp.rounding_divide(product, -to_output.shift) + int(output.zero_point))


def _ramp(lifted: Array, multiplier: int, shift: int) -> Array:
    """From [-3, 3] to [0, 1] in 15 bits; saturation to the left happens in the last bit only, so that it does not cost precision."""
    value = _saturate_16(lifted << (shift - 1)) if shift > 0 else lifted
    value = fp.doubling_high_mul(value, multiplier, bits=16)
    value = _saturate_16(value << 1) if shift > 0 else fp.rounding_divide(value, -shift)
    return (value + (1 << 15)) >> 1


def _saturate_16(values: Array) -> Array:
    return np.clip(values, -(1 << 15), (1 << 15) - 1)


def _to_16_bits(multiplier: int) -> int:
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1)


# ---- curves ------------------------------------------------------------------------------------------------------------------------


def _logistic(levels: Array, source: Affine, output: Affine) -> Array:
    del output  # its grid is fixed: 1/256, -128
    value, inside = _curve_argument(levels, source)
    upper = _reciprocal_of_one_plus(_exponential(-np.abs(value), _CURVE_BITS))
    curve = np.where(value == 0, 1 << 30, np.where(value > 0, upper, _ONE - upper))
    return _saturated_outside(fp.rounding_divide(curve, 31 - 8) + fp.INT8_LOW, levels, inside)


def _tanh(levels: Array, source: Affine, output: Affine) -> Array:
    del output  # its grid is fixed: 1/128, 0
    value, inside = _curve_argument(levels, source)
    magnitude = _quotient_of_one_minus_and_plus(_exponential(-np.abs(value), _CURVE_BITS + 1))
    curve = np.where(value == 0, 0, np.where(value > 0, magnitude, -magnitude))
    return _saturated_outside(fp.rounding_divide(curve, 31 - 7), levels, inside)


def _curve_argument(levels: Array, source: Affine) -> tuple[Array, Array]:
    """Real arguments with 4 integer bits; where their magnitude is 15 or more, they are left out (False) and count as 0."""
    real = float(source.scale) * (1 << (31 - _CURVE_BITS))
    radius = _radius(_CURVE_BITS, math.frexp(real)[1])
    if radius == 0:
        raise ModelError(
            f"The input of a LOGISTIC or TANH has steps of {float(source.scale):.3g}; kernels take less than 8.",
            "Calibrate again with a narrower range: from there on, kernels answer wrongly for 0.",
        )
    inside = np.abs(levels) < radius
    return fp.rescale(np.where(inside, levels, 0), *fp.quantized_multiplier(real)), inside


def _saturated_outside(values: Array, levels: Array, inside: Array) -> Array:
    return fp.to_int8(np.where(inside, values, np.where(levels > 0, fp.INT8_HIGH, fp.INT8_LOW)))


def _radius(integer_bits: int, shift: int) -> int:
    """Largest distance of levels that stays in `integer_bits` integer bits after a multiplier with that shift."""
    return math.floor(((1 << integer_bits) - 1) * float(1 << (31 - integer_bits)) / 2.0**shift)


_BY_KIND: Mapping[Kind, Callable[[Array, Affine, Affine], Array]] = {
    Kind.HARD_SWISH: _hard_swish,
    Kind.LOGISTIC: _logistic,
    Kind.QUANTIZE: _requantize,
    Kind.RELU: _relu,
    Kind.RELU6: _relu6,
    Kind.TANH: _tanh,
}


# ---- softmax -----------------------------------------------------------------------------------------------------------------------


def softmax_exponentials(source: Affine, beta: float = 1.0) -> Array:
    """exp(-beta * scale * d) for distances d = 0 ... 255 from the row's largest level.

    Returns:
        int32 [256] without integer bits (1.0 is 2**31 - 1); 0 where the kernel leaves the term out.
    """
    real = min(float(np.float32(beta)) * float(source.scale) * (1 << (31 - _SOFTMAX_BITS)), _LARGEST_FACTOR)
    if real <= 1:
        raise ModelError(f"SOFTMAX's input has scale {float(source.scale):.3g}; its kernel takes 1.5e-8 and more.", "Leave it out.")
    mantissa, shift = fp.quantized_multiplier(real / 2)  # one bit less: the largest needs a shift of 31
    shift += 1
    distance = -np.arange(256, dtype=np.int64)
    kept = distance >= -_radius(_SOFTMAX_BITS, shift)
    argument = fp.doubling_high_mul(fp.wrap32(np.where(kept, distance, 0) << shift), mantissa)
    return np.where(kept, _exponential(argument, _SOFTMAX_BITS), 0).astype(np.int32)


def softmax_levels(exponentials: Array) -> Array:
    """Levels of a row from its exponentials: each over their sum, on the grid 1/256, -128.

    The sum has 12 integer bits; it is brought to [1, 2) by `31 - headroom` bits, inverted there, and the quotient is shifted back.

    Args:
        exponentials: int [..., depth], of `softmax_exponentials`.

    Returns:
        int8 [..., depth].
    """
    terms = np.asarray(exponentials, np.int64)
    total = fp.rounding_divide(terms, _SUM_BITS).sum(axis=-1, keepdims=True)
    bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)  # of the sum; 53 hold it exactly
    inverse = _reciprocal_of_one_plus((total << (32 - bits)) - (1 << 31))
    exponent = (_SUM_BITS - (32 - bits)) + 31 - 8
    return fp.to_int8(fp.rounding_divide(fp.doubling_high_mul(inverse, terms), exponent) + fp.INT8_LOW)


# ---- series ------------------------------------------------------------------------------------------------------------------------


def _q31(real: float) -> int:
    return round(real * (1 << 31))


def _exponential(argument: Array, integer_bits: int) -> Array:
    """exp(x) for x <= 0 in `integer_bits` integer bits, int64 [...] without integer bits.

    x is -1/4 * k - r: a polynomial gives exp(r - 1/4), the bits of k choose among exp(-1/4), exp(-1/2), exp(-1), ... exp(-16).
    """
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    low = (argument & (quarter - 1)) - quarter
    rest = low - argument
    result = _exponential_below_quarter(low << integer_bits)
    for power in range(-2, integer_bits):
        factor = fp.doubling_high_mul(result, _q31(math.exp(-(2.0**power))))
        result = np.where(rest & (1 << (fraction + power)), factor, result)
    return np.where(argument == 0, _ONE, result)


def _exponential_below_quarter(argument: Array) -> Array:
    """exp(x) for x in [-1/4, 0): fourth-order Taylor series around -1/8."""
    x = argument + (1 << 28)
    x2 = fp.doubling_high_mul(x, x)
    x3 = fp.doubling_high_mul(x2, x)
    x4 = fp.doubling_high_mul(x2, x2)
    third = fp.doubling_high_mul(fp.rounding_divide(x4, 2) + x3, _q31(1 / 3))
    series = x + fp.rounding_divide(third + x2, 1)
    middle = _q31(math.exp(-1 / 8))
    return middle + fp.doubling_high_mul(series, middle)


def _reciprocal_of_half(value: Array) -> Array:
    """2 / (1 + x) for x in [0, 1], both without integer bits; the result has 2 integer bits. Three Newton-Raphson steps."""
    half = (value + _ONE + 1) >> 1  # of the denominator, rounded; never negative
    one = 1 << 29
    guess = round(48 / 17 * one) + fp.doubling_high_mul(half, round(-32 / 17 * one))
    for _ in range(3):
        missing = one - fp.doubling_high_mul(half, guess)
        guess = guess + fp.saturating_shift(fp.doubling_high_mul(guess, missing), 2)
    return guess


def _reciprocal_of_one_plus(value: Array) -> Array:
    """1 / (1 + x) for x in [0, 1], without integer bits."""
    return fp.saturating_shift(_reciprocal_of_half(value), 1)


def _quotient_of_one_minus_and_plus(value: Array) -> Array:
    """(1 - x) / (1 + x) for x in [0, 1], without integer bits."""
    return fp.saturating_shift(_reciprocal_of_half(value) - (1 << 29), 2)
