"""Read a graph as a list of steps on tensors of known shape: batch 1, and what is constant computed. Plain data for what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.types import Array

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_ROUNDS = 12
"""Shapes and constants wait for each other; chains of that depth there are none."""

_LARGEST = 1 << 24
"""Elements up to which what is constant is computed ahead of time."""

_NEVER_FOLDED = frozenset(
    {"Bernoulli", "If", "Loop", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan"}
)


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        op: Its operator.
        inputs: Names; "" where one is left out.
        outputs: Names.
        attributes: Values as Python has them.
        nodes: Names of the nodes that it stands for.
        clamp: Bounds between which results are cut, where a ReLU or Clip behind it was taken in.
        domain: Of the operator; "" is ONNX's own.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    clamp: tuple[float, float] | None = None
    domain: str = ""

    @property
    def output(self) -> str:
        return self.outputs[0]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Net:
    """A graph as steps.

    Attributes:
        steps: In the order in which they run.
        shapes: Tensor -> its shape, of everything that is fed or computed.
        constants: Tensor -> its values.
        inputs: Names of what is fed.
        outputs: Names of what comes back.
        opset: Of ONNX's own operators.
    """

    steps: tuple[Step, ...]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int = 0

    def readers(self) -> dict[str, list[Step]]:
        """Tensor -> the steps that read it."""
        found: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in dict.fromkeys(step.inputs):
                found.setdefault(name, []).append(step)
        return found

    def makers(self) -> dict[str, Step]:
        """Tensor -> the step that makes it."""
        return {name: step for step in self.steps for name in step.outputs}

    def with_steps(self, steps: Iterable[Step]) -> Net:
        """The same with other steps; those whose results nobody needs are left out."""
        kept, needed = [], set(self.outputs)
        for step in reversed(list(steps)):
            if needed & set(step.outputs):
                kept.append(step)
                needed |= set(step.inputs)
        return replace(self, steps=tuple(reversed(kept)))


def read_steps(model: ir.Model) -> Net:
    """Reads a graph; the batch becomes 1.

    Raises:
        ModelError: an axis other than the batch has no fixed size, or something is fed that is not floating point.
    """
    import onnx_ir

    proto = _with_batch_1(onnx_ir.to_proto(model))
    shapes: dict[str, tuple[int, ...]] = {}
    constants: dict[str, Array] = {}
    for _ in range(_ROUNDS):
        proto, shapes = _inferred(proto)
        constants = _constants(proto)
        if not _fold(proto, shapes, constants):
            break
    steps = tuple(_step(node) for node in proto.graph.node)
    given = [value.name for value in proto.graph.input if value.name not in constants]
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    net = Net(steps, shapes, constants, tuple(given), tuple(value.name for value in proto.graph.output), opset).with_steps(steps)
    _check_shapes(net)
    return net


def _with_batch_1(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fixes the first axis of everything that is fed; what was known of other shapes is forgotten, for it spoke of another batch."""
    import onnx

    del proto.graph.value_info[:]
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            raise ModelError(
                f"Input '{value.name}' is {name}; an integer program is fed numbers on a grid, which only floating-point inputs have.",
                "Token ids and other indices: keep the embedding outside, or take another target.",
            )
        if kind.shape.dim:
            kind.shape.dim[0].dim_value = 1
        loose = [axis for axis, dim in enumerate(kind.shape.dim) if not dim.HasField("dim_value") or dim.dim_value <= 0]
        if loose:
            raise ModelError(
                f"Axis {loose[0]} of input '{value.name}' has no fixed size; only the batch may be open (it becomes 1).",
                "Export the model with a fixed size there, and optimize that.",
            )
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def _inferred(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    import onnx

    try:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises what its C++ side threw
        raise ModelError(
            f"With a batch of 1 the model's shapes contradict each other: {error}", "Export it with a batch of 1, and optimize that."
        ) from error
    shapes = {}
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return proto, shapes


def _constants(proto: onnx.ModelProto) -> dict[str, Array]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def _fold(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], constants: dict[str, Array]) -> bool:
    """Computes what is constant, and makes initializers of it; whether there was something."""
    from onnx import numpy_helper

    found = False
    ends = {value.name for value in proto.graph.output}
    for node in list(proto.graph.node):
        values = _computed(node, shapes, constants, proto) if not ends & set(node.output) else None
        if values is None:
            continue
        found = True
        proto.graph.node.remove(node)
        for name, array in zip(node.output, values, strict=False):
            if name:
                constants[name] = array
                proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return found


def _computed(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Array], proto: onnx.ModelProto
) -> list[Array] | None:
    """What a node gives where that is known before anything is fed; else None."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        whole = np.array(shapes[node.input[0]], np.int64)
        cut = {attribute.name: attribute.i for attribute in node.attribute}
        return [whole[cut.get("start", 0) : cut.get("end", len(whole))]]
    if node.op_type == "Size" and node.input[0] in shapes:
        return [np.array(math.prod(shapes[node.input[0]]), np.int64)]
    if node.op_type in _NEVER_FOLDED or node.domain not in ("", "ai.onnx") or any(name and name not in constants for name in node.input):
        return None
    if any(math.prod(shapes.get(name, (_LARGEST + 1,))) > _LARGEST for name in node.output if name):
        return None
    return _evaluated(node, constants, proto)


def _evaluated(node: onnx.NodeProto, constants: Mapping[str, Array], proto: onnx.ModelProto) -> list[Array] | None:
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in dict.fromkeys(node.input) if name]
    infos = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([node], "constant", infos, [onnx.ValueInfoProto(name=name) for name in node.output if name])
    alone = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        values: list[Any] = ReferenceEvaluator(alone).run(None, {name: constants[name] for name in names})
    except Exception:  # the evaluator lacks some operators: the node stays, and is named if nothing here can express it
        return None
    return [np.asarray(value) for value in values]


def _step(node: onnx.NodeProto) -> Step:
    from onnx import helper

    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    domain = "" if node.domain == "ai.onnx" else node.domain
    return Step(node.op_type, tuple(node.input), tuple(node.output), attributes, (node.name or node.output[0],), domain=domain)


def _check_shapes(net: Net) -> None:
    for step in net.steps:
        unknown = [name for name in step.outputs if name and name not in net.shapes]
        if unknown:
            raise ModelError(
                f"The shape of '{unknown[0]}' ({step.op} '{step.nodes[0]}') depends on the values that are fed; every shape must be known.",
                "Leave that part out of the model, e.g. cut it before its post-processing, or take another target.",
            )
