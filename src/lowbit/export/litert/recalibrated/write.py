"""Write a model by way of PyTorch, litert-torch and ai-edge-quantizer: their scales, not the bundle's.

https://github.com/google-ai-edge/litert-torch and https://github.com/google-ai-edge/ai-edge-quantizer; both in an environment of their own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import UsageError
from lowbit.export.base import Artifact, Setting
from lowbit.export.litert import metadata
from lowbit.export.litert.recalibrated import census, program, telling
from lowbit.export.litert.recalibrated.ends import End, Ends, dressed
from lowbit.export.litert.recalibrated.environment import convert, environment, missing
from lowbit.export.litert.recalibrated.recipes import NAMES, Recipe, convolutions, recipe_of
from lowbit.export.litert.recalibrated.session import narrow
from lowbit.export.litert.writer import schema
from lowbit.export.named_session import write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Port, Program, Tensor


@dataclass(frozen=True)
class Recalibrated:
    """An artifact's state that tells it from one of our own."""


def write(source: Neutral, folder: Path, settings: Mapping[str, Setting], name: str, why: str = "") -> Artifact:
    """Writes the file, and what helps to feed it.

    Args:
        source: Its `samples` calibrate a static recipe.
        folder: Where.
        settings: The target's.
        name: Of the file.
        why: The table's own way was not taken: for the notes.

    Raises:
        UsageError: the converter is not installed, or a setting that does not fit.
        ModelError: an operator that the torch twin or the converter lacks, or an open axis of no known size.
    """
    if environment() is None:
        raise UsageError("litert-torch, which recalibrates, is not installed, or torch is not.", missing())
    recipe = recipe_of(str(settings["recipe"]), samples=bool(source.samples), convolutions=convolutions(source))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place).resolve()
        written = program.write(source, work, int(settings["length"]))
        content, told = _converted(source, written, work, recipe, settings)
    ends = Ends(source.name, recipe, *_sized(written, content))
    content = _finished(content, ends, source)
    (folder / name).write_bytes(content)
    made = telling.Made(
        ends=ends,
        recipe=recipe,
        samples=_count(source, ends.inputs[0].shape[0]) if recipe == "static" else 0,
        versions=told["versions"],
        float_bytes=int(told["float_bytes"]),
        census=census.of(content, schema()),
        why=why,
        real=bool(settings["float_input"] and settings["float_output"]),
    )
    facts = telling.facts(made) | {"file_bytes": len(content)}
    files = (folder / name, *write_beside(source, folder))
    return Artifact(files[0], files, facts, telling.notes(made), Recalibrated(), words=telling.WORDS)


def _converted(
    source: Neutral, written: program.Written, work: Path, recipe: Recipe, settings: Mapping[str, Setting]
) -> tuple[bytes, dict[str, Any]]:
    """The file as the converter's environment makes it, and what that says of it."""
    out, samples = work / "model.tflite", work / "samples.npz"
    if recipe == "static":
        rows = {f"args_{k}": program.laid(source.samples[end.name], end, narrow(end.dtype)) for k, end in enumerate(written.inputs)}
        np.savez(samples, **rows)  # type: ignore[arg-type]
    job = {
        "program": str(written.file),
        "images": [k for k, end in enumerate(written.inputs) if end.permutation],
        "image_outputs": [k for k, end in enumerate(written.outputs) if end.permutation],
        "recipe": NAMES[recipe],
        "samples": str(samples) if recipe == "static" else None,
        "size": written.inputs[0].shape[0],
        "float_input": settings["float_input"],
        "float_output": settings["float_output"],
        "out": str(out),
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    convert(work / "job.json")
    return out.read_bytes(), json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def _sized(written: program.Written, content: bytes) -> tuple[tuple[End, ...], tuple[End, ...]]:
    """The ends, with outputs' sizes that only the converter knows."""
    model = schema().Model.GetRootAs(content, 0)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    entries = sorted((signature.Outputs(k) for k in range(signature.OutputsLength())), key=lambda each: int(each.Name().split(b"_")[-1]))
    found = []
    for end, entry in zip(written.outputs, entries, strict=True):
        lying = tuple(graph.Tensors(entry.TensorIndex()).ShapeAsNumpy().tolist())
        shape = lying if end.permutation is None else tuple(lying[place] for place in np.argsort(end.permutation).tolist())
        found.append(replace(end, shape=shape))
    return written.inputs, tuple(found)


def _finished(content: bytes, ends: Ends, source: Neutral) -> bytes:
    """With the source's names, and what readers of TensorFlow Lite's metadata look for."""
    tensors = {end.name: Tensor(end.name, end.lying, "float32") for end in (*ends.inputs, *ends.outputs)}
    inputs, outputs = (tuple(Port(end.name, end.shape, end.name, end.permutation) for end in part) for part in (ends.inputs, ends.outputs))
    described = metadata.describe(Program(ends.name, tensors, (), inputs, outputs), source.preprocess, source.labels, outputs)
    labels = {metadata.LABELS: metadata.labels_file(source.labels)} if source.labels else {}
    return metadata.attach(dressed(content, ends, {metadata.NAME: described}, schema()), labels)


def _count(source: Neutral, rows: int) -> int:
    """Samples that fill calls of so many."""
    return len(next(iter(source.samples.values()), ())) // rows * rows
