"""Say the same in the words a runtime is quick at: rewrites that change how something is written, not what is computed.

Optimizers of runtimes look for exact patterns. Exporters write some of them in another order, which leaves five kernels where one would
do; and some fused kernels are slower than the nodes they replace. The numbers are in docs/lab.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_HALF, _ONE = 0.5, 1.0


def halve_gelu_last(model: ir.Model) -> int:
    """Writes x · (½ · (1 + erf(x/√2))) as (x · (1 + erf(x/√2))) · ½, in place: onnxruntime fuses the second order only.

    Returns:
        How many were rewritten.
    """
    found = 0
    for node in model.graph:
        if (parts := _halved_first(node)) is None:
            continue
        inner, x, gate, half = parts
        inner.replace_input_with(0, x)
        inner.replace_input_with(1, gate)
        node.replace_input_with(0, inner.outputs[0])
        node.replace_input_with(1, half)
        inner.outputs[0].shape = node.outputs[0].shape
        found += 1
    return found


def name_gelus(model: ir.Model) -> int:
    """Writes x · (1 + erf(x/√2)) · ½, in any order, as one Gelu, in place, whatever the model's operator set: for readers that know the
    operator by its name and have a kernel for it.

    Returns:
        How many were rewritten.
    """
    import onnx_ir

    found = 0
    for node in list(model.graph):
        x = _gated(node)
        if x is None:
            continue
        made = onnx_ir.node("Gelu", [x], name=f"{node.name}_gelu")
        old = node.outputs[0]
        made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
        model.graph.insert_before(node, made)
        name = old.name
        old.replace_all_uses_with(made.outputs[0], replace_graph_outputs=old.is_graph_output())
        _remove(model, node)
        made.outputs[0].name = name
        found += 1
    return found


def keep_sums_apart(model: ir.Model) -> int:
    """Writes every Add in front of a LayerNormalization as Sum, in place, which no optimizer fuses with it.

    onnxruntime's fused kernel (SkipLayerNormalization) is several times slower than the two kernels it replaces (1.31, x86).

    Returns:
        How many were rewritten.
    """
    import onnx_ir

    found = 0
    for node in list(model.graph):
        total = node.inputs[0] if node.op_type == "LayerNormalization" else None
        add = total.producer() if total is not None else None
        if total is None or add is None or add.op_type != "Add" or any(v is None or v.const_value is not None for v in add.inputs):
            continue
        plain = onnx_ir.node("Sum", list(add.inputs), name=add.name)
        plain.outputs[0].type, plain.outputs[0].shape = total.type, total.shape
        model.graph.insert_before(add, plain)
        name, is_output = total.name, total.is_graph_output()
        total.replace_all_uses_with(plain.outputs[0], replace_graph_outputs=is_output)
        model.graph.remove(add, safe=True)
        plain.outputs[0].name = name
        found += 1
    return found


def _halved_first(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value, ir.Value] | None:
    """Of a Mul that gives x · (½ · (1 + erf)): the inner Mul, x, 1 + erf, and ½."""
    if node.op_type != "Mul":
        return None
    for inner_value, x in (node.inputs, reversed(node.inputs)):
        inner = inner_value.producer() if inner_value is not None else None
        if inner is None or inner.op_type != "Mul" or x is None or len(list(inner.outputs[0].uses())) != 1:
            continue
        for half, gate in (inner.inputs, reversed(inner.inputs)):
            if gate is not None and _is(half, _HALF) and _is_gate(gate, x):
                assert half is not None
                return inner, x, gate, half
    return None


def _gated(node: ir.Node) -> ir.Value | None:
    """Of a Mul that gives a GELU, x; None of any other node."""
    if node.op_type != "Mul":
        return None
    if (parts := _halved_first(node)) is not None:
        return parts[1]
    for half, whole in (node.inputs, reversed(node.inputs)):
        inner = whole.producer() if whole is not None and _is(half, _HALF) else None
        if inner is None or inner.op_type != "Mul":
            continue
        for x, gate in (inner.inputs, reversed(inner.inputs)):
            if x is not None and gate is not None and _is_gate(gate, x):
                return x
    for x, gate in (node.inputs, reversed(node.inputs)):  # (x · ½) · (1 + erf)
        scaled = x.producer() if x is not None else None
        if scaled is None or scaled.op_type != "Mul" or gate is None:
            continue
        for half, inner_x in (scaled.inputs, reversed(scaled.inputs)):
            if inner_x is not None and _is(half, _HALF) and _is_gate(gate, inner_x):
                return inner_x
    return None


def _remove(model: ir.Model, node: ir.Node) -> None:
    """Removes a node that nobody reads, and those in front of it that nobody reads then."""
    makers = [value.producer() for value in node.inputs if value is not None]
    model.graph.remove(node, safe=True)
    for maker in dict.fromkeys(maker for maker in makers if maker is not None):
        if maker.graph is not None and not any(list(value.uses()) or value.is_graph_output() for value in maker.outputs):
            _remove(model, maker)


def _is_gate(value: ir.Value, x: ir.Value) -> bool:
    """Whether a value is 1 + erf(x / √2)."""
    add = value.producer()
    if add is None or add.op_type != "Add" or not any(_is(v, _ONE) for v in add.inputs):
        return False
    makers = [v.producer() for v in add.inputs if v is not None and not _is(v, _ONE)]
    erf = makers[0] if makers else None
    scaled = erf.inputs[0].producer() if erf is not None and erf.op_type == "Erf" and erf.inputs[0] is not None else None
    if scaled is None:
        return False
    root = np.sqrt(2.0) if scaled.op_type == "Div" else 1 / np.sqrt(2.0)
    operands = list(scaled.inputs) if scaled.op_type == "Mul" else list(scaled.inputs)[1:]
    return scaled.op_type in ("Div", "Mul") and x in scaled.inputs and any(_is(v, root) for v in operands)


def _is(value: ir.Value | None, number: float) -> bool:
    """Whether a value is this constant."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return False
    return bool(np.isclose(value.const_value.numpy().reshape(-1)[0], number, rtol=1e-5))
