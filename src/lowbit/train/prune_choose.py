"""Which channels go: those that are missed least for the time they cost. Pure.

A product's time is taken to grow with its output and its input channels, each rounded up to the block of the kernels: integer kernels
compute channels by the vector (16 of int32 in 512 bits), so a 33rd channel costs as much as a 48th. How fast each product works comes
from a profile, or from its multiplications where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lowbit.graph.channel_sets import Channels, ChannelSet, Work
from lowbit.runtimes.base import Kernel
from lowbit.types import Array

BLOCK = 16
"""Channels that kernels compute at once."""


def rates(found: Channels, seconds: Mapping[str, float] | None = None, block: int = BLOCK) -> dict[str, float]:
    """Product -> time for a pair of an output and an input channel, in the graph as it is.

    Args:
        found: Channels of the graph.
        seconds: Product -> time; one that is missing takes none. None means multiplications instead.
        block: Channels are counted in multiples of it.
    """
    stays = np.ones(found.count, bool)
    times = {work.node: work.macs for work in found.work} if seconds is None else seconds
    return {work.node: times.get(work.node, 0.0) / max(_pairs(work, stays, block), 1) for work in found.work}


def cost(found: Channels, stays: Array, given: Mapping[str, float], block: int = BLOCK) -> float:
    """Time of all products, in the unit of the rates, where only some channels stay (bool [count])."""
    return sum(given[work.node] * _pairs(work, stays, block) for work in found.work)


def seconds_of(kernels: Iterable[Kernel], found: Channels) -> dict[str, float]:
    """Product -> seconds, from a runtime's profile; a kernel of several products is shared out evenly."""
    products = {work.node for work in found.work}
    times = dict.fromkeys(products, 0.0)
    for kernel in kernels:
        members = products & set(kernel.origins)
        for name in members:
            times[name] += kernel.seconds / len(members)
    return times


def choose(
    found: Channels,
    importance: Mapping[str, Array],
    given: Mapping[str, float],
    budget: float,
    *,
    block: int = BLOCK,
    least: float = 0.25,
) -> dict[str, Array]:
    """Takes blocks of channels, one after the other, from the set where they are missed least for the time they cost.

    Args:
        found: Channels of the graph.
        importance: Set -> what each channel is worth [C].
        given: Of `rates`.
        budget: Cost to come down to.
        block: Sets come down to multiples of it; smaller sets stay whole.
        least: Share of a set that stays in any case.

    Returns:
        Set -> bool [C], of the sets that lose some. The cost stays above the budget where nothing more may go.
    """
    stays, left = np.ones(found.count, bool), {each.name: len(each.channels) for each in found.sets}
    order = {each.name: each.channels[np.argsort(importance[each.name], kind="stable")] for each in found.sets}
    worth = {each.name: np.sort(importance[each.name]) for each in found.sets}
    now = cost(found, stays, given, block)
    while now > budget:
        best: tuple[float, ChannelSet, int, float] | None = None
        for each in found.sets:
            width, whole = left[each.name], len(each.channels)
            below = (width - 1) // block * block
            if below < max(block, least * whole):
                continue
            tried = stays.copy()
            tried[order[each.name][whole - width : whole - below]] = False
            after = cost(found, tried, given, block)
            missed = float(worth[each.name][whole - width : whole - below].sum())
            price = missed / max(now - after, 1e-12 * now)
            if best is None or price < best[0]:
                best = (price, each, below, after)
        if best is None:
            break
        _, chosen, below, now = best
        whole = len(chosen.channels)
        stays[order[chosen.name][: whole - below]] = False
        left[chosen.name] = below
    return {each.name: stays[each.channels] for each in found.sets if not stays[each.channels].all()}


def _pairs(work: Work, stays: Array, block: int) -> int:
    made = _padded(int(stays[work.made].sum()), block)
    if not work.mixes:
        return made
    read = 1 if work.read is None else _padded(int(stays[work.read].sum()), block)
    return made * read


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block
