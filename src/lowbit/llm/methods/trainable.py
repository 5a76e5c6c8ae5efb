"""Quantized weights through which gradients pass: levels behind a straight-through rounding, scales in relative steps.

A weight is (round(u) - zero) * base * exp(t): u moves levels, as in AutoRound (Cheng et al. 2023, arXiv 2309.05516), t scales, as
in OmniQuant (Shao et al. 2023, arXiv 2308.13137) and EfficientQAT (Chen et al. 2024, arXiv 2407.11062). Zero points stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lowbit.llm.linear import QuantizedLinear
from lowbit.llm.methods.grids import Scales, storable

REACH = 0.4
"""How far from a level's middle its real weight may start: within, so that nothing is rounded another way before the first step."""


class TrainableLinear:
    """A quantized layer in training.

    Args:
        linear: Where it starts.
        real: The weights that it stands for, float32 [O, K]: they decide which levels are near to moving. None: levels do not move.
    """

    def __init__(self, linear: QuantizedLinear, real: torch.Tensor | None) -> None:
        self.linear, self.columns = linear, linear.shape[1]
        self.base = torch.from_numpy(linear.scale.astype(np.float32))
        zero = np.full(linear.scale.shape, linear.grid.zero) if linear.zero is None else linear.zero
        self.zero = torch.from_numpy(zero.astype(np.float32))
        self.group = torch.arange(self.columns) // (linear.grid.group or self.columns)
        self.steps = torch.zeros_like(self.base, requires_grad=True)
        self.levels = torch.from_numpy(linear.levels.astype(np.float32))
        if real is not None:
            scales = Scales(linear.grid, self.base, self.zero)
            scale, offset = scales.by_column(self.columns)
            self.levels += (real / scale + offset - self.levels).clamp_(-REACH, REACH)
            self.levels.requires_grad_(True)
        self.kept = None if linear.columns is None else torch.from_numpy(linear.columns.astype(np.int64))

    def weights(self) -> torch.Tensor:
        """What the layer stands for now, float32 [O, K]; gradients reach levels and scales."""
        scale = self.base * self.steps.exp()
        scale = scale + (storable(scale.detach()) - scale.detach())
        top = 2**self.linear.grid.bits - 1
        whole = self.levels.clamp(0, top)
        whole = whole + (whole.detach().round() - whole.detach())
        values = (whole - self.zero[:, self.group]) * scale[:, self.group]
        if self.kept is not None and self.linear.kept is not None:
            values = values.index_copy(1, self.kept, torch.from_numpy(self.linear.kept.astype(np.float32)))
        return values

    @torch.no_grad()
    def packed(self) -> QuantizedLinear:
        """As it is stored."""
        levels = self.levels.clamp(0, 2**self.linear.grid.bits - 1).round()
        scales = Scales(self.linear.grid, storable(self.base * self.steps.exp()), self.zero)
        if self.kept is not None:
            levels = levels.index_copy(1, self.kept, self.zero[:, self.group[self.kept]])
        return replace(scales.packed(levels), columns=self.linear.columns, kept=self.linear.kept)
