"""What a decoder is made of, whatever its family calls the parts: one description, and one set of names for its tensors.

Every family is read into these names (lowbit.llm.families), and every writer writes from them:

    embed.weight [V, W]                      positions.weight [P, W]          (learned positions only)
    blocks.I.norm1.weight [W] (.bias)        blocks.I.norm2.weight [W] (.bias)   (no norm2 where `parallel`)
    blocks.I.attention.{q,k,v,o}.weight      q [heads * head, W], k and v [kv_heads * head, W], o [W, heads * head] (.bias)
    blocks.I.attention.{q_norm,k_norm}.weight [head]                          (only where `qk_norm`)
    blocks.I.mlp.{gate,up}.weight [inner, W]  blocks.I.mlp.down.weight [W, inner]  (.bias; no gate where not `gated`)
    norm.weight [W] (.bias)                  head.weight [V, W] (.bias)       (no head.weight where `tied`: it is embed.weight)

A fused tensor of a family (qkv, gate_up) is cut into its rows, and a transposed one turned: both exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lowbit.llm.linear import QuantizedLinear
from lowbit.types import Array

ROLES = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
"""The linear layers of a block, in the order in which they run; a block without a gate has no "mlp.gate"."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves rotated against each other as transformers does.

    Attributes:
        theta: The base of the frequencies.
        size: Leading elements of each head that are rotated; all of them in most families.
        scaling: transformers' `rope_parameters` with its `rope_type` ("linear", "llama3", "yarn", ...); None where it is "default".
    """

    theta: float
    size: int
    scaling: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Decoder:
    """The architecture of a causal language model.

    Attributes:
        family: transformers' `model_type`: "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt2".
        layers: Blocks.
        width: Of the hidden state.
        heads: Of queries.
        kv_heads: Of keys and values; each serves heads / kv_heads query heads.
        head_size: Elements of a head.
        inner: Width between the two halves of the MLP.
        vocabulary: Tokens that have a logit.
        positions: Longest context it was made for.
        norm: "rms" or "layer".
        epsilon: Of the norms.
        activation: Of the MLP: "silu", "gelu" (exact) or "gelu_tanh".
        gated: down(act(gate x) * up x), else down(act(up x)).
        rope: None where positions are learned.
        parallel: Attention and MLP read the same norm, and both are added (phi).
        tied: The head is the embedding.
        qk_norm: Queries and keys are normalised per head before they are rotated (qwen3).
        window: Each token sees this many before it, itself included; None where it sees all (sliding attention of mistral).
        bos: Token that starts a text; None where there is none.
        eos: Tokens that end one.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    positions: int
    norm: Literal["rms", "layer"]
    epsilon: float
    activation: Literal["silu", "gelu", "gelu_tanh"]
    gated: bool
    rope: Rope | None
    parallel: bool = False
    tied: bool = False
    qk_norm: bool = False
    window: int | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """The linear layers of each block."""
        return ROLES if self.gated else tuple(role for role in ROLES if role != "mlp.gate")

    def shape(self, role: str) -> tuple[int, int]:
        """Rows and columns [O, K] of a linear layer's weights.

        Raises:
            KeyError: not a role.
        """
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "attention.q": (queries, self.width),
            "attention.k": (keys, self.width),
            "attention.v": (keys, self.width),
            "attention.o": (self.width, queries),
            "mlp.gate": (self.inner, self.width),
            "mlp.up": (self.inner, self.width),
            "mlp.down": (self.width, self.inner),
        }[role]


@runtime_checkable
class Weights(Protocol):
    """A decoder's tensors, read one at a time: a Hugging Face folder (lowbit.llm.folder) or a quantized table (lowbit.llm.table).

    Attributes:
        decoder: What they are the tensors of.
        path: The folder with config.json and the tokenizer's files.
    """

    decoder: Decoder
    path: Path

    def names(self) -> tuple[str, ...]:
        """Of all tensors that there are, in the names above."""
        ...

    def get(self, name: str) -> Array | QuantizedLinear:
        """One tensor: floating point as stored (float16, float32 or ml_dtypes.bfloat16), or quantized.

        Raises:
            KeyError: there is none of that name.
        """
        ...


def linear_name(block: int, role: str) -> str:
    """The name of a linear layer's weights.

    >>> linear_name(3, "mlp.down")
    'blocks.3.mlp.down.weight'
    """
    return f"blocks.{block}.{role}.weight"
