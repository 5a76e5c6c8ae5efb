"""The Open Inference Protocol's gRPC messages to requests, and answers to messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.serving.protocol import wire
from lowbit.serving.protocol.grpc_messages import messages
from lowbit.serving.protocol.refusals import Malformed
from lowbit.serving.protocol.requests import InferRequest, InferResponse, Parameter
from lowbit.serving.protocol.rest_codec import checked_shape, wanted
from lowbit.types import Array

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    wire.BYTES: "bytes_contents",
}
"""Where the values of a datatype are; FP16 and BF16 travel as raw bytes alone."""


def slow(message: Any) -> int:
    """Bytes of a ModelInferRequest that are read value by value: those of its strings and typed contents; raw numbers cost nothing."""
    if message.raw_input_contents and not any(each.datatype == wire.BYTES for each in message.inputs):
        return 0
    size: int = message.ByteSize()
    return size


def parse(message: Any) -> InferRequest:
    """Reads a ModelInferRequest.

    Returns:
        The request; `binary` where its tensors came as raw bytes: the answer's then do as well.

    Raises:
        Malformed: anything but what the protocol allows; the message names the part.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Malformed(f"The request has {len(message.inputs)} inputs and {len(raw)} raw_input_contents; give one for each.")
    inputs: dict[str, Array] = {}
    for position, given in enumerate(message.inputs):
        name, shape = given.name, checked_shape(given.name, list(given.shape))
        if not name or not given.datatype:
            raise Malformed("An input of the request lacks 'name' or 'datatype'.")
        if name in inputs:
            raise Malformed(f"Input '{name}' is given twice.")
        if "shared_memory_region" in given.parameters:
            raise Malformed(f"Input '{name}' is said to be in shared memory, which is not served: send its values.")
        if not raw:
            inputs[name] = _typed(name, given.datatype, shape, given.contents)
            continue
        if given.HasField("contents"):
            raise Malformed(f"Input '{name}' has both contents and raw_input_contents.")
        inputs[name] = wire.from_bytes(name, given.datatype, shape, raw[position])
    if not inputs:
        raise Malformed("The request has no inputs.")
    outputs = tuple(wanted(each.name, _parameters(each.parameters)) for each in message.outputs)
    return InferRequest(inputs, message.id, outputs, _parameters(message.parameters), bool(raw))


def render(response: InferResponse, request: InferRequest) -> Any:
    """Writes a ModelInferResponse: raw bytes where the request had them, or where a datatype has no other form."""
    types = {name: wire.datatype_of_dtype(array.dtype) for name, array in response.outputs.items()}
    raw = request.binary or not all(datatype in CONTENTS for datatype in types.values())
    message = messages()["ModelInferResponse"](model_name=response.model, model_version=response.version, id=response.id)
    for name, array in response.outputs.items():
        output = message.outputs.add(name=name, datatype=types[name], shape=array.shape)
        if raw:
            message.raw_output_contents.append(wire.to_bytes(array))
        else:
            getattr(output.contents, CONTENTS[types[name]]).extend(wire.to_values(array))
    for name, value in response.parameters.items():
        _set(message.parameters[name], value)
    return message


def _typed(name: str, datatype: str, shape: list[int], contents: Any) -> Array:
    field = CONTENTS.get(datatype)
    if field is None:
        wire.numpy_dtype(datatype)  # refuses what is not known at all
        raise Malformed(f"Input '{name}' is {datatype}, which travels in raw_input_contents alone.")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise Malformed(f"The values of input '{name}' are in {other.name}; those of {datatype} belong in {field}.")
    return wire.from_values(name, datatype, shape, list(getattr(contents, field)))


def _parameters(given: Mapping[str, Any]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, value in given.items():
        field = value.WhichOneof("parameter_choice")
        if field is None:
            raise Malformed(f"The parameter '{name}' has no value.")
        found[name] = getattr(value, field)
    return found


def _set(parameter: Any, value: Parameter) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
