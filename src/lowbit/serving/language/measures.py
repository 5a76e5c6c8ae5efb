"""Answers as the rest of the server counts them: each a row with three numbers for its inputs, and one of three classes for its output.

So what watches, judges and rolls out classifiers does the same for language models:

    inputs    prompt_tokens, answer_tokens, surprise: the mean of -log p of the answer's tokens, whose exponential is its perplexity
    class     0 ended by itself, 1 cut at its length, 2 began like a refusal
    its confidence: exp of the mean log p of the answer's tokens, 0-1: 1 over its perplexity

A confidence is 0.5 where every token was as uncertain as a coin. It depends on how the answer was drawn: a client's temperature moves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lowbit.serving.protocol.requests import InferRequest
from lowbit.types import Array, TensorInfo

OUTCOME = "outcome"
ENDED, CUT, REFUSAL = 0, 1, 2
"""Classes."""
MEASURES = tuple(TensorInfo(name, (None,), "float32") for name in ("prompt_tokens", "answer_tokens", "surprise"))

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Spoken:
    """One answer, once it has ended.

    Attributes:
        prompt_tokens: Of its prompt.
        tokens: Its own.
        finish: Why it ended.
        logprob: Mean natural logarithm of its tokens' probabilities; None where the engine does not tell, or there were none.
        refused: Whether it began like a refusal.
        first_s: From the request to its first token; None where there was none.
        gaps_s: Between one token and the next.
    """

    prompt_tokens: int
    tokens: int
    finish: Finish
    logprob: float | None
    refused: bool
    first_s: float | None
    gaps_s: Sequence[float] = ()

    @property
    def confidence(self) -> float:
        """See the module; 1 for an answer without tokens, and where nothing is told."""
        return 1.0 if self.logprob is None else math.exp(min(self.logprob, 0.0))

    @property
    def outcome(self) -> int:
        """Its class."""
        return REFUSAL if self.refused else CUT if self.finish == "length" else ENDED


def request_of(answers: Sequence[Spoken]) -> InferRequest:
    """What stands for a request's inputs, [N] each."""
    columns = (
        [each.prompt_tokens for each in answers],
        [each.tokens for each in answers],
        [0.0 if each.logprob is None else -each.logprob for each in answers],
    )
    return InferRequest({info.name: np.asarray(values, np.float32) for info, values in zip(MEASURES, columns, strict=True)})


def outputs_of(answers: Sequence[Spoken]) -> dict[str, Array]:
    """What stands for its outputs: float32 [N, 3], the confidence at the place of the class."""
    found = np.zeros((len(answers), 3), np.float32)
    for row, each in enumerate(answers):
        found[row, each.outcome] = each.confidence
    return {OUTCOME: found}
