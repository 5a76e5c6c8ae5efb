"""Makes the artifact of one recipe for one engine: the table of its weights once, then the engine's own format."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.bundle.manifest import write_atomic
from lowbit.errors import LowbitError
from lowbit.llm import formats
from lowbit.llm.decoder import Weights
from lowbit.llm.engines import registry
from lowbit.llm.folder import COPIED, INDEX, SINGLE
from lowbit.llm.recipe import LanguageRecipe
from lowbit.pipeline.language.context import LanguageContext
from lowbit.pipeline.language.recipes import BASELINE_ENGINE, MIXED_GRIDS, SOURCE_RECIPE, Plan
from lowbit.pipeline.store import copy_whole, link_or_copy, need_space
from lowbit.types import Array

if TYPE_CHECKING:
    from lowbit.llm.folder import SourceFolder

TABLE = "table.json"


def make(context: LanguageContext, plan: Plan) -> Path:
    """The artifact's main file, made where it is not there yet.

    Raises:
        LowbitError: the format cannot hold these grids, or the recipe cannot be made.
    """
    folder = context.store.candidate(plan.id) / "model"
    if plan.engine == BASELINE_ENGINE and plan.recipe.method == "none":
        return copy_source(context)
    form = registry.get(plan.engine).opens
    if done := main_file(folder, form):
        return done
    if plan.engine == BASELINE_ENGINE:
        return _link_table(make_table(context, plan.recipe), folder)
    need_space(context.store, context.request.source.size_bytes)
    if plan.recipe.method == "llamacpp":
        return _by_llamacpp(context, plan, folder)
    weights: Weights = context.request.source
    if plan.recipe.method != "none":
        from lowbit.llm.table import Table

        weights = Table.open(make_table(context, plan.recipe))
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.parent / "recipe.yaml", weights.recipe.to_yaml())
    context.reporter.note(f"Writing {plan.recipe.name} for {plan.engine}.")
    return formats.write(weights, form, folder)


def make_table(context: LanguageContext, recipe: LanguageRecipe) -> Path:
    """The recipe's quantized weights, made once and block by block; an interrupted one goes on where it stopped.

    A finished one is not looked into again: the folder is this very request's, so a table of that name is of these weights and this text.
    """
    from lowbit.llm.walk import quantize_folder

    request, folder = context.request, context.table(recipe.name)
    if (folder / TABLE).is_file():
        return folder
    need_space(context.store, request.source.size_bytes // 2)
    context.reporter.stage(f"Quantizing: {recipe.name}", request.source.decoder.layers)
    recipe = settled(recipe, request.source, request.calibration)
    quantize_folder(request.source, recipe, request.calibration, folder, progress=lambda done, _: context.reporter.advance(done))
    return folder


def settled(recipe: LanguageRecipe, source: SourceFolder, calibration: Array) -> LanguageRecipe:
    """The recipe itself; one that states its mean bits (option "bits") with the grid that each layer gets by its sensitivity."""
    if "bits" not in recipe.options:
        return recipe
    from lowbit.llm.methods.allocate import mixed

    found = mixed(source, calibration, recipe.options["bits"], choices=MIXED_GRIDS, method=recipe.method)
    return replace(found, name=recipe.name, head=recipe.head)


def _link_table(table: Path, folder: Path) -> Path:
    """The table itself as an artifact, in the candidate's folder: the scratch folder goes when the search ends."""
    for file in sorted(table.rglob("*"), key=lambda file: (file.name == TABLE, file)):  # the main file last: where it is, all is
        if file.is_file() and not (folder / file.relative_to(table)).exists():
            link_or_copy(file, folder / file.relative_to(table))
    return folder / TABLE


def copy_source(context: LanguageContext) -> Path:
    """The source model in `baseline/`, for fallback, canary and rollback.

    Copied, not linked: whoever trains on and saves over the same folder must not change what a rollback goes back to.
    """
    source, target = context.request.source, context.store.out / "baseline"
    waiting = [file for file in (*source.files, *(source.path / name for name in COPIED)) if file.is_file()]
    if (source.path / INDEX).is_file():
        waiting.append(source.path / INDEX)  # last: where it is, all is
    waiting = [file for file in waiting if not (target / file.name).exists()]
    need_space(context.store, sum(file.stat().st_size for file in waiting))
    for file in waiting:
        copy_whole(file, target / file.name)
    return target / (INDEX if (source.path / INDEX).is_file() else SINGLE)


def main_file(folder: Path, form: str) -> Path | None:
    """The main file of an artifact that is whole, None where there is none."""
    names = {
        "gguf": ("model.gguf",),
        "openvino": ("openvino_model.xml",),
        "onnx": ("model.onnx",),
        "safetensors": (INDEX, SINGLE, TABLE),
    }[form]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _by_llamacpp(context: LanguageContext, plan: Plan, folder: Path) -> Path:
    """llama.cpp's own quantizer, from the 16-bit file: what it makes is a candidate like the others."""
    from lowbit.llm.writers.llamacpp_quantizer import quantize

    assert plan.recipe.preset is not None, "llama.cpp's recipes name a preset"
    plain = make(context, Plan(SOURCE_RECIPE, plan.engine))
    context.reporter.note(f"llama.cpp's own quantizer: {plan.recipe.preset}.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return quantize(plain, folder / "model.gguf", plan.recipe.preset)
    except LowbitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def size_of(artifact: Path) -> int:
    """Bytes of the weights: every file of the artifact's folder but the tokenizer's and the configuration."""
    plain = {*COPIED, "genai_config.json"}
    files = [file for file in artifact.parent.rglob("*") if file.is_file() and file.name not in plain]
    return sum(file.stat().st_size for file in files if "tokenizer" not in file.name)
