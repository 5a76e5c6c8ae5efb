"""Convolutions as matrices: weights [g, O/g, K] against input patches [R, g, K], K = I/g x kernel.

What is known about rounding a matrix product then holds for a convolution, grouped and depthwise included:
output[r, g] = matrices[g] @ rows[r, g].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array


def as_matrices(weights: Array, groups: int = 1) -> Array:
    """Conv weights [O, I/g, *kernel] -> [g, O/g, K]; a view where numpy can give one.

    Raises:
        UsageError: output channels that do not split into the groups.
    """
    if weights.ndim < 2 or groups < 1 or weights.shape[0] % groups:
        raise UsageError(f"Weights of shape {weights.shape} do not split into {groups} groups of output channels.")
    return weights.reshape(groups, weights.shape[0] // groups, -1)


def from_matrices(matrices: Array, shape: tuple[int, ...]) -> Array:
    """[g, O/g, K] -> conv weights of `shape` [O, I/g, *kernel]."""
    return matrices.reshape(shape)


def output_size(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """Spatial extent of a convolution's output; `pads` is all begins, then all ends, as in ONNX."""
    half = len(kernel)
    return tuple((size[d] + pads[d] + pads[half + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in range(half))


def sample_positions(samples: int, extent: Sequence[int], count: int, seed: int = 0) -> Array:
    """Output positions drawn without replacement, the same for the same seed.

    Args:
        samples: N of the input batch.
        extent: Spatial extent of the output, see `output_size`.
        count: How many; all positions where there are fewer.
        seed: Of the draw.

    Returns:
        int64 [R, 1 + spatial axes]: sample, row, column; ascending.
    """
    shape = (samples, *extent)
    total = math.prod(shape)
    flat = np.arange(total) if count >= total else np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    return np.stack(np.unravel_index(flat, shape), axis=1)


def taps(
    shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], positions: Array
) -> tuple[Array, Array]:
    """Where in its input a convolution reads at some output positions, for any number of spatial axes.

    Args:
        shape: Of the input, [N, C, *spatial].
        kernel: Extent along each spatial axis; likewise `strides` and `dilations`.
        strides: Step of the output.
        pads: Zeros at all begins, then at all ends (ONNX); as many as twice the axes.
        dilations: Step within the kernel.
        positions: int [R, 1 + axes]: sample and output position, see `sample_positions`.

    Returns:
        Places in the flattened input, int32 (int64 where it is very large) [R, C, *kernel], the order of a weight [O, C, *kernel];
        and whether they are inside, bool [R, 1, *kernel]: the place of what lies in the padding is another's, and it counts as zero.

    Raises:
        UsageError: arguments for another number of spatial axes.
    """
    axes = len(kernel)
    if not len(shape) - 2 == axes == len(strides) == len(dilations) == len(pads) // 2 == positions.shape[1] - 1:
        raise UsageError(f"An input of shape {tuple(shape)} has {len(shape) - 2} spatial axes, the kernel {tuple(kernel)} has {axes}.")
    size, steps = math.prod(shape), [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    kind = np.int32 if size <= np.iinfo(np.int32).max // 2 else np.int64
    where: Any = positions[:, 0].reshape(-1, *(1 for _ in range(axes))) * steps[0]
    inside: Any = True
    for d in range(axes):
        index = positions[:, 1 + d, None] * strides[d] - pads[d] + np.arange(kernel[d]) * dilations[d]  # [R, kernel]
        index = index.reshape(len(positions), *(kernel[d] if e == d else 1 for e in range(axes)))
        where = where + index * steps[2 + d]
        inside = inside & (index >= 0) & (index < shape[2 + d])
    channels = (np.arange(shape[1]) * steps[1]).astype(kind).reshape(-1, *(1 for _ in range(axes)))
    places = where.astype(kind)[:, None] + channels
    if not inside.all():
        np.minimum(np.maximum(places, 0, out=places), size - 1, out=places)
    return places, inside[:, None]


def patches(
    x: Array, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], positions: Array
) -> Array:
    """What a convolution sees at some output positions: rows of im2col.

    Args:
        x: [N, C, *spatial].
        kernel: See `taps`, and for all that follow.
        strides: Step of the output.
        pads: Zeros around.
        dilations: Step within the kernel.
        positions: Sample and output position.

    Returns:
        [R, C * prod(kernel)], ordered as a weight [O, C, *kernel] flattened from axis 1 on. For g groups reshape to [R, g, K].

    Raises:
        UsageError: arguments for another number of spatial axes.
    """
    places, inside = taps(x.shape, kernel, strides, pads, dilations, positions)
    return without_padding(x.reshape(-1)[places], inside).reshape(len(positions), -1)


def without_padding(found: Array, inside: Array) -> Array:
    """What was found at the places of `taps` [R, C, *kernel], in place, with zeros for padding."""
    if not inside.all():
        np.copyto(found, 0, where=~inside)
    return found
