"""Weights trained where they are quantized: block by block to give what the float block gives, then all together to give its logits.

The start is GPTQ (lowbit.llm.methods.gptq). Stage one moves levels and scales of one block by the error of its output; stage two
distils the float model's distribution over next tokens into scales, norms and, where asked for, levels of the whole model
(EfficientQAT: Chen et al. 2024, arXiv 2407.11062). Nothing is learned from the text but where to look: the targets are the float
model's own logits. A tenth of the windows is held back, and what does not help there is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from lowbit.errors import DataError
from lowbit.llm.decoder import Weights, linear_name
from lowbit.llm.linear import QuantizedLinear
from lowbit.llm.methods import gptq
from lowbit.llm.methods.base import Block, BlockProblem, QuantizedBlock
from lowbit.llm.methods.folds import as_stored, stored_array
from lowbit.llm.methods.layerwise import move, snapshot
from lowbit.llm.methods.trainable import TrainableLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.types import Array

BLOCK_STEPS = 0
STEPS = 100
TOKENS = 2048
"""Of a step."""

SCALE_RATE, LEVEL_RATE, NORM_RATE = 1e-3, 5e-3, 1e-3
"""Of Adam: relative, in levels, and absolute."""

HELD = 10
"""Every so many-th window only judges."""

CACHE_BYTES = 2 << 30
"""Hidden states of the float model that are kept in memory."""


def quantize(problem: BlockProblem) -> QuantizedBlock:
    """Quantizes a block by GPTQ, then trains it. Options: those of GPTQ, "block_steps", "level_rate", "scale_rate"."""
    move(problem.block, problem.device)
    exact = snapshot(problem.block)
    start = gptq.quantize(problem)
    steps = int(problem.recipe.options.get("block_steps", BLOCK_STEPS))
    if steps == 0 or not start.linears:
        return start
    return _trained_block(problem, exact, start, steps)


def _trained_block(problem: BlockProblem, exact: Block, start: QuantizedBlock, steps: int) -> QuantizedBlock:
    """Levels and scales of a block, moved to lower the error of its output."""
    assert problem.exact is not None
    block, recipe = problem.block, problem.recipe
    fed, wanted_from = (problem.exact if problem.reached is None else problem.reached), problem.exact
    layers = {role: TrainableLinear(each, exact.weights[role]) for role, each in start.linears.items()}

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = exact.run(wanted_from[rows])
        for role, layer in layers.items():
            block.weights[role] = layer.weights()
        return F.mse_loss(block.run(fed[rows]), wanted) / (wanted - wanted_from[rows]).square().mean()

    groups = [
        {"params": [layer.levels for layer in layers.values()], "lr": recipe.options.get("level_rate", LEVEL_RATE)},
        {"params": [layer.steps for layer in layers.values()], "lr": recipe.options.get("scale_rate", SCALE_RATE)},
    ]
    helped = _train(groups, loss, len(fed), max(1, TOKENS // fed.shape[1]), steps, seed=problem.index)
    linears = {role: layer.packed() for role, layer in layers.items()} if helped else dict(start.linears)
    for role, linear in linears.items():
        block.weights[role] = torch.from_numpy(linear.dequantized())
    return replace(start, linears=linears)


def finish(source: Weights, table: Weights, calibration: Array, recipe: LanguageRecipe) -> Iterator[tuple[int, QuantizedBlock]]:
    """Distils the source's logits into a table. Options: "steps" (0: nothing is done), "tokens" of a step, "scale_rate", "norm_rate",
    "level_rate" (0: levels stay).

    Raises:
        DataError: fewer than two windows of calibration text.
    """
    steps = int(recipe.options.get("steps", STEPS))
    if steps == 0:
        return
    if len(calibration) < 2:
        raise DataError(f"Training wants two windows of calibration text or more; found {len(calibration)}.")
    yield from _Distillation(source, table, calibration, recipe).run(steps)


class _Distillation:
    """Teacher, student and what of the student is trained."""

    def __init__(self, source: Weights, table: Weights, calibration: Array, recipe: LanguageRecipe) -> None:
        from lowbit.llm.forward import Reference

        self.tokens, self.options, self.folded = calibration, recipe.options, recipe.smooth is not None
        self.teacher, self.student = Reference(source, keep=True), Reference(table, keep=True)
        self.stored = source.get("blocks.0.norm1.weight")
        moving = self.options.get("level_rate", 0.0) > 0
        self.layers: dict[tuple[int, str], TrainableLinear] = {}
        self.norms: dict[tuple[int, str], torch.Tensor] = {}
        for index in range(table.decoder.layers):
            for role in table.decoder.roles:
                linear = table.get(linear_name(index, role))
                if isinstance(linear, QuantizedLinear):
                    self.layers[index, role] = TrainableLinear(linear, self._real(index, role) if moving else None)
            for name, value in self.student.block(index).floats.items():
                if "norm" in name:
                    self.norms[index, name] = value.clone().requires_grad_(True)
        n, length = calibration.shape
        small = n * length * table.decoder.width * 4 <= CACHE_BYTES
        self.known: dict[int, torch.Tensor] | None = {} if small else None

    def _real(self, index: int, role: str) -> torch.Tensor:
        """What the levels stood for before they were rounded, unless something was folded into it: then what they stand for."""
        return (self.student if self.folded else self.teacher).block(index).weights[role]

    def run(self, steps: int) -> Iterator[tuple[int, QuantizedBlock]]:
        options = self.options
        groups = [
            {"params": [layer.steps for layer in self.layers.values()], "lr": options.get("scale_rate", SCALE_RATE)},
            {"params": list(self.norms.values()), "lr": options.get("norm_rate", NORM_RATE)},
        ]
        if options.get("level_rate", 0.0) > 0:
            groups.append({"params": [layer.levels for layer in self.layers.values()], "lr": options["level_rate"]})
        batch = max(1, int(options.get("tokens", TOKENS)) // self.tokens.shape[1])
        if not _train(groups, self.loss, len(self.tokens), batch, steps):
            return
        stored = self.stored.dtype.name  # type: ignore[union-attr]
        for index in range(self.student.decoder.layers):
            linears = {role: layer.packed() for (i, role), layer in self.layers.items() if i == index}
            yield index, QuantizedBlock(linears, {name: stored_array(v, stored) for (i, name), v in self.norms.items() if i == index})

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """KL(teacher | student) a token, on windows of the calibration text."""
        stored = self.stored.dtype.name  # type: ignore[union-attr]
        for (index, role), layer in self.layers.items():
            self.student.block(index).weights[role] = layer.weights()
        for (index, name), norm in self.norms.items():
            self.student.block(index).floats[name] = norm + (as_stored(norm.detach(), stored) - norm.detach())
        ids = self.tokens[rows.numpy()]
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher.head(self._taught(rows)), -1)
        scored = F.log_softmax(self.student.logits(ids), -1)
        return F.kl_div(scored, wanted, reduction="sum", log_target=True) / ids.size

    def _taught(self, rows: torch.Tensor) -> torch.Tensor:
        """The float model's last hidden states."""
        found = []
        for row in rows.tolist():
            if self.known is not None and row in self.known:
                found.append(self.known[row])
                continue
            hidden = self.teacher.embed(self.tokens[row : row + 1])
            for index in range(self.teacher.decoder.layers):
                hidden = self.teacher.block(index).run(hidden)
            found.append(hidden[0])
            if self.known is not None:
                self.known[row] = hidden[0]
        return torch.stack(found)


def _train(
    groups: list[dict[str, object]], loss: Callable[[torch.Tensor], torch.Tensor], windows: int, batch: int, steps: int, seed: int = 0
) -> bool:
    """Adam with a falling rate over shuffled windows; whether the loss on held-back windows fell. Where not, all was in vain."""
    held = torch.arange(windows)[HELD // 2 :: HELD] if windows > HELD else torch.arange(windows)[-1:]
    free = torch.tensor(sorted(set(range(windows)) - set(held.tolist())))
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 5) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    before = _judged(loss, held, batch)
    for rows in _shuffled(free, batch, steps, seed):
        optimizer.zero_grad(set_to_none=True)
        loss(rows).backward()
        optimizer.step()
        schedule.step()
    return _judged(loss, held, batch) < before


@torch.no_grad()
def _judged(loss: Callable[[torch.Tensor], torch.Tensor], held: torch.Tensor, batch: int) -> float:
    return sum(float(loss(rows)) * len(rows) for rows in held.split(batch)) / len(held)


def _shuffled(free: torch.Tensor, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches, every window once before any comes again."""
    random = np.random.default_rng(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < min(batch, len(free)):
            queue += random.permutation(len(free)).tolist()
        chosen, queue = queue[:batch], queue[batch:]
        yield free[torch.tensor(chosen)]
