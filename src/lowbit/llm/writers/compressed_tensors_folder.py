"""A Hugging Face folder that transformers and vLLM read: the family's own tensors, quantized layers as compressed-tensors stores them.

A plain source gives a plain folder. What is not quantized keeps its floating point, save that scales are float16 here and this
format gives all floating point one type: a bfloat16 model is written in float16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError, UsageError
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.engines.base import ArtifactFormat
from lowbit.llm.families import Place, places
from lowbit.llm.folder import COPIED, INDEX, SINGLE, read_json
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers.compressed_layout import INTEGER, PACKED, parts, scheme
from lowbit.types import Array

FORMAT: ArtifactFormat = "safetensors"
SHARD_BYTES = 1 << 30
"""A file's size; that much is in memory while it is written."""

HOLDS = "compressed-tensors holds 4 and 8 bits, by rows or by groups that divide a layer's inputs"


def check(decoder: Decoder, recipe: LanguageRecipe | None = None) -> None:
    """
    Raises:
        UsageError: what the format, or those who read it, cannot hold.
    """
    if recipe is None or (recipe.grid is None and not recipe.formats):
        return
    if decoder.family == "gpt2":
        raise UsageError(
            "compressed-tensors quantizes linear modules; gpt2's layers are transposed convolutions.", "Choose another format, e.g. gguf."
        )
    if recipe.head is not None:
        raise UsageError(
            "compressed-tensors' readers hold no quantized embedding; the recipe has a grid for the head.", "Leave the head in 16 bit."
        )
    if recipe.outliers is not None:
        raise UsageError(f"{HOLDS}; columns in 16 bit (LLM.int8()) have no place in it.", "Choose onnx, or a recipe without outliers.")
    for block in range(decoder.layers):
        for role in decoder.roles:
            if (grid := recipe.grid_of(block, role)) is not None:
                _check_grid(f"blocks.{block}.{role}", grid, decoder.shape(role)[1], recipe.activations == "int8-token")


def _check_grid(name: str, grid: Grid, columns: int, activations: bool) -> None:
    if grid.bits not in (4, 8):
        raise UsageError(f"{HOLDS}; '{name}' has {grid.bits} bits.", "Choose gguf or onnx for 2 and 3 bits.")
    if grid.group is not None and columns % grid.group:
        raise UsageError(f"{HOLDS}; '{name}' has {columns} inputs in groups of {grid.group}.", "Choose a group that divides them, e.g. 32.")
    if activations and (grid.bits != 8 or grid.group is not None or not grid.symmetric):
        raise UsageError(
            f"With 8-bit activations weights have 8 bits, one scale a row, symmetric; '{name}' has {grid}.", "Choose the recipe w8a8."
        )


def write(weights: Weights, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes the folder, one file of about a gigabyte after the other.

    Args:
        weights: A Hugging Face folder or a quantized table.
        folder: Made if absent; what an earlier call wrote is replaced.
        progress: Is told blocks done and blocks in all.

    Returns:
        model.safetensors, or model.safetensors.index.json where there are several files.

    Raises:
        UsageError: as `check`.
        ModelError: a tensor that the family has no place for, or a value beyond float16.
        OSError: the disk is full or cannot be written.
    """
    check(weights.decoder, getattr(weights, "recipe", None))
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        config = read_json(weights.path, "config.json")
        written = _Layers(weights, config)
        main = _Shards(partial).save(written.tensors(progress))
        (partial / "config.json").write_text(json.dumps(written.config(), indent=2), encoding="utf-8")
        for name in COPIED:
            if name != "config.json" and (weights.path / name).is_file():
                shutil.copyfile(weights.path / name, partial / name)
        for old in (*folder.glob("model*.safetensors"), folder / INDEX):
            old.unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == main):  # the main file last: where it is, all is
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
    return folder / main


class _Layers:
    """A model's tensors under the family's names."""

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        self._weights, self._config = weights, dict(config)
        self._places = places(weights.decoder, config)
        self._groups: dict[Grid, list[str]] = {}
        self._plain: list[str] = []  # linear modules that stay as they are
        if homeless := [name for name in weights.names() if name not in self._places]:
            raise ModelError(f"A {weights.decoder.family} has no place for '{homeless[0]}', which its quantized table has.")
        self._int8_tokens = getattr(getattr(weights, "recipe", None), "activations", "float") == "int8-token"
        recipe = getattr(weights, "recipe", None)
        quantized = recipe is not None and (recipe.grid is not None or bool(recipe.formats))
        stored = np.asarray(weights.get("embed.weight")).dtype
        self._dtype: Any = np.dtype(np.float16) if quantized and stored.name == "bfloat16" else stored

    def tensors(self, progress: Callable[[int, int], None] | None) -> Iterator[tuple[str, Array]]:
        """One family tensor after the other, those of a block together."""
        layers, done = self._weights.decoder.layers, 0
        for name, ours in self._fused().items():
            block = int(ours[0].split(".")[1]) if ours[0].startswith("blocks.") else None
            if progress is not None and block is not None and block > done:
                progress(done := block, layers)
            yield from self._one(name, ours)
        if progress is not None:
            progress(layers, layers)

    def config(self) -> dict[str, Any]:
        """config.json; asked for after all tensors were written."""
        found = {**self._config, "dtype": self._dtype.name}
        found.pop("torch_dtype", None)
        if not self._groups:
            return found
        kind = INTEGER if self._int8_tokens else PACKED
        only = len(self._groups) == 1 and not [name for name in self._plain if name != "lm_head"]
        groups = {
            f"group_{index}": {"targets": ["Linear"] if only else modules, **scheme(grid, self._int8_tokens)}
            for index, (grid, modules) in enumerate(self._groups.items())
        }
        found["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": kind,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "config_groups": groups,
            "ignore": self._plain if "lm_head" in self._plain else [*self._plain, "lm_head"],  # a tied head is a module as well
            "kv_cache_scheme": None,
        }
        return found

    def _fused(self) -> dict[str, list[str]]:
        """The family's tensors, each with those of ours that make it, in the order of its rows."""
        found: dict[str, list[str]] = {}
        for canonical in self._weights.names():
            found.setdefault(self._places[canonical].name, []).append(canonical)
        return {name: sorted(ours, key=lambda each: self._places[each].start) for name, ours in found.items()}

    def _one(self, name: str, ours: Sequence[str]) -> Iterator[tuple[str, Array]]:
        read = [self._weights.get(each) for each in ours]
        place = self._places[ours[0]]
        quantized = [each for each in read if isinstance(each, QuantizedLinear)]
        module = name.removesuffix(".weight")
        if not quantized:
            if ours[0] == "head.weight" or (ours[0].startswith("blocks.") and len(place.shape) == 2):
                self._plain.append(module)
            yield name, self._float([np.asarray(each) for each in read], place, name)
            return
        whole = _stacked(name, quantized, len(read))
        _check_grid(module, whole.grid, whole.shape[1], self._int8_tokens)
        self._groups.setdefault(whole.grid, []).append(module)
        yield from parts(name, whole, self._int8_tokens, self._dtype).items()

    def _float(self, read: Sequence[Array], place: Place, name: str) -> Array:
        array = read[0] if len(read) == 1 else np.concatenate(read)
        array = np.ascontiguousarray(array.T if place.turned else array)
        if self._dtype == np.float16 and array.dtype.name == "bfloat16":
            with np.errstate(over="ignore"):  # told below
                narrow = array.astype(np.float32).astype(np.float16)
            if not np.isfinite(narrow).all() and np.isfinite(array.astype(np.float32)).all():
                raise ModelError(
                    f"'{name}' has values beyond float16, the type of this format's scales.", "Choose onnx, which keeps bfloat16."
                )
            array = narrow
        return array


def _stacked(name: str, quantized: Sequence[QuantizedLinear], count: int) -> QuantizedLinear:
    """Rows below each other: the family's fused layer."""
    first = quantized[0]
    if len(quantized) != count or len({each.grid for each in quantized}) > 1:
        raise UsageError(
            f"'{name}' is one tensor of this family; its parts have different grids.",
            "Give attention.q, .k and .v one grid, and mlp.gate and .up one.",
        )
    if any(each.columns is not None for each in quantized):
        raise UsageError(f"{HOLDS}; columns in 16 bit (LLM.int8()) have no place in it.", "Choose onnx, or a recipe without outliers.")
    if count == 1:
        return first
    zeros = [each.zero for each in quantized if each.zero is not None]
    return QuantizedLinear(
        np.concatenate([each.levels for each in quantized]),
        np.concatenate([each.scale for each in quantized]),
        np.concatenate(zeros) if zeros else None,
        first.grid,
    )


class _Shards:
    """Files of about SHARD_BYTES; named when all are there, because a name says how many there are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Array] = {}
        self._size = 0  # of what waits
        self._total = 0
        self._files: list[list[str]] = []  # names of the tensors in each

    def save(self, tensors: Iterable[tuple[str, Array]]) -> str:
        """Writes all of them.

        Returns:
            Name of the main file: the only one, or the index.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        for name, array in tensors:
            if self._waiting and self._size + array.nbytes > SHARD_BYTES:
                self._flush()
            self._waiting[name] = np.ascontiguousarray(array)
            self._size += array.nbytes
        self._flush()
        return self._named()

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        try:
            save_file(self._waiting, self._part(len(self._files)), {"format": "pt"})
        except Exception as error:  # the library has errors of its own for a full disk
            raise OSError(str(error)) from error
        self._files.append(list(self._waiting))
        self._total += self._size
        self._waiting, self._size = {}, 0

    def _named(self) -> str:
        count = len(self._files)
        if count == 1:
            self._part(0).replace(self._folder / SINGLE)
            return SINGLE
        final = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, name in enumerate(final):
            self._part(number).replace(self._folder / name)
        places = {tensor: name for name, tensors in zip(final, self._files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": self._total}, "weight_map": places}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        return INDEX

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}"
