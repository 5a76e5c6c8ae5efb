"""The baseline: the source model itself, and what one plain pass over the calibration samples costs."""

from __future__ import annotations

import shutil

from panel.job import Job, Notes

PRELOAD = ("onnxruntime",)


def produce(job: Job) -> Notes:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(job.model), providers=["CPUExecutionProvider"])
    for feeds in job.batches(job.batch):
        session.run(None, feeds)
    shutil.copyfile(job.model, job.artifact)
    return {"samples": job.n}
