"""One block, linear layer by linear layer, each fitted to what the layers before it, already quantized, feed it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.methods.base import Block, BlockProblem, QuantizedBlock
from lowbit.llm.methods.folds import changed, stored_array
from lowbit.llm.methods.grids import Scales
from lowbit.llm.methods.inputs import Inputs, captured, stages

SMALL = 1e12
"""Multiplications of a block's pass over the calibration text up to which it is run anew for each stage: the inputs are then what the
layers before really give. In larger ones one pass serves all, and a layer sees its block's others unquantized."""


@dataclass(frozen=True)
class Site:
    """A linear layer to quantize.

    Attributes:
        role: Of the layer.
        weights: float32 [O, K]; columns that are kept in 16 bit are zero, and so are their rows and columns of the Gram matrix.
        grid: Wanted.
        inputs: What it is fed; None where the method does not ask.
    """

    role: str
    weights: torch.Tensor
    grid: Grid
    inputs: Inputs | None


Choice = Callable[[Site], tuple[torch.Tensor, Scales]]
"""Levels [O, K] and scales of a layer."""


def layerwise(
    problem: BlockProblem, choose: Choice, *, calibrated: bool, cross: bool = False, before: Block | None = None
) -> QuantizedBlock:
    """Quantizes a block with one choice of levels for all its layers.

    Args:
        problem: The block; its weights are replaced by what the quantized ones stand for.
        choose: Levels and scales of one layer.
        calibrated: The choice wants inputs.
        cross: And how they relate to the float model's.
        before: The block as it was, where something was folded into it already; it is not smoothed then.
    """
    block = problem.block
    move(block, problem.device)
    original = before or snapshot(block)
    if before is None and problem.recipe.smooth is not None:
        from lowbit.llm.methods.smooth import smooth

        smooth(problem)
    calibrated = calibrated or problem.recipe.outliers is not None
    reference = snapshot(block)
    linears: dict[str, QuantizedLinear] = {}
    facts: dict[str, dict[str, float]] = {}
    known = _all_inputs(problem, reference, cross) if calibrated and not in_turn(problem) else {}
    for roles in stages(problem.decoder):
        wanted = [role for role in roles if problem.recipe.grid_of(problem.index, role) is not None]
        if not wanted:
            continue
        inputs = known.get(roles[0]) or (_inputs(problem, roles[0], reference, cross) if calibrated else None)
        for role in wanted:
            linears[role], facts[role] = _quantized(problem, role, inputs, choose)
        known.pop(roles[0], None)
    floats = changed(block, original.floats, problem.stored)
    kept = set(problem.decoder.roles) - set(linears)
    floats |= {f"{r}.weight": stored_array(block.weights[r], problem.stored) for r in kept if block.weights[r] is not original.weights[r]}
    return QuantizedBlock(linears, floats, facts)


def _quantized(problem: BlockProblem, role: str, inputs: Inputs | None, choose: Choice) -> tuple[QuantizedLinear, dict[str, float]]:
    """One layer; the block's weights become what it stands for."""
    grid = problem.recipe.grid_of(problem.index, role)
    assert grid is not None
    weights = problem.block.weights[role]
    site, columns = Site(role, weights, grid, inputs), None
    if problem.recipe.outliers is not None and inputs is not None:
        from lowbit.llm.methods.outliers import split

        site, columns = split(site, problem.recipe.outliers)
    levels, scales = choose(site)
    linear = scales.packed(levels)
    values = scales.weights(levels)
    if columns is not None and len(columns):
        kept = weights[:, columns].half()
        linear = replace(linear, columns=columns.cpu().numpy().astype(np.int32), kept=kept.cpu().numpy())
        values[:, columns] = kept.float()
        exact = getattr(problem.block, "exact", None)
        if exact is not None:
            exact[role] = columns.cpu()
    problem.block.weights[role] = values
    return linear, _facts(weights, values, inputs)


def _facts(weights: torch.Tensor, values: torch.Tensor, inputs: Inputs | None) -> dict[str, float]:
    error = weights - values
    found = {"weight_error": float(error.square().sum() / weights.square().sum().clamp_min(1e-30))}
    if inputs is not None and weights.shape[1] <= 4096:  # a larger product is not worth its seconds
        power = ((weights @ inputs.gram) * weights).sum()
        found["output_error"] = float(((error @ inputs.gram) * error).sum() / power.clamp_min(1e-30))
    return found


def in_turn(problem: BlockProblem) -> bool:
    """Whether the block is run anew for each stage; see `SMALL`. The recipe's option "in_turn" decides where it is given."""
    if problem.exact is None:
        return True
    tokens = problem.exact.shape[0] * problem.exact.shape[1]
    weights = sum(rows * columns for rows, columns in map(problem.decoder.shape, problem.decoder.roles))
    return bool(problem.recipe.options.get("in_turn", float(tokens * weights <= SMALL)))


def _inputs(problem: BlockProblem, role: str, reference: Block, cross: bool) -> Inputs:
    hidden, exact = _hidden(problem)
    return captured(problem.block, hidden, [role], reference if cross else None, exact)[role]


def _all_inputs(problem: BlockProblem, reference: Block, cross: bool) -> dict[str, Inputs]:
    hidden, exact = _hidden(problem)
    return captured(problem.block, hidden, [roles[0] for roles in stages(problem.decoder)], reference if cross else None, exact)


def _hidden(problem: BlockProblem) -> tuple[torch.Tensor, torch.Tensor]:
    assert problem.exact is not None, "this recipe calibrates"
    return (problem.exact if problem.reached is None else problem.reached), problem.exact


def snapshot(block: Block) -> Block:
    """The block as it is: tensors are replaced in blocks, never changed."""
    same = copy.copy(block)
    same.weights, same.floats = dict(block.weights), dict(block.floats)
    if hasattr(block, "exact"):
        same.exact = dict(block.exact)  # type: ignore[attr-defined]
    return same


def move(block: Block, device: str) -> None:
    """Brings a block's tensors to where it is computed."""
    for tensors in (block.weights, block.floats):
        for name, tensor in tensors.items():
            if str(tensor.device) != device:
                tensors[name] = tensor.to(device)
