"""LLM.int8()'s decomposition (Dettmers et al. 2022, arXiv 2208.07339): inputs whose magnitude passes a threshold stay in 16 bit.

All others are multiplied in 8. Here the columns are found in calibration, once, so that engines need no search as they run.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lowbit.llm.methods.layerwise import Site


def split(site: Site, threshold: float) -> tuple[Site, torch.Tensor]:
    """The layer without its outlier columns, and which these are.

    Args:
        site: A layer with its inputs.
        threshold: Largest |x| in calibration from which a column is kept in 16 bit.

    Returns:
        The layer with those columns' weights zero, unheard by the others in the Gram matrix; the columns' indices, ascending.
    """
    assert site.inputs is not None
    columns = torch.nonzero(site.inputs.peak >= threshold).flatten()
    if not len(columns):
        return site, columns
    weights, gram = site.weights.index_fill(1, columns, 0.0), site.inputs.gram.index_fill(0, columns, 0.0).index_fill(1, columns, 0.0)
    cross = None if site.inputs.cross is None else site.inputs.cross.index_fill(0, columns, 0.0).index_fill(1, columns, 0.0)
    mean = site.inputs.mean.index_fill(0, columns, 0.0)
    return replace(site, weights=weights, inputs=replace(site.inputs, gram=gram, cross=cross, mean=mean)), columns
