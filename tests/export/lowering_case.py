"""Float graphs made into neutral models by hand, and what their integer programs answer beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lowbit.export.neutral import Neutral
from lowbit.export.program import reference
from lowbit.export.program.lower import lower
from lowbit.export.program.problems import check_program
from lowbit.export.program.program import Kind, Program
from lowbit.quant.affine import Affine, from_range
from lowbit.quant.observers import Observer
from lowbit.types import Array, TensorInfo

SAMPLES = 24


def node(op: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> onnx.NodeProto:
    outputs = [output] if isinstance(output, str) else list(output)
    return helper.make_node(op, list(inputs), outputs, name=f"{outputs[0]}_node", **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    outputs: Mapping[str, int] | Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of one input "x" [N, *shape]."""
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])]
    ends = [onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(TensorProto.FLOAT, None)) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()]
    made = helper.make_graph(list(nodes), "case", infos, ends, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def everything(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """All tensors of a model on samples, [N, ...]; one sample at a time, as a program runs."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    known = {value.name for value in probed.graph.output}
    for each in probed.graph.node:
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in each.output if name and name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    rows = [session.run(names, {"x": x[i : i + 1]}) for i in range(len(x))]
    return {name: np.concatenate([np.atleast_1d(row[i]) for row in rows]) for i, name in enumerate(names)} | {"x": x}


def neutral(
    model: onnx.ModelProto,
    x: Array,
    activations: Mapping[str, Affine] | None = None,
    weights: Mapping[str, Affine] | None = None,
    tensors: Mapping[str, Array] | None = None,
) -> Neutral:
    """A neutral model of a float graph: ranges are what the samples reach."""
    seen = tensors or everything(model, x)
    floats = {name: values for name, values in seen.items() if values.dtype == np.float32 and values.size}
    ranges = {name: (float(min(values.min(), 0)), float(max(values.max(), 0))) for name, values in floats.items()}
    outputs = tuple(TensorInfo(value.name, seen[value.name].shape, "float32") for value in model.graph.output)
    return Neutral(
        name="case",
        model=onnx_ir.from_proto(model),
        weights=dict(weights or {}),
        activations=dict(activations or {}),
        ranges=ranges,
        stats={name: Observer().update(values).finalize() for name, values in floats.items()},
        inputs=(TensorInfo("x", ("N", *x.shape[1:]), "float32"),),
        outputs=outputs,
        preprocess=None,
        labels=(),
        candidate="by-hand",
    )


@dataclass(frozen=True)
class Lowered:
    """A program, and how far its answers are from the float graph's."""

    program: Program
    answers: Mapping[str, Array]
    expected: Mapping[str, Array]

    def kinds(self) -> list[Kind]:
        return [each.kind for each in self.program.operations if each.kind not in (Kind.QUANTIZE, Kind.DEQUANTIZE)]

    def all_kinds(self) -> list[Kind]:
        """Without the first and the last, which are the ends'."""
        return [each.kind for each in self.program.operations][1:-1]

    def steps(self, output: str = "y") -> Array:
        """Differences in steps of the output's grid."""
        made = {each.outputs[0]: each.inputs[0] for each in self.program.operations if each.kind == Kind.DEQUANTIZE}
        port = next(port for port in self.program.outputs if port.name == output)
        grid = self.program.tensors[made[port.tensor]].grid
        assert grid is not None
        off: Array = np.abs(self.answers[output] - self.expected[output]) / grid.scale
        return off


def compare(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 18,
    activations: Mapping[str, Affine] | None = None,
    weights: Mapping[str, Affine] | None = None,
    per_tensor_dense: bool = False,
    x: Array | None = None,
) -> Lowered:
    """Lowers a graph and runs it beside the float one; the program keeps its contract."""
    rng = np.random.default_rng(11)
    fed = rng.normal(0, 1, (SAMPLES, *shape)).astype(np.float32) if x is None else x
    model = graph(nodes, shape, outputs, constants, opset)
    grid = from_range(fed.min(), fed.max(), "uint8", symmetric=False)
    activations = {"x": grid, **(activations or {})}
    fed = ((np.clip(np.rint(fed / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point) * grid.scale).astype(np.float32)
    seen = everything(model, fed)
    program = lower(neutral(model, fed, activations, weights, seen), float_input=True, float_output=True, per_tensor_dense=per_tensor_dense)
    check_program(program)
    return Lowered(program, reference.run(program, {"x": fed}), {name: seen[name] for name in outputs})
