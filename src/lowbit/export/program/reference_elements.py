"""Reference of operations on single elements, and of SOFTMAX."""

from __future__ import annotations

import numpy as np

from lowbit.export.program import fixed_point as fp
from lowbit.export.program import tables
from lowbit.export.program.program import Kind
from lowbit.export.program.reference_step import Step
from lowbit.quant.affine import Affine
from lowbit.types import Array


def add_or_sub(step: Step) -> Array:
    """ADD and SUB: both operands on one fine grid, then to the output's. They broadcast."""
    subtracts = step.operation.kind is Kind.SUB
    factors = (fp.sub_factors if subtracts else fp.add_factors)(step.grid(0), step.grid(1), step.output_grid)
    left, right = (fp.rescale(levels << fp.SUM_SHIFT, *factor) for levels, factor in zip(_operands(step), factors[:2], strict=True))
    total = fp.wrap32(left - right if subtracts else left + right)
    return _bounded(step, fp.rescale(total, *factors.output))


def mul(step: Step) -> Array:
    """MUL: the product of the levels, then one factor. Operands broadcast."""
    left, right = _operands(step)
    return _bounded(step, fp.rescale(left * right, *fp.mul_multiplier(step.grid(0), step.grid(1), step.output_grid)))


def by_table(step: Step) -> Array:
    """Whatever depends on one level alone."""
    answers = tables.table(step.operation.kind, step.grid(0), step.output_grid, step.operation.options)
    return answers[step.value(0).astype(np.int64) - fp.INT8_LOW]


def softmax(step: Step) -> Array:
    """SOFTMAX over the last axis."""
    values = step.value(0).astype(np.int64)
    exponentials = tables.softmax_exponentials(step.grid(0), step.option("beta", 1.0))
    return tables.softmax_levels(exponentials[values.max(axis=-1, keepdims=True) - values])


def quantize(step: Step) -> Array:
    """QUANTIZE: from float32, or from one grid of integers to another."""
    values = step.value(0)
    return levels(values, step.output_grid) if np.issubdtype(values.dtype, np.floating) else by_table(step)


def dequantize(step: Step) -> Array:
    """DEQUANTIZE: the product of scale and levels, rounded to float32 once."""
    return real(step.value(0), step.grid(0))


def levels(values: Array, grid: Affine) -> Array:
    """Real numbers to int8 as the kernel does: quotient in single precision, halves away from zero; NaN becomes the lowest level.

    Infinity, and what lies 2**31 steps away or farther, saturates here; a kernel's conversion to 32 bits leaves that open.
    """
    steps = (np.asarray(values, np.float32) / np.float32(grid.scale)).astype(np.float64)
    steps = np.clip(np.where(np.isnan(steps), -np.inf, steps), -1e9, 1e9)
    rounded = np.copysign(np.floor(np.abs(steps) + 0.5), steps)
    return fp.to_int8(rounded + int(grid.zero_point))


def real(values: Array, grid: Affine) -> Array:
    """Levels of a grid as real numbers, float32 [...]."""
    return (float(grid.scale) * (values.astype(np.int64) - int(grid.zero_point))).astype(np.float32)


def _operands(step: Step) -> tuple[Array, Array]:
    """Both operands less their zero points, with as many axes as the output: missing ones are put before the others."""
    rank = len(step.output.shape)
    return tuple(_raised(step.levels(number), rank) for number in (0, 1))  # type: ignore[return-value]


def _raised(values: Array, rank: int) -> Array:
    return values.reshape(len(values), *(1,) * (rank - values.ndim + 1), *values.shape[1:])


def _bounded(step: Step, values: Array) -> Array:
    bounds = fp.activation_bounds(step.option("activation", "NONE"), step.output_grid)
    return fp.to_int8(values + int(step.output_grid.zero_point), *bounds)
