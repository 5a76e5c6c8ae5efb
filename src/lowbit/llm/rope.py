"""The frequencies of rotary positions, with every scaling that longer contexts are made by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.llm.decoder import Rope
from lowbit.types import Array


def frequencies(rope: Rope, positions: int, length: int) -> tuple[Array, float]:
    """How fast each pair of elements turns, and what cosines and sines are multiplied by.

    Args:
        rope: Base, size, scaling.
        positions: Longest context the model was made for.
        length: Of the sequence: longrope has other factors beyond the length it was first trained with.

    Returns:
        Radians per position float64 [size / 2], and the factor of cosines and sines.

    Raises:
        ModelError: a kind of scaling that is not known.
    """
    plain = rope.theta ** (-np.arange(0, rope.size, 2, dtype=np.float64) / rope.size)
    if rope.scaling is None:
        return plain, 1.0
    kind = str(rope.scaling.get("rope_type", "default"))
    if kind not in SCALINGS:
        raise ModelError(f"Rotary positions are scaled by '{kind}'; known: default, {', '.join(SCALINGS)}.")
    return SCALINGS[kind](_Asked(rope, rope.scaling, plain, positions, length))


@dataclass(frozen=True)
class _Asked:
    rope: Rope
    scaling: Mapping[str, Any]
    plain: Array
    positions: int
    length: int

    def number(self, key: str) -> float:
        return float(self.scaling[key])


def _linear(asked: _Asked) -> tuple[Array, float]:
    """Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595)."""
    return asked.plain / asked.number("factor"), 1.0


def _llama3(asked: _Asked) -> tuple[Array, float]:
    """Slow frequencies divided, fast ones kept, those between blended (Llama 3.1: Dubey et al. 2024, arXiv 2407.21783)."""
    plain, factor = asked.plain, asked.number("factor")
    low, high = asked.number("low_freq_factor"), asked.number("high_freq_factor")
    turns = asked.number("original_max_position_embeddings") * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - share) * plain / factor + share * plain, 1.0


def _yarn(asked: _Asked) -> tuple[Array, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): blended by how often a pair turns within the original context; logits made sharper."""
    rope, scaling, original = asked.rope, asked.scaling, asked.number("original_max_position_embeddings")
    factor = float(scaling.get("factor") or asked.positions / original)
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def dimension(turns: float) -> float:
        return rope.size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    ramp = np.clip((np.arange(rope.size // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return asked.plain / factor * ramp + asked.plain * (1 - ramp), _yarn_attention(scaling, factor)


def _yarn_attention(scaling: Mapping[str, Any], factor: float) -> float:
    def sharper(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return sharper(float(scaling["mscale"])) / sharper(float(scaling["mscale_all_dim"]))
    return sharper(1.0)


def _longrope(asked: _Asked) -> tuple[Array, float]:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): a searched factor a pair, one set for short and one for long sequences."""
    plain, scaling, original = asked.plain, asked.scaling, asked.number("original_max_position_embeddings")
    factors = np.asarray(scaling["long_factor" if asked.length > original else "short_factor"], np.float64)
    if len(factors) != len(plain):
        raise ModelError(
            f"Rotary positions have {len(plain)} pairs of elements, and their scaling {len(factors)} factors; they must be as many."
        )
    factor = asked.positions / original
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return plain / factors, float(attention)


Scaling = Callable[[_Asked], tuple[Array, float]]

SCALINGS: Mapping[str, Scaling] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
}
"""Keys that a kind of scaling must have."""
