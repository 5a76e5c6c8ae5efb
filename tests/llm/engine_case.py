"""What engines are held to: the reference's logits, the likeliest answer, and all that a batch has to tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowbit.llm.decoder import Weights
from lowbit.llm.engines.base import ContinuousBatch, Emitted, LanguageSession
from lowbit.types import Array


def reference(weights: Weights, tokens: Sequence[int] | Array) -> Array:
    """Logits [T, V] of the exact arithmetic on the same weights."""
    import torch

    from lowbit.llm.forward import Reference

    with torch.inference_mode():
        found: Array = Reference(weights).logits(np.asarray(tokens)).numpy()
    return found


def greedy(session: LanguageSession, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens, so many."""
    found: list[int] = []
    logits = session.start(prompt)
    while True:
        found.append(int(logits.argmax()))
        if len(found) == count:
            return found
        logits = session.step(found[-1])


def run(batch: ContinuousBatch, most: int = 2000) -> dict[int, list[Emitted]]:
    """Steps until all that was asked for has ended."""
    found: dict[int, list[Emitted]] = {}
    for _ in range(most):
        emitted = batch.step()
        for each in emitted:
            found.setdefault(each.request, []).append(each)
        if not emitted and found and all(answer[-1].finished for answer in found.values()):
            return found
    raise AssertionError(f"not finished after {most} steps: {found}")
