"""A file's ends, kept in the file: names and layouts of what goes in and comes out, for which the format itself has no place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.export.program.program import Dtype, Kind, Operation, Port, Program, Tensor
from lowbit.quant.affine import Affine

NAME = "lowbit"
"""Of the metadata buffer."""


def of(program: Program) -> bytes:
    """What the format cannot say: shapes and axes of the model that a program comes from.

    Returns:
        JSON, for a metadata buffer named `NAME`.
    """
    said = {"name": program.name, "inputs": [_said(port) for port in program.inputs], "outputs": [_said(port) for port in program.outputs]}
    return json.dumps(said, separators=(",", ":")).encode()


def read(content: bytes, schema: Any) -> Program:
    """The ends of a file: a program of its ports and of the steps that make its outputs real; enough to feed it and to read its answers.

    Args:
        content: Of a .tflite file that lowbit wrote.
        schema: The classes of the flatbuffer.

    Raises:
        RunError: somebody else wrote it.
    """
    model = schema.Model.GetRootAs(content, 0)
    told = said(model)
    if told is None or "way" in told:
        raise RunError(
            "This .tflite file was not written by lowbit: the layout of what it takes is not known.", "Write it with `lowbit export`."
        )
    graph = model.Subgraphs(0)
    number = {graph.Tensors(k).Name().decode(): k for k in range(graph.TensorsLength())}
    inputs, outputs = (tuple(_port(entry) for entry in told[key]) for key in ("inputs", "outputs"))
    last = [graph.Operators(k) for k in range(graph.OperatorsLength())]
    ends = {number[port.tensor] for port in outputs}
    real = schema.BuiltinOperator.DEQUANTIZE
    steps = [op for op in last if model.OperatorCodes(op.OpcodeIndex()).BuiltinCode() == real and op.Outputs(0) in ends]
    wanted = {number[port.tensor] for port in (*inputs, *outputs)} | {op.Inputs(0) for op in steps}
    tensors = {tensor.name: tensor for tensor in (_tensor(graph.Tensors(k), schema) for k in sorted(wanted))}
    names = {k: name for name, k in number.items()}
    operations = tuple(Operation(Kind.DEQUANTIZE, (names[op.Inputs(0)],), (names[op.Outputs(0)],)) for op in steps)
    return Program(told["name"], tensors, operations, inputs, outputs)


def said(model: Any) -> dict[str, Any] | None:
    """What lowbit keeps in a file (the flatbuffer's Model); None in a file of somebody else's."""
    found: dict[str, Any] | None = json.loads(_buffer(model) or "null")
    return found


def _said(port: Port) -> dict[str, object]:
    return {"name": port.name, "shape": port.shape, "tensor": port.tensor, "permutation": port.permutation}


def _port(entry: dict[str, Any]) -> Port:
    permutation = entry["permutation"]
    return Port(entry["name"], tuple(entry["shape"]), entry["tensor"], None if permutation is None else tuple(permutation))


def _buffer(model: Any) -> bytes | None:
    for k in range(model.MetadataLength()):
        entry = model.Metadata(k)
        if entry.Name() == NAME.encode():
            found: bytes = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            return found
    return None


def _tensor(tensor: Any, schema: Any) -> Tensor:
    types: dict[int, Dtype] = {schema.TensorType.INT8: "int8", schema.TensorType.FLOAT32: "float32"}
    return Tensor(tensor.Name().decode(), tuple(tensor.ShapeAsNumpy().tolist()), types[tensor.Type()], grid(tensor.Quantization()))


def grid(quantization: Any) -> Affine | None:
    """The grid of a whole tensor (the flatbuffer's QuantizationParameters); None where it has none."""
    if quantization is None or not quantization.ScaleLength():
        return None
    return Affine(np.array(quantization.Scale(0), np.float32), np.array(quantization.ZeroPoint(0), np.int32), "int8", symmetric=False)
