"""Merge matrix products that read the same tensor: one wide product costs less than several narrow ones.

Query, key and value projections of attention are the usual case. Nothing changes in what is computed: the weights lie side by side,
and a Split hands every part to its readers. MiniLM-L6 in INT8 on OpenVINO, one thread, 64 tokens: 2 to 5 % less time in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def merge_products(model: ir.Model) -> int:
    """Merges, in place, every set of MatMuls with one input, constant weights [K, N_i], and a constant bias each or none.

    Returns:
        How many products were merged into others.
    """
    by_input: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and node.domain in ("", "ai.onnx") and _mergeable(node):
            source = node.inputs[0]
            assert source is not None
            by_input.setdefault(source, []).append(node)
    merged = 0
    for nodes in by_input.values():
        biases = [_bias_of(node) for node in nodes]
        if len(nodes) > 1 and all((bias is None) == (biases[0] is None) for bias in biases):
            _merge(model.graph, nodes, [bias for bias in biases if bias is not None])
            merged += len(nodes) - 1
    return merged


def _mergeable(node: ir.Node) -> bool:
    data, weight = node.inputs
    if data is None or weight is None or data.const_value is not None or weight.const_value is None:
        return False
    return len(weight.const_value.shape) == 2 and not node.outputs[0].is_graph_output()


def _bias_of(node: ir.Node) -> ir.Node | None:
    """The Add behind a product that adds one constant an output channel, where nothing else reads the product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.outputs[0].is_graph_output():
        return None
    add = uses[0].node
    if add.graph is not node.graph:  # inside a branch that reads the product
        return None
    constants = [v for v in add.inputs if v is not None and v.const_value is not None]
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    width = weight.const_value.shape[1]
    fits = len(constants) == 1 and constants[0].const_value is not None and list(constants[0].const_value.shape) == [width]
    return add if fits else None


def _merge(graph: ir.Graph, nodes: list[ir.Node], biases: list[ir.Node]) -> None:
    import onnx_ir

    name = f"{nodes[0].name}_merged"

    def constant(suffix: str, values: Array) -> ir.Value:
        value = onnx_ir.Value(name=f"{name}_{suffix}", const_value=onnx_ir.tensor(values, name=f"{name}_{suffix}"))
        graph.register_initializer(value)
        return value

    weights = [_values(node.inputs[1]) for node in nodes]
    product = onnx_ir.node("MatMul", [nodes[0].inputs[0], constant("weight", np.concatenate(weights, axis=1))], name=name)
    new, result = [product], product.outputs[0]
    if biases:
        added = [_values(next(v for v in add.inputs if v is not None and v.const_value is not None)) for add in biases]
        new.append(onnx_ir.node("Add", [result, constant("bias", np.concatenate(added))], name=f"{name}_add"))
        result = new[-1].outputs[0]
    sizes = constant("sizes", np.array([w.shape[1] for w in weights], np.int64))
    new.append(onnx_ir.node("Split", [result, sizes], {"axis": -1}, num_outputs=len(nodes), name=f"{name}_split"))
    for index, node in enumerate(new[:-1]):
        node.outputs[0].name = f"{name}_result_{index}"
    replaced = biases or nodes
    names = [node.outputs[0].name for node in replaced]
    graph.insert_before(nodes[0], new)
    for old, part, part_name in zip(replaced, new[-1].outputs, names, strict=True):
        part.type, part.shape = old.outputs[0].type, old.outputs[0].shape
        onnx_ir.convenience.replace_all_uses_with(old.outputs[0], part)
        old.outputs[0].name = f"{part_name}_unmerged"
        part.name = part_name  # calibration, recipes and people go on finding the tensor
    for node in [*biases, *nodes]:
        graph.remove(node)
    for value in [v for v in graph.initializers.values() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[str(value.name)]


def _values(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
