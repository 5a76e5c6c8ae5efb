"""Reference of operations that move values, and of the two that resize."""

from __future__ import annotations

import numpy as np

from lowbit.export.program import fixed_point as fp
from lowbit.export.program.program import Kind
from lowbit.export.program.reference_step import Step
from lowbit.types import Array


def concatenation(step: Step) -> Array:
    """CONCATENATION along `axis`; constants are repeated for every sample."""
    parts = [step.value(number) for number in range(len(step.values))]
    count = max(len(part) for part in parts)
    axis = step.option("axis", 0) % len(step.output.shape) + 1
    return np.concatenate([np.broadcast_to(part, (count, *part.shape[1:])) for part in parts], axis=axis)


def pad(step: Step) -> Array:
    """PAD with the zero point, and PADV2 with a given level."""
    margins = np.array(step.numbers(1)).reshape(-1, 2)
    level = step.numbers(2)[0] if step.operation.kind is Kind.PADV2 else int(step.output_grid.zero_point)
    return np.pad(step.value(0), [(0, 0), *map(tuple, margins)], constant_values=level)


def reshape(step: Step) -> Array:
    """RESHAPE: the same elements in the same order."""
    return step.value(0).reshape(-1, *step.output.shape)


def cut(step: Step) -> Array:
    """SLICE (size -1: to the end) and STRIDED_SLICE."""
    values, begins, others = step.value(0), step.numbers(1), step.numbers(2)
    if step.operation.kind is Kind.STRIDED_SLICE:
        slices = [slice(begin, end, stride) for begin, end, stride in zip(begins, others, step.numbers(3), strict=True)]
    else:
        extents = values.shape[1:]
        sizes = [extent - begin if size < 0 else size for begin, size, extent in zip(begins, others, extents, strict=True)]
        slices = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
    return values[(slice(None), *slices)]


def transpose(step: Step) -> Array:
    """TRANSPOSE by a constant permutation."""
    return step.value(0).transpose(0, *(axis + 1 for axis in step.numbers(1)))


def depth_to_space(step: Step) -> Array:
    """DEPTH_TO_SPACE: channels [block, block, C] become places."""
    values, block = step.value(0)[:, 0], step.option("block_size", 1)
    count, height, width, channels = values.shape
    spread = values.reshape(count, height, width, block, block, channels // block**2).transpose(0, 1, 3, 2, 4, 5)
    return spread.reshape(-1, *step.output.shape)


def resize_nearest(step: Step) -> Array:
    """RESIZE_NEAREST_NEIGHBOR."""
    values, flags = step.value(0), _flags(step)
    rows, columns = (fp.nearest_places(values.shape[2 + a], step.output.shape[1 + a], **flags) for a in (0, 1))
    return values[:, :, rows][:, :, :, columns]


def resize_bilinear(step: Step) -> Array:
    """RESIZE_BILINEAR: weights in 1/1024 along each axis, to nearest, halves away from zero."""
    values, flags = step.value(0).astype(np.int64), _flags(step)
    for axis in (2, 3):
        below, above, weight = fp.bilinear_places(values.shape[axis], step.output.shape[axis - 1], **flags)
        share = weight.reshape(-1, *(1,) * (4 - axis))
        values = values.take(below, axis) * ((1 << 10) - share) + values.take(above, axis) * share
    half = np.where(values > 0, 1 << 19, -(1 << 19))
    return fp.truncated_divide(values + half, 1 << 20).astype(np.int8)


def _flags(step: Step) -> dict[str, bool]:
    return {name: step.option(name, False) for name in ("align_corners", "half_pixel_centers")}
