"""Round to nearest: each group of weights by itself, on the scale of least squared error. No calibration."""

from __future__ import annotations

import torch

from lowbit.llm.methods.base import BlockProblem, QuantizedBlock
from lowbit.llm.methods.grids import CANDIDATES, Scales, min_max, searched
from lowbit.llm.methods.layerwise import Site, layerwise


@torch.no_grad()
def quantize(problem: BlockProblem) -> QuantizedBlock:
    """Quantizes a block; the recipe's option "candidates" is how many scales are tried a group, 0 for plain min-max."""
    candidates = int(problem.recipe.options.get("candidates", CANDIDATES))

    def choose(site: Site) -> tuple[torch.Tensor, Scales]:
        scales = searched(site.weights, site.grid, None, candidates) if candidates else min_max(site.weights, site.grid)
        return scales.nearest(site.weights), scales

    return layerwise(problem, choose, calibrated=False)
