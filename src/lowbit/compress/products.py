"""The products of a graph as matrices: one view of Conv, Gemm and MatMul for everything that fits weights to data.

The weight of a product, whatever its layout, is a stack of matrices [g, O/g, K]: K inputs of each of g groups of outputs, so that
row r of a captured input gives output[r, g] = matrices[g] @ rows[r, g] (quant/layout.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowbit.compress.capture import Site, sites
from lowbit.graph.groups import Group, output_channels
from lowbit.quant.affine import Affine, aligned
from lowbit.quant.layout import as_matrices, from_matrices
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


PART = 1 << 19
"""Numbers of rows that are worked on at once, where a product has groups."""


@dataclass(frozen=True)
class Product:
    """A product whose weight belongs to it alone.

    Attributes:
        group: Where it is in the graph.
        site: What it reads.
        weight: Name of its weight.
        bias: Name of the constant that is added to its result, None where it has none.
        layout: "conv" [O, I/g, *kernel], "rows" [O, K] or "columns" [K, O].
        adds: It has a bias, its own or not.
    """

    group: Group
    site: Site
    weight: str
    bias: str | None
    layout: Literal["conv", "rows", "columns"]
    adds: bool = False

    def matrices(self, values: Array) -> Array:
        """A weight as [g, O/g, K]."""
        if self.layout == "conv":
            return as_matrices(values, self.site.groups)
        return values[None] if self.layout == "rows" else values.T[None]

    def back(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """[g, O/g, K] in the layout and `shape` of the weight."""
        if self.layout == "conv":
            return from_matrices(matrices, shape)
        return matrices[0] if self.layout == "rows" else np.ascontiguousarray(matrices[0].T)

    def grid_of_rows(self, grid: Affine, values: Array) -> Affine:
        """The grid of a weight, laid out over its matrices: one block a row, or a scale of its own for every weight of a blocked one."""
        if grid.block is not None:
            scale, zero = (self.matrices(np.broadcast_to(part, values.shape)) for part in aligned(grid, values.shape))
            return Affine(scale, zero, grid.dtype, grid.symmetric, axis=-1, block=1)
        g, outputs, size = self.matrices(values).shape
        scale = np.broadcast_to(grid.scale.reshape(-1), (g * outputs,)).reshape(g, outputs, 1).astype(np.float32)
        zero = np.broadcast_to(grid.zero_point.reshape(-1), (g * outputs,)).reshape(g, outputs, 1)
        return Affine(scale, zero, grid.dtype, grid.symmetric, axis=-1, block=size)

    def by_channel(self, values: Array) -> Array:
        """Factors of input channels [C] -> [g, 1, K], to multiply matrices with."""
        taps = int(np.prod(self.site.kernel)) if self.site.kernel else 1
        return np.repeat(values, taps).reshape(self.site.groups, 1, -1)


class Constants:
    """The constants of a model, read and replaced by name."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph

    def __getitem__(self, name: str) -> Array:
        tensor = self.graph.initializers[name].const_value
        assert tensor is not None, name
        return tensor.numpy()

    def __setitem__(self, name: str, values: Array) -> None:
        import onnx_ir

        self.graph.initializers[name].const_value = onnx_ir.tensor(np.array(values, np.float32, order="C"), name=name)


def products(model: ir.Model, groups: Iterable[Group]) -> dict[str, Product]:
    """Group -> product, for all that are one matrix (or one a group) and whose weight nobody else reads."""
    groups = list(groups)
    nodes = {str(node.name): node for node in model.graph}
    found = {}
    for name, site in sites(model.graph, groups).items():
        group = next(g for g in groups if g.name == name)
        node = nodes[name]
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or len(list(weight.uses())) != 1:
            continue
        if node.op_type != "Conv" and len(weight.const_value.shape) != 2:
            continue  # stacked products have no one matrix
        adds = group.bias is not None or any(nodes[each].op_type == "Add" for each in group.nodes[1:2])
        found[name] = Product(group, site, str(weight.name), _bias(group, nodes), _layout(node), adds)
    return found


def parts_of(rows: Array) -> Iterator[slice]:
    """Groups of a product, as many at once as have at most about `PART` numbers in its rows [R, g, K]: each is a problem of its own."""
    groups = rows.shape[1]
    step = max(1, PART * groups // max(rows.size, 1))
    return (slice(start, start + step) for start in range(0, groups, step))


def with_biases(model: ir.Model) -> None:
    """Gives every Conv and Gemm without a bias one of zeros, in place, so that corrections have somewhere to go."""
    import onnx_ir

    taken = {str(v.name) for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None} | set(model.graph.initializers)
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) > 2:
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            continue
        shape = weight.const_value.shape.numpy()
        transposed = node.op_type == "Conv" or ("transB" in node.attributes and node.attributes["transB"].as_int())
        name = next(each for n in range(len(taken) + 1) if (each := f"{node.name}_bias" + f"_{n}" * (n > 0)) not in taken)
        taken.add(name)
        zeros = onnx_ir.tensor(np.zeros(shape[0 if transposed else 1], weight.const_value.dtype.numpy()), name=name)
        value = onnx_ir.Value(name=name, const_value=zeros)
        model.graph.register_initializer(value)
        node.resize_inputs(3)
        node.replace_input_with(2, value)


def _layout(node: ir.Node) -> Literal["conv", "rows", "columns"]:
    if node.op_type == "Conv":
        return "conv"
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return "rows" if transposed else "columns"


def _bias(group: Group, nodes: dict[str, ir.Node]) -> str | None:
    """The bias inside the anchor, or the constant of the Add behind a MatMul."""
    holder = nodes[group.name] if group.bias is not None else next((nodes[n] for n in group.nodes[1:2] if nodes[n].op_type == "Add"), None)
    if holder is None:
        return None
    constants = [v for v in (holder.inputs[2:] if group.bias is not None else holder.inputs) if v is not None and v.const_value is not None]
    if len(constants) != 1 or len(list(constants[0].uses())) != 1 or constants[0].const_value is None:
        return None
    by_channel = constants[0].const_value.size == output_channels(nodes[group.name])
    return str(constants[0].name) if by_channel else None  # one number for all channels can be neither scaled nor corrected
