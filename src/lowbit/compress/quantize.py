"""Make the artifact of a recipe. The source and the prepared model are never changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.evidence import Evidence
from lowbit.compress.static import check_formats, write_static
from lowbit.errors import ModelError
from lowbit.graph.dynamic import write_dynamic
from lowbit.graph.halves import write_fp16
from lowbit.graph.nncf_writer import write_nncf
from lowbit.graph.onnxruntime_writer import RangeOf, write_defaults
from lowbit.graph.profiles import profile
from lowbit.recipe import Recipe
from lowbit.types import Feeds


def quantize(
    source: Path,
    prepared: Path,
    recipe: Recipe,
    out: Path,
    *,
    evidence: Evidence | None = None,
    feeds: Sequence[Feeds] = (),
    transformer: bool = False,
    target: str = "onnxruntime-cpu",
) -> Path:
    """Writes the artifact of `recipe` to `out`; `out` appears whole or not at all.

    Args:
        source: The user's model, shipped as it is by recipes that change no precision.
        prepared: What `graph.prepare` wrote.
        recipe: What to make.
        out: The .onnx file to write.
        evidence: What calibration samples say, for static recipes.
        feeds: Calibration batches, for NNCF, which runs its own calibration.
        transformer: The model has attention.
        target: Whose profile decides where static recipes are rounded (graph/profiles.py).

    Raises:
        ModelError: the writer could not make it; the message is the writer's.
        UsageError: the recipe names a format or a product that there is none of.
    """
    check_formats(recipe, prepared)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.stem}.tmp")  # a folder: weights of large models are a file of their own
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write(source, prepared, recipe, unfinished / out.name, evidence, feeds, transformer, target)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == out.name):  # the model last: it names the others
            file.replace(out.with_name(file.name))
    except (ModelError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # foreign writers raise anything; a recipe that cannot be made is evidence, not a crash
        raise ModelError(f"{recipe.name} cannot be made: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write(
    source: Path,
    prepared: Path,
    recipe: Recipe,
    out: Path,
    evidence: Evidence | None,
    feeds: Sequence[Feeds],
    transformer: bool,
    target: str,
) -> None:
    if recipe.method == "none":
        shutil.copyfile(source, out)
    elif recipe.method == "cast":
        write_fp16(prepared, out)
    elif recipe.method == "dynamic":
        write_dynamic(prepared, out, recipe)
    elif recipe.method == "nncf":
        write_nncf(prepared, out, feeds, transformer=transformer)
    elif recipe.method == "onnxruntime-defaults":
        assert evidence is not None, f"{recipe.name} needs calibration"
        write_defaults(prepared, out, recipe, _ranges(recipe, evidence.stats))
    else:
        assert evidence is not None, f"{recipe.name} needs calibration"
        write_static(evidence, out, recipe, profile(target))


def _ranges(recipe: Recipe, stats: CalibrationStats) -> RangeOf:
    """Looks ranges up by the recipe's method; tensors that were never observed have none."""
    assert recipe.ranges is not None, f"{recipe.name} names no range method"
    method = recipe.ranges
    return lambda tensor: stats.range(tensor, method) if tensor in stats.tensors else None
