"""Write a neutral model as QNN wants it: the whole graph on integers, one sample a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.base import Finding
from lowbit.export.fixed_batch import with_fixed_batch
from lowbit.export.neutral import Neutral
from lowbit.export.qnn import rules
from lowbit.export.qnn.single_inputs import read_twice
from lowbit.graph import ir_files
from lowbit.graph.groups import Group
from lowbit.graph.parameterize import RangeOf, Table, parameterize
from lowbit.graph.place import Format, Placement, place
from lowbit.graph.profiles import QNN
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.quant.affine import Affine, span
from lowbit.quant.ranges import minmax
from lowbit.recipe import Dtype, QuantSpec

if TYPE_CHECKING:
    import onnx_ir as ir

TITLE = "Qualcomm QNN"
PROFILE = replace(QNN, int4_weights=False)
"""Weights of 4 bits are written as bytes on the same grid: not every chip has kernels for less."""

_WEIGHTS = QuantSpec("int8", "per-channel", symmetric=True)

LEAST_MULTIPLIER = 2.0**-22
"""Least product of the scales of input and weight, over that of the output. Below 2**-23.3 the emulated HTP's depthwise convolutions
answer nonsense for the channel (255 where 0 is right), without an error, and others do where the bias is near 2**30. With 2**-22 both
were right for biases from half a level to 250 levels."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: The file.
        outputs: Output -> its grid.
        fresh: Products that the candidate leaves in floating point, and whose weights are 8 bit here: names of nodes.
        same: Activations on the candidate's own grid.
        new: Activations on a grid of their own range.
    """

    path: Path
    outputs: Mapping[str, Affine]
    fresh: tuple[str, ...]
    same: int
    new: int


def write(source: Neutral, path: Path, bits: int) -> Written:
    """Writes a QDQ model by QNN's rules.

    In 8 bit, activations are on the candidate's own grids, and on their calibrated range where it has none; in 16 bit, on the whole
    range that calibration saw. Weights stay exactly as the candidate has them.

    Args:
        source: A quantized model; not changed.
        path: Of the file.
        bits: Of activations: 8 or 16.

    Raises:
        ModelError: dynamic shapes, an operator that QNN lacks, or a part that would stay in floating point.
    """
    model = with_fixed_batch(source, TITLE)
    refuse(list(rules.operators(model.graph)))
    given = {name: grid for name, grid in source.weights.items() if _fits(grid)}
    kind: Dtype = "uint16" if bits == 16 else "uint8"
    ranges = known_ranges(source, bits)
    placement = place(model.graph, PROFILE, lambda group: format_of(model.graph, group, given, kind), ranges)
    table = with_least_multipliers(placement, parameterize(placement, fixed_ranges(model.graph, ranges, bits), values_of(model), given))
    outputs = {info.name: table[info.name] for info in source.outputs if info.name in table}
    fresh = _fresh(model.graph, placement, given)
    own = sum(_is_same(source.activations.get(entry.tensor), table[entry.key]) for entry in placement.activations)
    write_pairs(model, placement, table, target=PROFILE)
    read_twice(model.graph)
    ir_files.write(model, path)
    refuse([finding for finding in rules.check(path) if finding.severity == "error"])
    return Written(path, outputs, fresh, own, len(placement.activations) - own)


def refuse(findings: list[Finding]) -> None:
    """Stops at what QNN cannot run.

    Raises:
        ModelError: there is a finding.
    """
    if findings:
        more = f" ({len(findings) - 3} more like it.)" if len(findings) > 3 else ""
        raise ModelError(
            " ".join(finding.text for finding in findings[:3]) + more,
            "Export another candidate or for another target, or leave that part out of the model and compute it outside.",
        )


def format_of(graph: ir.Graph, group: Group, given: Mapping[str, Affine], activations: Dtype) -> Format:
    """How a product computes here: all do on integers, with weights as the candidate has them or 8 bit a channel."""
    grid = given.get(_weight(graph, group))
    if grid is None:
        return Format(_WEIGHTS, QuantSpec(activations))
    spec = QuantSpec(grid.dtype, "per-tensor" if grid.axis is None else "per-channel", symmetric=grid.symmetric)  # type: ignore[arg-type]
    return Format(spec, QuantSpec(activations))


def known_ranges(source: Neutral, bits: int) -> dict[str, tuple[float, float]]:
    """Tensor -> what its grid spans: in 8 bit the candidate's grid or range, in 16 bit all that calibration saw."""
    found = {**source.ranges, **{name: span(grid) for name, grid in source.activations.items()}}
    if bits == 16:
        found |= {name: minmax(stats) for name, stats in source.stats.items()}
    return found


def fixed_ranges(graph: ir.Graph, ranges: Mapping[str, tuple[float, float]], bits: int) -> RangeOf:
    """The ranges, with those that QNN fixes in 16 bit in their place."""
    if bits != 16:
        return ranges.__getitem__
    fixed = {}
    for node in graph:
        if node.op_type in rules.FIXED_16:
            scale, zero = rules.FIXED_16[node.op_type]
            fixed[str(node.outputs[0].name)] = (-zero * scale, (65535 - zero) * scale)
    return {**ranges, **fixed}.__getitem__


def with_least_multipliers(placement: Placement, table: Table) -> Table:
    """The table with coarser weights where a channel is all but dead, and the biases on their new grids.

    Batch normalization leaves channels with weights near zero. On the raised grid a weight is off by half a step at most: 1/32,000 of an
    output's level for each tap in 8 bit, 1/128 of one of the 65,536 in 16 bit. The bias, which is all that such a channel has, keeps a
    resolution of a millionth of a level. A weight that several products read gets the coarsest grid that one of them needs.
    """
    grids = {entry.tensor: table[entry.key] for entry in placement.activations}
    groups = {group.name: group for group in placement.groups}
    found = dict(table)
    for weight in placement.weights:
        group = groups[weight.reader[0]]
        entering, leaving = grids.get(next(iter(group.activations.values()))), grids.get(group.output)
        if entering is not None and leaving is not None:
            least = LEAST_MULTIPLIER * leaving.scale / entering.scale
            found[weight.key] = replace(found[weight.key], scale=np.maximum(found[weight.key].scale, least).astype(np.float32))
    for bias in placement.biases:
        scale = np.asarray(found[bias.activation].scale * found[bias.weight].scale, np.float32)
        found[bias.key] = replace(found[bias.key], scale=scale)
    return found


def _fits(grid: Affine) -> bool:
    """Whether QNN has a weight's grid: signed bytes or less around zero, not cut into blocks; one scale may have a zero point."""
    return grid.dtype in ("int4", "int8") and grid.block is None and (grid.axis is None or not np.any(grid.zero_point))


def _fresh(graph: ir.Graph, placement: Placement, given: Mapping[str, Affine]) -> tuple[str, ...]:
    return tuple(group.name for group in placement.groups if group.is_product and _weight(graph, group) not in given)


def _weight(graph: ir.Graph, group: Group) -> str:
    if group.weight is None:
        return ""
    value = next(node for node in graph if node.name == group.name).inputs[group.weight]
    return str(value.name) if value is not None else ""


def _is_same(one: Affine | None, other: Affine) -> bool:
    return one is not None and one.dtype == other.dtype and bool(one.scale == other.scale) and bool(one.zero_point == other.zero_point)
