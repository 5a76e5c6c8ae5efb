"""Probes for features: the mean of every channel of a few tensors, taken inside the graph.

What tells samples apart for calibration is how they excite the network. A mean over positions keeps which channels
respond and drops where; a handful of numbers a sample leave the runtime instead of activations. Convolution
outputs are averaged by GlobalAveragePool, which has a kernel for the runtime's own blocked layout (see `probes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TENSORS = 4
"""Inner tensors that become features, beside the model's outputs."""

_FLOAT = 1


def per_sample(one: Any, two: Any, n: int) -> dict[str, tuple[int, ...]]:
    """Tensors whose axis 0 is the samples of the batch, with their shapes.

    Args:
        one: onnx.ModelProto inferred for a batch of n samples (`probes.infer`).
        two: The same for n + 1, or again the same where the batch size is fixed.
        n: Samples in the batch.
    """
    shapes, more = _shapes(one), _shapes(two)
    fixed = all(shapes.get(v.name) == more.get(v.name) for v in one.graph.input)
    step = 0 if fixed else 1
    return {name: s for name, s in shapes.items() if s and s[0] == n and more.get(name) == (n + step, *s[1:])}


def feature_tensors(observed: Sequence[str], outputs: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Names of tensors whose channel means describe a sample: some at even depths of the network, and its outputs.

    Args:
        observed: Floating point tensors in the order of the graph, inputs left out.
        outputs: The model's own outputs.
        shapes: What `per_sample` found; other tensors are not considered.
    """
    known = [name for name in observed if name in shapes and name not in outputs]
    deep = [name for name in known if len(shapes[name]) > 2] or [name for name in known if len(shapes[name]) == 2]
    picked = [deep[(len(deep) * (i + 1) + TENSORS - 1) // TENSORS - 1] for i in range(TENSORS)] if deep else []
    last = [name for name in outputs if name in shapes and len(shapes[name]) > 1 and name in observed]
    return tuple(dict.fromkeys(picked + last))


def add_means(model: Any, tensors: Sequence[str], shapes: dict[str, tuple[int, ...]], types: dict[str, int]) -> dict[str, str]:
    """Adds to a model, in place, an output [N, channels] for each tensor.

    Channels are axis 1 of tensors with four and more axes, and the last axis of sequences [N, T, C].

    Returns:
        Tensor -> the output that has its means; a tensor of two axes is its own.
    """
    import onnx

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    present = {value.name for value in model.graph.output}
    outputs = {}
    for name in tensors:
        outputs[name] = name if len(shapes[name]) == 2 else _mean(model.graph, name, len(shapes[name]), types.get(name, _FLOAT), opset)
        if outputs[name] not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=outputs[name]))
    return outputs


def _mean(graph: Any, name: str, rank: int, kind: int, opset: int) -> str:
    """Nodes for the channel means of one tensor; returns their output."""
    import onnx

    def node(op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}/lowbit/mean/{op}"
        graph.node.append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    source = name if kind == _FLOAT else node("Cast", [name], to=_FLOAT)
    if rank == 4:
        return node("Flatten", [node("GlobalAveragePool", [source])])
    axes = [1] if rank == 3 else list(range(2, rank))
    if opset < 18:
        return node("ReduceMean", [source], axes=axes, keepdims=0)
    graph.initializer.append(onnx.helper.make_tensor(f"{name}/lowbit/mean/axes", 7, [len(axes)], axes))
    return node("ReduceMean", [source, f"{name}/lowbit/mean/axes"], keepdims=0)


def _shapes(inferred: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that are known in full."""
    graph, found = inferred.graph, {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = tuple(int(dim.dim_value) for dim in kind.shape.dim)
    return found
