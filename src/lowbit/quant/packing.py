"""Two four-bit integers to a byte, in ONNX's order.

The first element is the low nibble, the second the high one; an odd count is padded with a zero nibble
(https://onnx.ai/onnx/technical/int4.html). Order is that of the flattened, row-major tensor.
"""

from __future__ import annotations

import math

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array

_BOUNDS = {"int4": (-8, 7), "uint4": (0, 15)}


def pack(values: Array, dtype: str) -> Array:
    """Levels of "int4" or "uint4" -> bytes.

    Args:
        values: Integers [...], any numpy integer type.
        dtype: "int4" or "uint4".

    Returns:
        uint8 [ceil(values.size / 2)].

    Raises:
        UsageError: another type, or a value that does not fit it.
    """
    low, high = _bounds(dtype)
    flat = np.ravel(values)
    if flat.size and (flat.min() < low or flat.max() > high):
        raise UsageError(f"Values from {flat.min()} to {flat.max()} do not fit {dtype}, which holds {low} to {high}.")
    nibbles = np.zeros(flat.size + flat.size % 2, np.uint8)
    nibbles[: flat.size] = flat.astype(np.int8).view(np.uint8) & 0x0F
    packed: Array = nibbles[0::2] | (nibbles[1::2] << 4)
    return packed


def unpack(packed: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Bytes -> levels, int8 or uint8 of `shape`: what `pack` was given.

    Raises:
        UsageError: another type, or not as many bytes as the shape needs.
    """
    low, _ = _bounds(dtype)
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != ((count + 1) // 2,):
        raise UsageError(f"A {dtype} tensor of shape {shape} is {(count + 1) // 2} bytes; found {packed.dtype} {packed.shape}.")
    nibbles = np.stack([packed & 0x0F, packed >> 4], axis=1).reshape(-1)[:count]
    if low < 0:
        # Sign extension: moving the nibble to the top of the byte and back keeps its sign bit.
        nibbles = (nibbles << 4).view(np.int8) >> 4
    return nibbles.reshape(shape)


def _bounds(dtype: str) -> tuple[int, int]:
    if dtype not in _BOUNDS:
        raise UsageError(f"'{dtype}' is not packed; allowed: {', '.join(_BOUNDS)}.")
    return _BOUNDS[dtype]
