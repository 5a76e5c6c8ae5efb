"""How integers flow through a graph: which kernels can hand them out, and which of those tensors are worth rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph.groups import Group, is_standard, keeps_grid, may_be_float
from lowbit.graph.profiles import Profile
from lowbit.recipe import QuantSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.graph.place import Format

_SECOND_OUTPUTS = frozenset({"MaxPool"})
"""Moves whose outputs beyond the first are positions, not values."""


@dataclass
class Flow:
    """One graph, with the formats of its products.

    Attributes:
        graph: Not changed.
        profile: Of the target.
        groups: Of the graph.
        formats: Product -> how it computes, of those on integers.
        observed: Tensors whose range is known.
    """

    graph: ir.Graph
    profile: Profile
    groups: list[Group]
    formats: Mapping[str, Format]
    observed: Collection[str]

    def __post_init__(self) -> None:
        self.anchors = {g.name: g for g in self.groups}
        self.makers = {g.output: g for g in self.groups}
        self.inside = {name: g for g in self.groups for name in g.nodes[1:]}
        self.nodes = {str(node.name): node for node in self.graph}

    def emitted(self) -> dict[str, QuantSpec]:
        """Tensors whose kernel can hand out integers, in the order in which they are computed."""
        found: dict[str, QuantSpec] = {}
        for node in self.graph:
            name = str(node.name)
            if name in self.anchors:
                group = self.anchors[name]
                spec, outputs = self._group_spec(group, found), [group.output]
            elif name not in self.inside:
                spec, outputs = _same(found, self.carried(node)), self.handed_on(node)
            else:
                continue
            if spec is not None:
                found.update({tensor: spec for tensor in outputs if tensor in self.observed})
        return found

    def _group_spec(self, group: Group, found: Mapping[str, QuantSpec]) -> QuantSpec | None:
        if group.name in self.formats:
            return self.formats[group.name].activations
        return None if is_matrix_product(group) else _same(found, list(group.activations.values()))

    def carried(self, node: ir.Node) -> list[str]:
        """The computed tensors whose values a node hands on unchanged; none for other nodes."""
        if not is_standard(node) or str(node.name) in self.inside or str(node.name) in self.anchors:
            return []
        operands = [v for v in node.inputs if v is not None]
        if node.op_type in self.profile.moves and keeps_grid(node):
            operands = operands[:1]
        elif node.op_type not in self.profile.joins:
            return []
        known = all(v.const_value is None and may_be_float(v) for v in operands)
        return [str(v.name) for v in operands] if known else []

    def handed_on(self, node: ir.Node) -> list[str]:
        """The outputs of a move or a join that hold values."""
        outputs = node.outputs[:1] if node.op_type in _SECOND_OUTPUTS else node.outputs
        return [str(v.name) for v in outputs if v.name]

    def rounded(self, emitted: Mapping[str, QuantSpec]) -> dict[str, QuantSpec]:
        """Emitted tensors that somebody computes with as integers, that cannot be had otherwise, or that the graph gives as such."""
        found: dict[str, QuantSpec] = {}
        values = {str(v.name): v for node in self.graph for v in node.outputs}
        for name in reversed(list(emitted)):
            needed = self._must(name) or (self.profile.outputs and values[name].is_graph_output())
            if needed or any(self._computes(use.node, name, emitted[name], found) for use in values[name].uses()):
                found[name] = emitted[name]
        for name in list(found):
            if self._summed_in_place(values[name], found):
                del found[name]
        return {name: spec for name, spec in emitted.items() if name in found}

    def _must(self, name: str) -> bool:
        """A kernel that gives integers or nothing."""
        group = self.makers.get(name)
        return group is not None and group.name in self.formats and group.kind not in self.profile.float_output

    def _computes(self, reader: ir.Node, name: str, spec: QuantSpec, found: Mapping[str, QuantSpec]) -> bool:
        """Whether a reader computes with integers of a type, given which of the tensors after it are rounded."""
        if self.nodes.get(str(reader.name)) is not reader:
            return False  # inside a branch or a loop
        group = self.anchors.get(str(reader.name))
        if group is None:
            return name in self.carried(reader) and any(output in found for output in self.handed_on(reader))
        if is_matrix_product(group):
            wanted = self.formats.get(group.name)
            return wanted is not None and wanted.activations == spec and name in group.activations.values()
        return name in group.activations.values() and group.output in found

    def _summed_in_place(self, value: ir.Value, found: Mapping[str, QuantSpec]) -> bool:
        """A product's result that is read by one rounded sum alone, whose other operand is rounded."""
        uses = list(value.uses())
        group = self.makers.get(str(value.name))
        if not self.profile.sums_in_place or group is None or not group.is_product or len(uses) != 1 or value.is_graph_output():
            return False
        reader = uses[0].node
        return reader.op_type == "Add" and any(v is not None and v is not value and v.name in found for v in reader.inputs)

    def shared_grids(self, rounded: Mapping[str, QuantSpec]) -> dict[str, str]:
        """Tensor -> the first tensor of those that must have the same grid."""
        parent: dict[str, str] = {}
        find = _finder(parent)
        order = {name: place for place, name in enumerate(rounded)}
        for node in self.graph:
            outputs = [name for name in self.handed_on(node) if name in rounded]
            names = [name for name in self.carried(node) if name in rounded] + outputs
            if not outputs or (len(node.inputs) > 1 and not self._bounded_alike(node, find)):
                continue
            for name in names[1:]:
                first, second = sorted((find(names[0]), find(name)), key=order.__getitem__)
                parent[second] = first
        return {name: find(name) for name in rounded}

    def _bounded_alike(self, node: ir.Node, find: Callable[[str], str]) -> bool:
        """Whether one grid can serve all operands of a join.

        Where a grid does the work of the Relu or Clip before it, a wider one would undo it, and the kernel of the product is lost.
        """
        if node.op_type not in self.profile.joins or not self.profile.saturates:
            return True
        return len({self._bounds(find(name)) for name in self.carried(node)}) <= 1

    def _bounds(self, name: str) -> tuple[str, ...]:
        """What bounds a tensor: the kind and limits of the activation that was absorbed by the kernel that makes it."""
        group = self.makers.get(name)
        last = self.nodes[group.nodes[-1]] if group is not None and len(group.nodes) > 1 else None
        if last is None or last.op_type not in ("Clip", "Relu"):
            return ()
        limits = [v.const_value.numpy() for v in last.inputs[1:] if v is not None and v.const_value is not None]
        return (last.op_type, *(str(limit) for limit in limits))


def is_matrix_product(group: Group) -> bool:
    """Whether a group multiplies matrices: by weights, or two activations (attention)."""
    return group.is_product or group.kind == "MatMul"


def _same(found: Mapping[str, QuantSpec], tensors: list[str]) -> QuantSpec | None:
    """The spec that all tensors have, None where one has none or they differ."""
    specs = {found.get(tensor) for tensor in tensors}
    return specs.pop() if len(specs) == 1 else None


def _finder(parent: dict[str, str]) -> Callable[[str], str]:
    def find(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    return find
