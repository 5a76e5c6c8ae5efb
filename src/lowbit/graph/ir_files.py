"""Read and write ONNX files as onnx-ir models: the one place where protobuf meets the graph code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_FILE = 1 << 30
"""Weights beyond this many bytes go into a file beside the model: protobuf stops at 2 GiB."""

LARGE = 1 << 24
"""Bytes from which on a model's weights are put into a file of their own for as long as it is worked on."""

INLINE = 1 << 14
"""Bytes of a weight up to which it stays in the model even then: shape inference looks at small ones."""

_IR_VERSIONS = {19: 9, 21: 10, 23: 11, 24: 12}
"""First operator set -> the file format that came with it (https://github.com/onnx/onnx/blob/main/docs/Versioning.md)."""


def read(path: Path) -> ir.Model:
    """Opens a model; external weights stay on disk until they are asked for. Constant nodes become initializers."""
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    model = onnx_ir.load(path)
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    return model


def write(model: ir.Model, path: Path) -> None:
    """Writes a model as one file, or with its weights in `NAME.data` beside it where they are too large for that."""
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None]
    apart = sum(tensor.nbytes for tensor in tensors) > LARGEST_FILE
    if not apart:
        onnx_ir.external_data.load_to_model(model)
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if apart else None)


def write_apart(model: ir.Model, path: Path) -> None:
    """Writes a model with its large weights in a file beside it, and lets go of them: from then on the model reads them there."""
    import onnx_ir

    light = onnx_ir.external_data.unload_from_model(model, path.parent, f"{path.name}.data", size_threshold_bytes=INLINE)
    onnx_ir.save(light, path)


def raise_opset(model: ir.Model, least: int) -> None:
    """Raises the operator set of a model to `least`, in place: nodes and values that it has keep their names. Nothing is lowered.

    Raises:
        ModelError: onnx's converter cannot raise it.
    """
    import onnx_ir
    from onnx import version_converter

    found = model.graph.opset_imports.get("", 1)
    if found >= least:
        return
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):  # the converter does not know where its file is
                value.const_value = onnx_ir.tensor(value.const_value.numpy(), name=value.name)
    try:
        raised = onnx_ir.from_proto(version_converter.convert_version(onnx_ir.to_proto(model), least))
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise ModelError(
            f"The model uses operator set {found} and cannot be raised to {least}: {error}", f"Export it with opset_version={least}."
        ) from error
    model.graph = raised.graph
    model.ir_version = max(model.ir_version, _ir_version(least))


def _ir_version(opset: int) -> int:
    return max((version for first, version in _IR_VERSIONS.items() if opset >= first), default=8)
