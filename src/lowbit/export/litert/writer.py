"""The integer program as LiteRT's flatbuffer (a .tflite file, https://ai.google.dev/edge/litert).

The schema's classes are those that come with `ai-edge-litert`; nothing is converted, calibrated or optimized on the way: every scale,
zero point, weight and bias stands in the file as it stands in the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit import __version__
from lowbit.errors import ModelError, UsageError
from lowbit.export.litert import options
from lowbit.export.litert.versions import version
from lowbit.export.program.program import Operation, Port, Program, Tensor

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
_SCHEMA_VERSION = 3
_ALIGNMENT = 16
"""Bytes; kernels may load whole vectors from the weights, and microcontrollers read them in place."""
_TYPES = {"int8": "INT8", "int16": "INT16", "int32": "INT32", "float32": "FLOAT32"}


def schema() -> Any:
    """The classes of the flatbuffer.

    Raises:
        UsageError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise UsageError("LiteRT files are written with ai-edge-litert, which is missing.", "pip install 'lowbit[litert]'") from error
    return schema_py_generated


def to_bytes(program: Program, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """Writes a .tflite file.

    Args:
        program: Its tensors become the file's, in their order and under their names; its ports the signature "serving_default".
        metadata: Buffers to put beside them, by name.

    Raises:
        ModelError: an operation has an option that LiteRT's operator has not, or names a tensor that is not there.
        UsageError: ai-edge-litert is not installed.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_model(program, metadata or {}, schema()).Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


@dataclass(frozen=True)
class _Buffer:
    """One buffer, aligned; the schema's own object gives its elements no alignment."""

    data: bytes
    schema: Any

    def Pack(self, builder: Any) -> int:
        content = None
        if self.data:
            builder.Prep(_ALIGNMENT, len(self.data))
            content = builder.CreateByteVector(self.data)
        self.schema.BufferStart(builder)
        if content is not None:
            self.schema.BufferAddData(builder, content)
        return int(self.schema.BufferEnd(builder))


def aligned(data: Any, schema: Any) -> _Buffer:
    """A buffer of a file, as a table that can be packed: numbers of it may be read in place.

    Args:
        data: Bytes, an array of them, or None.
        schema: The classes of the flatbuffer.
    """
    return _Buffer(b"" if data is None else bytes(data), schema)


def _model(program: Program, metadata: Mapping[str, bytes], fb: Any) -> Any:
    numbers = _numbers(program)
    buffers = [_Buffer(b"", fb)]
    tensors = [_tensor(tensor, _place(tensor, buffers, fb), fb) for tensor in program.tensors.values()]
    codes = _codes(program)
    operators = [_operator(operation, codes[_code(operation, program)], numbers, fb) for operation in program.operations]
    inputs, outputs = ([numbers[port.tensor] for port in ports] for ports in (program.inputs, program.outputs))
    subgraph = fb.SubGraphT(tensors=tensors, inputs=inputs, outputs=outputs, operators=operators, name="main")
    entries = []
    for name, data in metadata.items():
        entries.append(fb.MetadataT(name=name, buffer=len(buffers)))
        buffers.append(_Buffer(data, fb))
    return fb.ModelT(
        version=_SCHEMA_VERSION,
        operatorCodes=[_operator_code(kind, number, fb) for kind, number in codes],
        subgraphs=[subgraph],
        description=f"{program.name}, written by lowbit {__version__}",
        buffers=buffers,
        metadata=entries or None,
        signatureDefs=[_signature(program, numbers, fb)],
    )


def _numbers(program: Program) -> dict[str, int]:
    """Tensor -> its number in the file."""
    ports = [port.tensor for port in (*program.inputs, *program.outputs)]
    named = [name for operation in program.operations for name in (*operation.inputs, *operation.outputs) if name]
    if unknown := sorted({*ports, *named} - program.tensors.keys()):
        raise ModelError(f"The program names {', '.join(unknown)}, and has no such tensor.")
    return {name: number for number, name in enumerate(program.tensors)}


def _place(tensor: Tensor, buffers: list[_Buffer], fb: Any) -> int:
    """The number of a tensor's buffer: 0, the empty one, for what is computed; else a new one."""
    if tensor.data is None:
        return 0
    data = np.ascontiguousarray(tensor.data, dtype=np.dtype(tensor.dtype).newbyteorder("<"))
    if data.size * data.itemsize != tensor.size_bytes:
        raise ModelError(f"Tensor '{tensor.name}' has shape {list(tensor.shape)}, and its data {list(data.shape)}.")
    buffers.append(_Buffer(data.tobytes(), fb))
    return len(buffers) - 1


def _tensor(tensor: Tensor, buffer: int, fb: Any) -> Any:
    return fb.TensorT(
        shape=list(tensor.shape),
        type=getattr(fb.TensorType, _TYPES[tensor.dtype]),
        buffer=buffer,
        name=tensor.name,
        quantization=_quantization(tensor, fb),
        hasRank=True,
    )


def _quantization(tensor: Tensor, fb: Any) -> Any:
    """Scale and zero point of a tensor, or of each slice along its channel axis."""
    if tensor.grid is None:
        return None
    scale = np.atleast_1d(tensor.grid.scale).astype(np.float32)
    zero = np.broadcast_to(np.atleast_1d(tensor.grid.zero_point), scale.shape).astype(np.int64)
    axis = 0 if tensor.grid.axis is None else tensor.grid.axis % max(len(tensor.shape), 1)
    if scale.ndim != 1 or (scale.size > 1 and scale.size != tensor.shape[axis]):
        raise ModelError(f"Tensor '{tensor.name}' of shape {list(tensor.shape)} has scales of shape {list(scale.shape)}.")
    return fb.QuantizationParametersT(scale=scale, zeroPoint=zero, quantizedDimension=axis)


def _code(operation: Operation, program: Program) -> tuple[str, int]:
    return operation.kind.value, version(operation, program)


def _codes(program: Program) -> dict[tuple[str, int], int]:
    """Operator and version -> its number in the file, in the order in which they are first used."""
    found: dict[tuple[str, int], int] = {}
    for operation in program.operations:
        found.setdefault(_code(operation, program), len(found))
    return found


def _operator_code(kind: str, number: int, fb: Any) -> Any:
    code = getattr(fb.BuiltinOperator, kind)
    return fb.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=number)


def _operator(operation: Operation, code: int, numbers: Mapping[str, int], fb: Any) -> Any:
    kind, table = options.table(operation, fb)
    return fb.OperatorT(
        opcodeIndex=code,
        inputs=[numbers[name] if name else -1 for name in operation.inputs],
        outputs=[numbers[name] for name in operation.outputs],
        builtinOptionsType=kind,
        builtinOptions=table,
    )


def _signature(program: Program, numbers: Mapping[str, int], fb: Any) -> Any:
    """The source model's names for what goes in and comes out."""

    def maps(ports: tuple[Port, ...]) -> list[Any]:
        return [fb.TensorMapT(name=port.name, tensorIndex=numbers[port.tensor]) for port in ports]

    return fb.SignatureDefT(inputs=maps(program.inputs), outputs=maps(program.outputs), signatureKey=SIGNATURE, subgraphIndex=0)
