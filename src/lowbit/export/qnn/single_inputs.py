"""Dense layers of one input, as QNN can compile them: its optimizer does not end on a product over a single value.

Seen with onnxruntime-qnn 2.7.0: a fully connected layer [N, 1] x [1, 16] is still being prepared after ten minutes, and memory grows. Read
twice, the second time with weights of zero, the same layer is prepared within a second, and its sums are the same integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def read_twice(graph: ir.Graph) -> None:
    """Changes such layers of a graph with its pairs in place; what has no pair before it, or shares its weights, is left as it is."""
    for node in list(graph):
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        entering, weight = (value.producer() if value is not None else None for value in node.inputs[:2])
        if entering is None or weight is None or entering.op_type != "DequantizeLinear" or weight.op_type != "DequantizeLinear":
            continue
        if _is_single(node, weight):
            _widen(weight, _axis(node))
            _join(graph, node, entering)


def _is_single(node: ir.Node, weight: ir.Node) -> bool:
    """Whether a product sums over one value, with weights that nothing else reads."""
    axis, integers = _axis(node), weight.inputs[0]
    if axis is None or integers is None or integers.const_value is None or len(list(weight.outputs[0].uses())) > 1:
        return False
    shape = list(integers.const_value.shape)
    return len(list(integers.uses())) == 1 and len(shape) == 2 and shape[axis] == 1


def _axis(node: ir.Node) -> int | None:
    """Along which a product sums over its weights [in, out] or [out, in]; None where it turns what comes in."""
    flags = {name: int(node.attributes[name].value) for name in ("transA", "transB") if name in node.attributes}
    return None if flags.get("transA") else flags.get("transB", 0)


def _widen(weight: ir.Node, axis: int | None) -> None:
    """Weights of zero for the second reading: the level that stands for zero."""
    import onnx_ir

    integers, zero = weight.inputs[0], weight.inputs[2] if len(weight.inputs) > 2 else None
    assert integers is not None, "looked at before"
    assert integers.const_value is not None, "likewise"
    assert axis is not None, "likewise"
    levels = integers.const_value.numpy()
    zeros = np.zeros_like(levels) if zero is None or zero.const_value is None else zero.const_value.numpy()
    if zeros.ndim == 1 and zeros.size > 1:
        zeros = zeros.reshape([-1 if place != axis else 1 for place in range(2)])
    wide = np.concatenate([levels, np.broadcast_to(zeros.astype(levels.dtype), levels.shape)], axis)
    integers.const_value = onnx_ir.tensor(wide, name=integers.name)
    integers.shape = onnx_ir.Shape(wide.shape) if integers.shape is not None else None
    weight.outputs[0].shape = onnx_ir.Shape(wide.shape)


def _join(graph: ir.Graph, node: ir.Node, entering: ir.Node) -> None:
    """What comes in beside itself, on its own grid."""
    import onnx_ir

    name, real = f"{node.name}_twice", entering.outputs[0]
    twice = onnx_ir.node("Concat", [real, real], attributes={"axis": -1}, name=name)
    rounded = onnx_ir.node("QuantizeLinear", [twice.outputs[0], *entering.inputs[1:]], name=f"{name}_QuantizeLinear")
    back = onnx_ir.node("DequantizeLinear", [rounded.outputs[0], *entering.inputs[1:]], name=f"{name}_DequantizeLinear")
    for made in (twice, rounded, back):
        made.outputs[0].name = f"{made.name}_output"
    graph.insert_before(node, [twice, rounded, back])
    node.replace_input_with(0, back.outputs[0])
