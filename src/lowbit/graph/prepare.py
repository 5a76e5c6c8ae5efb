"""Bring a model into the form every writer expects, without changing what it computes.

Initializers that old exporters list as inputs become constants, the operator set is raised to
one with per-channel QuantizeLinear, constants are folded and batch norms merged into the
convolution before them (onnxruntime's basic, hardware-independent optimizations; graph/fold.py does
what they leave), shapes are inferred, products that read one tensor are merged, GELUs are written in the
order that runtimes fuse, and every node gets a name of its own that recipes can refer to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import ModelError
from lowbit.graph import ir_files
from lowbit.graph.fold import fold_batch_norms
from lowbit.graph.merge import merge_products
from lowbit.graph.spelling import halve_gelu_last
from lowbit.quiet import no_telemetry
from lowbit.types import Model

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13
"""First operator set whose QuantizeLinear and DequantizeLinear take an axis (ONNX operator documentation)."""


def prepare(model: Model, out: Path) -> Path:
    """Writes the prepared form of `model` to `out` and returns `out`.

    Raises:
        ModelError: the operator set cannot be raised, or no runtime has one of the operators.
    """
    import onnx

    proto = onnx.load_model(model.path)
    _drop_initializer_inputs(proto)
    if model.opset < MIN_OPSET:
        proto = _raise_opset(proto, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    raised = out.with_suffix(".raised.onnx")
    onnx.save_model(proto, raised)
    try:
        _fold(raised, out, model.path.name)
    finally:
        raised.unlink(missing_ok=True)
    folded = onnx.load_model(out)
    _name_nodes(folded)
    onnx.save_model(onnx.shape_inference.infer_shapes(folded), out)
    merged = ir_files.read(out)
    if fold_batch_norms(merged) + merge_products(merged) + halve_gelu_last(merged):
        ir_files.write(merged, out)
    return out


def _drop_initializer_inputs(proto: onnx.ModelProto) -> None:
    initializers = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in initializers]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.ir_version = max(proto.ir_version, 7)  # from 4 on, initializers need not be inputs


def _raise_opset(proto: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(proto, MIN_OPSET)
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise ModelError(
            f"'{model.path.name}' uses operator set {model.opset} and cannot be raised to {MIN_OPSET}: {error}",
            f"Export it again with opset_version={MIN_OPSET} or later.",
        ) from error


def _fold(source: Path, out: Path, name: str) -> None:
    no_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception classes share no base below Exception
        raise ModelError(
            f"onnxruntime cannot load '{name}': {error}", "Its operators must exist in onnxruntime: the baseline runs there."
        ) from error


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Names are made up where there are none and where two nodes have the same."""
    taken = {node.name for node in proto.graph.node}
    seen = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
        seen.add(node.name)
