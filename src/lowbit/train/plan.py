"""From an ONNX graph to what its torch twin has to hold and do, in order. Pure: no torch here.

A QuantizeLinear and the DequantizeLinear nodes that read it are one rounding. A constant behind DequantizeLinear is a float weight that
is rounded on its way, an int32 one a float bias: they are trained in floating point, and turn into integers when they are written back
(train/write_back.py). Tensors keep their ONNX names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.graph.groups import is_standard
from lowbit.quant.affine import levels
from lowbit.recipe import Recipe, widths
from lowbit.train.operators import OPERATORS, Attributes
from lowbit.train.parts import Bias, Compute, Grid, Plan, Rounding
from lowbit.train.relations import derive_biases, tie
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Bias", "Compute", "Grid", "Plan", "Rounding", "plan"]

_TRAINED: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
}
"""Operator -> which of its inputs are trained where they are constant. Tables that are looked up stay: few samples reach few rows."""

_AFFINE = ("Add", "Mul")
"""Trained where the constant is a number a channel: others are limits, priors or parts of a function."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def plan(model: ir.Model, name: str, recipe: Recipe | None = None) -> Plan:
    """Plans the twin of a model.

    Args:
        model: As `graph.ir_files.read` gives it.
        name: Of the file, for messages.
        recipe: It was made by, which knows how many bits weights have that are stored in bytes. Without it, they have as few as hold
            the stored integers.

    Raises:
        ModelError: operators that the twin does not know, or quantization in a form that it cannot train.
    """
    _check(model.graph, name)
    return _Planner(model, recipe).run()


def _check(graph: ir.Graph, name: str) -> None:
    """All operators that are missing, at once."""
    missing = {f"{n.op_type} ('{n.name}')": None for n in graph if not (is_standard(n) and (n.op_type in OPERATORS or n.op_type in _PAIR))}
    if missing:
        shown = ", ".join(list(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelError(
            f"'{name}' has operators that the torch twin cannot compute: {shown}. It computes {', '.join(sorted((*OPERATORS, *_PAIR)))}.",
            "Export the model without them (control flow can often be traced away), or stay with post-training quantization.",
        )


class _Planner:
    """One walk over a graph."""

    def __init__(self, model: ir.Model, recipe: Recipe | None) -> None:
        self.graph, self.recipe = model.graph, recipe
        self.opset = model.graph.opset_imports.get("", 21)
        self.arrays = {n: v.const_value.numpy() for n, v in self.graph.initializers.items() if v.const_value is not None}
        self.types = {n: v.const_value.dtype.name.lower() for n, v in self.graph.initializers.items() if v.const_value is not None}
        self.plan = Plan(tuple(str(v.name) for v in self.graph.inputs if str(v.name) not in self.arrays))

    def run(self) -> Plan:
        for node in self.graph:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            else:
                self._compute(node)
        tie(self.graph, self.plan)
        derive_biases(self.graph, self.plan)
        for value in self.graph.outputs:
            self.plan.outputs[str(value.name)] = self._name(value)
        self._constants()
        return self.plan

    def _name(self, value: ir.Value) -> str:
        return self.plan.aliases.get(str(value.name), str(value.name))

    def _compute(self, node: ir.Node) -> None:
        inputs = tuple(None if v is None or self._says_nothing(node, v) else self._name(v) for v in node.inputs)
        outputs = [str(v.name or "") for v in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        values = {key: _plain(attribute) for key, attribute in node.attributes.items()}
        attributes = Attributes(node.op_type, str(node.name), values, self.opset, len(outputs))
        self.plan.steps.append(Compute(attributes, inputs, tuple(outputs)))

    def _says_nothing(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether an input is left out: by name, or as Resize may by a tensor without elements."""
        array = self.arrays.get(str(value.name))
        return not value.name or (node.op_type == "Resize" and array is not None and array.size == 0)

    def _quantize(self, node: ir.Node) -> None:
        source, key = node.inputs[0], str(node.outputs[0].name)
        assert source is not None
        for use in node.outputs[0].uses():
            if use.node.op_type != "DequantizeLinear":
                raise self._refuse(node, f"its integers are read by {use.node.op_type} '{use.node.name}'")
        if node.outputs[0].is_graph_output():
            raise self._refuse(node, "its integers are an output of the graph")
        tensor = self._name(source)
        is_weight = tensor in self.arrays
        if is_weight:
            self.plan.trained[tensor] = self.arrays[tensor]
        kind = self.types[str(node.inputs[2].name)] if len(node.inputs) > 2 and node.inputs[2] is not None else "uint8"
        self.plan.grids[key] = self._grid(node, key, tensor, kind, levels(kind, False), is_weight=is_weight)
        self.plan.steps.append(Rounding(key, tensor, key))

    def _dequantize(self, node: ir.Node) -> None:
        """Reads what a QuantizeLinear gave, or stored integers."""
        assert node.inputs[0] is not None
        source, output = str(node.inputs[0].name), str(node.outputs[0].name)
        if source in self.plan.grids or source in self.plan.stored:
            self._same_grid(node, self.plan.grids[self.plan.stored.get(source, source)])
            self.plan.aliases[output] = f"{source}:rounded" if source in self.plan.stored else source
        elif source not in self.arrays:
            raise self._refuse(node, "it reads integers that are computed")
        elif self.types[source] == "int32":
            self._bias(node, source)
            self.plan.aliases[output] = source
        else:
            self._weight(node, source)
            self.plan.aliases[output] = f"{source}:rounded"

    def _bias(self, node: ir.Node, source: str) -> None:
        integers, scale = self.arrays[source], self._constant(node, 1)
        self.plan.trained[source] = (integers * _spread(self.arrays[scale], integers, *_axis(node))).astype(np.float32)
        self.plan.biases[source] = Bias(source, scale, None, None)

    def _weight(self, node: ir.Node, source: str) -> None:
        integers = self.arrays[source].astype(np.int32)
        kind = self.types[source]
        grid = self._grid(node, source, source, kind, levels(kind, False), is_weight=True)
        low, high = self._levels(node, grid, integers)
        grid = replace(grid, low=low, high=high)
        scale, zero = self.arrays[grid.scale], self.plan.zeros(grid)
        form = (grid.axis, grid.block)
        self.plan.trained[source] = ((integers - _spread(zero, integers, *form)) * _spread(scale, integers, *form)).astype(np.float32)
        self.plan.grids[source], self.plan.stored[source] = grid, source
        self.plan.steps.append(Rounding(source, source, f"{source}:rounded"))

    def _grid(self, node: ir.Node, key: str, tensor: str, kind: str, ends: tuple[int, int], *, is_weight: bool) -> Grid:
        scale = self._constant(node, 1)
        zero = self._constant(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        axis, block = _axis(node)
        channels = axis if self.arrays[scale].size > 1 else None
        return Grid(key, tensor, scale, zero, is_weight, *ends, channels, block, levels(kind, False), key)

    def _constant(self, node: ir.Node, index: int) -> str:
        value = node.inputs[index]
        if value is None or str(value.name) not in self.arrays:
            raise self._refuse(node, "its scale or zero point is computed while the model runs")
        name = str(value.name)
        self.plan.parameters[name] = self.arrays[name]
        return name

    def _same_grid(self, node: ir.Node, grid: Grid) -> None:
        if not np.array_equal(self.arrays[self._constant(node, 1)], self.arrays[grid.scale]):
            raise self._refuse(node, "its scale is not the one its integers were made with")

    def _levels(self, node: ir.Node, grid: Grid, integers: Array) -> tuple[int, int]:
        """The levels that a stored weight may take: those of its bits, without the lowest where zero is the middle."""
        kind = self.types[grid.key]
        container, signed = int(kind.rpartition("int")[2]), not kind.startswith("u")
        middle = signed and not self.plan.zeros(grid).any() and int(integers.min()) > grid.low
        bits = container if self.recipe is None else min(container, self._bits(node))
        if self.recipe is None and middle:
            bits = next(b for b in (2, 3, 4, 8, 16) if b >= container or np.abs(integers).max() <= levels(f"int{b}", True)[1])
        low, high = levels(f"{'' if signed else 'u'}int{bits}", middle)
        return min(low, int(integers.min())), max(high, int(integers.max()))

    def _bits(self, node: ir.Node) -> int:
        """Of a weight, by the recipe: its product's own format, or the format of all."""
        assert self.recipe is not None
        for use in node.outputs[0].uses():
            if found := widths(self.recipe.formats.get(str(use.node.name), "float")):
                return found[0]
        digits = self.recipe.weights.dtype.rpartition("int")[2]
        return max(2, int(digits)) if digits.isdigit() else 8  # binary weights are ternary ones that leave out zero

    def _constants(self) -> None:
        """Sorts what is left of the constants into those that are trained and those that stay."""
        read = {name for step in self.plan.steps for name in (step.inputs if isinstance(step, Compute) else (step.source,))}
        for step in self.plan.steps:
            if isinstance(step, Compute):
                self.plan.trained.update({name: self.arrays[name] for name in _trained_by(step, self.arrays)})
        kept = (read | set(self.plan.outputs.values())) & set(self.arrays) - set(self.plan.trained)
        self.plan.constants.update({str(name): self.arrays[str(name)] for name in kept})

    def _refuse(self, node: ir.Node, what: str) -> ModelError:
        return ModelError(
            f"The torch twin cannot train {node.op_type} '{node.name}': {what}.",
            "Train a static QDQ artifact: constant scales, and QuantizeLinear followed by DequantizeLinear.",
        )


def _trained_by(step: Compute, arrays: Mapping[str, Array]) -> Iterator[str]:
    """Constants of an operator that are weights."""
    op = step.attributes.op
    for index, name in enumerate(step.inputs):
        if name is None or name not in arrays or arrays[name].dtype != np.float32:
            continue
        a_channel = arrays[name].size > 1 and arrays[name].size == max(arrays[name].shape)
        if index in _TRAINED.get(op, ()) or (op in _AFFINE and a_channel):
            yield name


def _axis(node: ir.Node) -> tuple[int, int | None]:
    """Axis and block of a node of a pair."""
    axis, block = node.attributes.get("axis"), node.attributes.get("block_size")
    return (1 if axis is None else axis.as_int()), ((block.as_int() or None) if block is not None else None)


def _spread(values: Array, like: Array, axis: int | None, block: int | None) -> Array:
    """A scale or zero point in a shape that broadcasts with an array."""
    if values.size == 1:
        return values.reshape(())
    assert axis is not None
    axis = axis % like.ndim
    if block is not None:
        return np.take(values, np.arange(like.shape[axis]) // block, axis=axis)
    return values.reshape([-1 if each == axis else 1 for each in range(like.ndim)])


def _plain(attribute: Any) -> Any:
    """An attribute as Python has it: numbers, text, lists, or an array."""
    value = attribute.value
    if hasattr(value, "numpy"):
        return value.numpy()
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, list | tuple) else value
