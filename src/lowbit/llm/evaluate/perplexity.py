"""Perplexity: how surprised a model is by a text, exp of the mean negative log-likelihood of its tokens.

Tokens are counted exactly: the mean is over those that are scored (lowbit.llm.evaluate.windows says which), all documents
together, not a mean of means. Logits are taken to 64 bit before they are exponentiated and summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.engines.base import LanguageSession
from lowbit.llm.evaluate.windows import Documents, Window, Windows, cut
from lowbit.types import Array

ELEMENTS = 1 << 21
"""Logits that are taken to 64 bit at once (16 MB)."""

Progress = Callable[[int, int], None]
"""Called with windows done and windows in all."""


@dataclass(frozen=True)
class DocumentScore:
    """One document.

    Attributes:
        name: Of the document.
        nll: Sum of the negative log-likelihoods of its scored tokens, in nats.
        tokens: That were scored.
        windows: The sum of each window.
        scored: Tokens of each window that were scored.
    """

    name: str
    nll: float
    tokens: int
    windows: tuple[float, ...]
    scored: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        return _exp(self.nll / self.tokens)


@dataclass(frozen=True)
class Perplexity:
    """Of all documents together.

    Attributes:
        value: exp(nll_mean).
        nll_mean: Nats a token.
        tokens: That were scored.
        documents: One by one, in the order given; those with nothing to score are left out.
        window: Tokens of a window.
        stride: From one window to the next; None: rows without overlap.
        bits_per_byte: nll_mean / ln 2 x tokens a byte: comparable between tokenizers. None where sizes were not given.
    """

    value: float
    nll_mean: float
    tokens: int
    documents: tuple[DocumentScore, ...]
    window: int
    stride: int | None = None
    bits_per_byte: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Perplexity:
        """Reads what `dataclasses.asdict` gave, JSON in between or not."""
        documents = [{**each, "windows": tuple(each["windows"]), "scored": tuple(each["scored"])} for each in values["documents"]]
        return cls(**{**values, "documents": tuple(DocumentScore(**each) for each in documents)})


def evaluate(
    session: LanguageSession,
    documents: Documents,
    windows: Windows,
    *,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Scores documents in this process.

    Args:
        session: Whose.
        documents: Names and tokens.
        windows: How they are cut.
        sizes: Name -> bytes of the document's text.
        progress: Called after each window.

    Raises:
        DataError: there is nothing to score.
        RunError: a token is not in the vocabulary, the context is too short, or logits are no numbers.
    """
    pieces = cut(documents, windows)
    sums = []
    for done, window in enumerate(pieces, 1):
        sums.append(float(window_nll(session, documents, window).sum()))
        if progress is not None:
            progress(done, len(pieces))
    return gather(documents, pieces, sums, windows, sizes)


def gather(
    documents: Documents, pieces: Sequence[Window], sums: Sequence[float], windows: Windows, sizes: Mapping[str, int] | None = None
) -> Perplexity:
    """The record, from the sum of each window.

    Raises:
        RunError: a sum is no number.
    """
    if bad := sum(not math.isfinite(each) for each in sums):
        raise RunError(f"The model gives no numbers (NaN or infinity) in {bad:,} of {len(sums):,} windows.")
    scores = []
    for index, (name, _) in enumerate(documents):
        own = [(each, window.scored) for each, window in zip(sums, pieces, strict=True) if window.document == index]
        if own:
            nlls, counts = zip(*own, strict=True)
            scores.append(DocumentScore(name, math.fsum(nlls), sum(counts), nlls, counts))
    tokens = sum(each.tokens for each in scores)
    mean = math.fsum(each.nll for each in scores) / tokens
    return Perplexity(_exp(mean), mean, tokens, tuple(scores), windows.size, windows.stride, _bits_per_byte(mean, documents, sizes))


def window_logits(session: LanguageSession, documents: Documents, window: Window) -> tuple[Array, Array]:
    """Logits [k, V] of what is scored in a window, and the tokens that came, int64 [k].

    Raises:
        RunError: as the session does.
    """
    tokens = documents[window.document][1][window.begin : window.end]
    # The last token is only scored, so it need not be read.
    logits = session.logits(tokens[:-1].tolist())
    skipped = window.first - window.begin - 1
    return logits[skipped:], tokens[skipped + 1 :].astype(np.int64)


def window_nll(session: LanguageSession, documents: Documents, window: Window) -> Array:
    """Negative log-likelihood of each scored token of a window, float64 [k], in nats."""
    return token_nll(*window_logits(session, documents, window))


def token_nll(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target], float64 [T].

    Args:
        logits: [T, V].
        targets: int [T].

    Raises:
        RunError: a target has no logit.
    """
    check_targets(targets, logits.shape[1])
    found = np.empty(len(targets))
    for rows, values in wide(logits):
        below, total = normalizer(values)
        found[rows] = total - np.take_along_axis(below, targets[rows][:, None], axis=1)[:, 0]
    return found


def check_targets(targets: Array, vocabulary: int) -> None:
    """Raises RunError where a token has no logit."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < vocabulary:
        raise RunError(
            f"The text has token {int(targets.max())}, and the model gives {vocabulary:,} logits.", "Use the model's own tokenizer."
        )


def wide(logits: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of logits as float64, a bounded number of them at a time."""
    step = max(1, ELEMENTS // logits.shape[1])
    for begin in range(0, len(logits), step):
        rows = slice(begin, min(begin + step, len(logits)))
        yield rows, np.asarray(logits[rows], np.float64)


def normalizer(values: Array) -> tuple[Array, Array]:
    """Logits below the greatest of their row, and the log of the sum of their exponentials: the first minus the second is log softmax.

    Nothing overflows, and a shift of all logits, which means nothing, costs no digits.

    Args:
        values: float64 [k, V].

    Returns:
        float64 [k, V] and [k].
    """
    with np.errstate(invalid="ignore"):  # infinities give NaN, which `gather` reports
        below: Array = values - values.max(axis=-1, keepdims=True)
        return below, np.log(np.exp(below).sum(axis=-1))


def _bits_per_byte(mean: float, documents: Documents, sizes: Mapping[str, int] | None) -> float | None:
    if sizes is None or any(name not in sizes for name, _ in documents):
        return None
    return mean / math.log(2) * sum(len(tokens) for _, tokens in documents) / max(1, sum(sizes[name] for name, _ in documents))


def _exp(mean: float) -> float:
    """Stays a number that JSON knows."""
    return math.exp(min(mean, 700.0))
