"""Cross-layer equalization: give the channels between two layers similar weight ranges, exactly.

Where only something positively homogeneous lies between two layers (nothing, ReLU, LeakyReLU, PReLU), the channels of the
first may be divided and those of the second multiplied by any positive factors (Nagel et al. 2019, arXiv 1906.04721,
section 4.1). With s = sqrt(r1 / r2) both sides get the range sqrt(r1 r2), which is the best for per-tensor weights. A
chain is swept until nothing moves.

A layer that reads several inputs, or whose output several layers read, ends a chain; that is for the graph to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array

SWEEPS = 50
TOLERANCE = 1e-3
"""A sweep that changes no factor by more than this ends the search."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a chain.

    Attributes:
        weight: Of any rank.
        bias: [out channels], None where there is none.
        out_axis: Of the output channels: 0 for Conv, 1 for MatMul [K, N] and ConvTranspose.
        in_axis: Of the input channels: 1 for Conv, 0 for MatMul and ConvTranspose.
        groups: Of a convolution; a depthwise one has as many as input channels. The axis that counts channels of all groups is 0.
    """

    weight: Array
    bias: Array | None = None
    out_axis: int = 0
    in_axis: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Bounds:
    """Least and most factor of every channel between two layers, each [C]; see `clip_bounds`."""

    least: Array
    most: Array


def equalize(layers: Sequence[Layer], bounds: Sequence[Bounds | None] | None = None, sweeps: int = SWEEPS) -> list[Array]:
    """Factors between each layer of a chain and the next.

    Args:
        layers: In order; output channels of one are the input channels of the next.
        bounds: For each of the len(layers) - 1 joints what its activation allows; None where every factor is exact.
        sweeps: At most.

    Returns:
        One float64 [C] per joint: divide the first layer's output channels by it, multiply the second's input channels with it
        (`apply` does). Channels without weights on one side keep 1.

    Raises:
        UsageError: channels that do not fit, or no bounds for a joint.
    """
    joints = len(layers) - 1
    limits: list[Bounds | None] = [None] * joints if bounds is None else list(bounds)
    if len(limits) != joints:
        raise UsageError(f"A chain of {len(layers)} layers has {joints} joints; found bounds for {len(limits)}.")
    shares = [_magnitudes(layer) for layer in layers]
    outs, ins = ([part.shape[0] * part.shape[axis] for part in shares] for axis in (1, 2))
    if outs[:-1] != ins[1:]:
        raise UsageError(f"Layers with {outs[:-1]} output channels cannot feed layers with {ins[1:]} input channels.")
    found = [np.ones(channels) for channels in outs[:-1]]
    for _ in range(sweeps):
        moved = [_balance(shares, found, joint, limits[joint]) for joint in range(joints)]
        if max(moved, default=0.0) <= TOLERANCE:
            break
    return found


def apply(layers: Sequence[Layer], factors: Sequence[Array]) -> list[Layer]:
    """The chain with its factors moved in: the same function, in the dtypes it came in."""
    result = []
    for index, layer in enumerate(layers):
        divisor = factors[index] if index < len(factors) else None
        multiplier = factors[index - 1] if index > 0 else None
        blocks = _blocks(layer)
        weight = blocks.astype(np.float64)
        if multiplier is not None:
            weight *= multiplier.reshape(blocks.shape[0], 1, blocks.shape[2], 1)
        if divisor is not None:
            weight /= divisor.reshape(blocks.shape[0], blocks.shape[1], 1, 1)
        bias = layer.bias if divisor is None or layer.bias is None else (layer.bias / divisor).astype(layer.bias.dtype)
        result.append(replace(layer, weight=_from_blocks(weight, layer), bias=bias))
    return result


def clip_bounds(low: Array, high: Array, bottom: float, top: float, margin: float = 0.1) -> Bounds:
    """Factors that a Clip with one bound for all channels (ReLU6: 0 and 6) lets pass.

    Dividing a channel by s moves its values to [low / s, high / s] while the clip stays where it is. That is exact as long as
    the clip acts neither before nor after: where the observed values stay inside it with a margin, s may be anything that keeps
    them inside. Where they reach the clip, s must be 1, unless the clip itself can be made per channel (Min and Max with
    constants top / s and bottom / s): then there is no bound, and this function is not needed. A bottom or top of zero
    never binds: zero stays zero.

    Args:
        low: Lowest value of each channel before the clip, [C], from calibration.
        high: Highest, likewise.
        bottom: Of the clip, <= 0; -inf where it has none.
        top: >= 0; inf where it has none.
        margin: How much farther than seen the values may reach, as a share.

    Returns:
        Least and most factor; both 1 where the clip acts.

    Raises:
        UsageError: a clip that does not hold zero, which no scaling keeps.
    """
    if bottom > 0 or top < 0:
        raise UsageError(f"A clip to [{bottom}, {top}] does not hold zero; channels across it cannot be scaled.")
    needed = np.zeros(len(high))
    for reach, end in ((np.maximum(high, 0.0), top), (np.maximum(-low, 0.0), -bottom)):
        if end > 0:  # a clip at zero acts on one side whatever the scale
            needed = np.maximum(needed, reach * (1 + margin) / end)
    acts = needed >= 1.0
    return Bounds(np.where(acts, 1.0, needed), np.where(acts, 1.0, np.inf))


def absorb(first: Layer, second: Layer, low: Array) -> tuple[Layer, Layer]:
    """Moves the part of a bias that ReLU never cuts into the next layer's bias (section 4.1.3), which narrows the range between.

    ReLU(x - c) = ReLU(x) - c as long as x >= c: c is the lowest value seen before the ReLU, where it is positive.
    Only exact where the second layer does not pad with zeros: padding would stand for -c.

    Args:
        first: With a bias.
        second: With a bias.
        low: Lowest value of each channel between the two, before the ReLU, [C].

    Returns:
        Both layers with their new biases.

    Raises:
        UsageError: one of them has no bias.
    """
    if first.bias is None or second.bias is None:
        raise UsageError("Absorbing a bias needs two layers that have one.", "Give the second layer a bias of zeros.")
    shift = np.maximum(np.asarray(low, np.float64), 0.0)
    blocks = _blocks(second).astype(np.float64)
    gain = np.einsum("goip,gi->go", blocks, shift.reshape(blocks.shape[0], blocks.shape[2])).reshape(-1)
    smaller, larger = first.bias - shift, second.bias + gain
    return replace(first, bias=smaller.astype(first.bias.dtype)), replace(second, bias=larger.astype(second.bias.dtype))


def _balance(shares: list[Array], found: list[Array], joint: int, bounds: Bounds | None) -> float:
    """Sets one joint's factors given its neighbours', in place; by how much they changed, relatively."""
    before = _scaled(shares, found, joint).max(axis=2).reshape(-1) * found[joint]
    after = _scaled(shares, found, joint + 1).max(axis=1).reshape(-1) / found[joint]
    alive = (before > 0) & (after > 0)
    factor = np.sqrt(np.divide(before, after, out=np.ones_like(before), where=alive))
    if bounds is not None:
        factor = np.clip(factor, bounds.least, bounds.most)
    moved = float(np.max(np.abs(factor / found[joint] - 1), initial=0.0))
    found[joint] = factor
    return moved


def _scaled(shares: list[Array], found: list[Array], index: int) -> Array:
    """Magnitudes [g, O/g, I/g] of a layer with the factors found so far."""
    part = shares[index]
    if index > 0:
        part = part * found[index - 1].reshape(part.shape[0], 1, part.shape[2])
    return part / found[index].reshape(part.shape[0], part.shape[1], 1) if index < len(found) else part


def _magnitudes(layer: Layer) -> Array:
    """Largest |weight| between each pair of channels, float64 [g, O/g, I/g]."""
    return np.abs(_blocks(layer)).max(axis=3).astype(np.float64)


def _blocks(layer: Layer) -> Array:
    """Any layer's weight as [g, O/g, I/g, P]."""
    axes = (layer.out_axis, layer.in_axis)
    moved = np.moveaxis(layer.weight, axes, (0, 1) if layer.groups == 1 or layer.out_axis == 0 else (1, 0))
    first, second = moved.shape[:2]
    if first % layer.groups:
        raise UsageError(f"A weight of shape {layer.weight.shape} does not split into {layer.groups} groups.")
    blocks = moved.reshape(layer.groups, first // layer.groups, second, -1)
    return blocks if layer.groups == 1 or layer.out_axis == 0 else np.swapaxes(blocks, 1, 2)


def _from_blocks(blocks: Array, layer: Layer) -> Array:
    """What `_blocks` was given, in the layer's dtype."""
    axes = (layer.out_axis, layer.in_axis)
    folded = layer.groups == 1 or layer.out_axis == 0
    target = (0, 1) if folded else (1, 0)
    shape = np.moveaxis(layer.weight, axes, target).shape
    moved = (blocks if folded else np.swapaxes(blocks, 1, 2)).reshape(shape)
    return np.moveaxis(moved, target, axes).astype(layer.weight.dtype)
