"""The baseline first: FP32 on onnxruntime, on every validation sample, before anything is quantized."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from lowbit.errors import DataError
from lowbit.graph.load import external_files
from lowbit.measure.compare import compare
from lowbit.measure.metrics import Metric, metric_for
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.evaluate import Reference, call_batch, evaluate, run_padded
from lowbit.pipeline.store import copy_whole
from lowbit.runtimes import registry
from lowbit.runtimes.base import Session
from lowbit.types import Candidate, Comparison, Tuning

PARTS = ("search", "confirm")
REQUESTS = 20
"""Requests that are timed to see whether inference is the bottleneck."""


def run_baseline(context: Context) -> Candidate:
    """Keeps the source in the bundle, runs it over both validation parts and remembers outputs and outcomes.

    Raises:
        RunError: onnxruntime cannot run the model on this data.
        DataError: FP32 itself gives NaN or the same answer whatever the input.
    """
    artifact = keep_source(context)
    session = registry.get("onnxruntime").open(artifact, Tuning(), None)
    comparisons: dict[str, Comparison] = {}
    try:
        context.metric = settled_metric(context, session)
        for part in PARTS:
            data = context.part(part)
            context.reporter.stage(f"FP32 baseline, {len(data):,} samples to {part}", len(data))
            reference = Reference(context.store.work / "reference" / part, len(data))
            outcomes = evaluate(session, data, context.metric, record=reference, progress=context.reporter.advance)
            outcomes.save(context.store.out / "baseline" / f"outcomes-{part}.npz")
            context.references[part], context.outcomes[part] = reference, outcomes
            # Against itself: value, slices and confidences in the same form as every candidate's.
            comparisons[part] = compare(context.metric, outcomes, outcomes, context.policy, slices=context.slices(part))
            if broken := comparisons[part].broken:
                raise DataError(f"The FP32 model itself is broken on this data: {broken}.", "Check the preprocessing and the model.")
    finally:
        session.close()
    return Candidate(
        id=BASELINE,
        recipe="fp32",
        runtime="onnxruntime",
        precision="fp32",
        size_bytes=context.model.size_bytes,
        search=comparisons["search"],
        confirm=comparisons["confirm"],
        artifact=str(artifact.relative_to(context.store.out)),
    )


def settled_metric(context: Context, session: Session) -> Metric:
    """The metric, now that one batch of real outputs tells logits from probabilities."""
    size = call_batch(session.inputs)
    first = next(iter(context.split.search.batches(size)))
    sample = run_padded(session, first.feeds, size)
    asked = context.policy
    data = context.split.search
    return metric_for(asked.task, asked.metric, session.outputs, data.labels, sample, data.preprocess)[1]


def request_times(context: Context) -> tuple[float, float]:
    """Milliseconds of one inference at batch 1 (median), and of one whole request: reading, preprocessing and inference.

    Reading is timed by itself: a data set reads ahead, which would hide it behind the inference.
    """
    session = registry.get("onnxruntime").open(context.store.out / "baseline" / "model.onnx", Tuning(), None)
    size = call_batch(session.inputs, 1)
    some = context.split.search.subset(np.arange(min(len(context.split.search), REQUESTS * size)))
    started = time.perf_counter()
    batches = list(some.batches(size))
    reading = (time.perf_counter() - started) / len(batches)
    inference = []
    try:
        for batch in batches:
            started = time.perf_counter()
            run_padded(session, batch.feeds, size)
            inference.append(time.perf_counter() - started)
    finally:
        session.close()
    one = float(np.median(inference))
    return one * 1000, (reading + one) * 1000


def keep_source(context: Context) -> Path:
    """Copies the source and its external data to `baseline/`, once; returns the .onnx file there."""
    artifact = context.store.out / "baseline" / "model.onnx"
    if not artifact.exists():
        for file in external_files(context.model.path):
            copy_whole(file, artifact.parent / file.relative_to(context.model.path.parent))
        copy_whole(context.model.path, artifact)
    return artifact
