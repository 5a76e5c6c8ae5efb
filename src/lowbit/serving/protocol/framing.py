"""Tensors as bytes, for what is kept outside the process: a line of JSON, then their raw bytes, no pickle; and the digest of tensors."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.serving.protocol import wire
from lowbit.serving.protocol.refusals import Malformed
from lowbit.types import Array, Feeds

MAGIC = b"lowbit\x01\n"
_LENGTH = struct.Struct("<I")


def pack(arrays: Mapping[str, Array], about: Mapping[str, Any] | None = None) -> bytes:
    """Tensors by name with what is to be known of them; `unpack` is its inverse.

    Args:
        arrays: Numbers or BYTES.
        about: Anything JSON can hold.
    """
    raw = [wire.to_bytes(array) for array in arrays.values()]
    tensors = [
        [name, wire.datatype_of(array.dtype.name), list(array.shape), len(part)]
        for (name, array), part in zip(arrays.items(), raw, strict=True)
    ]
    head = json.dumps({"tensors": tensors, "about": dict(about or {})}, separators=(",", ":")).encode()
    return b"".join([MAGIC, _LENGTH.pack(len(head)), head, *raw])


def unpack(value: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `pack` was given; tensors are views on the bytes.

    Raises:
        ValueError: anything but what `pack` writes: a store is another process, and what comes from it is checked.
    """
    try:
        return _unpack(memoryview(value))
    except (Malformed, KeyError, TypeError, OverflowError, struct.error, RecursionError) as error:
        raise ValueError(f"no kept answer: {error}") from error


def _unpack(view: memoryview) -> tuple[dict[str, Array], dict[str, Any]]:
    start = len(MAGIC) + _LENGTH.size
    if bytes(view[: len(MAGIC)]) != MAGIC or len(view) < start:
        raise ValueError("no kept answer: it does not begin like one")
    (length,) = _LENGTH.unpack_from(view, len(MAGIC))
    if length > len(view) - start:
        raise ValueError("no kept answer: it ends within its head")
    head = json.loads(bytes(view[start : start + length]))
    at, arrays = start + length, {}
    for name, datatype, shape, size in head["tensors"]:
        fits = type(size) is int and 0 <= size <= len(view) - at and all(type(dim) is int and dim >= 0 for dim in shape)
        if not fits or math.prod(shape) > max(size, 1) * 8:
            raise ValueError(f"no kept answer: the sizes of '{name}' cannot be")
        arrays[str(name)] = wire.from_bytes(str(name), datatype, shape, view[at : at + size])
        at += size
    if at != len(view):
        raise ValueError("no kept answer: bytes are left over")
    about = head["about"]
    if not isinstance(about, dict):
        raise ValueError("no kept answer: its head is no mapping")
    return arrays, about


def digest(space: bytes, feeds: Feeds) -> bytes:
    """SHA-256 over a namespace and every tensor with its name, type and shape; 32 bytes.

    A weaker and quicker hash would let a client make two inputs that share a key, and so choose another client's answer.
    """
    found = hashlib.sha256(space)
    for name in sorted(feeds):
        array = feeds[name]
        found.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype == object:
            for value in array.ravel():
                raw = value if isinstance(value, bytes) else str(value).encode()
                found.update(b"%d:" % len(raw) + raw)
        else:
            found.update(np.ascontiguousarray(array).data if array.size else b"")
    return found.digest()
