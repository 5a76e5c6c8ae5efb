"""Decide where a graph is rounded: which tensors are quantized, for which readers, and which of them share a grid.

Decisions are data (`Placement`); `graph/qdq.py` carries them out, and writers of other targets start from the same. Two rules do
most of the work. A tensor is *emitted* as integers when the kernel that makes it can hand out integers, and it is quantized when
somebody downstream computes with them. A tensor that is made in floating point (by a normalisation, say) is quantized only for the
readers that compute with integers: all others read it unrounded, which is what keeps residual streams of transformers exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowbit.graph.flow import Flow, is_matrix_product
from lowbit.graph.groups import Group, channel_axis, find_groups, input_axis, output_channels
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
        activations: Of what goes in, and of what comes out where the kernel hands out integers.
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
        key: Its name in the table: the tensor's, unless that is rounded twice, in different types.
    """

    tensor: str
    spec: QuantSpec
    readers: tuple[Edge, ...] | None
    grid: str
    key: str


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant operand that is rounded for one reader.

    Attributes:
        tensor: Its name.
        reader: The edge.
        spec: How it is quantized.
        axis: Of its output channels (of its input channels where it is cut into blocks); None where one grid serves all.
        key: Its name in the table: the tensor's, unless another reader wants it on another grid.
        block: Elements of a block along `axis`; None where it is not cut.
    """

    tensor: str
    reader: Edge
    spec: QuantSpec
    axis: int | None
    key: str
    block: int | None = None


@dataclass(frozen=True)
class QuantizedBias:
    """A bias on the grid of input times weight, int32.

    Attributes:
        tensor: Its name.
        reader: The edge.
        activation: Name in the table of what it is added to the product of.
        weight: Likewise.
        channels: How many the product has; a bias of one number is repeated.
        key: Its name in the table.
    """

    tensor: str
    reader: Edge
    activation: str
    weight: str
    channels: int
    key: str


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

BLOCK = 32
"""Elements of a block where a recipe does not say."""


def place(graph: ir.Graph, profile: Profile, format_of: FormatOf, observed: Collection[str]) -> Placement:
    """Places quantization in a graph.

    Args:
        graph: A prepared graph; not changed.
        profile: Of the target; formats are expressed in its dialect.
        format_of: How each product should compute; None leaves it in floating point.
        observed: Tensors whose range is known; others cannot be quantized.
    """
    groups = find_groups(graph, profile)
    nodes = {str(node.name): node for node in graph}
    formats = {}
    for group in groups:
        possible = (
            is_matrix_product(group) and _is_known(group, profile, observed) and (profile.joins_rows or not _reads_rows(nodes[group.name]))
        )
        wanted = format_of(group) if possible else None
        if wanted is not None:
            formats[group.name] = Format(profile.weight(wanted.weights), profile.activation(wanted.activations))
    flow = Flow(graph, profile, groups, formats, observed)
    rounded = flow.rounded(flow.emitted())
    grids = flow.shared_grids(rounded)
    activations = [QuantizedActivation(name, spec, None, grids[name], name) for name, spec in rounded.items()]
    activations += _entries(groups, formats, rounded)
    weights = _weights(flow, rounded)
    biases = _biases(flow, activations, weights) if profile.integer_bias else []
    return Placement(tuple(groups), formats, tuple(activations), tuple(weights), tuple(biases))


def _is_known(group: Group, profile: Profile, observed: Collection[str]) -> bool:
    """Whether all ranges are known that the group's integer kernel needs."""
    gives_floats = group.kind in profile.float_output
    return all(tensor in observed for tensor in group.activations.values()) and (gives_floats or group.output in observed)


def _reads_rows(product: ir.Node) -> bool:
    """Whether a matrix product reads tensors that were joined along another axis than the one it sums over."""
    value = product.inputs[0]
    join = value.producer() if value is not None else None
    if value is None or join is None or join.op_type != "Concat" or product.op_type not in ("Gemm", "MatMul"):
        return False
    return value.shape is None or join.attributes["axis"].as_int() not in (-1, len(value.shape) - 1)


def _entries(groups: list[Group], formats: Mapping[str, Format], rounded: Mapping[str, QuantSpec]) -> list[QuantizedActivation]:
    """Tensors made in floating point, or in another type, for the products that read them as integers."""
    readers: dict[tuple[str, QuantSpec], list[Edge]] = {}
    for group in groups:
        if group.name not in formats:
            continue
        spec = formats[group.name].activations
        for index, tensor in group.activations.items():
            if rounded.get(tensor) != spec:
                readers.setdefault((tensor, spec), []).append((group.name, index))
    found, keys = [], set(rounded)
    for (tensor, spec), edges in readers.items():
        key = _unused(tensor, f"{tensor}@{spec.dtype}", keys)
        found.append(QuantizedActivation(tensor, spec, tuple(edges), key, key))
    return found


def _weights(flow: Flow, rounded: Mapping[str, QuantSpec]) -> list[QuantizedWeight]:
    """Constant operands of the products, and of what is computed on integers beside them."""
    wanted: list[QuantizedWeight] = []
    for group in flow.groups:
        node = flow.nodes[group.name]
        if group.name in flow.formats and group.weight is not None:
            wanted.append(_weight(node, group, flow.formats[group.name].weights))
        elif not is_matrix_product(group) and group.kind in flow.profile.elementwise and group.output in rounded:
            constants = [i for i in range(len(node.inputs)) if i not in group.activations]
            wanted += [QuantizedWeight(_input(node, i), (group.name, i), rounded[group.output], None, "") for i in constants]
    keys: set[str] = set()
    grids: dict[tuple[object, ...], str] = {}
    found = []
    for weight in wanted:
        grid = (weight.tensor, weight.spec, weight.axis, weight.block)
        if grid not in grids:
            grids[grid] = _unused(weight.tensor, f"{weight.tensor}@{weight.reader[0]}", keys)
        found.append(replace(weight, key=grids[grid]))
    return found


def _weight(node: ir.Node, group: Group, spec: QuantSpec) -> QuantizedWeight:
    assert group.weight is not None
    name, reader, axis = _input(node, group.weight), (group.name, group.weight), channel_axis(node)
    if spec.granularity == "per-tensor" or axis is None:
        return QuantizedWeight(name, reader, replace(spec, granularity="per-tensor", block=None), None, name)
    if spec.granularity == "per-group":
        weight, cut = node.inputs[group.weight], input_axis(node)
        assert weight is not None
        assert weight.const_value is not None
        extent = int(weight.const_value.shape.numpy()[cut])
        block = _block(extent, spec.block or BLOCK)
        if 1 < block < extent:
            return QuantizedWeight(name, reader, spec, cut, name, block)
    return QuantizedWeight(name, reader, replace(spec, granularity="per-channel", block=None), axis, name)


def _block(extent: int, most: int) -> int:
    """The largest block that cuts an axis into equal parts: not every runtime reads a shorter last one."""
    return max(size for size in range(1, min(extent, most) + 1) if extent % size == 0)


def _biases(flow: Flow, activations: list[QuantizedActivation], weights: list[QuantizedWeight]) -> list[QuantizedBias]:
    keys: set[str] = set()
    found = []
    by_reader = {weight.reader: weight for weight in weights}
    seen = {edge: entry.key for entry in activations for edge in entry.readers or ()}
    for group in flow.groups:
        if group.name not in flow.formats or group.bias is None or group.weight is None:
            continue
        node, weight = flow.nodes[group.name], by_reader[group.name, group.weight]
        if weight.block is not None:
            continue  # its scale changes along the sum, so that no grid fits the bias
        tensor = _input(node, group.bias)
        key = _unused(tensor, f"{tensor}@{group.name}", keys)
        activation = seen.get((group.name, 0), group.activations[0])
        found.append(QuantizedBias(tensor, (group.name, group.bias), activation, weight.key, output_channels(node), key))
    return found


def _unused(name: str, second: str, taken: set[str]) -> str:
    """`name`, or `second` where that is taken; whichever it is, it is taken then."""
    key = name if name not in taken else second
    taken.add(key)
    return key


def _input(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    assert value is not None
    return str(value.name)
