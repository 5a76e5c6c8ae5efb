"""Small graphs, quantized by our writer: what the tests of writing, of operators and the fuzz share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lowbit.graph.parameterize import Table, parameterize
from lowbit.graph.place import Format, FormatOf, Placement, place
from lowbit.graph.profiles import ONNXRUNTIME_CPU, Profile
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.recipe import QuantSpec
from lowbit.types import Array

INT8 = QuantSpec("int8", "per-channel", symmetric=True)
UINT8 = QuantSpec("uint8")
STATIC = Format(INT8, UINT8)

Ranges = dict[str, tuple[float, float]]


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; inputs and outputs are names with blanks between ("_" leaves one out), its name is its first output's."""
    ins = ["" if each == "_" else each for each in inputs.split()]
    outs = outputs.split()
    return helper.make_node(op, ins, outs, name=name or f"{op}:{outs[0]}", **attributes)


@dataclass(frozen=True, repr=False)
class Case:
    """A model in memory. Outputs are float32, in the shape that onnx infers or in that of `shapes`."""

    nodes: Sequence[onnx.NodeProto]
    inputs: Mapping[str, Sequence[int | str]]
    outputs: Sequence[str]
    constants: Mapping[str, Array] = field(default_factory=dict)
    opset: int = 17
    domains: Sequence[str] = ()
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Short enough to read in a failed example."""
        lines = [f"{', '.join(each.output)} = {each.op_type}({', '.join(each.input)})" for each in self.nodes]
        sizes = {name: value.shape for name, value in self.constants.items()}
        return f"{self.inputs} -> {self.outputs}, constants {sizes}: " + "; ".join(lines)

    def proto(self) -> onnx.ModelProto:
        ins = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in self.inputs.items()]
        outs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        for out in outs:
            out.type.tensor_type.elem_type = TensorProto.FLOAT
            if out.name in self.shapes:
                out.CopyFrom(helper.make_tensor_value_info(out.name, TensorProto.FLOAT, list(self.shapes[out.name])))
        weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()]
        graph = helper.make_graph(list(self.nodes), "case", ins, outs, weights)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in self.domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)

    def save(self, path: Path) -> Path:
        onnx.save(self.proto(), path)
        return path


def weights(*shape: int, seed: int = 0, scale: float = 0.3) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def samples(shape: Sequence[int], seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, tuple(shape)).astype(np.float32)


def open_session(model: onnx.ModelProto, *, optimized: Path | None = None) -> Any:
    """An onnxruntime session of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime answers."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def everything(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors of the outer graph, from onnxruntime without its optimizations."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    inner = [name for each in model.graph.node for name in each.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {**feeds, **dict(zip(inner, session.run(inner, dict(feeds)), strict=True))}


def ranges_of(values: Mapping[str, Array]) -> Ranges:
    """Min and max of all floating point tensors."""
    return {
        n: (float(v.min()), float(v.max())) for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype == np.float32 and v.size
    }


def kernels(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Operator types after onnxruntime's own optimizations: they say which integer kernels it found."""
    open_session(model, optimized=folder / "optimized.onnx")
    return [each.op_type for each in onnx.load(folder / "optimized.onnx").graph.node]


@dataclass(frozen=True)
class Written:
    """A quantized model with what was decided on the way."""

    model: onnx.ModelProto
    placement: Placement
    table: Table


def quantized(
    model: onnx.ModelProto, ranges: Ranges, form: Format | FormatOf = STATIC, target: Profile = ONNXRUNTIME_CPU, *, check: bool = True
) -> Written:
    """Places, parameterizes and writes; what comes out has passed onnx's checker."""
    import onnx_ir

    graph = onnx_ir.from_proto(model)
    placement = place(graph.graph, target, form if callable(form) else lambda _: form, ranges)
    table = parameterize(placement, ranges.__getitem__, values_of(graph))
    write_pairs(graph, placement, table, target=target)
    written = onnx_ir.to_proto(graph)
    if check:
        onnx.checker.check_model(written, full_check=True)
    return Written(written, placement, table)


def count(model: onnx.ModelProto, *ops: str) -> int:
    return sum(each.op_type in ops for each in model.graph.node)


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))
