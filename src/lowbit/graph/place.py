"""Decide where a graph is rounded: which tensors are quantized, for which readers, and which of them share a grid.

Decisions are data (`Placement`); `graph/qdq.py` carries them out, and writers of other targets start from the same. Two rules do
most of the work. A tensor is *emitted* as integers when the kernel that makes it can hand out integers, and it is quantized when
somebody downstream computes with them. A tensor that is made in floating point (by a normalisation, say) is quantized only for the
readers that compute with integers: all others read it unrounded, which is what keeps residual streams of transformers exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph.groups import Group, channel_axis, find_groups
from lowbit.graph.profiles import Profile
from lowbit.recipe import QuantSpec

if TYPE_CHECKING:
    import onnx_ir as ir

Edge = tuple[str, int]
"""Name of a node, number of its input."""


@dataclass(frozen=True)
class Format:
    """How one group computes; `None` in place of a Format is floating point.

    Attributes:
        weights: Of its constant operand.
        activations: Of what goes in.
    """

    weights: QuantSpec
    activations: QuantSpec


@dataclass(frozen=True)
class QuantizedActivation:
    """A computed tensor that is rounded.

    Attributes:
        tensor: Its name.
        spec: How it is quantized.
        readers: Edges that see it rounded; None where all do.
        grid: The tensor whose parameters it takes: itself, or the one it shares a grid with.
    """

    tensor: str
    spec: QuantSpec
    readers: tuple[Edge, ...] | None
    grid: str


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant operand that is rounded for one reader.

    Attributes:
        tensor: Its name.
        reader: The edge.
        spec: How it is quantized.
        axis: Of its output channels; None where one grid serves all.
    """

    tensor: str
    reader: Edge
    spec: QuantSpec
    axis: int | None


@dataclass(frozen=True)
class QuantizedBias:
    """A bias on the grid of input times weight, int32."""

    tensor: str
    reader: Edge
    activation: str
    weight: str


@dataclass(frozen=True)
class Placement:
    """Where a graph is rounded.

    Attributes:
        groups: All groups of the graph, quantized or not.
        formats: Group -> how it computes, of the quantized ones.
    """

    groups: tuple[Group, ...]
    formats: Mapping[str, Format]
    activations: tuple[QuantizedActivation, ...]
    weights: tuple[QuantizedWeight, ...]
    biases: tuple[QuantizedBias, ...]


FormatOf = Callable[[Group], Format | None]


def place(graph: ir.Graph, profile: Profile, format_of: FormatOf, observed: Collection[str]) -> Placement:
    """Places quantization in a graph.

    Args:
        graph: A prepared graph; not changed.
        profile: Of the target.
        format_of: How each product should compute; None leaves it in floating point.
        observed: Tensors whose range is known; others cannot be quantized.
    """
    groups = find_groups(graph, profile)
    wanted = {g.name: f for g in groups if g.is_product or g.kind == "MatMul" for f in [format_of(g)] if f is not None}
    formats = {name: f for name, f in wanted.items() if all(t in observed for t in _group(groups, name).activations.values())}
    flow = _Flow(graph, profile, groups, formats, observed)
    emitted = flow.emitted()
    rounded = flow.rounded(emitted)
    grids = _shared_grids(graph, profile, rounded)
    activations = [QuantizedActivation(name, spec, None, grids.get(name, name)) for name, spec in rounded.items()]
    activations += flow.entries(rounded)
    nodes = {str(node.name): node for node in graph}
    weights = [_weight(nodes[g.name], g, formats[g.name]) for g in groups if g.name in formats and g.weight is not None]
    biases = [
        QuantizedBias(_input(nodes[g.name], g.bias), (g.name, g.bias), g.activations[0], _input(nodes[g.name], g.weight))
        for g in groups
        if g.name in formats and g.bias is not None and g.weight is not None and profile.integer_bias
    ]
    return Placement(tuple(groups), formats, tuple(activations), tuple(weights), tuple(biases))


@dataclass
class _Flow:
    """How integers flow through a graph."""

    graph: ir.Graph
    profile: Profile
    groups: list[Group]
    formats: Mapping[str, Format]
    observed: Collection[str]

    def __post_init__(self) -> None:
        self.anchors = {g.name: g for g in self.groups}
        self.makers = {g.output: g for g in self.groups}
        self.inside = {name: g for g in self.groups for name in g.nodes[1:]}

    def emitted(self) -> dict[str, QuantSpec]:
        """Tensors whose kernel can hand out integers, in the order in which they are computed."""
        found: dict[str, QuantSpec] = {}
        for node in self.graph:
            name = str(node.name)
            if name in self.anchors:
                group = self.anchors[name]
                spec = self._group_spec(group, found)
                if spec is not None and group.output in self.observed:
                    found[group.output] = spec
            elif name not in self.inside and (data := self._carried(node)):
                if all(tensor in found for tensor in data):
                    found.update({str(v.name): found[data[0]] for v in node.outputs if v.name in self.observed})
        return found

    def _group_spec(self, group: Group, found: Mapping[str, QuantSpec]) -> QuantSpec | None:
        if group.name in self.formats:
            return self.formats[group.name].activations
        operands = list(group.activations.values())
        is_product = group.is_product or group.kind == "MatMul"
        return found[operands[0]] if not is_product and all(t in found for t in operands) else None

    def _carried(self, node: ir.Node) -> list[str]:
        """The computed tensors whose values a node hands on unchanged; none for other nodes."""
        if node.domain not in ("", "ai.onnx"):
            return []
        operands = [v for v in node.inputs if v is not None]
        if node.op_type in self.profile.moves:
            operands = operands[:1]
        elif node.op_type not in self.profile.joins:
            return []
        names = [str(v.name) for v in operands]
        return names if all(v.const_value is None for v in operands) else []

    def rounded(self, emitted: Mapping[str, QuantSpec]) -> dict[str, QuantSpec]:
        """Emitted tensors that somebody computes with as integers, or that cannot be had otherwise."""
        found: dict[str, QuantSpec] = {}
        values = {str(v.name): v for node in self.graph for v in node.outputs}
        for name in reversed(list(emitted)):
            if self._must(name) or any(self._computes(use.node, name, found) for use in values[name].uses()):
                found[name] = emitted[name]
        for name in list(found):
            if self._summed_in_place(values[name], found):
                del found[name]
        return {name: spec for name, spec in emitted.items() if name in found}

    def _must(self, name: str) -> bool:
        """A kernel that gives integers or nothing."""
        group = self.makers.get(name)
        return group is not None and group.name in self.formats and group.kind not in self.profile.float_output

    def _computes(self, reader: ir.Node, name: str, found: Mapping[str, QuantSpec]) -> bool:
        """Whether a reader computes with integers, given which of the tensors after it are rounded."""
        group = self.anchors.get(str(reader.name))
        if group is not None and (group.is_product or group.kind == "MatMul"):
            return group.name in self.formats and name in group.activations.values()
        outputs = [group.output] if group is not None else [str(v.name) for v in reader.outputs]
        carried = group is not None or name in self._carried(reader)
        return carried and any(output in found for output in outputs)

    def _summed_in_place(self, value: ir.Value, found: Mapping[str, QuantSpec]) -> bool:
        """A product's result that is read by one rounded sum alone, whose other operand is rounded."""
        uses = list(value.uses())
        group = self.makers.get(str(value.name))
        if not self.profile.sums_in_place or group is None or not group.is_product or len(uses) != 1 or value.is_graph_output():
            return False
        reader = uses[0].node
        return reader.op_type == "Add" and any(v is not None and v is not value and v.name in found for v in reader.inputs)

    def entries(self, rounded: Mapping[str, QuantSpec]) -> list[QuantizedActivation]:
        """Tensors made in floating point, for the products that read them as integers."""
        readers: dict[tuple[str, QuantSpec], list[Edge]] = {}
        for group in self.groups:
            if group.name not in self.formats:
                continue
            for index, tensor in group.activations.items():
                if tensor not in rounded:
                    readers.setdefault((tensor, self.formats[group.name].activations), []).append((group.name, index))
        return [QuantizedActivation(tensor, spec, tuple(edges), tensor) for (tensor, spec), edges in readers.items()]


def _shared_grids(graph: ir.Graph, profile: Profile, rounded: Mapping[str, QuantSpec]) -> dict[str, str]:
    """Tensor -> the first tensor of those that must have the same grid."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for node in graph:
        if node.op_type in profile.moves or node.op_type in profile.joins:
            data = node.inputs[:1] if node.op_type in profile.moves else node.inputs
            names = [str(v.name) for v in [*data, *node.outputs] if v is not None and v.name in rounded]
            for name in names[1:]:
                parent[find(name)] = find(names[0])
    return {name: find(name) for name in rounded}


def _group(groups: list[Group], name: str) -> Group:
    return next(group for group in groups if group.name == name)


def _input(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    assert value is not None
    return str(value.name)


def _weight(node: ir.Node, group: Group, form: Format) -> QuantizedWeight:
    assert group.weight is not None
    axis = None if form.weights.granularity == "per-tensor" else channel_axis(node)
    return QuantizedWeight(_input(node, group.weight), (group.name, group.weight), form.weights, axis)
