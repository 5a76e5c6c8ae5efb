"""AWQ (Lin et al. 2023, arXiv 2306.00978): input channels that matter are scaled up before rounding, so that they lose less of it.

Factors s = mean|x|^a are searched at every seam of the block for the least output error of the layers that read it, and folded
into what feeds them: inference costs nothing more. Then each group's scale is searched with the inputs' power as weight, which is
the method's clip search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowbit.llm.linear import Grid
from lowbit.llm.methods.base import BlockProblem, QuantizedBlock
from lowbit.llm.methods.folds import Seam, fold, seams, with_gain
from lowbit.llm.methods.grids import Scales, searched
from lowbit.llm.methods.inputs import Inputs, captured
from lowbit.llm.methods.layerwise import Site, layerwise, move, snapshot

STRENGTHS = tuple(each / 20 for each in range(20))
"""Exponents that are tried; 0: no scaling."""

CANDIDATES = 8
"""Scales a group that are tried to judge a strength; the final ones are searched as finely as elsewhere."""

PRODUCTS = 2e9
"""Multiplications to judge a strength by; larger layers are judged by some of their rows."""


@torch.no_grad()
def quantize(problem: BlockProblem) -> QuantizedBlock:
    """Quantizes a block."""
    move(problem.block, problem.device)
    before = snapshot(problem.block)
    hidden = problem.exact if problem.reached is None else problem.reached
    assert hidden is not None, "this method calibrates"
    quantized = {role for role in problem.decoder.roles if problem.recipe.grid_of(problem.index, role) is not None}
    for seam in with_gain(seams(problem.decoder), quantized):
        roles = [role for role in seam.roles if role in quantized]
        inputs = captured(problem.block, hidden, [roles[0]])[roles[0]]
        factors = _best(problem, seam, roles, inputs)
        if factors is not None:
            fold(problem.block, seam, factors, problem.stored)

    def choose(site: Site) -> tuple[torch.Tensor, Scales]:
        assert site.inputs is not None
        scales = searched(site.weights, site.grid, site.inputs.gram.diagonal())
        return scales.nearest(site.weights), scales

    return layerwise(problem, choose, calibrated=True, before=before)


def _best(problem: BlockProblem, seam: Seam, roles: Sequence[str], inputs: Inputs) -> torch.Tensor | None:
    """Factors of the seam's channels with the least output error; None where no scaling is best."""
    least, best = float("inf"), None
    for strength in STRENGTHS:
        factors = candidate(seam, inputs.mean, strength)
        columns = seam.spread(factors)
        error = 0.0
        for role in roles:
            grid = problem.recipe.grid_of(problem.index, role)
            assert grid is not None
            error += scaled_error(problem.block.weights[role], columns, inputs.gram, grid)
        if error < least:
            least, best = error, factors if strength else None
    return best


def candidate(seam: Seam, mean: torch.Tensor, strength: float) -> torch.Tensor:
    """s = mean|x|^a of the source's channels, the largest and the smallest equally far from 1; silent channels are never the smallest."""
    power = seam.gathered(mean).clamp_min(1e-8) ** strength
    power = torch.where(seam.gathered(mean) > 0, power, power.amax())
    return power / (power.amax() * power.amin()).sqrt()


def scaled_error(weights: torch.Tensor, columns: torch.Tensor, gram: torch.Tensor, grid: Grid) -> float:
    """Squared output error of a layer rounded with its columns scaled, on as many rows as `PRODUCTS` allows; mean over rows times all."""
    rows = weights[:: max(1, int(weights.numel() * weights.shape[1] // PRODUCTS))]
    scaled = rows * columns
    scales = searched(scaled, grid, gram.diagonal() / columns**2, CANDIDATES)
    error = scales.weights(scales.nearest(scaled)) / columns - rows
    return float(((error @ gram) * error).sum(dtype=torch.float64)) * len(weights) / len(rows)
