"""Write a placement into an ONNX graph as QuantizeLinear/DequantizeLinear pairs.

The form is that of ONNX's operators (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html): a rounded activation becomes
QuantizeLinear -> DequantizeLinear, a weight is stored as integers behind a DequantizeLinear, a bias as int32. Runtimes find the
pairs around an operator and run its integer kernel. Nodes inside subgraphs (If, Loop, Scan) read what they read before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph import ir_files
from lowbit.graph.groups import Group
from lowbit.graph.parameterize import Table, ValuesOf, parameterize
from lowbit.graph.place import Format, Placement, QuantizedActivation, place
from lowbit.graph.profiles import ONNXRUNTIME_CPU, Profile
from lowbit.quant.affine import Affine, aligned, quantize
from lowbit.recipe import Recipe
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKED_OPSET = 21
"""First operator set with 4- and 16-bit integers and blocks in QuantizeLinear."""


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
    write_pairs(model, placement, parameterize(placement, ranges.__getitem__, values_of(model)))
    ir_files.write(model, out)
    return out


def values_of(model: ir.Model) -> ValuesOf:
    """Looks constants of a model up by name."""

    def lookup(name: str) -> Array:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    return lookup


def write_pairs(model: ir.Model, placement: Placement, table: Table, smoothing: Mapping[str, Array] | None = None) -> None:
    """Quantizes a model in place.

    Args:
        model: What the placement was made for.
        placement: Where it is rounded.
        table: Parameters of every tensor of the placement.
        smoothing: Activation -> factor a channel of its last axis, float32 [C], by which it is divided before it is rounded; the
            weights that read it have been multiplied already (quant/smoothquant.py).
    """
    writer = _Writer(model.graph, table, smoothing or {})
    for activation in placement.activations:
        writer.activation(activation)
    for weight in placement.weights:
        writer.constant(weight.tensor, weight.reader)
    for bias in placement.biases:
        writer.constant(bias.tensor, bias.reader)
    writer.clean_up()


class _Writer:
    """Names and nodes of one graph while it is rewritten."""

    def __init__(self, graph: ir.Graph, table: Table, smoothing: Mapping[str, Array]) -> None:
        self.graph, self.table, self.smoothing = graph, table, smoothing
        self.nodes = {str(node.name): node for node in graph}
        self.values = {str(v.name): v for v in graph.inputs} | {str(v.name): v for node in graph for v in node.outputs}
        self.stored: dict[str, ir.Value] = {}

    def activation(self, entry: QuantizedActivation) -> None:
        """Puts a pair behind a tensor and leads its readers there."""
        value = self.values[entry.tensor]
        uses = list(value.uses())
        is_output = value.is_graph_output()
        rounded = self._pair(value, entry.tensor, self.table[entry.tensor], suffix="" if entry.readers is None else "_rounded")
        wanted = None if entry.readers is None else {(self.nodes[name], index) for name, index in entry.readers}
        for node, index in uses:
            if wanted is None or (node, index) in wanted:
                node.replace_input_with(index, rounded)
        if entry.readers is None and is_output:
            self._take_over_output(value, rounded)

    def constant(self, tensor: str, reader: tuple[str, int]) -> None:
        """Stores a constant as integers for one reader."""
        node = self.nodes[reader[0]]
        if tensor not in self.stored:
            values = self.graph.initializers[tensor].const_value
            assert values is not None
            self.stored[tensor] = self._integers(tensor, values.numpy())
        grid = self.table[tensor]
        inputs = [self.stored[tensor], *self._parameters(tensor, grid)]
        output = self._node("DequantizeLinear", inputs, f"{reader[0]}/{tensor}_DequantizeLinear_Output", grid, before=node)
        node.replace_input_with(reader[1], output)

    def clean_up(self) -> None:
        """Drops constants that nobody reads any more."""
        for name in [name for name, value in self.graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
            del self.graph.initializers[name]

    def _pair(self, value: ir.Value, tensor: str, grid: Affine, suffix: str) -> ir.Value:
        import onnx_ir

        producer = value.producer()
        anchor = producer if producer is not None else None
        name = f"{tensor}{suffix}"
        scale, zero = self._parameters(name, grid)
        first_scale, first_zero, axis = scale, zero, None
        if tensor in self.smoothing:
            factors = self.smoothing[tensor].astype(np.float32)
            first_scale = self._initializer(f"{name}_smoothed_scale", factors * grid.scale)
            first_zero = self._initializer(f"{name}_smoothed_zero_point", np.full(len(factors), zero.const_value.numpy()))
            axis = -1
        attributes = {} if axis is None else {"axis": axis}
        q = onnx_ir.node("QuantizeLinear", [value, first_scale, first_zero], attributes, name=f"{name}_QuantizeLinear")
        q.outputs[0].name = f"{name}_QuantizeLinear_Output"
        d = onnx_ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{name}_DequantizeLinear")
        d.outputs[0].name = f"{name}_DequantizeLinear_Output"
        d.outputs[0].type, d.outputs[0].shape = value.type, value.shape
        if anchor is not None:
            self.graph.insert_after(anchor, [q, d])
        else:
            self.graph.insert_before(self.graph[0], [q, d])
        return d.outputs[0]

    def _take_over_output(self, value: ir.Value, rounded: ir.Value) -> None:
        """A rounded tensor that is an output of the graph: the outside sees it rounded, under the same name."""
        name = value.name
        value.name = f"{name}_unrounded"
        rounded.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = rounded

    def _node(self, op: str, inputs: list[ir.Value], output: str, grid: Affine, before: ir.Node) -> ir.Value:
        import onnx_ir

        attributes = {} if grid.axis is None else {"axis": grid.axis}
        if grid.block is not None:
            attributes["block_size"] = grid.block
        node = onnx_ir.node(op, inputs, attributes, name=output.removesuffix("_Output"))
        node.outputs[0].name = output
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _integers(self, tensor: str, values: Array) -> ir.Value:
        grid = self.table[tensor]
        if grid.dtype == "int32":
            scale, _ = aligned(grid, values.shape)
            return self._initializer(f"{tensor}_quantized", np.rint(values / scale).astype(np.int32))
        return self._initializer(f"{tensor}_quantized", quantize(values, grid), grid.dtype)

    def _parameters(self, name: str, grid: Affine) -> list[ir.Value]:
        """Initializers for scale and zero point, made once a tensor."""
        scale = self._initializer(f"{name}_scale", grid.scale)
        narrow = np.int32 if grid.dtype == "int32" else quantize(np.zeros(1, np.float32), _plain(grid)).dtype
        return [scale, self._initializer(f"{name}_zero_point", grid.zero_point.astype(narrow), grid.dtype)]

    def _initializer(self, name: str, values: Array, dtype: str | None = None) -> ir.Value:
        import onnx_ir

        if name in self.graph.initializers:
            return self.graph.initializers[name]
        kind = onnx_ir.DataType[dtype.upper()] if dtype in ("int4", "uint4") else None
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(values, order="C"), dtype=kind, name=name))
        self.graph.register_initializer(value)
        return value


def _plain(grid: Affine) -> Affine:
    return Affine(np.float32(1.0), np.int32(0), grid.dtype, grid.symmetric)  # type: ignore[arg-type]
