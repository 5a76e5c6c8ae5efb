"""The baseline first: FP32 on onnxruntime, on every validation sample, before anything is quantized."""

from __future__ import annotations

from pathlib import Path

from lowbit.errors import DataError
from lowbit.graph.load import external_files
from lowbit.measure.compare import compare
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.evaluate import Reference, evaluate
from lowbit.pipeline.store import copy_whole
from lowbit.runtimes import registry
from lowbit.types import Candidate, Comparison, Tuning

PARTS = ("search", "confirm")


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


def keep_source(context: Context) -> Path:
    """Copies the source and its external data to `baseline/`, once; returns the .onnx file there."""
    artifact = context.store.out / "baseline" / "model.onnx"
    if not artifact.exists():
        for file in external_files(context.model.path):
            copy_whole(file, artifact.parent / file.name)
        copy_whole(context.model.path, artifact)
    return artifact
