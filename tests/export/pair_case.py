"""Neutral models made by hand, and QDQ files with one thing changed: for the tests of targets that take pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper

from graph_cases import STATIC, Case, everything, node, ranges_of, samples, weights
from lowbit.export.neutral import Neutral
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import place
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.graph.qdq import values_of
from lowbit.quant.affine import round_trip
from lowbit.quant.observers import Observer
from lowbit.types import Array, TensorInfo

SHAPE = (4, 8, 8)


def residual(*more: onnx.NodeProto, last: str = "r", constants: Mapping[str, Array] | None = None, batch: int | str = "N") -> Case:
    """Two convolutions with a sum around the second, whatever is added, then pooling and a dense layer: input x, output y."""
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "s"),
        node("Relu", "s", "r"),
        *more,
        node("GlobalAveragePool", last, "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ]
    values = {"w1": weights(6, 4, 3, 3), "b1": weights(6, seed=1), "w2": weights(6, 6, 3, 3, seed=2), "b2": weights(6, seed=3)}
    values |= {"w3": weights(5, 6, seed=4), "b3": weights(5, seed=5), **(constants or {})}
    return Case(nodes, {"x": [batch, *SHAPE]}, ["y"], values)


def neutral_of(case: Case, shape: tuple[int, ...] = SHAPE, *, candidate: Callable[[Any], Any] = lambda _: STATIC, n: int = 24) -> Neutral:
    """The neutral model of a case: grids as onnxruntime's artifact would have them, ranges of what samples reach."""
    model = onnx_ir.from_proto(case.proto())
    seen = everything(case.proto(), {"x": samples((n, *shape))})
    ranges = {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in ranges_of(seen).items()}
    placement = place(model.graph, ONNXRUNTIME_CPU, candidate, ranges)
    table = parameterize(placement, ranges.__getitem__, values_of(model))
    stored = {entry.tensor: table[entry.key] for entry in placement.weights}
    for name, grid in stored.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = onnx_ir.tensor(round_trip(value.const_value.numpy(), grid), name=name)
    (output,) = case.outputs
    return Neutral(
        name="case",
        model=model,
        weights=stored,
        activations={entry.tensor: table[entry.key] for entry in placement.activations},
        ranges=ranges,
        stats={name: Observer().update(seen[name]).finalize() for name in ranges},
        inputs=(TensorInfo("x", ("N", *shape), "float32"),),
        outputs=(TensorInfo(output, ("N", *seen[output].shape[1:]), "float32"),),
        preprocess=None,
        labels=(),
        candidate="by-hand",
    )


def answers(source: Neutral, x: Array) -> Array:
    """What the neutral model answers in floating point."""
    (output,) = source.outputs
    return everything(onnx_ir.to_proto(source.model), {"x": x})[output.name]


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a file with something changed in it."""
    model = onnx.load(path)
    change(model)
    out = path.with_name("changed.onnx")
    onnx.save(model, out)
    return out


def store(model: onnx.ModelProto, name: str, values: Array) -> None:
    """Puts other values into an initializer."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def stored(model: onnx.ModelProto, name: str) -> Array:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def quantizer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """The QuantizeLinear of a tensor."""
    return next(each for each in model.graph.node if each.op_type == "QuantizeLinear" and each.input[0].startswith(tensor))


def bypass(model: onnx.ModelProto, tensor: str) -> None:
    """Takes the pair behind a tensor out."""
    first = quantizer(model, tensor)
    second = next(each for each in model.graph.node if each.op_type == "DequantizeLinear" and each.input[0] == first.output[0])
    for each in model.graph.node:
        for index, name in enumerate(each.input):
            if name == second.output[0]:
                each.input[index] = first.input[0]
    model.graph.node.remove(first)
    model.graph.node.remove(second)


def named(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [each for each in model.graph.node if each.op_type == op]
