"""A float model in which every group of operators has a switch: off it computes as ever, on it computes as its quantized form would.

One session of it answers, for any group and any format, "what does the model say if this group alone is quantized?" A group becomes
an If: the branch that is not taken costs nothing, so a run costs one pass of the float model and a few operators. The branch that is
taken also says how far the group's own output went astray, in all formats at once. Rounding is written as arithmetic (divide, round,
clip, multiply), the very numbers of QuantizeLinear and DequantizeLinear, because runtimes rewrite partly quantized graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.graph import ir_files
from lowbit.graph.flow import is_matrix_product
from lowbit.graph.groups import Group, find_groups
from lowbit.graph.parameterize import RangeOf, parameterize
from lowbit.graph.place import Format, Placement, place
from lowbit.graph.profiles import Profile
from lowbit.graph.qdq import values_of
from lowbit.quant.affine import Affine, levels, round_trip
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

GROUP, FORMAT, ERROR = "lowbit/group", "lowbit/format", "lowbit/error"
"""Inputs: number of the group that is quantized (-1: none) and of its format, int64 []. Output: squares of the group's
float output, and of its error in each format, summed, float32 [1 + formats]."""

FLOATS = ("fp16", "bf16", "fp32")
"""Types in a QuantSpec that this file leaves as they are: w8a32 is `QuantSpec("fp32")` for activations."""


@dataclass(frozen=True)
class Rounding:
    """What is rounded where one group alone is quantized.

    Attributes:
        inputs: Input number of the anchor -> grid.
        constants: Input number of the anchor -> rounded values of its weight or bias.
        output: Grid of what the group hands out, None where that stays in floating point.
    """

    inputs: Mapping[int, Affine]
    constants: Mapping[int, Array]
    output: Affine | None

    @property
    def any(self) -> bool:
        """Whether there is anything to round."""
        return bool(self.inputs or self.constants or self.output)


@dataclass(frozen=True)
class Switched:
    """A model with switches.

    Attributes:
        model: Its inputs are the model's own, GROUP and FORMAT; its outputs the model's own, then ERROR.
        groups: Names, in the order of their numbers.
        formats: Likewise.
    """

    model: onnx.ModelProto
    groups: tuple[str, ...]
    formats: tuple[str, ...]


def switch(prepared: Path, profile: Profile, formats: Mapping[str, Format], range_of: RangeOf, observed: Sequence[str]) -> Switched:
    """Gives every product that can be quantized a switch.

    Args:
        prepared: What `graph.prepare` wrote; not changed.
        profile: Of the target: what is rounded around a group that is quantized alone.
        formats: Name -> how a group may compute.
        range_of: Of every observed tensor.
        observed: Tensors whose range is known; products that read others get no switch.
    """
    import onnx

    source = ir_files.read(prepared)
    found: list[tuple[Group, list[Rounding]]] = []
    for group in find_groups(source.graph, profile):
        if is_matrix_product(group):
            roundings = [rounding(source, profile, group, form, range_of, observed) for form in formats.values()]
            if possible := [each for each in roundings if each is not None]:
                found.append((group, possible))
    model = onnx.load_model(prepared, load_external_data=False)
    _rewrite(model, found, len(formats))
    return Switched(model, tuple(group.name for group, _ in found), tuple(formats))


def rounding(model: ir.Model, profile: Profile, group: Group, form: Format, range_of: RangeOf, observed: Sequence[str]) -> Rounding | None:
    """What the QDQ writer rounds where only `group` is quantized; None where that cannot be, whatever the format."""
    placement = place(model.graph, profile, lambda g: form if g.name == group.name else None, observed)
    if group.name not in placement.formats:
        return None
    placement = _integers_only(placement, form)
    table = parameterize(placement, range_of, values_of(model))
    inputs = {edge[1]: table[a.key] for a in placement.activations for edge in a.readers or () if edge[0] == group.name}
    everywhere = {a.tensor: table[a.key] for a in placement.activations if a.readers is None}
    values = values_of(model)
    constants = {weight.reader[1]: round_trip(values(weight.tensor), table[weight.key]) for weight in placement.weights}
    constants |= {bias.reader[1]: _round_bias(values(bias.tensor), table[bias.key].scale, bias.channels) for bias in placement.biases}
    return Rounding(inputs, constants, everywhere.get(group.output))


def _integers_only(placement: Placement, form: Format) -> Placement:
    """A placement without what stays floating point, and without biases on grids that do not exist then."""
    weights = () if form.weights.dtype in FLOATS else placement.weights
    activations = () if form.activations.dtype in FLOATS else placement.activations
    return replace(placement, weights=weights, activations=activations, biases=placement.biases if weights and activations else ())


def _round_bias(values: Array, scale: Array, channels: int) -> Array:
    """A bias on its int32 grid, float32 [channels]."""
    return (np.rint(np.broadcast_to(values.reshape(-1), (channels,)) / scale.astype(np.float64)) * scale).astype(np.float32)


# Graph surgery --------------------------------------------------------------------------------------------------------


def _rewrite(model: onnx.ModelProto, found: Sequence[tuple[Group, list[Rounding]]], formats: int) -> None:
    from onnx import TensorProto, helper

    nodes = {node.name: node for node in model.graph.node}
    branches = {}
    for number, (group, roundings) in enumerate(found):
        branches[group.nodes[-1]] = _switched(number, group, [nodes[name] for name in group.nodes], roundings)
    inside = {name for group, _ in found for name in group.nodes}
    rewritten = []
    for node in model.graph.node:
        rewritten += branches.get(node.name, [] if node.name in inside else [node])
    errors = [f"{ERROR}/{number}" for number in range(len(found))]
    rewritten.append(helper.make_node("Sum", errors, [ERROR], name=ERROR))
    del model.graph.node[:]
    model.graph.node.extend(rewritten)
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in (GROUP, FORMAT))
    model.graph.output.append(helper.make_tensor_value_info(ERROR, TensorProto.FLOAT, [1 + formats]))


def _switched(number: int, group: Group, nodes: Sequence[Any], roundings: Sequence[Rounding]) -> list[Any]:
    """The nodes that take a group's place."""
    from onnx import helper, numpy_helper

    home = f"lowbit/{number}"
    which, chosen, error = f"{home}/which", f"{home}/chosen", f"{ERROR}/{number}"
    then, otherwise = (_Branch(f"{home}/{kind}") for kind in ("on", "off"))
    exact = then.copy(nodes, group.output, "exact")
    answers = [then.quantized(nodes, group, found, str(index)) if found.any else exact for index, found in enumerate(roundings)]
    then.add("Concat", [then.energy(exact), *(then.energy(then.add("Sub", [answer, exact])) for answer in answers)], "error", axis=0)
    result = answers[0]
    for index, answer in enumerate(answers[1:], start=1):
        result = then.add("Where", [then.add("Equal", [FORMAT, then.constant(np.int64(index))]), answer, result])
    same = otherwise.copy(nodes, group.output, "exact")
    zeros = otherwise.constant(np.zeros(1 + len(roundings), np.float32))
    branches = {
        "then_branch": then.graph([result, f"{then.home}/error"]),
        "else_branch": otherwise.graph([same, otherwise.add("Identity", [zeros])]),
    }
    return [
        helper.make_node("Constant", [], [which], name=which, value=numpy_helper.from_array(np.array(number, np.int64))),
        helper.make_node("Equal", [GROUP, which], [chosen], name=chosen),
        helper.make_node("If", [chosen], [group.output, error], name=error, **branches),
    ]


class _Branch:
    """A subgraph in the making; its names are its own."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, op: str, inputs: Sequence[str], name: str | None = None, **attributes: Any) -> str:
        """Appends a node; returns the name of its output."""
        from onnx import helper

        output = f"{self.home}/{name or len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"{self.home}/c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def copy(self, nodes: Sequence[Any], output: str, kind: str, anchor_inputs: Mapping[int, str] | None = None) -> str:
        """Appends a group's nodes under other names; returns what `output` is called there."""
        renamed = {name: f"{self.home}/{kind}/{name}" for node in nodes for name in node.output if name}
        for node in nodes:
            twin = type(node)()
            twin.CopyFrom(node)
            twin.name = f"{self.home}/{kind}/{node.name}"
            given = anchor_inputs or {} if node is nodes[0] else {}
            twin.input[:] = [given.get(i, renamed.get(name, name)) for i, name in enumerate(node.input)]
            twin.output[:] = [renamed.get(name, name) for name in node.output]
            self.nodes.append(twin)
        return renamed[output]

    def quantized(self, nodes: Sequence[Any], group: Group, found: Rounding, kind: str) -> str:
        """Appends a group with its inputs, constants and output rounded."""
        inputs = {index: self.round(tensor, found.inputs[index]) for index, tensor in group.activations.items() if index in found.inputs}
        inputs |= {index: self.constant(values) for index, values in found.constants.items()}
        result = self.copy(nodes, group.output, kind, inputs)
        return result if found.output is None else self.round(result, found.output)

    def round(self, tensor: str, grid: Affine) -> str:
        """QuantizeLinear and DequantizeLinear in one, per tensor: round half to even, saturate."""
        bottom, top = (np.float32(level - grid.zero_point) for level in levels(grid.dtype, grid.symmetric))
        scale = self.constant(grid.scale)
        steps = self.add("Round", [self.add("Div", [tensor, scale])])
        return self.add("Mul", [self.add("Clip", [steps, self.constant(bottom), self.constant(top)]), scale])

    def energy(self, tensor: str) -> str:
        """Sum of squares, float32 [1]."""
        total = self.add("ReduceSum", [self.add("Mul", [tensor, tensor])], keepdims=0)
        return self.add("Reshape", [total, self.constant(np.array([1]))])

    def graph(self, outputs: Sequence[str]) -> onnx.GraphProto:
        from onnx import TensorProto, helper

        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        return helper.make_graph(self.nodes, self.home, [], infos, self.initializers)
