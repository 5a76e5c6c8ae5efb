"""Write a neutral model as QDQ ONNX again, in the dialect of a profile and on the candidate's own grids.

For targets that take the pairs as onnxruntime does: where a tensor has a grid in the table it gets exactly that one, expressed with the
profile's sign; what the profile rounds beyond that takes the range that calibration saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.neutral import Neutral
from lowbit.graph import ir_files
from lowbit.graph.groups import Group
from lowbit.graph.parameterize import Table, parameterize
from lowbit.graph.place import Format, Placement, place
from lowbit.graph.profiles import ONNXRUNTIME_CPU, Profile
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.quant.affine import Affine, span
from lowbit.recipe import QuantSpec
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Rounded:
    """What was written.

    Attributes:
        path: The file.
        placement: Where it is rounded.
        table: Grids of everything in the placement, by key.
        outputs: Output -> its grid, of outputs that are rounded for everybody.
        floats: Products that stay in floating point: names of nodes.
    """

    path: Path
    placement: Placement
    table: Table
    outputs: Mapping[str, Affine]
    floats: tuple[str, ...]


def write_qdq(
    source: Neutral, path: Path, profile: Profile = ONNXRUNTIME_CPU, *, batch: int | None = None, renamed: Mapping[str, str] | None = None
) -> Rounded:
    """Writes a QDQ model.

    Args:
        source: A quantized model; not changed.
        path: Of the file.
        profile: Says where it is rounded, and in which dialect.
        batch: Fixes the first axis of inputs and outputs; None leaves it as it is.
        renamed: Input or output -> the name that the target knows it by.

    Raises:
        ModelError: nothing in the model would be rounded, or its operator set cannot be raised.
    """
    model = source.model.clone()
    ranges = {**source.ranges, **{name: span(grid) for name, grid in source.activations.items()}}
    placement = place(model.graph, profile, lambda group: format_of(source, model.graph, group), ranges)
    if not placement.formats:
        raise ModelError(
            f"Nothing in '{source.candidate}' computes on integers here: no product has a grid for its weights and for what goes in.",
            "Export a candidate with static ranges, e.g. --candidate int8-static-mse@onnxruntime.",
        )
    table = parameterize(placement, ranges.__getitem__, values_of(model), source.weights)
    everywhere = {entry.tensor: table[entry.key] for entry in placement.activations if entry.readers is None}
    products = tuple(group.name for group in placement.groups if group.is_product and group.name not in placement.formats)
    outputs = {(renamed or {}).get(info.name, info.name): everywhere[info.name] for info in source.outputs if info.name in everywhere}
    write_pairs(model, placement, table, target=profile)
    _rename(model.graph, renamed or {})
    if batch is not None:
        _fix_batch(model.graph, batch)
    ir_files.write(model, path)
    return Rounded(path, placement, table, outputs, products)


def format_of(source: Neutral, graph: ir.Graph, group: Group) -> Format | None:
    """How the candidate computes a group: the types of its grids; None where it is in floating point there."""
    entering = source.activations.get(next(iter(group.activations.values()), ""))
    if group.weight is None:
        return None if entering is None else Format(QuantSpec("int8", symmetric=True), _spec(entering))
    node = next(node for node in graph if node.name == group.name)
    constant = node.inputs[group.weight]
    weight = source.weights.get(str(constant.name)) if constant is not None else None
    return None if weight is None or entering is None else Format(_spec(weight), _spec(entering))


def _spec(grid: Affine) -> QuantSpec:
    granularity = "per-tensor" if grid.axis is None else "per-channel" if grid.block is None else "per-group"
    return QuantSpec(grid.dtype, granularity, symmetric=grid.symmetric, block=grid.block)  # type: ignore[arg-type]


def on_grid(values: Mapping[str, Array], grids: Mapping[str, Affine]) -> dict[str, Array] | None:
    """Rounded real numbers as levels, exactly; None unless every tensor has a grid."""
    if any(name not in grids for name in values):
        return None
    return {name: np.rint(array / grids[name].scale).astype(np.int32) + grids[name].zero_point for name, array in values.items()}


def _rename(graph: ir.Graph, renamed: Mapping[str, str]) -> None:
    taken = {str(value.name): value for node in graph for value in node.outputs} | {str(v.name): v for v in graph.inputs}
    for value in (*graph.inputs, *graph.outputs):
        new = renamed.get(str(value.name))
        if new is None or new == value.name:
            continue
        if (other := taken.get(new)) is not None:
            other.name = f"{new}_inside"
        value.name = new


def _fix_batch(graph: ir.Graph, batch: int) -> None:
    import onnx_ir

    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = onnx_ir.Shape([batch, *list(value.shape)[1:]])
