"""Reference of operations that look at several places of one channel: pools and MEAN."""

from __future__ import annotations

import numpy as np

from lowbit.export.program import fixed_point as fp
from lowbit.export.program.reference_step import Step
from lowbit.types import Array


def average_pool_2d(step: Step) -> Array:
    """AVERAGE_POOL_2D: over what lies inside the input, to nearest, halves away from zero; levels keep their grid."""
    values = step.value(0)[:, 0].astype(np.int64)
    total = np.zeros((len(values), *step.output.shape[1:]), np.int64)
    count = np.zeros((*step.output.shape[1:3], 1), np.int64)
    for places, sources in _taps(step):
        total[:, places[0], places[1]] += values[:, sources[0], sources[1]]
        count[places[0], places[1]] += 1
    mean = fp.truncated_divide(total + np.where(total > 0, count // 2, -(count // 2)), count)
    return _bounded(step, mean)


def max_pool_2d(step: Step) -> Array:
    """MAX_POOL_2D: over what lies inside the input."""
    values = step.value(0)[:, 0]
    most = np.full((len(values), *step.output.shape[1:]), fp.INT8_LOW, np.int8)
    for places, sources in _taps(step):
        inside = most[:, places[0], places[1]]
        np.maximum(inside, values[:, sources[0], sources[1]], out=inside)
    return _bounded(step, most)


def mean(step: Step) -> Array:
    """MEAN over some axes: the sum, then one factor that divides and rescales."""
    values = step.value(0)
    rank = values.ndim - 1
    axes = tuple(sorted({axis % rank + 1 for axis in step.numbers(1)}))
    count = int(np.prod([values.shape[axis] for axis in axes], dtype=np.int64))
    total = values.sum(axis=axes, dtype=np.int64) - count * int(step.grid(0).zero_point)
    factor = fp.mean_multiplier(step.grid(0), step.output_grid, count)
    return fp.to_int8(fp.rescale(fp.wrap32(total), *factor) + int(step.output_grid.zero_point)).reshape(-1, *step.output.shape)


def _taps(step: Step) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For every tap of a pool's window: the places that it lies inside the input for, and what lies under it there."""
    axes = []
    for number, (taps, stride) in enumerate((("filter_height", "stride_h"), ("filter_width", "stride_w"))):
        extent, step_size = step.value(0).shape[2 + number], step.option(stride, 1)
        count, before = fp.window(step.option("padding", "VALID"), extent, step.option(taps, 1), step_size)
        axes.append([_tap(tap - before, extent, count, step_size) for tap in range(step.option(taps, 1))])
    return [((y[0], x[0]), (y[1], x[1])) for y in axes[0] for x in axes[1]]


def _tap(offset: int, extent: int, count: int, stride: int) -> tuple[slice, slice]:
    first = max(-(offset // stride), 0)
    last = min((extent - 1 - offset) // stride, count - 1)
    start = first * stride + offset
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride) if last >= first else slice(0, 0)


def _bounded(step: Step, values: Array) -> Array:
    bounds = fp.activation_bounds(step.option("activation", "NONE"), step.output_grid)
    return fp.to_int8(values, *bounds)[:, None].reshape(-1, *step.output.shape)
