"""onnxruntime's quantize_dynamic after its pre-processing. Needs no samples.

Option: `per_channel` (its default is no).
"""

from __future__ import annotations

from panel.job import Job, Notes
from panel.producers.ort_static import PRELOAD, prepare

__all__ = ["PRELOAD", "produce"]


def produce(job: Job) -> Notes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, notes = prepare(job)
    # Its default for weights is signed; convolutions with signed weights have no kernel (ConvInteger), so it is told unsigned.
    unsigned = any(node.op_type == "Conv" for node in _nodes(prepared))
    quantize_dynamic(
        str(prepared),
        str(job.artifact),
        weight_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        per_channel=bool(job.options.get("per_channel", False)),
    )
    prepared.unlink()
    return notes | {"weights": "uint8" if unsigned else "int8"}


def _nodes(path: object) -> list[object]:
    import onnx

    return list(onnx.load(str(path), load_external_data=False).graph.node)
