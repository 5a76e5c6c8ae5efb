"""Tensors on the wire: the datatypes of the Open Inference Protocol, as raw bytes and as JSON numbers.

Source: the protocol's "Tensor Data Types" and its binary tensor data extension: little-endian, row-major; an element of BYTES is its
length as a little-endian uint32, then its bytes, which are UTF-8 here: runtimes take text. BF16 travels as bytes only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lowbit.serving.protocol.refusals import Malformed
from lowbit.types import Array

BYTES = "BYTES"
_NAMES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "object": BYTES,
    "str": BYTES,
    "string": BYTES,
}
DATATYPES = tuple(dict.fromkeys(_NAMES.values()))
_DTYPES = {datatype: name for name, datatype in _NAMES.items() if datatype != BYTES}
_LENGTH = struct.Struct("<I")
MOST_STRINGS = 1 << 20
"""Elements of BYTES that are taken apart one by one while others wait."""


def datatype_of(dtype: str) -> str:
    """The protocol's word for a numpy dtype's name; anything that is no number travels as BYTES."""
    return _NAMES.get(dtype, BYTES)


@lru_cache(256)
def datatype_of_dtype(dtype: np.dtype[Any]) -> str:
    """The same for the dtype itself; kept, because numpy makes a dtype's name anew each time."""
    return datatype_of(dtype.name)


@lru_cache(64)
def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Little-endian dtype of a numeric datatype.

    Raises:
        Malformed: no such datatype.
    """
    if datatype == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if datatype not in _DTYPES:
        raise Malformed(f"Datatype {datatype!r} is not known. Allowed: {', '.join(DATATYPES)}.")
    return np.dtype(_DTYPES[datatype]).newbyteorder("<")


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """A tensor from its raw bytes, without a copy: it may not be written to.

    Args:
        name: Of the tensor, for messages.
        datatype: The protocol's word.
        shape: Checked: integers from 0.
        raw: All of its bytes and no more.

    Raises:
        Malformed: the bytes are not as many as datatype and shape need.
    """
    if datatype == BYTES:
        return _strings(name, shape, memoryview(raw))
    dtype = numpy_dtype(datatype)
    needed = math.prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise Malformed(f"Tensor '{name}' has {len(raw)} bytes; {datatype} of shape {list(shape)} has {needed}.")
    array = np.frombuffer(raw, dtype)
    if datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise Malformed(f"Tensor '{name}' is BOOL and has bytes other than 0 and 1.")
    return _shaped(name, array, shape)


def _strings(name: str, shape: Sequence[int], raw: memoryview) -> Array:
    count, at = math.prod(shape), 0
    found: list[bytes] = []
    if count > MOST_STRINGS:
        raise Malformed(f"Tensor '{name}' has {count:,} elements; BYTES may have {MOST_STRINGS:,}.")
    while at < len(raw) and len(found) <= count:
        if at + _LENGTH.size > len(raw):
            raise Malformed(f"Tensor '{name}' ends within the length of element {len(found)}.")
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + size > len(raw):
            raise Malformed(f"Tensor '{name}': element {len(found)} is said to have {size} bytes; {len(raw) - at} are left.")
        found.append(bytes(raw[at : at + size]))
        at += size
    if len(found) != count:
        raise Malformed(f"Tensor '{name}' has {'more' if len(found) > count else len(found)} elements; shape {list(shape)} has {count}.")
    return _shaped(name, _texts(name, found), shape)


def _texts(name: str, values: Sequence[bytes | str]) -> Array:
    """Strings [n] as Python's, which is what runtimes take."""
    array = np.empty(len(values), object)
    try:
        array[:] = [value.decode() if isinstance(value, bytes) else value for value in values]
        "".join(array).encode()  # JSON may name half a pair of surrogates
    except UnicodeError as error:
        raise Malformed(f"Tensor '{name}' has an element that is not UTF-8: {error}.") from None
    return array


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """A tensor from JSON, flat or nested; strings are UTF-8.

    Raises:
        Malformed: values of another kind, out of the datatype's range, or not as many as the shape has.
    """
    if datatype == "BF16":
        raise Malformed(f"Tensor '{name}' is BF16, which has no form in JSON.")
    flat = _flat(name, data)
    if datatype == BYTES and set(map(type, flat)) - {str}:
        raise Malformed(f"Tensor '{name}' is BYTES; its values must be strings.")
    array = from_values(name, datatype, shape, flat)
    if array.dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinity: a number was too large
        raise Malformed(f"Tensor '{name}' has values outside the range of {datatype}.")
    return array


def from_values(name: str, datatype: str, shape: Sequence[int], flat: Sequence[Any]) -> Array:
    """A tensor from Python's numbers, or from text or bytes for BYTES.

    Raises:
        Malformed: values of another kind, out of the datatype's range, or not as many as the shape has.
    """
    count = math.prod(shape)
    if len(flat) != count:
        raise Malformed(f"Tensor '{name}' has {len(flat)} values; shape {list(shape)} has {count}.")
    array = _texts(name, flat) if datatype == BYTES else _numbers(name, numpy_dtype(datatype), datatype, flat)
    return _shaped(name, array, shape)


_KINDS: dict[str, tuple[set[type], str]] = {"b": ({bool}, "true or false"), "f": ({int, float}, "numbers")}


def _numbers(name: str, dtype: np.dtype[Any], datatype: str, flat: Sequence[Any]) -> Array:
    allowed, kind = _KINDS.get(dtype.kind, ({int}, "whole numbers"))
    if set(map(type, flat)) - allowed:
        raise Malformed(f"Tensor '{name}' is {datatype}; its values must be {kind}.")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype)
    except OverflowError:
        raise Malformed(f"Tensor '{name}' has values outside the range of {datatype}.") from None


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # no elements, and other axes whose product is beyond what an array may have
        raise Malformed(f"Tensor '{name}' has shape {list(shape)}, which is too large.") from None


def _flat(name: str, data: object) -> list[Any]:
    """Nested lists in row-major order."""
    if not isinstance(data, list):
        raise Malformed(f"The data of tensor '{name}' must be a list.")
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise Malformed(f"The data of tensor '{name}' mixes lists and values.")
        if len({len(row) for row in data}) > 1:
            raise Malformed(f"The data of tensor '{name}' has rows of different lengths.")
        data = [value for row in data for value in row]
    return data


def to_bytes(array: Array) -> bytes:
    """Raw bytes of a tensor."""
    if array.dtype.kind in "OSU":
        encoded = (value if isinstance(value, bytes) else str(value).encode() for value in array.ravel())
        return b"".join(part for value in encoded for part in (_LENGTH.pack(len(value)), value))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def to_values(array: Array) -> list[Any]:
    """Flat values in row-major order: Python's numbers, or bytes."""
    if array.dtype.kind in "OSU":
        return [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
    found: list[Any] = array.ravel().tolist()
    return found


def to_json(array: Array) -> list[Any]:
    """Flat values in row-major order. Floats that are no numbers become null: JSON has no word for them."""
    values = to_values(array)
    if array.dtype.kind in "OSU":
        return [value.decode("utf-8", "replace") for value in values]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in values]
    return values
