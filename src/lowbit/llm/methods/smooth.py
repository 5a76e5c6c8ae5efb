"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): outlier channels of the activations are divided where they arise.

The weights that read them are multiplied, s = max|x|^a / max|w|^(1 - a), so that 8 bits a token serve the other channels too.
Folded: inference costs nothing more.
"""

from __future__ import annotations

import torch

from lowbit.llm.methods.base import BlockProblem
from lowbit.llm.methods.folds import Seam, fold, seams, with_gain
from lowbit.llm.methods.inputs import peaks


@torch.no_grad()
def smooth(problem: BlockProblem) -> None:
    """Folds the factors of a block's seams into it, with the strength of the recipe. What it computes stays the same."""
    assert problem.exact is not None, "smoothing calibrates"
    assert problem.recipe.smooth is not None
    block, quantized = problem.block, {r for r in problem.decoder.roles if problem.recipe.grid_of(problem.index, r) is not None}
    places = with_gain(seams(problem.decoder), quantized)
    reach = peaks(block, problem.exact, [seam.roles[0] for seam in places])
    for seam in places:
        wide = seam.gathered(_columns_reach(problem, seam))
        factors = strengthened(seam.gathered(reach[seam.roles[0]]), wide, problem.recipe.smooth)
        fold(block, seam, factors, problem.stored)


def strengthened(activations: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
    """s = max|x|^a / max|w|^(1 - a) of each channel, with geometric mean 1; channels that are always zero keep 1.

    Args:
        activations: Largest |x|, [K].
        weights: Largest |w| over all layers that share the input, [K].
        strength: 0 to 1: how much of the difficulty goes into the weights.
    """
    alive = (activations > 0) & (weights > 0)
    logs = torch.where(alive, strength * activations.clamp_min(1e-30).log() - (1 - strength) * weights.clamp_min(1e-30).log(), 0.0)
    return torch.where(alive, (logs - logs[alive].mean()).exp(), 1.0) if alive.any() else torch.ones_like(activations)


def _columns_reach(problem: BlockProblem, seam: Seam) -> torch.Tensor:
    return torch.stack([problem.block.weights[role].abs().amax(0) for role in seam.roles]).amax(0)
