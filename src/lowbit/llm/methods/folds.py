"""Seams of a block: where a factor per channel can be taken out of one side and put into the other without changing what it computes.

    a norm and the linear layers that read it        norm / s, columns * s
    the values and the attention's output            rows / s, columns * s: attention mixes tokens, not channels
    the up projection and down, where there is a gate     likewise: down(act(gate x) * up x) is linear in up

What a norm becomes is rounded to the type in which it is stored, and the factor is what that rounding made of it: the fold stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lowbit.llm.decoder import Decoder
from lowbit.llm.methods.base import Block
from lowbit.types import Array


@dataclass(frozen=True)
class Seam:
    """A place for factors.

    Attributes:
        source: "norm1", "norm2", or the role whose rows are divided.
        roles: Whose columns are multiplied.
        repeats: Consecutive blocks of the roles' columns, `block` wide each, that read the same channels (grouped key-value heads).
        block: Width of such a block; 0 where there are none.
    """

    source: str
    roles: tuple[str, ...]
    repeats: int = 1
    block: int = 0

    def spread(self, factors: torch.Tensor) -> torch.Tensor:
        """Factors of the source's channels -> of the roles' columns."""
        if self.repeats == 1:
            return factors
        return factors.view(-1, 1, self.block).expand(-1, self.repeats, self.block).reshape(-1)

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """Of the roles' columns -> the largest at each of the source's channels."""
        return values if self.repeats == 1 else values.view(-1, self.repeats, self.block).amax(1).reshape(-1)


def seams(decoder: Decoder) -> tuple[Seam, ...]:
    """Of a block, in the order in which it runs."""
    gates = tuple(role for role in ("mlp.gate", "mlp.up") if role in decoder.roles)
    first = ("attention.q", "attention.k", "attention.v", *(gates if decoder.parallel else ()))
    repeats = decoder.heads // decoder.kv_heads
    found = [Seam("norm1", first), Seam("attention.v", ("attention.o",), repeats, decoder.head_size if repeats > 1 else 0)]
    if not decoder.parallel:
        found.append(Seam("norm2", gates))
    if decoder.gated:
        found.append(Seam("mlp.up", ("mlp.down",)))
    return tuple(found)


def fold(block: Block, seam: Seam, factors: torch.Tensor, stored: str) -> torch.Tensor:
    """Divides the source by the factors [channels] and multiplies the columns; replaces tensors, changes none in place.

    Returns:
        The factors as they were really applied to the columns.
    """
    if seam.source in ("norm1", "norm2"):
        weight = block.floats[f"{seam.source}.weight"]
        folded = as_stored(weight / factors, stored)
        factors = torch.where(folded == 0, torch.ones_like(factors), weight / torch.where(folded == 0, torch.ones_like(folded), folded))
        block.floats[f"{seam.source}.weight"] = torch.where(folded == 0, weight, folded)
    else:
        block.weights[seam.source] = block.weights[seam.source] / factors[:, None]
    bias = f"{seam.source}.bias"
    if bias in block.floats:
        block.floats[bias] = as_stored(block.floats[bias] / factors, stored)
    columns = seam.spread(factors)
    for role in seam.roles:
        block.weights[role] = block.weights[role] * columns
    return factors


def as_stored(values: torch.Tensor, stored: str) -> torch.Tensor:
    """Rounded to the stored type, float32."""
    return values.to(getattr(torch, stored)).float()


def stored_array(values: torch.Tensor, stored: str) -> Array:
    """As numpy has the stored type."""
    array: Array = values.detach().float().cpu().numpy()
    if stored == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(stored)


def changed(block: Block, before: dict[str, torch.Tensor], stored: str) -> dict[str, Array]:
    """The block's floats that are not the tensors they were."""
    return {name: stored_array(value, stored) for name, value in block.floats.items() if value is not before[name]}


def with_gain(places: Iterable[Seam], quantized: set[str]) -> list[Seam]:
    """Seams of which a consumer is quantized: the others have nothing to gain."""
    return [seam for seam in places if quantized & set(seam.roles)]
