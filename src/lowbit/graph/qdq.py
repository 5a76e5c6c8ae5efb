"""Write a placement into an ONNX graph as QuantizeLinear/DequantizeLinear pairs.

The form is that of ONNX's operators (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html): a rounded activation becomes
QuantizeLinear -> DequantizeLinear, a weight is stored as integers behind a DequantizeLinear, a bias as int32. Runtimes find the
pairs around an operator and run its integer kernel. Nodes inside subgraphs (If, Loop, Scan) are left alone; a tensor of the outer graph
that they capture is the same tensor, rounded where all its readers see it rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph import ir_files
from lowbit.graph.groups import Group
from lowbit.graph.parameterize import Table, ValuesOf, parameterize
from lowbit.graph.place import Format, Placement, QuantizedActivation, QuantizedBias, QuantizedWeight, place
from lowbit.graph.profiles import ONNXRUNTIME_CPU, Profile
from lowbit.graph.spelling import keep_sums_apart
from lowbit.quant.affine import Affine, quantize
from lowbit.recipe import Recipe
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKED_OPSET = 21
"""First operator set with 4- and 16-bit integers and blocks in QuantizeLinear."""

_FOUR_BITS = ("int4", "uint4")


RangeOf = Callable[[str], tuple[float, float] | None]
"""Tensor name -> (low, high) in real units, or None for a tensor that was not observed."""


def write_static(prepared: Path, out: Path, recipe: Recipe, range_of: RangeOf, target: Profile = ONNXRUNTIME_CPU) -> Path:
    """Quantizes a model by a recipe and writes it.

    Args:
        prepared: What `graph.prepare` wrote.
        out: Where the artifact goes.
        recipe: Its `weights`, `activations`, `operators` and `exclude` are used.
        range_of: Range of every tensor, by name.
        target: Where the artifact will run.
    """
    assert recipe.activations is not None, f"{recipe.name} is not a static recipe"
    model = ir_files.read(prepared)
    form = Format(recipe.weights, recipe.activations)

    def format_of(group: Group) -> Format | None:
        left_out = recipe.operators and group.kind not in recipe.operators
        return None if left_out or any(name in recipe.exclude for name in group.nodes) else form

    names = [str(v.name) for v in model.graph.inputs] + [str(v.name) for node in model.graph for v in node.outputs]
    ranges = {name: found for name in names if (found := range_of(name)) is not None}
    placement = place(model.graph, target, format_of, ranges)
    write_pairs(model, placement, parameterize(placement, ranges.__getitem__, values_of(model)), target=target)
    ir_files.write(model, out)
    return out


def values_of(model: ir.Model) -> ValuesOf:
    """Looks constants of a model up by name."""

    def lookup(name: str) -> Array:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    return lookup


def write_pairs(
    model: ir.Model,
    placement: Placement,
    table: Table,
    smoothing: Mapping[str, Array] | None = None,
    *,
    target: Profile = ONNXRUNTIME_CPU,
) -> None:
    """Quantizes a model in place. Its operator set is raised where 16-bit activations, stored 4-bit weights or blocks need it.

    Args:
        model: What the placement was made for.
        placement: Where it is rounded.
        table: Parameters of everything in the placement, by key.
        smoothing: Activation -> factor a channel of its last axis, float32 [C], by which it is divided before it is rounded; the
            weights that read it have been multiplied already (quant/smoothquant.py).
        target: Says how weights of 4 bits are stored.

    Raises:
        ModelError: the operator set cannot be raised.
    """
    needed = BLOCKED_OPSET if any(_needs_new_types(grid, target) for grid in table.values()) else 0
    ir_files.raise_opset(model, max(needed, target.opset))
    writer = _Writer(model.graph, table, smoothing or {}, target)
    for activation in placement.activations:
        writer.activation(activation)
    for weight in placement.weights:
        writer.weight(weight)
    for bias in placement.biases:
        writer.bias(bias)
    writer.clean_up()
    if target.sums_apart:
        keep_sums_apart(model)


class _Writer:
    """Names and nodes of one graph while it is rewritten."""

    def __init__(self, graph: ir.Graph, table: Table, smoothing: Mapping[str, Array], target: Profile) -> None:
        self.graph, self.table, self.smoothing, self.target = graph, table, smoothing, target
        self.nodes = {str(node.name): node for node in graph}
        self.values = {str(v.name): v for v in graph.inputs} | {str(v.name): v for node in graph for v in node.outputs}
        self.taken = _all_names(graph)
        self.stored: dict[str, tuple[ir.Value, ...]] = {}

    def activation(self, entry: QuantizedActivation) -> None:
        """Puts a pair behind a tensor and leads its readers there; a tensor rounded for all stands for itself from then on."""
        value = self.values[entry.tensor]
        uses = list(value.uses())
        is_output = value.is_graph_output()
        rounded = self._pair(value, entry)
        wanted = None if entry.readers is None else {(self.nodes[name], index) for name, index in entry.readers}
        for node, index in uses:
            if wanted is None or (node, index) in wanted:
                node.replace_input_with(index, rounded)
        if entry.readers is None:
            self.values[entry.tensor] = rounded
            if is_output:
                self._take_over_output(value, rounded)

    def weight(self, entry: QuantizedWeight) -> None:
        """Stores a constant as integers for one reader."""
        self._store(entry.key, entry.tensor, lambda values: quantize(values, self.table[entry.key]))
        self._dequantize(entry.key, entry.tensor, entry.reader)

    def bias(self, entry: QuantizedBias) -> None:
        """Stores a bias as int32 for one reader, in the shape [channels]."""
        scale = self.table[entry.key].scale.astype(np.float64)
        self._store(
            entry.key,
            entry.tensor,
            lambda values: np.rint(np.broadcast_to(values.reshape(-1), (entry.channels,)) / scale).astype(np.int32),
        )
        self._dequantize(entry.key, entry.tensor, entry.reader)

    def clean_up(self) -> None:
        """Drops constants that nobody reads any more."""
        for name in [name for name, value in self.graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
            del self.graph.initializers[name]

    def _pair(self, value: ir.Value, entry: QuantizedActivation) -> ir.Value:
        grid, name = self.table[entry.key], entry.key if entry.readers is None else f"{entry.key}_rounded"
        scale, zero = self._parameters(name, grid)
        source, nodes = value, []
        if entry.tensor in self.smoothing:
            # Not merged into QuantizeLinear as a scale a channel: docs/lab.md says what runtimes make of that.
            factors = self.smoothing[entry.tensor].astype(np.float32)
            source = self._node("Mul", [value, self._initializer(f"{name}_smoothing", 1 / factors)], {}, name)
            nodes.append(source.producer())
        integers = self._node("QuantizeLinear", [source, scale, zero], {}, name)
        rounded = self._node("DequantizeLinear", [integers, scale, zero], {}, name)
        rounded.type, rounded.shape = value.type, value.shape
        nodes += [v.producer() for v in (integers, rounded)]
        maker = value.producer()
        if maker is not None:
            self.graph.insert_after(maker, [node for node in nodes if node is not None])
        else:
            self.graph.insert_before(self.graph[0], [node for node in nodes if node is not None])
        return rounded

    def _take_over_output(self, value: ir.Value, rounded: ir.Value) -> None:
        """A rounded tensor that is an output of the graph: the outside sees it rounded, under the same name."""
        name = str(value.name)
        value.name = self._unused(f"{name}_unrounded")
        rounded.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = rounded

    def _store(self, key: str, tensor: str, integers: Callable[[Array], Array]) -> None:
        """Initializers of a constant and its parameters, made once a key."""
        if key in self.stored:
            return
        grid, values = self.table[key], self.graph.initializers[tensor].const_value
        assert values is not None
        kind = grid.dtype if _stored_in_nibbles(grid, self.target) else None
        self.stored[key] = (self._initializer(f"{key}_quantized", integers(values.numpy()), kind), *self._parameters(key, grid))

    def _dequantize(self, key: str, tensor: str, edge: tuple[str, int]) -> None:
        grid, reader = self.table[key], self.nodes[edge[0]]
        attributes = {} if grid.axis is None else {"axis": grid.axis}
        if grid.block is not None:
            attributes["block_size"] = grid.block
        value = self._node("DequantizeLinear", self.stored[key], attributes, f"{edge[0]}/{tensor}")
        maker, original = value.producer(), reader.inputs[edge[1]]
        assert maker is not None
        self.graph.insert_before(reader, maker)
        if original is not None and grid.dtype != "int32":
            value.type, value.shape = original.type, original.shape
        reader.replace_input_with(edge[1], value)

    def _parameters(self, name: str, grid: Affine) -> list[ir.Value]:
        """Initializers for scale and zero point."""
        kind = grid.dtype if _stored_in_nibbles(grid, self.target) else None
        zero = grid.zero_point.astype(_container(grid.dtype))
        return [self._initializer(f"{name}_scale", grid.scale), self._initializer(f"{name}_zero_point", zero, kind)]

    def _node(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int], name: str) -> ir.Value:
        """A node that is in no graph yet; what it gives."""
        import onnx_ir

        node = onnx_ir.node(op, list(inputs), dict(attributes), name=self._unused(f"{name}_{op}"))
        node.outputs[0].name = self._unused(f"{name}_{op}_Output")
        return node.outputs[0]

    def _initializer(self, name: str, values: Array, dtype: str | None = None) -> ir.Value:
        import onnx_ir

        name = self._unused(name)
        kind = onnx_ir.DataType[dtype.upper()] if dtype is not None else None
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(values, order="C"), dtype=kind, name=name))
        self.graph.register_initializer(value)
        return value

    def _unused(self, name: str) -> str:
        """A name that nothing in the model has."""
        found, number = name, 0
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found


def _all_names(graph: ir.Graph) -> set[str]:
    """Names of all nodes and values, those of subgraphs included."""
    found = {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        inner = [*node.graph.inputs, *node.graph.initializers.values()] if node.graph is not None else []
        found |= {str(node.name), *(str(v.name) for v in (*node.outputs, *inner))}
    return found


def _needs_new_types(grid: Affine, target: Profile) -> bool:
    return grid.block is not None or grid.dtype in ("int16", "uint16") or _stored_in_nibbles(grid, target)


def _stored_in_nibbles(grid: Affine, target: Profile) -> bool:
    """Whether 4-bit values are stored as such: kernels for bytes would take blocks for channels."""
    return grid.dtype in _FOUR_BITS and (target.int4_weights or grid.block is not None)


def _container(dtype: str) -> np.dtype[np.generic]:
    """The narrowest numpy integer that holds a type."""
    bits = max(8, int(dtype.rpartition("int")[2]))
    return np.dtype(f"{'u' if dtype.startswith('u') else ''}int{bits}")
