"""One sample a call, every shape known: what targets without dynamic shapes are given."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import ModelError
from lowbit.export.neutral import Neutral
from lowbit.graph import ir_files
from lowbit.quiet import no_telemetry
from lowbit.types import TensorInfo

if TYPE_CHECKING:
    import onnx_ir as ir

_SHAPES = frozenset({"Shape", "Size"})


def with_fixed_batch(source: Neutral, title: str, *, batch: int | None = 1) -> ir.Model:
    """A copy of the model whose first axes are `batch`; what was computed from its shapes becomes constants.

    Args:
        source: Not changed.
        title: Of the target, for messages.
        batch: None leaves the first axes as they are.

    Raises:
        ModelError: another axis is dynamic, or a tensor is so inside.
    """
    model = source.model.clone()
    _refuse_dynamic(source.inputs, title)
    if batch is None:
        return model
    symbols = {str(value.shape[0]) for value in model.graph.inputs if value.shape is not None and len(value.shape)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        _fix_first(value, batch)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and len(value.shape) and str(value.shape[0]) in symbols:
                _fix_first(value, batch)
            elif value.shape is not None and not value.is_graph_output() and not value.shape.is_static():
                value.shape = None  # said of any number of samples; whoever reads the file infers it
    return _folded(model) if any(node.op_type in _SHAPES for node in model.graph) else model


def _refuse_dynamic(inputs: tuple[TensorInfo, ...], title: str) -> None:
    """Names the axes that are dynamic beside the first."""
    found = [f"'{info.name}' axis {axis}" for info in inputs for axis, size in enumerate(info.shape) if axis and not isinstance(size, int)]
    if found:
        raise ModelError(
            f"{title} needs static shapes, and the model's input {', '.join(found)} has any size.",
            "Export the model with that size fixed, and optimize it again; only the number of samples may be open.",
        )


def _fix_first(value: ir.Value, batch: int) -> None:
    import onnx_ir

    if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
        value.shape = onnx_ir.Shape([batch, *list(value.shape)[1:]])


def _folded(model: ir.Model) -> ir.Model:
    """The model with what depends on shapes alone computed: onnxruntime's basic optimizations, as in graph/prepare.py."""
    no_telemetry()
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "folded.onnx"
        ir_files.write(model, path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(out), 4
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exception classes share no base below Exception
            raise ModelError(
                f"The model does not run on one sample: {error}", "Export it so that the number of samples is open."
            ) from error
        found = ir_files.read(out)
        import onnx_ir

        onnx_ir.external_data.load_to_model(found)
        return found
