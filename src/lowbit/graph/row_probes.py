"""Probes for rows: some elements of a tensor, at places that are fed, and the extremes of its channels, taken inside the graph.

A transform asks for a few thousand of the millions of numbers in a large activation. Handing all of them out would copy every
activation, and keep all of them in memory until the last is there. As in `probes`, nodes of the first tensors are listed last, so that
each tensor is looked at and let go as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.graph.probes import MARK, Builder

_INT32 = 6


@dataclass(frozen=True)
class RowProbe:
    """Outputs beside one tensor [N, C, ...].

    Attributes:
        low: Output with the lowest value of each channel, [C].
        high: Output with the highest.
        places: Reader -> input that takes places in the flattened tensor, int32 [n].
        found: Reader -> output with the elements there, [n].
    """

    low: str
    high: str
    places: Mapping[str, str]
    found: Mapping[str, str]

    @property
    def outputs(self) -> list[str]:
        """All of them."""
        return [self.low, self.high, *self.found.values()]


def instrument(model: Any, tensors: Mapping[str, int], readers: Mapping[str, Sequence[str]]) -> dict[str, RowProbe]:
    """Adds probes to a model, in place; what they give is to be made its outputs.

    Args:
        model: onnx.ModelProto of a copy, of operator set 11 or later.
        tensors: Tensor -> how many axes it has, in the order in which the graph computes them.
        readers: Tensor -> names of those who want rows of it.

    Returns:
        Tensor -> its probe.
    """
    import onnx

    builder = Builder(model)
    probes = {name: _probe(builder, name, rank, readers[name]) for name, rank in tensors.items()}
    builder.finish()
    for probe in probes.values():
        model.graph.input.extend(onnx.helper.make_tensor_value_info(name, _INT32, [None]) for name in probe.places.values())
    return probes


def _probe(builder: Builder, name: str, rank: int, readers: Sequence[str]) -> RowProbe:
    others = [axis for axis in range(rank) if axis != 1]
    high, low = (builder.reduce(name, op, name, others) for op in ("ReduceMax", "ReduceMin"))
    flat = builder.node(name, "Reshape", [name, builder.constant(name, "flat", [-1])])
    places = {reader: f"{name}{MARK}places{index}" for index, reader in enumerate(readers)}
    found = {
        reader: builder.node(name, "GatherElements", [flat, place], str(i), axis=0) for i, (reader, place) in enumerate(places.items())
    }
    return RowProbe(low, high, places, found)
