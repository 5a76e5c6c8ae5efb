"""Two models on the same text or questions: how much worse one is, with a paired interval.

Tokens that stand side by side are surprising together, so they are not resampled one by one: documents are where there are
many of them, else blocks of consecutive windows, which are nearly independent in what matters here, the *difference* between
two models. A block has about the cube root of the number of windows (Künsch, Annals of Statistics 17:1217, 1989; the rate is
Hall, Horowitz and Jing's, Biometrika 82:561, 1995). With few documents the statement is about more text of their kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowbit.errors import DataError
from lowbit.llm.evaluate.perplexity import DocumentScore, Perplexity
from lowbit.measure.intervals import bootstrap_bounds, bootstrap_counts
from lowbit.measure.paired import LIMIT, binary_delta
from lowbit.types import Array, Delta

MANY_DOCUMENTS = 30
"""From this many on documents are resampled."""
METHOD = "paired-bootstrap"


def compare(baseline: Perplexity, candidate: Perplexity, *, confidence: float = 0.95) -> Delta:
    """Relative increase of perplexity.

    Args:
        baseline: Of the model to compare with, usually the 16-bit one.
        candidate: Of the other, on the same documents in the same windows.
        confidence: Two-sided; nearer to 1 where several finalists share an error rate.

    Returns:
        Relative delta, positive = worse; `n` are the documents or blocks that were resampled.

    Raises:
        DataError: they were evaluated on different text.
    """
    _check_same_text(baseline, candidate)
    change, tokens = _units(baseline, candidate)
    value = _relative(change.sum() / tokens.sum())
    resampled = np.concatenate([_relative((counts @ change) / (counts @ tokens)) for counts in bootstrap_counts(len(change))])
    low, high = bootstrap_bounds(float(value), resampled, len(change), 1 - confidence)
    return Delta(float(value), max(low, -1.0), min(high, LIMIT), confidence, len(change), METHOD, relative=True)


def compare_scores(baseline: Sequence[float] | Array, candidate: Sequence[float] | Array, *, confidence: float = 0.95) -> Delta:
    """Drop of a mean score in points, over questions that both answered; positive = worse.

    Scores of 0 and 1 get Tango's score interval from their flips (McNemar's view of the pairs), others a paired bootstrap.

    Args:
        baseline: Scores in 0-1 [n].
        candidate: Of the same questions.
        confidence: Two-sided.

    Raises:
        DataError: none, or another number of them.
    """
    ours, theirs = np.asarray(baseline, float), np.asarray(candidate, float)
    if len(ours) != len(theirs) or not len(ours):
        raise DataError(f"The two answered {len(ours):,} and {len(theirs):,} questions.", "Ask both the same ones.")
    alpha, n = 1 - confidence, len(ours)
    if np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all():
        return binary_delta(int((ours > theirs).sum()), int((theirs > ours).sum()), n, alpha)
    change = ours - theirs
    resampled = np.concatenate([counts @ change / n for counts in bootstrap_counts(n)])
    low, high = bootstrap_bounds(float(change.mean()), resampled, n, alpha)
    return Delta(float(change.mean()), max(low, -1.0), min(high, 1.0), confidence, n, METHOD)


def _units(baseline: Perplexity, candidate: Perplexity) -> tuple[Array, Array]:
    """What is resampled: change of the negative log-likelihood and scored tokens, float64 [n] each."""
    pairs = list(zip(baseline.documents, candidate.documents, strict=True))
    if len(pairs) >= MANY_DOCUMENTS:
        return np.array([theirs.nll - ours.nll for ours, theirs in pairs]), np.array([float(ours.tokens) for ours, _ in pairs])
    length = max(1, round(sum(len(ours.windows) for ours, _ in pairs) ** (1 / 3)))
    blocks = [block for ours, theirs in pairs for block in _blocks(ours, theirs, length)]
    change, tokens = np.array(blocks).T
    return change, tokens


def _blocks(ours: DocumentScore, theirs: DocumentScore, length: int) -> list[tuple[float, float]]:
    """Runs of about `length` consecutive windows of a document, as even as they can be."""
    change = np.subtract(theirs.windows, ours.windows)
    parts = max(1, round(len(change) / length))
    return [
        (float(part.sum()), float(sum(counts)))
        for part, counts in zip(np.array_split(change, parts), np.array_split(np.array(ours.scored), parts), strict=True)
    ]


def _relative(change: Array) -> Array:
    """exp(change) - 1, within what JSON knows."""
    return np.expm1(np.minimum(change, math.log(LIMIT)))


def _check_same_text(baseline: Perplexity, candidate: Perplexity) -> None:
    ours, theirs = ([(each.name, each.scored) for each in side.documents] for side in (baseline, candidate))
    if ours != theirs or (baseline.window, baseline.stride) != (candidate.window, candidate.stride):
        raise DataError(
            f"The two were not evaluated on the same text: {baseline.tokens:,} and {candidate.tokens:,} tokens "
            f"in windows of {baseline.window} and {candidate.window}.",
            "Evaluate both on the same documents and windows.",
        )
