"""Bits for each linear layer: what rounding it alone does to the model's distribution over next tokens, and a knapsack over sizes.

The damage of a layer on a grid is KL(float | that layer rounded), measured on some windows of text; over small damages they add up. What is
least in sum within a size is an integer program of one choice a layer (`lowbit.compress.allocate`, with bytes in the place of seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lowbit.compress.allocate import least_damage
from lowbit.errors import UsageError
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.forward import Reference
from lowbit.llm.linear import Grid
from lowbit.llm.methods.grids import searched
from lowbit.llm.recipe import LanguageRecipe, Method
from lowbit.types import Array

CHOICES = (Grid(2, 32), Grid(3, 32), Grid(4, 32), Grid(8, 32))
WINDOWS = 4
"""Of the text on which damages are measured: differences between layers are far larger than between windows."""

Damage = Mapping[tuple[str, Grid], float]
"""("blocks.3.mlp.down", grid) -> KL a token, in nats."""


def mixed(
    source: Weights,
    tokens: Array,
    bits: float,
    *,
    choices: Sequence[Grid] = CHOICES,
    method: Method = "gptq",
    windows: int = WINDOWS,
    progress: Callable[[int, int], None] | None = None,
) -> LanguageRecipe:
    """A recipe of so many bits a weight on the mean.

    Args:
        source: The model in 16 bit.
        tokens: Calibration text, int [N, T].
        bits: Of the blocks' linear layers on the mean, scales and zero points among them: four bits in groups of 32 are 4.5.
        choices: Grids that a layer may get.
        method: That the recipe quantizes by.
        windows: Of the text that are looked at.
        progress: Is told of each block: finished, all.

    Raises:
        UsageError: not even the smallest grids are that small, or there is no text.
    """
    damage = sensitivities(source, tokens, choices, windows=windows, progress=progress)
    formats = allocate(damage, source.decoder, bits)
    most = max(set(formats.values()), key=list(formats.values()).count)
    others = {name: grid for name, grid in formats.items() if grid != most}
    return LanguageRecipe(f"mixed-{bits:g}", method, most, formats=others)


@torch.no_grad()
def sensitivities(
    source: Weights,
    tokens: Array,
    choices: Sequence[Grid] = CHOICES,
    *,
    windows: int = WINDOWS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, Grid], float]:
    """The damage of each linear layer on each grid, every other layer in 16 bit. Each takes a pass through the blocks from its own on.

    Args:
        source: The model in 16 bit.
        tokens: Int [N, T].
        choices: Grids; one that a layer's rows do not fit is tried with a shorter last group.
        windows: Evenly chosen of the text.
        progress: See `mixed`.

    Raises:
        UsageError: there is no text.
    """
    if tokens.ndim != 2 or not tokens.size:
        raise UsageError(f"Sensitivity wants calibration tokens [N, T]; found the shape {list(tokens.shape)}.")
    chosen = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(windows, len(tokens))).round().astype(int))]
    reference, decoder = Reference(source), source.decoder
    wanted = F.log_softmax(reference.logits(chosen), -1)
    hidden, found = reference.embed(chosen), {}
    for index in range(decoder.layers):
        block = reference.block(index)
        for role in decoder.roles:
            exact = block.weights[role]
            for grid in choices:
                scales = searched(exact, grid)
                block.weights[role] = scales.weights(scales.nearest(exact))
                found[f"blocks.{index}.{role}", grid] = _divergence(reference, block.run(hidden), index + 1, wanted)
            block.weights[role] = exact
        hidden = block.run(hidden)
        if progress is not None:
            progress(index + 1, decoder.layers)
    return found


def _divergence(reference: Reference, hidden: torch.Tensor, start: int, wanted: torch.Tensor) -> float:
    for index in range(start, reference.decoder.layers):
        hidden = reference.block(index).run(hidden)
    scored = F.log_softmax(reference.head(hidden), -1)
    return max(float(F.kl_div(scored, wanted, reduction="sum", log_target=True)) / scored[..., 0].numel(), 0.0)


def allocate(damage: Damage, decoder: Decoder, bits: float) -> dict[str, Grid]:
    """The grids of least damage in sum whose mean size is within `bits` a weight.

    Args:
        damage: Of each layer on each grid that it may get.
        decoder: For the layers' sizes.
        bits: Mean over all weights of these layers, scales and zero points among them.

    Returns:
        Layer -> grid.

    Raises:
        UsageError: not even the smallest grids are that small.
    """
    spelled = {(name, _spell(grid)): grid for name, grid in damage}
    sizes, total = {}, 0
    for name in {name for name, _ in damage}:
        rows, columns = decoder.shape(name.split(".", 2)[2])
        total += rows * columns
        sizes.update({(n, f): grid.bits_per_weight(columns) * rows * columns for (n, f), grid in spelled.items() if n == name})
    least = sum(min(size for (n, _), size in sizes.items() if n == name) for name in {name for name, _ in sizes})
    if least > bits * total * (1 + 1e-9):
        raise UsageError(
            f"{bits:g} bits a weight are fewer than the smallest grids have ({least / total:.3g}, scales among them).",
            "Allow more bits, or offer smaller grids.",
        )
    losses = {(name, _spell(grid)): loss for (name, grid), loss in damage.items()}
    found = least_damage(losses, sizes, (), bits * total * (1 + 1e-9))
    return {name: spelled[name, form] for name, form in found.formats.items()}


def _spell(grid: Grid) -> str:
    return f"w{grid.bits}g{grid.group or 0}{'' if grid.symmetric else 'z'}"
