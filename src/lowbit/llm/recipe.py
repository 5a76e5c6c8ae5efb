"""Recipes for language models: bits, groups and method of the weights, and what is done to activations. Data, with a YAML round trip.

Naming convention of the built-in recipes:

    f16                      the source's own 16 bit, unchanged
    int8 int4 int3 int2      round-to-nearest, symmetric, in groups of 32 (int8: a scale a row): int4-g128, int4-g64-asym where it differs
    int4-gptq, -awq, -hqq    the same grid by another method; -tuned: fitted block by block, then trained end to end (research bits too)
    w8a8, w8a8-smooth        activations in 8 bit a token too; -outliers: LLM.int8()'s decomposition
    mixed-4.5                bits a layer from its sensitivity, so that the mean is that many
    llamacpp-q4_k_m          llama.cpp's own quantizer, from the 16-bit file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from lowbit.errors import UsageError
from lowbit.llm.linear import Grid
from lowbit.strict import check_keys, mapping, read_recipe, word

Method = Literal["none", "rtn", "gptq", "awq", "hqq", "tuned", "llamacpp"]
Activations = Literal["float", "int8-token"]


@dataclass(frozen=True)
class LanguageRecipe:
    """One way to make a smaller language model.

    Attributes:
        name: Unique within a search; also the name of its folder.
        method: How levels are chosen; "none" keeps the weights, "llamacpp" leaves them to llama.cpp's own quantizer.
        grid: Of the blocks' linear layers; None where the weights stay.
        head: Grid of the embedding and the head; None keeps them in 16 bit.
        activations: "int8-token": inputs of linear layers are rounded to 8 bit with a scale a token.
        smooth: Strength of SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), 0-1; None: not smoothed.
        outliers: Largest |input| in calibration from which a column is kept in 16 bit (LLM.int8(): 6.0); None: none is.
        formats: Linear layer ("blocks.3.mlp.down") or role ("mlp.down") -> a grid of its own.
        preset: llama.cpp's own name ("Q4_K_M"), for that method.
        options: Of the method, e.g. damping.
    """

    name: str
    method: Method
    grid: Grid | None = None
    head: Grid | None = None
    activations: Activations = "float"
    smooth: float | None = None
    outliers: float | None = None
    formats: Mapping[str, Grid] = field(default_factory=dict)
    preset: str | None = None
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The short word for tables: "16 bit", "int8", "int4", ..."""
        if self.grid is None:
            return self.preset or "16 bit"
        return f"int{self.grid.bits}"

    def grid_of(self, block: int, role: str) -> Grid | None:
        """Of one linear layer: its own, its role's, or everybody's."""
        return self.formats.get(f"blocks.{block}.{role}", self.formats.get(role, self.grid))

    def to_yaml(self) -> str:
        return yaml.safe_dump({"schema": 1, **asdict(self), "formats": {k: asdict(v) for k, v in self.formats.items()}}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> LanguageRecipe:
        """Reads what `to_yaml` wrote.

        Raises:
            UsageError: not YAML, a key or value that is not known, or a key that is missing.
        """
        values = read_recipe(text, (each.name for each in fields(cls)), ("name", "method"))
        word("method", values["method"], Method)
        word("activations", values.get("activations", "float"), Activations)
        for key in ("grid", "head"):
            if values.get(key) is not None:
                values[key] = _grid(values[key])
        values["formats"] = {str(k): _grid(v) for k, v in mapping("formats", values.get("formats") or {}).items()}
        try:
            values["options"] = {str(k): float(v) for k, v in mapping("options", values.get("options") or {}).items()}
        except (TypeError, ValueError) as error:
            raise UsageError(f"The options of a recipe are numbers: {error}.") from error
        return cls(**values)


def _grid(raw: object) -> Grid:
    values = mapping("A grid", raw)
    check_keys("key of a grid", values, (each.name for each in fields(Grid)))
    if values.get("bits") not in (2, 3, 4, 8):
        raise UsageError(f"A grid has 2, 3, 4 or 8 bits; found {values.get('bits')!r}.")
    group: Any = values.get("group")
    if group is not None and (not isinstance(group, int) or group < 2):
        raise UsageError(f"A group is a number of weights, 2 or more, or null for the whole row; found {group!r}.")
    return Grid(values["bits"], group, bool(values.get("symmetric", True)))
