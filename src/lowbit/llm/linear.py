"""The quantized weights of one linear layer: levels, scales and zero points by groups of inputs, in one convention for every format.

    w = (level - zero) * scale,    0 <= level < 2^bits,    zero = 2^(bits - 1) where the grid is symmetric

A symmetric grid has one level more below zero than above it; a scale may be negative, so that this level lies on the side
that needs it (as llama.cpp's Q4_0 does). Scales are numbers that 16-bit floating point holds: every format can store them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.types import Array


@dataclass(frozen=True)
class Grid:
    """How fine: bits a weight and how many of them share a scale.

    Attributes:
        bits: 2, 3, 4 or 8.
        group: Consecutive inputs of a row that share a scale; None: the whole row.
        symmetric: Zero is the middle level, and not stored.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True

    @property
    def zero(self) -> int:
        """The middle level."""
        return 1 << (self.bits - 1)

    def bits_per_weight(self, columns: int) -> float:
        """With the share of 16-bit scales and of zero points, for rows of `columns` weights."""
        group = self.group or columns
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / group


@dataclass(frozen=True)
class QuantizedLinear:
    """Weights [O, K] of a linear layer.

    Attributes:
        levels: uint8 [O, K].
        scale: float16 [O, K / group] ([O, 1] without groups); the last group may be shorter.
        zero: uint8 like `scale`; None where the grid is symmetric.
        grid: Bits, group, symmetry.
        columns: int32 [n], ascending: inputs that are kept in 16 bit (Dettmers et al. 2022, arXiv 2208.07339); their levels stand
            for zero. None: no such.
        kept: float16 [O, n], their weights.
    """

    levels: Array
    scale: Array
    zero: Array | None
    grid: Grid
    columns: Array | None = None
    kept: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.levels.shape
        return rows, columns

    def dequantized(self) -> Array:
        """The weights that the levels stand for, kept columns among them; float32 [O, K]."""
        _, columns = self.shape
        group = self.grid.group or columns
        groups = np.arange(columns) // group
        zero = np.float32(self.grid.zero) if self.zero is None else self.zero.astype(np.float32)[:, groups]
        weights: Array = (self.levels.astype(np.float32) - zero) * self.scale.astype(np.float32)[:, groups]
        if self.columns is not None and self.kept is not None:
            weights[:, self.columns] = self.kept.astype(np.float32)
        return weights

    @property
    def size_bytes(self) -> int:
        """Packed: levels, scales, zero points, kept columns."""
        bits = self.levels.size * self.grid.bits + self.scale.size * 16 + (0 if self.zero is None else self.zero.size * self.grid.bits)
        kept = 0 if self.kept is None or self.columns is None else self.kept.size * 2 + self.columns.size * 4
        return -(-bits // 8) + kept
