"""A decoder's weights rounded to nearest in memory: what writers and engines are tested with, without any of the methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.types import Array


def rounded(weights: Array, grid: Grid, columns: Array | None = None) -> QuantizedLinear:
    """Levels of the nearest points of the grid, the scale from the largest weight of a group; `columns` are kept."""
    values = np.asarray(weights).astype(np.float32)
    kept = None if columns is None else values[:, columns].astype(np.float16)
    if columns is not None:
        values = values.copy()
        values[:, columns] = 0
    width = values.shape[1]
    group = grid.group or width
    starts = np.arange(0, width, group)
    high, low = np.maximum.reduceat(values, starts, axis=1), np.minimum.reduceat(values, starts, axis=1)
    top = (1 << grid.bits) - 1
    if grid.symmetric:
        scale = np.maximum(np.maximum(high, -low) / max(grid.zero - 1, 1), 1e-6).astype(np.float16)
        zero = np.full(scale.shape, grid.zero, np.uint8)
    else:
        scale = np.maximum((np.maximum(high, 0) - np.minimum(low, 0)) / top, 1e-6).astype(np.float16)
        zero = np.clip(np.round(-np.minimum(low, 0) / scale.astype(np.float32)), 0, top).astype(np.uint8)
    index = np.arange(width) // group
    steps = np.round(values / scale.astype(np.float32)[:, index]) + zero[:, index]
    levels = np.clip(steps, 0, top).astype(np.uint8)
    if columns is not None:
        levels[:, columns] = zero[:, index[columns]]
    return QuantizedLinear(
        levels, scale, None if grid.symmetric else zero, grid, None if columns is None else columns.astype(np.int32), kept
    )


@dataclass
class Rounded:
    """Weights whose linear layers are rounded as a recipe says; fulfils lowbit.llm.decoder.Weights.

    Attributes:
        source: What is rounded.
        recipe: Grids; `outliers` keeps columns 0 and 5 of every layer.
    """

    source: Weights
    recipe: LanguageRecipe

    @property
    def decoder(self) -> Decoder:
        return self.source.decoder

    @property
    def path(self) -> Path:
        return self.source.path

    def names(self) -> tuple[str, ...]:
        return self.source.names()

    def grid(self, name: str) -> Grid | None:
        """Of a tensor; None where it is floating point."""
        parts = name.split(".")
        if parts[0] == "blocks" and len(parts) == 5 and f"{parts[2]}.{parts[3]}" in self.decoder.roles and parts[4] == "weight":
            return self.recipe.grid_of(int(parts[1]), f"{parts[2]}.{parts[3]}")
        return self.recipe.head if name in ("embed.weight", "head.weight") else None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.get(name).shape)

    def get(self, name: str) -> Array | QuantizedLinear:
        array, grid = self.source.get(name), self.grid(name)
        if grid is None:
            return array
        assert not isinstance(array, QuantizedLinear)
        columns = np.array([0, 5]) if self.recipe.outliers is not None and name.startswith("blocks.") else None
        return rounded(array, grid, columns)


def recipe(grid: Grid | None, **changes: object) -> LanguageRecipe:
    """Round-to-nearest of that grid."""
    return replace(LanguageRecipe("test", "none" if grid is None else "rtn", grid), **changes)  # type: ignore[arg-type]
