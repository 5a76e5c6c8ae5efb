"""A small quantized network without a search: its neutral model, its QDQ artifact, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from lowering_case import everything, neutral
from target_case import INPUT, OUTPUT, Bounds, network, samples

from lowbit.data.preprocess import Preprocess
from lowbit.export.neutral import Neutral
from lowbit.graph import ir_files
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import Format, place
from lowbit.graph.profiles import ONNXRUNTIME_CPU
from lowbit.graph.qdq import values_of, write_pairs
from lowbit.quant.affine import Affine, round_trip, span
from lowbit.recipe import QuantSpec
from lowbit.types import Array, TensorInfo

STEPS = Preprocess(
    kind="image", resize=14, crop=(12, 12), channels="rgb", scale=1 / 255, mean=(0.5,), std=(0.25,), layout="nchw", dtype="float32"
)
"""What the network's images go through."""


@dataclass(frozen=True)
class Case:
    """What targets are tried on.

    Attributes:
        source: As a bundle's candidate gives it.
        artifact: The QDQ file that it came from.
        asked: Samples, float32 [N, 3, 12, 12].
    """

    source: Neutral
    artifact: Path
    asked: Array

    def answers(self) -> Array:
        """Of the artifact on onnxruntime."""
        return run(self.artifact, self.asked)


def case(
    folder: Path,
    *,
    preprocess: Preprocess | None = STEPS,
    labels: tuple[str, ...] = (),
    extra: str | None = None,
    clip: Bounds | None = None,
) -> Case:
    """Rounds the network by its own samples' ranges.

    Args:
        folder: For files.
        preprocess: Of the bundle.
        labels: Likewise.
        extra: Operator to put before the pooling.
        clip: Bounds of a Clip instead of a Relu.
    """
    plain = network(folder / "plain.onnx", extra, clip)
    asked = samples(48, seed=2)
    with_named_input = onnx.load_model(plain)
    seen = everything_of(with_named_input, asked)
    ranges = {name: (float(values.min()), float(values.max())) for name, values in seen.items() if values.dtype == np.float32}
    model = ir_files.read(plain)
    form = Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
    placement = place(model.graph, ONNXRUNTIME_CPU, lambda _: form, ranges)
    table = parameterize(placement, ranges.__getitem__, values_of(model))
    weights = {entry.tensor: table[entry.key] for entry in placement.weights}
    weights |= {entry.tensor: table[entry.key] for entry in placement.biases}
    activations = {entry.tensor: table[entry.key] for entry in placement.activations}
    source = neutral(_on_grids(with_named_input, weights), asked, activations, weights, {**seen, "x": asked})
    source = replace(
        source,
        inputs=(TensorInfo(INPUT, ("N", *asked.shape[1:]), "float32"),),
        outputs=(TensorInfo(OUTPUT, ("N", 10), "float32"),),
        ranges={**ranges, **{name: span(grid) for name, grid in activations.items()}},
        preprocess=preprocess,
        labels=labels,
    )
    write_pairs(model, placement, table)
    ir_files.write(model, folder / "artifact.onnx")
    return Case(source, folder / "artifact.onnx", asked)


def with_batch(source: Neutral, size: int) -> Neutral:
    """The same model, made for so many samples a call."""
    model = source.model.clone()
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = onnx_ir.Shape([size, *list(value.shape)[1:]])
    inputs, outputs = (tuple(replace(info, shape=(size, *info.shape[1:])) for info in side) for side in (source.inputs, source.outputs))
    return replace(source, model=model, inputs=inputs, outputs=outputs)


def everything_of(model: onnx.ModelProto, asked: Array) -> dict[str, Array]:
    """All tensors of the network on samples; its input keeps its name."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    renamed.graph.input[0].name = "x"
    for node in renamed.graph.node:
        node.input[:] = ["x" if name == INPUT else name for name in node.input]
    found = everything(renamed, asked)
    return {INPUT if name == "x" else name: values for name, values in found.items()}


def _on_grids(model: onnx.ModelProto, weights: Mapping[str, Affine]) -> onnx.ModelProto:
    made = onnx_ir.from_proto(model)
    for name, grid in weights.items():
        values = made.graph.initializers[name].const_value.numpy()
        real = round_trip(values, grid) if grid.dtype != "int32" else np.rint(values / grid.scale).astype(np.float32) * grid.scale
        made.graph.initializers[name].const_value = onnx_ir.tensor(real.astype(np.float32), name=name)
    return onnx_ir.to_proto(made)


def run(path: Path, asked: Array) -> Array:
    """The answers of an ONNX file on onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options)
    found: Any = session.run(None, {session.get_inputs()[0].name: asked})[0]
    return np.asarray(found)
