"""From a program to a saved .mlpackage: Apple's own passes, compression, and what people read in Xcode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError
from lowbit.export.coreml.build import Built
from lowbit.export.coreml.words import library
from lowbit.export.neutral import Neutral
from lowbit.quiet import no_output

LICENCE = "licence of the source model"
"""Nothing is known of it; whoever ships the package says it."""


def convert(built: Built, precision: str) -> Any:
    """Runs coremltools' passes and makes a model of the program.

    Args:
        built: The program.
        precision: Of what is floating point: "float16", which the Neural Engine computes in, or "float32".

    Raises:
        ModelError: coremltools refuses the program.
    """
    coremltools = library()
    kinds = {"float16": coremltools.precision.FLOAT16, "float32": coremltools.precision.FLOAT32}
    try:
        with no_output():
            return coremltools.convert(
                built.program,
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS17,
                compute_precision=kinds[precision],
                skip_model_load=True,
            )
    except Exception as error:  # coremltools raises a dozen kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"coremltools cannot convert the model: {said}", "Export another candidate, or for another target.") from error


def palettized(model: Any) -> Any:
    """The same model with weights of 16 values a tensor (k-means), activations in floating point."""
    import coremltools.optimize.coreml as compression

    config = compression.OptimizationConfig(compression.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=512))
    with no_output():
        return compression.palettize_weights(model, config)


def save(model: Any, source: Neutral, path: Path, words: str, names: dict[str, str]) -> None:
    """Writes the package with its metadata.

    Args:
        model: coremltools' own.
        source: What it was made from.
        path: Of the folder, NAME.mlpackage.
        words: What it is, in a sentence.
        names: Input or output of the source -> of the package.
    """
    model.short_description = words
    model.author = "written by lowbit"
    model.license = LICENCE
    model.version = source.candidate
    steps = source.preprocess
    prepared = "as model-ready numbers" if steps is None else "prepared: " + " ".join(steps.to_yaml().split("\n")).strip()
    for info in source.inputs:
        model.input_description[names[info.name]] = f"One sample {list(info.shape)[1:]}, {prepared}"
    for info in source.outputs:
        model.output_description[names[info.name]] = f"Answer {list(info.shape)[1:]} for one sample"
    model.user_defined_metadata["lowbit.candidate"] = source.candidate
    if steps is not None:
        model.user_defined_metadata["lowbit.preprocess"] = steps.to_yaml()
    if source.labels:
        model.user_defined_metadata["lowbit.labels"] = json.dumps(list(source.labels), ensure_ascii=False)
    with no_output():
        model.save(str(path))
