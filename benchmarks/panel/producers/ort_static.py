"""onnxruntime's quantize_static in QDQ form, after its own pre-processing, as its documentation says.

Options: `method` (MinMax, Percentile, Entropy), `activations` ("int8", its default, or "uint8"), `per_channel`,
`fitting` (attention models: matrix products alone, because every operator destroys them).
Its percentile and entropy calibrators keep every activation of every sample, so they get as many samples as fit
into MEMORY; the notes say how many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from panel.job import Feeds, Job, Notes

PRELOAD = ("onnx", "onnxruntime.quantization", "onnxruntime.quantization.shape_inference")
MEMORY = 4 * 2**30
"""Bytes of activations that calibration may keep."""


def produce(job: Job) -> Notes:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared, notes = prepare(job)
    limit, method = job.n, str(job.options["method"])
    if method != "MinMax":
        kept = activation_bytes(prepared, next(job.batches(1)))
        limit = max(1, min(job.n, MEMORY // kept))
        notes |= {"activations_mb_per_sample": round(kept / 2**20, 2)}
    fitting = bool(job.options.get("fitting")) and job.transformer
    quantize_static(
        str(prepared),
        str(job.artifact),
        _Reader(job, limit),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"] if fitting else None,
        per_channel=bool(job.options.get("per_channel", False)),
        activation_type=QuantType.QUInt8 if job.options.get("activations") == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    prepared.unlink()
    return notes | {"samples": limit, "matrix_products_only": fitting}


def prepare(job: Job) -> tuple[Path, Notes]:
    """Its pre-processing; where symbolic shape inference fails without it, as its own message advises. Opset 13 first."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared = raise_opset(job.model, job.out), job.out / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(prepared))
        return prepared, {}
    except Exception as error:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        return prepared, {"pre_processing": f"without symbolic shapes: {type(error).__name__}: {str(error)[:200]}"}


def raise_opset(model: Path, out: Path) -> Path:
    """The model at opset 13 at least, the first with scales per channel, without initializers among its inputs."""
    import onnx
    from onnx import version_converter

    proto = onnx.load(model)
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= 13:
        return model
    weights = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.ir_version = max(proto.ir_version, 7)
    path = out / "opset13.onnx"
    onnx.save(version_converter.convert_version(proto, 13), path)
    return path


def activation_bytes(model: Path, feeds: Feeds) -> int:
    """Bytes of all float tensors that one sample makes: those that a histogram calibrator keeps."""
    import onnx
    import onnxruntime

    proto = onnx.load(model)
    known = {value.name for value in proto.graph.output}
    made = {name for node in proto.graph.node if node.op_type != "Constant" for name in node.output}
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info
    floats = {value.name for value in inferred if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    for name in sorted(floats & made - known):
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return sum(np.asarray(value).nbytes for value in session.run(None, feeds))


class _Reader:
    """onnxruntime asks for one feed after the other. All batches are alike: the histogram calibrators fail on a shorter last one."""

    def __init__(self, job: Job, limit: int) -> None:
        even = next(size for size in range(min(job.batch, limit), 0, -1) if limit % size == 0)
        self._feeds = job.batches(even, limit)

    def get_next(self) -> Any:
        return next(self._feeds, None)
