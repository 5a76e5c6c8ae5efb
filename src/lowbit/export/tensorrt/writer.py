"""Write a neutral model for TensorRT: explicit pairs on symmetric grids of their own calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.fixed_batch import with_fixed_batch
from lowbit.export.neutral import Neutral
from lowbit.export.qdq_again import format_of
from lowbit.export.tensorrt import rules
from lowbit.export.tensorrt.calibrate import symmetric_range
from lowbit.graph import ir_files
from lowbit.graph.parameterize import RangeOf, parameterize
from lowbit.graph.place import place
from lowbit.graph.profiles import TENSORRT
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.quant.affine import Affine
from lowbit.types import RangeMethod

TITLE = "TensorRT"
BOTH, SHORTCUT = "both", "shortcut"
PROFILE = replace(TENSORRT, int4_weights=False, blocks=frozenset())
"""4-bit weights beside 8-bit activations are written as bytes on the same grid: TensorRT's int4 is for weights alone."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: The file.
        outputs: Output -> its grid, of outputs that are rounded.
        floats: Products that stay in floating point, as in the candidate: names of nodes.
    """

    path: Path
    outputs: Mapping[str, Affine]
    floats: tuple[str, ...]


def write(source: Neutral, path: Path, *, method: RangeMethod, sums: str, batch: int | None = 1) -> Written:
    """Writes a QDQ model by TensorRT's rules. Weights stay exactly as the candidate has them, where they are int8 around zero.

    Args:
        source: A quantized model; not changed.
        path: Of the file.
        method: How ranges of activations are found.
        sums: "both": both operands of a residual sum are rounded; "shortcut": a product's result that is only added stays unrounded.
        batch: Fixed number of samples; None leaves it open.

    Raises:
        ModelError: another axis than the first is dynamic, an operator that TensorRT lacks, or nothing that would compute on integers.
    """
    model = with_fixed_batch(source, TITLE, batch=batch)
    lacking = list(rules.operators(model.graph))
    if lacking:
        hint = "Export for another target, leave that part out of the model, or build it with a plugin."
        raise ModelError(" ".join(finding.text for finding in lacking[:3]), hint)
    profile = replace(PROFILE, sums_in_place=sums == SHORTCUT)
    weights = {name: grid for name, grid in source.weights.items() if _fits(grid)}
    placement = place(model.graph, profile, lambda group: format_of(source, model.graph, group), {*source.stats, *source.ranges})
    if not placement.formats:
        raise ModelError(
            f"Nothing in '{source.candidate}' computes on integers here: no product has a grid for its weights and for what goes in.",
            "Export a candidate with static ranges, e.g. --candidate int8-static-mse@onnxruntime.",
        )
    table = parameterize(placement, ranges_of(source, method), values_of(model), weights)
    everywhere = {entry.tensor: table[entry.key] for entry in placement.activations if entry.readers is None}
    floats = tuple(group.name for group in placement.groups if group.is_product and group.name not in placement.formats)
    write_pairs(model, placement, table, target=profile)
    ir_files.write(model, path)
    return Written(path, {info.name: everywhere[info.name] for info in source.outputs if info.name in everywhere}, floats)


def ranges_of(source: Neutral, method: RangeMethod) -> RangeOf:
    """Symmetric ranges. A model's inputs keep their whole range under "entropy", as its outputs do under every method.

    The background of images is a spike that the divergence follows (docs/lab.md), and a clipped logit is a tie.
    """
    inputs, outputs = {info.name for info in source.inputs}, {info.name for info in source.outputs}

    @cache
    def lookup(tensor: str) -> tuple[float, float]:
        if tensor not in source.stats:
            most = max(abs(end) for end in source.ranges[tensor])
            return -most, most
        whole = tensor in outputs or (tensor in inputs and method == "entropy")
        return symmetric_range(source.stats[tensor], "minmax" if whole else method)

    return lookup


def _fits(grid: Affine) -> bool:
    return grid.dtype in ("int4", "int8") and grid.block is None and not np.any(grid.zero_point)
