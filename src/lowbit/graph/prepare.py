"""Bring a model into the form every writer expects, without changing what it computes.

Initializers that old exporters list as inputs become constants, the operator set is raised to
one with per-channel QuantizeLinear, constants are folded and batch norms merged into the
convolution before them (onnxruntime's basic, hardware-independent optimizations; graph/fold.py does
what they leave), shapes are inferred, products that read one tensor are merged, GELUs are written in the
order that runtimes fuse, and every node gets a name of its own that recipes can refer to.
"""

from __future__ import annotations

import tempfile
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
    """Writes the prepared form of `model` to `out` and returns `out`; weights of a large model lie beside it, in `NAME.data`.

    Whatever reads it then reads only the weights that it needs, and onnxruntime maps them.

    Raises:
        ModelError: the operator set cannot be raised, or no runtime has one of the operators.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        raised, folded, named = (Path(folder) / f"{step}.onnx" for step in ("raised", "folded", "named"))
        large = model.size_bytes >= ir_files.LARGE
        _raise(model, raised, large)
        _fold(raised, folded, model.path.name)
        _name(folded, named)
        merged = ir_files.read(named)
        changed = fold_batch_norms(merged) + merge_products(merged) + halve_gelu_last(merged)
        if large:
            ir_files.write_apart(merged, out)
        elif changed:
            ir_files.write(merged, out)
        else:
            named.replace(out)
    return out


def _raise(model: Model, out: Path, large: bool) -> None:
    """Writes a model whose initializers are constants, in an operator set that will do; large weights go into a file of their own.

    From here on, only what needs them reads them: a model in memory for every step would be there many times.
    """
    import onnx

    proto = onnx.load_model(model.path)
    _drop_initializer_inputs(proto)
    if model.opset < MIN_OPSET:
        proto = _raise_opset(proto, model)
    onnx.save_model(proto, out, save_as_external_data=large, location=f"{out.name}.data", size_threshold=ir_files.INLINE)


def _name(source: Path, out: Path) -> None:
    """Gives nodes names, and tensors shapes."""
    import onnx

    proto = onnx.load_model(source, load_external_data=False)
    _name_nodes(proto)
    onnx.save_model(onnx.shape_inference.infer_shapes(proto), out)


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
