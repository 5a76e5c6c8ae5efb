"""Levels of 2, 3, 4 or 8 bits in bytes: eight of them in as many bytes as a level has bits, each row from a byte of its own.

The first level is in the lowest bits, so that four-bit levels are two to a byte with the first in the low half. Rows that
start at a byte can be read alone: an embedding is looked up without unpacking the rest.
"""

from __future__ import annotations

import numpy as np

from lowbit.errors import ModelError
from lowbit.types import Array

_ROWS_BYTES = 1 << 24
"""Temporaries stay below this."""


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row."""
    return -(-columns // 8) * bits


def pack_levels(levels: Array, bits: int) -> Array:
    """Levels uint8 [O, K] below 2^bits -> bytes uint8 [O, ceil(K / 8) * bits].

    Raises:
        ValueError: a level does not fit.
    """
    rows, columns = levels.shape
    if levels.size and int(levels.max()) >> bits:
        raise ValueError(f"level {int(levels.max())} does not fit {bits} bits")
    packed = np.empty((rows, packed_width(columns, bits)), np.uint8)
    shifts = (np.arange(8, dtype=np.uint64) * np.uint64(bits))[None, None]
    for part in _parts(rows, columns):
        padded = np.zeros((part.stop - part.start, -(-columns // 8) * 8), np.uint64)
        padded[:, :columns] = levels[part]
        words = np.bitwise_or.reduce(padded.reshape(len(padded), -1, 8) << shifts, axis=-1)
        packed[part] = words.astype("<u8")[..., None].view(np.uint8)[..., :bits].reshape(len(padded), -1)
    return packed


def unpack_levels(packed: Array, columns: int, bits: int) -> Array:
    """Bytes -> levels uint8 [O, K]: what `pack_levels` was given.

    Raises:
        ModelError: not as many bytes as the columns need.
    """
    rows = packed.shape[0]
    if packed.dtype != np.uint8 or packed.shape != (rows, packed_width(columns, bits)):
        raise ModelError(
            f"{columns} levels of {bits} bits are {packed_width(columns, bits)} bytes a row; found {packed.dtype} {list(packed.shape)}."
        )
    levels = np.empty((rows, columns), np.uint8)
    shifts = (np.arange(8, dtype=np.uint64) * np.uint64(bits))[None, None]
    for part in _parts(rows, columns):
        words = np.zeros((part.stop - part.start, packed.shape[1] // bits, 8), np.uint8)
        words[..., :bits] = packed[part].reshape(len(words), -1, bits)
        found = (words.view("<u8") >> shifts) & np.uint64(2**bits - 1)
        levels[part] = found.reshape(len(words), -1)[:, :columns]
    return levels


def _parts(rows: int, columns: int) -> list[slice]:
    step = max(1, _ROWS_BYTES // (8 * max(columns, 1)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
