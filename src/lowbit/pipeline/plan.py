"""Which candidates to try, in which order: recipes times runtimes times arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from lowbit.pipeline.context import BASELINE
from lowbit.pipeline.recipes import PROGRAM_METHODS
from lowbit.recipe import Recipe
from lowbit.types import Tuning

TUNED_SOURCE = "fp32-tuned@onnxruntime"
"""The source on the baseline's runtime, tuned like every candidate: better threads must not be sold as quantization."""


@dataclass(frozen=True)
class Plan:
    """One candidate before anything is known about it.

    Attributes:
        id: Of the candidate that it becomes.
        recipe: How its artifact is made.
        runtime: Where it runs.
        tuning: What it is first tried with.
        precision: What a table calls it.
    """

    id: str
    recipe: Recipe
    runtime: str
    tuning: Tuning
    precision: str


def plan(recipes: Sequence[Recipe], tunings: Mapping[str, Sequence[Tuning]], programs: Container[str] = ()) -> list[Plan]:
    """All candidates in the order of trying: recipe by recipe, every runtime before the next recipe.

    Args:
        recipes: In the order in which they should be tried.
        tunings: Runtime name -> tunings that it offers here, its default first.
        programs: Names of the runtimes that open programs; the others open ONNX files.
    """
    plans = []
    for recipe in recipes:
        for runtime, offered in tunings.items():
            for precision in sorted({tuning.precision for tuning in offered}, key=lambda value: value != "f32"):
                if not _worth(recipe, precision) or not _made_for(recipe, runtime in programs):
                    continue
                tuning = _first(offered, precision)
                suffix = "" if precision == "f32" or recipe.name == "fp32" else f"+{precision}"
                name = precision if recipe.name == "fp32" and precision != "f32" else f"{recipe.name}{suffix}"
                plans.append(Plan(f"{name}@{runtime}", recipe, runtime, tuning, _word(recipe, precision)))
    return [replace(entry, id=TUNED_SOURCE) if entry.id == BASELINE else entry for entry in plans]


def _made_for(recipe: Recipe, program: bool) -> bool:
    """Whether the runtime opens what the recipe makes. The source itself is written in either format."""
    return recipe.method == "none" or (recipe.method in PROGRAM_METHODS) == program


def _worth(recipe: Recipe, precision: str) -> bool:
    """16-bit arithmetic changes what is left in floating point: everything for unquantized recipes, much of a dynamic or partial one."""
    if precision == "f32":
        return True
    return recipe.method in ("none", "cast", "nncf") or bool(recipe.operators) or "smooth" in recipe.transforms


def _first(offered: Sequence[Tuning], precision: str) -> Tuning:
    """The default with a fixed shape, where the runtime offers that: it was faster on every model measured (docs/lab.md)."""
    matching = [tuning for tuning in offered if tuning.precision == precision and tuning.streams == 1]
    fixed = [tuning for tuning in matching if tuning.fixed_shape]
    return (fixed or matching)[0]


def _word(recipe: Recipe, precision: str) -> str:
    if recipe.precision in ("fp32", "fp16"):
        return recipe.precision if precision == "f32" else precision
    return recipe.precision
