"""Kept answers as bytes, for stores outside the process: a line of JSON, then the tensors' raw bytes. No pickle."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from lowbit.serving import wire
from lowbit.serving.refusals import Malformed
from lowbit.types import Array

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
    except (Malformed, KeyError, TypeError, struct.error, RecursionError) as error:
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
