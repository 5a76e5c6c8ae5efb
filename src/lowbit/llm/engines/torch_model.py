"""The reference's blocks (lowbit.llm.forward) with a cache of keys and values: one sequence at a time, weights in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.forward import Block, Observer, normalise, rotation, to_tensor
from lowbit.types import Array

LONGEST_PIECE = 512
"""Tokens that are computed at once where the tuning leaves it open: bounds what attention and the MLP hold in between."""


class Cache:
    """Keys and values of one sequence.

    Attributes:
        length: Tokens in it.
    """

    def __init__(self, decoder: Decoder, context: int, dtype: torch.dtype) -> None:
        shape = (decoder.layers, 2, 1, decoder.kv_heads, context, decoder.head_size)
        self._states = torch.zeros(shape, dtype=dtype)
        self._decoder = decoder
        self.length = 0

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Adds a block's new keys and values [1, H, T, D] behind those that are there; what the queries make of all of them."""
        before, total = self.length, self.length + q.shape[2]
        keys, values = self._states[index]
        keys[:, :, before:total], values[:, :, before:total] = k, v
        return F.scaled_dot_product_attention(
            q, keys[:, :, :total], values[:, :, :total], attn_mask=self._mask(before, total), enable_gqa=q.shape[1] != k.shape[1]
        )

    def _mask(self, before: int, total: int) -> torch.Tensor | None:
        """[T, total], True where a token may look; None where it may look everywhere."""
        window = self._decoder.window or total
        if total - before == 1 and total <= window:
            return None
        distance = torch.arange(before, total)[:, None] - torch.arange(total)
        return (distance >= 0) & (distance < window)


@dataclass
class CachedBlock(Block):
    """A block that attends to a cache.

    Attributes:
        cache: Of the sequence at hand.
        turns: Cosines and sines [T, size / 2] of its new tokens; None where positions are learned.
    """

    cache: Cache | None = None
    turns: tuple[torch.Tensor, torch.Tensor] | None = None

    def _attention(self, hidden: torch.Tensor, observe: Observer | None) -> torch.Tensor:
        decoder = self.decoder
        assert self.cache is not None
        q, k, v = (
            self._linear(f"attention.{each}", hidden, observe).view(1, -1, heads, decoder.head_size).transpose(1, 2)
            for each, heads in (("q", decoder.heads), ("k", decoder.kv_heads), ("v", decoder.kv_heads))
        )
        if decoder.qk_norm:
            q = normalise(decoder, q, self.floats["attention.q_norm.weight"], None)
            k = normalise(decoder, k, self.floats["attention.k_norm.weight"], None)
        if self.turns is not None:
            q, k = _turned(q, *self.turns), _turned(k, *self.turns)
        mixed = self.cache.attend(self.index, q, k, v)
        return self._linear("attention.o", mixed.transpose(1, 2).reshape(1, hidden.shape[1], -1), observe)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The leading elements of each head [1, H, T, D], the first half against the second."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


class Model:
    """A decoder, loaded once, for any number of sequences.

    Attributes:
        decoder: The architecture.
        dtype: Of arithmetic, weights and cache.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self.decoder, self.dtype = weights.decoder, dtype
        self._blocks = [CachedBlock(**vars(Block.read(weights, index, dtype))) for index in range(self.decoder.layers)]
        outside = [name for name in weights.names() if not name.startswith("blocks.")]
        self._rest = {name: to_tensor(weights.get(name), dtype) for name in outside}

    @torch.inference_mode()
    def extend(self, tokens: Array, cache: Cache, piece: int = 0, *, every: bool = False) -> Array:
        """Adds tokens to a sequence.

        Args:
            tokens: [T].
            cache: The sequence.
            piece: Tokens that are computed at once; 0: LONGEST_PIECE.
            every: Whether the logits of all of them are wanted.

        Returns:
            float32 [T, V] where every, else [1, V]: of what follows the last.
        """
        piece = piece or LONGEST_PIECE
        found = [self._piece(tokens[at : at + piece], cache, every) for at in range(0, len(tokens), piece)]
        return np.concatenate(found if every else found[-1:])

    def _piece(self, tokens: Array, cache: Cache, every: bool) -> Array:
        before, total = cache.length, cache.length + len(tokens)
        hidden = F.embedding(torch.from_numpy(np.asarray(tokens, np.int64))[None], self._rest["embed.weight"])
        turns = None
        if self.decoder.rope is None:
            hidden = hidden + self._rest["positions.weight"][before:total]
        else:
            cos, sin = rotation(self.decoder, total, hidden)
            turns = cos[before:], sin[before:]
        for block in self._blocks:
            block.cache, block.turns = cache, turns
            hidden = block.run(hidden)
        cache.length = total
        last = normalise(self.decoder, hidden[0] if every else hidden[0, -1:], self._rest["norm.weight"], self._rest.get("norm.bias"))
        head = self._rest["embed.weight" if self.decoder.tied else "head.weight"]
        return np.asarray(F.linear(last, head, self._rest.get("head.bias")).float().numpy())
