"""Sensitivity of a model as its recipe leaves it: channels equalized, rounding fitted.

What hurts before the transforms is not what hurts after them: a depthwise layer whose channels shared one grid may cost everything, and
once they are equalized next to nothing. So every group is tried in the scaled model, and its damage is scaled by what fitting took off
its own error, on rows that it was not fitted to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.damage import Kind
from lowbit.compress.evidence import Evidence
from lowbit.compress.fit import Way
from lowbit.compress.sensitivity import Key, Sensitivity, sensitivity
from lowbit.compress.static import write_scaled, write_static
from lowbit.graph.place import Format
from lowbit.graph.profiles import Profile
from lowbit.recipe import Recipe
from lowbit.types import Feeds


def transformed_sensitivity(
    evidence: Evidence, recipe: Recipe, target: Profile, form: str, batches: Sequence[Feeds], *, kind: Kind, threads: int = 0
) -> tuple[Sensitivity, CalibrationStats]:
    """What each product suffers alone in the format of a static recipe, after its transforms.

    Args:
        evidence: Of the prepared model.
        recipe: All its products have one format; those that it names are ignored.
        target: Where the artifact will run.
        form: Name of the recipe's format, e.g. "w8a8".
        batches: The calibration samples.
        kind: What the model's outputs are.
        threads: For the runtime; 0 means all cores.

    Returns:
        The sensitivity, and range statistics of the scaled model.

    Raises:
        DataError, ModelError: see `sensitivity`.
    """
    assert recipe.activations is not None, f"{recipe.name} is not a static recipe"
    assert recipe.ranges is not None, f"{recipe.name} names no range method"
    formats = {form: Format(recipe.weights, recipe.activations)}
    ranges, recipe = recipe.ranges, replace(recipe, formats={})
    with tempfile.TemporaryDirectory() as folder:
        scaled = write_scaled(evidence, Path(folder) / "scaled.onnx", recipe, target)
        stats = evidence.stats_of(scaled)
        found = sensitivity(scaled, target, formats, stats, batches, kind=kind, ranges=ranges, threads=threads)
        ways = write_static(evidence, Path(folder) / "fitted.onnx", recipe, target).ways if "fit" in recipe.transforms else {}
    return replace(found, damage=after_fitting(found.damage, ways)), stats


def after_fitting(damage: Mapping[Key, float], ways: Mapping[str, Way]) -> dict[Key, float]:
    """Damages in proportion to the error that fitting has left of plain rounding's."""
    left = {name: way.error / way.plain for name, way in ways.items() if way.plain > 0}
    return {(group, form): value * left.get(group, 1.0) for (group, form), value in damage.items()}
