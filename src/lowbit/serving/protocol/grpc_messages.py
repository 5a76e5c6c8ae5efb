"""The messages of the Open Inference Protocol over gRPC, built from a table: no generated code, and a pool of descriptors of our own, so
that a client library with the same names may live in the same process.

Source: the protocol's `GRPCInferenceService` (package `inference`): names, numbers and types of the fields are the wire format.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_TENSOR = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "repeated int64")}
_PARAMETERS = "map InferParameter"
_MODEL = {"name": (1, "string"), "version": (2, "string")}
TABLE: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "repeated string")},
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "repeated string"),
        "platform": (3, "string"),
        "inputs": (4, "repeated ModelMetadataResponse.TensorMetadata"),
        "outputs": (5, "repeated ModelMetadataResponse.TensorMetadata"),
    },
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": {
        "bool_param": (1, "choice bool"),
        "int64_param": (2, "choice int64"),
        "string_param": (3, "choice string"),
        "double_param": (4, "choice double"),
        "uint64_param": (5, "choice uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "repeated bool"),
        "int_contents": (2, "repeated int32"),
        "int64_contents": (3, "repeated int64"),
        "uint_contents": (4, "repeated uint32"),
        "uint64_contents": (5, "repeated uint64"),
        "fp32_contents": (6, "repeated float"),
        "fp64_contents": (7, "repeated double"),
        "bytes_contents": (8, "repeated bytes"),
    },
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, _PARAMETERS),
        "inputs": (5, "repeated ModelInferRequest.InferInputTensor"),
        "outputs": (6, "repeated ModelInferRequest.InferRequestedOutputTensor"),
        "raw_input_contents": (7, "repeated bytes"),
    },
    "ModelInferRequest.InferInputTensor": {**_TENSOR, "parameters": (4, _PARAMETERS), "contents": (5, "InferTensorContents")},
    "ModelInferRequest.InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, _PARAMETERS)},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, _PARAMETERS),
        "outputs": (5, "repeated ModelInferResponse.InferOutputTensor"),
        "raw_output_contents": (6, "repeated bytes"),
    },
    "ModelInferResponse.InferOutputTensor": {**_TENSOR, "parameters": (4, _PARAMETERS), "contents": (5, "InferTensorContents")},
    "ModelStreamInferResponse": {"error_message": (1, "string"), "infer_response": (2, "ModelInferResponse")},
}
"""Message -> field -> number and type. A dot nests; `choice` fields exclude each other; `map X` is from a string to an X."""

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Of the service, with `NAMERequest` and `NAMEResponse`; `ModelStreamInfer` turns ModelInferRequests into ModelStreamInferResponses."""

HEALTH = "grpc.health.v1"
"""What load balancers and Kubernetes ask. The status is an enum; as a number it is the same on the wire."""
_HEALTH_TABLE: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "HealthCheckRequest": {"service": (1, "string")},
    "HealthCheckResponse": {"status": (1, "int32")},
}
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

_Field = descriptor_pb2.FieldDescriptorProto


@cache
def messages() -> Mapping[str, type[Any]]:
    """The classes by name, those of the health check too."""
    return _classes(PACKAGE, TABLE) | _classes(HEALTH, _HEALTH_TABLE)


def _classes(package: str, table: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, type[Any]]:
    file = descriptor_pb2.FileDescriptorProto(name=f"lowbit/{package}.proto", package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in table.items():
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        for field, (number, kind) in fields.items():
            _add(made[name], f".{package}.", name, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}


def _add(message: Any, prefix: str, path: str, name: str, number: int, kind: str) -> None:
    """One field; a map is a repeated message of a key and a value."""
    how, _, what = kind.rpartition(" ")
    if how == "map":
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, prefix, path, "key", 1, "string")
        _add(entry, prefix, path, "value", 2, what)
        how, what = "repeated", f"{path}.{entry.name}"
    field = message.field.add(name=name, number=number, label=_Field.LABEL_REPEATED if how == "repeated" else _Field.LABEL_OPTIONAL)
    if what[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, prefix + what
    else:
        field.type = getattr(_Field, f"TYPE_{what.upper()}")
    if how == "choice":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
