"""The reference's blocks (lowbit.llm.forward) with a cache of keys and values: one sequence at a time.

Weights are in memory, or each block is read anew whenever a text comes to it: the same numbers, for a model larger than memory.
"""

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
        length: Tokens in it, as far as the block at hand is concerned.
    """

    def __init__(self, decoder: Decoder, context: int, dtype: torch.dtype, *, passing: bool = False) -> None:
        """Of nothing yet.

        Args:
            decoder: Whose.
            context: Tokens that it holds.
            dtype: Of keys and values.
            passing: Only those of the block at hand are kept: enough for a text that is scored once, and goes on nowhere.
        """
        shape = (1 if passing else decoder.layers, 2, 1, decoder.kv_heads, context, decoder.head_size)
        self._states = torch.zeros(shape, dtype=dtype)
        self._decoder = decoder
        self.length = 0

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Adds a block's new keys and values [1, H, T, D] behind those that are there; what the queries make of all of them."""
        before, total = self.length, self.length + q.shape[2]
        keys, values = self._states[index % len(self._states)]
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


Turns = tuple[torch.Tensor, torch.Tensor] | None


class Model:
    """A decoder for any number of sequences.

    Attributes:
        decoder: The architecture.
        dtype: Of arithmetic, weights and cache.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype, *, keep: bool = True) -> None:
        """Reads embedding, head and last norm.

        Args:
            weights: A folder or a table.
            dtype: Of the arithmetic.
            keep: Reads all blocks, too, and keeps them; else one is in memory at a time, and read again for every text.
        """
        self.decoder, self.dtype = weights.decoder, dtype
        self._weights, self._blocks = weights, tuple[CachedBlock, ...]()
        outside = [name for name in weights.names() if not name.startswith("blocks.")]
        self._rest = {name: to_tensor(weights.get(name), dtype) for name in outside}
        if keep:
            self.keep()

    @property
    def kept(self) -> bool:
        """Whether all blocks are in memory."""
        return bool(self._blocks)

    def keep(self) -> None:
        """Has all blocks in memory from now on."""
        if not self.kept:
            self._blocks = tuple(self._read(index) for index in range(self.decoder.layers))

    def _read(self, index: int) -> CachedBlock:
        return CachedBlock(**vars(Block.read(self._weights, index, self.dtype)))

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
        piece, before = piece or LONGEST_PIECE, cache.length
        begins = [before + at for at in range(0, len(tokens), piece)]
        ends = [*begins[1:], before + len(tokens)]
        hidden = [self._embed(tokens[begin - before : end - before], begin, end) for begin, end in zip(begins, ends, strict=True)]
        turns = [self._turns(begin, end, hidden[0]) for begin, end in zip(begins, ends, strict=True)]
        for index in range(self.decoder.layers):  # a block for all pieces: one that is not kept is read once
            block = self._blocks[index] if self._blocks else self._read(index)
            block.cache = cache
            for number, begin in enumerate(begins):
                cache.length, block.turns = begin, turns[number]
                hidden[number] = block.run(hidden[number])
            block.cache = block.turns = None
            del block  # before the next one is read
        cache.length = ends[-1]
        return np.concatenate([self._head(each[0]) for each in hidden]) if every else self._head(hidden[-1][0, -1:])

    def _embed(self, tokens: Array, begin: int, end: int) -> torch.Tensor:
        """Hidden states [1, T, W] of tokens at positions begin..end - 1."""
        hidden = F.embedding(torch.from_numpy(np.asarray(tokens, np.int64))[None], self._rest["embed.weight"])
        return hidden if self.decoder.rope is not None else hidden + self._rest["positions.weight"][begin:end]

    def _turns(self, begin: int, end: int, like: torch.Tensor) -> Turns:
        """Cosines and sines of positions begin..end - 1; None where positions are learned."""
        if self.decoder.rope is None:
            return None
        cos, sin = rotation(self.decoder, end, like)
        return cos[begin:], sin[begin:]

    def _head(self, hidden: torch.Tensor) -> Array:
        """Logits, float32 [T, V], of the last block's output [T, W]."""
        last = normalise(self.decoder, hidden, self._rest["norm.weight"], self._rest.get("norm.bias"))
        head = self._rest["embed.weight" if self.decoder.tied else "head.weight"]
        return np.asarray(F.linear(last, head, self._rest.get("head.bias")).float().numpy())
