"""Open Inference Protocol V2 over REST: bodies to requests and answers to bodies, with the binary tensor extension.

A body is JSON; with the header `Inference-Header-Content-Length: n` it is n bytes of JSON, then the raw bytes of every tensor whose
parameters say `binary_data_size`, one after another. Everything here is a pure function of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.serving.protocol import wire
from lowbit.serving.protocol.refusals import Malformed, TooLarge
from lowbit.serving.protocol.requests import InferRequest, InferResponse, Parameter, Wanted
from lowbit.types import Array

HEADER = "inference-header-content-length"
MAX_RANK = 16
"""Axes a tensor may have: far more than any model's, few enough that no shape is a burden to check."""
MOST_JSON = 16 << 20
"""Bytes of JSON, about 0.3 s of decimal numbers, in which no thread runs but the one that reads them; binary tensors may be as large as the
body."""
MOST_LISTS = 1 << 20
"""Lists and objects in a document. Empty ones take two bytes each and forty times that in memory."""
MOST_TOP = 1000
"""Classes that can be asked for by name."""


def _refuse(word: str) -> Any:
    raise Malformed(f"The body holds {word}, which JSON has not.")


_read = json.JSONDecoder(parse_constant=_refuse).decode
_write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
# Made once: json.loads and json.dumps with options make one for each call.


def parse(body: bytes | bytearray, header_length: str | None) -> InferRequest:
    """Reads the body of an inference request.

    Args:
        body: As it came; tensors are views on it, without a copy.
        header_length: Value of the header `Inference-Header-Content-Length`, None without it.

    Raises:
        Malformed: anything but what the protocol allows; the message names the part.
    """
    view = memoryview(body)
    split = json_size(header_length, len(view))
    document = read_json(view[:split])
    if not isinstance(document, dict):
        raise Malformed("The body must be a JSON object.")
    binary = view[split:]
    inputs: dict[str, Array] = {}
    for given in _list(document, "inputs"):
        name, datatype = _string(given, "name", "An input"), _string(given, "datatype", "An input")
        shape = checked_shape(name, given.get("shape"))
        if name in inputs:
            raise Malformed(f"Input '{name}' is given twice.")
        own = parameters_of(given)
        if "shared_memory_region" in own:
            raise Malformed(f"Input '{name}' is said to be in shared memory, which is not served: send its values.")
        size = own.get("binary_data_size")
        if size is None:
            if "data" not in given:
                raise Malformed(f"Input '{name}' has neither data nor the parameter binary_data_size.")
            inputs[name] = wire.from_json(name, datatype, shape, given["data"])
            continue
        if "data" in given:
            raise Malformed(f"Input '{name}' has both data and the parameter binary_data_size.")
        raw, binary = _cut(name, size, binary, header_length)
        inputs[name] = wire.from_bytes(name, datatype, shape, raw)
    if not inputs:
        raise Malformed("The request has no inputs.")
    if len(binary):
        raise Malformed(f"{len(binary)} bytes follow the last tensor: sizes and body disagree.")
    parameters = parameters_of(document)
    return InferRequest(
        inputs,
        _optional_string(document, "id"),
        tuple(wanted(_string(each, "name", "An output"), parameters_of(each)) for each in _list(document, "outputs", optional=True)),
        parameters,
        _flag(parameters.get("binary_data_output", False), "binary_data_output"),
    )


def render(response: InferResponse, request: InferRequest) -> tuple[list[bytes], int | None]:
    """Writes the body of an answer.

    Returns:
        The body in parts, and the length of its JSON where raw bytes follow (the header's value), else None.
    """
    asked_for = {each.name: each for each in request.outputs}
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in response.outputs.items():
        asked = asked_for.get(name)
        binary = request.binary if asked is None or asked.binary is None else asked.binary
        datatype = wire.datatype_of_dtype(array.dtype)
        if datatype == "BF16" and not binary:  # it has no form in JSON
            array, datatype = array.astype(np.float32), "FP32"
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            raw.append(wire.to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = wire.to_json(array)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    text = _write(document).encode()
    return [text, *raw], len(text) if raw else None


def json_size(value: str | None, size: int) -> int:
    """Bytes of JSON at the head of a body.

    Args:
        value: Of the header `Inference-Header-Content-Length`; None without it: all is JSON.
        size: Of the body.

    Raises:
        Malformed: the header is no number of bytes, or says more than there are.
    """
    if value is None:
        return size
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise Malformed("The header Inference-Header-Content-Length must be a number of bytes.")
    if int(value) > size:
        raise Malformed(f"The header Inference-Header-Content-Length says {value} bytes; the body has {size}.")
    return int(value)


def slow(body: bytes | bytearray, header_length: str | None) -> int:
    """Bytes of a body that are read one by one: its JSON, and all of it where there are strings; numbers in binary cost nothing.

    Raises:
        Malformed: the header is wrong.
    """
    size = json_size(header_length, len(body))
    return len(body) if size < len(body) and wire.BYTES.encode() in body[:size] else size


def read_json(view: memoryview) -> Any:
    """A document.

    Raises:
        Malformed: not JSON, or with NaN or infinity in it.
        TooLarge: it would hold up others.
    """
    if len(view) > MOST_JSON:
        raise TooLarge(f"The JSON has {len(view):,} bytes; {MOST_JSON:,} are allowed. Send large tensors as binary data.")
    try:
        text = str(view, "utf-8")
        if len(text) > 2 * MOST_LISTS and text.count("[") + text.count("{") > MOST_LISTS:
            raise TooLarge(f"The JSON has more than {MOST_LISTS:,} lists and objects. Send tensors flat, or as binary data.")
        return _read(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"The body is not JSON: {str(error)[:120]}.") from None


def _list(document: Mapping[str, Any], key: str, *, optional: bool = False) -> list[dict[str, Any]]:
    if optional and document.get(key) is None:
        return []
    found = document.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Malformed(f"The request's '{key}' must be a list of objects.")
    return found


def _string(given: Mapping[str, Any], key: str, what: str) -> str:
    found = given.get(key)
    if not isinstance(found, str) or not found:
        raise Malformed(f"{what} of the request lacks '{key}'.")
    return found


def _optional_string(document: Mapping[str, Any], key: str) -> str:
    found = document.get(key)
    if found is not None and not isinstance(found, str):
        raise Malformed(f"The request's '{key}' must be a string.")
    return found or ""


def checked_shape(name: str, shape: object) -> list[int]:
    """A tensor's shape as it was given, once it is known to be one.

    Raises:
        Malformed: anything but a few whole numbers from 0.
    """
    fits = isinstance(shape, list) and len(shape) <= MAX_RANK
    if not fits or not all(type(dim) is int and 0 <= dim < 2**31 for dim in shape):  # type: ignore[attr-defined]
        raise Malformed(f"Input '{name}' needs a shape: a list of at most {MAX_RANK} whole numbers from 0.")
    assert isinstance(shape, list)
    return shape


def parameters_of(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters of a request, or of one of its tensors.

    Raises:
        Malformed: not an object of plain values.
    """
    found = given.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str | int | float | bool) for value in found.values()):
        raise Malformed("Parameters must be an object of strings, numbers and booleans.")
    return found


def _cut(name: str, size: Parameter, binary: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    if header_length is None:
        raise Malformed(f"Input '{name}' has the parameter binary_data_size; the header Inference-Header-Content-Length is missing.")
    if type(size) is not int or not 0 <= size <= len(binary):
        raise Malformed(f"Input '{name}': binary_data_size is {size!r}; {len(binary)} bytes are left in the body.")
    return binary[:size], binary[size:]


def wanted(name: str, parameters: Mapping[str, Parameter]) -> Wanted:
    """An output that is asked for.

    Raises:
        Malformed: without a name, or with parameters of the wrong kind.
    """
    binary, top = parameters.get("binary_data"), parameters.get("classification", 0)
    if not name:
        raise Malformed("An output of the request lacks 'name'.")
    if "shared_memory_region" in parameters:
        raise Malformed(f"Output '{name}' is wanted in shared memory, which is not served: take its values from the answer.")
    if type(top) is not int or not 0 <= top <= MOST_TOP:
        raise Malformed(f"Output '{name}': classification must be a number of classes up to {MOST_TOP}.")
    return Wanted(name, None if binary is None else _flag(binary, "binary_data"), top)


def _flag(value: Parameter, name: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"The parameter {name} must be true or false.")
    return value
