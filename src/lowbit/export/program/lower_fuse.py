"""Rewrite steps until each says one thing that an integer kernel does: patterns joined, ReLU and Clip taken into what they follow."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from lowbit.export.program.lower_steps import Net, Step

ABSORBING = frozenset(
    {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul", "Mul", "PRelu"}
    | {"ReduceMean", "Sub"}
)
"""Steps that give a grid of their own, at whose ends values can be cut."""

Bounds = tuple[float, float]


def fuse(net: Net, rounded: Collection[str]) -> Net:
    """Joins what belongs together.

    Args:
        net: A graph as it was read.
        rounded: Tensors that the candidate rounds: nothing is joined across them.
    """
    return _take_clamps(_bias_of_product(_hard_swish(net), rounded), rounded)


def bounds_of(step: Step, net: Net) -> Bounds | None:
    """Where a ReLU or Clip cuts; None where it is neither, or its bounds are computed."""
    if step.op == "Relu":
        return 0.0, math.inf
    if step.op != "Clip":
        return None
    given: list[float] = [float(step.get("min", -math.inf)), float(step.get("max", math.inf))]
    for index, name in enumerate(step.inputs[1:3]):
        if name and name not in net.constants:
            return None
        if name:
            given[index] = float(net.constants[name].reshape(-1)[0])
    return given[0], given[1]


def _take_clamps(net: Net, rounded: Collection[str]) -> Net:
    """ReLU and Clip become bounds of the step before them, where nobody else sees what that gives."""
    readers, steps = net.readers(), {step.output: step for step in net.steps}
    for clamp in net.steps:
        cut, name = bounds_of(clamp, net), clamp.inputs[0] if clamp.inputs else ""
        maker = steps.get(name)
        if cut is None or maker is None or maker.op not in ABSORBING or name in rounded or name in net.outputs or len(readers[name]) > 1:
            continue
        low, high = maker.clamp or (-math.inf, math.inf)
        joined = (max(low, cut[0]), min(high, cut[1]))
        if joined[0] >= joined[1]:
            continue
        del steps[name], steps[clamp.output]
        steps[clamp.output] = replace(maker, outputs=clamp.outputs, nodes=(*maker.nodes, *clamp.nodes), clamp=joined)
    return net.with_steps(_in_order(net, steps.values()))


def _bias_of_product(net: Net, rounded: Collection[str]) -> Net:
    """A matrix product and the constant that is added to it are one step."""
    readers, steps = net.readers(), {step.output: step for step in net.steps}
    for add in net.steps:
        constants = [name for name in add.inputs if name in net.constants]
        if add.op != "Add" or len(constants) != 1:
            continue
        name = next(name for name in add.inputs if name not in net.constants)
        maker = steps.get(name)
        if maker is None or maker.op != "MatMul" or len(maker.inputs) != 2 or maker.inputs[1] not in net.constants:
            continue
        width, bias = net.shapes[name][-1], net.constants[constants[0]]
        one_row = bias.size in (1, width) and (bias.size == 1 or bias.shape[-1] == width)
        if name in rounded or name in net.outputs or len(readers[name]) > 1 or not one_row:
            continue
        del steps[name], steps[add.output]
        joined = replace(maker, inputs=(*maker.inputs, constants[0]), outputs=add.outputs, nodes=(*maker.nodes, *add.nodes))
        steps[add.output] = joined
    return net.with_steps(_in_order(net, steps.values()))


def _hard_swish(net: Net) -> Net:
    """x · clip(x + 3, 0, 6) / 6, in the orders in which it is written, and x · hard sigmoid(x) of those slopes (Howard et al. 2019)."""
    makers, steps = net.makers(), {step.output: step for step in net.steps}
    for step in net.steps:
        for x, gate in _orders(step, net):
            if step.op == "Mul" and _is_gate(gate, x, net, makers, 1 / 6):
                inner = _between(gate, x, makers, net)
                steps[step.output] = Step("HardSwish", (x,), step.outputs, {}, (*inner, *step.nodes))
        x, factor = _scaled(step, net)
        whole = makers.get(x) if x else None
        if whole is not None and whole.op == "Mul" and math.isclose(factor, 1 / 6, rel_tol=1e-4) and _alone(x, net):
            for source, gate in _orders(whole, net):
                if _is_gate(gate, source, net, makers, 1.0):
                    inner = _between(x, source, makers, net)
                    steps[step.output] = Step("HardSwish", (source,), step.outputs, {}, (*inner, *step.nodes))
    return net.with_steps(steps.values())


def _orders(step: Step, net: Net) -> list[tuple[str, str]]:
    """Both orders of a product of two computed tensors."""
    if step.op != "Mul" or any(name in net.constants for name in step.inputs):
        return []
    return [(step.inputs[0], step.inputs[1]), (step.inputs[1], step.inputs[0])]


def _is_gate(gate: str, x: str, net: Net, makers: dict[str, Step], scale: float) -> bool:
    """Whether a tensor is scale · clip(x + 3, 0, 6), read once."""
    maker = makers.get(gate)
    if maker is None or not _alone(gate, net):
        return False
    if maker.op == "HardSigmoid" and maker.inputs[0] == x and scale < 1:
        slopes = maker.get("alpha", 0.2), maker.get("beta", 0.5)
        return math.isclose(slopes[0], 1 / 6, rel_tol=1e-4) and math.isclose(slopes[1], 0.5)
    source, factor = _scaled(maker, net)
    clip = makers.get(source) if source and math.isclose(factor, scale, rel_tol=1e-4) and _alone(source, net) else None
    clip = maker if math.isclose(scale, 1.0) and bounds_of(maker, net) is not None else clip
    if clip is None or bounds_of(clip, net) != (0.0, 6.0):
        return False
    add = makers.get(clip.inputs[0])
    if add is None or add.op != "Add" or x not in add.inputs or not _alone(add.output, net):
        return False
    other = add.inputs[1] if add.inputs[0] == x else add.inputs[0]
    return _number(other, net) == 3.0


def _scaled(step: Step, net: Net) -> tuple[str, float]:
    """Of a product with a number: the tensor and the number; ("", nan) of anything else."""
    if step.op in ("Mul", "Div") and len(step.inputs) == 2:
        for index in (0, 1) if step.op == "Mul" else (1,):
            number = _number(step.inputs[index], net)
            if number is not None and number != 0:
                return step.inputs[1 - index], number if step.op == "Mul" else 1 / number
    return "", math.nan


def _between(last: str, first: str, makers: dict[str, Step], net: Net) -> tuple[str, ...]:
    """Names of the nodes from one tensor back to another."""
    found: list[str] = []
    waiting = [last]
    while waiting:
        name = waiting.pop()
        if name != first and name in makers and not set(makers[name].nodes) & set(found):
            found += makers[name].nodes
            waiting += [each for each in makers[name].inputs if each not in net.constants]
    order = [node for step in net.steps for node in step.nodes]
    return tuple(sorted(found, key=order.index))


def _number(name: str, net: Net) -> float | None:
    values = net.constants.get(name)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _alone(name: str, net: Net) -> bool:
    """Whether a tensor is read once, and is no output."""
    return name not in net.outputs and sum(name in step.inputs for step in net.steps) == 1


def _in_order(net: Net, steps: Collection[Step]) -> list[Step]:
    """Steps in the order of the last node that each stands for."""
    place = {node: index for index, step in enumerate(net.steps) for node in step.nodes}
    return sorted(steps, key=lambda step: max(place[node] for node in step.nodes))
