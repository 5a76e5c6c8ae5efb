"""A real bundle for the tests of targets: a small CNN with what small vision models have, optimized to one INT8 candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lowbit.bundle.bundle import Bundle
from lowbit.pipeline.optimize import optimize
from small_models import reference, save

INPUT, OUTPUT = "image", "logits"
SHAPE = (3, 12, 12)
CLASSES = tuple(f"kind {number}" for number in range(10))


Bounds = tuple[float | None, float | None]


def network(path: Path, extra: str | None = None, clip: Bounds | None = None) -> Path:
    """The network of `_network` with biases for which its classes are about equally frequent."""
    _network(path, extra, clip, np.zeros(10, np.float32))
    logits = reference(path, {INPUT: samples(100, seed=5)})[OUTPUT]
    return _network(path, extra, clip, -logits.mean(0))


def _network(path: Path, extra: str | None, clip: Bounds | None, bias: NDArray[np.float32]) -> Path:
    """Padded strided convolution, depthwise, a residual sum, pooling, a dense layer. FP32, input [N, 3, 12, 12], output [N, 10].

    Args:
        path: To write.
        extra: Name of an operator of one input to put before the pooling.
        clip: Bounds of a Clip behind the depthwise convolution, instead of its Relu.
        bias: Of the dense layer.
    """
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    weights = {"w1": normal(8, 3, 3, 3), "b1": normal(8, 8)[0], "w2": normal(8, 1, 3, 3), "b2": normal(8, 8)[1]}
    weights |= {"w3": normal(8, 8, 1, 1), "b3": normal(8, 8)[2], "w4": normal(10, 8), "b4": bias}
    bounds = {name: bound for name, bound in zip(("low", "high"), clip or (), strict=False) if bound is not None}
    weights |= {name: np.array(bound, np.float32) for name, bound in bounds.items()}
    limits = [name if name in bounds else "" for name in ("low", "high")]
    nodes = [
        helper.make_node("Conv", [INPUT, "w1", "b1"], ["c1"], name="stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="stem_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Clip", ["c2", *limits], ["r2"], name="depthwise_clip")
        if clip
        else helper.make_node("Relu", ["c2"], ["r2"], name="depthwise_relu"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="pointwise"),
        helper.make_node("Add", ["c3", "r1"], ["s"], name="shortcut"),
        helper.make_node("Relu", ["s"], ["r3"], name="shortcut_relu"),
        *([helper.make_node(extra, ["r3"], ["e"], name="special")] if extra else []),
        helper.make_node("GlobalAveragePool", ["e" if extra else "r3"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], [OUTPUT], name="dense", transB=1),
    ]
    shapes = ({INPUT: (TensorProto.FLOAT, ["N", *SHAPE])}, {OUTPUT: (TensorProto.FLOAT, ["N", 10])})
    return save(path, nodes, *shapes, weights)


def samples(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Smooth random pictures, float32 [n, 3, 12, 12]: classes are further apart than in noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (n, 3, 3, 3)).repeat(4, 2).repeat(4, 3)
    return (coarse + 0.1 * rng.normal(0, 1, coarse.shape)).astype(np.float32)


def target_bundle(folder: Path, extra: str | None = None, batch: int | None = None) -> Bundle:
    """Optimizes the network in `folder`, for any number of samples a call or for `batch`; its labels are its own answers."""
    folder.mkdir(parents=True, exist_ok=True)
    model = network(folder / "net.onnx", extra)
    pictures = samples(300)
    labels = reference(model, {INPUT: pictures})[OUTPUT].argmax(1)
    if batch is not None:
        fixed = onnx.load(model)
        for value in (*fixed.graph.input, *fixed.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(fixed, model)
    wishes = {"runtimes": ("onnxruntime",), "recipes": ("int8-static-minmax",), "nncf": False, "rounds": 3, "qat": "never"}
    wishes["batch"] = (batch or 1,)
    data = {INPUT: pictures, "label": labels, "classes": np.array(CLASSES)}
    found = optimize(model, data, out=folder / "bundle", max_drop="20pp", preprocess=None, **wishes)
    return found.bundle
