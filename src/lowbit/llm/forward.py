"""A decoder in torch, block by block, from canonical tensors: the reference that methods calibrate with and artifacts are compared to.

The arithmetic is transformers' (float32 by default): test_forward compares every family with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lowbit.errors import ModelError, RunError
from lowbit.llm.decoder import Decoder, Weights, linear_name
from lowbit.llm.linear import QuantizedLinear
from lowbit.llm.rope import frequencies
from lowbit.types import Array

Observer = Callable[[str, torch.Tensor], None]
KEEP_BYTES = 4 << 30
"""Blocks of a model up to this size stay in memory from one call to the next."""


def to_tensor(array: Array | QuantizedLinear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A copy in torch; bfloat16 goes through its bits, which numpy has no arithmetic for."""
    if isinstance(array, QuantizedLinear):
        return torch.from_numpy(array.dequantized()).to(dtype)
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(array.copy()).to(dtype)


def rounded_tokens(inputs: torch.Tensor, exact: torch.Tensor | None = None) -> torch.Tensor:
    """Activations as 8 bits hold them: symmetric, a scale a token, gradients as if nothing had been rounded.

    Args:
        inputs: [..., K].
        exact: Indices of columns that stay as they are and do not count for the scale (LLM.int8()'s outliers).

    Returns:
        The rounded inputs, same shape.
    """
    if exact is not None and len(exact):
        return rounded_tokens(inputs.index_fill(-1, exact, 0.0)).index_copy(-1, exact, inputs.index_select(-1, exact))
    fixed = inputs.detach()
    scale = fixed.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return inputs + (torch.round(fixed / scale) * scale - fixed)


@dataclass
class Block:
    """One block that runs. All in it can be replaced; gradients pass through.

    Attributes:
        index: Of the block.
        decoder: What it belongs to.
        weights: Role -> [O, K].
        floats: The rest by its name without "blocks.I.": "norm1.weight", "attention.q.bias", ...
        activations: "int8-token" rounds what linear layers are fed.
        exact: Role -> columns that are not rounded then.
    """

    index: int
    decoder: Decoder
    weights: dict[str, torch.Tensor]
    floats: dict[str, torch.Tensor]
    activations: str = "float"
    exact: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, weights: Weights, index: int, dtype: torch.dtype = torch.float32) -> Block:
        """A block of a model, quantized weights as what they stand for."""
        prefix = f"blocks.{index}."
        linear, floats, exact = {}, {}, {}
        for name in block_names(weights, index):
            stored, short = weights.get(name), name.removeprefix(prefix)
            role = short.removesuffix(".weight")
            if role in weights.decoder.roles:
                linear[role] = to_tensor(stored, dtype)
                if isinstance(stored, QuantizedLinear) and stored.columns is not None:
                    exact[role] = torch.from_numpy(stored.columns.astype(np.int64))
            else:
                floats[short] = to_tensor(stored, dtype)
        return cls(index, weights.decoder, linear, floats, activations_of(weights), exact)

    def run(self, hidden: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """The block's output.

        Args:
            hidden: [N, T, W].
            observe: Is called with each role and what that layer is fed [N * T, K], in the order of running.

        Returns:
            Hidden states, same shape.
        """
        first = self.normalised("norm1", hidden)
        attended = self._attention(first, observe)
        if self.decoder.parallel:
            return hidden + attended + self._mlp(first, observe)
        hidden = hidden + attended
        return hidden + self._mlp(self.normalised("norm2", hidden), observe)

    def normalised(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """By one of the block's norms."""
        return normalise(self.decoder, hidden, self.floats[f"{name}.weight"], self.floats.get(f"{name}.bias"))

    def _linear(self, role: str, inputs: torch.Tensor, observe: Observer | None) -> torch.Tensor:
        if observe is not None:
            observe(role, inputs.reshape(-1, inputs.shape[-1]))
        if self.activations == "int8-token":
            inputs = rounded_tokens(inputs, self.exact.get(role))
        return F.linear(inputs, self.weights[role], self.floats.get(f"{role}.bias"))

    def _attention(self, hidden: torch.Tensor, observe: Observer | None) -> torch.Tensor:
        decoder = self.decoder
        n, length, _ = hidden.shape
        q, k, v = (
            self._linear(f"attention.{each}", hidden, observe).view(n, length, heads, decoder.head_size).transpose(1, 2)
            for each, heads in (("q", decoder.heads), ("k", decoder.kv_heads), ("v", decoder.kv_heads))
        )
        if decoder.qk_norm:
            q = _rms(q, self.floats["attention.q_norm.weight"], decoder.epsilon)
            k = _rms(k, self.floats["attention.k_norm.weight"], decoder.epsilon)
        if decoder.rope is not None:
            cos, sin = rotation(decoder, length, hidden)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        repeats = decoder.heads // decoder.kv_heads
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        mask = _window_mask(decoder, length, hidden.device)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self._linear("attention.o", mixed.transpose(1, 2).reshape(n, length, -1), observe)

    def _mlp(self, hidden: torch.Tensor, observe: Observer | None) -> torch.Tensor:
        gate = self._linear("mlp.gate", hidden, observe) if self.decoder.gated else None
        up = self._linear("mlp.up", hidden, observe)
        inner = ACTIVATIONS[self.decoder.activation](up) if gate is None else ACTIVATIONS[self.decoder.activation](gate) * up
        return self._linear("mlp.down", inner, observe)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Reference:
    """A decoder that scores texts.

    Args:
        weights: A folder or a quantized table; a table's activations are rounded where its recipe says so.
        dtype: Of the arithmetic.
        keep: Blocks stay in memory between calls; None: where they are small.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype = torch.float32, keep: bool | None = None) -> None:
        self.weights, self.decoder, self.dtype = weights, weights.decoder, dtype
        self._keep = blocks_bytes(self.decoder, dtype) <= KEEP_BYTES if keep is None else keep
        self._blocks: dict[int, Block] = {}
        self._rest: dict[str, torch.Tensor] = {}
        self._embedding: Array | QuantizedLinear | None = None

    def block(self, index: int) -> Block:
        """One block; the same object each time where blocks are kept."""
        if index in self._blocks:
            return self._blocks[index]
        block = Block.read(self.weights, index, self.dtype)
        if self._keep:
            self._blocks[index] = block
        return block

    def embed(self, tokens: Any) -> torch.Tensor:
        """Hidden states [N, T, W] that the first block is fed, from tokens [N, T].

        Raises:
            RunError: a token that is not in the vocabulary, or more of them than there are learned positions.
        """
        ids = np.asarray(tokens)
        _check_tokens(self.decoder, ids)
        if self._embedding is None:  # as stored: a view of the file, or levels
            self._embedding = self.weights.get("embed.weight")
        hidden = to_tensor(_rows(self._embedding, ids.reshape(-1)), self.dtype).view(*ids.shape, self.decoder.width)
        if self.decoder.rope is None:
            hidden = hidden + self._tensor("positions.weight")[: ids.shape[-1]]
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of the last block's output [..., W]."""
        hidden = normalise(self.decoder, hidden, self._tensor("norm.weight"), self._optional("norm.bias"))
        return F.linear(hidden, self._tensor("embed.weight" if self.decoder.tied else "head.weight"), self._optional("head.bias"))

    def logits(self, tokens: Any) -> torch.Tensor:
        """Scores texts.

        Args:
            tokens: [T], or [N, T] of the same length.

        Returns:
            Logits [T, V] or [N, T, V]: row t is about what follows token t.

        Raises:
            RunError: as `embed`.
        """
        ids = np.asarray(tokens)
        hidden = self.embed(np.atleast_2d(ids))
        for index in range(self.decoder.layers):
            hidden = self.block(index).run(hidden)
        scores = self.head(hidden)
        return scores if ids.ndim == 2 else scores[0]

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._rest:
            self._rest[name] = to_tensor(self.weights.get(name), self.dtype)
        return self._rest[name]

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._tensor(name) if name in self.weights.names() else None


def blocks_bytes(decoder: Decoder, dtype: torch.dtype) -> int:
    """What the linear layers of all blocks take when they are computed with in a precision."""
    return decoder.layers * sum(rows * columns for rows, columns in map(decoder.shape, decoder.roles)) * dtype.itemsize


def weights_bytes(decoder: Decoder, dtype: torch.dtype) -> int:
    """What a model takes when it is computed with in a precision: blocks, embedding and head; norms, biases and positions are small."""
    tables = 1 if decoder.tied else 2
    return blocks_bytes(decoder, dtype) + tables * decoder.vocabulary * decoder.width * dtype.itemsize


def activations_of(weights: Weights) -> str:
    """ "int8-token" where a table's recipe rounds activations, else "float"."""
    return str(getattr(getattr(weights, "recipe", None), "activations", "float"))


def block_names(weights: Weights, index: int) -> tuple[str, ...]:
    """The tensors of one block."""
    prefix = f"blocks.{index}."
    found = tuple(name for name in weights.names() if name.startswith(prefix))
    if linear_name(index, "attention.q") not in found:
        raise ModelError(f"There is no block {index}; the model has {weights.decoder.layers}, counted from 0.")
    return found


def normalise(decoder: Decoder, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Layer norm, or root mean square norm computed in float32 as transformers does."""
    if decoder.norm == "rms":
        return _rms(hidden, weight, decoder.epsilon)
    return F.layer_norm(hidden, (hidden.shape[-1],), weight, bias, decoder.epsilon)


def _rms(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)


def rotation(decoder: Decoder, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, size / 2] of positions 0..length - 1."""
    assert decoder.rope is not None
    speed, factor = frequencies(decoder.rope, decoder.positions, length)
    # float32 as in transformers: at position 100,000 its rounding is part of what the model was trained with.
    angles = torch.arange(length, dtype=torch.float32)[:, None] * torch.from_numpy(speed.astype(np.float32))
    return (angles.cos() * factor).to(like), (angles.sin() * factor).to(like)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the leading elements of each head [N, H, T, D]: the first half against the second."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _window_mask(decoder: Decoder, length: int, device: torch.device) -> torch.Tensor | None:
    """[T, T], True where a token may look; None where that is simply what came before."""
    if decoder.window is None or length <= decoder.window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < decoder.window)


def _rows(table: Array | QuantizedLinear, index: Array) -> Array:
    if not isinstance(table, QuantizedLinear):
        return table[index]
    zero = None if table.zero is None else table.zero[index]
    kept = None if table.kept is None else table.kept[index]
    return QuantizedLinear(table.levels[index], table.scale[index], zero, table.grid, table.columns, kept).dequantized()


def _check_tokens(decoder: Decoder, ids: Array) -> None:
    if ids.size == 0 or ids.ndim not in (1, 2):
        raise RunError(f"Tokens [T] or [N, T] are needed; found the shape {list(ids.shape)}.")
    if ids.min() < 0 or ids.max() >= decoder.vocabulary:
        raise RunError(f"Token {ids.max() if ids.min() >= 0 else ids.min()} is not in the vocabulary of {decoder.vocabulary:,}.")
    if decoder.rope is None and ids.shape[-1] > decoder.positions:
        raise RunError(f"{ids.shape[-1]:,} tokens are more than the model's {decoder.positions:,} positions.")
