"""lowbit's own quantizer through the Python API: prepare, calibrate, and write the artifact of one recipe.

Options: `target`, whose profile places the rounding (lowbit.graph.profiles).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from panel.job import Job, Notes

PRELOAD = (
    "onnx",
    "onnxruntime",
    "onnx_ir",
    "onnx_ir.passes.common",
    "lowbit.compress.evidence",
    "lowbit.compress.quantize",
    "lowbit.pipeline.recipes",
)


def produce(job: Job) -> Notes:
    from lowbit.compress.evidence import Evidence
    from lowbit.compress.quantize import quantize
    from lowbit.graph.load import load_model, operator_counts
    from lowbit.graph.prepare import prepare
    from lowbit.pipeline.recipes import INT8_DYNAMIC, fitted, smoothed, traits

    target = str(job.options.get("target", "onnxruntime-cpu"))
    with TemporaryDirectory(dir=job.out) as folder:
        prepared = prepare(load_model(job.model), Path(folder) / "prepared.onnx")
        model = traits(operator_counts(prepared))
        static = smoothed() if model.transformer else fitted("mse")
        recipe = INT8_DYNAMIC if model.recurrent else static
        evidence = Evidence(prepared, lambda: batches(job))
        quantize(job.model, prepared, recipe, job.artifact, evidence=evidence, transformer=model.transformer, target=target)
    return {"samples": job.n, "recipe": recipe.name, "target": target}


def batches(job: Job) -> Iterator[Any]:
    """The calibration samples as lowbit takes them."""
    from lowbit.types import Batch

    start = 0
    for feeds in job.batches(job.batch):
        rows = np.arange(start, start + len(next(iter(feeds.values()))))
        start += len(rows)
        yield Batch(rows, feeds, None)
