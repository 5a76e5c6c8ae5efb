"""What holds between the grids of a graph: which share a scale, and which give a bias its own.

Runtimes rely on both. A kernel that moves values needs the same grid before and behind; the integers of a bias are added to sums of
products of the input's and the weight's integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.profiles import MOVES
from lowbit.train.parts import Grid, Plan

if TYPE_CHECKING:
    import onnx_ir as ir


def tie(graph: ir.Graph, plan: Plan) -> None:
    """One scale for grids that name the same constant, round the same tensor alike, or lie before and behind a move. In place."""
    parent = {key: key for key in plan.grids}
    order = {key: place for place, key in enumerate(plan.grids)}

    def find(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    def join(one: str, other: str) -> None:
        first, second = sorted((find(one), find(other)), key=order.__getitem__)
        parent[second] = first

    known: dict[tuple[object, ...], str] = {}
    for key, grid in plan.grids.items():
        join(key, known.setdefault(("scale", grid.scale), key))
        if not grid.is_weight:
            join(key, known.setdefault(("tensor", grid.tensor, *_form(plan, grid)), key))
    for key, other in _around_moves(graph, plan):
        if _form(plan, plan.grids[key]) == _form(plan, plan.grids[other]):
            join(key, other)
    plan.grids = {key: replace(grid, leader=find(key)) for key, grid in plan.grids.items()}


def derive_biases(graph: ir.Graph, plan: Plan) -> None:
    """Finds the grids of input and weight whose product is the scale of a bias. In place."""
    for node in graph:
        stored = None if node.op_type != "DequantizeLinear" or node.inputs[0] is None else str(node.inputs[0].name)
        if stored not in plan.biases:
            continue
        for use in node.outputs[0].uses():
            activation, weight, *_ = [*(_rounded_on(value, plan) for value in use.node.inputs[:2]), None, None]
            if activation is not None and weight is not None and _is_product(plan, plan.biases[stored].scale, activation, weight):
                plan.biases[stored] = replace(plan.biases[stored], activation=activation.key, weight=weight.key)


def _is_product(plan: Plan, scale: str, activation: Grid, weight: Grid) -> bool:
    product = np.asarray(plan.parameters[activation.scale] * plan.parameters[weight.scale]).reshape(-1)
    found = plan.parameters[scale].reshape(-1)
    return found.shape == product.shape and np.allclose(found, product, rtol=1e-6, atol=0)


def _form(plan: Plan, grid: Grid) -> tuple[object, ...]:
    """What makes two grids the same."""
    return (plan.parameters[grid.scale].tobytes(), plan.zeros(grid).tobytes(), grid.low, grid.high)


def _around_moves(graph: ir.Graph, plan: Plan) -> Iterator[tuple[str, str]]:
    """Pairs of roundings with nothing but moves and joins between them."""
    for node in graph:
        if node.op_type != "QuantizeLinear":
            continue
        waiting = [node.inputs[0]]
        while waiting:
            value = waiting.pop()
            producer = None if value is None else value.producer()
            if (other := _rounded_on(value, plan)) is not None:
                yield str(node.outputs[0].name), other.key
            elif producer is not None and producer.op_type == "Concat":
                waiting += list(producer.inputs)
            elif producer is not None and producer.op_type in MOVES:
                waiting.append(producer.inputs[0])


def _rounded_on(value: ir.Value | None, plan: Plan) -> Grid | None:
    """The grid on which a value was rounded last, where nothing has happened to it since."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return None
    return plan.grids.get(str(producer.inputs[0].name))
