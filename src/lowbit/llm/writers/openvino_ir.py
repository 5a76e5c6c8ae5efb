"""A decoder as an OpenVINO model with a cache of its own, which the CPU plugin and openvino-genai both take.

Inputs input_ids [B, T], attention_mask [B, past + T], position_ids [B, T] (int64) and beam_idx [B] (int32); output logits [B, T, V]
(float32). The cache is the model's state. Quantized weights stay what they are: see lowbit.llm.writers.openvino_weights.
"""

from __future__ import annotations

import errno
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import Interrupted, RunError, UsageError
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.engines.base import ArtifactFormat
from lowbit.llm.folder import COPIED
from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.rope import frequencies
from lowbit.llm.writers.openvino_network import build
from lowbit.llm.writers.openvino_weights import Constants
from lowbit.quiet import no_output, no_telemetry

if TYPE_CHECKING:
    from openvino import Model

FORMAT: ArtifactFormat = "openvino"

MAIN = "openvino_model.xml"

TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
"""Texts to tokens and back, as models: openvino-genai's pipelines take texts where they find these."""

Progress = Callable[[int, int], None]
"""Called with blocks made and blocks in all."""


def check(decoder: Decoder, recipe: LanguageRecipe | Mapping[str, Grid] | None = None) -> None:
    """Says what the format cannot hold, before anything is computed.

    Args:
        decoder: The architecture.
        recipe: A recipe, or the grid of each linear layer ("blocks.3.mlp.down" or "embed"); None: nothing is quantized.

    Raises:
        ModelError: rotary positions are scaled in a way that is not known.
        UsageError: a group that does not divide a layer's inputs, or weights that only llama.cpp's quantizer makes.
    """
    if decoder.rope is not None:
        frequencies(decoder.rope, decoder.positions, 1)
    if isinstance(recipe, LanguageRecipe):
        if recipe.method == "llamacpp":
            raise UsageError(f"Recipe '{recipe.name}' leaves the weights to llama.cpp's own quantizer; OpenVINO does not read its formats.")
        for block in range(decoder.layers):
            for role in decoder.roles:
                if (grid := recipe.grid_of(block, role)) is not None:
                    _check_grid(f"blocks.{block}.{role}", grid, decoder.shape(role)[1])
        if recipe.head is not None:
            _check_grid("the head", recipe.head, decoder.width)
    elif recipe is not None:
        for name, grid in recipe.items():
            _check_grid(name, grid, decoder.shape(name.split(".", 2)[2])[1] if name.startswith("blocks.") else decoder.width)


def _check_grid(name: str, grid: Grid, columns: int) -> None:
    if grid.group is None or columns % grid.group == 0:
        return
    fit = [group for group in (32, 64, 128) if columns % group == 0]
    raise UsageError(
        f"OpenVINO cannot hold '{name}' in groups of {grid.group}: its {columns} inputs are no multiple of that.",
        f"Use {'groups of ' + ' or '.join(map(str, fit)) + ', or ' if fit else ''}one scale a row.",
    )


def notes(weights: Weights) -> tuple[str, ...]:
    """What is true of the model and not of the source: sentences for the report."""
    found = []
    recipe = getattr(weights, "recipe", None)
    grids = [recipe.grid, recipe.head, *recipe.formats.values()] if isinstance(recipe, LanguageRecipe) else []
    for bits in sorted({grid.bits for grid in grids if grid is not None and grid.bits in (2, 3)}):
        found.append(f"{bits} bit is held in numbers of 4 bit: exact, and no smaller than int4.")
    if isinstance(recipe, LanguageRecipe) and recipe.activations == "int8-token":
        found.append("Activations are rounded by the engine as it runs, in groups of its own (EngineTuning.activations).")
    return tuple(found)


def write(weights: Weights, folder: Path, *, progress: Progress | None = None) -> Path:
    """Writes openvino_model.xml and .bin, and beside them what openvino-genai reads: config, tokenizer.

    Args:
        weights: A Hugging Face folder (16 bit stays 16 bit) or a quantized table.
        folder: Made if absent.
        progress: Told about each block.

    Returns:
        openvino_model.xml.

    Raises:
        ModelError: the architecture is not known.
        UsageError: the format cannot hold a tensor, or openvino is not installed.
        Interrupted: the disk is full; nothing half-written is left.
    """
    recipe = getattr(weights, "recipe", None)
    check(weights.decoder, recipe if isinstance(recipe, LanguageRecipe) else None)
    if importlib.util.find_spec("openvino") is None:
        raise UsageError("The package openvino is not installed.", "pip install 'lowbit[openvino]'")
    no_telemetry()
    folder.mkdir(parents=True, exist_ok=True)
    partial = [folder / f"partial.{ending}" for ending in ("constants", "xml", "bin")]
    try:
        with Constants(partial[0]) as constants:
            _serialize(build(weights, constants, progress), partial[1], partial[2])
        _copy(weights.path, folder)
        partial[2].replace(folder / "openvino_model.bin")
        return partial[1].replace(folder / MAIN)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted(f"The disk is full ({error.strerror}).", "Free some space; the same command resumes.") from error
        raise
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _serialize(model: Model, xml: Path, weights: Path) -> None:
    """Writes, and reads what was written: the library does not say where a disk ran full."""
    import openvino

    try:
        openvino.serialize(model, str(xml), str(weights))
        openvino.Core().read_model(str(xml))
    except RuntimeError as error:
        if shutil.disk_usage(xml.parent).free < 1 << 20:
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise RunError(f"OpenVINO cannot write its model: {str(error).strip().splitlines()[-1]}") from error


def _copy(source: Path, folder: Path) -> None:
    for name in COPIED:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)
    for model in TOKENIZERS:  # of another tokenizer, should one lie there
        for path in (folder / model, (folder / model).with_suffix(".bin")):
            path.unlink(missing_ok=True)


def write_tokenizer(folder: Path) -> bool:
    """Makes of the tokenizer in a written folder the two models with which openvino-genai's own pipelines take texts.

    Engines here are fed tokens and do not need them.

    Args:
        folder: With tokenizer.json.

    Returns:
        False where the package openvino-tokenizers or transformers is not installed, or does not know this kind of tokenizer.
    """
    if any(importlib.util.find_spec(name) is None for name in ("openvino_tokenizers", "transformers")):
        return False
    no_telemetry()
    with no_output():
        import openvino
        from openvino_tokenizers import convert_tokenizer  # type: ignore[import-untyped]
        from transformers import AutoTokenizer

        try:
            found: Any = convert_tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True), with_detokenizer=True)
            for model, name in zip(found, TOKENIZERS, strict=True):
                openvino.save_model(model, str(folder / name))
        except Exception:  # of any kind: the library raises whatever its parsers do
            return False
    return True
