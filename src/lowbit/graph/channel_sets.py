"""The nouns of channels: where they lie in constants, which go together, who computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.errors import UsageError, unknown
from lowbit.types import Array


@dataclass(frozen=True)
class Cut:
    """An axis of a constant that runs over channels; `channels` [size of the axis] are their ids."""

    constant: str
    axis: int
    channels: Array


@dataclass(frozen=True)
class Count:
    """A number in a graph that counts channels: of a shape, or the groups of a depthwise convolution.

    Attributes:
        node: Its name.
        source: Number of the node's input that holds the shape; None for the attribute `group`.
        position: In that shape.
        channels: Ids that it counts.
    """

    node: str
    source: int | None
    position: int
    channels: Array


@dataclass(frozen=True)
class Carried:
    """The channels of a tensor: ids [C] along an axis, counted from the last (-1)."""

    channels: Array
    axis: int
    rank: int


@dataclass(frozen=True)
class Work:
    """A product with weights.

    Attributes:
        node: Its name.
        output: The tensor that it gives.
        macs: Multiplications for one sample.
        made: Ids of its output channels.
        read: Ids of its input channels (Flatten repeats them); None where they cannot change: a graph's input, one channel a group.
        mixes: It computes each output from all inputs; a depthwise convolution does not.
    """

    node: str
    output: str
    macs: float
    made: Array
    read: Array | None
    mixes: bool


@dataclass(frozen=True)
class ChannelSet:
    """Channels that the same products make, any of which can go as long as one stays.

    Attributes:
        name: Of the first of those products; of all of them, where several sets have the same first.
        channels: Ids [C].
    """

    name: str
    channels: Array


@dataclass(frozen=True)
class Channels:
    """Everything about the channels of a graph. Ids run from 0 to `count`.

    Attributes:
        sets: Those that can be pruned, in the order of the graph.
        cuts: Axes of constants.
        counts: Numbers that follow.
        carried: Tensor -> its channels.
        work: Products with weights.
        count: Of all ids.
    """

    sets: tuple[ChannelSet, ...]
    cuts: tuple[Cut, ...]
    counts: tuple[Count, ...]
    carried: Mapping[str, Carried]
    work: tuple[Work, ...]
    count: int

    def kept(self, chosen: Mapping[str, Array]) -> Array:
        """Whether each id stays, bool [count], given what stays of some sets.

        Raises:
            UsageError: a set that there is none of, a mask of another length, or one that keeps nothing.
        """
        known, stays = {each.name: each for each in self.sets}, np.ones(self.count, bool)
        for name, mask in chosen.items():
            if name not in known:
                raise unknown("set of channels", name, known)
            width = len(known[name].channels)
            if np.shape(mask) != (width,) or not np.any(mask):
                raise UsageError(
                    f"Of the {width} channels of '{name}' {np.count_nonzero(mask)} of {np.size(mask)} are to stay.",
                    "Give one boolean a channel, at least one of them true.",
                )
            stays[known[name].channels] = mask
        return stays
