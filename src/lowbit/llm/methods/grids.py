"""Scales and zero points of weight groups, and the nearest levels on them.

The best scale is rarely the one that just reaches the largest weight: cutting a few large weights short pays for finer steps
of all others (OCTAV: Sakr et al. 2022, arXiv 2206.06501; for groups of language models as in AWQ and OmniQuant). Candidates are tried,
both signs of the scale on a symmetric grid, which has one level more below zero; the best is refined in closed form with its
levels held: s = sum h w q / sum h q^2. The error may weigh each input with its power. A scale is rounded to float16 before its
levels are chosen, so the levels know the scale that will be stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lowbit.errors import ModelError
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.types import Array

CANDIDATES = 24
"""Scales that are tried a group, of each sign."""

REFINEMENTS = 3
"""Steps of levels and scale in turn after the candidates."""

SPAN = {2: (0.45, 2.05), 3: (0.5, 1.4), 4: (0.6, 1.2), 8: (0.9, 1.02)}
"""Bits -> scales that are tried, relative to the one that just reaches the largest weight with the lowest level."""

CHUNK = 1 << 18
"""Weights that are searched at once: temporaries stay in the cache."""

_SMALLEST, _LARGEST = 2.0**-24, 65504.0


@dataclass
class Scales:
    """A grid laid out over weights [O, K].

    Attributes:
        grid: Bits, group, symmetry.
        scale: float32 [O, G], each a number that float16 holds, none zero.
        zero: float32 [O, G], whole numbers 0 to 2^bits - 1.
    """

    grid: Grid
    scale: torch.Tensor
    zero: torch.Tensor

    def by_column(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero of every weight, [O, K]."""
        group = self.grid.group or columns
        index = torch.arange(columns, device=self.scale.device) // group
        return self.scale[:, index], self.zero[:, index]

    def nearest(self, weights: torch.Tensor) -> torch.Tensor:
        """The nearest levels of weights [O, K], as float32 whole numbers from 0."""
        scale, zero = self.by_column(weights.shape[1])
        return (weights / scale + zero).round_().clamp_(0, 2**self.grid.bits - 1)

    def weights(self, levels: torch.Tensor) -> torch.Tensor:
        """What levels [O, K] stand for, float32."""
        scale, zero = self.by_column(levels.shape[1])
        return (levels.to(scale.dtype) - zero) * scale

    def packed(self, levels: torch.Tensor) -> QuantizedLinear:
        """Levels with their scales, as they are stored."""
        zero = None if self.grid.symmetric else _numpy(self.zero, np.uint8)
        return QuantizedLinear(_numpy(levels, np.uint8), _numpy(self.scale, np.float16), zero, self.grid)


def storable(scale: torch.Tensor) -> torch.Tensor:
    """The nearest float16 numbers, as float32, never zero nor infinite."""
    rounded = scale.clamp(-_LARGEST, _LARGEST).half().float()
    return torch.where(rounded == 0, torch.where(scale < 0, -_SMALLEST, _SMALLEST), rounded)


def min_max(weights: torch.Tensor, grid: Grid) -> Scales:
    """Scales that reach every weight of a group: symmetric +-(2^(bits - 1) - 1), else from smallest to largest, zero among them."""
    groups, _ = grouped(_finite(weights), grid)
    top = 2**grid.bits - 1
    if grid.symmetric:
        scale = storable(groups.abs().amax(-1) / (grid.zero - 1))
        return Scales(grid, scale, torch.full_like(scale, grid.zero))
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scale = storable((high - low) / top)
    return Scales(grid, scale, (-low / scale).round().clamp(0, top))


def searched(weights: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None, candidates: int = CANDIDATES) -> Scales:
    """The scales of least squared error.

    Args:
        weights: float32 [O, K].
        grid: Bits, group, symmetry.
        importance: What the square of an error counts for at each input, [K], e.g. the input's mean square; None: the same.
        candidates: Scales that are tried a group.

    Raises:
        ModelError: NaN or infinity among the weights.
    """
    groups, power = _weighed(_finite(weights), grid, importance)
    rows = max(1, CHUNK // (groups.shape[1] * groups.shape[2]))
    parts = [_search(part, power, grid, candidates) for part in groups.split(rows)]
    return Scales(grid, torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts]))


def _search(groups: torch.Tensor, power: torch.Tensor, grid: Grid, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero [R, G] of least error for groups [R, G, n] with power [G, n]."""
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for scale, zero in _candidates(groups, grid, candidates):
        best = _better(best, _tried(groups, power, grid, storable(scale), zero))
    assert best is not None
    for _ in range(REFINEMENTS):
        _, scale, zero = best
        steps = _levels(groups, grid, scale, zero) - zero[..., None]
        refined = (power * groups * steps).sum(-1) / (power * steps * steps).sum(-1).clamp_min(1e-30)
        best = _better(best, _tried(groups, power, grid, storable(torch.where(refined == 0, scale, refined)), zero))
        if not grid.symmetric:
            for shift in (-1, 1):
                best = _better(best, _tried(groups, power, grid, best[1], (best[2] + shift).clamp(0, 2**grid.bits - 1)))
    return best[1], best[2]


def _candidates(groups: torch.Tensor, grid: Grid, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Scale and zero [R, G] of what is tried, plain min-max first."""
    plain = min_max(groups.flatten(0, 1), Grid(grid.bits, None, grid.symmetric))
    shape = groups.shape[:2]
    found = [(plain.scale.reshape(shape), plain.zero.reshape(shape))]
    ratios = torch.linspace(*SPAN[grid.bits], count).tolist()
    if grid.symmetric:
        reach = groups.abs().amax(-1) / grid.zero
        return found + [(sign * ratio * reach, found[0][1]) for ratio in ratios for sign in (1, -1)]
    low, high, top = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0), 2**grid.bits - 1
    for ratio in ratios:
        scale = storable((high - low) * (ratio / SPAN[grid.bits][1]) / top)
        found.append((scale, (-low * (ratio / SPAN[grid.bits][1]) / scale).round().clamp(0, top)))
    return found


def _tried(
    groups: torch.Tensor, power: torch.Tensor, grid: Grid, scale: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Error, scale and zero [R, G]."""
    off = _levels(groups, grid, scale, zero).sub_(zero[..., None]).mul_(scale[..., None]).sub_(groups)
    return off.square_().mul_(power).sum(-1), scale, zero


def _levels(groups: torch.Tensor, grid: Grid, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return (groups / scale[..., None]).add_(zero[..., None]).round_().clamp_(0, 2**grid.bits - 1)


def _better(
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None, tried: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if best is None:
        return tried
    wins = tried[0] < best[0]
    return torch.where(wins, tried[0], best[0]), torch.where(wins, tried[1], best[1]), torch.where(wins, tried[2], best[2])


def _weighed(weights: torch.Tensor, grid: Grid, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as groups [O, G, n] and what the square of an error counts for at each input [G, n]."""
    groups, valid = grouped(weights, grid)
    if importance is None:
        return groups, valid
    power = importance.float().clamp_min(0)
    power = power / power.mean().clamp_min(1e-30) + 1e-6  # an input that calibration never saw still counts a little
    return groups, torch.nn.functional.pad(power, (0, valid.numel() - len(power))).reshape(valid.shape)


def grouped(weights: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [O, K] as groups [O, G, n], a shorter last one filled with zeros; and which of [G, n] are weights, as 1 and 0."""
    rows, columns = weights.shape
    group = min(grid.group or columns, columns)
    pad = (0, -columns % group)
    valid = torch.nn.functional.pad(torch.ones(columns, device=weights.device), pad)
    return torch.nn.functional.pad(weights, pad).reshape(rows, -1, group), valid.reshape(-1, group)


def _finite(weights: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(weights).all():
        raise ModelError("A linear layer has NaN or infinite weights.", "The checkpoint is damaged: fetch it again.")
    return weights.float()


def _numpy(values: torch.Tensor, kind: type) -> Array:
    result: Array = values.detach().cpu().numpy().astype(kind)
    return result
