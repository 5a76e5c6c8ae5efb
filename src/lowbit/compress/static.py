"""Make a static integer model: transform, calibrate, place, fit, write. Each transform leaves a model that still computes in FP32.

equalize   scale channels between layers, where that leaves the function as it is
smooth     scale the inputs of matrix products against their weights
fit        round weights with feedback and correct biases, product by product
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.capture import Captured
from lowbit.compress.equalize import equalize
from lowbit.compress.evidence import Evidence
from lowbit.compress.fit import Way, fit
from lowbit.compress.products import Product, products, with_biases
from lowbit.compress.sessions import trim
from lowbit.compress.smooth import smooth
from lowbit.compress.threads import one_thread
from lowbit.errors import unknown
from lowbit.graph import ir_files
from lowbit.graph.groups import Group
from lowbit.graph.parameterize import RangeOf, Table, parameterize
from lowbit.graph.place import Format, FormatOf, Placement, place
from lowbit.graph.profiles import PROFILES, Profile
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.recipe import Dtype, QuantSpec, Recipe, widths
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


_PRODUCTS = frozenset().union(*(each.products for each in PROFILES.values()))


@dataclass(frozen=True)
class Made:
    """What was decided on the way.

    Attributes:
        placement: Where the graph is rounded.
        table: Parameters of every rounded tensor.
        factors: Tensor -> factor a channel by which it was divided.
        ways: Product -> how its weights and bias were fitted.
    """

    placement: Placement
    table: Table
    factors: Mapping[str, Array]
    ways: Mapping[str, Way]


def write_static(evidence: Evidence, out: Path, recipe: Recipe, target: Profile) -> Made:
    """Writes the static integer model of a recipe.

    Args:
        evidence: Of the prepared model.
        out: Where the artifact goes.
        recipe: Its specs, range method, transforms, formats, operators and exclusions are used.
        target: Where the artifact will run.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder, one_thread():
        model = ir_files.read(evidence.light)
        made = _quantize(model, evidence, recipe, target, Path(folder))
        ir_files.write(model, out)
    return made


def _quantize(model: ir.Model, evidence: Evidence, recipe: Recipe, target: Profile, folder: Path) -> Made:
    """Makes the static integer model of a recipe in place; weights may come to lie in the folder."""
    assert recipe.activations is not None, f"{recipe.name} is not a static recipe"
    scaled = _scale(model, evidence, recipe, target) if "equalize" in recipe.transforms else {}
    stats = _stats_of(model, evidence, folder) if scaled else evidence.stats
    if "fit" in recipe.transforms:
        with_biases(model)
    placement = place(model.graph, target, format_of(recipe), stats.tensors)
    smoothing = _smooth(model, evidence, recipe, placement, scaled) if "smooth" in recipe.transforms else {}
    ranges = _ranges(recipe, stats, evidence, smoothing, {str(v.name) for v in model.graph.inputs})
    table = parameterize(placement, ranges, values_of(model))
    ways: dict[str, Way] = {}
    if "fit" in recipe.transforms:
        found = {n: p for n, p in products(model, placement.groups).items() if n in placement.formats}
        grids = {weight.tensor: table[weight.tensor] for weight in placement.weights}
        keys = {edge[0]: entry.key for entry in placement.activations for edge in entry.readers or ()}
        ways = fit(model, found, evidence.captured, table, {**scaled, **smoothing}, keys)
        table = parameterize(placement, ranges, values_of(model), grids)
    write_pairs(model, placement, table, smoothing, target=target)
    return Made(placement, table, {**scaled, **smoothing}, ways)


def write_scaled(evidence: Evidence, out: Path, recipe: Recipe, target: Profile) -> Path:
    """Writes the FP32 model that a recipe's scaling leaves: what its sensitivity is measured on."""
    model = ir_files.read(evidence.light)
    if "equalize" in recipe.transforms:
        with one_thread():
            _scale(model, evidence, recipe, target)
    ir_files.write(model, out)
    return out


def _stats_of(model: ir.Model, evidence: Evidence, folder: Path) -> CalibrationStats:
    """Range statistics of a transformed model, whose large weights lie in the folder from then on."""
    transformed = folder / "transformed.onnx"
    ir_files.write_apart(model, transformed)
    trim()
    return evidence.stats_of(transformed)


def check_formats(recipe: Recipe, prepared: Path) -> None:
    """Holds the formats of a recipe against the model that they are for.

    Raises:
        UsageError: a format or a product that there is none of.
    """
    if not recipe.formats:
        return
    products = [str(node.name) for node in ir_files.read(prepared).graph if node.op_type in _PRODUCTS]
    for name, form in recipe.formats.items():
        widths(form)
        if name not in products:
            raise unknown("product", name, products)


def format_of(recipe: Recipe) -> FormatOf:
    """Group -> the format that a recipe wants for it."""
    assert recipe.activations is not None
    default = Format(recipe.weights, recipe.activations)
    own = {group: named_format(name, default) for group, name in recipe.formats.items()}

    def lookup(group: Group) -> Format | None:
        if group.name in own:
            return own[group.name]
        left_out = recipe.operators and group.kind not in recipe.operators
        return None if left_out or any(name in recipe.exclude for name in group.nodes) else default

    return lookup


def named_format(name: str, default: Format) -> Format | None:
    """The format of a name like "w4a8", as granular and symmetric as `default`; None for "float".

    Raises:
        UsageError: a name that is none.
    """
    bits = widths(name)
    if bits is None:
        return None
    return Format(*(_resized(spec, count) for spec, count in zip((default.weights, default.activations), bits, strict=True)))


def _resized(spec: QuantSpec, bits: int) -> QuantSpec:
    return replace(spec, dtype=cast(Dtype, f"{spec.dtype.rstrip('0123456789')}{bits}"))


def _scale(model: ir.Model, evidence: Evidence, recipe: Recipe, target: Profile) -> dict[str, Array]:
    assert recipe.activations is not None
    with_biases(model)
    placement = place(model.graph, target, format_of(recipe), _everything(model))
    found = {n: p for n, p in products(model, placement.groups).items() if n in placement.formats}
    return equalize(model, found, evidence.captured, recipe.weights, recipe.activations)


def _smooth(model: ir.Model, evidence: Evidence, recipe: Recipe, placement: Placement, scaled: Collection[str]) -> dict[str, Array]:
    assert recipe.activations is not None
    found = {n: p for n, p in products(model, placement.groups).items() if n in placement.formats}
    entries = _smoothable(placement, found) - set(scaled)  # rows of an equalized tensor are not what flows there now
    return smooth(model, found, evidence.captured, entries, recipe.weights, recipe.activations)


def _smoothable(placement: Placement, found: Mapping[str, Product]) -> set[str]:
    """Tensors that are rounded once, for products alone whose weights can all take the factors."""
    rounded = Counter(entry.tensor for entry in placement.activations)
    reading = {entry.tensor: {name for name, _ in entry.readers or ()} for entry in placement.activations}
    return {tensor for tensor, readers in reading.items() if readers and rounded[tensor] == 1 and readers <= set(found)}


def _ranges(recipe: Recipe, stats: CalibrationStats, evidence: Evidence, smoothing: Mapping[str, Array], inputs: set[str]) -> RangeOf:
    """Ranges by the recipe's method; of a smoothed tensor what its channels reach after smoothing.

    A model's inputs keep their whole range under "entropy": the background of images is a spike that the
    divergence follows, and it cut all bright pixels off (docs/lab.md has the numbers).
    """
    method = recipe.ranges
    assert method is not None, f"{recipe.name} names no range method"

    @cache  # a table is made twice: before weights are fitted, and after
    def lookup(tensor: str) -> tuple[float, float]:
        if tensor in smoothing:
            return _smoothed_range(evidence.captured, tensor, smoothing[tensor])
        return stats.range(tensor, "minmax" if method == "entropy" and tensor in inputs else method)

    return lookup


def _smoothed_range(captured: Captured, tensor: str, factors: Array) -> tuple[float, float]:
    return float((captured.low[tensor] / factors).min()), float((captured.high[tensor] / factors).max())


def _everything(model: ir.Model) -> set[str]:
    return {str(v.name) for v in model.graph.inputs} | {str(v.name) for node in model.graph for v in node.outputs}
