"""Which int8 grid every tensor lies on: the candidate's; the operator's own; that of what is moved; or the range that calibration saw.

Unsigned grids become signed ones by moving the zero point by 128, which is exact (docs/concepts/dialects.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.program.lower_fuse import bounds_of
from lowbit.export.program.lower_steps import Net, Step
from lowbit.quant.affine import Affine, from_range

MOVES = frozenset(
    {"DepthToSpace", "Dropout", "Flatten", "Identity", "MaxPool", "GlobalMaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze"}
    | {"AveragePool", "Cast", "SpaceToDepth", "Transpose", "Unsqueeze", "Upsample"}
)
"""Steps that keep the grid of their first input. LiteRT's average pool is one of them: it divides a sum of levels."""

KNOWING = frozenset({"Add", "BatchNormalization", "Conv", "Div", "Gemm", "MatMul", "Mul", "PRelu", "Sub"})
"""Steps whose kernels apply ReLU and ReLU6 themselves."""

LOW, HIGH = -128, 127


def signed(grid: Affine) -> Affine:
    """A grid of 8 bits as int8: the same real values.

    Raises:
        ModelError: it has another width.
    """
    if grid.dtype == "uint8":
        return replace(grid, dtype="int8", zero_point=(np.asarray(grid.zero_point) - 128).astype(np.int32))
    if grid.dtype != "int8":
        raise ModelError(f"Activations of {grid.dtype} have no place in an 8-bit program.", "Take a candidate with 8-bit activations.")
    return grid


def operator_grid(op: str) -> Affine | None:
    """The grid that LiteRT prescribes for what an operator gives (its quantization specification)."""
    if op in ("Sigmoid", "Softmax"):
        return Affine(np.array(1 / 256, np.float32), np.array(-128, np.int32), "int8", symmetric=False)
    if op == "Tanh":
        return Affine(np.array(1 / 128, np.float32), np.array(0, np.int32), "int8", symmetric=False)
    return None


def ends(grid: Affine) -> tuple[float, float]:
    """Least and greatest value of a grid."""
    scale, zero = float(grid.scale), int(grid.zero_point)
    return (LOW - zero) * scale, (HIGH - zero) * scale


def same(one: Affine, other: Affine) -> bool:
    """Whether two grids of activations are one."""
    return float(one.scale) == float(other.scale) and int(one.zero_point) == int(other.zero_point)


def clamped(grid: Affine, bounds: tuple[float, float]) -> Affine:
    """A grid that reaches nowhere beyond bounds: itself where it does not by half a step, a finer one else."""
    low, high = ends(grid)
    half = float(grid.scale) / 2
    if low >= bounds[0] - half and high <= bounds[1] + half:
        return grid
    return from_range(max(low, bounds[0]), min(high, bounds[1]), "int8", symmetric=False)


def grids_of(net: Net, activations: Mapping[str, Affine], ranges: Mapping[str, tuple[float, float]]) -> dict[str, Affine]:
    """Chooses a grid for every tensor that is fed or computed.

    Args:
        net: The steps.
        activations: Of the candidate.
        ranges: Of calibration.

    Raises:
        ModelError: nothing is known of a tensor that needs a grid.
    """
    found = {name: signed(grid) for name, grid in activations.items()}
    for step in net.steps:
        own = operator_grid(step.op)
        if own is not None:
            found[step.output] = own
    makers = net.makers()
    for name in net.outputs:
        if _root(name, makers, found) not in (*found, *net.inputs) and name in ranges:
            found[name] = _from_range(name, ranges, makers.get(name))
    _backwards(net, found)
    for name in net.inputs:
        if name not in found:
            found[name] = _from_range(name, ranges, None)
    for step in net.steps:
        for name in step.outputs:
            if not name or name in found:
                continue
            if step.op in MOVES and step.inputs[0] in found:
                found[name] = found[step.inputs[0]]
            else:
                found[name] = _from_range(name, ranges, step)
    return found | {step.output: clamped(found[step.output], cut) for step in net.steps if (cut := _cut(step, net)) is not None}


def _cut(step: Step, net: Net) -> tuple[float, float] | None:
    """Bounds that only a grid can keep: ReLU and ReLU6 are left to kernels that know them."""
    bounds = (0.0, 1.0) if step.op == "HardSigmoid" else step.clamp or bounds_of(step, net)
    if bounds is None or step.op == "Relu" or (step.op in KNOWING and bounds[0] == 0.0 and bounds[1] in (6.0, math.inf)):
        return None
    return bounds


def _backwards(net: Net, found: dict[str, Affine]) -> None:
    """What is only moved to where a grid is known lies on that grid from the start."""
    readers = net.readers()
    fixed = {step.output for step in net.steps if operator_grid(step.op) is not None}
    for step in reversed(net.steps):
        if step.op not in MOVES | {"Concat"} or _mixes(step):
            continue
        known = [found[name] for name in step.outputs if name in found]
        for name in step.inputs if step.op == "Concat" else step.inputs[:1]:
            if known and name not in found and name not in fixed and name not in net.constants and len(readers[name]) == 1:
                found[name] = known[0]


def _mixes(step: Step) -> bool:
    """Whether values are averaged on the way: what its result spans says nothing of what goes in."""
    return step.op == "AveragePool" or (step.op in ("Resize", "Upsample") and step.get("mode", "nearest") != "nearest")


def _root(name: str, makers: Mapping[str, Step], found: Mapping[str, Affine]) -> str:
    """The tensor whose values another one holds, moved: the first on the way back that has a grid, or that was computed."""
    while name not in found and name in makers and makers[name].op in MOVES:
        name = makers[name].inputs[0]
    return name


def _from_range(name: str, ranges: Mapping[str, tuple[float, float]], step: Step | None) -> Affine:
    if name not in ranges:
        where = f"what {step.op} '{step.nodes[-1]}' gives" if step is not None else "an input"
        raise ModelError(
            f"No range of '{name}' is known ({where}), and the candidate leaves it in floating point: it cannot be rounded.",
            "Take a candidate that was neither pruned nor trained, or a target that keeps this part in floating point.",
        )
    low, high = ranges[name]
    if step is not None and step.clamp is not None:
        low, high = max(low, min(step.clamp[0], 0.0)), min(high, max(step.clamp[1], 0.0))
    return from_range(low, high, "int8", symmetric=False)
