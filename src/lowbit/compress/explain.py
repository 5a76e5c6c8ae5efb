"""Say layer by layer what quantization does to a model, and why. Pure: everything was measured before.

How much a layer hurts is its damage to the model's output (compress/sensitivity.py). Why follows from what calibration saw of the
tensor it reads (outliers, how much of the range is used, how far channels lie apart), from its weights, and from which of the two
makes the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lowbit.compress.calibrate import CalibrationStats
from lowbit.compress.sensitivity import Sensitivity
from lowbit.errors import DataError
from lowbit.graph.groups import Group
from lowbit.quant.observers import Histogram
from lowbit.quant.outliers import facts
from lowbit.types import Array, RangeMethod

MIDDLE = 0.999
"""Share of the values whose range is compared with the whole one."""

TAIL_RULES = 0.5
"""Share of the range that the farthest 0.1 % of the values take, from which on they explain the noise: half of all levels."""

APART = 8.0
"""Largest over median channel from which on they explain the noise: half of the channels have less than six of the eight bits."""

MARGIN_DB = 6.0
"""How much noisier activations must be than weights, or the other way round, to be the one to blame: twice the amplitude."""

QUIET_DB = 35.0
"""Signal over noise from which on a layer counts as quiet: what it damages all the same, it damages because the output depends on it."""

MATTERS = 0.01
"""Share of all damage from which on a layer's noise is worth a reason."""

ENOUGH = 0.8
"""Share of all damage that the layers named as worth leaving in floating point make up."""


@dataclass(frozen=True)
class Layer:
    """What one product suffers, and facts that say why.

    Attributes:
        name: Of its anchor node.
        kind: Operator type.
        tensor: What it reads.
        maker: The group that hands that tensor out; None for inputs of the model and what no group makes.
        damage: To the model's output, when this layer alone is quantized.
        share: Of all layers' damages.
        rank: 1 = does the most damage.
        sqnr: Of its own output, dB; None where nothing changed.
        use: Share of the quantized range of what it reads that the middle 99.9 % of the values use; None without a histogram.
        kurtosis: Excess kurtosis of what it reads.
        tail: Share of the range that only the farthest 0.1 % of the values use.
        input_spread: Largest over median channel of what it reads, by magnitude.
        weight_spread: Likewise of the output channels of its weights.
        sqnr_weights: With its weights alone quantized, dB.
        sqnr_activations: With what it reads alone quantized, dB.
        sqnr_w4a8: With 4-bit weights, dB.
    """

    name: str
    kind: str
    tensor: str
    maker: str | None
    damage: float
    share: float
    rank: int
    sqnr: float | None
    use: float | None = None
    kurtosis: float | None = None
    tail: float | None = None
    input_spread: float | None = None
    weight_spread: float | None = None
    sqnr_weights: float | None = None
    sqnr_activations: float | None = None
    sqnr_w4a8: float | None = None


@dataclass(frozen=True)
class Layers:
    """All products of a model, in the order in which they run.

    Attributes:
        format: In which they were tried, e.g. "w8a8".
        ranges: How activation ranges followed from the samples.
        shared: All output channels of a weight share one scale.
        kind: What damage is; see `Sensitivity.kind`.
        samples: Seen.
        passes: Forward passes over them that it took to tell damages apart.
        layers: One a product.
    """

    format: str
    ranges: str
    shared: bool
    kind: str
    samples: int
    passes: float
    layers: tuple[Layer, ...]

    def worst(self, most: int) -> list[Layer]:
        """The layers that do the most damage, the worst first."""
        return sorted(self.layers, key=lambda layer: layer.rank)[:most]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words; every layer with its reason."""
        rows = [{**asdict(layer), "why": why(layer, shared=self.shared)} for layer in self.layers]
        return {"schema": 1, **asdict(self), "layers": rows}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Layers:
        """Reads what `to_json` made.

        Raises:
            DataError: it is something else.
        """
        try:
            if raw["schema"] != 1:
                raise DataError(f"The explanation has schema {raw['schema']}; this version reads 1.", "Analyze the model again.")
            rows = tuple(Layer(**{key: value for key, value in row.items() if key != "why"}) for row in raw["layers"])
            return cls(**{**{key: raw[key] for key in cls.__dataclass_fields__}, "layers": rows})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError("This is no explanation of layers.", "Analyze the model again.") from error


@dataclass(frozen=True)
class Seen:
    """What was seen besides, as far as it was.

    Attributes:
        weights: Group -> largest magnitude of each output channel of its weight.
        channels: Tensor -> largest magnitude of each channel.
        noise: (group, format) -> dB, with formats "w8" (weights alone), "a8" (activations alone) and "w4a8".
    """

    weights: Mapping[str, Array]
    channels: Mapping[str, Array]
    noise: Mapping[tuple[str, str], float]


NOTHING = Seen({}, {}, {})


def explain(
    found: Sensitivity,
    groups: Sequence[Group],
    stats: CalibrationStats,
    *,
    format_name: str,
    ranges: RangeMethod,
    shared: bool = False,
    seen: Seen = NOTHING,
) -> Layers:
    """Puts together what is known of every product that was tried.

    Args:
        found: Damage and noise of the products.
        groups: Of the prepared model, in the order in which they run.
        stats: Of the same model.
        format_name: One of those that were tried.
        ranges: By which they were tried.
        shared: All output channels of a weight share one scale.
        seen: What else was looked at.
    """
    ranks = {name: position for position, name in enumerate(found.ranking(format_name), 1)}
    total = sum(found.damage[name, format_name] for name in ranks)
    makers = {group.output: group.name for group in groups}

    def layer(group: Group) -> Layer:
        tensor, damage = group.activations[min(group.activations)], found.damage[group.name, format_name]
        return Layer(
            name=group.name,
            kind=group.kind,
            tensor=tensor,
            maker=makers.get(tensor),
            damage=damage,
            share=float(damage / total) if total else 0.0,
            rank=ranks[group.name],
            sqnr=_finite(found.local_sqnr.get((group.name, format_name))),
            input_spread=spread(seen.channels[tensor]) if tensor in seen.channels else None,
            weight_spread=spread(seen.weights[group.name]) if group.name in seen.weights else None,
            sqnr_weights=_finite(seen.noise.get((group.name, "w8"))),
            sqnr_activations=_finite(seen.noise.get((group.name, "a8"))),
            sqnr_w4a8=_finite(seen.noise.get((group.name, "w4a8"))),
            **_facts(stats, tensor, ranges),
        )

    layers = tuple(layer(group) for group in groups if group.name in ranks)
    return Layers(format_name, ranges, shared, found.kind, found.samples, found.passes, layers)


def _facts(stats: CalibrationStats, tensor: str, ranges: RangeMethod) -> dict[str, float]:
    """Of a tensor's values, where calibration kept a histogram."""
    if tensor not in stats.tensors or not stats.tensors[tensor].histogram.count:
        return {}
    histogram = stats.tensors[tensor].histogram
    outliers = facts(histogram)
    use = range_use(histogram, *stats.range(tensor, ranges))
    return {"use": use, "kurtosis": outliers.kurtosis, "tail": outliers.range_share}


def _finite(decibel: float | None) -> float | None:
    return decibel if decibel is not None and math.isfinite(decibel) else None


def range_use(histogram: Histogram, low: float, high: float) -> float:
    """Share of [low, high] that the middle 99.9 % of the values use, 0-1, to the width of a bin.

    >>> round(range_use(Histogram.of(np.linspace(0, 1, 10_000)), 0.0, 2.0), 2)
    0.5
    """
    if high <= low:
        return 0.0
    below = np.cumsum(histogram.counts) / histogram.counts.sum()
    first = int(np.searchsorted(below, (1 - MIDDLE) / 2, side="right"))
    last = min(int(np.searchsorted(below, (1 + MIDDLE) / 2)), len(below) - 1)
    start, end = np.clip([histogram.edges[first], histogram.edges[last + 1]], low, high)
    return float((end - start) / (high - low))


def spread(magnitudes: Array) -> float | None:
    """Largest over median magnitude of the channels that are not zero throughout; None for a single one.

    >>> spread(np.array([1.0, 2.0, 0.0, 80.0]))
    40.0
    """
    alive = magnitudes[magnitudes > 0]
    return float(alive.max() / np.median(alive)) if len(alive) > 1 else None


def noise_source(layer: Layer) -> str | None:
    """What makes the noise, "weights" or "activations"; None where both do or nobody looked."""
    if layer.sqnr_weights is None or layer.sqnr_activations is None:
        return None
    gap = layer.sqnr_weights - layer.sqnr_activations
    return "activations" if gap > MARGIN_DB else "weights" if gap < -MARGIN_DB else None


def why(layer: Layer, *, shared: bool = False) -> str:
    """Why a layer does damage, in a short sentence without a full stop; empty where it does next to none.

    Args:
        layer: Of which.
        shared: All output channels of a weight share one scale. Where each has its own, it costs nothing that they differ.
    """
    if layer.share < MATTERS:
        return ""
    source, reasons = noise_source(layer), []
    if source != "weights":
        if layer.tail is not None and layer.tail >= TAIL_RULES:
            reasons.append(f"0.1 % of its input's values take {100 * layer.tail:.0f} % of the range")
        if layer.input_spread is not None and layer.input_spread >= APART:
            reasons.append(f"channels of its input differ {layer.input_spread:.0f}-fold")
    if source != "activations" and shared and layer.weight_spread is not None and layer.weight_spread >= APART:
        reasons.append(f"channels of its weights differ {layer.weight_spread:.0f}-fold and share one scale")
    if reasons:
        return "; ".join(reasons)
    if layer.sqnr is None or layer.sqnr >= QUIET_DB:
        return "little noise of its own: the output depends on it"
    if source is None:
        return "no outlier stands out: all of its values are a little too coarse"
    other = "weights" if source == "activations" else "activations"
    return f"its {source} make the noise, not its {other}"


def leave_in_float(layers: Iterable[Layer], share: float = ENOUGH) -> list[Layer]:
    """The fewest layers that make up this share of all damage, the worst first; empty where nothing does any.

    What a search leaves in floating point depends on what each layer's time is worth, too (compress/allocate.py).
    """
    left: list[Layer] = []
    total = 0.0
    for layer in sorted(layers, key=lambda layer: layer.rank):
        if total >= share or layer.share <= 0:
            break
        left.append(layer)
        total += layer.share
    return left
