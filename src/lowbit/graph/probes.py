"""A copy of a model that gives statistics of its tensors instead of its outputs.

Large activations never leave the runtime: each gets nodes beside it that reduce it to a few extrema and,
where a histogram is wanted, a sample of at most about `SAMPLE` elements per input sample.
Which elements those are depends on the tensor's shape alone, so batches of any size give the same ones.

On x86 and Arm servers onnxruntime lays convolutions out in blocks of channels (NCHWc). An ordinary
reduction there needs the tensor reordered first, which costs as much as writing it out. Pooling has kernels for
blocks, though: global max pooling is a maximum, and 1x1 max pooling with a stride is a sample. The
minimum is the maximum of the negated tensor, and a depthwise 1x1 convolution with weights of -1 negates in blocks.
All of that is exact.

Memory stays near that of plain inference only if a probe runs right after its tensor, while that is still in the cache,
too. onnxruntime orders nodes depth first from the leaves of the graph, starting at the last one listed: so probes are listed
last, those of the first tensor at the very end, and each ends in a node of its own (a Flatten, which costs nothing), because
the leaves that the layout change adds by itself come in no particular order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowbit.graph.observe import Plan

SAMPLE = 4096
"""About how many elements of a tensor enter its histogram, per input sample; smaller tensors enter whole."""

MARK = "/lowbit/"
"""In the names of everything that probes add."""

_BLOCK = 16  # channels in a block of the widest layout; a tensor with other channels is not laid out so
_KEPT = 1024  # most extrema a reduction hands out, per input sample
_FLOAT = 1

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Probe:
    """Outputs of the copy from which the statistics of one tensor follow.

    Attributes:
        tensor: Its name in the original.
        high: Output whose maximum is the tensor's.
        low: Output whose minimum is the tensor's; None where the tensor cannot be negative, and 0 stands for it.
        negated: True where `low` holds negated values, so that its maximum counts.
        sample: Output with the elements for the histogram, None where none is wanted.
        check: Output that is NaN or infinite where any element is: a maximum passes over NaN. Outputs of the original
            have one, because what is broken inside shows there; None elsewhere.
    """

    tensor: str
    high: str
    low: str | None
    negated: bool
    sample: str | None
    check: str | None = None


def infer(model: Any, feeds: Mapping[str, tuple[int, ...]]) -> Any:
    """A copy with the types and shapes of all tensors that can be told when the inputs have the given shapes.

    Args:
        model: onnx.ModelProto; unchanged. Large weights are not copied, only their shapes.
        feeds: Input name -> shape.
    """
    import onnx

    bare = _without_weights(model)
    for value in bare.graph.input:
        if value.name in feeds:
            _set_shape(value, feeds[value.name])
    del bare.graph.value_info[:]  # an exporter's own symbolic shapes would win over inferred ones
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(bare, data_prop=True)


def instrument(model: Any, plan: Plan, one: Any, two: Any, *, sample: bool) -> tuple[Any, list[Probe]]:
    """Adds probes to a model, in place, and removes its own outputs.

    Args:
        model: onnx.ModelProto of a copy; graph inputs get no probe, whoever feeds them has them.
        plan: What to observe.
        one: The model inferred for some batch size.
        two: The same for one sample more (or again the same where the batch size is fixed): tells which tensors grow with it.
        sample: Whether samples for histograms are wanted.

    Returns:
        The model and its probes, in the order in which the graph computes the tensors.
    """
    import onnx

    graph = model.graph
    inputs, final = {v.name for v in graph.input}, {v.name for v in graph.output}
    shapes, more = shapes_of(one), shapes_of(two)
    types = {v.name: v.type.tensor_type.elem_type for v in [*one.graph.value_info, *one.graph.output]}
    builder = Builder(model)
    probes = []
    for name in plan.observed:
        if name not in inputs:
            # Only where each input sample has its own slice of axis 0 do its elements not depend on the others.
            own = shapes.get(name) if _grows(shapes.get(name), more.get(name), shapes, more, inputs) else None
            probe = builder.probe(name, own, types.get(name, 0), name in plan.rectified, sample)
            probes.append(builder.checked(probe, shapes[name]) if name in final and probe.high != name else probe)
    builder.finish()
    del graph.output[:]
    wanted = {name for p in probes for name in (p.high, p.low, p.sample, p.check) if name is not None}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    return model, probes


def stride(size: int) -> int:
    """The step that leaves at most about `SAMPLE` of `size` elements, and meets every row and channel of them in turn."""
    step = max(1, math.ceil(size / SAMPLE))
    while math.gcd(step, size) > 1:
        step += 1
    return step


class Builder:
    """Collects the nodes that belong beside each tensor."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.nodes: dict[str, list[Any]] = {}

    def finish(self) -> None:
        """Adds the nodes to the graph, those of the first tensor last."""
        self.graph.node.extend(node for group in reversed(self.nodes.values()) for node in group)

    def probe(self, name: str, shape: tuple[int, ...] | None, kind: int, rectified: bool, sample: bool) -> Probe:
        size = math.prod(shape[1:]) if shape else 0
        if shape is None or len(shape) < 2 or size <= SAMPLE:
            # A tensor in blocks is turned back in a leaf of the runtime's own, which would come first and take all before it along.
            whole = self.node(name, "Flatten", [name]) if shape is not None and len(shape) == 4 else name
            return Probe(name, whole, whole, False, whole if sample else None)
        if len(shape) == 4 and shape[1] % _BLOCK == 0 and kind == _FLOAT:
            return self._pooled(name, shape, rectified, sample)
        return self._reduced(name, shape, size, kind, sample)

    def checked(self, probe: Probe, shape: tuple[int, ...]) -> Probe:
        mean = self.reduce(probe.tensor, "ReduceMean", probe.tensor, list(range(1, len(shape))))
        return replace(probe, check=mean)

    def _pooled(self, name: str, shape: tuple[int, ...], rectified: bool, sample: bool) -> Probe:
        def maximum(source: str, suffix: str) -> str:
            return self.node(name, "Flatten", [self.node(name, "GlobalMaxPool", [source], suffix)], suffix)

        high, low, taken = maximum(name, "high"), None, None
        if not rectified:
            weight = self.constant(name, "minus", [-1.0] * shape[1], [shape[1], 1, 1, 1])
            low = maximum(self.node(name, "Conv", [name, weight], group=shape[1], kernel_shape=[1, 1]), "low")
        if sample:
            side = math.ceil(math.sqrt(math.prod(shape[1:]) / SAMPLE))
            strides = [min(side, shape[2]), min(side, shape[3])]
            taken = self.node(name, "Flatten", [self.node(name, "MaxPool", [name], kernel_shape=[1, 1], strides=strides)], "sample")
        return Probe(name, high, low, True, taken)

    def _reduced(self, name: str, shape: tuple[int, ...], size: int, kind: int, sample: bool) -> Probe:
        source = name if kind == _FLOAT else self.node(name, "Cast", [name], to=_FLOAT)
        kept = max(i for i in range(1, len(shape)) if math.prod(shape[1:i]) <= _KEPT)
        high, low = (self.reduce(name, op, source, list(range(kept, len(shape)))) for op in ("ReduceMax", "ReduceMin"))
        taken = None
        if sample:
            rows = self.node(name, "Reshape", [source, self.constant(name, "rows", [0, -1])])
            taken = self._slice(name, rows, stride(size))
        return Probe(name, high, low, False, taken)

    def reduce(self, name: str, op: str, source: str, axes: list[int]) -> str:
        """A reduction of a tensor; what it gives."""
        if self.opset < 18:
            return self.node(name, op, [source], axes=axes, keepdims=0)
        return self.node(name, op, [source, self.constant(name, f"{op}_axes", axes)], keepdims=0)

    def _slice(self, name: str, rows: str, step: int) -> str:
        if self.opset < 10:  # Slice had no steps: take every element
            return rows
        parts = {"starts": 0, "ends": 2**31 - 1, "axes": 1, "steps": step}
        return self.node(name, "Slice", [rows, *(self.constant(name, key, [value]) for key, value in parts.items())])

    def node(self, tensor: str, op: str, inputs: list[str], suffix: str = "", **attributes: Any) -> str:
        """A node beside a tensor; what it gives."""
        import onnx

        output = f"{tensor}{MARK}{op}{suffix}"
        self.nodes.setdefault(tensor, []).append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, tensor: str, key: str, values: list[Any], dims: list[int] | None = None) -> str:
        """A constant of integers, or of floats; its name."""
        import onnx

        name = f"{tensor}{MARK}{key}"
        kind = _FLOAT if isinstance(values[0], float) else 7  # INT64
        self.graph.initializer.append(onnx.helper.make_tensor(name, kind, dims or [len(values)], values))
        return name


def _grows(one: tuple[int, ...] | None, two: tuple[int, ...] | None, shapes: Shapes, more: Shapes, inputs: set[str]) -> bool:
    """Whether axis 0 of a tensor, and no other, holds the samples of the batch."""
    if not one or not two or len(one) != len(two) or one[1:] != two[1:]:
        return False
    batch = next(((shapes[i][0], more[i][0]) for i in sorted(inputs) if shapes.get(i) and more.get(i) and shapes[i] != more[i]), None)
    if batch is None:  # a fixed batch size: every batch has the same shapes, so nothing can depend on how it was cut
        return True
    return one[0] * batch[1] == two[0] * batch[0]


def _without_weights(model: Any) -> Any:
    """A copy whose large weights have a shape but no values."""
    import onnx

    bare = onnx.ModelProto()
    for field in ("ir_version", "producer_name"):
        setattr(bare, field, getattr(model, field))
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = model.graph
    for part in ("node", "input", "output", "value_info"):
        getattr(bare.graph, part).extend(getattr(graph, part))
    bare.graph.name = graph.name
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= 1024:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.initializer.append(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return bare


def _set_shape(value: Any, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape
    dims.ClearField("dim")
    for size in shape:
        dims.dim.add().dim_value = size


def shapes_of(inferred: Any) -> Shapes:
    """Shapes of all tensors of a model that are known in full."""
    graph = inferred.graph
    known = {v.name: _shape(v) for v in [*graph.input, *graph.value_info, *graph.output]}
    return {name: shape for name, shape in known.items() if shape is not None}


def _shape(value: Any) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim)
