"""What the linear layers of a block are fed in calibration, as sums: memory does not grow with the text."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lowbit.llm.decoder import Decoder
from lowbit.llm.methods.base import Block

TOKENS = 4096
"""That run through a block at once."""


@dataclass
class Inputs:
    """Of linear layers that are fed the same.

    Attributes:
        gram: X^T X / count, float32 [K, K]; X is what the quantized model so far feeds them.
        peak: Largest |x| of each input, [K].
        mean: Mean |x| of each input, [K].
        cross: Y^T X / count with Y what the float model feeds them, [K, K]; None where that was not asked for.
        count: Tokens.
    """

    gram: torch.Tensor
    peak: torch.Tensor
    mean: torch.Tensor
    cross: torch.Tensor | None
    count: int

    @classmethod
    def empty(cls, columns: int, device: str, cross: bool) -> Inputs:
        square, row = torch.zeros(columns, columns, device=device), torch.zeros(columns, device=device)
        return cls(square, row, row.clone(), torch.zeros_like(square) if cross else None, 0)

    def add(self, reached: torch.Tensor, exact: torch.Tensor | None) -> None:
        """Takes in rows [n, K]; `exact`: what the float model has there."""
        share = len(reached) / (self.count + len(reached))
        reached = reached.float()
        _mean(self.gram, reached.T @ reached / len(reached), share)
        _mean(self.mean, reached.abs().mean(0), share)
        self.peak = torch.maximum(self.peak, reached.abs().amax(0))
        if self.cross is not None and exact is not None:
            _mean(self.cross, exact.float().T @ reached / len(reached), share)
        self.count += len(reached)


def _mean(running: torch.Tensor, new: torch.Tensor, share: float) -> None:
    running.lerp_(new, share)


def stages(decoder: Decoder) -> tuple[tuple[str, ...], ...]:
    """Linear layers that share an input, in the order in which they run."""
    attention, gates = ("attention.q", "attention.k", "attention.v"), tuple(r for r in ("mlp.gate", "mlp.up") if r in decoder.roles)
    return attention, ("attention.o",), gates, ("mlp.down",)


@torch.no_grad()
def captured(
    block: Block, hidden: torch.Tensor, roles: Sequence[str], float_block: Block | None = None, exact: torch.Tensor | None = None
) -> dict[str, Inputs]:
    """What these roles are fed when the block runs on hidden states [N, T, W].

    Args:
        block: As far as it is quantized.
        hidden: What the quantized model so far feeds it.
        roles: One of each stage is enough.
        float_block: The block as it was; with `exact`, `Inputs.cross` is there.
        exact: What the float model feeds it.
    """
    device = str(block.weights[roles[0]].device)
    both = float_block is not None and exact is not None
    found = {role: Inputs.empty(block.weights[role].shape[1], device, both) for role in roles}
    step = max(1, TOKENS // hidden.shape[1])
    for start in range(0, len(hidden), step):
        rows = _fed(block, hidden[start : start + step].to(device), roles)
        wanted = _fed(float_block, exact[start : start + step].to(device), roles) if float_block is not None and exact is not None else {}
        for role in roles:
            found[role].add(rows[role], wanted.get(role))
    return found


@torch.no_grad()
def peaks(block: Block, hidden: torch.Tensor, roles: Sequence[str]) -> dict[str, torch.Tensor]:
    """Largest |x| of each input of these roles, [K]: what `captured` tells too, without its matrix products."""
    device = str(block.weights[roles[0]].device)
    found: dict[str, torch.Tensor] = {}
    for part in hidden.split(max(1, TOKENS // hidden.shape[1])):
        for role, rows in _fed(block, part.to(device), roles).items():
            peak = rows.abs().amax(0)
            found[role] = torch.maximum(found[role], peak) if role in found else peak
    return found


class _Enough(Exception):
    """All that was asked for has been seen: the rest of the block need not run."""


def _fed(block: Block, hidden: torch.Tensor, roles: Sequence[str]) -> dict[str, torch.Tensor]:
    rows: dict[str, torch.Tensor] = {}

    def keep(role: str, inputs: torch.Tensor) -> None:
        if role in roles:
            rows[role] = inputs
            if len(rows) == len(roles):
                raise _Enough

    with contextlib.suppress(_Enough):
        block.run(hidden, keep)
    return rows
