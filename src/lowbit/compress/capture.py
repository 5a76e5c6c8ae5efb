"""Sample what goes into the products of a model: the rows that transforms fit weights and factors to.

A few hundred rows a product say all that rounding, clipping, smoothing and bias correction need. They are taken while the model
runs, batch by batch, at positions that depend on nothing but a seed: the same rows can be taken from a quantized model, where they
show what its layers really see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.compress.kept import Kept, Waiting
from lowbit.compress.sessions import misfit, open_session, read_model, show
from lowbit.errors import DataError
from lowbit.graph.groups import Group
from lowbit.graph.probes import Shapes, infer, shapes_of
from lowbit.graph.row_probes import RowProbe, instrument
from lowbit.quant.layout import output_size, patches, sample_positions, taps, without_padding
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

SHOWN = 1 << 27
"""Numbers that products read in all the batches that are looked at, about: each costs a pass, so large models give fewer."""

LEAST = 16
"""Batches that are taken in any case."""


_FLOAT = 1  # TensorProto.FLOAT


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

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of a convolution: kernel, strides, pads and dilations."""
        return self.kernel, self.strides, self.pads, self.dilations


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
    with Waiting() as waiting:
        look: _Look | None = None
        most = LEAST
        for feeds in batches:
            waiting.add(feeds)
            if look is None:
                look = _Look.open(path, where, feeds, threads)
                most = max(LEAST, SHOWN // max(look.size(feeds), 1))
            if len(waiting) >= most:
                break
        if look is None:
            raise DataError("There are no samples to take rows from.", "Give at least one calibration sample.")
        kept = Kept()
        low: dict[str, Array] = {}
        high: dict[str, Array] = {}
        for seed, feeds in enumerate(waiting):
            draw = _Draw(rows, len(waiting), seed)
            taken, extremes = look(feeds, draw)
            for tensor, (least, greatest) in extremes.items():
                low[tensor] = np.minimum(low.get(tensor, least), least)
                high[tensor] = np.maximum(high.get(tensor, greatest), greatest)
            for name, found in taken.items():
                kept.add(name, found)
    return Captured(kept, low, high)


@dataclass(frozen=True)
class _Draw:
    """Which rows of a batch are taken: a share of `most`, by a seed."""

    most: int
    parts: int
    seed: int

    def of_matrix(self, count: int, size: int) -> Array:
        """Of `count` rows of `size` numbers, int64 [R]."""
        wanted = _share(self.most, self.parts, size, 0)
        return np.sort(np.random.default_rng(self.seed).choice(count, min(wanted, count), replace=False))

    def of_convolution(self, shape: Sequence[int], site: Site) -> Array:
        """Output positions of a convolution whose input has this shape, see `sample_positions`."""
        extent = output_size(shape[2:], site.kernel, site.strides, site.pads, site.dilations)
        size = shape[1] * math.prod(site.kernel)
        return sample_positions(shape[0], extent, _share(self.most, self.parts, size, size // site.groups, site.groups), self.seed)


@dataclass(frozen=True)
class _Look:
    """A model in which what its products read can be seen: of what convolutions read no more than is wanted, the rest whole.

    Attributes:
        session: Of the model with its probes.
        where: Product -> its site.
        bare: The model without probes and weights, to infer shapes with.
        probes: Tensor -> its probe.
        whole: Tensors that are handed out.
        known: Shapes of all tensors, by those of what is fed.
    """

    session: Any
    where: Mapping[str, Site]
    bare: Any
    probes: Mapping[str, RowProbe]
    whole: list[str]
    known: dict[tuple[Any, ...], Shapes]

    @classmethod
    def open(cls, path: Path, where: Mapping[str, Site], feeds: Feeds, threads: int) -> _Look:
        model = read_model(path)
        bare = infer(model, {name: feed.shape for name, feed in feeds.items()})
        shapes, floats = shapes_of(bare), {v.name for v in bare.graph.value_info if v.type.tensor_type.elem_type == _FLOAT}
        readers: dict[str, list[str]] = {}
        for name, site in where.items():
            readers.setdefault(site.tensor, []).append(name)
        inner = [name for node in model.graph.node for name in node.output if name in readers]
        probed = {t: len(shapes[t]) for t in inner if t in shapes and t in floats and all(where[r].kernel for r in readers[t])}
        probes = instrument(model, probed, readers)
        whole = [tensor for tensor in inner if tensor not in probed]
        show(model, [*whole, *(name for probe in probes.values() for name in probe.outputs)])
        return cls(open_session(model, path, threads, "to look at what its products read"), where, bare, probes, whole, {})

    def shapes(self, feeds: Feeds) -> Shapes:
        """Of all tensors that can be told for a batch."""
        given = {name: feed.shape for name, feed in feeds.items()}
        key = tuple(sorted(given.items()))
        if key not in self.known:
            self.known[key] = {**shapes_of(infer(self.bare, given)), **given}
        return self.known[key]

    def size(self, feeds: Feeds) -> int:
        """Numbers that products read of a batch, as far as they can be told."""
        shapes = self.shapes(feeds)
        return sum(math.prod(shapes.get(tensor, ())) for tensor in {site.tensor for site in self.where.values()})

    def __call__(self, feeds: Feeds, draw: _Draw) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        """Rows of every product, float32 [R, g, K], and lowest and highest values [C] of the channels of what they read."""
        shapes = self.shapes(feeds) if self.probes else {}
        if not all(tensor in shapes for tensor in self.probes):
            given = {name: list(values.shape) for name, values in feeds.items()}
            raise DataError(f"The model cannot take a calibration batch of shape {given}.", "Samples of other shapes before it fitted.")
        probed = {name: site for name, site in self.where.items() if site.tensor in self.probes}
        reads = {n: taps(shapes[s.tensor], *s.layout, draw.of_convolution(shapes[s.tensor], s)) for n, s in probed.items()}
        seen = self._run(feeds, {self.probes[site.tensor].places[name]: reads[name][0].reshape(-1) for name, site in probed.items()})
        rows = {}
        for name, site in self.where.items():
            if name in reads:
                places, inside = reads.pop(name)
                found = without_padding(seen.pop(self.probes[site.tensor].found[name]).reshape(places.shape), inside)
                rows[name] = found.reshape(len(found), site.groups, -1).astype(np.float32, copy=False)
            else:
                rows[name] = _rows(seen[site.tensor], site, draw)
        return rows, self._extremes(seen)

    def _extremes(self, seen: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        axes = {site.tensor: 1 if site.kernel else -1 for site in self.where.values() if site.tensor not in self.probes}
        whole = {tensor: _extremes(seen[tensor], axis) for tensor, axis in axes.items()}
        return whole | {tensor: (seen[probe.low], seen[probe.high]) for tensor, probe in self.probes.items()}

    def _run(self, feeds: Feeds, places: Mapping[str, Array]) -> dict[str, Array]:
        """What was fed, and all outputs."""
        wanted = [*self.whole, *(name for probe in self.probes.values() for name in probe.outputs)]
        if not wanted:  # asked for nothing, the runtime gives everything
            return dict(feeds)
        try:
            found = self.session.run(wanted, {**feeds, **places})
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise misfit(self.session, feeds, error) from error
        return {**feeds, **dict(zip(wanted, found, strict=True))}


def _extremes(x: Array, axis: int) -> tuple[Array, Array]:
    """Lowest and highest value of each channel, [C]."""
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    return x.min(axis=others), x.max(axis=others)


def _rows(x: Array, site: Site, draw: _Draw) -> Array:
    """A batch's share of the rows of a product, float32 [R, g, K]."""
    if not site.kernel:
        flat = x.reshape(-1, 1, x.shape[-1])
        return flat[draw.of_matrix(len(flat), x.shape[-1])].astype(np.float32)
    found = patches(x, *site.layout, draw.of_convolution(x.shape, site))
    return found.reshape(len(found), site.groups, -1).astype(np.float32, copy=False)


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
