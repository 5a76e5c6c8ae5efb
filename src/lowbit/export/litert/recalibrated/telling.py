"""What people are told of a recalibrated file: numbers, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.export.base import Setting
from lowbit.export.litert.recalibrated.census import Census
from lowbit.export.litert.recalibrated.ends import WAY, Ends
from lowbit.export.litert.recalibrated.recipes import NAMES, Recipe
from lowbit.export.litert.recalibrated.session import narrow

WORDS = "recalibrated: scales are ai-edge-quantizer's own, not the bundle's; run on this CPU, on LiteRT's own kernels"


@dataclass(frozen=True)
class Made:
    """How a file came about.

    Attributes:
        ends: What goes in and comes out.
        recipe: By which it was quantized.
        samples: How many calibrated it.
        versions: Of the converter and the quantizer.
        float_bytes: Size before it was quantized.
        census: Of its operators.
        why: The table's own way was not taken; "" where nobody tried.
        real: Whether inputs and outputs are real numbers, as wished.
    """

    ends: Ends
    recipe: Recipe
    samples: int
    versions: Mapping[str, str]
    float_bytes: int
    census: Census
    why: str
    real: bool


def facts(made: Made) -> dict[str, Setting]:
    """Numbers of a file."""
    found: dict[str, Setting] = {"way": WAY, "recipe": NAMES[made.recipe], "operations": made.census.operations}
    found |= {"float_operations": sum(made.census.real.values()), "hybrid_operations": sum(made.census.hybrid.values())}
    found |= {"calibration_samples": made.samples, "float_file_bytes": made.float_bytes}
    lengths = {end.shape[axis] for end in made.ends.inputs for axis in end.open}
    found |= {"length": lengths.pop()} if len(lengths) == 1 else {}
    return found | {name.replace("-", "_"): version for name, version in made.versions.items()}


def notes(made: Made) -> tuple[str, ...]:
    """What people should know, the most important first."""
    by = " and ".join(f"{name} {version}" for name, version in made.versions.items())
    found = [
        f"Recalibrated: {by} made this file from the graph in floating point with the candidate's weights. Scales, zero points and "
        "integers in it are theirs, not the bundle's, and there is no exact reference for it."
    ]
    if made.why:
        found.append(f"The bundle's own table was not written: {made.why}")
    found.append(_of_recipe(made))
    if opened := [end for end in made.ends.inputs if end.open]:
        sizes = ", ".join(f"'{end.name}' {list(end.shape)}" for end in opened)
        found.append(
            f"Sizes are fixed: {sizes}. Whoever feeds the file fills shorter samples up with zeros, as lowbit does here; the model's mask "
            "has to hide them."
        )
    if narrowed := [end.name for end in (*made.ends.inputs, *made.ends.outputs) if narrow(end.dtype) != np.dtype(end.dtype)]:
        found.append(f"32 bits in the file where the model has 64: {', '.join(narrowed)}.")
    return tuple(found)


def _of_recipe(made: Made) -> str:
    if made.recipe == "static":
        return f"Static: ranges of activations are minima and maxima over {made.samples} samples, none of which judges."
    ends = "" if made.real else " It has real numbers at both ends, whatever was wished."
    return (
        "Dynamic: weights are int8, one scale a channel; activations are real numbers, rounded at run time in front of products. Nothing "
        f"was calibrated.{ends}"
    )
