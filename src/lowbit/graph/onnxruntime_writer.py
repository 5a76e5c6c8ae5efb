"""Write static INT8 models in QDQ form: QuantizeLinear/DequantizeLinear pairs around the operators.

The placement is onnxruntime's QDQ quantizer; the ranges are lowbit's own (compress/calibrate).
Activations are unsigned and weights signed: with signed asymmetric activations onnxruntime on
x86 misses its VNNI kernels and is slower than FP32 (docs/concepts/dialects.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lowbit.quiet import no_telemetry, no_warnings
from lowbit.recipe import Recipe

RangeOf = Callable[[str], tuple[float, float] | None]
"""Tensor name -> (low, high) in real units, or None for a tensor that was not observed."""


def write_defaults(prepared: Path, out: Path, recipe: Recipe, range_of: RangeOf) -> Path:
    """Quantizes weights and activations by `recipe` and writes a QDQ model.

    Args:
        prepared: What `graph.prepare` wrote.
        out: Where the artifact goes.
        recipe: Its `weights`, `activations`, `operators` and `exclude` are used.
        range_of: Range of every tensor, by name.

    Raises:
        ValueError: onnxruntime's quantizer met a graph it cannot write.
    """
    no_telemetry()
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    assert recipe.activations is not None, f"{recipe.name} is not a static recipe"
    model = onnx.load_model(prepared)
    ranges = {}
    for name in float_tensors(model):
        if (found := range_of(name)) is not None:
            low, high = (np.array(value, np.float32) for value in found)
            ranges[name] = TensorData(lowest=low, highest=high)
    quantizer = QDQQuantizer(
        model,
        per_channel=recipe.weights.granularity == "per-channel",
        reduce_range=False,
        weight_qType=QuantType.QInt8 if recipe.weights.dtype == "int8" else QuantType.QUInt8,
        activation_qType=QuantType.QUInt8 if recipe.activations.dtype == "uint8" else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[],
        nodes_to_exclude=[*recipe.exclude, *_without_ranges(model, ranges)],
        op_types_to_quantize=list(recipe.operators) or sorted({*QDQRegistry, *QLinearOpsRegistry}),
        extra_options={"ActivationSymmetric": recipe.activations.symmetric, "WeightSymmetric": recipe.weights.symmetric},
    )
    with no_warnings():
        quantizer.quantize_model()
    out.parent.mkdir(parents=True, exist_ok=True)
    quantizer.model.save_model_to_file(str(out), False)
    return out


def float_tensors(model: object) -> list[str]:
    """Names of all tensors of the main graph that are computed or fed, without constants."""
    graph = model.graph  # type: ignore[attr-defined]
    names = [value.name for value in graph.input]
    names += [name for node in graph.node for name in node.output if name]
    return names


def _without_ranges(model: object, ranges: dict[str, object]) -> list[str]:
    """Nodes that must stay floating point because a tensor of theirs was never seen (e.g. inside an If that did not run)."""
    graph = model.graph  # type: ignore[attr-defined]
    constants = {tensor.name for tensor in graph.initializer} | {node.output[0] for node in graph.node if node.op_type == "Constant"}
    left_out = []
    for node in graph.node:
        data = [name for name in (*node.input[:1], *node.output[:1]) if name and name not in constants]
        if any(name not in ranges for name in data):
            left_out.append(node.name)
    return left_out
