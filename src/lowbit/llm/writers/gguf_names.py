"""What llama.cpp calls a decoder's tensors and numbers: the layout of a GGUF file, as data.

llama.cpp's "llama" turns neighbouring elements of a head (x0 with x1), where transformers turns halves (x0 with x[n/2]): rows of
queries and keys are put in that order, which changes no value. Its other architectures turn halves as transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder
from lowbit.llm.rope import frequencies
from lowbit.types import Array

ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi": "phi2",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""Family -> llama.cpp's name for it."""

LINEARS: Mapping[str, tuple[str, ...]] = {
    "attn_q": ("attention.q",),
    "attn_k": ("attention.k",),
    "attn_v": ("attention.v",),
    "attn_output": ("attention.o",),
    "ffn_gate": ("mlp.gate",),
    "ffn_up": ("mlp.up",),
    "ffn_down": ("mlp.down",),
}

FUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gpt2": {"attn_qkv": ("attention.q", "attention.k", "attention.v")},
    "phi2": {"attn_qkv": ("attention.q", "attention.k", "attention.v")},
    "phi3": {"attn_qkv": ("attention.q", "attention.k", "attention.v"), "ffn_up": ("mlp.gate", "mlp.up")},
}
"""Layers that an architecture wants in one tensor, one below the other."""

NORMS: Mapping[str, str] = {"attn_norm": "norm1", "ffn_norm": "norm2", "attn_q_norm": "attention.q_norm", "attn_k_norm": "attention.k_norm"}

SCALINGS: Mapping[str, tuple[str, ...]] = {
    "llama": ("linear", "llama3", "yarn", "longrope"),
    "qwen2": ("linear", "yarn"),
    "qwen3": ("linear", "yarn"),
    "phi2": ("linear", "yarn"),
    "phi3": ("linear", "yarn", "longrope"),
    "gpt2": (),
}
"""Ways of stretching rotary positions that llama.cpp computes for an architecture."""


@dataclass(frozen=True)
class Target:
    """One tensor of the file.

    Attributes:
        name: In the file.
        sources: Our names of what it is made of, one below the other.
        heads: How many heads' rows are put in the order of neighbours; None: rows stay.
        vector: Norms and biases, which llama.cpp wants in 32 bit.
        zeros: Its length, where the architecture needs a tensor that the model does not have: it is filled with zeros.
    """

    name: str
    sources: tuple[str, ...]
    heads: int | None = None
    vector: bool = False
    zeros: int = 0


def layout(decoder: Decoder, names: Collection[str]) -> tuple[Target, ...]:
    """The tensors of a decoder's file, in their order there.

    Args:
        decoder: Whose.
        names: Our names of the tensors that it has.

    Raises:
        ModelError: a tensor has no place in llama.cpp's architecture, or one that it needs is missing.
    """
    architecture = ARCHITECTURES[decoder.family]
    targets = _outer(decoder, frozenset(names))
    for block in range(decoder.layers):
        targets += _block(decoder, architecture, block, frozenset(names))
    placed = {source for target in targets for source in target.sources}
    if lost := sorted(set(names) - placed):
        raise ModelError(f"llama.cpp's architecture '{architecture}' has no place for {lost[0]} (and {len(lost) - 1} more).")
    if lacking := sorted(placed - set(names)):
        raise ModelError(f"llama.cpp's architecture '{architecture}' needs {lacking[0]}, which this model does not have.")
    return tuple(targets)


def _outer(decoder: Decoder, names: frozenset[str]) -> list[Target]:
    targets = [Target("token_embd.weight", ("embed.weight",))]
    if "positions.weight" in names:
        targets.append(Target("position_embd.weight", ("positions.weight",)))
    targets.append(Target("output_norm.weight", ("norm.weight",), vector=True))
    if "norm.bias" in names:
        targets.append(Target("output_norm.bias", ("norm.bias",), vector=True))
    phi = decoder.family == "phi"
    if "head.weight" in names:
        targets.append(Target("output.weight", ("head.weight",)))
    elif phi:  # phi2 alone does not take the embedding where there is no head
        targets.append(Target("output.weight", ("embed.weight",)))
    if "head.bias" in names:
        targets.append(Target("output.bias", ("head.bias",), vector=True))
    elif phi:
        targets.append(Target("output.bias", (), vector=True, zeros=decoder.vocabulary))
    return targets


def _block(decoder: Decoder, architecture: str, block: int, names: frozenset[str]) -> list[Target]:
    def ours(role: str, kind: str) -> str:
        return f"blocks.{block}.{role}.{kind}"

    targets = []
    for theirs, norm in NORMS.items():
        for kind in ("weight", "bias"):
            if ours(norm, kind) in names:
                targets.append(Target(f"blk.{block}.{theirs}.{kind}", (ours(norm, kind),), vector=True))
    fused = FUSED.get(architecture, {})
    taken = {role for roles in fused.values() for role in roles}
    single = {theirs: roles for theirs, roles in LINEARS.items() if not taken & set(roles)}
    for theirs, roles in {**fused, **single}.items():
        if theirs == "ffn_gate" and not decoder.gated:
            continue
        heads = {"attn_q": decoder.heads, "attn_k": decoder.kv_heads}.get(theirs) if architecture == "llama" else None
        for kind in ("weight", "bias"):
            sources = tuple(ours(role, kind) for role in roles)
            if kind == "weight" or any(source in names for source in sources):
                targets.append(Target(f"blk.{block}.{theirs}.{kind}", sources, heads, vector=kind == "bias"))
    return targets


def neighbours(rows: int, heads: int) -> Array:
    """The order in which rows of queries or keys stand where neighbours are turned: int [rows], each the row's place before.

    >>> neighbours(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def context(decoder: Decoder) -> int:
    """Longest context that the file allows: with a sliding window, what the window holds, because llama.cpp lets each token see all."""
    return min(decoder.positions, decoder.window or decoder.positions)


def refuse(decoder: Decoder) -> None:
    """Says what llama.cpp cannot compute of a decoder, if there is something.

    Raises:
        ModelError: its family, activation, norm or rotary positions are not llama.cpp's.
    """
    architecture = ARCHITECTURES.get(decoder.family)
    if architecture is None:
        raise ModelError(f"The family '{decoder.family}' cannot be written for llama.cpp here. Can be: {', '.join(ARCHITECTURES)}.")
    wanted = "gelu_tanh" if architecture in ("phi2", "gpt2") else "silu"
    if decoder.activation != wanted:
        raise ModelError(
            f"llama.cpp's architecture '{architecture}' computes the activation '{wanted}'; this model has '{decoder.activation}'."
        )
    if architecture in ("phi2", "phi3", "gpt2") and decoder.heads * decoder.head_size != decoder.width:
        raise ModelError(
            f"llama.cpp's architecture '{architecture}' wants heads as wide together as the model ({decoder.width}); "
            f"found {decoder.heads} of {decoder.head_size}."
        )
    if decoder.rope is None:
        return
    if architecture == "llama" and decoder.rope.size != decoder.head_size:
        raise ModelError(
            f"llama.cpp's architecture 'llama' turns whole heads of {decoder.head_size}; this model turns {decoder.rope.size} of each."
        )
    kind = _kind(decoder)
    if kind is not None and kind not in SCALINGS[architecture]:
        allowed = ", ".join(SCALINGS[architecture])
        raise ModelError(f"llama.cpp's architecture '{architecture}' has no rotary positions of type '{kind}'. It has: {allowed}.")


def _kind(decoder: Decoder) -> str | None:
    scaling = decoder.rope.scaling if decoder.rope else None
    kind = (scaling or {}).get("rope_type")
    return None if kind in (None, "default") else str(kind)


def numbers(decoder: Decoder) -> dict[str, int | float | str]:
    """What llama.cpp must know of the architecture: key without the architecture's name -> value; whole numbers are unsigned there."""
    found: dict[str, int | float | str] = {
        "context_length": context(decoder),
        "embedding_length": decoder.width,
        "block_count": decoder.layers,
        "feed_forward_length": decoder.inner,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
        "attention.key_length": decoder.head_size,
        "attention.value_length": decoder.head_size,
        f"attention.layer_norm{'_rms' if decoder.norm == 'rms' else ''}_epsilon": decoder.epsilon,
        "vocab_size": decoder.vocabulary,
    }
    if decoder.rope is not None:
        found |= {"rope.dimension_count": decoder.rope.size, "rope.freq_base": decoder.rope.theta}
    return found | _scaling(decoder)


def _scaling(decoder: Decoder) -> dict[str, int | float | str]:
    kind = _kind(decoder)
    if kind is None or kind == "llama3" or decoder.rope is None or decoder.rope.scaling is None:
        return {}  # llama3: all of it is in the tensor of `rope_factors`
    scaling = decoder.rope.scaling
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    original = int(scaling["original_max_position_embeddings"])
    _, attention = frequencies(decoder.rope, decoder.positions, original)
    found: dict[str, int | float | str] = {"rope.scaling.type": kind, "rope.scaling.original_context_length": original}
    if kind == "longrope":
        return found | {"rope.scaling.attn_factor": attention}
    factor = float(scaling.get("factor") or decoder.positions / original)
    own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0  # llama.cpp multiplies by this itself; told is what is left of ours
    return found | {
        "rope.scaling.factor": factor,
        "rope.scaling.attn_factor": attention / own,
        "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow") or 1),
    }


def rope_factors(decoder: Decoder) -> dict[str, Array]:
    """By what each frequency is divided, where that differs from one to the next: tensor of the file -> float32 [size / 2].

    llama.cpp chooses between longrope's two sets by the size of the context that is asked for, transformers by the text's length.
    """
    kind = _kind(decoder)
    if decoder.rope is None or decoder.rope.scaling is None:
        return {}
    if kind == "longrope":
        return {f"rope_factors_{each}.weight": np.asarray(decoder.rope.scaling[f"{each}_factor"], np.float32) for each in ("long", "short")}
    if kind == "llama3":
        plain, _ = frequencies(replace(decoder.rope, scaling=None), decoder.positions, decoder.positions)
        scaled, _ = frequencies(decoder.rope, decoder.positions, decoder.positions)
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    return {}
