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
        if node.name in taken or not is_standard(node):
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


def is_standard(node: ir.Node) -> bool:
    """Whether a node is an operator of ONNX itself; others mean what their makers say."""
    return node.domain in ("", "ai.onnx")


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is known before the model runs."""
    return value is not None and value.const_value is not None


def may_be_float(value: ir.Value) -> bool:
    """Whether a value is 32-bit floating point, or of a type that is not known. Grids are of 32-bit values here."""
    import onnx_ir

    return value.dtype in (None, onnx_ir.DataType.FLOAT)


def keeps_grid(node: ir.Node) -> bool:
    """Whether a move hands on values of its input and zeros alone: padding with another number or interpolation gives others."""
    if node.op_type == "Resize":
        return ("mode" not in node.attributes or node.attributes["mode"].as_string() == "nearest") and _method(node) != "tf_crop_and_resize"
    if node.op_type != "Pad" or (len(node.inputs) > 2 and node.inputs[2] is None) or len(node.inputs) < 3:
        return True
    filler = node.inputs[2]
    return is_constant(filler) and filler is not None and filler.const_value is not None and not filler.const_value.numpy().any()


def _method(node: ir.Node) -> str:
    name = "coordinate_transformation_mode"
    return node.attributes[name].as_string() if name in node.attributes else ""


def channel_axis(node: ir.Node) -> int | None:
    """The axis of a product's weight that its output channels lie on.

    None where they are not one axis (a grouped ConvTranspose) or where kernels know no scale a channel (a stack of matrices).
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if _int(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if _int(node, "transB", 0) else 1
    return 1 if len(_constant(node, 1).shape) == 2 else None


def input_axis(node: ir.Node) -> int:
    """The axis of a product's weight that its input channels lie on, which is what blocks cut."""
    if node.op_type == "ConvTranspose":
        return 0
    if node.op_type == "Gemm":
        return 1 if _int(node, "transB", 0) else 0
    return 1 if node.op_type == "Conv" else len(_constant(node, 1).shape) - 2


def output_channels(node: ir.Node) -> int:
    """How many channels a product gives: as many as its bias has."""
    shape = _constant(node, 1).shape.numpy()
    if node.op_type == "ConvTranspose":
        return int(shape[1]) * _int(node, "group", 1)
    axis = channel_axis(node)
    return int(shape[-1 if axis is None else axis])


Anchor = tuple[dict[int, str], int | None, int | None]


def _anchor(node: ir.Node, profile: Profile) -> Anchor | None:
    """Activations, weight and bias of a node that can anchor a group, None for others."""
    computed = {i: str(v.name) for i, v in enumerate(node.inputs) if v is not None and not is_constant(v)}
    operands = node.inputs[:1] if node.op_type in profile.unary else node.inputs[:2]  # a second one may be axes
    if not all(may_be_float(v) for v in operands if v is not None):
        return None
    if node.op_type in profile.products:
        return _product(node, profile, computed)
    if node.op_type in profile.elementwise and _is_elementwise(node, profile, computed):
        return computed, None, None
    if node.op_type in profile.unary and 0 in computed and not (node.op_type in profile.moves and keeps_grid(node)):
        return {0: computed[0]}, None, None
    return None


def _is_elementwise(node: ir.Node, profile: Profile, computed: dict[int, str]) -> bool:
    constants = [v for v in node.inputs if v is not None and v.const_value is not None and v.const_value.size > 0]
    return (
        len(node.inputs) >= 2
        and len(computed) + len(constants) == len(node.inputs)
        and (not constants or (profile.constants and bool(computed)))
    )


def _product(node: ir.Node, profile: Profile, computed: dict[int, str]) -> Anchor | None:
    if 0 not in computed:
        return None
    if 1 in computed:
        return (computed, None, None) if node.op_type == "MatMul" and profile.attention and len(computed) == 2 else None
    shape = _constant(node, 1).shape
    if len(shape) < 2 or 0 in shape or (node.op_type == "Gemm" and not _plain_gemm(node)):
        return None
    bias = 2 if len(node.inputs) > 2 and is_constant(node.inputs[2]) else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None  # a computed bias has no grid that could be known ahead
    return {0: computed[0]}, 1, bias


def _plain_gemm(node: ir.Node) -> bool:
    """Integer kernels compute A B + C, no multiple of it, with one bias for all or one a channel."""
    factors = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    row = bias is None or bias.const_value is None or _by_channel(bias.const_value, output_channels(node))
    return all(factor == 1.0 for factor in factors) and not _int(node, "transA", 0) and row


def _by_channel(constant: ir.TensorProtocol, channels: int) -> bool:
    shape = constant.shape.numpy()
    return constant.size == 1 or (constant.size == channels and shape[-1] == channels)


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
    if "Sigmoid" in profile.gates and (gated := _gated(value, profile)):
        return gated
    return _hard_swish(value) if "HardSigmoid" in profile.gates else []


def _gated(value: ir.Value, profile: Profile) -> list[ir.Node]:
    """The nodes of x * g(x), where nothing else reads x or g(x)."""
    for gate, product in _both_readers(value):
        if gate.op_type in profile.gates and product.op_type == "Mul" and _only_reader(gate.outputs[0]) is product:
            return [gate, product]
    return []


def _hard_swish(value: ir.Value) -> list[ir.Node]:
    """The nodes of x * clip(x + 3, 0, 6) / 6, divided before or after the product."""
    for shift, product in _both_readers(value):
        if shift.op_type != "Add" or product.op_type != "Mul" or _scalar(shift) != 3.0:
            continue
        clip = _only_reader(shift.outputs[0])
        if clip is None or clip.op_type != "Clip" or _bounds(clip) != (0.0, 6.0):
            continue
        then = _only_reader(clip.outputs[0])
        if then is product:
            last = _only_reader(product.outputs[0])
            return [shift, clip, product, last] if last is not None and _divides_by_six(last) else []
        if then is not None and _divides_by_six(then) and _only_reader(then.outputs[0]) is product:
            return [shift, clip, then, product]
    return []


def _both_readers(value: ir.Value) -> list[tuple[ir.Node, ir.Node]]:
    """The two readers of a value that has exactly two, in either order."""
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or len(readers) != 2 or readers[0] is readers[1] or not all(_beside(value, reader) for reader in readers):
        return []
    return [(readers[0], readers[1]), (readers[1], readers[0])]


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, where it is an operator of ONNX in the same graph (not in a branch or a loop)."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or not _beside(value, uses[0].node):
        return None
    return uses[0].node


def _beside(value: ir.Value, reader: ir.Node) -> bool:
    maker = value.producer()
    return is_standard(reader) and maker is not None and reader.graph is maker.graph


def _divides_by_six(node: ir.Node) -> bool:
    number = _scalar(node)
    if node.op_type == "Div":
        return number == 6.0 and is_constant(node.inputs[1])
    return node.op_type == "Mul" and number is not None and abs(number - 1 / 6) < 1e-6


def _scalar(node: ir.Node) -> float | None:
    """The one number that a node combines its other operand with."""
    numbers = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    return float(numbers[0].numpy().reshape(-1)[0]) if len(numbers) == 1 and numbers[0].size == 1 else None


def _bounds(clip: ir.Node) -> tuple[float, float] | None:
    """Both bounds of a Clip, where they are constants."""
    limits = [v.const_value for v in clip.inputs[1:] if v is not None and v.const_value is not None]
    return (float(limits[0].numpy()), float(limits[1].numpy())) if len(limits) == 2 else None


def _adds_bias(add: ir.Node, product: ir.Node) -> bool:
    """Whether an Add adds one constant a channel to a matrix product (convolutions have their bias inside)."""
    constants = [v for v in add.inputs if is_constant(v)]
    if product.op_type != "MatMul" or len(constants) != 1 or constants[0] is None or constants[0].const_value is None:
        return False
    shape = constants[0].const_value.shape.numpy()
    return len(shape) > 0 and constants[0].const_value.size == shape[-1] and shape[-1] in (1, output_channels(product))


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
