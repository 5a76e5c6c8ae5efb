"""A compressed-tensors folder read back into quantized weights: the levels that are there, for engines of ours."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder
from lowbit.llm.families import Place, places, read_decoder
from lowbit.llm.folder import INDEX, SINGLE, read_json
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.mapped import MappedFile
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers.compressed_layout import INTEGER, PACKED, grid_of, joined
from lowbit.types import Array


class CompressedFolder:
    """Fulfils lowbit.llm.decoder.Weights.

    Attributes:
        decoder: The architecture.
        path: The folder.
        recipe: Says whether activations are rounded; the method is not known.
    """

    decoder: Decoder
    path: Path

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        self.path, self.decoder = path, read_decoder(plain)
        quantized = config["quantization_config"]
        self._groups = [(list(group["targets"]), grid_of(group)) for group in quantized["config_groups"].values()]
        self._activations = quantized["format"] == INTEGER
        self._ignored = list(quantized.get("ignore") or ())
        self.recipe = LanguageRecipe("compressed-tensors", "none", activations="int8-token" if self._activations else "float")
        self._files = _files(path)
        self._places = places(self.decoder, plain)

    @classmethod
    def open(cls, path: Path) -> CompressedFolder:
        """
        Raises:
            ModelError: another way of quantizing, or a file that is missing or damaged.
        """
        config = read_json(path, "config.json")
        quantized = config.get("quantization_config") or {}
        method, kind = quantized.get("quant_method"), quantized.get("format")
        if method != "compressed-tensors" or kind not in (PACKED, INTEGER):
            raise ModelError(f"'{path}' is quantized by '{method}' as '{kind}'; known: compressed-tensors as {PACKED} or {INTEGER}.")
        try:
            return cls(path, config)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"'{path / 'config.json'}' has a quantization_config that is not known: {error}.") from error

    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def get(self, name: str) -> Array | QuantizedLinear:
        place = self._places[name]
        if f"{place.name}_scale" in self._files:
            return _cut(self._quantized(place.name), place)
        stored = self._tensor(place.name)
        array = stored.T if place.turned else stored
        return array if place.rows is None else array[place.start : place.start + place.shape[0]]

    def _quantized(self, name: str) -> QuantizedLinear:
        grid = self._grid(name.removesuffix(".weight"))
        suffixes = ("", "_packed", "_scale", "_shape", "_zero_point")
        return joined(
            {name + end: self._tensor(name + end) for end in suffixes if name + end in self._files}, name, grid, self._activations
        )

    def _grid(self, module: str) -> Grid:
        named = [grid for targets, grid in self._groups if any(_matches(target, module) for target in targets)]
        rest = [grid for targets, grid in self._groups if "Linear" in targets]
        if not named and not rest:
            raise ModelError(f"config.json does not say how '{module}' is quantized.")
        return (named or rest)[0]

    def _tensor(self, name: str) -> Array:
        if name not in self._files:
            raise ModelError(f"'{self.path}' has no tensor '{name}'.")
        return self._files[name].get(name)


def _matches(target: str, module: str) -> bool:
    return re.match(target[3:], module) is not None if target.startswith("re:") else fnmatch.fnmatchcase(module, target)


def _cut(whole: QuantizedLinear, place: Place) -> QuantizedLinear:
    if place.rows is None:
        return whole
    rows = slice(place.start, place.start + place.shape[0])
    return QuantizedLinear(whole.levels[rows], whole.scale[rows], None if whole.zero is None else whole.zero[rows], whole.grid)


def _files(path: Path) -> dict[str, MappedFile]:
    if not (path / INDEX).is_file():
        if not (path / SINGLE).is_file():
            raise ModelError(f"'{path}' has no weights: neither {SINGLE} nor {INDEX}.")
        one = MappedFile(path / SINGLE)
        return dict.fromkeys(one.names(), one)
    names = {Path(str(each)).name for each in read_json(path, INDEX)["weight_map"].values()}
    if absent := sorted(name for name in names if not (path / name).is_file()):
        raise ModelError(f"'{path}' lacks {absent[0]}.", "Copy the missing file into the folder.")
    return {name: file for each in sorted(names) for file in [MappedFile(path / each)] for name in file.names()}
