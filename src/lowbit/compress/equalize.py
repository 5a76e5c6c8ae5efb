"""Equalize the channels between layers on the data that flows there: scale what one layer gives, unscale what the next reads.

Weights have a grid per output channel, activations one for all channels. A channel that uses a fiftieth of the range is left with
five levels of 256. Where one product feeds others through nothing but ReLU or a clip, each channel can be divided by a factor in
the first and multiplied in the others without changing the function (cross-layer equalization: Nagel et al. 2019, arXiv 1906.04721).
There the factors come from weight ranges; here from the activations, with a strength that is chosen per tensor by the error of what
reads it, as in SmoothQuant. In front of a depthwise convolution, whose weights have a grid a channel, equalizing costs nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.compress.capture import Captured
from lowbit.compress.products import Constants, Product, parts_of
from lowbit.quant.affine import from_range, from_values, round_trip
from lowbit.quant.equalization import clip_bounds
from lowbit.recipe import QuantSpec
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""0 leaves the channels alone, 1 gives all of them the same range."""

LEAST = 1 / 64
"""Least factor: a channel that was hardly seen is not blown up without bounds."""

MARGIN = 0.1
"""Room under a clip for values higher than calibration has seen, as a share."""

_JUDGED = 256  # rows on which strengths are compared
_OUTPUTS = 64  # output channels of a group, likewise


@dataclass(frozen=True)
class Joint:
    """A tensor between one product and the products that read it.

    Attributes:
        tensor: Its name.
        maker: The product that gives it.
        readers: All who read it.
        bottom: Lower bound of the clip between, -inf where there is none.
        top: Upper bound.
    """

    tensor: str
    maker: Product
    readers: tuple[Product, ...]
    bottom: float
    top: float


def joints(model: ir.Model, found: dict[str, Product]) -> list[Joint]:
    """All tensors whose channels can be scaled, in the order of the graph."""
    nodes = {str(node.name): node for node in model.graph}
    values = {str(v.name): v for node in model.graph for v in node.outputs}
    result = []
    for maker in found.values():
        value = values[maker.group.output]
        readers = [use.node.name for use in value.uses()]
        bounds = _bounds([nodes[name] for name in maker.group.nodes[1:]], model)
        if bounds is None or value.is_graph_output() or not readers or any(name not in found for name in readers):
            continue
        if _adds_what_cannot_be_scaled(maker) or any((found[str(name)].layout == "conv") != (maker.layout == "conv") for name in readers):
            continue  # convolutions have their channels on another axis than matrix products
        result.append(Joint(str(value.name), maker, tuple(found[str(name)] for name in dict.fromkeys(readers)), *bounds))
    return result


def equalize(
    model: ir.Model, found: dict[str, Product], captured: Captured, weights: QuantSpec, activations: QuantSpec
) -> dict[str, Array]:
    """Equalizes a model in place.

    Args:
        model: A prepared model.
        found: Its products.
        captured: Rows and channel ranges of what they read.
        weights: How weights will be quantized.
        activations: How activations will be.

    Returns:
        Tensor -> factor a channel [C] by which it was divided, of those that were.
    """
    constants = Constants(model)
    factors: dict[str, Array] = {}
    for joint in joints(model, found):
        chosen = _choose(joint, constants, captured, weights, activations)
        if chosen is None:
            continue
        factors[joint.tensor] = chosen
        _divide(joint.maker, constants, chosen)
        for reader in joint.readers:
            matrices = reader.matrices(constants[reader.weight])
            constants[reader.weight] = reader.back(matrices * reader.by_channel(chosen), constants[reader.weight].shape)
    return factors


def _choose(joint: Joint, constants: Constants, captured: Captured, weights: QuantSpec, activations: QuantSpec) -> Array | None:
    """The factors with the least error of the readers' outputs; None where leaving the channels alone is best."""
    low, high = captured.low[joint.tensor], captured.high[joint.tensor]
    reach = np.maximum(np.maximum(high, -low), 0.0)
    if not np.any(reach > 0):
        return None
    bounds = clip_bounds(low, high, joint.bottom, joint.top, MARGIN)
    whole = joint.top if np.isfinite(joint.top) else float(reach.max())
    full = np.where(reach > 0, np.maximum(reach * (1 + MARGIN if np.isfinite(joint.top) else 1) / whole, LEAST), 1.0)
    judged = [_Judged.of(reader, constants, captured, weights, activations) for reader in joint.readers]
    best, least = None, np.inf
    for strength in STRENGTHS:
        tried = np.clip(full**strength, bounds.least, bounds.most).astype(np.float32)
        tried[bounds.most == 1.0] = 1.0
        error = sum(one.error(tried, low, high) for one in judged)
        if error < least * (1 - 1e-3):
            best, least = tried, error
    return best if best is not None and np.any(best != 1.0) else None


@dataclass(frozen=True)
class _Judged:
    """One reader on sampled rows: exact outputs, and what quantization makes of them."""

    product: Product
    rows: Array
    matrices: Array
    exact: Array
    weights: QuantSpec
    activations: QuantSpec

    @classmethod
    def of(cls, product: Product, constants: Constants, captured: Captured, weights: QuantSpec, activations: QuantSpec) -> _Judged:
        rows = captured.rows[product.group.name]
        rows = rows[:: max(1, len(rows) // _JUDGED)]
        matrices = product.matrices(constants[product.weight])
        matrices = matrices[:, :: max(1, matrices.shape[1] // _OUTPUTS)]
        return cls(product, rows, matrices, outputs(rows, matrices), weights, activations)

    def error(self, factors: Array, low: Array, high: Array) -> float:
        """Relative squared error of the outputs, about their mean (bias correction takes the mean up)."""
        across = self.product.by_channel(factors)
        grid = from_range((low / factors).min(), (high / factors).max(), self.activations.dtype, symmetric=self.activations.symmetric)
        scaled = self.matrices * across
        flat = scaled.reshape(-1, scaled.shape[-1])
        axis = None if self.weights.granularity == "per-tensor" else 0
        rounded = round_trip(flat, from_values(flat, self.weights.dtype, symmetric=self.weights.symmetric, axis=axis))
        rounded = rounded.reshape(scaled.shape)
        wrong = np.empty_like(self.exact)
        for part in parts_of(self.rows):
            rows = round_trip(self.rows[:, part] / np.swapaxes(across[part], 0, 1), grid)
            wrong[:, part] = outputs(rows, rounded[part])
        wrong -= self.exact
        wrong -= wrong.mean(axis=0)
        return float(np.sum(wrong**2) / max(float(np.sum((self.exact - self.exact.mean(axis=0)) ** 2)), 1e-30))


def outputs(rows: Array, matrices: Array) -> Array:
    """Rows [R, g, K] through matrices [g, O/g, K] -> [R, g, O/g]."""
    product: Array = np.matmul(np.swapaxes(rows, 0, 1), np.swapaxes(matrices, 1, 2))
    return np.swapaxes(product, 0, 1)


def _divide(maker: Product, constants: Constants, factors: Array) -> None:
    matrices = maker.matrices(constants[maker.weight])
    scaled = matrices / factors.reshape(matrices.shape[0], matrices.shape[1], 1)
    constants[maker.weight] = maker.back(scaled, constants[maker.weight].shape)
    if maker.bias is not None:
        constants[maker.bias] = constants[maker.bias] / factors.reshape(constants[maker.bias].shape)


def _adds_what_cannot_be_scaled(maker: Product) -> bool:
    """Whether it has a bias that is not its own, or not one number a channel."""
    return maker.adds and maker.bias is None


def _bounds(followers: list[ir.Node], model: ir.Model) -> tuple[float, float] | None:
    """Bounds of what lies between, (-inf, inf) where it scales freely; None where it does not scale at all."""
    bottom, top = -np.inf, np.inf
    for node in followers:
        if node.op_type == "Clip":
            limits = [Constants(model)[str(v.name)].item() if v is not None else None for v in node.inputs[1:3]]
            bottom = bottom if not limits or limits[0] is None else max(bottom, limits[0])
            top = top if len(limits) < 2 or limits[1] is None else min(top, limits[1])
        elif node.op_type not in ("Add", "LeakyRelu", "Relu"):
            return None
    return (bottom, top) if bottom <= 0 <= top else None
