"""HQQ (Badri and Shaji 2023, half-quadratic quantization): the weights' error in a norm below one, which forgives outliers; no calibration.

    minimise |w_e|_p^p + b/2 |w_e - (w - w_q)|^2 in turn over w_e, by a generalised soft threshold, and over the grid, in closed form.

The method moves the zero point alone and leaves it a fraction; formats here hold whole zero points, so it is rounded each time,
and the scale is fitted too: on symmetric grids it is all there is. What had the least error on the way is taken.
"""

from __future__ import annotations

import torch

from lowbit.llm.linear import Grid
from lowbit.llm.methods.base import BlockProblem, QuantizedBlock
from lowbit.llm.methods.grids import CHUNK, Scales, grouped, searched, storable
from lowbit.llm.methods.layerwise import Site, layerwise

NORM = 0.7
STEPS = 20
SHARPNESS = 10.0
"""b, in units of the group's scale; it grows by `GROWTH` a step, so that w_e settles."""

GROWTH = 1.05


@torch.no_grad()
def quantize(problem: BlockProblem) -> QuantizedBlock:
    """Quantizes a block."""

    def choose(site: Site) -> tuple[torch.Tensor, Scales]:
        scales = half_quadratic(site.weights, site.grid)
        return scales.nearest(site.weights), scales

    return layerwise(problem, choose, calibrated=False)


def half_quadratic(weights: torch.Tensor, grid: Grid, steps: int = STEPS) -> Scales:
    """Scales and zero points of least |w - w_q|^p."""
    start = searched(weights, grid)
    groups, valid = grouped(weights, grid)
    rows = max(1, CHUNK // (groups.shape[1] * groups.shape[2]))
    parts = [
        _descend(part, valid, start.scale[i * rows : (i + 1) * rows], start.zero[i * rows : (i + 1) * rows], grid, steps)
        for i, part in enumerate(groups.split(rows))
    ]
    return Scales(grid, torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts]))


def _descend(
    groups: torch.Tensor, valid: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    best_scale, best_zero = scale, zero
    least, sharpness, top = torch.full_like(scale, float("inf")), SHARPNESS, 2**grid.bits - 1
    for _ in range(steps + 1):
        levels = (groups / scale[..., None] + zero[..., None]).round_().clamp_(0, top)
        error = groups - (levels - zero[..., None]) * scale[..., None]
        norm = (error.abs().pow(NORM) * valid).sum(-1)
        wins = norm < least
        least, best_scale, best_zero = (
            torch.where(wins, norm, least),
            torch.where(wins, scale, best_scale),
            torch.where(wins, zero, best_zero),
        )
        wanted = groups - shrunk(error / scale.abs()[..., None], sharpness) * scale.abs()[..., None]
        if not grid.symmetric:
            zero = (((levels - wanted / scale[..., None]) * valid).sum(-1) / valid.sum(-1).clamp_min(1)).round().clamp(0, top)
        off = (levels - zero[..., None]) * valid
        fitted = (wanted * off).sum(-1) / off.square().sum(-1).clamp_min(1e-30)
        scale = storable(torch.where(fitted == 0, scale, fitted))
        sharpness *= GROWTH
    return best_scale, best_zero


def shrunk(values: torch.Tensor, sharpness: float, norm: float = NORM) -> torch.Tensor:
    """The generalised soft threshold sign(x) max(0, |x| - |x|^(p - 1) / b)."""
    size = values.abs()
    return values.sign() * (size - size.clamp_min(1e-6).pow(norm - 1) / sharpness).clamp_min(0)
