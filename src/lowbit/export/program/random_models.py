"""Random small ONNX models, quantized by lowbit's own placement and writer: for fuzzing the whole way from a graph to a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.export.neutral import Neutral
from lowbit.types import Array, Feeds, TensorInfo

if TYPE_CHECKING:
    import onnx

_CALIBRATION = 16
_LARGEST_IMAGE = 1200


@dataclass(frozen=True)
class Quantized:
    """A random model in floating point and rounded.

    Attributes:
        neutral: Its table, as a bundle's candidate would give it.
        pairs: The same with QuantizeLinear and DequantizeLinear, for onnxruntime.
        values: Every tensor in floating point on the samples that calibrated it, name -> [N, ...]; outputs and the input "x" among them.
    """

    neutral: Neutral
    pairs: onnx.ModelProto
    values: Mapping[str, Array]

    @property
    def feeds(self) -> Feeds:
        """Those samples."""
        return {"x": self.values["x"]}


def random_quantized(seed: int) -> Quantized:
    """Draws a model of 3 to 10 steps, calibrates it on its own samples, and rounds it: uint8 activations, int8 weights a channel."""
    import onnx_ir

    from lowbit.export.neutral_pairs import strip_pairs
    from lowbit.graph.parameterize import parameterize
    from lowbit.graph.place import Format, place
    from lowbit.graph.profiles import ONNXRUNTIME_CPU
    from lowbit.graph.qdq import values_of, write_pairs
    from lowbit.quant.observers import Observer
    from lowbit.recipe import QuantSpec

    model = random_model(seed)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    values = _everything(model, np.random.default_rng(seed).normal(0, 1, (_CALIBRATION, *shape)).astype(np.float32))
    floats = {name: each for name, each in values.items() if each.dtype == np.float32 and each.size}
    ranges = {name: (float(each.min()), float(each.max())) for name, each in floats.items()}
    graph = onnx_ir.from_proto(model)
    form = Format(QuantSpec("int8", "per-channel", symmetric=True), QuantSpec("uint8"))
    placement = place(graph.graph, ONNXRUNTIME_CPU, lambda _: form, ranges)
    write_pairs(graph, placement, parameterize(placement, ranges.__getitem__, values_of(graph)), target=ONNXRUNTIME_CPU)
    pairs = onnx_ir.to_proto(graph)
    plain = onnx_ir.from_proto(pairs)
    stripped = strip_pairs(plain)
    outputs = tuple(TensorInfo(value.name, (None, *values[value.name].shape[1:]), "float32") for value in model.graph.output)
    neutral = Neutral(
        name=f"random_model_{seed}",
        model=plain,
        weights=stripped.weights,
        activations=stripped.activations,
        ranges=ranges,
        stats={name: Observer().update(each).finalize() for name, each in floats.items()},
        inputs=(TensorInfo("x", (None, *shape), "float32"),),
        outputs=outputs,
        preprocess=None,
        labels=(),
        candidate="random",
    )
    return Quantized(neutral, pairs, values)


def random_model(seed: int) -> onnx.ModelProto:
    """A float model of one input "x" [N, C, H, W], opset 18; what nobody reads are its outputs."""
    draft = _Draft(np.random.default_rng(seed))
    current = draft.conv("x") or "x"
    for _ in range(draft.whole(2, 8)):
        step = _STEPS[draft.whole(0, len(_STEPS) - 1)]
        current = step(draft, current) or current
    if draft.whole(0, 2):
        current = draft.head(current)
    return draft.finish()


@dataclass
class _Draft:
    """A model while it is being drawn; tensors are images [C, H, W]."""

    dice: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes["x"] = (self.whole(1, 4), self.whole(4, 12), self.whole(4, 12))

    def whole(self, low: int, high: int) -> int:
        """An integer of low ... high, both included."""
        return int(self.dice.integers(low, high + 1))

    def one_of(self, *words: str) -> str:
        """One of some words."""
        return words[self.whole(0, len(words) - 1)]

    def weights(self, *shape: int) -> str:
        """Normal, as wide as keeps a product's spread."""
        terms = max(int(np.prod(shape[1:])), 1)
        return self.constant((self.dice.normal(0, 1, shape) / terms**0.5).astype(np.float32))

    def constant(self, values: Array) -> str:
        """A new constant's name."""
        name = f"w{len(self.constants)}"
        self.constants[name] = values
        return name

    def integers(self, *values: int) -> str:
        """A list of int64."""
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """A new node's output."""
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{name}", **attributes))
        self.shapes[name] = shape
        return name

    # ---- steps: each takes a tensor's name and gives that of what it made, or None where it does not fit

    def conv(self, x: str) -> str | None:
        """Conv of any stride, padding and groups; now and then a batch normalization behind it."""
        channels, height, width = self.shapes[x]
        kernel = (self.whole(1, 3), self.whole(1, 3))
        groups = channels if channels > 1 and self.whole(0, 2) == 0 else 1
        outputs = channels * self.whole(1, 2) if groups > 1 else self.whole(1, 10)
        strides = (self.whole(1, 2), self.whole(1, 2))
        pads = [self.whole(0, each // 2) for each in (*kernel, *kernel)]
        extents = [(e + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, e in enumerate((height, width))]
        if height < kernel[0] or width < kernel[1]:
            return None
        inputs = [x, self.weights(outputs, channels // groups, *kernel)]
        inputs += [self.weights(outputs)] if self.whole(0, 3) else []
        y = self.add("Conv", inputs, (outputs, *extents), group=groups, strides=strides, pads=pads, kernel_shape=kernel)
        return self.pointwise(y) if self.whole(0, 1) else y

    def transposed(self, x: str) -> str | None:
        """ConvTranspose by 2."""
        channels, height, width = self.shapes[x]
        outputs = self.whole(1, 6)
        if height * width > 80:
            return None
        weights = self.constant((self.dice.normal(0, 1, (channels, outputs, 2, 2)) / channels**0.5).astype(np.float32))
        return self.add("ConvTranspose", [x, weights, self.weights(outputs)], (outputs, 2 * height, 2 * width), strides=[2, 2])

    def pointwise(self, x: str) -> str:
        """An activation."""
        kind, shape = self.one_of("Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "SiLU"), self.shapes[x]
        if kind == "Clip":
            return self.add("Clip", [x, self.constant(np.array(0, np.float32)), self.constant(np.array(6, np.float32))], shape)
        if kind == "SiLU":
            return self.add("Mul", [x, self.add("Sigmoid", [x], shape)], shape)
        return self.add(kind, [x], shape, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))

    def combine(self, x: str) -> str:
        """Add, Sub or Mul with a tensor of the same shape or a constant a channel."""
        shape = self.shapes[x]
        alike = [name for name, each in self.shapes.items() if each == shape and name != x]
        other = alike[self.whole(0, len(alike) - 1)] if alike else self.weights(1, shape[0], 1, 1)
        return self.add(self.one_of("Add", "Add", "Sub", "Mul"), [x, other], shape)

    def join(self, x: str) -> str | None:
        """Concat along channels with what has the same extents."""
        channels, *extents = self.shapes[x]
        fits = [name for name, each in self.shapes.items() if list(each[1:]) == extents]
        other = fits[self.whole(0, len(fits) - 1)]
        if channels + self.shapes[other][0] > 24:
            return None
        return self.add("Concat", [x, other], (channels + self.shapes[other][0], *extents), axis=1)

    def pool(self, x: str) -> str | None:
        """Max or average of 2 by 2."""
        channels, height, width = self.shapes[x]
        if min(height, width) < 2:
            return None
        stride = self.whole(1, 2)
        extents = ((height - 2) // stride + 1, (width - 2) // stride + 1)
        return self.add(self.one_of("MaxPool", "AveragePool"), [x], (channels, *extents), kernel_shape=[2, 2], strides=[stride] * 2)

    def move(self, x: str) -> str | None:
        """Pad, Slice, or the two image axes changed for each other."""
        channels, height, width = self.shapes[x]
        kind = self.one_of("Pad", "Slice", "Transpose")
        if kind == "Pad":
            return self.add("Pad", [x, self.integers(0, 0, 1, 0, 0, 0, 0, 1)], (channels, height + 1, width + 1))
        if kind == "Transpose":
            return self.add("Transpose", [x], (channels, width, height), perm=[0, 1, 3, 2])
        if height < 2:
            return None
        return self.add("Slice", [x, self.integers(1), self.integers(height), self.integers(2)], (channels, height - 1, width))

    def resize(self, x: str) -> str:
        """Resize by 2, to nearest or linearly."""
        channels, height, width = self.shapes[x]
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        mode = self.one_of("nearest", "linear")
        extra = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} if mode == "nearest" else {}
        return self.add("Resize", [x, "", scales], (channels, 2 * height, 2 * width), mode=mode, **extra)

    def squeeze(self, x: str) -> str:
        """Squeeze and excite: a gate a channel."""
        channels, _, _ = self.shapes[x]
        mean = self.add("GlobalAveragePool", [x], (channels, 1, 1))
        gate = self.add("Conv", [mean, self.weights(channels, channels, 1, 1), self.weights(channels)], (channels, 1, 1))
        return self.add("Mul", [x, self.add("Sigmoid", [gate], (channels, 1, 1))], self.shapes[x])

    def head(self, x: str) -> str:
        """A classifier: pooled or flat, and at times with probabilities."""
        channels, height, width = self.shapes[x]
        if self.whole(0, 1):
            x, height, width = self.add("GlobalAveragePool", [x], (channels, 1, 1)), 1, 1
        width = channels * height * width
        flat = self.add("Flatten", [x], (width,), axis=1)
        outputs = self.whole(2, 12)
        logits = self.add("Gemm", [flat, self.weights(outputs, width), self.weights(outputs)], (outputs,), transB=1)
        return self.add("Softmax", [logits], (outputs,), axis=-1) if self.whole(0, 2) == 0 else logits

    def finish(self) -> onnx.ModelProto:
        """The model, its outputs in order."""
        from onnx import TensorProto, helper, numpy_helper, shape_inference

        read = {name for node in self.nodes for name in node.input}
        ends = [name for node in self.nodes for name in node.output if name not in read]
        fed = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shapes["x"]])
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *self.shapes[name]]) for name in ends]
        constants = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = helper.make_graph(self.nodes, "random", [fed], given, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return shape_inference.infer_shapes(model, strict_mode=True)


def _large(draft: _Draft, x: str) -> bool:
    return int(np.prod(draft.shapes[x])) > _LARGEST_IMAGE


def _resize(draft: _Draft, x: str) -> str | None:
    return None if _large(draft, x) else draft.resize(x)


_STEPS: tuple[Callable[[_Draft, str], str | None], ...] = (
    _Draft.conv,
    _Draft.conv,
    _Draft.transposed,
    _Draft.pointwise,
    _Draft.combine,
    _Draft.combine,
    _Draft.join,
    _Draft.pool,
    _Draft.move,
    _resize,
    _Draft.squeeze,
)


def _everything(model: onnx.ModelProto, samples: Array) -> dict[str, Array]:
    """All tensors in floating point, from onnxruntime without its optimizations."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    names = [name for node in model.graph.node for name in node.output]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"x": samples, **dict(zip(names, session.run(names, {"x": samples}), strict=True))}
