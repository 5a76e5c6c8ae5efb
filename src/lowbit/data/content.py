"""Content hashes: what makes two samples the same sample.

Image files are hashed as the bytes in the file, arrays as their values: floats as float32, integers
as int64 (uint8 stays), little-endian, with shape. So the same tokens in int16 and int64 are one sample, and a
hash does not depend on the platform, the decoder's version or the preprocessing. The same picture in two
encodings counts as two samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from lowbit.data.preprocess import as_numbers
from lowbit.data.steps import Raw, decode, file_bytes, is_image
from lowbit.data.text import Words
from lowbit.types import Array


def canonical(array: Array) -> Array:
    """The dtype in which values are hashed."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, "<f4")
    return np.ascontiguousarray(array, "u1" if array.dtype in (np.uint8, np.bool_) else "<i8")


def hash_blocks(blocks: Mapping[str, Array | Sequence[Raw]], n: int) -> tuple[Array, Array]:
    """Hashes of n samples, and which of them hold NaN or inf.

    Args:
        blocks: Input name -> [n, ...] or n raw samples.
        n: Number of samples.

    Returns:
        uint64 [n], bool [n].

    Raises:
        Unreadable: an image that cannot be decoded.
    """
    hashers = [blake2b(digest_size=8) for _ in range(n)]
    broken = np.zeros(n, np.bool_)
    for name in sorted(blocks):
        values = blocks[name]
        key = name if len(blocks) > 1 else ""  # one data set, one fingerprint, whatever a model calls its only input
        if isinstance(values, np.ndarray):
            rows = canonical(values)
            if values.dtype.kind == "f":
                broken |= ~np.isfinite(values).reshape(n, -1).all(axis=1)
        else:
            rows = None
        for index, hasher in enumerate(hashers):
            value = rows[index] if rows is not None else values[index]
            finite = _update(hasher, key, value)
            broken[index] |= not finite
    return np.array([int.from_bytes(hasher.digest(), "little") for hasher in hashers], np.uint64), broken


def _update(hasher: blake2b, name: str, value: Raw) -> bool:
    """Adds one value to a hash; False where it holds NaN or inf."""
    if isinstance(value, Words):
        hasher.update(f"{name}\0text\0".encode() + value.content)
        return True
    if is_image(value) and not hasattr(value, "getbands"):
        data = file_bytes(value)
        decode(data, probe=True)
        hasher.update(f"{name}\0file\0".encode() + data)
        return True
    array = np.asarray(value) if hasattr(value, "getbands") else as_numbers(value)
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    array = canonical(array)
    hasher.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode() + array.tobytes())
    return finite
