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


def patches(
    x: Array, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], positions: Array
) -> Array:
    """What a convolution sees at some output positions: rows of im2col, for any number of spatial axes.

    Args:
        x: [N, C, *spatial].
        kernel: Extent along each spatial axis; likewise `strides` and `dilations`.
        strides: Step of the output.
        pads: Zeros at all begins, then at all ends (ONNX); as many as twice the axes.
        dilations: Step within the kernel.
        positions: int [R, 1 + axes]: sample and output position, see `sample_positions`.

    Returns:
        [R, C * prod(kernel)], ordered as a weight [O, C, *kernel] flattened from axis 1 on. For g groups reshape to [R, g, K].

    Raises:
        UsageError: arguments for another number of spatial axes.
    """
    axes = len(kernel)
    if not x.ndim - 2 == axes == len(strides) == len(dilations) == len(pads) // 2 == positions.shape[1] - 1:
        raise UsageError(f"An input of shape {x.shape} has {x.ndim - 2} spatial axes, the kernel {tuple(kernel)} has {axes}.")
    taps: list[Any] = [positions[:, 0].reshape(-1, *(1 for _ in range(axes))), slice(None)]
    inside: Any = True
    for d in range(axes):  # the whole input is not padded for a few rows: what lies outside is set to zero afterwards
        index = positions[:, 1 + d, None] * strides[d] - pads[d] + np.arange(kernel[d]) * dilations[d]  # [R, kernel]
        index = index.reshape(len(positions), *(kernel[d] if e == d else 1 for e in range(axes)))
        inside = inside & (index >= 0) & (index < x.shape[2 + d])
        taps.append(index.clip(0, x.shape[2 + d] - 1))
    found = x[tuple(taps)]  # indexed axes come first: [R, *kernel, C]
    found[~np.broadcast_to(inside, found.shape[:-1])] = 0
    return np.ascontiguousarray(np.moveaxis(found, -1, 1)).reshape(len(positions), -1)
