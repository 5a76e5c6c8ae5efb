"""From a placement and the ranges of its tensors to the neutral table: tensor -> scale, zero point, dtype, axis.

The table belongs to no target. Each writer re-expresses it in its own dialect (`graph/qdq.py` as ONNX QuantizeLinear pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from lowbit.graph.place import Placement, QuantizedWeight
from lowbit.quant.affine import Affine, from_range, from_values
from lowbit.recipe import QuantSpec
from lowbit.types import Array

RangeOf = Callable[[str], tuple[float, float]]
"""Tensor name -> (low, high) in real units."""

ValuesOf = Callable[[str], Array]
"""Name of a constant -> its values."""

Table = dict[str, Affine]

_INT32_SHARE = 2.0**30
"""Largest bias in units of its grid: half of int32, the other half is for the sum of products."""


def parameterize(placement: Placement, range_of: RangeOf, values_of: ValuesOf, given: Mapping[str, Affine] | None = None) -> Table:
    """Finds scale and zero point of every tensor that a placement rounds, by its key.

    Args:
        placement: Where the graph is rounded.
        range_of: Of activations; a grid that several tensors share covers all of them.
        values_of: Of weights and biases.
        given: Grids of weights that a transform has chosen (clipping, learned rounding); others span the weights' min-max.
    """
    table = _activations(placement, range_of)
    for weight in placement.weights:
        if weight.key not in table:
            table[weight.key] = (given or {}).get(weight.key) or weight_grid(values_of(weight.tensor), weight)
    for bias in placement.biases:
        table[bias.weight] = _with_room(table[bias.weight], table[bias.activation], values_of(bias.tensor))
    for bias in placement.biases:
        scale = np.asarray(table[bias.activation].scale * table[bias.weight].scale, np.float32)
        axis = 0 if scale.ndim else None
        table[bias.key] = Affine(scale, np.zeros(scale.shape, np.int32), "int32", symmetric=True, axis=axis)
    return table


def weight_grid(values: Array, weight: QuantizedWeight) -> Affine:
    """The grid of a weight that spans its min-max, per tensor, per output channel, or per group along its input channels."""
    return from_values(values, weight.spec.dtype, symmetric=weight.spec.symmetric, axis=weight.axis, block=weight.block)


def _activations(placement: Placement, range_of: RangeOf) -> Table:
    """One grid for each set of tensors that share one."""
    spans: dict[str, tuple[float, float]] = {}
    specs: dict[str, QuantSpec] = {}
    for entry in placement.activations:
        low, high = range_of(entry.tensor)
        least, most = spans.get(entry.grid, (0.0, 0.0))
        spans[entry.grid], specs[entry.grid] = (min(low, least), max(high, most)), entry.spec
    grids = {name: from_range(*spans[name], specs[name].dtype, symmetric=specs[name].symmetric) for name in spans}
    return {entry.key: grids[entry.grid] for entry in placement.activations}


def _with_room(weight: Affine, activation: Affine, bias: Array) -> Affine:
    """A weight grid coarse enough that the bias fits into int32 on the product of both grids."""
    least = np.abs(bias.reshape(-1)) / (_INT32_SHARE * float(activation.scale))
    least = least if weight.scale.ndim else least.max()
    return replace(weight, scale=np.maximum(weight.scale, least).astype(np.float32))
