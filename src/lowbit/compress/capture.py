"""Sample what goes into the products of a model: the rows that transforms fit weights and factors to.

A few hundred rows a product say all that rounding, clipping, smoothing and bias correction need. They are taken while the model
runs, batch by batch, at positions that depend on nothing but a seed: the same rows can be taken from a quantized model, where they
show what its layers really see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import DataError
from lowbit.graph.groups import Group
from lowbit.quant.layout import output_size, patches, sample_positions
from lowbit.quiet import no_telemetry
from lowbit.types import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

ROWS = 2048
"""Most rows of a product."""

FLOATS = 1 << 20
"""Most numbers kept of a product: wide ones keep fewer rows."""

ENOUGH = 4
"""Rows an input that fitting weights with feedback takes, at least (half of them judge)."""

FEW = 256
"""Rows of a convolution with so many inputs that its weights cannot be fitted with feedback: enough for means and errors."""

MOVED = 1 << 28
"""Numbers that may leave the runtime, about: handing out every tensor costs more than computing it, so large models give fewer samples."""

LEAST = 16
"""Batches that are taken in any case."""


@dataclass(frozen=True)
class Site:
    """Where a product reads, and how its input becomes rows of a matrix product.

    Attributes:
        tensor: What it reads.
        kernel: Extent of a convolution along each spatial axis; empty for matrix products.
        strides: Likewise.
        pads: All begins, then all ends.
        dilations: Likewise.
        groups: Of a convolution.
    """

    tensor: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1


def sites(graph: ir.Graph, groups: Iterable[Group]) -> dict[str, Site]:
    """Group -> its site, for all products whose input can be laid out as rows (transposed convolutions cannot)."""
    nodes = {str(node.name): node for node in graph}
    found = {}
    for group in groups:
        node = nodes[group.name]
        if not group.is_product or node.op_type == "ConvTranspose":
            continue
        site = Site(group.activations[0]) if node.op_type != "Conv" else _conv_site(node, group.activations[0])
        if site is not None:
            found[group.name] = site
    return found


@dataclass(frozen=True)
class Captured:
    """What was seen.

    Attributes:
        rows: Product -> sampled rows of its input, float32 [R, g, K]: K inputs of each of g groups (1 for matrix products).
        low: Tensor that a product reads -> lowest value of each channel over all samples, float32 [C].
        high: Highest, likewise.
    """

    rows: Mapping[str, Array]
    low: Mapping[str, Array]
    high: Mapping[str, Array]


def capture(path: Path, where: Mapping[str, Site], batches: Sequence[Feeds], *, rows: int = ROWS, threads: int = 0) -> Captured:
    """Runs a model, samples the rows of its products, and notes the range of every channel.

    Args:
        path: An ONNX file; not changed.
        where: Product -> its site. Two models whose sites differ in tensors alone give rows of the same positions.
        batches: Calibration samples.
        rows: Most rows of a product.
        threads: For the runtime; 0 means all cores.

    Raises:
        DataError: no samples.
    """
    if not batches:
        raise DataError("There are no samples to take rows from.", "Give at least one calibration sample.")
    tensors = sorted({site.tensor for site in where.values()})
    channel_axis = {site.tensor: 1 if site.kernel else -1 for site in where.values()}
    session, outputs = _session(path, tensors, threads)
    taken: dict[str, list[Array]] = {name: [] for name in where}
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    used = len(batches)
    for seed, feeds in enumerate(batches):
        if seed >= used:
            break
        inner = session.run(outputs, dict(feeds)) if outputs else []  # asked for nothing, the runtime gives everything
        values = dict(feeds) | dict(zip(outputs, inner, strict=True))
        if not seed:
            used = min(used, max(LEAST, MOVED // max(sum(values[tensor].size for tensor in tensors), 1)))
        for tensor in tensors:
            least, most = _extremes(values[tensor], channel_axis[tensor])
            low[tensor] = np.minimum(low.get(tensor, least), least)
            high[tensor] = np.maximum(high.get(tensor, most), most)
        for name, site in where.items():
            taken[name].append(_rows(values[site.tensor], site, rows, used, seed))
    return Captured({name: np.concatenate(parts) for name, parts in taken.items()}, low, high)


def _extremes(x: Array, axis: int) -> tuple[Array, Array]:
    """Lowest and highest value of each channel, [C]."""
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    return x.min(axis=others), x.max(axis=others)


def _rows(x: Array, site: Site, most: int, parts: int, seed: int) -> Array:
    """This batch's share of the rows of a product, float32 [R, g, K]."""
    if not site.kernel:
        flat = x.reshape(-1, 1, x.shape[-1])
        count = _share(most, parts, x.shape[-1], 0)
        chosen = np.sort(np.random.default_rng(seed).choice(len(flat), min(count, len(flat)), replace=False))
        return flat[chosen].astype(np.float32)
    extent = output_size(x.shape[2:], site.kernel, site.strides, site.pads, site.dilations)
    size = x.shape[1] * int(np.prod(site.kernel))
    positions = sample_positions(len(x), extent, _share(most, parts, size, size // site.groups), seed)
    found = patches(x, site.kernel, site.strides, site.pads, site.dilations, positions)
    return found.reshape(len(found), site.groups, -1).astype(np.float32)


def _share(most: int, parts: int, size: int, inputs: int) -> int:
    """Rows of `size` numbers to take from each of so many parts, for a product with so many inputs a group."""
    fitting = FLOATS // size
    enough = fitting if fitting >= ENOUGH * inputs else FEW
    return max(1, min(most, max(enough, FEW)) // parts)


def _conv_site(node: ir.Node, tensor: str) -> Site | None:
    """The site of a convolution; None where its padding is left to the runtime (auto_pad)."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    kernel = weight.const_value.numpy().shape[2:]
    attributes = node.attributes

    def ints(name: str, default: int, count: int) -> tuple[int, ...]:
        return tuple(attributes[name].as_ints()) if name in attributes else (default,) * count

    padding = attributes["auto_pad"].as_string() if "auto_pad" in attributes else "NOTSET"
    if padding not in ("NOTSET", "VALID"):
        return None
    half = len(kernel)
    groups = attributes["group"].as_int() if "group" in attributes else 1
    return Site(tensor, kernel, ints("strides", 1, half), ints("pads", 0, 2 * half), ints("dilations", 1, half), groups)


def _session(path: Path, tensors: Sequence[str], threads: int) -> tuple[Any, list[str]]:
    """A session of the model with some inner tensors as its outputs; inputs of the model are left out."""
    no_telemetry()
    import onnx
    import onnxruntime

    model = onnx.load_model(path)
    inner = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in tensors if name in inner]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted or [model.graph.node[-1].output[0]])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), wanted
