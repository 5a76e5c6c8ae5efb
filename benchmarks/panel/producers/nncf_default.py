"""nncf.quantize with its defaults on the ONNX model; attention models with model_type=TRANSFORMER, as its documents say."""

from __future__ import annotations

from typing import Any

import numpy as np

from panel.job import Job, Notes
from panel.producers.ort_static import raise_opset

PRELOAD = ("onnx", "nncf", "nncf.onnx.quantization.quantize_model")


def produce(job: Job) -> Notes:
    import nncf
    import onnx

    model = onnx.load(raise_opset(job.model, job.out))
    quantized = nncf.quantize(model, nncf.Dataset(items(job)), subset_size=job.n, **settings(job))
    onnx.save(quantized, job.artifact)
    return {"samples": job.n}


def items(job: Job) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Single samples, which is what NNCF advises; rows of a table in batches, as it averages the items' minima and maxima."""
    return list(job.batches(job.batch if job.task == "numbers" else 1))


def settings(job: Job) -> dict[str, Any]:
    import nncf

    return {"model_type": nncf.ModelType.TRANSFORMER} if job.transformer else {}
