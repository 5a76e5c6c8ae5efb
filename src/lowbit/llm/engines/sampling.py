"""How the next token is drawn from its logits: pure, and the same for every engine that leaves it to us."""

from __future__ import annotations

import numpy as np

from lowbit.llm.engines.base import Sampling
from lowbit.types import Array


def generator(sampling: Sampling) -> np.random.Generator:
    """The source of an answer's draws: the same tokens again with the same seed, whoever else is in the batch."""
    return np.random.default_rng(sampling.seed)


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> tuple[int, float]:
    """Draws one token: temperature first, then top-k, then top-p over what is left, the order of transformers' `generate`.

    Of equal logits the lower token counts as the likelier one.

    Args:
        logits: float32 [V].
        sampling: Temperature and cuts.
        rng: The answer's own (`generator`); not advanced at temperature 0.

    Returns:
        The token, and the natural logarithm of its probability before temperature and cuts.

    Raises:
        FloatingPointError: the highest logit is NaN or infinite: the model is broken.
    """
    highest = float(logits.max())
    if not np.isfinite(highest):
        raise FloatingPointError(f"The highest logit is {highest}.")
    token = int(logits.argmax()) if sampling.temperature <= 0 else _draw(logits, sampling, rng)
    total = np.exp(logits - np.float32(highest)).sum(dtype=np.float64)
    return token, float(logits[token]) - highest - float(np.log(total))


def _draw(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    tokens = _likeliest(logits, sampling.top_k)
    scaled = (logits[tokens].astype(np.float64) - float(logits.max())) / sampling.temperature
    probability = np.exp(scaled)
    probability /= probability.sum()
    if sampling.top_p < 1:
        nucleus = _nucleus(probability, sampling.top_p)
        tokens, probability = tokens[nucleus], probability[nucleus]
    cumulated = probability.cumsum()
    drawn = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
    return int(tokens[min(drawn, len(tokens) - 1)])


def _likeliest(logits: Array, count: int) -> Array:
    """The tokens with the `count` highest logits, ascending; all where that is 0."""
    if not 0 < count < len(logits):
        return np.arange(len(logits))
    edge = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > edge)
    at = np.flatnonzero(logits == edge)[: count - len(above)]
    return np.sort(np.concatenate([above, at]))


def _nucleus(probability: Array, mass: float) -> Array:
    """The places of the fewest likeliest that hold `mass` (Holtzman et al. 2020, arXiv 1904.09751): one at least."""
    # All below (1 - mass) / n hold less than 1 - mass together, so none of them is needed: most need not be sorted.
    worth = np.flatnonzero(probability >= (1 - mass) / len(probability))
    order = worth[np.argsort(-probability[worth], kind="stable")]
    return order[: int(np.searchsorted(probability[order].cumsum(), mass)) + 1]
