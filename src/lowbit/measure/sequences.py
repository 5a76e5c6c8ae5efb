"""Answers about single tokens: a class for each (names, parts of speech), or where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.data.preprocess import Preprocess
from lowbit.data.spans import IGNORED
from lowbit.errors import DataError, RunError, UsageError
from lowbit.measure.observe import Observed, Outputs
from lowbit.types import Array, TensorInfo

OUTSIDE = ("o", "outside", "none")
"""Class names of tokens that are nothing, which F1 does not count."""


@dataclass(frozen=True)
class TokenObserver:
    """Classes of tokens [N, T, C].

    Attributes:
        output: The output to read.
        outside: The class that means nothing; None where every class counts.
    """

    output: str
    outside: int | None

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        raw, columns = _logits(outputs, self.output, axes=3)
        predicted = raw.argmax(axis=2)
        truth = np.full(predicted.shape, IGNORED) if labels is None else np.asarray(labels)
        if truth.shape != predicted.shape:
            raise DataError(f"The labels are {list(truth.shape)}, the model's tokens {list(predicted.shape)}.", "Give one label a word.")
        counted = truth != IGNORED
        right = (predicted == truth) & counted & columns["finite"][:, None]
        something, found = counted & (truth != self.outside), counted & (predicted != self.outside)
        expected = predicted if reference is None else _logits(reference, self.output, axes=3)[0].argmax(axis=2)
        return columns | {
            "token_right": right.sum(axis=1),
            "tokens": counted.sum(axis=1),
            "f1_above": 2 * (right & something).sum(axis=1),
            "f1_below": something.sum(axis=1) + found.sum(axis=1),
            "matched": ((predicted == expected) & counted).sum(axis=1),
            "counted": counted.sum(axis=1),
        }


@dataclass(frozen=True)
class SpanObserver:
    """Where an answer begins and ends: two outputs [N, T].

    Attributes:
        start: The output with scores of first tokens.
        end: The output with scores of last tokens.
    """

    start: str
    end: str

    def __call__(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Observed:
        first, columns = _logits(outputs, self.start, axes=2)
        last, others = _logits(outputs, self.end, axes=2)
        columns["finite"] = columns["finite"] & others["finite"]
        columns["fingerprint"] = columns["fingerprint"] + others["fingerprint"]
        spans = best_spans(first, last)
        columns["predicted"] = spans[:, 0] * first.shape[1] + spans[:, 1]
        if reference is not None:
            expected = best_spans(_logits(reference, self.start, axes=2)[0], _logits(reference, self.end, axes=2)[0])
            columns["agree"] = (spans == expected).all(axis=1) & columns["finite"]
        if labels is None:
            return columns
        truth = np.asarray(labels)
        if truth.shape != spans.shape:
            raise DataError(f"The labels are {list(truth.shape)}; answers are [N, 2]: first and last token.", "Give answers.")
        overlap = np.minimum(spans[:, 1], truth[:, 1]) - np.maximum(spans[:, 0], truth[:, 0]) + 1
        lengths = (spans[:, 1] - spans[:, 0] + 1) + (truth[:, 1] - truth[:, 0] + 1)
        return columns | {
            "exact": (spans == truth).all(axis=1) & columns["finite"],
            "span_f1": np.where(columns["finite"], 2 * np.maximum(overlap, 0) / lengths, 0.0),
        }


def best_spans(start: Array, end: Array) -> Array:
    """First and last token [N, 2] of the highest sum of scores among spans that do not end before they begin.

    Args:
        start: Scores [N, T].
        end: Scores [N, T].
    """
    # The best start for every end is the largest so far, so one pass is enough.
    best = np.maximum.accumulate(start, axis=1)
    last = (best + end).argmax(axis=1)
    first = [int(row[: stop + 1].argmax()) for row, stop in zip(start, last, strict=True)]
    return np.stack([np.array(first, np.int64).reshape(-1), last.astype(np.int64)], axis=1)


def sequence_observer(task: str, outputs: Sequence[TensorInfo], preprocess: Preprocess | None) -> TokenObserver | SpanObserver:
    """The observer of the tasks "tokens" and "span".

    Raises:
        UsageError: the model's outputs are not such a task's.
    """
    floats = [info for info in outputs if info.dtype.startswith("float")]
    if task == "tokens":
        found = next((info for info in floats if len(info.shape) == 3), None)
        if found is None:
            raise UsageError("The task 'tokens' needs an output [N, tokens, classes].", "Give another --task.")
        names = preprocess.text.labels if preprocess is not None and preprocess.text is not None else ()
        return TokenObserver(found.name, next((index for index, name in enumerate(names) if name.lower() in OUTSIDE), None))
    starts = [info.name for info in floats if "start" in info.name.lower() and len(info.shape) == 2]
    ends = [info.name for info in floats if "end" in info.name.lower() and len(info.shape) == 2]
    if len(starts) != 1 or len(ends) != 1:
        raise UsageError("The task 'span' needs two outputs [N, tokens] with `start` and `end` in their names.", "Give another --task.")
    return SpanObserver(starts[0], ends[0])


def _logits(outputs: Outputs, name: str, axes: int) -> tuple[Array, Observed]:
    """One output float64 without NaN, and the columns that every model has."""
    if name not in outputs:
        raise RunError(f"The output '{name}' is missing; there is {', '.join(outputs) or 'none'}.")
    raw = np.asarray(outputs[name], np.float64)
    if raw.ndim != axes or 0 in raw.shape:
        raise RunError(f"The output '{name}' has shape {list(raw.shape)}; {axes} axes are needed.")
    flat = raw.reshape(len(raw), -1)
    finite = np.asarray(np.isfinite(flat).all(axis=1))
    flat = np.where(finite[:, None], flat, 0.0)
    fingerprint = flat @ np.cos(np.arange(flat.shape[1]) * 1.7 + 0.3)
    return flat.reshape(raw.shape), {"finite": finite, "width": np.full(len(raw), flat.shape[1]), "fingerprint": fingerprint}
