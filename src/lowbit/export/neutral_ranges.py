"""Ranges of tensors that a candidate leaves without a grid: from calibration, as far as that still speaks of the same values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowbit.export.neutral_candidate import Source
from lowbit.export.neutral_pairs import Stripped
from lowbit.quant.affine import Affine, span
from lowbit.quant.observers import Histogram, TensorStats
from lowbit.types import RangeMethod


def true_statistics(source: Source, stripped: Stripped) -> dict[str, TensorStats]:
    """Statistics that hold for a candidate.

    Calibration saw the prepared model. Fitted weights leave its values where they were, as a whole. Scaled channels move tensors between
    two products; all of these have grids of their own, or are fused with one that has (`compress/equalize.py`), so a grid that does not
    span what calibration saw tells them. So do grids of trained candidates, whose other tensors distillation holds where they were.
    Pruned models have other channels altogether: of them only tensors with a grid are known. What has moved gets statistics that know
    the ends of its grid and nothing between.
    """
    tensors = dict(source.stats.tensors)
    pruned, method = source.recipe.method == "prune", source.recipe.ranges or "minmax"
    if not source.recipe.transforms and source.recipe.method not in ("qat", "prune"):
        return tensors
    known = {name: grid for name in tensors if (grid := _grid_of(name, source, stripped)) is not None}
    moved = {name: span(grid) for name, grid in known.items() if pruned or _has_moved(grid, source.stats.range(name, method))}
    for name, (output, slope) in stripped.leaks.items():
        if output in moved and name not in known and slope > 0:
            low, high = moved[output]
            moved[name] = (low / slope, high)
    kept = {name: stats for name, stats in tensors.items() if not pruned or name in known}
    return kept | {name: _ends_alone(low, high) for name, (low, high) in moved.items()}


def _has_moved(grid: Affine, seen: tuple[float, float]) -> bool:
    """Whether a grid spans something else than what was seen, by more than the rounding of its zero point."""
    return any(abs(one - other) > 1.5 * float(grid.scale) for one, other in zip(span(grid), seen, strict=True))


def _ends_alone(low: float, high: float) -> TensorStats:
    return TensorStats(low, high, Histogram.of(np.array([low, high], np.float32)))


def ranges_of(source: Source, stripped: Stripped, stats: Mapping[str, TensorStats]) -> dict[str, tuple[float, float]]:
    """Tensor -> (low, high): what its grid spans where the candidate has one, else by the candidate's range method."""
    from lowbit.compress.calibrate import CalibrationStats

    known = CalibrationStats(stats, source.stats.n, {})
    found = {}
    for name in stats:
        grid = _grid_of(name, source, stripped)
        found[name] = span(grid) if grid is not None else known.range(name, _method(source, name, stripped.ends))
    return found | {name: span(grid) for name, grid in stripped.activations.items() if name not in found}


def _grid_of(name: str, source: Source, stripped: Stripped) -> Affine | None:
    """The candidate's grid of a tensor, or of the one that a kernel fuses it with."""
    return stripped.activations.get(name) or stripped.activations.get(source.stats.aliases.get(name, name))


def _method(source: Source, name: str, ends: frozenset[str]) -> RangeMethod:
    """Ends of the model keep their whole range: clipped inputs lose bright pixels under "entropy", clipped outputs are ties."""
    method = source.recipe.ranges or "minmax"
    return "minmax" if name in ends else method
