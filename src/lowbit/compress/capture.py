"""Sample what goes into the products of a model: the rows that transforms fit weights and factors to.

A few hundred rows a product say all that rounding, clipping, smoothing and bias correction need. They are taken while the model
runs, batch by batch, at positions that depend on nothing but a seed: the same rows can be taken from a quantized model, where they
show what its layers really see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.compress.sessions import misfit, open_session, read_model, show
from lowbit.data.spool import Rows, Spool
from lowbit.errors import DataError
from lowbit.graph.groups import Group
from lowbit.quant.layout import output_size, patches, sample_positions
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

ALONE = 64
"""Rows of a convolution in groups, at least: each row has numbers of all its groups, so few say much."""

IN_MEMORY = 1 << 24
"""Bytes of rows up to which they stay in memory."""

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
            They may lie on disk: every look reads them anew.
        low: Tensor that a product reads -> lowest value of each channel over all samples, float32 [C].
        high: Highest, likewise.
    """

    rows: Mapping[str, Array]
    low: Mapping[str, Array]
    high: Mapping[str, Array]


def capture(path: Path, where: Mapping[str, Site], batches: Iterable[Feeds], *, rows: int = ROWS, threads: int = 0) -> Captured:
    """Runs a model, samples the rows of its products, and notes the range of every channel.

    Args:
        path: An ONNX file; not changed.
        where: Product -> its site. Two models whose sites differ in tensors alone give rows of the same positions.
        batches: Calibration samples; no more of them are read than are used.
        rows: Most rows of a product.
        threads: For the runtime; 0 means all cores.

    Raises:
        DataError: no samples, or such as do not fit the model.
        ModelError: the model cannot be read or run.
    """
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        raise DataError("There are no samples to take rows from.", "Give at least one calibration sample.")
    channel_axis = {site.tensor: 1 if site.kernel else -1 for site in where.values()}
    look = _Look.open(path, sorted(channel_axis), threads)
    values = look(first)
    most = max(LEAST, MOVED // max(sum(values[tensor].size for tensor in channel_axis), 1))
    rest = list(islice(waiting, most - 1))
    kept = _Kept()
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    for seed in range(1 + len(rest)):
        values = values if seed == 0 else look(rest[seed - 1])
        for tensor, axis in channel_axis.items():
            least, greatest = _extremes(values[tensor], axis)
            low[tensor] = np.minimum(low.get(tensor, least), least)
            high[tensor] = np.maximum(high.get(tensor, greatest), greatest)
        for name, site in where.items():
            kept.add(name, _rows(values[site.tensor], site, rows, 1 + len(rest), seed))
    return Captured(kept, low, high)


@dataclass(frozen=True)
class _Look:
    """A model whose inner tensors can be seen."""

    session: Any
    inner: list[str]

    @classmethod
    def open(cls, path: Path, tensors: Sequence[str], threads: int) -> _Look:
        model = read_model(path)
        inner = show(model, tensors)
        return cls(open_session(model, path, threads, "to look at what its products read"), inner)

    def __call__(self, feeds: Feeds) -> Feeds:
        """All tensors for a batch, those that are fed among them."""
        if not self.inner:  # asked for nothing, the runtime gives everything
            return feeds
        try:
            found = self.session.run(self.inner, dict(feeds))
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise misfit(self.session, feeds, error) from error
        return feeds | dict(zip(self.inner, found, strict=True))


class _Kept(Mapping[str, Array]):
    """Rows by product, one part a batch: on disk where they are many, and put together at every look."""

    def __init__(self) -> None:
        self._spool = Spool(IN_MEMORY)
        self._parts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        self._all: Rows | None = None

    def add(self, name: str, rows: Array) -> None:
        start = self._spool.append(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data) // 4
        self._parts.setdefault(name, []).append((start, rows.shape))

    def __getitem__(self, name: str) -> Array:
        if self._all is None:
            self._all = self._spool.rows(np.float32, (self._spool.size // 4,))
        parts = self._parts[name]
        found = np.empty((sum(shape[0] for _, shape in parts), *parts[0][1][1:]), np.float32)
        row = 0
        for start, shape in parts:
            found[row : row + shape[0]] = self._all[start : start + math.prod(shape)].reshape(shape)
            row += shape[0]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


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
    positions = sample_positions(len(x), extent, _share(most, parts, size, size // site.groups, site.groups), seed)
    found = patches(x, site.kernel, site.strides, site.pads, site.dilations, positions)
    return found.reshape(len(found), site.groups, -1).astype(np.float32)


def _share(most: int, parts: int, size: int, inputs: int, groups: int = 1) -> int:
    """Rows of `size` numbers to take from each of so many parts, for a product with so many inputs a group."""
    fitting = FLOATS // size
    enough = max(fitting if fitting >= ENOUGH * inputs else FEW, FEW)
    if groups > 1:  # every row has numbers of all groups; their few inputs are worth fitting
        enough = max(ALONE, ENOUGH * inputs) if ENOUGH * inputs <= FEW else ALONE
        enough = -(-enough // parts) * parts
    return max(1, min(most, enough) // parts)


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
