"""Which channels of a graph can only go together, and taking them out of every constant at once.

Every index of a computed tensor along its channel axis carries the id of a channel. Products make new channels; what follows hands
them on, a sum makes those of its operands the same, concatenation lines them up, flattening repeats them. An operator that is not
understood pins what it reads: those channels stay. (Dependencies as in DepGraph: Fang et al. 2023, arXiv 2301.12900; here by index
instead of by layer, so that offsets need no bookkeeping.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.channel_rules import RULES
from lowbit.graph.channel_sets import Carried, Channels, ChannelSet, Count, Cut, Work
from lowbit.graph.groups import is_standard
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def channels_of(graph: ir.Graph) -> Channels:
    """Follows the channels of a prepared FP32 graph. The graph is not changed."""
    flow = Flow()
    for node in graph:
        rule = RULES.get(node.op_type)
        plain = is_standard(node) and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        carried = rule(flow, node) if rule is not None and plain else None
        if carried is None:
            flow.pin_all(node.inputs)
        else:
            flow.carried[str(node.outputs[0].name)] = carried
    for value in [*graph.outputs, *(v for node in graph for v in node.outputs if any(use.node.graph is not graph for use in v.uses()))]:
        flow.pin_all([value])
    for cut in flow.cuts:
        constant = graph.initializers.get(cut.constant)
        if constant is None or len(list(constant.uses())) > 1:  # two products that share weights would both have to agree
            flow.pin(cut.channels)
    return flow.finish()


def prune(model: ir.Model, chosen: Mapping[str, Array]) -> None:
    """Takes channels out of a model, in place: weights, biases, numbers of groups, shapes.

    Args:
        model: A prepared model in FP32.
        chosen: Name of a set (`channels_of`) -> bool [C], what stays of it. Sets that are not named stay whole.

    Raises:
        UsageError: see `Channels.kept`.
    """
    import onnx_ir

    found = channels_of(model.graph)
    stays = found.kept(chosen)
    for cut in found.cuts:
        value = model.graph.initializers[cut.constant]
        assert value.const_value is not None
        left = np.compress(stays[cut.channels], value.const_value.numpy(), cut.axis)
        value.const_value = onnx_ir.tensor(np.ascontiguousarray(left), name=cut.constant)
        value.shape = value.const_value.shape  # type: ignore[assignment]
    nodes = {str(node.name): node for node in model.graph}
    for count in found.counts:
        _recount(model.graph, nodes[count.node], count, int(stays[count.channels].sum()))
    for value in (value for node in model.graph for value in node.outputs if value.name in found.carried):
        carried = found.carried[str(value.name)]
        if value.shape is not None and isinstance(value.shape[carried.axis], int):
            sizes = list(value.shape)
            sizes[carried.axis] = int(stays[carried.channels].sum())
            value.shape = onnx_ir.Shape(sizes)


def _recount(graph: ir.Graph, node: ir.Node, count: Count, number: int) -> None:
    """Writes another number; a shape gets a constant of its own, because others may read the old one."""
    import onnx_ir

    if count.source is None:
        node.attributes["group"] = onnx_ir.AttrInt64("group", number)
        return
    before = node.inputs[count.source]
    assert before is not None
    assert before.const_value is not None
    if before.const_value.numpy()[count.position] == number:
        return
    shape = before.const_value.numpy().copy()
    shape[count.position] = number
    name = f"{node.name}:{before.name}"
    after = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(shape, name=name))
    after.shape, after.type = before.shape, before.type
    graph.initializers[name] = after
    node.replace_input_with(count.source, after)


class Flow:
    """What is known while walking: ids are joined by union-find, those of one product are a family."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.family: list[int] = []
        self.pinned: set[int] = set()
        self.carried: dict[str, Carried] = {}
        self.cuts: list[Cut] = []
        self.counts: list[Count] = []
        self.work: list[Work] = []

    def fresh(self, count: int) -> Array:
        """New ids, of a new family."""
        first = len(self.parent)
        self.parent += range(first, first + count)
        self.family += [first] * count
        return np.arange(first, first + count)

    def find(self, one: int) -> int:
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def join(self, ones: Array, others: Array) -> None:
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            first, second = sorted((self.find(one), self.find(other)))
            self.parent[second] = first

    def pin(self, ids: Array) -> None:
        self.pinned.update(ids.tolist())

    def pin_all(self, values: Sequence[ir.Value | None]) -> None:
        for value in values:
            if (carried := self.of(value)) is not None:
                self.pin(carried.channels)

    def of(self, value: ir.Value | None) -> Carried | None:
        return None if value is None else self.carried.get(str(value.name))

    def cut(self, value: ir.Value | None, axis: int, ids: Array) -> None:
        assert value is not None
        self.cuts.append(Cut(str(value.name), axis, ids))

    def finish(self) -> Channels:
        """Channels that were joined become one, numbered anew."""
        roots = np.array([self.find(one) for one in range(len(self.parent))], int)
        _, ids = np.unique(roots, return_inverse=True)
        ids = ids.reshape(-1)
        return Channels(
            self._sets(ids),
            tuple(replace(cut, channels=ids[cut.channels]) for cut in self.cuts),
            tuple(replace(count, channels=ids[count.channels]) for count in self.counts),
            {name: replace(each, channels=ids[each.channels]) for name, each in self.carried.items()},
            tuple(replace(w, made=ids[w.made], read=None if w.read is None else ids[w.read]) for w in self.work),
            int(ids.max(initial=-1)) + 1,
        )

    def _sets(self, ids: Array) -> tuple[ChannelSet, ...]:
        """Channels that the same products make. A product may have several sets (a sum of concatenations); each leaves it a channel."""
        makers: dict[int, set[int]] = {}
        for one, family in zip(ids.tolist(), self.family, strict=True):
            makers.setdefault(one, set()).add(family)
        members: dict[tuple[int, ...], list[int]] = {}
        for one, made_by in makers.items():
            members.setdefault(tuple(sorted(made_by)), []).append(one)
        pinned = set(ids[list(self.pinned)].tolist())
        free = {families: channels for families, channels in members.items() if pinned.isdisjoint(channels)}
        nodes = {int(work.made[0]): work.node for work in self.work if work.mixes}
        starts = Counter(families[0] for families in free)
        found = []
        for families, channels in free.items():
            named = families if starts[families[0]] > 1 else families[:1]
            found.append(ChannelSet(" + ".join(nodes[family] for family in named), np.array(channels, int)))
        return tuple(found)
