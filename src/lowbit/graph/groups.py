"""Operators that a target runs as one kernel: the unit of every decision on precision.

A group has one anchor (a product with weights, a sum, a pooling), what the kernel applies to the anchor's result before
it is rounded (a bias, an activation), and one output. Everything between lives in registers and is never quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph.profiles import Profile

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Group:
    """One kernel.

    Attributes:
        name: Of its anchor node.
        kind: Operator type of the anchor.
        nodes: Names of all its nodes, anchor first.
        activations: Input number of the anchor -> tensor, for inputs that are computed.
        weight: Input number of the constant operand of a product, None where it has none.
        bias: Input number of a constant bias, None where it has none (or has it as an Add of its own).
        output: The tensor that the group hands out.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    activations: dict[int, str]
    weight: int | None
    bias: int | None
    output: str

    @property
    def is_product(self) -> bool:
        """Whether it multiplies by weights, so that its precision matters to speed."""
        return self.weight is not None


def find_groups(graph: ir.Graph, profile: Profile) -> list[Group]:
    """All groups of a graph, in the order in which they run. Nodes inside subgraphs belong to none.

    Args:
        graph: A prepared graph: constants are initializers, nodes have names.
        profile: Of the target.
    """
    taken: set[str] = set()
    groups = []
    for node in graph:
        if node.name in taken or node.domain not in ("", "ai.onnx"):
            continue
        anchored = _anchor(node, profile)
        if anchored is None:
            continue
        activations, weight, bias = anchored
        followers = _followers(node, profile, product=weight is not None)
        taken.update(name for name in (node.name, *(f.name for f in followers)) if name)
        names = tuple(str(n.name) for n in (node, *followers))
        output = (followers[-1] if followers else node).outputs[0].name
        groups.append(Group(str(node.name), node.op_type, names, activations, weight, bias, str(output)))
    return groups


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is known before the model runs."""
    return value is not None and value.const_value is not None


def channel_axis(node: ir.Node) -> int | None:
    """The axis of a product's weight that its output channels lie on; None where they are not one axis (grouped ConvTranspose)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if _int(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if _int(node, "transB", 0) else 1
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    return len(weight.const_value.shape) - 1


Anchor = tuple[dict[int, str], int | None, int | None]


def _anchor(node: ir.Node, profile: Profile) -> Anchor | None:
    """Activations, weight and bias of a node that can anchor a group, None for others."""
    computed = {i: str(v.name) for i, v in enumerate(node.inputs) if v is not None and not is_constant(v)}
    if node.op_type in profile.products:
        return _product(node, profile, computed)
    if node.op_type in profile.elementwise and len(computed) == len(node.inputs) >= 2:
        return computed, None, None
    if node.op_type in profile.unary and 0 in computed:
        return {0: computed[0]}, None, None
    return None


def _product(node: ir.Node, profile: Profile, computed: dict[int, str]) -> Anchor | None:
    if 0 not in computed:
        return None
    if 1 in computed:
        return (computed, None, None) if node.op_type == "MatMul" and profile.attention and len(computed) == 2 else None
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    if weight.const_value.dtype.numpy().kind != "f" or len(weight.const_value.shape) < 2:
        return None
    if node.op_type == "Gemm" and not _plain_gemm(node):
        return None
    bias = 2 if len(node.inputs) > 2 and is_constant(node.inputs[2]) else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None  # a computed bias has no grid that could be known ahead
    return {0: computed[0]}, 1, bias


def _plain_gemm(node: ir.Node) -> bool:
    """Integer kernels compute A B + C, no multiple of it, with a bias a channel."""
    factors = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    row = bias is None or bias.const_value is None or bias.const_value.size == max(bias.const_value.shape, default=1)
    return all(factor == 1.0 for factor in factors) and not _int(node, "transA", 0) and row


def _followers(node: ir.Node, profile: Profile, *, product: bool) -> list[ir.Node]:
    """What the kernel applies to the anchor's result: a bias, then activations."""
    found: list[ir.Node] = []
    value = node.outputs[0]
    if product and (add := _only_reader(value)) is not None and add.op_type == "Add" and _adds_bias(add, node):
        found.append(add)
        value = add.outputs[0]
    while step := _absorbed(value, profile):
        found += step
        value = step[-1].outputs[0]
    return found


def _absorbed(value: ir.Value, profile: Profile) -> list[ir.Node]:
    reader = _only_reader(value)
    if reader is not None:
        fits = reader.op_type in profile.absorbed and reader.inputs[0] is value and all(is_constant(v) for v in reader.inputs[1:] if v)
        return [reader] if fits else []
    return _gated(value, profile)


def _gated(value: ir.Value, profile: Profile) -> list[ir.Node]:
    """The nodes of x * g(x), where nothing else reads x or g(x)."""
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or len(readers) != 2:
        return []
    for gate, product in (readers, readers[::-1]):
        if gate.op_type in profile.gates and product.op_type == "Mul" and _only_reader(gate.outputs[0]) is product:
            return [gate, product]
    return []


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _adds_bias(add: ir.Node, product: ir.Node) -> bool:
    """Whether an Add adds one constant a channel to a matrix product (convolutions have their bias inside)."""
    constants = [v for v in add.inputs if is_constant(v)]
    if product.op_type != "MatMul" or len(constants) != 1 or constants[0] is None or constants[0].const_value is None:
        return False
    shape = constants[0].const_value.shape
    return len(shape) > 0 and constants[0].const_value.size == shape[-1]


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
