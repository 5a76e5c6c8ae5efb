"""Write dynamic INT8 models: weights quantized ahead of time, activations at run time."""

from __future__ import annotations

from pathlib import Path

from lowbit.quiet import no_telemetry, no_warnings
from lowbit.recipe import Recipe

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention")
"""Convolutions are left out: onnxruntime's ConvInteger is slower than its FP32 convolution."""


def write_dynamic(prepared: Path, out: Path, recipe: Recipe) -> Path:
    """Quantizes the weights of matrix products and recurrent layers by `recipe`.

    Raises:
        ValueError: onnxruntime's quantizer met a graph it cannot write.
    """
    no_telemetry()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.parent.mkdir(parents=True, exist_ok=True)
    with no_warnings():  # its advice to run a pre-processing step that has already been done
        quantize_dynamic(
            onnx.load_model(prepared),
            str(out),
            op_types_to_quantize=list(recipe.operators or OPERATORS),
            per_channel=recipe.weights.granularity == "per-channel",
            weight_type=QuantType.QInt8 if recipe.weights.dtype == "int8" else QuantType.QUInt8,
            nodes_to_exclude=list(recipe.exclude),
        )
    return out
