"""What of a graph a target would leave to the CPU: the parts, by what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 4


@dataclass(frozen=True)
class Part:
    """Nodes that hang together.

    Attributes:
        nodes: "Operator 'name'", in the order in which they run.
        inputs: Computed tensors that go in.
        outputs: Tensors that others read.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.nodes[:_SHOWN]) + (f" and {len(self.nodes) - _SHOWN} more" if len(self.nodes) > _SHOWN else "")
        return f"{shown} (from {_quoted(self.inputs)} to {_quoted(self.outputs)})"


def parts(graph: ir.Graph, names: Collection[str]) -> list[Part]:
    """The connected parts that nodes of these names make up, in the order in which they run."""
    number: dict[ir.Node, int] = {}
    members: dict[int, list[ir.Node]] = {}
    for node in graph:
        if node.name not in names:
            continue
        joined = sorted({number[maker] for value in node.inputs if value is not None and (maker := value.producer()) in number})
        first = joined[0] if joined else len(number)
        members.setdefault(first, [])
        for other in joined[1:]:
            members[first] += members.pop(other)
        members[first].append(node)
        number.update(dict.fromkeys(members[first], first))
    return [_part(graph, nodes) for nodes in members.values()]


def _part(graph: ir.Graph, nodes: list[ir.Node]) -> Part:
    order = {node: place for place, node in enumerate(graph)}
    nodes = sorted(nodes, key=order.__getitem__)
    made = {value for node in nodes for value in node.outputs}
    entering = [str(v.name) for node in nodes for v in node.inputs if v is not None and v.const_value is None and v not in made]
    leaving = [str(v.name) for node in nodes for v in node.outputs if v.is_graph_output() or any(u.node not in nodes for u in v.uses())]
    names = tuple(f"{node.op_type} '{node.name}'" for node in nodes)
    return Part(names, tuple(dict.fromkeys(entering)), tuple(dict.fromkeys(leaving)))


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) or "constants"
