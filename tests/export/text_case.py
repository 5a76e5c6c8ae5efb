"""A small quantized model that reads tokens, without a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper

from graph_cases import STATIC, everything, quantized, ranges_of
from lowbit.export.neutral import Neutral
from lowbit.quant.affine import round_trip
from lowbit.quant.observers import Observer
from lowbit.types import Array, TensorInfo
from small_models import save

WORDS, LONGEST, SCORES = 50, 12, "scores"


def sentences(n: int, seed: int = 0) -> dict[str, Array]:
    """Random tokens [n, 12], and masks that leave the first 3 to 12."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LONGEST) < rng.integers(3, LONGEST + 1, (n, 1))
    return {"input_ids": rng.integers(0, WORDS, (n, LONGEST)), "attention_mask": mask.astype(np.int64)}


def text_model(path: Path) -> onnx.ModelProto:
    """Embedding, two dense layers a token, the mean over what the mask leaves, a dense layer: [N, T], [N, T] -> scores [N, 4]."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.normal(0, 1.5 / np.sqrt(shape[0]), shape).astype(np.float32)

    weights = {
        "table": rng.normal(size=(WORDS, 16)).astype(np.float32),
        "w1": normal(16, 32),
        "b1": normal(32, 1)[:, 0],
        "w2": normal(32, 16),
    }
    weights |= {"w3": normal(16, 4), "axis": np.array([1]), "last": np.array([2])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], name="embed"),
        helper.make_node("MatMul", ["embedded", "w1"], ["m1"], name="up"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="up_bias"),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="down"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["m2", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "w3"], [SCORES], name="head"),
    ]
    tokens = (TensorProto.INT64, ["N", "T"])
    inputs = {"input_ids": tokens, "attention_mask": tokens}
    return onnx.load(save(path, nodes, inputs, {SCORES: (TensorProto.FLOAT, ["N", 4])}, weights))


def text_source(folder: Path) -> Neutral:
    """Its neutral model, with the ranges that sentences reach."""
    source = neutral_of_tokens(text_model(folder / "text.onnx"), sentences(64, seed=1))
    return replace(source, labels=("bad", "poor", "fair", "good"))


def neutral_of_tokens(model: onnx.ModelProto, feeds: dict[str, Array]) -> Neutral:
    """A model's neutral form: grids as onnxruntime's artifact would have them."""
    seen = everything(model, feeds)
    ranges = {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in ranges_of(seen).items()}
    written = quantized(model, ranges, STATIC)
    weights = {entry.tensor: written.table[entry.key] for entry in written.placement.weights}
    plain = onnx_ir.from_proto(model)
    for name, grid in weights.items():
        value = plain.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = onnx_ir.tensor(round_trip(value.const_value.numpy(), grid), name=name)
    return Neutral(
        name="text",
        model=plain,
        weights=weights,
        activations={entry.tensor: written.table[entry.key] for entry in written.placement.activations},
        ranges=ranges,
        stats={name: Observer().update(seen[name]).finalize() for name in ranges},
        inputs=_infos(model.graph.input),
        outputs=_infos(model.graph.output),
        preprocess=None,
        labels=(),
        candidate="by-hand",
    )


def _infos(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorInfo, ...]:
    types = {value.name: value.type.tensor_type for value in values}
    dims = {name: tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim) for name, kind in types.items()}
    return tuple(TensorInfo(name, dims[name], helper.tensor_dtype_to_np_dtype(kind.elem_type).name) for name, kind in types.items())


def answers(source: Neutral, asked: dict[str, Array]) -> Array:
    """What the neutral model answers in floating point."""
    return everything(onnx_ir.to_proto(source.model), asked)[SCORES]
