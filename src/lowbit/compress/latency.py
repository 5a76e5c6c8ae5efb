"""What each group of a model takes in each format on a runtime, from profiles of the whole model.

A group cannot be timed alone: what it takes depends on what the runtime fuses it with, and on the layout its neighbours leave
their results in. So whole models are profiled, all products in one format, and the time of each kernel goes to the group it was
made of. Conversions between formats are seen in a model that quantizes every second product: what that takes beyond the sum of its
groups is the price of its boundaries. Shares of kernels come from a runtime's profiler, times of whole calls from a race, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.compress.allocate import FLOAT, Assignment, Boundary, Cost, domain
from lowbit.errors import RunError
from lowbit.graph.groups import Group
from lowbit.graph.profiles import Profile as Target
from lowbit.measure.profile import profile
from lowbit.measure.race import FINAL, Effort, Variant, race
from lowbit.runtimes.base import DEFAULT, Kernel
from lowbit.types import Feeds, Tuning

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Layout:
    """The groups of a model and how tensors run between them.

    Attributes:
        groups: In the order in which they run.
        edges: (group, group that reads its output), directly or through operators that hand integers on.
        others: Names of nodes and tensors that belong to the model and to no group.
    """

    groups: tuple[Group, ...]
    edges: tuple[tuple[str, str], ...]
    others: frozenset[str]

    @property
    def products(self) -> tuple[str, ...]:
        """The groups whose format is chosen."""
        return tuple(group.name for group in self.groups if group.is_product)

    def formats(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Format of every group, given those of the products: a sum or a pooling takes its operands' where they agree."""
        found: dict[str, str] = {}
        makers: dict[str, list[str]] = {}
        for maker, reader in self.edges:
            makers.setdefault(reader, []).append(maker)
        for group in self.groups:
            operands = {found[name] for name in makers.get(group.name, []) if name in found}
            followed = operands.pop() if len(operands) == 1 else FLOAT
            found[group.name] = chosen.get(group.name, FLOAT) if group.is_product else followed
        return found


def layout(graph: ir.Graph, groups: Sequence[Group], target: Target) -> Layout:
    """Reads off a graph how its groups are connected."""
    makers = {group.output: group.name for group in groups}
    inside = {name for group in groups for name in group.nodes}
    nodes = {str(value.name): node for node in graph for value in node.outputs}

    def sources(tensor: str) -> list[str]:
        """The groups that a tensor's values come from, where nothing has computed on them since."""
        if tensor in makers:
            return [makers[tensor]]
        node = nodes.get(tensor)
        if node is None or node.op_type not in target.moves | target.joins:
            return []
        operands = node.inputs if node.op_type in target.joins else node.inputs[:1]
        return [name for value in operands if value is not None for name in sources(str(value.name))]

    edges = {(source, group.name): None for group in groups for tensor in group.activations.values() for source in sources(tensor)}
    free = [node for node in graph if node.name not in inside]
    others = {str(node.name) for node in free} | {str(value.name) for node in free for value in node.outputs}
    return Layout(tuple(groups), tuple(edges), frozenset(others))


@dataclass(frozen=True)
class Profiled:
    """What a call takes, and how that splits.

    Attributes:
        kernels: In the order in which they ran, in seconds as the profiler saw them.
        call_seconds: Of a whole call without a profiler.
    """

    kernels: tuple[Kernel, ...]
    call_seconds: float

    def scaled(self) -> tuple[Kernel, ...]:
        """The kernels with their seconds made to add up to those of a call."""
        total = sum(kernel.seconds for kernel in self.kernels)
        factor = self.call_seconds / total if total > 0 else 0.0
        return tuple(replace(kernel, seconds=factor * kernel.seconds) for kernel in self.kernels)


@dataclass(frozen=True)
class Attributed:
    """Kernels, sorted by groups.

    Attributes:
        seconds: Group -> its kernels, and the conversions before it.
        conversions: Seconds of all conversions, which are part of `seconds`.
        rest: Seconds of what belongs to no group.
        elements: Group -> numbers it hands out, where the runtime told.
    """

    seconds: Mapping[str, float]
    conversions: float
    rest: float
    elements: Mapping[str, int]


def attribute(kernels: Iterable[Kernel], layout: Layout) -> Attributed:
    """Gives the time of each kernel to a group.

    A kernel of several groups (a sum fused into the product before it) counts for the first one's product. One that is made of
    nothing in the model is a conversion (quantize, reorder, transpose), and counts for the group that runs next.
    """
    owners = {name: group.name for group in layout.groups for name in (*group.nodes, group.output)}
    products = set(layout.products)
    seconds = {group.name: 0.0 for group in layout.groups}
    elements: dict[str, int] = {}
    conversions = rest = waiting = 0.0
    last: str | None = None
    for kernel in kernels:
        known = sorted((owners[name] for name in kernel.origins if name in owners), key=lambda name: name not in products)
        if known:
            seconds[known[0]] += kernel.seconds + waiting
            elements |= {name: kernel.elements for name in known if kernel.elements}
            last, waiting = known[0], 0.0
        elif any(name in layout.others for name in kernel.origins):
            rest += kernel.seconds
        else:
            waiting += kernel.seconds
            conversions += kernel.seconds
    if last is None:
        return Attributed(seconds, conversions, rest + waiting, elements)
    seconds[last] += waiting
    return Attributed(seconds, conversions, rest, elements)


@dataclass(frozen=True)
class LatencyTable:
    """What a model takes, piece by piece.

    Attributes:
        seconds: (group, format) -> seconds a call, in a model where its neighbours have the same format.
        per_element: Seconds to hand one number from a group to one of another format.
        boundaries: What each pair of neighbours takes more, when their formats differ.
        rest: Seconds a call of what belongs to no group.
    """

    seconds: Mapping[tuple[str, str], float]
    per_element: float
    boundaries: tuple[Boundary, ...]
    rest: float

    def predict(self, formats: Mapping[str, str]) -> float:
        """Seconds a call of a model whose groups have these formats."""
        crossings = sum(b.seconds for b in self.boundaries if domain(formats[b.first]) != domain(formats[b.second]))
        return self.rest + sum(self.seconds[pair] for pair in formats.items()) + crossings


def tabulate(layout: Layout, uniform: Mapping[str, Profiled], mixed: Profiled, chosen: Mapping[str, str]) -> LatencyTable:
    """Builds the table.

    Args:
        layout: Of the model.
        uniform: Format -> the model with all products in it; "float" among them.
        mixed: The model with some products in another format than their neighbours.
        chosen: Product -> its format there.
    """
    sorted_ = {name: attribute(each.scaled(), layout) for name, each in uniform.items()}
    seconds = {(group, name): value for name, each in sorted_.items() for group, value in each.seconds.items()}
    # An integer model's elements: floating point kernels may pad channels.
    elements = {name: count for key in sorted(sorted_, key=lambda key: key != FLOAT) for name, count in sorted_[key].elements.items()}
    rest = sum(each.rest for each in sorted_.values()) / len(sorted_)
    formats = layout.formats(chosen)
    beyond = mixed.call_seconds - rest - sum(seconds[pair] for pair in formats.items())
    converting = attribute(mixed.scaled(), layout).conversions - max(each.conversions for each in sorted_.values())
    numbers = sum(elements.get(a, 0) for a, b in layout.edges if domain(formats[a]) != domain(formats[b]))
    # Lost fusions are beyond the conversions that can be seen; but a difference of whole calls may drown in their noise.
    per_element = max(beyond, converting, 0.0) / numbers if numbers else 0.0
    boundaries = tuple(Boundary(first, second, per_element * elements.get(first, 0)) for first, second in layout.edges)
    return LatencyTable(seconds, per_element, boundaries, rest)


def starting_with(form: str, points: Iterable[Assignment], damage: Cost, times: LatencyTable, layout: Layout) -> tuple[Assignment, ...]:
    """A frontier with all groups in one format in front: that has been evaluated, and gives the predictions their unit.

    The fastest point of a frontier is another where some groups are faster in floating point.
    """
    whole = {group.name: form for group in layout.groups}
    first = Assignment(whole, sum(damage.get(pair, 0.0) for pair in whole.items()), times.predict(whole) - times.rest)
    return (first, *(each for each in points if any(each.formats[name] != form for name in layout.products)))


HALF = "every second product"

Write = Callable[[Mapping[str, str]], Path]
"""Product -> format, to the artifact of the model in these formats."""


def measure_latency(
    layout: Layout,
    formats: Sequence[str],
    write: Write,
    runtime: str,
    feeds: Feeds,
    *,
    batch: int,
    tuning: Tuning = DEFAULT,
    effort: Effort = FINAL,
) -> LatencyTable:
    """Times and profiles the model in each format, in floating point, and with every second product in the first format.

    Of both the lower quartile counts: what disturbs a call only ever adds time.

    Args:
        layout: Of the model.
        formats: Without "float", which is always measured.
        write: Makes an artifact.
        runtime: Its name.
        feeds: One batch of samples.
        batch: Samples in it.
        tuning: Of the runtime. Its precision is what "float" means.
        effort: Of the race.

    Raises:
        RunError: an artifact cannot be run or profiled.
    """
    half = {name: formats[0] if index % 2 else FLOAT for index, name in enumerate(layout.products)}
    chosen = {name: dict.fromkeys(layout.products, name) for name in (*formats, FLOAT)} | {HALF: half}
    variants = {name: Variant(name, runtime, write(each), tuning) for name, each in chosen.items()}
    results = race(list(variants.values()), feeds, batch=batch, **effort)
    profiled = {}
    for name, variant in variants.items():
        if not results[name].usable:
            raise RunError(f"'{variant.model.name}' cannot be timed on {runtime}: {results[name].error}")
        calls = sorted(second for turn in results[name].rounds for second in turn)
        profiled[name] = Profiled(profile(variant, feeds, batch=batch), calls[len(calls) // 4])
    mixed = profiled.pop(HALF)
    return tabulate(layout, profiled, mixed, half)
